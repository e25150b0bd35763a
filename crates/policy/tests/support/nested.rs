// SPDX-License-Identifier: Apache-2.0
//! Policies of long chains of patterns each of which begins the next (ranges each of which holds the next), and requests
//! that many of them match.

use std::net::IpAddr;

use meltemi_model::NamespacedName;
use meltemi_model::authz::{
    Attribute, Clause, ClauseOrigin, Match, Policy, Predicate, Rule, Scope, StringMatch, ValueMatch,
};
use proptest::prelude::*;

use crate::world::{Fields, Http, Request, action};

const CHAIN: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab";

/// A policy of many prefixes and suffixes each of which begins the next, wanted and not wanted.
pub(crate) fn policy() -> impl Strategy<Value = Policy> {
    let value = (1..42usize, any::<bool>()).prop_map(|(length, front)| {
        ValueMatch::String(if front {
            StringMatch::Prefix(CHAIN[..length].into())
        } else {
            StringMatch::Suffix(CHAIN[CHAIN.len() - length..].into())
        })
    });
    let lists = (prop::collection::vec(value.clone(), 0..3), prop::collection::vec(value, 1..3));
    let rule = lists.prop_map(|(values, not_values)| {
        let predicate = Predicate { attribute: Attribute::Header("x".into()), values, not_values };
        let matches = vec![Match { predicates: vec![predicate] }];
        Rule { clauses: vec![Clause { origin: ClauseOrigin::Unknown, matches }] }
    });
    (action(), prop::collection::vec(rule, 40..120)).prop_map(|(action, rules)| Policy {
        name: NamespacedName::new("ns", "nested"),
        scope: Scope::Namespace,
        action,
        dry_run: false,
        rules,
    })
}

/// A policy of many ranges each of which holds the next, wanted and not wanted.
pub(crate) fn ranges() -> impl Strategy<Value = Policy> {
    let value = (0..=32u8, any::<bool>()).prop_map(|(length, v4)| {
        let text = if v4 { format!("10.1.2.3/{length}") } else { format!("fd00::/{}", length * 4) };
        ValueMatch::Cidr(text.parse().unwrap())
    });
    let lists = (prop::collection::vec(value.clone(), 0..3), prop::collection::vec(value, 1..3));
    let rule = lists.prop_map(|(values, not_values)| {
        let predicate = Predicate { attribute: Attribute::SourceIp, values, not_values };
        let matches = vec![Match { predicates: vec![predicate] }];
        Rule { clauses: vec![Clause { origin: ClauseOrigin::Unknown, matches }] }
    });
    (action(), prop::collection::vec(rule, 40..120)).prop_map(|(action, rules)| Policy {
        name: NamespacedName::new("ns", "nested"),
        scope: Scope::Namespace,
        action,
        dry_run: false,
        rules,
    })
}

/// A connection from an address that some of the ranges hold: those of up to so many bits.
pub(crate) fn connection(bits: u32, v4: bool) -> Request {
    let ip = if v4 {
        IpAddr::from((0x0a01_0203_u32 ^ 1u32.checked_shl(31 - bits % 32).unwrap_or(0)).to_be_bytes())
    } else {
        IpAddr::from((0xfd00_u128 << 112 | 1 << (bits % 112)).to_be_bytes())
    };
    Request { source: None, source_ip: ip, destination_ip: ip, port: 80, sni: None, http: None }
}

/// A request whose header has pieces of the chain, of these lengths.
pub(crate) fn request(lengths: &[usize]) -> Request {
    let ip = IpAddr::from([10, 0, 0, 1]);
    let piece = |length: &usize| {
        if length.is_multiple_of(2) {
            CHAIN[..*length].to_owned()
        } else {
            CHAIN[CHAIN.len() - length..].to_owned()
        }
    };
    let http = Http {
        method: "GET".into(),
        host: "a".into(),
        paths: vec!["/".into()],
        headers: Fields(lengths.iter().map(|length| ("x".to_owned(), piece(length))).collect(), Vec::new()),
        remote_ip: None,
        claims: None,
    };
    Request { source: None, source_ip: ip, destination_ip: ip, port: 80, sni: None, http: Some(http) }
}
