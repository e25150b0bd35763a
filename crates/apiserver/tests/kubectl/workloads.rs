// SPDX-License-Identifier: Apache-2.0
//! Built-in kinds: applied, shown, patched, scaled, deleted, refused.

use std::io::{BufRead, BufReader};

use super::server::Server;

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: example.com/web:1
        ports: [{containerPort: 8080}]
        env: [{name: A, value: '1'}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, name: http}]
";

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: one}}
spec:
  containers: [{name: c, image: x}]
";

#[test]
fn what_is_applied_is_shown_and_applying_again_changes_nothing() {
    let server = Server::start();
    server.apply(WEB);
    let again = server.apply(WEB);
    assert!(again.contains("deployment.apps/web unchanged\nservice/web unchanged"), "{again}");
    assert!(!again.contains("arning"), "{again}");
    let wide = server.kubectl(&["get", "deployments", "-o", "wide"]);
    let (head, row) = wide.split_once('\n').unwrap();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        words(head),
        ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]
    );
    assert_eq!(words(row)[..4], ["web", "0/2", "0", "0"]);
    let all = server.kubectl(&["get", "all", "--show-labels"]);
    assert!(all.contains("deployment.apps/web") && all.contains("service/kubernetes"), "{all}");
    let described = server.kubectl(&["describe", "deployment", "web"]);
    assert!(described.contains("RollingUpdateStrategy:  25% max unavailable, 25% max surge"), "{described}");
    let address = server.value("service/web", ".spec.clusterIP");
    assert!(address.starts_with("10.96.") && address != "10.96.0.1", "{address}");
    assert_eq!(server.value("service/web", ".spec.ports[0].targetPort"), "80");
    let explained = server.kubectl(&["explain", "deployment.spec.strategy"]);
    assert!(explained.contains("rollingUpdate"), "{explained}");
}

