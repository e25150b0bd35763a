// SPDX-License-Identifier: Apache-2.0
//! The server's loops.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use meltemi_runtime::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::message::Question;
use crate::{Answer, Names};

/// Requests under way.
const UNDER_WAY: usize = 512;
/// Longest wait for an answer from upstream, and for a client's next request over TCP.
const LIMIT: Duration = Duration::from_secs(5);
/// Pause after something could not be accepted.
const PAUSE: Duration = Duration::from_millis(10);
/// Largest datagram.
const DATAGRAM: usize = 4096;

/// Asks somebody else: the request as bytes, the answer as bytes.
pub trait Forward: Send + Sync + 'static {
    /// Sends the request on.
    fn forward(&self, request: Vec<u8>) -> Pin<Box<dyn Future<Output = io::Result<Vec<u8>>> + Send + '_>>;
}

/// Asks a server over a socket that `open` makes for each request.
pub struct UdpForward<F>(pub F);

impl<F> std::fmt::Debug for UdpForward<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UdpForward")
    }
}

impl<F> Forward for UdpForward<F>
where
    F: Fn() -> io::Result<std::net::UdpSocket> + Send + Sync + 'static,
{
    fn forward(&self, request: Vec<u8>) -> Pin<Box<dyn Future<Output = io::Result<Vec<u8>>> + Send + '_>> {
        Box::pin(async move {
            // Connected by the caller: an answer from anybody else does not arrive.
            let socket = UdpSocket::from_std((self.0)()?)?;
            socket.send(&request).await?;
            let mut answer = vec![0; DATAGRAM];
            let n = tokio::time::timeout(LIMIT, socket.recv(&mut answer)).await??;
            answer.truncate(n);
            Ok(answer)
        })
    }
}

/// Nobody else is asked.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl Forward for Nobody {
    fn forward(&self, _: Vec<u8>) -> Pin<Box<dyn Future<Output = io::Result<Vec<u8>>> + Send + '_>> {
        Box::pin(async { Err(io::ErrorKind::HostUnreachable.into()) })
    }
}

struct Server {
    names: Arc<dyn Names>,
    upstream: Arc<dyn Forward>,
    slots: Arc<Semaphore>,
    tasks: Tasks,
}

/// Serves names on a UDP socket and a TCP listener until the caller drops it. What cannot be read or accepted ends nothing.
///
/// # Errors
/// A socket failed.
pub async fn serve(
    udp: UdpSocket,
    tcp: TcpListener,
    names: Arc<dyn Names>,
    upstream: Arc<dyn Forward>,
    tasks: Tasks,
) -> io::Result<()> {
    let server = Arc::new(Server { names, upstream, slots: Arc::new(Semaphore::new(UNDER_WAY)), tasks });
    let udp = Arc::new(udp);
    tokio::select! {
        ended = datagrams(&udp, &server) => ended,
        ended = streams(&tcp, &server) => ended,
    }
}

async fn datagrams(udp: &Arc<UdpSocket>, server: &Arc<Server>) -> io::Result<()> {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let (n, from) = match udp.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An earlier answer could not be delivered, or there is no memory for this request: clients ask again.
            Err(error) => {
                tracing::debug!(%error, "a DNS request could not be read");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Over the bound a request is dropped; clients ask again.
        let Ok(slot) = server.slots.clone().try_acquire_owned() else { continue };
        let (request, udp, of) = (buffer[..n].to_vec(), udp.clone(), server.clone());
        server.tasks.spawn_job("dns", async move {
            let answer = of.answer(request).await;
            drop(slot);
            if let Some(answer) = answer {
                udp.send_to(&answer, from).await?;
            }
            Ok::<(), io::Error>(())
        });
    }
}

async fn streams(tcp: &TcpListener, server: &Arc<Server>) -> io::Result<()> {
    loop {
        let (stream, _) = match tcp.accept().await {
            Ok(accepted) => accepted,
            // Out of descriptors, or a client that is gone already: not the end of the server.
            Err(error) => {
                tracing::debug!(%error, "a DNS connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = server.slots.clone().try_acquire_owned() else { continue };
        let of = server.clone();
        server.tasks.spawn_job("dns-tcp", async move {
            let served = of.stream(stream).await;
            drop(slot);
            served
        });
    }
}

impl Server {
    async fn stream(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let length = match tokio::time::timeout(LIMIT, stream.read_u16()).await {
                Ok(Ok(length)) => usize::from(length),
                Ok(Err(_)) | Err(_) => return Ok(()),
            };
            let mut request = vec![0; length];
            tokio::time::timeout(LIMIT, stream.read_exact(&mut request)).await??;
            let Some(answer) = self.answer(request).await else { return Ok(()) };
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await?;
        }
    }

    async fn answer(&self, request: Vec<u8>) -> Option<Vec<u8>> {
        let question = Question::read(&request)?;
        match self.names.lookup(&question.name()) {
            Answer::Addresses(all) if question.wants_addresses() => question.addresses(&all),
            // The name exists; of this kind there is nothing.
            Answer::Addresses(_) => question.code(ResponseCode::NoError),
            Answer::NotFound => question.code(ResponseCode::NXDomain),
            Answer::Forward => match self.upstream.forward(request).await {
                Ok(answer) => Some(answer),
                Err(_) => question.code(ResponseCode::ServFail),
            },
        }
    }
}
