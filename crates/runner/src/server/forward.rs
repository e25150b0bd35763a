// SPDX-License-Identifier: Apache-2.0
//! `portForward`: one TCP connection to a port of the Pod's loopback, over an upgraded connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use meltemi_linux::sockopt;
use tokio::net::TcpSocket;

use super::query::Query;
use super::{Body, Refusal, switching};
use crate::context::{Context, PodEntry};
use crate::vip::ADMIN_MARK;

const PROTOCOL: &str = "meltemi-raw/1";
const CONNECT: Duration = Duration::from_secs(5);

pub(super) async fn open(
    ctx: &Arc<Context>,
    entry: &Arc<PodEntry>,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let response = switching(&request, PROTOCOL)?;
    let port = query.get("port").and_then(|p| p.parse::<u16>().ok()).filter(|p| *p > 0);
    let port =
        port.ok_or_else(|| Refusal::new(StatusCode::BAD_REQUEST, "port: expected a number from 1 to 65535"))?;
    let sandbox =
        entry.sandbox().ok_or_else(|| Refusal::new(StatusCode::BAD_REQUEST, "the pod is not running"))?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let on_node = entry.host_network();
    let connect = async {
        let socket = tokio::task::spawn_blocking(move || sandbox.netns().tcp_socket(address)).await??;
        if on_node {
            sockopt::set_mark(&socket, ADMIN_MARK)?;
        }
        TcpSocket::from_std_stream(socket).connect(address).await
    };
    let refused = |e: io::Error| {
        let message = format!("failed to connect to localhost:{port} inside the pod {}: {e}", entry.name);
        Refusal::new(StatusCode::BAD_GATEWAY, &message)
    };
    let timeout = |_| io::Error::from(io::ErrorKind::TimedOut);
    let connected = tokio::time::timeout(CONNECT, connect).await.map_err(timeout).and_then(|r| r);
    let mut stream = connected.map_err(refused)?;
    let _ = stream.set_nodelay(true);
    ctx.job("port-forward", async move {
        let upgraded = hyper::upgrade::on(request).await.map_err(io::Error::other)?;
        tokio::io::copy_bidirectional(&mut TokioIo::new(upgraded), &mut stream).await.map(drop)
    });
    Ok(response)
}
