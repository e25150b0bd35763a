// SPDX-License-Identifier: Apache-2.0
//! One attribute of all rows: which rows want something of it, and which of them a request fulfils.

use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use meltemi_model::authz::{Attribute, Predicate};
use smallvec::SmallVec;
use std::hash::BuildHasher;

use super::Post;
use super::key::{BETWEEN, Key, Nested, Rows, key};
use super::query::Query;
use super::ranges::Ranges;
use super::sets::{SetRef, SetsBuilder};
use super::text::{Patterns, Texts};
use crate::facts::{Facts, Headers, HttpFacts, audiences, presenter};
use crate::http::{header_value, host_forms, is_literal, list_elements};
use crate::matching::Sense;

#[derive(Clone, Debug)]
enum Lookup {
    Texts(Texts),
    /// Of paths: patterns for every reading, and those that mean what they hold literally.
    Paths(Texts, Option<Box<Texts>>),
    Ranges(Ranges),
    Ports(HashTable<(u16, Post)>),
}

/// One attribute of all rows.
#[derive(Clone, Debug)]
pub(super) struct Field {
    attribute: Attribute,
    lookup: Lookup,
    /// Rows that do not ask for a value.
    wild: SetRef,
    /// Rows that say nothing of it at all.
    free: SetRef,
}

/// Collects a [`Field`].
#[derive(Debug, Default)]
pub(super) struct FieldBuilder {
    values: HashMap<Key, Rows>,
    positive: Vec<u32>,
    named: Vec<u32>,
}

impl FieldBuilder {
    /// Adds what a row wants; rows come in order.
    pub(super) fn add(&mut self, row: u32, predicate: &Predicate) {
        self.named.push(row);
        if !predicate.values.is_empty() {
            self.positive.push(row);
        }
        for value in &predicate.values {
            self.values.entry(key(&predicate.attribute, value)).or_default().plus.push(row);
        }
        for value in &predicate.not_values {
            self.values.entry(key(&predicate.attribute, value)).or_default().minus.push(row);
        }
    }

    /// The field.
    pub(super) fn build(
        self,
        attribute: Attribute,
        sets: &mut SetsBuilder,
        hash: &DefaultHashBuilder,
    ) -> Field {
        let Self { values, positive, named } = self;
        // Made here, so that no decision has to.
        let _ = (audiences(), presenter());
        let (mut patterns, mut literal) = (Patterns::default(), Patterns::default());
        let (mut ranges, mut ports) = (Vec::new(), Vec::new());
        for (key, rows) in values {
            let literally = attribute == Attribute::Path && key.text().is_some_and(is_literal);
            let patterns = if literally { &mut literal } else { &mut patterns };
            match key {
                Key::Prefix(text) => patterns.prefixes.push(Nested { text, rows }),
                Key::Suffix(text) => patterns.suffixes.push(Nested { text, rows }),
                Key::Range(range) => ranges.push((range, rows)),
                Key::Exact(text) => patterns.exact.push((text, sets.post(rows))),
                Key::Presence => patterns.presence = Some(sets.post(rows)),
                Key::Template(text) => patterns.templates.push((text, sets.post(rows))),
                Key::Port(port) => ports.push((port, sets.post(rows))),
            }
        }
        let lookup = match attribute {
            Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => {
                Lookup::Ranges(Ranges::new(ranges, sets))
            }
            Attribute::DestinationPort => {
                let mut table = HashTable::with_capacity(ports.len());
                for (port, post) in ports {
                    table.insert_unique(hash.hash_one(port), (port, post), |(port, _)| hash.hash_one(port));
                }
                Lookup::Ports(table)
            }
            Attribute::Path => {
                let literal = (!literal.is_empty()).then(|| Box::new(Texts::new(literal, sets, hash)));
                Lookup::Paths(Texts::new(patterns, sets, hash), literal)
            }
            _ => Lookup::Texts(Texts::new(patterns, sets, hash)),
        };
        let wild = sets.all_but(&positive);
        let free = if named.len() == positive.len() { wild } else { sets.all_but(&named) };
        Field { attribute, lookup, wild, free }
    }
}

