// SPDX-License-Identifier: Apache-2.0
//! Messages to model values and back. Every field is named, so that a new one breaks the build and not a policy.

mod authorization;
mod enums;
mod known;
mod l7;
mod service;
mod workload;

use std::net::IpAddr;

use meltemi_model::names::InvalidName;
use meltemi_model::{NamespacedHostname, NetworkAddress, Service, Workload};
use prost::Message;

use crate::proto::workload as proto;

pub use self::authorization::{authorization, policy, policy_scope};
pub use self::l7::{decode_l7, encode_l7};

/// A message that is refused: which field, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Invalid {
    /// The field's path in the message.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Invalid {
    /// A fault in a field.
    pub fn new(field: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self { field: field.into(), reason: reason.to_string() }
    }
}

impl From<InvalidName> for Invalid {
    fn from(error: InvalidName) -> Self {
        Self::new("name", error)
    }
}

/// `istio.workload.Address`.
#[derive(Debug, Clone, PartialEq)]
pub enum Address {
    /// A workload.
    Workload(Workload),
    /// A service.
    Service(Service),
}

impl Address {
    /// Its xDS name: the workload's uid, or `<namespace>/<hostname>`.
    pub fn name(&self) -> String {
        match self {
            Self::Workload(workload) => workload.uid.to_string(),
            Self::Service(service) => service.key.to_string(),
        }
    }

    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        let kind = match self {
            Self::Workload(workload) => proto::address::Type::Workload(workload::to_proto(workload)),
            Self::Service(service) => proto::address::Type::Service(service::to_proto(service)),
        };
        proto::Address { r#type: Some(kind) }.encode_to_vec()
    }

    /// From a message.
    ///
    /// # Errors
    /// The field that is not understood.
    pub fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        let message = proto::Address::decode(bytes).map_err(|e| Invalid::new("address", e))?;
        match message.r#type.ok_or_else(|| Invalid::new("type", "is not set"))? {
            proto::address::Type::Workload(w) => workload::from_proto(w).map(Self::Workload),
            proto::address::Type::Service(s) => service::from_proto(s).map(Self::Service),
        }
    }
}

fn ip(field: &str, bytes: &[u8]) -> Result<IpAddr, Invalid> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes)
        .map(IpAddr::from)
        .map_err(|_| Invalid::new(field, format!("an address has 4 or 16 bytes, not {}", bytes.len())))
}

fn ip_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn port(field: &str, value: u32) -> Result<u16, Invalid> {
    u16::try_from(value).map_err(|_| Invalid::new(field, format!("{value} is not a port")))
}

fn network_address(field: &str, message: &proto::NetworkAddress) -> Result<NetworkAddress, Invalid> {
    Ok(NetworkAddress::new(message.network.as_str(), ip(field, &message.address)?))
}

fn hostname(message: &proto::NamespacedHostname) -> NamespacedHostname {
    NamespacedHostname::new(message.namespace.as_str(), message.hostname.as_str())
}