#[test]
fn changes_of_every_kind_reach_the_object() {
    let server = Server::start();
    server.apply(WEB);
    let strategic =
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"B","value":"2"}]}]}}}}"#;
    let steps: &[(&[&str], &str, &str)] = &[
        (&["label", "deployment", "web", "x=y"], ".metadata.labels.x", "y"),
        (&["annotate", "deployment", "web", "n=m"], ".metadata.annotations.n", "m"),
        (&["scale", "deployment", "web", "--replicas=3"], ".spec.replicas", "3"),
        (
            &["patch", "deployment", "web", "-p", strategic],
            ".spec.template.spec.containers[0].env[*].name",
            "A B",
        ),
        (
            &[
                "patch",
                "deployment",
                "web",
                "--type=json",
                "-p",
                r#"[{"op":"replace","path":"/spec/replicas","value":5}]"#,
            ],
            ".spec.replicas",
            "5",
        ),
        (
            &["patch", "deployment", "web", "--type=merge", "-p", r#"{"spec":{"replicas":0}}"#],
            ".spec.replicas",
            "0",
        ),
        (
            &["set", "image", "deployment/web", "web=example.com/web:2"],
            ".spec.template.spec.containers[0].image",
            "example.com/web:2",
        ),
        (&["label", "deployment", "web", "x-"], ".metadata.labels", r#"{"app":"web"}"#),
        (&["label", "deployment", "web", "a=b"], ".metadata.generation", "6"),
    ];
    for (args, path, expected) in steps {
        server.kubectl(args);
        assert_eq!(server.value("deployment/web", path), *expected, "{args:?}");
    }
    server.kubectl(&["rollout", "restart", "deployment/web"]);
    assert_eq!(server.value("deployment/web", ".metadata.generation"), "7");
    let bad = server.refused(
        &[
            "patch",
            "deployment",
            "web",
            "--type=merge",
            "-p",
            r#"{"spec":{"selector":{"matchLabels":{"a":"b"}}}}"#,
        ],
        "",
    );
    assert!(bad.contains("field is immutable"), "{bad}");
}

#[test]
fn commands_that_make_objects_themselves() {
    let server = Server::start();
    let steps: &[&[&str]] = &[
        &["create", "deployment", "d", "--image=nginx", "--dry-run=server"],
        &["create", "deployment", "d", "--image=nginx", "--replicas=0"],
        &["expose", "deployment", "d", "--port=80"],
        &["run", "p", "--image=x", "--", "sleep", "1"],
        &["create", "configmap", "c", "--from-literal=a=b"],
        &["create", "secret", "generic", "s", "--from-literal=a=b"],
        &["create", "namespace", "other"],
        &["create", "serviceaccount", "sa"],
        &["create", "role", "r", "--verb=get", "--resource=pods"],
        &["create", "rolebinding", "rb", "--role=r", "--serviceaccount=default:sa"],
        &["create", "clusterrole", "cr", "--verb=*", "--resource=deployments.apps"],
        &["create", "job", "j", "--image=x"],
    ];
    for args in steps {
        server.kubectl(args);
    }
    assert_eq!(server.value("deployment/d", ".spec.replicas"), "0");
    assert_eq!(server.value("service/d", ".spec.ports[0].targetPort"), "80");
    assert_eq!(server.value("secret/s", ".data.a"), "Yg==");
    assert_eq!(server.value("rolebinding/rb", ".subjects[0].name"), "sa");
    assert_eq!(server.value("pod/p", ".spec.containers[0].args"), r#"["sleep","1"]"#);
    assert_eq!(server.kubectl(&["auth", "can-i", "create", "pods"]).trim(), "yes");
}

#[test]
fn who_writes_what_nobody_acts_on_is_warned() {
    let server = Server::start();
    let policy = |name: &str, label: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\n\
             spec: {{podSelector: {{matchLabels: {{a: {label}}}}}}}"
        )
    };
    let warning =
        "Warning: the NetworkPolicy is stored, but nothing in this cluster acts on it; use something else";
    let patch = r#"{"spec": {"podSelector": {"matchLabels": {"a": "e"}}}}"#;
    let steps: [(&[&str], String); 7] = [
        (&["apply", "-f", "-", "--dry-run=server"], policy("np", "a")),
        (&["apply", "-f", "-"], policy("np", "b")),
        (&["apply", "-f", "-"], policy("np", "c")),
        (&["replace", "-f", "-"], policy("np", "d")),
        (&["patch", "networkpolicy", "np", "--type=merge", "-p", patch], String::new()),
        (&["apply", "-f", "-", "--server-side", "--force-conflicts"], policy("np", "f")),
        (&["apply", "-f", "-", "--server-side"], policy("new", "a")),
    ];
    for (args, input) in &steps {
        let said = server.standard_error(args, input);
        assert!(said.contains(warning), "{args:?}: {said}");
    }
    let said = server.standard_error(&["label", "networkpolicy", "np", "x=y"], "");
    assert!(said.contains(warning), "{said}");
}

#[test]
fn a_pod_gets_its_defaults_and_its_token() {
    let server = Server::start();
    server.apply(POD);
    for (path, expected) in [
        (".spec.restartPolicy", "Always"),
        (".spec.dnsPolicy", "ClusterFirst"),
        (".spec.terminationGracePeriodSeconds", "30"),
        (".spec.serviceAccountName", "default"),
        (".spec.containers[0].imagePullPolicy", "Always"),
        (".spec.containers[0].volumeMounts[0].mountPath", "/var/run/secrets/kubernetes.io/serviceaccount"),
        (".spec.volumes[0].projected.sources[0].serviceAccountToken.path", "token"),
        (".status.phase", "Pending"),
    ] {
        assert_eq!(server.value("pod/one", path), expected, "{path}");
    }
    let table = server.kubectl(&["get", "pods", "--no-headers"]);
    assert_eq!(table.split_whitespace().take(4).collect::<Vec<_>>(), ["one", "0/1", "Pending", "0"]);
    let bad = server.refused(&["apply", "-f", "-"], &POD.replace("name: c,", "name: d,"));
    assert!(bad.contains("pod updates may not change fields"), "{bad}");
    let orphan =
        POD.replace("spec:", "spec:\n  serviceAccountName: nobody").replace("name: one", "name: two");
    let bad = server.refused(&["apply", "-f", "-"], &orphan);
    assert!(bad.contains("serviceaccount \"nobody\" not found"), "{bad}");
    assert!(
        server
            .kubectl(&[
                "get",
                "pods",
                "-l",
                "app in (one,two)",
                "--field-selector=status.phase=Pending",
                "-o",
                "name"
            ])
            .contains("pod/one")
    );
    server.kubectl(&["delete", "pod", "one"]);
    let gone = server.refused(&["get", "pod", "one"], "");
    assert_eq!(gone.trim(), "Error from server (NotFound): pods \"one\" not found");
}

