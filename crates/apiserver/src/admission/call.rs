// SPDX-License-Identifier: Apache-2.0
//! The call to a webhook: found by Service among its ready endpoints, or by URL; always TLS, always bounded.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::client::ClientConfig;
use rustls::{RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio_rustls::TlsConnector;

use crate::api::Api;

/// Largest answer.
const LIMIT: usize = 3 * 1024 * 1024;

struct Destination {
    address: String,
    host: String,
    path: String,
}

/// Posts a review and reads the answer.
pub(super) async fn post(api: &Api, webhook: &Value, review: &Value) -> Result<Value, String> {
    let seconds = webhook["timeoutSeconds"].as_u64().unwrap_or(10).clamp(1, 30);
    tokio::time::timeout(Duration::from_secs(seconds), exchange(api, webhook, review))
        .await
        .map_err(|_| format!("no answer within {seconds} s"))?
}

async fn exchange(api: &Api, webhook: &Value, review: &Value) -> Result<Value, String> {
    let to = destination(api, &webhook["clientConfig"])?;
    let config = trust(&webhook["clientConfig"])?;
    let name = ServerName::try_from(to.host.clone()).map_err(|e| format!("{}: {e}", to.host))?;
    let tcp =
        tokio::net::TcpStream::connect(&to.address).await.map_err(|e| format!("{}: {e}", to.address))?;
    let tls = TlsConnector::from(config).connect(name, tcp).await.map_err(|e| format!("{}: {e}", to.host))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(|e| e.to_string())?;
    let request = Request::post(&to.path)
        .header(header::HOST, &to.host)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(review.to_string())))
        .map_err(|e| e.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let code = response.status();
        let body =
            Limited::new(response.into_body(), LIMIT).collect().await.map_err(|e| e.to_string())?.to_bytes();
        if !code.is_success() {
            return Err(format!("status {code}: {}", String::from_utf8_lossy(&body)));
        }
        crate::document::json(&body).map_err(|e| format!("the answer is not readable: {e}"))
    };
    tokio::pin!(connection, answer);
    tokio::select! {
        biased;
        done = answer.as_mut() => done,
        // The other side may close with its answer; what was read of it is still to be had.
        _ = connection => answer.await,
    }
}

fn destination(api: &Api, config: &Value) -> Result<Destination, String> {
    if let Some(url) = config["url"].as_str() {
        let rest = url.strip_prefix("https://").ok_or_else(|| format!("{url}: only https is allowed"))?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let address = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:443") };
        return Ok(Destination { address, host: host.to_owned(), path: format!("/{path}") });
    }
    let service = &config["service"];
    let text = |key: &str| service[key].as_str().unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    let port = service["port"].as_u64().unwrap_or(443);
    let path = service["path"].as_str().unwrap_or("/").to_owned();
    let address = endpoint(api, namespace, name, port)?;
    Ok(Destination { address, host: format!("{name}.{namespace}.svc"), path })
}

/// A ready endpoint of a Service: this process is not among those whose traffic to Service addresses is translated.
fn endpoint(api: &Api, namespace: &str, name: &str, port: u64) -> Result<String, String> {
    let service = api
        .get("", "services", namespace, name)
        .ok_or_else(|| format!("service \"{name}\" not found in namespace \"{namespace}\""))?;
    let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let wanted = ports
        .iter()
        .find(|p| p["port"] == port)
        .ok_or_else(|| format!("service \"{namespace}/{name}\" has no port {port}"))?;
    let slices = api.store.list("discovery.k8s.io/endpointslices", Some(namespace), None).0;
    for slice in slices.iter().filter(|s| s.value["metadata"]["labels"]["kubernetes.io/service-name"] == name)
    {
        let same = |p: &&Value| {
            p["name"].as_str().unwrap_or_default() == wanted["name"].as_str().unwrap_or_default()
        };
        let found = slice.value["ports"].as_array().into_iter().flatten().find(same);
        let Some(number) = found.and_then(|p| p["port"].as_u64()) else { continue };
        for endpoint in slice.value["endpoints"].as_array().into_iter().flatten() {
            if endpoint["conditions"]["ready"] != false
                && let Some(address) = endpoint["addresses"][0].as_str()
            {
                return Ok(format!("{address}:{number}"));
            }
        }
    }
    Err(format!("no endpoints available for service \"{name}\""))
}

fn trust(config: &Value) -> Result<Arc<ClientConfig>, String> {
    let bundle = config["caBundle"].as_str().ok_or("caBundle is missing")?;
    let pem = STANDARD.decode(bundle).map_err(|e| format!("caBundle: {e}"))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots
            .add(certificate.map_err(|e| format!("caBundle: {e}"))?)
            .map_err(|e| format!("caBundle: {e}"))?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
