// SPDX-License-Identifier: Apache-2.0
//! A DNS server over a [`Names`] trait: UDP and TCP, on sockets that the caller opens (in whatever network they are).
//!
//! It answers A, AAAA, SRV and PTR for names that are known, with an empty answer for what a name does not have; everything
//! else is forwarded. What one client may take is bounded, so that a server that several Pods share answers the others.

mod message;
pub mod server;

use std::net::IpAddr;

pub use server::{Forward, serve};

/// What a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These addresses, of either family; the name exists even when there are none.
    Addresses(Vec<IpAddr>),
    /// Where a named port is served (SRV records, RFC 2782).
    Ports(Vec<HostPort>),
    /// The name of an address (a PTR record), without its final dot.
    Name(String),
    /// No such name, and nobody else knows it.
    NotFound,
    /// Somebody else may know it.
    Forward,
}

/// A port of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The host's name, without its final dot.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The host's addresses, so that nobody has to ask for them.
    pub addresses: Vec<IpAddr>,
}

/// Knows names.
pub trait Names: Send + Sync + 'static {
    /// Looks up a name in lower case, without its final dot.
    fn lookup(&self, name: &str) -> Answer;
}
