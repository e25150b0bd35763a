// SPDX-License-Identifier: Apache-2.0
//! Bytes between a tunnel's stream and a TCP connection, both ways, with half-close and reset passed on.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Poll, ready};

use bytes::{BufMut as _, Bytes, BytesMut};
use meltemi_policy::Permit;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio_util::io::poll_read_buf;

use crate::framing::stream::Stream;
use crate::framing::{Broken, Reason};

/// Largest read from an application: nothing is held while it is idle.
const READ: usize = 64 * 1024;
/// What is read and not longer than this is copied: otherwise it would keep a buffer of [`READ`] for itself.
const SMALL: usize = 8 * 1024;

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

/// Copies between a client of this proxy and the tunnel to its destination, whose proxy decides, until both sides have closed
/// or one fails; then the other side is reset. Inbound connections have a permit: see [`crate::Delivered`].
pub fn splice_outbound(stream: Stream, tcp: TcpStream) -> impl Future<Output = Copied> {
    splice(stream, tcp, None)
}

/// As [`splice_outbound`], to a destination outside of the mesh; `to_tunnel` counts what `client` sent.
pub fn relay_outbound(client: TcpStream, server: TcpStream) -> impl Future<Output = Copied> {
    relay(client, server, None)
}

/// Copies until both sides have closed, one fails, or the permit is taken back; then the other side is reset.
pub(crate) async fn splice(stream: Stream, mut tcp: TcpStream, permit: Option<Permit>) -> Copied {
    let mut copied = Copied::default();
    let (mut up, mut down) = (0, 0);
    let outcome = {
        let (read, write) = tcp.split();
        let upward = to_tunnel(read, &stream, &mut up);
        let downward = from_tunnel(&stream, write, &mut down);
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
        stream.reset(Reason::CANCEL);
        reset(&tcp);
        copied.error = Some(error);
    }
    copied
}

/// Copies between two TCP connections in the same manner; `to_tunnel` counts what `client` sent.
pub(crate) async fn relay(mut client: TcpStream, mut server: TcpStream, permit: Option<Permit>) -> Copied {
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
async fn pipe(mut read: ReadHalf<'_>, mut write: WriteHalf<'_>, count: &mut u64) -> io::Result<()> {
    loop {
        let data = next(&mut read, READ).await?;
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

/// What can be read next, at most `limit` and [`READ`]; empty at the end.
async fn next(read: &mut ReadHalf<'_>, limit: usize) -> io::Result<Bytes> {
    // By `poll_read`: it knows after a short read that there is no more, `try_read` would ask the kernel.
    std::future::poll_fn(|cx| {
        BUFFER.with_borrow_mut(|buffer| {
            buffer.reserve(READ);
            let mut part = (&mut *buffer).limit(limit.min(READ));
            let n = ready!(poll_read_buf(Pin::new(&mut *read), cx, &mut part))?;
            if n > SMALL {
                return Poll::Ready(Ok(buffer.split().freeze()));
            }
            let data = Bytes::copy_from_slice(buffer);
            buffer.clear();
            Poll::Ready(Ok(data))
        })
    })
    .await
}

/// The peer sees a reset, not an end: what was cut off must not look complete.
pub fn reset(tcp: &TcpStream) {
    let _ = tcp.set_zero_linger();
}

async fn to_tunnel(mut read: ReadHalf<'_>, stream: &Stream, count: &mut u64) -> io::Result<()> {
    loop {
        // Nothing is read before it can go on: what waits, waits in the kernel.
        let capacity = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await?;
        let mut data = next(&mut read, capacity).await?;
        if data.is_empty() {
            // The peer may have reset its side already; ignore that here, `from_tunnel` reports how the stream ended.
            stream.end();
            return Ok(());
        }
        *count += data.len() as u64;
        std::future::poll_fn(|cx| stream.poll_send(cx, &mut data)).await?;
    }
}

async fn from_tunnel(stream: &Stream, mut write: WriteHalf<'_>, count: &mut u64) -> io::Result<()> {
    while let Some(data) = stream.data().await {
        let data = match data {
            Ok(data) => data,
            // The peer has ended, and reads no further.
            Err(Broken::Reset(Reason::NO_ERROR)) => break,
            Err(broken) => return Err(broken.into()),
        };
        write.write_all(&data).await?;
        *count += data.len() as u64;
        stream.release(data.len());
    }
    write.shutdown().await
}
