// SPDX-License-Identifier: Apache-2.0
//! The TCP sockets of a network namespace, listed and ended by netlink (`sock_diag(7)`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::netlink::{Buffer, F_ACK, F_ROOT_MATCH, Socket};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const ESTABLISHED: u32 = 1;
const LISTEN: u32 = 10;
/// `struct inet_diag_sockid`.
const ID: usize = 48;

/// An established connection, as one of its ends in this namespace sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TcpConnection {
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    family: u8,
    id: [u8; ID],
}

/// The sockets of the calling thread's namespace.
#[derive(Clone, Debug, Default)]
pub struct TcpSockets {
    /// What is listened on.
    pub listening: Vec<SocketAddr>,
    /// What is established.
    pub established: Vec<TcpConnection>,
}

/// Lists the TCP sockets of the calling thread's network namespace.
///
/// # Errors
/// The kernel's, e.g. when it was built without `INET_DIAG`.
pub fn tcp_sockets() -> io::Result<TcpSockets> {
    let socket = Socket::open(libc::NETLINK_SOCK_DIAG)?;
    let mut all = TcpSockets::default();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut buffer = Buffer::default();
        let header = request(family as u8, (1 << ESTABLISHED) | (1 << LISTEN), &[0; ID]);
        buffer.begin(SOCK_DIAG_BY_FAMILY, F_ROOT_MATCH, &header);
        buffer.end();
        for answer in socket.request(&buffer)? {
            let Some((state, found)) = read(&answer.body) else { continue };
            if u32::from(state) == LISTEN {
                all.listening.push(found.local);
            } else {
                all.established.push(found);
            }
        }
    }
    Ok(all)
}

/// Ends a connection of the calling thread's namespace: its other end is told by a reset.
///
/// # Errors
/// `NotFound` when it has ended already; the kernel's, e.g. when it was built without `INET_DIAG_DESTROY`.
pub fn destroy(connection: &TcpConnection) -> io::Result<()> {
    let socket = Socket::open(libc::NETLINK_SOCK_DIAG)?;
    let mut buffer = Buffer::default();
    buffer.begin(SOCK_DESTROY, F_ACK, &request(connection.family, u32::MAX, &connection.id));
    buffer.end();
    socket.request(&buffer).map(drop)
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut header = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
    header.extend_from_slice(&states.to_ne_bytes());
    header.extend_from_slice(id);
    header
}

/// State and ends out of `struct inet_diag_msg`.
fn read(body: &[u8]) -> Option<(u8, TcpConnection)> {
    let (family, state) = (*body.first()?, *body.get(1)?);
    let id: [u8; ID] = body.get(4..4 + ID)?.try_into().ok()?;
    let end = |port: usize, address: usize| -> Option<SocketAddr> {
        let port = u16::from_be_bytes(id.get(port..port + 2)?.try_into().ok()?);
        let bytes: [u8; 16] = id.get(address..address + 16)?.try_into().ok()?;
        let ip = if i32::from(family) == libc::AF_INET {
            IpAddr::from(Ipv4Addr::from(*bytes.first_chunk::<4>()?))
        } else {
            // An IPv6 socket that serves IPv4 shows mapped addresses.
            Ipv6Addr::from(bytes).to_canonical()
        };
        Some(SocketAddr::new(ip, port))
    };
    Some((state, TcpConnection { local: end(0, 4)?, remote: end(2, 20)?, family, id }))
}
