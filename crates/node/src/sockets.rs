// SPDX-License-Identifier: Apache-2.0
//! Sockets inside a Pod's network namespace.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use meltemi_capture::{LISTENER_MARK, PROXY_MARK};
use meltemi_linux::netns::NetNs;
use meltemi_linux::seqpacket::MAX_FDS;
use meltemi_linux::sockopt::{self, Keepalive};
use meltemi_model::net::ports;
use socket2::{Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

/// How long a destination may take to accept.
pub(crate) const CONNECT: Duration = Duration::from_secs(10);
const KEEPALIVE: Keepalive =
    Keepalive { idle: Duration::from_secs(180), interval: Duration::from_secs(180), retries: 9 };

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Outbound,
    Plaintext,
    Hbone,
}

const KINDS: [(Kind, u16); 3] = [
    (Kind::Outbound, ports::OUTBOUND),
    (Kind::Plaintext, ports::INBOUND_PLAINTEXT),
    (Kind::Hbone, ports::HBONE),
];
/// Where captured DNS requests arrive.
const DNS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ports::DNS);

/// The sockets of a Pod that one worker serves.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) listeners: Vec<(Kind, std::net::TcpListener)>,
    pub(crate) dns: Option<Dns>,
}

/// The sockets of a Pod's DNS.
#[derive(Debug)]
pub(crate) struct Dns {
    pub(crate) udp: std::net::UdpSocket,
    pub(crate) tcp: std::net::TcpListener,
}

/// Sockets of an earlier proxy, by address and by whether they are for datagrams.
type Adopted = BTreeMap<(SocketAddr, bool), Vec<Socket>>;

/// The sockets of a Pod for each of `workers`, and copies of those that are new, for the agent to keep. A socket of an
/// earlier proxy is served as it is, with what waits in it; only what no earlier proxy has is opened.
///
/// # Errors
/// A socket cannot be opened, or an adopted one is none.
pub(crate) fn open(
    netns: &NetNs,
    workers: usize,
    adopted: Vec<OwnedFd>,
) -> io::Result<(Vec<Sockets>, Vec<OwnedFd>)> {
    let mut adopted = sort(adopted)?;
    let mut sockets: Vec<Sockets> = (0..workers).map(|_| Sockets::default()).collect();
    let mut opened = Vec::new();
    for (kind, port) in KINDS {
        for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let address = SocketAddr::new(any, port);
            let mut listeners: Vec<std::net::TcpListener> =
                adopted.remove(&(address, false)).into_iter().flatten().map(Into::into).collect();
            while listeners.len() < workers && opened.len() < MAX_FDS {
                match listen_on(netns, address) {
                    Ok(listener) => {
                        opened.push(listener.try_clone()?.into());
                        listeners.push(listener);
                    }
                    // Not every Pod has IPv6.
                    Err(_) if any.is_ipv6() => break,
                    Err(error) => return Err(error),
                }
            }
            for (index, listener) in listeners.into_iter().enumerate() {
                sockets[index % workers].listeners.push((kind, listener));
            }
        }
    }
    let udp = match adopted.remove(&(DNS, true)).and_then(|mut found| found.pop()) {
        Some(socket) => socket.into(),
        None => {
            let socket = netns.bind_udp(DNS, |socket| {
                sockopt::set_reuseport(socket)?;
                sockopt::set_mark(socket, LISTENER_MARK)
            })?;
            opened.push(socket.try_clone()?.into());
            socket
        }
    };
    let tcp = match adopted.remove(&(DNS, false)).and_then(|mut found| found.pop()) {
        Some(socket) => socket.into(),
        None => {
            let listener = listen_on(netns, DNS)?;
            opened.push(listener.try_clone()?.into());
            listener
        }
    };
    if let Some(first) = sockets.first_mut() {
        first.dns = Some(Dns { udp, tcp });
    }
    opened.truncate(MAX_FDS);
    Ok((sockets, opened))
}

fn sort(fds: Vec<OwnedFd>) -> io::Result<Adopted> {
    let mut adopted = Adopted::new();
    for fd in fds {
        let socket = Socket::from(fd);
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
        adopted.entry((address, socket.r#type()? == Type::DGRAM)).or_default().push(socket);
    }
    Ok(adopted)
}

/// A listener on one address.
fn listen_on(netns: &NetNs, address: SocketAddr) -> io::Result<std::net::TcpListener> {
    netns.listen_tcp(address, |socket| {
        // One listener for each core, and the next process beside this one.
        sockopt::set_reuseport(socket)?;
        // The capture rules let nothing out of these ports without it.
        sockopt::set_mark(socket, LISTENER_MARK)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        Ok(())
    })
}

/// Connects from inside the namespace, past its capture rules; under a foreign address if `from` says so.
pub(crate) async fn connect(netns: &NetNs, to: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = netns.tcp_socket_here(to)?;
    sockopt::set_mark(&socket, PROXY_MARK)?;
    if let Some(from) = from {
        sockopt::set_transparent(&socket, from.is_ipv6())?;
        sockopt::set_bind_address_no_port(&socket)?;
        socket2::SockRef::from(&socket).bind(&SocketAddr::new(from, 0).into())?;
    }
    let connected = TcpSocket::from_std_stream(socket).connect(to).await;
    let stream = connected.map_err(|error| name_lack_of_ports(error, from, to))?;
    prepare(&stream)?;
    Ok(stream)
}

/// The kernel says only "cannot assign requested address" when every port between two addresses is in use.
fn name_lack_of_ports(error: io::Error, from: Option<IpAddr>, to: SocketAddr) -> io::Error {
    match (error.kind(), from) {
        (io::ErrorKind::AddrNotAvailable, Some(from)) => {
            let text = format!(
                "no free port from {from} to {to}: each port of net.ipv4.ip_local_port_range has a connection, open or \
                 closed within the last minute"
            );
            io::Error::new(io::ErrorKind::AddrNotAvailable, text)
        }
        _ => error,
    }
}

/// Options of every connection.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_keepalive(stream, KEEPALIVE)
}
