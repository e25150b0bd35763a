// SPDX-License-Identifier: Apache-2.0
//! Socket options of transparent proxies: marks, foreign addresses, original destinations, resets.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsFd;
use std::time::Duration;

use crate::sys::{getsockopt, setsockopt};

const IP6T_SO_ORIGINAL_DST: i32 = 80;

/// The packet mark of everything this socket sends (`SO_MARK`); needs `CAP_NET_ADMIN` over the socket's namespace.
///
/// # Errors
/// The kernel refuses, usually for want of the capability.
pub fn set_mark(socket: &impl AsFd, mark: u32) -> io::Result<()> {
    setsockopt(socket.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, mark)
}

/// Reads `SO_MARK`.
///
/// # Errors
/// Not a socket.
pub fn mark(socket: &impl AsFd) -> io::Result<u32> {
    // SAFETY: SO_MARK is a u32.
    unsafe { getsockopt(socket.as_fd(), libc::SOL_SOCKET, libc::SO_MARK) }
}

/// Lets the socket bind to, and accept for, addresses that are not the host's (`IP_TRANSPARENT`).
///
/// # Errors
/// The kernel refuses, usually for want of `CAP_NET_ADMIN`.
pub fn set_transparent(socket: &impl AsFd, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        setsockopt(socket.as_fd(), libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1i32)
    } else {
        setsockopt(socket.as_fd(), libc::SOL_IP, libc::IP_TRANSPARENT, 1i32)
    }
}

/// Lets the socket bind to an address that does not exist yet (`IP_FREEBIND`).
///
/// # Errors
/// Not an IP socket.
pub fn set_freebind(socket: &impl AsFd, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        setsockopt(socket.as_fd(), libc::SOL_IPV6, libc::IPV6_FREEBIND, 1i32)
    } else {
        setsockopt(socket.as_fd(), libc::SOL_IP, libc::IP_FREEBIND, 1i32)
    }
}

/// Lets the socket bind to an address alone (`IP_BIND_ADDRESS_NO_PORT`): the port is chosen when it connects, and must
/// differ only from those of connections with the same two addresses and the same destination port. A port that is chosen
/// by `bind` is taken from all destinations, and among many connections the kernel searches long for a free one.
///
/// # Errors
/// Not an IP socket.
pub fn set_bind_address_no_port(socket: &impl AsFd) -> io::Result<()> {
    // The option of IPv4's level is that of IPv6 sockets too.
    setsockopt(socket.as_fd(), libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1i32)
}

/// `SO_REUSEPORT`: several listeners share one port (one per core, or an old and a new process).
///
/// # Errors
/// Not a socket.
pub fn set_reuseport(socket: &impl AsFd) -> io::Result<()> {
    setsockopt(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1i32)
}

/// `TCP_NODELAY`.
///
/// # Errors
/// Not a TCP socket.
pub fn set_nodelay(socket: &impl AsFd) -> io::Result<()> {
    setsockopt(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1i32)
}

/// Makes the next close of this socket a reset (`SO_LINGER` of zero): the peer sees ECONNRESET, not an end.
///
/// # Errors
/// Not a socket.
pub fn reset_on_close(socket: &impl AsFd) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(socket.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, linger)
}

/// TCP keepalive with its three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Idle time before the first probe.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Unanswered probes after which the connection is dead.
    pub retries: u32,
}

/// Switches TCP keepalive on.
///
/// # Errors
/// Not a TCP socket, or a number out of the kernel's range.
pub fn set_keepalive(socket: &impl AsFd, keepalive: Keepalive) -> io::Result<()> {
    let fd = socket.as_fd();
    let seconds = |d: Duration| i32::try_from(d.as_secs().max(1)).unwrap_or(i32::MAX);
    setsockopt(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1i32)?;
    setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, seconds(keepalive.idle))?;
    setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, seconds(keepalive.interval))?;
    setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, i32::try_from(keepalive.retries).unwrap_or(i32::MAX))
}

