// SPDX-License-Identifier: Apache-2.0
//! One attribute of all rows: which rows want something of it, and which of them a request fulfils.

use std::borrow::Cow;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use meltemi_model::authz::{Attribute, Predicate, ValueMatch};
use smallvec::SmallVec;
use std::hash::BuildHasher;

use super::Post;
use super::key::{BETWEEN, Key, Nested, Rows, key};
use super::query::Query;
use super::ranges::Ranges;
use super::sets::{SetRef, SetsBuilder};
use super::text::{Patterns, Texts};
use crate::facts::{Facts, HttpFacts, audiences, each_claim, presenter};
use crate::matching::Sense;
use crate::path::canonical_escapes;
use crate::reading::{self, Reading, has_readings, needs_request, presence_of_empty, wide_forms};

#[derive(Clone, Debug)]
enum Lookup {
    Texts(Texts),
    /// Of what has readings: patterns for every reading; and patterns for the first one, each of which counts for all
    /// readings, until the rule itself is looked at.
    Readings(Texts, Option<Box<Texts>>),
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
    /// All rows.
    all: SetRef,
}

/// Collects a [`Field`].
#[derive(Debug, Default)]
pub(super) struct FieldBuilder {
    values: HashMap<Key, Rows>,
    /// Values that say too little without the request: what they match is looked at again.
    loose: HashMap<Key, Rows>,
    positive: Vec<u32>,
    named: Vec<u32>,
}

impl FieldBuilder {
    /// Adds what a row wants; rows come in order. Whether the look-up alone decides.
    pub(super) fn add(&mut self, row: u32, predicate: &Predicate, sense: Sense) -> bool {
        let attribute = &predicate.attribute;
        self.named.push(row);
        if !predicate.values.is_empty() {
            self.positive.push(row);
        }
        let wide_values = sense == Sense::Deny;
        let mut exact = true;
        for value in &predicate.values {
            if !wide_values && needs_request(attribute, value) {
                exact = false;
                self.loose.entry(loose_key(attribute, value)).or_default().plus.push(row);
                continue;
            }
            for key in keys(attribute, value, wide_values) {
                self.values.entry(key).or_default().plus.push(row);
            }
        }
        for value in &predicate.not_values {
            if wide_values && needs_request(attribute, value) {
                // It may rule the row out: that is seen when the rule is looked at.
                exact = false;
                continue;
            }
            for key in keys(attribute, value, !wide_values) {
                self.values.entry(key).or_default().minus.push(row);
            }
        }
        exact
    }

    /// The field.
    pub(super) fn build(
        self,
        attribute: Attribute,
        sets: &mut SetsBuilder,
        hash: &DefaultHashBuilder,
    ) -> Field {
        let Self { values, loose, positive, named } = self;
        // Made here, so that no decision has to.
        let _ = (audiences(), presenter());
        let (mut patterns, mut first) = (Patterns::default(), Patterns::default());
        let (mut ranges, mut ports) = (Vec::new(), Vec::new());
        let values = values.into_iter().map(|value| (value, false));
        for ((key, rows), loose) in values.chain(loose.into_iter().map(|value| (value, true))) {
            let patterns = if loose { &mut first } else { &mut patterns };
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
        let of_empty = presence_of_empty(&attribute);
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
            _ if has_readings(&attribute) => {
                let first = (!first.is_empty()).then(|| Box::new(Texts::new(first, of_empty, sets, hash)));
                Lookup::Readings(Texts::new(patterns, of_empty, sets, hash), first)
            }
            _ => Lookup::Texts(Texts::new(patterns, of_empty, sets, hash)),
        };
        let wild = sets.all_but(&positive);
        let free = if named.len() == positive.len() { wild } else { sets.all_but(&named) };
        let all = if positive.is_empty() { wild } else { sets.all_but(&[]) };
        Field { attribute, lookup, wild, free, all }
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
            Lookup::Readings(texts, first) => match &facts.http {
                Some(http) => self.narrow_by_readings((texts, first.as_deref()), http, sense, hash, query),
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
            _ => {
                let Some(http) = &facts.http else { return self.unknown(sense, query) };
                return self.narrow_by_token(texts, http, hash, query);
            }
        };
        query.plus(self.wild);
        if let Some(text) = one {
            texts.visit(hash, text.as_bytes(), |post| post.put(query));
        }
        query.end_group();
        query.end_term()
    }

