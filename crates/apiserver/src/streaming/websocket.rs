// SPDX-License-Identifier: Apache-2.0
//! WebSocket on the client's side: handshake, and bytes tunnelled in binary messages.

use std::io;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
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

/// Spoken when a client names no protocol, as in Kubernetes.
pub(super) const DEFAULT: &str = "channel.k8s.io";

/// How a channel's number and payload are written in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// A byte, then the payload.
    Binary,
    /// A digit, then the payload in base64; for clients that only have text.
    Base64,
}

impl Framing {
    /// The framing of a protocol.
    pub(super) fn of(protocol: &str) -> Self {
        if protocol.contains("base64.") { Self::Base64 } else { Self::Binary }
    }

    /// The message for a channel's payload.
    pub(super) fn encode(self, channel: u8, payload: &[u8]) -> Message {
        match self {
            Self::Binary => {
                let mut frame = BytesMut::with_capacity(payload.len() + 1);
                frame.put_u8(channel);
                frame.put_slice(payload);
                Message::Binary(frame.freeze())
            }
            Self::Base64 => Message::Text(format!("{channel}{}", STANDARD.encode(payload)).into()),
        }
    }

    /// Channel and payload of a message. `None` for messages that carry none. Clients send text in the binary framing,
    /// too: Python's does whenever it is given a `str`.
    ///
    /// # Errors
    /// The payload is not base64 where it has to be.
    pub(super) fn decode(self, message: Message) -> io::Result<Option<(u8, Bytes)>> {
        let mut bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            Message::Close(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return Ok(None),
        };
        if bytes.is_empty() {
            return Ok(None);
        }
        let payload = bytes.split_off(1);
        match self {
            Self::Binary => Ok(Some((bytes[0], payload))),
            Self::Base64 => {
                let payload = STANDARD.decode(payload).map_err(io::Error::other)?;
                Ok(Some((bytes[0].wrapping_sub(b'0'), payload.into())))
            }
        }
    }
}

/// Accepts the first of `protocols` that the client offers, or [`DEFAULT`] when it offers none: the answer, the future
/// connection, the protocol.
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
    if offered.is_empty() && protocols.contains(&DEFAULT) {
        let headers = [("upgrade", "websocket"), ("sec-websocket-accept", accept.as_str())];
        let (response, on_upgrade) = switching(request, &headers)?;
        return Ok((response, on_upgrade, DEFAULT));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_read_from_binary_and_from_text() {
        let bytes = |text: &'static [u8]| Bytes::from_static(text);
        let cases = [
            ("v5.channel.k8s.io", Message::Binary(bytes(b"\x00in")), Some((0, bytes(b"in")))),
            ("v4.channel.k8s.io", Message::Text("\u{0}in\n".into()), Some((0, bytes(b"in\n")))),
            ("channel.k8s.io", Message::Binary(bytes(b"\x04")), Some((4, bytes(b"")))),
            ("channel.k8s.io", Message::Binary(bytes(b"")), None),
            ("base64.channel.k8s.io", Message::Text("0aW4=".into()), Some((0, bytes(b"in")))),
            ("v4.base64.channel.k8s.io", Message::Text("4e30=".into()), Some((4, bytes(b"{}")))),
            ("channel.k8s.io", Message::Ping(bytes(b"x")), None),
        ];
        for (protocol, message, expected) in cases {
            let framing = Framing::of(protocol);
            assert_eq!(framing.decode(message.clone()).unwrap(), expected, "{protocol} {message:?}");
            if let Some((channel, payload)) = expected {
                let again = framing.decode(framing.encode(channel, &payload)).unwrap();
                assert_eq!(again, Some((channel, payload)), "{protocol}");
            }
        }
        assert!(Framing::Base64.decode(Message::Text("0?".into())).is_err());
    }

    #[test]
    fn a_client_that_names_no_protocol_gets_the_default() {
        let request = |protocol: Option<&str>| {
            let mut request = Request::builder()
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .header("sec-websocket-version", "13")
                .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
            if let Some(protocol) = protocol {
                request = request.header("sec-websocket-protocol", protocol);
            }
            request.body(Body::empty()).unwrap()
        };
        let (response, _, protocol) = accept(&mut request(None), &["v5.channel.k8s.io", DEFAULT]).unwrap();
        assert_eq!((response.status().as_u16(), protocol), (101, DEFAULT));
        assert!(!response.headers().contains_key("sec-websocket-protocol"), "none was offered");
        let mut v4 = request(Some("v4.channel.k8s.io, v5.channel.k8s.io"));
        assert_eq!(accept(&mut v4, &["v5.channel.k8s.io", DEFAULT]).unwrap().2, "v5.channel.k8s.io");
        assert_eq!(accept(&mut request(Some("x")), &[DEFAULT]).unwrap_err().code, 400);
        assert_eq!(accept(&mut request(None), &["SPDY/3.1+portforward.k8s.io"]).unwrap_err().code, 400);
    }
}