#[test]
fn a_typo_or_a_wrong_value_is_refused_with_its_path() {
    let server = Server::start();
    let cases = [
        (WEB.replace("replicas:", "replicaz:"), "replicaz\""),
        (WEB.replace("replicas: 2", "replicas: many"), "replicas"),
        (
            WEB.replace("metadata: {labels: {app: web}}", "metadata: {labels: {app: other}}"),
            "does not match template `labels`",
        ),
        (
            WEB.replace("name: web, labels", "name: Web_, labels"),
            "a lowercase RFC 1123 subdomain must consist of",
        ),
        (WEB.replace("image: example.com/web:1", "imagee: x"), "imagee\""),
    ];
    for (yaml, expected) in cases {
        let said = server.refused(&["apply", "-f", "-"], yaml.split("---").next().unwrap());
        // Older kubectls find it themselves, and word it their way.
        assert!(said.contains(expected), "{said}");
    }
    let taken = "
apiVersion: v1
kind: Service
metadata: {name: taken}
spec: {clusterIP: 10.96.0.1, ports: [{port: 1}]}
";
    let said = server.refused(&["apply", "-f", "-"], taken);
    assert!(said.contains("provided IP is already allocated"), "{said}");
    let said = server.refused(&["create", "-n", "nowhere", "-f", "-"], POD);
    assert!(said.contains("namespaces \"nowhere\" not found"), "{said}");
}

