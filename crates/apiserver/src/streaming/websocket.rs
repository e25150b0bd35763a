// SPDX-License-Identifier: Apache-2.0
//! WebSocket on the client's side: handshake, and bytes tunnelled in binary messages.

use std::io;

use axum::body::Body;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::{Request, Response};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use super::{listed, switching};
use crate::status::Refusal;

/// A client's WebSocket.
pub(super) type ClientSocket = WebSocketStream<TokioIo<Upgraded>>;

const MAX_MESSAGE: usize = 1 << 20;
const TUNNEL_BUFFER: usize = 64 * 1024;

/// Accepts the first of `protocols` that the client offers: the answer, the future connection, the protocol.
pub(super) fn accept(
    request: &mut Request<Body>,
    protocols: &[&'static str],
) -> Result<(Response<Body>, OnUpgrade, &'static str), Refusal> {
    let headers = request.headers();
    if headers.get("sec-websocket-version").is_none_or(|v| v != "13") {
        return Err(Refusal::bad_request("websocket: only version 13 is supported"));
    }
    let key = headers
        .get("sec-websocket-key")
        .ok_or_else(|| Refusal::bad_request("websocket: Sec-WebSocket-Key is missing"))?;
    let accept = derive_accept_key(key.as_bytes());
    let offered = listed(headers, "sec-websocket-protocol");
    let Some(protocol) = protocols.iter().copied().find(|p| offered.contains(p)) else {
        return Err(Refusal::bad_request(format!(
            "websocket: none of the protocols {offered:?} is supported here, only {protocols:?}"
        )));
    };
    let headers = [
        ("upgrade", "websocket"),
        ("sec-websocket-accept", accept.as_str()),
        ("sec-websocket-protocol", protocol),
    ];
    let (response, on_upgrade) = switching(request, &headers)?;
    Ok((response, on_upgrade, protocol))
}

/// The WebSocket on an upgraded connection.
pub(super) async fn open(on_upgrade: OnUpgrade) -> io::Result<ClientSocket> {
    let upgraded = on_upgrade.await.map_err(io::Error::other)?;
    let config =
        WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await)
}

/// A byte stream over the socket's binary messages, and the future that moves the bytes.
pub(super) fn tunnel(socket: ClientSocket) -> (DuplexStream, impl Future<Output = io::Result<()>>) {
    let (near, far) = tokio::io::duplex(TUNNEL_BUFFER);
    let (mut sink, mut source) = socket.split();
    let (mut far_read, mut far_write) = tokio::io::split(far);
    let pump = async move {
        let up = async {
            while let Some(message) = source.next().await {
                match message.map_err(io::Error::other)? {
                    Message::Binary(bytes) => far_write.write_all(&bytes).await?,
                    Message::Close(_) => break,
                    Message::Text(_) => return Err(io::Error::other("text message in a binary tunnel")),
                    Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
                }
            }
            far_write.shutdown().await
        };
        let down = async {
            let mut buffer = vec![0; TUNNEL_BUFFER / 2];
            loop {
                let n = far_read.read(&mut buffer).await?;
                if n == 0 {
                    break;
                }
                let message = Message::Binary(Bytes::copy_from_slice(&buffer[..n]));
                sink.send(message).await.map_err(io::Error::other)?;
            }
            sink.close().await.map_err(io::Error::other)
        };
        let (up, down) = tokio::join!(up, down);
        up.and(down)
    };
    (near, pump)
}
