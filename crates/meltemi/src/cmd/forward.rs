// SPDX-License-Identifier: Apache-2.0
//! Asks an HTTP endpoint inside a Pod, through the API server's port-forward.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};

/// Admin endpoint of a proxy.
pub const ADMIN: u16 = 15000;
/// Metrics and debug endpoint of the control plane.
pub const MONITORING: u16 = 15014;
/// What the control plane's debug endpoint wants in a token.
const AUDIENCE: &str = "istio-ca";
/// A dump of a large mesh.
const LARGEST: usize = 512 << 20;

/// GETs `path` from a port of a Pod; an answer other than 200 is an error.
pub async fn get(
    client: &Client,
    namespace: &str,
    pod: &str,
    port: u16,
    path: &str,
    bearer: Option<&str>,
) -> anyhow::Result<Bytes> {
    let mut request = Request::get(path).header("host", "localhost");
    if let Some(token) = bearer {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    ask(client, (namespace, pod), port, request.body(Empty::new())?).await
}

/// POSTs to `path` of a port of a Pod; an answer other than 200 is an error.
pub async fn post(
    client: &Client,
    namespace: &str,
    pod: &str,
    port: u16,
    path: &str,
) -> anyhow::Result<Bytes> {
    let request = Request::post(path).header("host", "localhost").body(Empty::new())?;
    ask(client, (namespace, pod), port, request).await
}

async fn ask(
    client: &Client,
    (namespace, pod): (&str, &str),
    port: u16,
    request: Request<Empty<Bytes>>,
) -> anyhow::Result<Bytes> {
    let path = request.uri().to_string();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let whole = || format!("port {port} of Pod {namespace}/{pod}");
    let mut forward = pods.portforward(pod, &[port]).await.with_context(whole)?;
    let stream = forward.take_stream(port).with_context(whole)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.with_context(whole)?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), LARGEST)
            .collect()
            .await
            .map_err(|e| anyhow::anyhow!("{e}"))?
            .to_bytes();
        Ok::<_, anyhow::Error>((status, body))
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    let mut ended = false;
    let (status, body) = loop {
        tokio::select! {
            answer = &mut exchange => break answer.with_context(whole)?,
            _ = &mut connection, if !ended => ended = true,
        }
    };
    if !status.is_success() {
        bail!("{}: {path}: {status}: {}", whole(), String::from_utf8_lossy(&body).trim());
    }
    Ok(body)
}

/// A short-lived token of the control plane's own service account, for its debug endpoint.
pub async fn control_token(client: &Client, namespace: &str) -> anyhow::Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(vec![AUDIENCE.to_owned()]),
            expiration_seconds: Some(600),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request("istiod", &PostParams::default(), &request)
        .await
        .with_context(|| format!("a token for service account {namespace}/istiod"))?;
    answer.status.and_then(|s| s.token).context("the API server gave no token")
}

/// A running Pod of the control plane.
pub async fn control_pod(client: &Client, namespace: &str) -> anyhow::Result<String> {
    let found = running(client, namespace, "app=istiod").await?;
    let first = found.into_iter().next().and_then(|p| p.metadata.name);
    first.with_context(|| format!("no running istiod Pod in namespace {namespace}"))
}

/// The node proxy on a node.
pub async fn node_proxy(client: &Client, namespace: &str, node: &str) -> anyhow::Result<String> {
    let found = running(client, namespace, "app=ztunnel").await?;
    found
        .into_iter()
        .find(|p| p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node))
        .and_then(|p| p.metadata.name)
        .with_context(|| format!("no running ztunnel Pod on node {node}"))
}

/// The running Pods of a selector.
pub async fn running(client: &Client, namespace: &str, selector: &str) -> anyhow::Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let list = pods.list(&kube::api::ListParams::default().labels(selector)).await?;
    Ok(list
        .items
        .into_iter()
        .filter(|p| {
            p.metadata.deletion_timestamp.is_none()
                && p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
        })
        .collect())
}
