// SPDX-License-Identifier: Apache-2.0
//! The server's loops.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use meltemi_runtime::Tasks;
use meltemi_runtime::places::PerSource;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::message::Question;
use crate::{Answer, Names};

/// Requests over UDP that are under way, of one source address and of all: a node's server is shared by its Pods.
const REQUESTS: (usize, usize) = (512, 4096);
/// Connections over TCP, of one source address and of all.
const CONNECTIONS: (usize, usize) = (64, 512);
/// Longest wait for an answer from upstream; and over TCP, for a client's next request and until it takes the answer.
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

/// How a request came and its answer goes.
#[derive(Clone, Copy, Debug)]
enum Transport {
    Datagram,
    Stream,
}

struct Server {
    names: Arc<dyn Names>,
    upstream: Arc<dyn Forward>,
    requests: PerSource,
    connections: PerSource,
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
    let [requests, connections] =
        [REQUESTS, CONNECTIONS].map(|(of_one, of_all)| PerSource::new(of_one, of_all));
    let server = Arc::new(Server { names, upstream, requests, connections, tasks });
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
        let Some(place) = server.requests.take(from.ip()) else { continue };
        let (request, udp, of) = (buffer[..n].to_vec(), udp.clone(), server.clone());
        server.tasks.spawn_job("dns", async move {
            let answer = of.answer(request, Transport::Datagram).await;
            drop(place);
            if let Some(answer) = answer {
                udp.send_to(&answer, from).await?;
            }
            Ok::<(), io::Error>(())
        });
    }
}

