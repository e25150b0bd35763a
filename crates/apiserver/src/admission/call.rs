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
use crate::document::DocumentError;

/// Largest answer.
const LIMIT: usize = 3 * 1024 * 1024;

/// Why a webhook gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("no answer within {seconds} s")]
    TooSlow { seconds: u64 },
    #[error("{url}: only https is allowed")]
    NotHttps { url: String },
    #[error("service {name:?} not found in namespace {namespace:?}")]
    NoService { namespace: String, name: String },
    #[error("service \"{namespace}/{name}\" has no port {port}")]
    NoPort { namespace: String, name: String, port: u64 },
    #[error("no endpoints available for service {name:?}")]
    NoEndpoint { name: String },
    #[error("caBundle is missing")]
    NoTrust,
    #[error("caBundle: {0}")]
    MalformedTrust(String),
    #[error("{host}: {error}")]
    Name { host: String, error: rustls_pki_types::InvalidDnsNameError },
    /// The connection, or TLS on it.
    #[error("{to}: {error}")]
    Connect { to: String, error: std::io::Error },
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Request(#[from] http::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// More than the largest answer, or one that broke off.
    #[error("{0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("status {code}: {body}")]
    Status { code: http::StatusCode, body: String },
    #[error("the answer is not readable: {0}")]
    Malformed(DocumentError),
}

struct Destination {
    address: String,
    host: String,
    path: String,
}

/// Posts a review and reads the answer.
pub(super) async fn post(api: &Api, webhook: &Value, review: &Value) -> Result<Value, CallError> {
    let seconds = webhook["timeoutSeconds"].as_u64().unwrap_or(10).clamp(1, 30);
    tokio::time::timeout(Duration::from_secs(seconds), exchange(api, webhook, review))
        .await
        .map_err(|_| CallError::TooSlow { seconds })?
}

async fn exchange(api: &Api, webhook: &Value, review: &Value) -> Result<Value, CallError> {
    let to = destination(api, &webhook["clientConfig"])?;
    let config = trust(&webhook["clientConfig"])?;
    let host = || to.host.clone();
    let name = ServerName::try_from(host()).map_err(|error| CallError::Name { host: host(), error })?;
    let tcp = tokio::net::TcpStream::connect(&to.address)
        .await
        .map_err(|error| CallError::Connect { to: to.address.clone(), error })?;
    let tls = TlsConnector::from(config)
        .connect(name, tcp)
        .await
        .map_err(|error| CallError::Connect { to: host(), error })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
    let request = Request::post(&to.path)
        .header(header::HOST, &to.host)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(review.to_string())))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let code = response.status();
        let body = Limited::new(response.into_body(), LIMIT).collect().await.map_err(CallError::Body)?;
        let body = body.to_bytes();
        if !code.is_success() {
            return Err(CallError::Status { code, body: String::from_utf8_lossy(&body).into_owned() });
        }
        crate::document::json(&body).map_err(CallError::Malformed)
    };
    tokio::pin!(connection, answer);
    tokio::select! {
        biased;
        done = answer.as_mut() => done,
        // The other side may close with its answer; what was read of it is still to be had.
        _ = connection => answer.await,
    }
}

fn destination(api: &Api, config: &Value) -> Result<Destination, CallError> {
    if let Some(url) = config["url"].as_str() {
        let rest = url.strip_prefix("https://").ok_or_else(|| CallError::NotHttps { url: url.to_owned() })?;
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
fn endpoint(api: &Api, namespace: &str, name: &str, port: u64) -> Result<String, CallError> {
    let service = api
        .get("", "services", namespace, name)
        .ok_or_else(|| CallError::NoService { namespace: namespace.to_owned(), name: name.to_owned() })?;
    let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let wanted = ports.iter().find(|p| p["port"] == port).ok_or_else(|| CallError::NoPort {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        port,
    })?;
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
    Err(CallError::NoEndpoint { name: name.to_owned() })
}

fn trust(config: &Value) -> Result<Arc<ClientConfig>, CallError> {
    let bundle = config["caBundle"].as_str().ok_or(CallError::NoTrust)?;
    let pem = STANDARD.decode(bundle).map_err(|e| CallError::MalformedTrust(e.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots
            .add(certificate.map_err(|e| CallError::MalformedTrust(e.to_string()))?)
            .map_err(|e| CallError::MalformedTrust(e.to_string()))?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