impl Field {
    /// What is cheap to look up and often decides comes first.
    pub(super) fn order(attribute: &Attribute) -> u8 {
        match attribute {
            Attribute::DestinationPort => 0,
            Attribute::SourcePrincipal | Attribute::SourceServiceAccount => 1,
            Attribute::SourceNamespace | Attribute::SourceTrustDomain | Attribute::Method => 2,
            Attribute::SourceIp | Attribute::DestinationIp | Attribute::RemoteIp => 3,
            Attribute::Path | Attribute::Host | Attribute::ConnectionSni => 4,
            _ => 5,
        }
    }

    /// Narrows the query to the rows that the facts fulfil. False when none is left.
    #[inline]
    pub(super) fn narrow(
        &self,
        facts: &Facts<'_>,
        sense: Sense,
        hash: &DefaultHashBuilder,
        query: &mut Query<'_>,
    ) -> bool {
        match &self.lookup {
            Lookup::Ports(table) => {
                let port = facts.destination_port;
                query.plus(self.wild);
                if let Some((_, post)) = table.find(hash.hash_one(port), |(known, _)| *known == port) {
                    post.put(query);
                }
                query.end_group();
                query.end_term()
            }
            Lookup::Ranges(ranges) => {
                let ip = match self.attribute {
                    Attribute::SourceIp => Some(facts.source_ip),
                    Attribute::DestinationIp => Some(facts.destination_ip),
                    _ => match &facts.http {
                        Some(http) => http.remote_ip,
                        None => return self.unknown(sense, query),
                    },
                };
                query.plus(self.wild);
                if let Some(ip) = ip {
                    ranges.visit(ip.to_canonical(), |post| post.put(query));
                }
                query.end_group();
                query.end_term()
            }
            Lookup::Texts(texts) => self.narrow_by_text(texts, facts, sense, hash, query),
            Lookup::Paths(texts, literal) => match &facts.http {
                Some(http) => {
                    self.narrow_by_path((texts, literal.as_deref()), http.paths, sense, hash, query)
                }
                None => self.unknown(sense, query),
            },
        }
    }

    /// Nobody can tell: an ALLOW does not match, a DENY does.
    fn unknown(&self, sense: Sense, query: &mut Query<'_>) -> bool {
        if sense == Sense::Deny {
            return true;
        }
        query.plus(self.free);
        query.end_group();
        query.end_term()
    }

    fn narrow_by_text(
        &self,
        texts: &Texts,
        facts: &Facts<'_>,
        sense: Sense,
        hash: &DefaultHashBuilder,
        query: &mut Query<'_>,
    ) -> bool {
        let one = match &self.attribute {
            Attribute::SourcePrincipal => facts.source.map(|id| id.principal()),
            Attribute::SourceNamespace => facts.source.map(|id| id.namespace()),
            Attribute::SourceTrustDomain => facts.source.map(|id| id.trust_domain()),
            // `/ns/<namespace>/sa/<name>`: no part of it has a slash.
            Attribute::SourceServiceAccount => {
                facts.source.map(|id| &id.principal()[id.trust_domain().len()..])
            }
            Attribute::ConnectionSni if facts.sni.is_some() || facts.http.is_some() => facts.sni,
            attribute => {
                let Some(http) = &facts.http else { return self.unknown(sense, query) };
                match attribute {
                    Attribute::Method => Some(http.method),
                    _ => return self.narrow_by_http(texts, http, sense, hash, query),
                }
            }
        };
        query.plus(self.wild);
        if let Some(text) = one {
            texts.visit(hash, text.as_bytes(), |post| post.put(query));
        }
        query.end_group();
        query.end_term()
    }

