// SPDX-License-Identifier: Apache-2.0
//! Values of policies in the form in which a field looks them up, and patterns that begin alike.

use std::sync::Arc;

use ipnet::IpNet;
use meltemi_model::authz::{Attribute, StringMatch, ValueMatch};

use crate::matching::canonical;

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

impl Key {
    /// The text, where it is one.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Exact(text) | Self::Prefix(text) | Self::Suffix(text) => std::str::from_utf8(text).ok(),
            Self::Template(text) => Some(text),
            Self::Presence | Self::Range(_) | Self::Port(_) => None,
        }
    }
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
        ValueMatch::Cidr(range) => Key::Range(canonical(*range)),
        ValueMatch::Port(port) => Key::Port(*port),
        ValueMatch::ServiceAccount { namespace, name } => {
            Key::Exact(format!("/ns/{namespace}/sa/{name}").into_bytes().into())
        }
        ValueMatch::PathTemplate(template) => Key::Template(template.0.clone()),
    }
}

fn folded(attribute: &Attribute, text: &Arc<str>) -> Arc<[u8]> {
    match attribute {
        Attribute::Host if text.bytes().any(|b| b.is_ascii_uppercase()) => {
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

/// So many patterns may begin one another before the sets of those above are put together.
const DEPTH: usize = 8;

/// A pattern that others may begin, with the rows that it brings in and rules out.
#[derive(Clone, Debug)]
pub(super) struct Nested {
    /// Where the text begins that is compared first.
    pub(super) text: Arc<[u8]>,
    pub(super) plus: Vec<u32>,
    pub(super) minus: Vec<u32>,
    /// The rows are those of the patterns that begin this one, too.
    pub(super) whole: bool,
}

/// Sorts patterns. Of a long chain in which each begins the next, every eighth gets the rows of all before it, so that a
/// text that all of them match is answered by a few sets.
pub(super) fn nest(patterns: &mut [Nested]) {
    patterns.sort_by(|a, b| a.text.cmp(&b.text));
    let mut chain: Vec<usize> = Vec::new();
    for at in 0..patterns.len() {
        while let Some(before) = chain.last()
            && !patterns[at].text.starts_with(&patterns[*before].text)
        {
            chain.pop();
        }
        if !chain.is_empty() && chain.len().is_multiple_of(DEPTH) {
            let (mut plus, mut minus) = (Vec::new(), Vec::new());
            for before in chain.iter().rev() {
                plus.extend(&patterns[*before].plus);
                minus.extend(&patterns[*before].minus);
                if patterns[*before].whole {
                    break;
                }
            }
            let this = &mut patterns[at];
            this.plus.append(&mut plus);
            this.minus.append(&mut minus);
            this.plus.sort_unstable();
            this.minus.sort_unstable();
            this.whole = true;
        }
        chain.push(at);
    }
}
