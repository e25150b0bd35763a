// SPDX-License-Identifier: Apache-2.0
//! Admission webhooks behind a Service: asked under TLS as `<service>.<namespace>.svc`, obeyed, and missed.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde_json::{Value, json};

use super::server::Server;

/// A webhook that refuses what is called `bad`; its port, and its authority's certificate.
fn webhook(name: &str) -> (u16, String) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            answer(&mut rustls::StreamOwned::new(connection, stream));
        }
    });
    (port, STANDARD.encode(authority.pem()))
}

/// One request with a Content-Length, one answer; a handshake that fails is the other side's business.
fn answer(stream: &mut (impl Read + Write)) {
    let mut bytes = Vec::new();
    let (head, length) = loop {
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(read) => bytes.extend_from_slice(&chunk[..read]),
        }
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ").map(str::to_owned));
        break (end + 4, length.unwrap().parse::<usize>().unwrap());
    };
    while bytes.len() < head + length {
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).unwrap();
        bytes.extend_from_slice(&chunk[..read]);
    }
    let review: Value = serde_json::from_slice(&bytes[head..]).unwrap();
    let allowed = review["request"]["name"] != "bad";
    let mut response = json!({"uid": review["request"]["uid"], "allowed": allowed,
                          "status": {"message": format!("{} is not wanted", review["request"]["name"])}});
    if review["request"]["object"]["metadata"]["labels"]["warn"] == "yes" {
        response["warnings"] =
            json!([format!("think of {} again", review["request"]["name"]), "twice", "twice"]);
    }
    if review["request"]["name"] == "changed" {
        let patch = json!([{"op": "add", "path": "/data", "value": {"by": "the webhook"}}]);
        response["patchType"] = "JSONPatch".into();
        response["patch"] = STANDARD.encode(patch.to_string()).into();
    }
    let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    let body = body.to_string();
    let _ = write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.flush();
}

fn behind_a_service(port: u16, bundle: &str, selector: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: hook}}
spec: {{ports: [{{name: https, port: 443}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: hook, labels: {{kubernetes.io/service-name: hook}}}}
addressType: IPv4
ports: [{{name: https, port: {port}}}]
endpoints: [{{addresses: [127.0.0.1], conditions: {{ready: true}}}}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {{name: hook}}
webhooks:
- name: hook.example.com
  admissionReviewVersions: [v1]
  sideEffects: None
  timeoutSeconds: 5
  objectSelector: {selector}
  rules: [{{apiGroups: [''], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [configmaps]}}]
  clientConfig: {{caBundle: {bundle}, service: {{name: hook, namespace: default, path: /check}}}}
"
    )
}

fn config_map(name: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, labels: {{a: b}}}}\n")
}

#[test]
fn a_webhook_is_asked_and_its_denial_is_worded_as_kubernetes_does() {
    let server = Server::start();
    let (port, bundle) = webhook("hook.default.svc");
    server.apply(&behind_a_service(port, &bundle, "{}"));
    server.apply(&config_map("good"));
    let said = server.refused(&["apply", "-f", "-"], &config_map("bad"));
    assert!(
        said.contains("admission webhook \"hook.example.com\" denied the request: \"bad\" is not wanted"),
        "{said}"
    );
    let said = server.refused(&["apply", "-f", "-", "--dry-run=server"], &config_map("bad"));
    assert!(said.contains("denied the request"), "{said}");
    server.kubectl(&["create", "secret", "generic", "bad"]);
    server.apply(&behind_a_service(port, &bundle, "{matchLabels: {a: c}}"));
    server.apply(&config_map("bad"));
}

/// On every way to write, with a dry run, and beside a denial, as in Kubernetes.
#[test]
fn warnings_of_webhooks_reach_the_client() {
    let server = Server::start();
    let (port, bundle) = webhook("hook.default.svc");
    server.apply(&behind_a_service(port, &bundle, "{}"));
    server.apply(&behind_a_service(port, &bundle, "{}").replace("Validating", "Mutating"));
    let map =
        |name: &str, label: &str| config_map(name).replace("{a: b}", &format!("{{warn: 'yes', a: {label}}}"));
    let patch = r#"{"metadata": {"labels": {"a": "patched"}}}"#;
    let steps: [(&[&str], String); 9] = [
        (&["create", "-f", "-"], map("m", "b")),
        (&["apply", "-f", "-", "--dry-run=server"], map("m", "c")),
        (&["apply", "-f", "-"], map("m", "d")),
        (&["replace", "-f", "-"], map("m", "e")),
        (&["patch", "configmap", "m", "--type=merge", "-p", patch], String::new()),
        (
            &["patch", "configmap", "m", "--type=strategic", "-p", &patch.replace("patched", "f")],
            String::new(),
        ),
        (&["apply", "-f", "-", "--server-side", "--force-conflicts"], map("m", "g")),
        (&["apply", "-f", "-", "--server-side"], map("other", "b")),
        (&["create", "-f", "-"], map("bad", "b")),
    ];
    for (args, input) in &steps {
        let said = server.standard_error(args, input);
        assert!(said.contains("Warning: think of ") && said.contains("Warning: twice"), "{args:?}: {said}");
        assert_eq!(said.matches("Warning: twice").count(), 1, "{args:?}: {said}");
    }
    assert!(!server.apply(&config_map("quiet")).contains("Warning"));
}

#[test]
fn a_mutating_webhook_changes_the_object() {
    let server = Server::start();
    let (port, bundle) = webhook("hook.default.svc");
    server.apply(&behind_a_service(port, &bundle, "{}").replace("Validating", "Mutating"));
    server.apply(&config_map("changed"));
    assert_eq!(server.value("configmap/changed", ".data.by"), "the webhook");
    server.apply(&config_map("good"));
    assert_eq!(server.value("configmap/good", ".data"), "");
}

#[test]
fn a_webhook_that_cannot_be_asked_fails_as_its_policy_says() {
    let server = Server::start();
    // Its certificate is for another Service: as good as none.
    let (port, bundle) = webhook("other.default.svc");
    let manifest = behind_a_service(port, &bundle, "{}");
    server.apply(&manifest);
    let said = server.refused(&["apply", "-f", "-"], &config_map("good"));
    assert!(said.contains("failed calling webhook \"hook.example.com\""), "{said}");
    server.apply(&manifest.replace("sideEffects: None", "sideEffects: None\n  failurePolicy: Ignore"));
    server.apply(&config_map("good"));
    server.kubectl(&["delete", "validatingwebhookconfiguration", "hook"]);
}
