// SPDX-License-Identifier: Apache-2.0
//! `pods/exec` and `pods/attach`: channels of a WebSocket or streams of SPDY, to and from the node's frames.

use std::io;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream::SplitSink;
use futures::{SinkExt as _, StreamExt as _};
use http::{Request, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncWrite, ReadHalf};
use tokio::sync::Mutex;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};

use super::channels::{self, CLOSE, ERROR, RESIZE, STDERR, STDIN, STDOUT};
use super::kubelet::{NodeIo, Place};
use super::spdy::{self, Session, Stream};
use super::websocket::{self, ClientSocket, Framing};
use super::{Query, Streaming, Upgrade, container, encoded, listed, switching, wanted_upgrade};
use crate::status::Refusal;

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
/// Protocols over a WebSocket, the best first.
const OVER_WEBSOCKET: [&str; 5] =
    [V5, V4, "v4.base64.channel.k8s.io", websocket::DEFAULT, "base64.channel.k8s.io"];
const INNER: &str = "meltemi-channels/1";
/// How long a SPDY client may take to open its streams.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to close after it has the status.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Which streams a request asks for.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    fn of(query: &Query) -> Result<Self, Refusal> {
        let tty = query.flag("tty");
        // With a terminal there is one output stream.
        let wanted = Self {
            stdin: query.flag("stdin"),
            stdout: query.flag("stdout"),
            stderr: query.flag("stderr") && !tty,
            tty,
        };
        if wanted.stdin || wanted.stdout || wanted.stderr {
            Ok(wanted)
        } else {
            Err(Refusal::bad_request("you must specify at least 1 of stdin, stdout, stderr"))
        }
    }

    fn spdy_streams(self) -> usize {
        1 + [self.stdin, self.stdout, self.stderr, self.tty].iter().filter(|w| **w).count()
    }
}

pub(super) async fn serve(
    streaming: &Streaming,
    verb: &str,
    place: &Place,
    pod: &Value,
    query: &Query,
    mut request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    let wanted = Wanted::of(query)?;
    let upgrade = wanted_upgrade(request.headers())?;
    if verb == "exec" && query.all("command").next().is_none() {
        return Err(Refusal::bad_request("you must specify at least one command"));
    }
    let container = container(pod, query, &["containers", "initContainers", "ephemeralContainers"])?;
    let Wanted { stdin, stdout, stderr, tty } = wanted;
    let mut path =
        format!("/{verb}/{}/{container}?stdin={stdin}&stdout={stdout}&stderr={stderr}&tty={tty}", place.pod);
    for command in query.all("command") {
        path.push_str(&format!("&command={}", encoded(command)));
    }
    match upgrade {
        Upgrade::WebSocket => {
            let (response, on_upgrade, protocol) = websocket::accept(&mut request, &OVER_WEBSOCKET)?;
            let node = streaming.kubelet.upgrade(place, &path, INNER).await?;
            streaming.tasks.spawn_job("exec over WebSocket", over_websocket(on_upgrade, node, protocol));
            Ok(response)
        }
        Upgrade::Spdy => {
            let offered = listed(request.headers(), spdy::PROTOCOL_HEADER);
            if !offered.contains(&V4) {
                let message =
                    format!("unable to upgrade: none of the protocols {offered:?} is supported, only {V4}");
                return Err(Refusal::forbidden(message));
            }
            let headers = [("upgrade", "SPDY/3.1"), (spdy::PROTOCOL_HEADER, V4)];
            let (response, on_upgrade) = switching(&mut request, &headers)?;
            let node = streaming.kubelet.upgrade(place, &path, INNER).await?;
            streaming.tasks.spawn_job("exec over SPDY", over_spdy(on_upgrade, node, wanted));
            Ok(response)
        }
    }
}

// === WebSocket ===

async fn over_websocket(on_upgrade: OnUpgrade, node: NodeIo, protocol: &str) -> io::Result<()> {
    let framing = Framing::of(protocol);
    // Before version 4 the error channel carries the text of a failure, not a status.
    let tells_status = protocol.starts_with("v4.") || protocol.starts_with("v5.");
    let (mut sink, mut source) = websocket::open(on_upgrade).await?.split();
    let (mut node_read, mut node_write) = tokio::io::split(node);
    let up = async {
        while let Some(message) = source.next().await {
            let message = message.map_err(io::Error::other)?;
            if message.is_close() {
                break;
            }
            match framing.decode(message)? {
                Some((channel @ (STDIN | RESIZE | CLOSE), payload)) if !payload.is_empty() => {
                    channels::write(&mut node_write, channel, &payload).await?;
                }
                _ => {}
            }
        }
        Ok::<_, io::Error>(())
    };
    // Only the node ends a command; a client that goes away takes the connection to the node with it.
    tokio::select! {
        status = to_websocket(&mut node_read, &mut sink, framing, tells_status) => status?,
        gone = up => return gone,
    }
    let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    sink.send(Message::Close(Some(close))).await.map_err(io::Error::other)?;
    let closed = async { while let Some(Ok(_)) = source.next().await {} };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
    Ok(())
}