#[test]
fn a_service_cannot_take_an_address_of_another() {
    let server = Server::start();
    let service = |name: &str, spec: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}], {spec}}}"
        )
    };
    server.kubectl_with(&["apply", "-f", "-"], &service("shop", "externalIPs: [172.30.1.7]"));
    let shop = server.kubectl(&["get", "service", "shop", "-o", "jsonpath={.spec.clusterIP}"]);
    server.kubectl_with(&["apply", "-f", "-"], &service("alias", "type: ExternalName, externalName: x.y"));
    let pool = "must be an address of the private pool 172.30.1.0/24";
    let alias = format!("type: ExternalName, externalName: x.y, clusterIP: {shop}");
    for (spec, expected) in [
        (alias.as_str(), "may not be set for ExternalName services"),
        (&format!("clusterIP: {shop}"), "provided IP is already allocated"),
        ("externalIPs: [172.30.1.7]", "is an address of Service default/shop"),
        ("externalIPs: [10.244.1.5]", pool),
        ("externalIPs: [172.30.0.11]", pool),
        ("externalIPs: [169.254.7.127]", pool),
        ("externalIPs: [10.96.0.1]", pool),
        ("externalIPs: [127.0.0.1]", pool),
        ("externalIPs: ['::1']", pool),
        ("externalIPs: [172.30.1.255]", pool),
    ] {
        let said = server.refused(&["create", "-f", "-"], &service("thief", spec));
        assert!(said.contains(expected), "{spec}: {said}");
    }
    for patch in [
        format!(r#"{{"spec":{{"clusterIP":"{shop}"}}}}"#),
        format!(r#"{{"spec":{{"type":"ClusterIP","externalName":null,"clusterIP":"{shop}"}}}}"#),
        r#"{"spec":{"externalIPs":["172.30.1.7"]}}"#.to_owned(),
    ] {
        server.refused(&["patch", "service", "alias", "--type=merge", "-p", &patch], "");
    }
    // The way there and back: another address, never one that was only written down.
    server.kubectl(&[
        "patch",
        "service",
        "alias",
        "-p",
        r#"{"spec":{"type":"ClusterIP","externalName":null}}"#,
    ]);
    let own = server.kubectl(&["get", "service", "alias", "-o", "jsonpath={.spec.clusterIP}"]);
    assert!(own.starts_with("10.96.") && own != shop, "{own}");
    let back = r#"{"spec":{"type":"ExternalName","externalName":"x.y"}}"#;
    server.kubectl(&["patch", "service", "alias", "-p", back]);
    let none = server.kubectl(&["get", "service", "alias", "-o", "jsonpath={.spec.clusterIP}"]);
    assert_eq!(none, "");
}

#[test]
fn server_side_apply_knows_who_owns_what() {
    let server = Server::start();
    let config =
        |data: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata: {data}\n");
    let side = |manager: &'static str| ["--server-side", "--field-manager", manager];
    server.apply_with(&side("one"), &config("{a: '1', b: '1'}"));
    server.apply_with(&side("one"), &config("{a: '1', b: '1'}"));
    let conflict =
        server.refused(&["apply", "-f", "-", "--server-side", "--field-manager=two"], &config("{a: '2'}"));
    assert!(conflict.contains("conflict with \"one\": .data.a"), "{conflict}");
    server.apply_with(&["--server-side", "--field-manager=two", "--force-conflicts"], &config("{a: '2'}"));
    server.apply_with(&side("one"), &config("{c: '1'}"));
    assert_eq!(server.value("configmap/c", ".data"), r#"{"a":"2","c":"1"}"#);

    // Lists are owned element by element: what another manager added stays.
    server.apply_with(&side("one"), WEB);
    server.apply_with(&side("one"), WEB);
    let more = WEB.split("---").next().unwrap().replace("name: A, value: '1'", "name: Z, value: '9'");
    server.apply_with(&side("two"), &more);
    let names = ".spec.template.spec.containers[0].env[*].name";
    assert_eq!(server.value("deployment/web", names), "A Z");
    server.apply_with(&side("two"), &more.replace("env: [{name: Z, value: '9'}]", "env: []"));
    assert_eq!(server.value("deployment/web", names), "A");
    server.apply_with(&side("one"), POD);
    server.apply_with(&side("one"), POD);
}

#[test]
fn a_watch_sees_every_change_and_a_page_ends_where_the_next_begins() {
    let server = Server::start();
    let mut child = server.command(&["get", "configmaps", "--watch", "-o", "name"]).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for name in ["a", "b", "c"] {
        server.kubectl(&["create", "configmap", name]);
    }
    let seen: Vec<String> = lines.map_while(Result::ok).take(3).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(seen, ["configmap/a", "configmap/b", "configmap/c"]);
    let page = server.kubectl(&["get", "--raw", "/api/v1/namespaces/default/configmaps?limit=2"]);
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    assert_eq!(page["metadata"]["remainingItemCount"], 1);
    assert_eq!(server.kubectl(&["get", "configmaps", "--chunk-size=1", "-o", "name"]).lines().count(), 3);
    server.kubectl(&["delete", "configmaps", "--all"]);
    assert_eq!(server.kubectl(&["get", "configmaps", "-o", "name"]), "");
}

#[test]
fn what_was_acknowledged_survives_sigkill() {
    let mut server = Server::start();
    let before = server.kubectl(&["get", "service", "kubernetes", "-o", "jsonpath={.metadata.uid}"]);
    for name in ["a", "b", "c"] {
        server.kubectl(&["create", "configmap", name]);
    }
    let version = server.value("configmap/c", ".metadata.resourceVersion");
    server.kill_and_restart();
    assert_eq!(
        server.kubectl(&["get", "configmaps", "-o", "name"]),
        "configmap/a\nconfigmap/b\nconfigmap/c\n"
    );
    assert_eq!(server.value("configmap/c", ".metadata.resourceVersion"), version);
    assert_eq!(server.value("service/kubernetes", ".metadata.uid"), before);
    server.kubectl(&["create", "configmap", "d"]);
    let later: u64 = server.value("configmap/d", ".metadata.resourceVersion").parse().unwrap();
    assert!(later > version.parse().unwrap());
}

/// With a slip in a negative selector every object would match, and `delete` would delete them.
#[test]
fn a_field_selector_that_is_none_is_refused() {
    let server = Server::start();
    server.apply(POD);
    for selector in
        ["status.phas!=Running", "status.qosClass=BestEffort", "spec.containers=x", "metadata.labels.app=web"]
    {
        for verb in ["get", "delete"] {
            let said = server.refused(&[verb, "pods", "--field-selector", selector], "");
            assert!(said.contains("field label not supported"), "{verb} {selector}: {said}");
        }
    }
    let found = server.kubectl(&[
        "get",
        "pods",
        "-o",
        "name",
        "--field-selector",
        "status.phase=Pending,spec.hostNetwork=false",
    ]);
    assert_eq!(found, "pod/one\n", "a field that is not set has its default");
    assert_eq!(
        server.kubectl(&["get", "events", "--field-selector", "involvedObject.kind=Pod,source=x"]),
        ""
    );
}

#[test]
fn what_clients_expect_of_every_cluster() {
    let server = Server::start();
    server.apply(POD);
    server.kubectl(&["create", "namespace", "x"]);
    let labelled =
        server.kubectl(&["get", "namespaces", "-o", "name", "-l", "kubernetes.io/metadata.name=x"]);
    assert_eq!(labelled, "namespace/x\n");
    server.kubectl(&["label", "namespace", "x", "kubernetes.io/metadata.name-"]);
    assert_eq!(server.value("namespace/x", ".metadata.labels.kubernetes\\.io/metadata\\.name"), "x");
    server.kubectl(&["debug", "one", "--image=busybox", "--container=debugger", "--attach=false"]);
    assert_eq!(server.value("pod/one", ".spec.ephemeralContainers[*].image"), "busybox");
    let changed = server.kubectl(&["get", "pod", "one", "-o", "json"]).replace("busybox", "other");
    let path = "/api/v1/namespaces/default/pods/one/ephemeralcontainers";
    let said = server.refused(&["replace", "--raw", path, "-f", "-"], &changed);
    assert!(said.contains("existing ephemeral containers \"debugger\" may not be changed"), "{said}");
    // Not past the subresource, and nothing else through it.
    let said = server.refused(&["replace", "-f", "-"], &changed);
    assert!(said.contains("pod updates may not change fields"), "{said}");
    let relabelled =
        server.kubectl(&["get", "pod", "one", "-o", "json"]).replace("\"app\": \"one\"", "\"app\": \"two\"");
    server.kubectl_with(&["replace", "--raw", path, "-f", "-"], &relabelled);
    assert_eq!(server.value("pod/one", ".metadata.labels.app"), "one");
    let born = POD.replace("name: one,", "name: born,") + "  ephemeralContainers: [{name: d, image: x}]\n";
    let said = server.refused(&["create", "-f", "-"], &born);
    assert!(said.contains("cannot be set on create"), "{said}");
    let policy = "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicy\n\
                  metadata: {name: p}\nspec: {matchConstraints: {resourceRules: [{apiGroups: [x.y], apiVersions: [v1], operations: [CREATE], \
                  resources: [z]}]}, validations: [{expression: 'true'}]}";
    let said = server.apply(policy);
    assert!(said.contains("created"), "{said}");
    let rules = server.value("clusterrole/view", ".rules[*].resources");
    assert!(rules.contains("configmaps"), "an aggregated role shows what it gathers: {rules}");
}
