// SPDX-License-Identifier: Apache-2.0
//! The node proxy's ports of a Pod, kept from its application while no proxy listens on them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use meltemi_capture::{DNS_PORT, INBOUND_HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT};
use meltemi_linux::netns::NetNs;
use meltemi_linux::sockopt;

/// Bound sockets that do not listen. The proxy opens its listeners beside them (`SO_REUSEPORT`, which takes the same user); an
/// application with a user of its own gets `EADDRINUSE`. One that shares the user can bind, too, and the capture rules let
/// nothing out of its sockets.
#[derive(Debug)]
pub(crate) struct Reserved {
    _sockets: Vec<OwnedFd>,
}

/// Binds the ports in a Pod's namespace.
///
/// # Errors
/// One is taken already, by an application that ran before the Pod was enrolled.
pub(crate) fn reserve(netns: &NetNs) -> io::Result<Reserved> {
    let any = [OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT, INBOUND_HBONE_PORT];
    let any = any.map(|port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
    let addresses = any.into_iter().chain([SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PORT))]);
    let bind = |address: SocketAddr| {
        // Not SO_REUSEADDR: with it, others that have it could bind beside a socket that does not listen.
        let bound = netns.bind_tcp(address, sockopt::set_reuseport);
        bound.map_err(|error| io::Error::new(error.kind(), format!("port {}: {error}", address.port())))
    };
    Ok(Reserved { _sockets: addresses.map(bind).collect::<io::Result<_>>()? })
}