async fn to_websocket(
    node: &mut ReadHalf<NodeIo>,
    sink: &mut SplitSink<ClientSocket, Message>,
    framing: Framing,
    tells_status: bool,
) -> io::Result<()> {
    let mut ended = false;
    while !ended {
        let (channel, payload) = next(node).await;
        ended = channel == ERROR;
        let payload = if ended && !tells_status { failure_text(&payload) } else { payload };
        if !ended || tells_status || !payload.is_empty() {
            sink.send(framing.encode(channel, &payload)).await.map_err(io::Error::other)?;
        }
    }
    Ok(())
}

/// What a status says, if it says that something failed.
fn failure_text(status: &[u8]) -> Bytes {
    let status: Value = serde_json::from_slice(status).unwrap_or_default();
    let message = status["message"].as_str().filter(|_| status["status"] != "Success");
    message.map(|text| Bytes::copy_from_slice(text.as_bytes())).unwrap_or_default()
}

/// The next frame that a client is told of; a node that goes away gives a status that says so.
async fn next(node: &mut ReadHalf<NodeIo>) -> (u8, Bytes) {
    loop {
        match channels::read(node).await {
            Ok(Some((channel @ (STDOUT | STDERR | ERROR), payload))) => return (channel, payload),
            Ok(Some(_)) => {}
            Ok(None) => return (ERROR, channels::lost_status("end of stream")),
            Err(e) => return (ERROR, channels::lost_status(&e.to_string())),
        }
    }
}

// === SPDY ===

#[derive(Default)]
struct Streams {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Streams {
    async fn collect(session: &mut Session, count: usize) -> io::Result<Self> {
        let mut streams = Self::default();
        for _ in 0..count {
            let Some(stream) = session.accept().await else {
                return Err(io::Error::other("the client closed before its streams were open"));
            };
            let slot = match stream.header("streamtype") {
                Some("error") => &mut streams.error,
                Some("stdin") => &mut streams.stdin,
                Some("stdout") => &mut streams.stdout,
                Some("stderr") => &mut streams.stderr,
                Some("resize") => &mut streams.resize,
                other => return Err(io::Error::other(format!("unknown stream type {other:?}"))),
            };
            if slot.replace(stream).is_some() {
                return Err(io::Error::other("the same stream was opened twice"));
            }
        }
        Ok(streams)
    }
}

async fn over_spdy(on_upgrade: OnUpgrade, node: NodeIo, wanted: Wanted) -> io::Result<()> {
    let io = TokioIo::new(on_upgrade.await.map_err(io::Error::other)?);
    let (mut session, driver) = spdy::session(io);
    let work = async {
        let collect = Streams::collect(&mut session, wanted.spdy_streams());
        let streams = tokio::time::timeout(STREAMS_TIMEOUT, collect).await.map_err(io::Error::other)??;
        let (mut node_read, node_write) = tokio::io::split(node);
        let node_write = Mutex::new(node_write);
        let Streams { error, mut stdin, stdout, stderr, mut resize } = streams;
        let up = async {
            let ((), ()) = tokio::try_join!(
                forward_up(stdin.as_mut(), STDIN, &node_write),
                forward_up(resize.as_mut(), RESIZE, &node_write)
            )?;
            // Stdin has ended; the command goes on.
            std::future::pending::<io::Result<()>>().await
        };
        tokio::select! {
            done = to_spdy(&mut node_read, [error, stdout, stderr]) => done?,
            failed = up => return failed,
        }
        session.close().await;
        Ok(())
    };
    tokio::pin!(driver);
    tokio::select! {
        // The client closed or broke the connection.
        ended = &mut driver => return ended,
        done = work => done?,
    }
    driver.await
}

async fn forward_up<W: AsyncWrite + Unpin>(
    stream: Option<&mut Stream>,
    channel: u8,
    node: &Mutex<W>,
) -> io::Result<()> {
    let Some(stream) = stream else { return Ok(()) };
    while let Some(bytes) = stream.read().await {
        channels::write(&mut *node.lock().await, channel, &bytes).await?;
    }
    if channel == STDIN {
        channels::write(&mut *node.lock().await, CLOSE, &[STDIN]).await?;
    }
    Ok(())
}

async fn to_spdy(
    node: &mut ReadHalf<NodeIo>,
    [error, stdout, stderr]: [Option<Stream>; 3],
) -> io::Result<()> {
    loop {
        let (channel, payload) = next(node).await;
        let stream = match channel {
            STDOUT => &stdout,
            STDERR => &stderr,
            _ => &error,
        };
        if let Some(stream) = stream {
            stream.write(payload).await?;
        }
        if channel == ERROR {
            break;
        }
    }
    for stream in [stdout, stderr, error].into_iter().flatten() {
        stream.finish().await?;
    }
    Ok(())
}
