// SPDX-License-Identifier: Apache-2.0
//! Values of policies in the form in which a field looks them up, with their rows.

use std::sync::Arc;

use ipnet::IpNet;
use meltemi_model::authz::{Attribute, StringMatch, ValueMatch};
use meltemi_model::net::canonical_range;

use crate::reading::is_host;

/// Stands between issuer and subject: a byte that no text has.
pub(super) const BETWEEN: u8 = 0xff;

/// A value in the form in which it is looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Exact(Arc<[u8]>),
    Prefix(Arc<[u8]>),
    Suffix(Arc<[u8]>),
    Presence,
    Template(Arc<str>),
    Range(IpNet),
    Port(u16),
}

/// The key of a value.
pub(super) fn key(attribute: &Attribute, value: &ValueMatch) -> Key {
    match value {
        ValueMatch::String(text) => {
            let fold = |text: &Arc<str>| folded(attribute, text);
            match text {
                StringMatch::Exact(text) => Key::Exact(fold(text)),
                StringMatch::Prefix(text) => Key::Prefix(fold(text)),
                StringMatch::Suffix(text) => Key::Suffix(fold(text)),
                StringMatch::Presence => Key::Presence,
            }
        }
        ValueMatch::Cidr(range) => Key::Range(canonical_range(*range)),
        ValueMatch::Port(port) => Key::Port(*port),
        ValueMatch::ServiceAccount { namespace, name } => {
            Key::Exact(format!("/ns/{namespace}/sa/{name}").into_bytes().into())
        }
        ValueMatch::PathTemplate(template) => Key::Template(template.0.clone()),
    }
}

fn folded(attribute: &Attribute, text: &Arc<str>) -> Arc<[u8]> {
    match attribute {
        _ if is_host(attribute) && text.bytes().any(|b| b.is_ascii_uppercase()) => {
            text.to_ascii_lowercase().into_bytes().into()
        }
        Attribute::RequestPrincipal => {
            let mut bytes = text.as_bytes().to_vec();
            if let Some(slash) = text.rfind('/') {
                bytes[slash] = BETWEEN;
            }
            bytes.into()
        }
        _ => text.clone().into(),
    }
}

/// The rows that a value brings in, and those that it rules out, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    pub(super) plus: Vec<u32>,
    pub(super) minus: Vec<u32>,
}

/// A pattern that others may begin, with its rows.
#[derive(Clone, Debug)]
pub(super) struct Nested {
    pub(super) text: Arc<[u8]>,
    pub(super) rows: Rows,
}
