// SPDX-License-Identifier: Apache-2.0
//! Client of a node's kubelet API: HTTPS with the API server's client certificate, plain answers and upgrades.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use meltemi_runtime::Tasks;
use rustls::client::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::auth::Objects;
use crate::status::Refusal;

const DEFAULT_PORT: u16 = 10250;
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// An error text longer than this is cut off.
const MAX_ERROR: usize = 16 * 1024;

/// An upgraded connection to a node.
pub(super) type NodeIo = TokioIo<Upgraded>;

/// Where a Pod is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The kubelet API.
    pub(super) address: SocketAddr,
    /// `<namespace>/<pod>`.
    pub(super) pod: String,
    node: String,
}

impl Place {
    pub(super) fn of(objects: &dyn Objects, pod: &Value) -> Result<Self, Refusal> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
        let node = text(&pod["spec"]["nodeName"]);
        if node.is_empty() {
            return Err(Refusal::bad_request(format!("pod {name} does not have a host assigned")));
        }
        let object = objects
            .get("", "nodes", "", &node)
            .ok_or_else(|| Refusal::internal(format!("node {node:?} of pod {name:?} does not exist")))?;
        let addresses = object["status"]["addresses"].as_array().into_iter().flatten();
        let ip: Option<IpAddr> = addresses
            .filter(|a| a["type"] == "InternalIP")
            .find_map(|a| a["address"].as_str().and_then(|a| a.parse().ok()));
        let ip = ip.ok_or_else(|| Refusal::internal(format!("node {node:?} has no InternalIP")))?;
        let port = object["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
        let port = port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0).unwrap_or(DEFAULT_PORT);
        Ok(Self { address: SocketAddr::new(ip, port), pod: format!("{namespace}/{name}"), node })
    }
}

/// Dials nodes.
#[derive(Clone)]
pub(super) struct Kubelet {
    tls: TlsConnector,
    tasks: Tasks,
}

impl Kubelet {
    pub(super) fn new(config: Arc<ClientConfig>, tasks: Tasks) -> Self {
        Self { tls: TlsConnector::from(config), tasks }
    }

    /// A plain answer, e.g. a log.
    pub(super) async fn get(&self, place: &Place, path: &str) -> Result<Response<Incoming>, Refusal> {
        let response = self.send(place, Method::GET, path, None).await?;
        if response.status() == StatusCode::OK { Ok(response) } else { Err(refusal(response).await) }
    }

    /// An upgraded connection.
    pub(super) async fn upgrade(&self, place: &Place, path: &str, protocol: &str) -> Result<NodeIo, Refusal> {
        let response = self.send(place, Method::POST, path, Some(protocol)).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        hyper::upgrade::on(response)
            .await
            .map(TokioIo::new)
            .map_err(|e| Refusal::internal(format!("upgrade: {e}")))
    }

    async fn send(
        &self,
        place: &Place,
        method: Method,
        path: &str,
        upgrade: Option<&str>,
    ) -> Result<Response<Incoming>, Refusal> {
        let failed = |e: &dyn std::fmt::Display| {
            Refusal::internal(format!("error dialing backend: node {} at {}: {e}", place.node, place.address))
        };
        let dial = async {
            let tcp = TcpStream::connect(place.address).await?;
            tcp.set_nodelay(true)?;
            self.tls.connect(ServerName::from(place.address.ip()), tcp).await
        };
        let stream = tokio::time::timeout(DIAL_TIMEOUT, dial)
            .await
            .map_err(|_| failed(&"timed out"))?
            .map_err(|e| failed(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
        self.tasks.spawn_job("kubelet connection", connection.with_upgrades());
        let mut request =
            Request::builder().method(method).uri(path).header(header::HOST, place.address.to_string());
        if let Some(protocol) = upgrade {
            request = request.header(header::CONNECTION, "Upgrade").header(header::UPGRADE, protocol);
        }
        let request = request.body(Body::empty()).map_err(|e| failed(&e))?;
        sender.send_request(request).await.map_err(|e| failed(&e))
    }
}

/// The node's refusal in its own words.
async fn refusal(response: Response<Incoming>) -> Refusal {
    let code = response.status().as_u16();
    let body = Limited::new(response.into_body(), MAX_ERROR).collect().await;
    let text = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).trim().to_owned()).unwrap_or_default();
    match code {
        400 => Refusal::bad_request(text),
        403 => Refusal::forbidden(text),
        404 => {
            let mut refusal = Refusal::no_such_path();
            refusal.message = text;
            refusal
        }
        _ => Refusal::internal(text),
    }
}