    fn narrow_by_http(
        &self,
        texts: &Texts,
        http: &HttpFacts<'_>,
        sense: Sense,
        hash: &DefaultHashBuilder,
        query: &mut Query<'_>,
    ) -> bool {
        let claim = |path: &[Arc<str>], query: &mut Query<'_>| {
            if let Some(claims) = http.claims {
                claims.each(path, &mut |text| texts.visit(hash, text.as_bytes(), |post| post.put(query)));
            }
        };
        if let Attribute::Header(name) = &self.attribute {
            return self.narrow_by_header((texts, name), http.headers, sense, hash, query);
        }
        query.plus(self.wild);
        match &self.attribute {
            Attribute::Host => {
                let lower = lower_case(http.host);
                // What folding changes is ASCII: the text stays one.
                let lower = std::str::from_utf8(&lower).unwrap_or(http.host);
                for form in host_forms(lower).into_iter().flatten() {
                    texts.visit(hash, form.as_bytes(), |post| post.put(query));
                }
            }
            Attribute::RequestPrincipal => {
                if let Some((iss, sub)) = http.claims.and_then(|claims| claims.issuer_and_subject())
                    && !iss.is_empty()
                    && !sub.is_empty()
                {
                    let mut text: SmallVec<[u8; 256]> = SmallVec::from_slice(iss.as_bytes());
                    text.push(BETWEEN);
                    text.extend_from_slice(sub.as_bytes());
                    texts.visit(hash, &text, |post| post.put(query));
                }
            }
            Attribute::RequestAuthAudiences => claim(audiences(), query),
            Attribute::RequestAuthPresenter => claim(presenter(), query),
            Attribute::RequestAuthClaim(path) => claim(path, query),
            _ => {}
        }
        query.end_group();
        query.end_term()
    }

    /// An ALLOW needs every reading, a DENY any. What is literal is compared with the first, as it is forwarded.
    fn narrow_by_path(
        &self,
        (texts, literal): (&Texts, Option<&Texts>),
        paths: &[String],
        sense: Sense,
        hash: &DefaultHashBuilder,
        query: &mut Query<'_>,
    ) -> bool {
        let mut left = true;
        for path in paths {
            query.plus(self.wild);
            texts.visit(hash, path.as_bytes(), |post| post.put(query));
            if let (Some(literal), Some(forwarded)) = (literal, paths.first()) {
                literal.visit(hash, forwarded.as_bytes(), |post| post.put(query));
            }
            query.end_group();
            if sense == Sense::Allow {
                left &= query.end_term();
            }
        }
        self.end_readings(!paths.is_empty(), left, sense, query)
    }

    fn narrow_by_header(
        &self,
        (texts, name): (&Texts, &str),
        headers: &dyn Headers,
        sense: Sense,
        hash: &DefaultHashBuilder,
        query: &mut Query<'_>,
    ) -> bool {
        let (mut left, mut some) = (true, false);
        headers.each(name, &mut |value| {
            let value = header_value(value);
            query.plus(self.wild);
            texts.visit(hash, value.as_bytes(), |post| post.put(query));
            query.end_group();
            some = true;
            if sense == Sense::Allow {
                left &= query.end_term();
                return;
            }
            // What a DENY looks for may be an element of a list: rows without values are not among them.
            for element in list_elements(value) {
                texts.visit(hash, element.as_bytes(), |post| post.put(query));
                query.end_group();
            }
        });
        self.end_readings(some, left, sense, query)
    }

    fn end_readings(&self, some: bool, left: bool, sense: Sense, query: &mut Query<'_>) -> bool {
        if !some {
            query.plus(self.wild);
            query.end_group();
            return query.end_term();
        }
        if sense == Sense::Deny { query.end_term() } else { left }
    }

    pub(super) fn heap(&self) -> usize {
        match &self.lookup {
            Lookup::Texts(texts) => texts.heap(),
            Lookup::Paths(texts, literal) => {
                texts.heap() + literal.as_ref().map_or(0, |literal| literal.heap())
            }
            Lookup::Ranges(ranges) => ranges.heap(),
            Lookup::Ports(table) => table.allocation_size(),
        }
    }
}

fn lower_case(text: &str) -> SmallVec<[u8; 256]> {
    let mut lower = SmallVec::from_slice(text.as_bytes());
    lower.make_ascii_lowercase();
    lower
}
