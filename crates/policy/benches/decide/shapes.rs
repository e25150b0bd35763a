// SPDX-License-Identifier: Apache-2.0
//! Kinds of rules, each with the requests that match one of many.

use std::net::{IpAddr, Ipv4Addr};

use meltemi_model::SpiffeId;
use meltemi_model::authz::{
    Attribute, Clause, ClauseOrigin, Match, PathTemplate, Predicate, Rule, StringMatch, ValueMatch,
};
use meltemi_policy::{Facts, Headers, HttpFacts};

struct Fields(Vec<(&'static str, String)>);

impl Headers for Fields {
    fn each(&self, name: &str, with: &mut dyn FnMut(&str)) {
        self.0.iter().filter(|(n, _)| *n == name).for_each(|(_, v)| with(v));
    }
}

pub(crate) struct Request {
    source: SpiffeId,
    ip: IpAddr,
    port: u16,
    http: Option<(String, Vec<String>, Fields)>,
}

impl Request {
    pub(crate) fn facts(&self) -> Facts<'_> {
        Facts {
            source: Some(&self.source),
            source_ip: self.ip,
            destination_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            destination_port: self.port,
            sni: None,
            http: self.http.as_ref().map(|(host, paths, headers)| HttpFacts {
                method: "GET",
                host,
                paths,
                headers,
                remote_ip: Some(self.ip),
                claims: None,
            }),
        }
    }
}

/// Rules of one kind: the rule of a place among `n`, and a request that only this one matches; from `n` on, no rule
/// matches.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) layer: u8,
    pub(crate) rule: fn(usize, usize) -> Rule,
    pub(crate) request: fn(usize, usize) -> Request,
}

fn is(attribute: Attribute, value: impl Into<String>) -> Predicate {
    Predicate { attribute, values: vec![text(&value.into())], not_values: vec![] }
}

fn text(value: &str) -> ValueMatch {
    ValueMatch::String(StringMatch::parse(value))
}

fn not(attribute: Attribute, values: &[String]) -> Predicate {
    Predicate { attribute, values: vec![], not_values: values.iter().map(|v| text(v)).collect() }
}

fn rule(from: Vec<Predicate>, to: Vec<Predicate>) -> Rule {
    let clause = |origin, predicates: Vec<Predicate>| Clause { origin, matches: vec![Match { predicates }] };
    let mut clauses = Vec::new();
    if !from.is_empty() {
        clauses.push(clause(ClauseOrigin::From, from));
    }
    if !to.is_empty() {
        clauses.push(clause(ClauseOrigin::To, to));
    }
    Rule { clauses }
}

fn principal(i: usize) -> String {
    format!("cluster.local/ns/team-{}/sa/service-{i}", i % 97)
}

fn port(value: u16) -> Predicate {
    Predicate {
        attribute: Attribute::DestinationPort,
        values: vec![ValueMatch::Port(value)],
        not_values: vec![],
    }
}

fn own_port(i: usize) -> u16 {
    8000 + i as u16
}

fn ip(i: usize) -> Ipv4Addr {
    // Ranges lie apart, so that those of a miss are in none.
    Ipv4Addr::from_bits((10 << 24) + ((i as u32) << 6))
}

fn range(i: usize) -> Predicate {
    let range = ValueMatch::Cidr(format!("{}/27", ip(i)).parse().unwrap());
    Predicate { attribute: Attribute::SourceIp, values: vec![range], not_values: vec![] }
}

fn path(i: usize) -> String {
    format!("/api/v1/team-{}/resource-{i}", i % 97)
}

fn template(i: usize) -> Predicate {
    let template = ValueMatch::PathTemplate(PathTemplate(format!("/api/{{*}}/r{i}/{{**}}").into()));
    Predicate { attribute: Attribute::Path, values: vec![template], not_values: vec![] }
}

fn l4(who: usize, address: usize) -> Request {
    let source = format!("spiffe://{}", principal(who)).parse().unwrap();
    Request { source, ip: IpAddr::V4(ip(address)), port: 8080, http: None }
}

