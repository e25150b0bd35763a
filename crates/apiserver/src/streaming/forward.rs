// SPDX-License-Identifier: Apache-2.0
//! `pods/portforward`: pairs of SPDY streams (data and error, by request id), each to one connection in the Pod.

use std::collections::HashMap;
use std::io;

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::kubelet::{Kubelet, NodeIo, Place};
use super::spdy::{self, Stream};
use super::websocket::Framing;
use super::{Streaming, Upgrade, listed, ports, switching, wanted_upgrade, websocket};
use crate::status::Refusal;

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";
/// Ports of one request over channels.
const MAX_PORTS: usize = 16;
/// Streams whose other half has not come yet.
const MAX_UNPAIRED: usize = 64;

pub(super) fn serve(
    streaming: &Streaming,
    place: Place,
    mut request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    let kubelet = streaming.kubelet.clone();
    match wanted_upgrade(request.headers())? {
        Upgrade::WebSocket => {
            let query = request.uri().query().unwrap_or_default().to_owned();
            let offered: Vec<&'static str> = std::iter::once(TUNNELLED).chain(ports::PROTOCOLS).collect();
            let (response, on_upgrade, spoken) = websocket::accept(&mut request, &offered)?;
            if spoken != TUNNELLED {
                let ports = wanted_ports(&query)?;
                streaming.tasks.spawn_job("port-forward over channels", async move {
                    let framing = Framing::of(spoken);
                    ports::serve(websocket::open(on_upgrade).await?, framing, kubelet, place, ports).await
                });
                return Ok(response);
            }
            streaming.tasks.spawn_job("port-forward over WebSocket", async move {
                let (io, pump) = websocket::tunnel(websocket::open(on_upgrade).await?);
                let (forwarded, pumped) = tokio::join!(forward(kubelet, place, io), pump);
                forwarded.and(pumped)
            });
            Ok(response)
        }
        Upgrade::Spdy => {
            let offered = listed(request.headers(), spdy::PROTOCOL_HEADER);
            if !offered.contains(&PROTOCOL) {
                let message = format!("unable to upgrade: none of {offered:?} is supported, only {PROTOCOL}");
                return Err(Refusal::forbidden(message));
            }
            let headers = [("upgrade", "SPDY/3.1"), (spdy::PROTOCOL_HEADER, PROTOCOL)];
            let (response, on_upgrade) = switching(&mut request, &headers)?;
            streaming.tasks.spawn_job("port-forward over SPDY", async move {
                let io = TokioIo::new(on_upgrade.await.map_err(io::Error::other)?);
                forward(kubelet, place, io).await
            });
            Ok(response)
        }
    }
}

/// The ports that a query names, each once or several in one parameter.
///
/// # Errors
/// 400 if there are none, or more than [`MAX_PORTS`].
fn wanted_ports(query: &str) -> Result<Vec<u16>, Refusal> {
    let values = query.split('&').filter_map(|pair| pair.strip_prefix("ports="));
    let ports = values.flat_map(|value| value.split(',').filter_map(|port| port.parse().ok()));
    // One more than allowed says enough.
    let ports: Vec<u16> = ports.take(MAX_PORTS + 1).collect();
    if ports.is_empty() {
        return Err(Refusal::bad_request("query parameter \"ports\" is required"));
    }
    if ports.len() > MAX_PORTS {
        return Err(Refusal::bad_request(format!(
            "query parameter \"ports\" names more than {MAX_PORTS} ports"
        )));
    }
    Ok(ports)
}

