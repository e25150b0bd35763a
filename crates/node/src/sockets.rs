// SPDX-License-Identifier: Apache-2.0
//! Sockets inside a Pod's network namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use meltemi_capture::PROXY_MARK;
use meltemi_linux::netns::NetNs;
use meltemi_linux::sockopt::{self, Keepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// How long a destination may take to accept.
pub(crate) const CONNECT: Duration = Duration::from_secs(10);
const KEEPALIVE: Keepalive =
    Keepalive { idle: Duration::from_secs(180), interval: Duration::from_secs(180), retries: 9 };

/// Listeners on a port for every address: IPv4, and IPv6 where the Pod has it.
pub(crate) fn listen(netns: &NetNs, port: u16) -> io::Result<Vec<TcpListener>> {
    let mut listeners = vec![listen_on(netns, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))?];
    if let Ok(listener) = listen_on(netns, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)) {
        listeners.push(listener);
    }
    Ok(listeners)
}

/// A listener on one address.
pub(crate) fn listen_on(netns: &NetNs, address: SocketAddr) -> io::Result<TcpListener> {
    let listener = netns.listen_tcp(address, |socket| {
        // One listener for each core, and the next process beside this one.
        sockopt::set_reuseport(socket)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        Ok(())
    })?;
    TcpListener::from_std(listener)
}

/// Connects from inside the namespace, past its capture rules; under a foreign address if `from` says so.
pub(crate) async fn connect(netns: &NetNs, to: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = netns.tcp_socket_here(to)?;
    sockopt::set_mark(&socket, PROXY_MARK)?;
    if let Some(from) = from {
        sockopt::set_transparent(&socket, from.is_ipv6())?;
        socket2::SockRef::from(&socket).bind(&SocketAddr::new(from, 0).into())?;
    }
    let stream = TcpSocket::from_std_stream(socket).connect(to).await?;
    prepare(&stream)?;
    Ok(stream)
}

/// Options of every connection.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_keepalive(stream, KEEPALIVE)
}