/// Where a redirected connection was going before the redirect (`SO_ORIGINAL_DST`), IPv4 or IPv6.
///
/// A connection that was not redirected gives its own local address, as the kernel does.
///
/// # Errors
/// The kernel has no record of the connection.
pub fn original_dst(socket: &impl AsFd) -> io::Result<SocketAddr> {
    // SAFETY: the option's layout is sockaddr_in, of which every bit pattern is valid.
    let v4: io::Result<libc::sockaddr_in> =
        unsafe { getsockopt(socket.as_fd(), libc::SOL_IP, libc::SO_ORIGINAL_DST) };
    let v4_error = match v4 {
        Ok(a) if i32::from(a.sin_family) == libc::AF_INET => {
            let ip = Ipv4Addr::from(u32::from_be(a.sin_addr.s_addr));
            return Ok(SocketAddrV4::new(ip, u16::from_be(a.sin_port)).into());
        }
        Ok(_) => io::Error::from_raw_os_error(libc::ENOENT),
        Err(e) => e,
    };
    // SAFETY: the option's layout is sockaddr_in6, of which every bit pattern is valid.
    let v6: io::Result<libc::sockaddr_in6> =
        unsafe { getsockopt(socket.as_fd(), libc::SOL_IPV6, IP6T_SO_ORIGINAL_DST) };
    match v6 {
        Ok(a) if i32::from(a.sin6_family) == libc::AF_INET6 => {
            let ip = Ipv6Addr::from(a.sin6_addr.s6_addr);
            Ok(SocketAddrV6::new(ip, u16::from_be(a.sin6_port), 0, a.sin6_scope_id).into())
        }
        _ => Err(v4_error),
    }
}

/// Who is at the other end of a unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process id, in the caller's PID namespace (0 when it is outside of it).
    pub pid: i32,
    /// User id, in the caller's user namespace.
    pub uid: u32,
    /// Group id, in the caller's user namespace.
    pub gid: u32,
}

/// `SO_PEERCRED` of a connected unix socket.
///
/// # Errors
/// Not a connected unix socket.
pub fn peer_credentials(socket: &impl AsFd) -> io::Result<PeerCredentials> {
    // SAFETY: SO_PEERCRED is a ucred: three plain integers.
    let cred: libc::ucred = unsafe { getsockopt(socket.as_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED)? };
    Ok(PeerCredentials { pid: cred.pid, uid: cred.uid, gid: cred.gid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_reset_is_seen_as_a_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        reset_on_close(&server).unwrap();
        drop(server);
        let error = client.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn the_peer_of_a_socket_pair_is_this_process() {
        let (a, _b) = UnixStream::pair().unwrap();
        let cred = peer_credentials(&a).unwrap();
        assert_eq!(cred.pid, i32::try_from(std::process::id()).unwrap());
    }

    /// `IP_LOCAL_PORT_RANGE`: the ports that the kernel may choose for this socket.
    const LOCAL_PORT_RANGE: i32 = 51;

    /// Connects to servers from the two ports that begin with `first`, until it fails; how often it did not.
    fn count_connections(servers: &[TcpListener], first: u32) -> io::Result<usize> {
        let mut open = Vec::new();
        for server in servers.iter().cycle() {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            setsockopt(socket.as_fd(), libc::SOL_IP, LOCAL_PORT_RANGE, ((first + 1) << 16) | first)?;
            set_bind_address_no_port(&socket)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 9, 8, 7), 0)).into())?;
            match socket.connect(&server.local_addr()?.into()) {
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => break,
                other => open.push(other.map(|()| socket)?),
            }
        }
        Ok(open.len())
    }

    /// With two ports to choose from, one address reaches two servers by four connections: each port serves both.
    #[test]
    fn a_port_is_taken_from_one_destination_only() {
        let servers = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        // Somebody else on this machine may listen on one of two ports.
        let counts: Result<Vec<usize>, _> =
            (40_000..40_020).step_by(2).map(|first| count_connections(&servers, first)).collect();
        match counts {
            // Linux below 6.3 cannot show it on so few connections.
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {}
            counts => assert_eq!(counts.unwrap().into_iter().max(), Some(4)),
        }
    }
}