    fn narrow_by_token(
        &self,
        texts: &Texts,
        http: &HttpFacts<'_>,
        hash: &DefaultHashBuilder,
        query: &mut Query<'_>,
    ) -> bool {
        let claim = |path: &[Arc<str>], query: &mut Query<'_>| {
            if let Some(claims) = http.claims {
                let mut visit = |text: &str| texts.visit(hash, text.as_bytes(), |post| post.put(query));
                each_claim(claims, path, &mut visit);
            }
        };
        query.plus(self.wild);
        match &self.attribute {
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

    /// An ALLOW needs every reading, so each is a term; a DENY needs any, so each is a group of one term. See
    /// [`reading::fulfil`], which says the same of one rule.
    fn narrow_by_readings(
        &self,
        (texts, first): (&Texts, Option<&Texts>),
        http: &HttpFacts<'_>,
        sense: Sense,
        hash: &DefaultHashBuilder,
        query: &mut Query<'_>,
    ) -> bool {
        let start = match &self.attribute {
            Attribute::Path if first.is_some() => {
                http.paths.first().map_or(Cow::Borrowed(""), |path| canonical_escapes(path))
            }
            _ => Cow::Borrowed(http.host),
        };
        let mut left = true;
        reading::each(&self.attribute, http, &mut |reading| match (reading, sense) {
            (Reading::Whole(text), _) => {
                query.plus(self.wild);
                self.visit(texts, hash, text, |post| post.put(query));
                if let Some(first) = first {
                    self.visit(first, hash, &start, |post| post.put(query));
                }
                query.end_group();
                left &= sense == Sense::Deny || query.end_term();
            }
            (Reading::Part(text), Sense::Deny) => {
                self.visit(texts, hash, text, |post| post.put(query));
                query.end_group();
            }
            (Reading::Part(text), Sense::Allow) => {
                let mut some = false;
                self.visit(texts, hash, text, |post| {
                    some |= post.minus != SetRef::EMPTY;
                    query.minus(post.minus);
                });
                if some {
                    query.plus(self.all);
                    query.end_group();
                    left &= query.end_term();
                }
            }
            (Reading::Absent, _) => {
                query.plus(self.wild);
                query.end_group();
                left &= sense == Sense::Deny || query.end_term();
            }
        });
        if sense == Sense::Deny { query.end_term() } else { left }
    }

    /// Calls for every pattern that a text matches: of a host, in lower case, as its patterns are.
    fn visit(&self, texts: &Texts, hash: &DefaultHashBuilder, text: &str, with: impl FnMut(Post)) {
        if !reading::is_host(&self.attribute) {
            return texts.visit(hash, text.as_bytes(), with);
        }
        let mut lower: SmallVec<[u8; 256]> = SmallVec::from_slice(text.as_bytes());
        lower.make_ascii_lowercase();
        texts.visit(hash, &lower, with);
    }

    pub(super) fn heap(&self) -> usize {
        match &self.lookup {
            Lookup::Texts(texts) => texts.heap(),
            Lookup::Readings(texts, first) => texts.heap() + first.as_ref().map_or(0, |first| first.heap()),
            Lookup::Ranges(ranges) => ranges.heap(),
            Lookup::Ports(table) => table.allocation_size(),
        }
    }
}

/// The keys of a value: of all its forms where a match is wide.
fn keys(attribute: &Attribute, value: &ValueMatch, wide: bool) -> SmallVec<[Key; 2]> {
    if wide {
        wide_forms(attribute, value).iter().map(|form| key(attribute, form)).collect()
    } else {
        SmallVec::from_iter([key(attribute, value)])
    }
}

/// The key of a value that the request itself has to be compared with: it finds all that the value matches, or more.
fn loose_key(attribute: &Attribute, value: &ValueMatch) -> Key {
    let canonical = |text: &[u8]| -> Arc<[u8]> {
        canonical_escapes(&String::from_utf8_lossy(text)).into_owned().into_bytes().into()
    };
    match key(attribute, value) {
        Key::Exact(text) if *attribute == Attribute::Path => Key::Exact(canonical(&text)),
        Key::Prefix(text) if *attribute == Attribute::Path => Key::Prefix(canonical(&text)),
        Key::Suffix(text) if *attribute == Attribute::Path => Key::Suffix(canonical(&text)),
        Key::Template(text) => Key::Template(canonical_escapes(&text).into()),
        key => key,
    }
}