fn l7(who: usize, path: String) -> Request {
    let host = format!("shop-{who}.example.com");
    let headers = Fields(vec![("x-tenant", format!("tenant-{who}")), ("accept", "*/*".into())]);
    Request { http: Some((host, vec![path], headers)), ..l4(who, who) }
}

fn side(n: usize) -> usize {
    (n as f64).sqrt().ceil() as usize
}

/// Prefixes each of which begins the next.
const CHAIN: usize = 500;

/// Headers of rules that look at many.
const HEADERS: [&str; 40] = [
    "x-h00", "x-h01", "x-h02", "x-h03", "x-h04", "x-h05", "x-h06", "x-h07", "x-h08", "x-h09", "x-h10",
    "x-h11", "x-h12", "x-h13", "x-h14", "x-h15", "x-h16", "x-h17", "x-h18", "x-h19", "x-h20", "x-h21",
    "x-h22", "x-h23", "x-h24", "x-h25", "x-h26", "x-h27", "x-h28", "x-h29", "x-h30", "x-h31", "x-h32",
    "x-h33", "x-h34", "x-h35", "x-h36", "x-h37", "x-h38", "x-h39",
];

/// Ranges each of which holds the next.
const NESTED: usize = 129;

/// A decoy: on a path that no request has.
const ELSEWHERE: &str = "/elsewhere";