async fn streams(tcp: &TcpListener, server: &Arc<Server>) -> io::Result<()> {
    loop {
        let (stream, from) = match tcp.accept().await {
            Ok(accepted) => accepted,
            // Out of descriptors, or a client that is gone already: not the end of the server.
            Err(error) => {
                tracing::debug!(%error, "a DNS connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(place) = server.connections.take(from.ip()) else { continue };
        let of = server.clone();
        server.tasks.spawn_job("dns-tcp", async move {
            let served = of.stream(stream).await;
            drop(place);
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
            let Some(answer) = self.answer(request, Transport::Stream).await else { return Ok(()) };
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let answer = [&length.to_be_bytes()[..], &answer].concat();
            tokio::time::timeout(LIMIT, stream.write_all(&answer)).await??;
        }
    }

    async fn answer(&self, request: Vec<u8>, transport: Transport) -> Option<Vec<u8>> {
        let question = Question::read(&request)?;
        let answer = match self.names.lookup(&question.name()) {
            Answer::Addresses(all) if question.wants_addresses() => question.addresses(&all),
            Answer::Ports(all) if question.wants_ports() => question.ports(&all),
            Answer::Name(name) if question.wants_name() => question.pointer(&name),
            // The name exists; of this kind there is nothing.
            Answer::Addresses(_) | Answer::Ports(_) | Answer::Name(_) => question.code(ResponseCode::NoError),
            Answer::NotFound => question.code(ResponseCode::NXDomain),
            // Upstream has seen how much the client takes.
            Answer::Forward => {
                return match self.upstream.forward(request).await {
                    Ok(answer) => Some(answer),
                    Err(_) => question.code(ResponseCode::ServFail),
                };
            }
        }?;
        match transport {
            Transport::Datagram if answer.len() > question.datagram() => question.too_large(),
            Transport::Datagram | Transport::Stream => Some(answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use hickory_proto::op::{Message, MessageType, OpCode, Query};
    use hickory_proto::rr::{Name, RecordType};
    use meltemi_runtime::drain;
    use meltemi_runtime::tasks::Supervisor;
    use tokio::sync::Notify;

    use super::*;
    use crate::HostPort;

    struct OneName;

    impl Names for OneName {
        fn lookup(&self, name: &str) -> Answer {
            let addresses = |count| (0..count).map(|n| [10, 96, 0, n].into()).collect();
            match name {
                "web" => Answer::Addresses(vec![[10, 96, 0, 7].into()]),
                "many" => Answer::Addresses(addresses(60)),
                "_http._tcp.web" => {
                    let port = |host: &str, last: u8| HostPort {
                        host: host.to_owned(),
                        port: 8080,
                        addresses: vec![[10, 244, 1, last].into()],
                    };
                    Answer::Ports(vec![port("a.web", 1), port("b.web", 2)])
                }
                "7.0.96.10.in-addr.arpa" => Answer::Name("web".to_owned()),
                "nobody" => Answer::NotFound,
                _ => Answer::Forward,
            }
        }
    }

    /// Answers nobody until it is told to.
    #[derive(Default)]
    struct Silent {
        waiting: AtomicUsize,
        released: Notify,
    }

    impl Forward for Silent {
        fn forward(&self, _: Vec<u8>) -> Pin<Box<dyn Future<Output = io::Result<Vec<u8>>> + Send + '_>> {
            let released = self.released.notified();
            self.waiting.fetch_add(1, Ordering::SeqCst);
            Box::pin(async move {
                released.await;
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                Err(io::ErrorKind::TimedOut.into())
            })
        }
    }

    fn query(name: &str) -> Vec<u8> {
        question(name, RecordType::A, None)
    }

    fn question(name: &str, kind: RecordType, takes: Option<u16>) -> Vec<u8> {
        let mut request = Message::new(7, MessageType::Query, OpCode::Query);
        request.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        if let Some(takes) = takes {
            request.edns.get_or_insert_default().set_max_payload(takes);
        }
        request.to_vec().unwrap()
    }

    #[tokio::test]
    async fn names_have_the_records_that_are_asked_for_and_no_others() {
        let (server, ..) = start(Arc::default()).await;
        let client = client("127.0.0.1", server).await;
        for (name, kind, code, expected) in [
            ("web", RecordType::A, ResponseCode::NoError, &["10.96.0.7"][..]),
            ("web", RecordType::AAAA, ResponseCode::NoError, &[]),
            ("web", RecordType::SRV, ResponseCode::NoError, &[]),
            (
                "_http._tcp.web",
                RecordType::SRV,
                ResponseCode::NoError,
                &["0 50 8080 a.web.", "0 50 8080 b.web."],
            ),
            (
                "_HTTP._tcp.web",
                RecordType::SRV,
                ResponseCode::NoError,
                &["0 50 8080 a.web.", "0 50 8080 b.web."],
            ),
            ("_http._tcp.web", RecordType::A, ResponseCode::NoError, &[]),
            ("7.0.96.10.in-addr.arpa", RecordType::PTR, ResponseCode::NoError, &["web."]),
            ("7.0.96.10.in-addr.arpa", RecordType::TXT, ResponseCode::NoError, &[]),
            ("nobody", RecordType::SRV, ResponseCode::NXDomain, &[]),
        ] {
            client.send(&question(name, kind, None)).await.unwrap();
            let mut bytes = [0; 512];
            let n = client.recv(&mut bytes).await.unwrap();
            let answer = Message::from_vec(&bytes[..n]).unwrap();
            let records: Vec<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
            assert_eq!(
                (answer.metadata.response_code, &records[..]),
                (code, &expected.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()[..]),
                "{name} {kind}"
            );
            let beside = if kind == RecordType::SRV { expected.len() } else { 0 };
            assert_eq!(answer.additionals.len(), beside, "{name} {kind}");
        }
    }

    #[tokio::test]
    async fn what_does_not_fit_into_a_datagram_is_asked_for_again_over_tcp() {
        let (server, ..) = start(Arc::default()).await;
        let client = client("127.0.0.1", server).await;
        for (takes, fits) in [(None, false), (Some(100), false), (Some(1232), true), (Some(65_535), true)] {
            client.send(&question("many", RecordType::A, takes)).await.unwrap();
            let mut bytes = [0; 4096];
            let n = client.recv(&mut bytes).await.unwrap();
            let answer = Message::from_vec(&bytes[..n]).unwrap();
            assert_eq!(
                (answer.metadata.truncation, answer.answers.len()),
                (!fits, if fits { 60 } else { 0 }),
                "{takes:?}"
            );
            assert!(n <= usize::from(takes.unwrap_or(512).max(512)), "{n} bytes");
        }
        let mut stream = connect("127.0.0.1", server).await;
        let request = query("many");
        let length = u16::try_from(request.len()).unwrap().to_be_bytes();
        stream.write_all(&[&length[..], &request].concat()).await.unwrap();
        let mut bytes = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(Message::from_vec(&bytes).unwrap().answers.len(), 60);
    }

    async fn start(upstream: Arc<Silent>) -> (SocketAddr, drain::DrainTrigger, Supervisor) {
        let (udp, tcp) = sockets().await;
        let address = udp.local_addr().unwrap();
        let (trigger, watch) = drain::channel();
        let (tasks, supervisor) = Tasks::new("test", watch);
        let serving = serve(udp, tcp, Arc::new(OneName), upstream, tasks.clone());
        tasks.spawn_job("dns", serving);
        (address, trigger, supervisor)
    }

    /// Both on one port: one that is free for datagrams may be taken for connections.
    async fn sockets() -> (UdpSocket, TcpListener) {
        loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                return (udp, tcp);
            }
        }
    }

    async fn client(source: &str, server: SocketAddr) -> UdpSocket {
        let socket = UdpSocket::bind((source, 0)).await.unwrap();
        socket.connect(server).await.unwrap();
        socket
    }

    /// Asks for the name that is known until there is an answer: what is over a bound is dropped, and clients ask again.
    async fn is_answered(client: &UdpSocket) -> bool {
        for _ in 0..50 {
            client.send(&query("web")).await.unwrap();
            let mut answer = [0; 512];
            if tokio::time::timeout(Duration::from_millis(400), client.recv(&mut answer)).await.is_ok() {
                return true;
            }
        }
        false
    }

    #[tokio::test]
    async fn requests_of_one_client_are_bounded_and_others_are_answered() {
        let upstream = Arc::new(Silent::default());
        let (server, ..) = start(upstream.clone()).await;
        let (hostile, other) = (client("127.0.0.2", server).await, client("127.0.0.3", server).await);
        let waiting = || upstream.waiting.load(Ordering::SeqCst);
        // The kernel may drop some.
        while waiting() < REQUESTS.0 {
            hostile.send(&query("elsewhere")).await.unwrap();
            tokio::task::yield_now().await;
        }
        for _ in 0..50 {
            hostile.send(&query("elsewhere")).await.unwrap();
        }
        assert!(is_answered(&other).await, "another client");
        assert_eq!(waiting(), REQUESTS.0);
        upstream.released.notify_waiters();
        assert!(is_answered(&hostile).await, "the client itself, once it has room");
    }

    async fn is_answered_by_tcp(source: &str, server: SocketAddr) -> bool {
        let mut stream = connect(source, server).await;
        let request = query("web");
        let length = u16::try_from(request.len()).unwrap().to_be_bytes();
        let sent = stream.write_all(&[&length[..], &request].concat()).await;
        sent.is_ok() && matches!(stream.read_u16().await, Ok(1..))
    }

    async fn connect(source: &str, server: SocketAddr) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
        socket.connect(server).await.unwrap()
    }

    #[tokio::test]
    async fn connections_of_one_client_are_bounded_and_end_when_they_are_silent() {
        let (server, ..) = start(Arc::default()).await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS.0 {
            silent.push(connect("127.0.0.2", server).await);
        }
        // Accepted in order: this one is over the bound, and closed.
        assert!(!is_answered_by_tcp("127.0.0.2", server).await);
        assert!(is_answered_by_tcp("127.0.0.3", server).await, "another client");
        assert!(is_answered(&client("127.0.0.2", server).await).await, "the client itself over UDP");
        let mut ended = 0;
        for mut stream in silent {
            ended += usize::from(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
        }
        assert_eq!(ended, CONNECTIONS.0);
        assert!(is_answered_by_tcp("127.0.0.2", server).await, "the client itself, once it has room");
    }
}
