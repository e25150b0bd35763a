// SPDX-License-Identifier: Apache-2.0
//! Protobuf from and to the model. What is read is checked once, here; what cannot be understood is refused by
//! name, never dropped: a policy that lost a value would be another policy.

pub mod address;
pub mod authorization;

use prost::Message;

/// Why a message is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not protobuf of this message.
    #[error("cannot be decoded: {0}")]
    Decode(String),
    /// A field or value that this version does not know.
    #[error("has a field that is not known")]
    UnknownField,
    /// An enum value that this version does not know.
    #[error("{field}: value {value} is not known")]
    UnknownValue {
        /// Where.
        field: &'static str,
        /// The number on the wire.
        value: i32,
    },
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field has no valid value.
    #[error("{field}: {reason}")]
    Value {
        /// Where.
        field: &'static str,
        /// Why.
        reason: String,
    },
}

impl Invalid {
    fn value(field: &'static str, reason: impl ToString) -> Self {
        Self::Value { field, reason: reason.to_string() }
    }
}

/// Decodes a message.
///
/// # Errors
/// [`Invalid::Decode`].
pub fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Invalid> {
    M::decode(bytes).map_err(|e| Invalid::Decode(e.to_string()))
}

/// Decodes a message of which every field must be known: what would be lost by decoding shows in the length.
///
/// # Errors
/// [`Invalid::Decode`] or [`Invalid::UnknownField`].
pub fn decode_strict<M: Message + Default>(bytes: &[u8]) -> Result<M, Invalid> {
    let message: M = decode(bytes)?;
    if message.encoded_len() == bytes.len() { Ok(message) } else { Err(Invalid::UnknownField) }
}

/// Four or sixteen bytes as an address.
fn ip(field: &'static str, bytes: &[u8]) -> Result<std::net::IpAddr, Invalid> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    <[u8; 16]>::try_from(bytes)
        .map(Into::into)
        .map_err(|_| Invalid::value(field, format!("{} bytes are no IP address", bytes.len())))
}

fn ip_bytes(ip: std::net::IpAddr) -> prost::bytes::Bytes {
    match ip {
        std::net::IpAddr::V4(v4) => prost::bytes::Bytes::copy_from_slice(&v4.octets()),
        std::net::IpAddr::V6(v6) => prost::bytes::Bytes::copy_from_slice(&v6.octets()),
    }
}

fn port(field: &'static str, number: u32) -> Result<u16, Invalid> {
    u16::try_from(number).map_err(|_| Invalid::value(field, format!("{number} is no port")))
}