pub(crate) const SHAPES: &[Shape] = &[
    Shape {
        name: "principals",
        layer: 4,
        rule: |i, _| rule(vec![is(Attribute::SourcePrincipal, principal(i))], vec![port(8080)]),
        request: |i, _| l4(i, 0),
    },
    Shape {
        name: "ranges",
        layer: 4,
        rule: |i, _| rule(vec![range(i)], vec![port(8080)]),
        request: |i, _| l4(0, i),
    },
    Shape {
        name: "principal x range",
        layer: 4,
        rule: |i, n| {
            let (a, b) = (i / side(n), i % side(n));
            rule(vec![is(Attribute::SourcePrincipal, principal(a)), range(b)], vec![port(8080)])
        },
        // A miss has a principal and an address that rules name.
        request: |i, n| if i < n { l4(i / side(n), i % side(n)) } else { l4(i % side(n), side(n)) },
    },
    Shape {
        name: "principal x port",
        layer: 4,
        rule: |i, n| {
            rule(
                vec![is(Attribute::SourcePrincipal, principal(i / side(n)))],
                vec![port(own_port(i % side(n)))],
            )
        },
        // A miss has a principal that rules name.
        request: |i, n| {
            let (who, at) = if i < n { (i / side(n), i % side(n)) } else { (i % side(n), side(n)) };
            Request { port: own_port(at), ..l4(who, 0) }
        },
    },
    Shape {
        name: "ranges in ranges",
        layer: 4,
        rule: |i, _| {
            let range = ValueMatch::Cidr(format!("fd00::/{}", i % NESTED).parse().unwrap());
            let range = Predicate { attribute: Attribute::SourceIp, values: vec![range], not_values: vec![] };
            rule(vec![is(Attribute::SourcePrincipal, principal(i / NESTED)), range], vec![port(8080)])
        },
        // All ranges hold the address, of which the principal has some, or none.
        request: |i, n| {
            let ip = "fd00::".parse().unwrap();
            Request { ip, ..l4(if i < n { i / NESTED } else { n }, 0) }
        },
    },
    Shape {
        name: "only not-values",
        layer: 4,
        rule: |i, _| {
            rule(vec![not(Attribute::SourcePrincipal, &[principal(0), principal(i + 7)])], vec![port(8080)])
        },
        request: |i, n| if i < n { l4(3, i) } else { l4(0, i) },
    },
    Shape {
        name: "own principal and path",
        layer: 7,
        rule: |i, _| {
            rule(
                vec![is(Attribute::SourcePrincipal, principal(i))],
                vec![is(Attribute::Method, "GET"), is(Attribute::Path, path(i))],
            )
        },
        request: |i, _| l7(i, path(i)),
    },
    Shape {
        name: "principal x path",
        layer: 7,
        rule: |i, n| {
            let (a, b) = (i / side(n), i % side(n));
            rule(
                vec![is(Attribute::SourcePrincipal, principal(a))],
                vec![is(Attribute::Method, "GET"), is(Attribute::Path, path(b))],
            )
        },
        request: |i, n| {
            if i < n { l7(i / side(n), path(i % side(n))) } else { l7(i % side(n), path(side(n))) }
        },
    },
    Shape {
        name: "one principal, path prefixes",
        layer: 7,
        rule: |i, _| {
            rule(
                vec![is(Attribute::SourcePrincipal, principal(0))],
                vec![is(Attribute::Method, "GET"), is(Attribute::Path, format!("{}/*", path(i)))],
            )
        },
        request: |i, _| l7(0, format!("{}/item/7", path(i))),
    },
    Shape {
        name: "prefixes in prefixes",
        layer: 7,
        rule: |i, _| {
            let prefix = format!("/{}*", "a".repeat(i % CHAIN));
            rule(
                vec![is(Attribute::SourcePrincipal, principal(i / CHAIN))],
                vec![is(Attribute::Path, prefix)],
            )
        },
        // All prefixes match, of which the principal has some, or none.
        request: |i, n| l7(if i < n { i / CHAIN } else { n }, format!("/{}", "a".repeat(CHAIN))),
    },
    Shape {
        name: "48 x 48 alternatives",
        layer: 7,
        // More than are multiplied out: the hits of the index are checked.
        rule: |i, _| {
            let of = |origin, one: &dyn Fn(usize) -> Vec<Predicate>| Clause {
                origin,
                matches: (0..48).map(|k| Match { predicates: one(k) }).collect(),
            };
            let who = |k| vec![is(Attribute::SourcePrincipal, principal(k)), port(8080 + (k as u16 & 1))];
            let what = |k| {
                vec![
                    is(Attribute::Method, "GET"),
                    is(Attribute::Path, format!("{}/{k}", path(i))),
                    port(8080),
                ]
            };
            Rule { clauses: vec![of(ClauseOrigin::From, &who), of(ClauseOrigin::To, &what)] }
        },
        request: |i, _| l7(2 * (i % 24), format!("{}/{}", path(i), i % 48)),
    },
    Shape {
        name: "40 headers, the last is its own",
        layer: 7,
        rule: |i, _| {
            let header = |k: usize| {
                let name = format!("x-h{k:02}");
                is(Attribute::Header(name.as_str().into()), if k == 39 { i.to_string() } else { "1".into() })
            };
            rule(vec![], (0..40).map(header).collect())
        },
        request: |i, _| {
            let mut request = l7(0, "/".into());
            if let Some((_, _, headers)) = &mut request.http {
                let value = |k: usize| if k == 39 { i.to_string() } else { "1".to_owned() };
                headers.0 = (0..40).map(|k| (HEADERS[k], value(k))).collect();
            }
            request
        },
    },
    Shape {
        name: "path suffixes",
        layer: 7,
        rule: |i, _| {
            rule(vec![], vec![is(Attribute::Method, "GET"), is(Attribute::Path, format!("*/{i}.html"))])
        },
        request: |i, _| l7(0, format!("/static/pages/{i}.html")),
    },
    Shape {
        name: "path templates",
        layer: 7,
        rule: |i, _| rule(vec![], vec![is(Attribute::Method, "GET"), template(i)]),
        request: |i, _| l7(0, format!("/api/v1/r{i}/items/7")),
    },
    Shape {
        name: "hosts and a header",
        layer: 7,
        rule: |i, _| {
            rule(
                vec![],
                vec![
                    is(Attribute::Host, format!("shop-{i}.example.com")),
                    is(Attribute::Header("x-tenant".into()), format!("tenant-{i}")),
                ],
            )
        },
        request: |i, _| l7(i, "/".to_owned()),
    },
    Shape {
        name: "only not-values",
        layer: 7,
        rule: |i, _| {
            rule(
                vec![not(Attribute::SourcePrincipal, &[principal(0)])],
                vec![not(Attribute::Path, &[ELSEWHERE.to_owned(), path(i + 7)])],
            )
        },
        request: |i, n| if i < n { l7(3, "/".to_owned()) } else { l7(0, path(i)) },
    },
];