/// Serves the connections of one client until it closes.
async fn forward<T>(kubelet: Kubelet, place: Place, io: T) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut session, driver) = spdy::session(io);
    let mut connections = FuturesUnordered::new();
    let mut unpaired: HashMap<String, Stream> = HashMap::new();
    tokio::pin!(driver);
    loop {
        tokio::select! {
            ended = &mut driver => return ended,
            Some(()) = connections.next() => {}
            stream = session.accept() => {
                let Some(stream) = stream else { return driver.await };
                let id = stream.header("requestid").unwrap_or_default().to_owned();
                match unpaired.remove(&id) {
                    Some(other) => match pair(stream, other) {
                        Some(pair) => connections.push(connect(&kubelet, &place, pair)),
                        None => tracing::debug!(%id, "port-forward streams do not make a pair"),
                    },
                    // A stream that is dropped is reset.
                    None if unpaired.len() >= MAX_UNPAIRED => tracing::debug!("too many unpaired streams"),
                    None => drop(unpaired.insert(id, stream)),
                }
            }
        }
    }
}

struct Pair {
    port: String,
    data: Stream,
    error: Stream,
}

fn pair(a: Stream, b: Stream) -> Option<Pair> {
    let is = |stream: &Stream, kind| stream.header("streamtype") == Some(kind);
    let (data, error) = match () {
        () if is(&a, "data") && is(&b, "error") => (a, b),
        () if is(&a, "error") && is(&b, "data") => (b, a),
        () => return None,
    };
    let port = data.header("port")?.to_owned();
    (error.header("port") == Some(port.as_str())).then_some(Pair { port, data, error })
}

async fn connect(kubelet: &Kubelet, place: &Place, pair: Pair) {
    let Pair { port, data, error } = pair;
    let opened = match port.parse::<u16>() {
        Ok(port) if port != 0 => {
            let path = format!("/portForward/{}?port={port}", place.pod);
            kubelet.upgrade(place, &path, ports::INNER).await.map_err(|refusal| refusal.message)
        }
        _ => Err(format!("{port:?} is not a port")),
    };
    // The client reads the error stream to its end: nothing there means success. Some end the whole session for any
    // text, so that only a connection that never stood is one; how it ends later is its own affair, and is seen by
    // the end or the reset of the data stream.
    match opened {
        Ok(node) => {
            if let Err(ended) = copy(node, data).await {
                tracing::debug!(%port, pod = %place.pod, error = %ended, "forwarded connection broke");
            }
        }
        Err(reason) => {
            let text = format!("error forwarding port {port} to pod {}: {reason}", place.pod);
            let _ = error.write(Bytes::from(text)).await;
        }
    }
    let _ = error.finish().await;
}

/// Both directions until both have ended; each end is passed on as a half-close.
async fn copy(node: NodeIo, mut data: Stream) -> io::Result<()> {
    let (mut node_read, mut node_write) = tokio::io::split(node);
    let writer = data.writer();
    let up = async {
        while let Some(bytes) = data.read().await {
            node_write.write_all(&bytes).await?;
            node_write.flush().await?;
        }
        node_write.shutdown().await
    };
    let down = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let n = node_read.read(&mut buffer).await?;
            if n == 0 {
                return writer.finish().await;
            }
            writer.write(Bytes::copy_from_slice(&buffer[..n])).await?;
        }
    };
    // The Pod's end is what counts: a client that only half-closes still wants the answer, one whose answer has
    // ended has nothing left to send.
    tokio::pin!(up, down);
    tokio::select! {
        done = &mut down => done,
        sent = &mut up => match sent {
            Ok(()) => down.await,
            Err(e) => Err(e),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_ports_as_channels_carry_are_opened_and_no_more() {
        let query =
            |count: usize| (1..=count).map(|port| format!("ports={port}")).collect::<Vec<_>>().join("&");
        assert_eq!(wanted_ports(&query(MAX_PORTS)).unwrap().len(), MAX_PORTS);
        assert_eq!(wanted_ports(&query(MAX_PORTS + 1)).unwrap_err().code, 400);
        assert_eq!(wanted_ports("ports=80,81&ports=82").unwrap(), [80, 81, 82]);
        for query in ["", "ports=", "ports=http", "port=80"] {
            assert_eq!(wanted_ports(query).unwrap_err().code, 400, "{query}");
        }
    }
}
