// SPDX-License-Identifier: Apache-2.0
//! The streams of a Pod: exec, attach, port-forward and logs, between clients and the kubelet API of its node.
//!
//! Clients speak WebSocket (`v5.channel.k8s.io`, `v4.channel.k8s.io`, SPDY tunnelled for port-forward) or SPDY/3.1.
//! Nodes speak the inner protocol: `meltemi-channels/1` frames and raw bytes after an HTTP upgrade. The node is
//! dialled before the client's upgrade is accepted, so that a refusal of the node reaches the client as a Status.

mod channels;
mod exec;
mod forward;
mod kubelet;
mod logs;
mod ports;
mod spdy;
mod websocket;

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use meltemi_runtime::Tasks;
use serde_json::Value;

use self::kubelet::{Kubelet, Place};
use crate::auth::Objects;
use crate::pki::{Pki, PkiError};
use crate::status::Refusal;

/// A streaming subresource of a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodStream {
    /// `pods/exec`.
    Exec,
    /// `pods/attach`.
    Attach,
    /// `pods/portforward`.
    PortForward,
    /// `pods/log`.
    Log,
}

impl PodStream {
    /// By the subresource's name.
    pub fn of(subresource: &str) -> Option<Self> {
        match subresource {
            "exec" => Some(Self::Exec),
            "attach" => Some(Self::Attach),
            "portforward" => Some(Self::PortForward),
            "log" => Some(Self::Log),
            _ => None,
        }
    }
}

/// Serves the streaming subresources.
#[derive(Clone)]
pub struct Streaming {
    objects: Arc<dyn Objects>,
    kubelet: Kubelet,
    tasks: Tasks,
}

impl std::fmt::Debug for Streaming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streaming").finish_non_exhaustive()
    }
}

impl Streaming {
    /// Looks Pods and nodes up in `objects`, dials nodes with the kubelet client certificate; streams are jobs of
    /// `tasks`.
    ///
    /// # Errors
    /// The certificate cannot be used.
    pub fn new(objects: Arc<dyn Objects>, pki: &Pki, tasks: Tasks) -> Result<Self, PkiError> {
        Ok(Self { objects, kubelet: Kubelet::new(pki.kubelet_client_config()?, tasks.clone()), tasks })
    }

    /// Answers an authenticated and authorized request for a streaming subresource.
    ///
    /// # Errors
    /// The Pod or container does not exist, the node refuses, or the client speaks no protocol that is served.
    pub async fn serve(
        &self,
        stream: PodStream,
        namespace: &str,
        pod: &str,
        request: Request<Body>,
    ) -> Result<Response<Body>, Refusal> {
        let object =
            self.objects.get("", "pods", namespace, pod).ok_or_else(|| Refusal::not_found("pods", pod))?;
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let place = Place::of(&*self.objects, &object)?;
        match stream {
            PodStream::Log => logs::serve(self, &place, &object, &query).await,
            PodStream::Exec => exec::serve(self, "exec", &place, &object, &query, request).await,
            PodStream::Attach => exec::serve(self, "attach", &place, &object, &query, request).await,
            PodStream::PortForward => forward::serve(self, place, request),
        }
    }
}

/// The query's pairs in order.
#[derive(Debug, Default)]
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Self {
        let decode = |part: &str| {
            let part = part.replace('+', " ");
            percent_encoding::percent_decode_str(&part).decode_utf8_lossy().into_owned()
        };
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key), decode(value))
                })
                .collect(),
        )
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| matches!(v, "true" | "1"))
    }
}

/// Percent-encodes a query value.
fn encoded(value: &str) -> percent_encoding::PercentEncode<'_> {
    percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC)
}

/// The container that a request means: the one named, the annotated default, or the only one.
fn container(pod: &Value, query: &Query, of: &[&str]) -> Result<String, Refusal> {
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let names: Vec<&str> = of
        .iter()
        .flat_map(|key| pod["spec"][*key].as_array().into_iter().flatten())
        .filter_map(|container| container["name"].as_str())
        .collect();
    let default = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    let regular = pod["spec"]["containers"].as_array().map_or(0, Vec::len);
    let wanted = query.get("container").filter(|name| !name.is_empty()).or(default);
    match wanted {
        Some(name) if names.contains(&name) => Ok(name.to_owned()),
        Some(name) => Err(Refusal::bad_request(format!("container {name} is not valid for pod {pod_name}"))),
        None if regular == 1 => {
            Ok(pod["spec"]["containers"][0]["name"].as_str().unwrap_or_default().to_owned())
        }
        None => Err(Refusal::bad_request(format!(
            "a container name must be specified for pod {pod_name}, choose one of: [{}]",
            names.join(" ")
        ))),
    }
}

/// Values of a comma-separated header that may be repeated.
fn listed<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(str::trim).filter(|v| !v.is_empty()).collect()
}

/// What the client wants to upgrade to.
enum Upgrade {
    WebSocket,
    Spdy,
}

fn wanted_upgrade(headers: &HeaderMap) -> Result<Upgrade, Refusal> {
    let connection = listed(headers, "connection").iter().any(|v| v.eq_ignore_ascii_case("upgrade"));
    let upgrade = listed(headers, "upgrade");
    if connection && upgrade.iter().any(|v| v.eq_ignore_ascii_case("websocket")) {
        Ok(Upgrade::WebSocket)
    } else if connection && upgrade.iter().any(|v| v.eq_ignore_ascii_case("SPDY/3.1")) {
        Ok(Upgrade::Spdy)
    } else {
        Err(Refusal::bad_request("Upgrade request required"))
    }
}

/// The 101 to an upgrade, and the future connection.
fn switching(
    request: &mut Request<Body>,
    headers: &[(&'static str, &str)],
) -> Result<(Response<Body>, OnUpgrade), Refusal> {
    let on_upgrade = hyper::upgrade::on(request);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    for (name, value) in headers {
        let value = HeaderValue::from_str(value).map_err(|_| Refusal::bad_request("header is not text"))?;
        response.headers_mut().insert(*name, value);
    }
    Ok((response, on_upgrade))
}

#[cfg(test)]
mod tests;
