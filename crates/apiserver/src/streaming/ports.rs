// SPDX-License-Identifier: Apache-2.0
//! `pods/portforward` as client libraries speak it: one WebSocket, two channels a port (data, error), named in the query.

use std::io;

use futures::stream::SplitSink;
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, WriteHalf};
use tokio_tungstenite::tungstenite::Message;

use super::kubelet::{Kubelet, NodeIo, Place};
use super::websocket::{self, ClientSocket, Framing};

/// Protocols under which it is asked for, the best first.
pub(super) const PROTOCOLS: [&str; 5] = [
    "v4.channel.k8s.io",
    "v5.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    websocket::DEFAULT,
    "base64.channel.k8s.io",
];
/// Protocol of a forwarded port's bytes between here and the node.
pub(super) const INNER: &str = "meltemi-raw/1";
const READ: usize = 16 * 1024;

fn channel(index: usize, error: bool) -> u8 {
    u8::try_from(index * 2).unwrap_or(u8::MAX - 1) + u8::from(error)
}

/// Serves the ports until the client closes.
pub(super) async fn serve(
    socket: ClientSocket,
    framing: Framing,
    kubelet: Kubelet,
    place: Place,
    ports: Vec<u16>,
) -> io::Result<()> {
    let (mut sink, mut source) = socket.split();
    let (to_client, mut outgoing) = tokio::sync::mpsc::channel::<Message>(16);
    let mut writers: Vec<Option<WriteHalf<NodeIo>>> = Vec::new();
    let mut readers = futures::stream::FuturesUnordered::new();
    for (index, port) in ports.iter().enumerate() {
        // Both channels begin with the port, little-endian.
        for error in [false, true] {
            send(&mut sink, framing.encode(channel(index, error), &port.to_le_bytes())).await?;
        }
        let path = format!("/portForward/{}?port={port}", place.pod);
        match kubelet.upgrade(&place, &path, INNER).await {
            Ok(node) => {
                let (mut read, write) = tokio::io::split(node);
                writers.push(Some(write));
                let to_client = to_client.clone();
                readers.push(async move {
                    let mut buffer = vec![0; READ];
                    while let Ok(n @ 1..) = read.read(&mut buffer).await {
                        if to_client.send(framing.encode(channel(index, false), &buffer[..n])).await.is_err()
                        {
                            return;
                        }
                    }
                });
            }
            Err(refusal) => {
                writers.push(None);
                send(&mut sink, framing.encode(channel(index, true), refusal.message.as_bytes())).await?;
            }
        }
    }
    drop(to_client);
    loop {
        tokio::select! {
            Some(()) = readers.next() => {}
            message = outgoing.recv() => match message {
                Some(message) => send(&mut sink, message).await?,
                // Every node's end has closed, and all it said is on its way.
                None => return sink.close().await.map_err(io::Error::other),
            },
            message = source.next() => match message {
                None | Some(Ok(Message::Close(_))) => return Ok(()),
                Some(Ok(message)) => {
                    if let Some((number, payload)) = framing.decode(message)? {
                        deliver(&mut writers, number, &payload).await;
                    }
                }
                Some(Err(error)) => return Err(io::Error::other(error)),
            },
        }
    }
}

/// Writes to a port's node. Only data channels, the even ones, carry bytes; one whose connection has broken takes no
/// more, while the other ports go on.
async fn deliver(writers: &mut [Option<WriteHalf<NodeIo>>], number: u8, payload: &[u8]) {
    let Some(slot) = writers.get_mut(usize::from(number / 2)).filter(|_| number.is_multiple_of(2)) else {
        return;
    };
    if let Some(writer) = slot
        && let Err(error) = writer.write_all(payload).await
    {
        tracing::debug!(%error, "forwarded connection broke");
        *slot = None;
    }
}

async fn send(sink: &mut SplitSink<ClientSocket, Message>, message: Message) -> io::Result<()> {
    sink.send(message).await.map_err(io::Error::other)
}
