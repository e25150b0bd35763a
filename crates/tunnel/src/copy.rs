// SPDX-License-Identifier: Apache-2.0
//! Bytes between a tunnel's stream and a TCP connection, both ways, with half-close and reset passed on.

use std::cell::RefCell;
use std::io;

use bytes::{Bytes, BytesMut};
use h2::{Reason, SendStream};
use meltemi_policy::Permit;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::inbox::Inbox;

/// Largest read from an application: nothing is held while it is idle.
const READ: usize = 64 * 1024;

/// One stream of a tunnel.
#[derive(Debug)]
pub struct Stream {
    pub(crate) send: SendStream<Bytes>,
    pub(crate) recv: Inbox,
}

/// What went over a connection, and how it ended.
#[derive(Clone, Debug, Default)]
pub struct Copied {
    /// From the TCP side into the tunnel.
    pub to_tunnel: u64,
    /// From the tunnel to the TCP side.
    pub from_tunnel: u64,
    /// Why it ended before both sides had closed.
    pub error: Option<String>,
}

/// Copies until both sides have closed, one fails, or the permit is taken back; then the other side is reset.
pub async fn splice(mut stream: Stream, mut tcp: TcpStream, permit: Option<Permit>) -> Copied {
    let mut copied = Copied::default();
    let (mut up, mut down) = (0, 0);
    let outcome = {
        let (read, write) = tcp.split();
        let upward = to_tunnel(read, &mut stream.send, &mut up);
        let downward = from_tunnel(&stream.recv, write, &mut down);
        let both = async { tokio::try_join!(upward, downward).map(|_| ()).map_err(|e| e.to_string()) };
        match &permit {
            None => both.await,
            Some(permit) => tokio::select! {
                outcome = both => outcome,
                reason = permit.revoked() => Err(reason.to_string()),
            },
        }
    };
    copied.to_tunnel = up;
    copied.from_tunnel = down;
    if let Err(error) = outcome {
        stream.send.send_reset(Reason::CANCEL);
        reset(&tcp);
        copied.error = Some(error);
    }
    copied
}

/// Copies between two TCP connections in the same manner; `to_tunnel` counts what `client` sent.
pub async fn relay(mut client: TcpStream, mut server: TcpStream, permit: Option<Permit>) -> Copied {
    let mut copied = Copied::default();
    let outcome = {
        let (client_read, client_write) = client.split();
        let (server_read, server_write) = server.split();
        let upward = pipe(client_read, server_write, &mut copied.to_tunnel);
        let downward = pipe(server_read, client_write, &mut copied.from_tunnel);
        let both = async { tokio::try_join!(upward, downward).map(|_| ()).map_err(|e| e.to_string()) };
        match &permit {
            None => both.await,
            Some(permit) => tokio::select! {
                outcome = both => outcome,
                reason = permit.revoked() => Err(reason.to_string()),
            },
        }
    };
    if let Err(error) = outcome {
        reset(&client);
        reset(&server);
        copied.error = Some(error);
    }
    copied
}

/// Everything that can be read goes through one buffer of the thread: a connection that is idle holds none.
async fn pipe(read: ReadHalf<'_>, mut write: WriteHalf<'_>, count: &mut u64) -> io::Result<()> {
    loop {
        let data = next(&read).await?;
        if data.is_empty() {
            return write.shutdown().await;
        }
        *count += data.len() as u64;
        write.write_all(&data).await?;
    }
}

thread_local! {
    static BUFFER: RefCell<BytesMut> = RefCell::default();
}

/// What can be read next, at most [`READ`]; empty at the end.
async fn next(read: &ReadHalf<'_>) -> io::Result<Bytes> {
    loop {
        read.readable().await?;
        let got = BUFFER.with_borrow_mut(|buffer| {
            buffer.reserve(READ);
            read.try_read_buf(buffer).map(|_| buffer.split().freeze())
        });
        match got {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

/// The peer sees a reset, not an end: what was cut off must not look complete.
pub fn reset(tcp: &TcpStream) {
    let _ = tcp.set_zero_linger();
}

async fn to_tunnel(read: ReadHalf<'_>, send: &mut SendStream<Bytes>, count: &mut u64) -> io::Result<()> {
    loop {
        let mut data = next(&read).await?;
        if data.is_empty() {
            // A peer that has ended already and reads no further is told in vain; how it ended the other way says.
            let _ = send.send_data(Bytes::new(), true);
            return Ok(());
        }
        *count += data.len() as u64;
        while !data.is_empty() {
            send.reserve_capacity(data.len());
            let granted = std::future::poll_fn(|cx| send.poll_capacity(cx)).await;
            let granted = match granted {
                Some(Ok(n)) => n,
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => return Err(io::ErrorKind::ConnectionReset.into()),
            };
            let part = data.split_to(granted.min(data.len()));
            send.send_data(part, false).map_err(io::Error::other)?;
        }
    }
}

async fn from_tunnel(recv: &Inbox, mut write: WriteHalf<'_>, count: &mut u64) -> io::Result<()> {
    while let Some(data) = recv.data().await {
        let data = match data {
            Ok(data) => data,
            // The peer has ended, and reads no further.
            Err(error) if error.reason() == Some(Reason::NO_ERROR) => break,
            Err(error) => return Err(io::Error::other(error)),
        };
        write.write_all(&data).await?;
        *count += data.len() as u64;
        recv.release(data.len()).map_err(io::Error::other)?;
    }
    write.shutdown().await
}
