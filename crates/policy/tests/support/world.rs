// SPDX-License-Identifier: Apache-2.0
//! Random policies and requests over small alphabets, so that they meet often.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use meltemi_model::authz::{
    Action, Attribute, Clause, ClauseOrigin, Match, PathTemplate, Policy, Predicate, Rule, Scope,
    StringMatch, ValueMatch,
};
use meltemi_model::{NamespacedName, SpiffeId};
use meltemi_policy::{Claims, Facts, Headers, HttpFacts};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

/// A request, owned.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) source: Option<SpiffeId>,
    pub(crate) source_ip: IpAddr,
    pub(crate) destination_ip: IpAddr,
    pub(crate) port: u16,
    pub(crate) sni: Option<String>,
    pub(crate) http: Option<Http>,
}

/// Its HTTP part.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) paths: Vec<String>,
    pub(crate) headers: Fields,
    pub(crate) remote_ip: Option<IpAddr>,
    pub(crate) claims: Option<Token>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Fields(pub(crate) Vec<(String, String)>, /** Seen and not seen. */ pub(crate) Vec<String>);

impl Headers for Fields {
    fn each(&self, name: &str, with: &mut dyn FnMut(&str)) {
        self.0.iter().filter(|(n, _)| n == name).for_each(|(_, v)| with(v));
    }

    fn may_lack(&self, name: &str) -> bool {
        self.1.iter().any(|lacking| lacking == name)
    }
}

/// A verified token.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) issuer: String,
    pub(crate) subject: String,
    pub(crate) claims: Vec<(Vec<String>, String)>,
}

impl Claims for Token {
    fn each(&self, path: &[Arc<str>], with: &mut dyn FnMut(&str)) {
        let at = |one: &[String]| one.len() == path.len() && one.iter().zip(path).all(|(a, b)| **a == **b);
        self.claims.iter().filter(|(name, _)| at(name)).for_each(|(_, v)| with(v));
    }

    fn principal(&self) -> Option<&str> {
        None
    }

    fn issuer_and_subject(&self) -> Option<(&str, &str)> {
        Some((&self.issuer, &self.subject))
    }
}

impl Request {
    /// Calls with the facts, borrowed from here.
    pub(crate) fn facts(&self) -> Facts<'_> {
        let http = self.http.as_ref().map(|http| HttpFacts {
            method: &http.method,
            host: &http.host,
            paths: &http.paths,
            headers: &http.headers,
            remote_ip: http.remote_ip,
            claims: http.claims.as_ref().map(|c| c as &dyn Claims),
        });
        Facts {
            source: self.source.as_ref(),
            source_ip: self.source_ip,
            destination_ip: self.destination_ip,
            destination_port: self.port,
            sni: self.sni.as_deref(),
            http,
        }
    }
}

const WORDS: &[&str] = &["a", "b", "ab", "ba", "aab"];
const PATHS: &[&str] = &[
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/b/a",
    "/a//b",
    "/a/b/a",
    "/ab",
    "/b",
    "/a;b",
    "/a%2Fb",
    "/a%2fb",
    "/a;b/..%2fb",
    "/a%3Ab",
    "/a:b",
    "/%c3%A9",
    "//b/a",
    "/b/..%5ca;b",
    "/a%",
];
const METHODS: &[&str] = &["GET", "PUT", "GETS", "get"];
const HOSTS: &[&str] = &["a", "A", "a.b", "a.B.", "b:80", "B.:80", "b.:81", "[::1]:80", "[::1]", ""];
const ADDRESSES: &[&str] =
    &["10.0.0.1", "10.0.0.2", "10.1.0.1", "::ffff:10.0.0.1", "::1", "fd00::1", "fd00::2"];
const RANGES: &[&str] = &[
    "10.0.0.1/32",
    "10.0.0.0/31",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "0.0.0.0/0",
    "::/0",
    "fd00::/64",
    "fd00::1/128",
    "::ffff:10.0.0.0/104",
    "10.1.0.1/16",
    "::ffff:10.0.0.1/128",
];
const TEMPLATES: &[&str] = &[
    "/{*}",
    "/a;b/{*}",
    "/a%2fb/{**}",
    "/a/{*}",
    "/{*}/b",
    "/{**}",
    "/a/{**}",
    "/{**}/a",
    "/a/{**}/b",
    "/{*}/{**}",
    "/{*}/b/{**}/a",
];
const ISSUERS: &[&str] = &["a", "b", "a/b", "ab"];

fn address() -> impl Strategy<Value = IpAddr> {
    select(ADDRESSES).prop_map(|a| a.parse().unwrap())
}

fn words() -> impl Strategy<Value = String> {
    select(WORDS).prop_map(str::to_owned)
}

pub(crate) fn identity() -> impl Strategy<Value = SpiffeId> {
    let part = || select(&["a", "b", "ab"][..]);
    (part(), part(), part())
        .prop_map(|(td, ns, sa)| format!("spiffe://{td}/ns/{ns}/sa/{sa}").parse().unwrap())
}

fn token() -> impl Strategy<Value = Token> {
    const NAMES: &[&[&str]] = &[&["aud"], &["azp"], &["x"], &["x", "y"], &["scope"]];
    let path = select(NAMES);
    let claims = prop::collection::vec(
        (
            path.prop_map(|p| p.iter().map(|s| (*s).to_owned()).collect()),
            prop_oneof![words(), Just("a b".to_owned())],
        ),
        0..4,
    );
    (select(ISSUERS), select(&["a", "b", "a/b", ""][..]), claims).prop_map(|(issuer, subject, claims)| {
        Token { issuer: issuer.into(), subject: subject.into(), claims }
    })
}

fn http() -> impl Strategy<Value = Http> {
    let header = (
        select(&["x", "y", "z"][..]).prop_map(str::to_owned),
        prop_oneof![6 => words(), 1 => Just(String::new()), 2 => select(&["a,b", "b, a ", ",", " a", "ab\t"][..]).prop_map(str::to_owned)],
    );
    let paths = prop_oneof![
        3 => select(PATHS).prop_map(|p| vec![p.to_owned()]),
        3 => select(PATHS).prop_map(meltemi_policy::http::readings),
        1 => subsequence(PATHS, 1..4).prop_map(|p| p.into_iter().map(str::to_owned).collect()),
    ];
    (
        select(METHODS),
        select(HOSTS),
        paths,
        (prop::collection::vec(header, 0..5), subsequence(&["x", "y"][..], 0..2)),
        prop::option::of(address()),
        prop::option::of(token()),
    )
        .prop_map(|(method, host, paths, headers, remote_ip, claims)| Http {
            method: method.into(),
            host: host.into(),
            paths,
            headers: Fields(headers.0, headers.1.into_iter().map(str::to_owned).collect()),
            remote_ip,
            claims,
        })
}

pub(crate) fn request() -> impl Strategy<Value = Request> {
    (
        prop::option::weighted(0.8, identity()),
        address(),
        address(),
        select(&[80u16, 81, 443][..]),
        prop::option::weighted(0.2, words()),
        prop::option::weighted(0.75, http()),
    )
        .prop_map(|(source, source_ip, destination_ip, port, sni, http)| Request {
            source,
            source_ip,
            destination_ip,
            port,
            sni,
            http,
        })
}

fn form(texts: impl Strategy<Value = String>) -> impl Strategy<Value = ValueMatch> {
    (texts, 0..8u8).prop_map(|(text, form)| {
        let text: Arc<str> = text.into();
        ValueMatch::String(match form {
            0 => StringMatch::Presence,
            1 | 2 if !text.is_empty() => StringMatch::Prefix(text),
            3 | 4 if !text.is_empty() => StringMatch::Suffix(text),
            _ if text.is_empty() => StringMatch::Presence,
            _ => StringMatch::Exact(text),
        })
    })
}

fn of(texts: &'static [&'static str]) -> BoxedStrategy<ValueMatch> {
    form(select(texts).prop_map(str::to_owned)).boxed()
}

fn principals() -> BoxedStrategy<ValueMatch> {
    // Whole principals, and pieces of them from either end.
    let piece = (identity(), 0..12usize, any::<bool>()).prop_map(|(id, length, front)| {
        let text = id.principal();
        let length = length.clamp(1, text.len());
        if front { text[..length].to_owned() } else { text[text.len() - length..].to_owned() }
    });
    prop_oneof![
        form(piece),
        identity().prop_map(|id| ValueMatch::String(StringMatch::Exact(id.principal().into())))
    ]
    .boxed()
}

fn field() -> impl Strategy<Value = (Attribute, BoxedStrategy<ValueMatch>)> {
    let range = || select(RANGES).prop_map(|r| ValueMatch::Cidr(r.parse::<IpNet>().unwrap())).boxed();
    let account = (select(&["a", "b"][..]), select(&["a", "b", "ab"][..]))
        .prop_map(|(ns, sa)| ValueMatch::ServiceAccount { namespace: ns.into(), name: sa.into() })
        .boxed();
    let paths = prop_oneof![
        2 => of(PATHS),
        1 => select(TEMPLATES).prop_map(|t| ValueMatch::PathTemplate(PathTemplate(t.into()))),
    ]
    .boxed();
    let claim = |path: &[&str]| Attribute::RequestAuthClaim(path.iter().map(|s| Arc::from(*s)).collect());
    let all: Vec<(Attribute, BoxedStrategy<ValueMatch>)> = vec![
        (Attribute::SourcePrincipal, principals()),
        (Attribute::SourcePrincipal, principals()),
        (Attribute::SourceNamespace, of(WORDS)),
        (Attribute::SourceServiceAccount, account),
        (Attribute::SourceTrustDomain, of(WORDS)),
        (Attribute::SourceIp, range()),
        (Attribute::RemoteIp, range()),
        (Attribute::RequestPrincipal, of(&["a/a", "a/b", "a", "b", "a/b/a", "a/", "/b", "b/a"])),
        (Attribute::DestinationIp, range()),
        (Attribute::DestinationPort, select(&[80u16, 81, 443][..]).prop_map(ValueMatch::Port).boxed()),
        (Attribute::ConnectionSni, of(WORDS)),
        (Attribute::Host, of(&["a", "A", "a.B", "[::1]", "b", "b:80", ".b", "b.", "b.:81"])),
        (Attribute::Header("host".into()), of(&["a", "A", "a.B", "b", "b:80", "b."])),
        (claim(&["scope"]), of(&["a", "b", "a b"])),
        (Attribute::Method, of(METHODS)),
        (Attribute::Path, paths.clone()),
        (Attribute::Path, paths),
        (Attribute::Header("x".into()), of(&["a", "b", "ab", "a,b", ","])),
        (Attribute::Header("y".into()), of(WORDS)),
        (Attribute::RequestAuthAudiences, of(WORDS)),
        (Attribute::RequestAuthPresenter, of(WORDS)),
        (claim(&["x"]), of(WORDS)),
        (claim(&["x", "y"]), of(WORDS)),
        (Attribute::Unsupported("k".into()), of(WORDS)),
    ];
    select(all)
}

fn predicate() -> impl Strategy<Value = Predicate> {
    field().prop_flat_map(|(attribute, values)| {
        (
            Just(attribute),
            prop::collection::vec(values.clone(), 0..3),
            prop::collection::vec(values.clone(), 0..2),
            values,
        )
            .prop_map(|(attribute, mut positive, negative, some)| {
                if positive.is_empty() && negative.is_empty() {
                    positive.push(some);
                }
                Predicate { attribute, values: positive, not_values: negative }
            })
    })
}

fn one_match() -> impl Strategy<Value = Match> {
    prop::collection::vec(predicate(), 0..4).prop_map(|all| {
        let mut predicates: Vec<Predicate> = Vec::new();
        for one in all {
            if !predicates.iter().any(|p| p.attribute == one.attribute) {
                predicates.push(one);
            }
        }
        Match { predicates }
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    let clause = prop::collection::vec(one_match(), 0..3)
        .prop_map(|matches| Clause { origin: ClauseOrigin::Unknown, matches });
    prop::collection::vec(clause, 0..4).prop_map(|clauses| Rule { clauses })
}

pub(crate) fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        5 => Just(Action::Allow),
        3 => Just(Action::Deny),
        1 => Just(Action::Audit),
        1 => select(&["p", "q"][..]).prop_map(|p| Action::Custom { provider: p.into() }),
    ]
}

/// A policy with a rule that multiplies to thousands of conjunctions, and one that looks at more headers than an index
/// has fields. Values are wide, so that it matches now and then.
pub(crate) fn wide_policy() -> impl Strategy<Value = Policy> {
    let clause = prop::collection::vec(one_match(), 12..16)
        .prop_map(|matches| Clause { origin: ClauseOrigin::Unknown, matches });
    // Often all matches of a clause look at one and the same attribute.
    let same = field().prop_flat_map(|(attribute, values)| {
        let value = prop::collection::vec(values, 1..3);
        prop::collection::vec((one_match(), value), 12..16).prop_map(move |all| {
            let with = |(mut one, values): (Match, Vec<ValueMatch>)| {
                one.predicates.retain(|p| p.attribute != attribute);
                one.predicates.push(Predicate { attribute: attribute.clone(), values, not_values: vec![] });
                one.predicates.rotate_right(1);
                one.predicates.truncate(2);
                one
            };
            Clause { origin: ClauseOrigin::Unknown, matches: all.into_iter().map(with).collect() }
        })
    });
    let clause = prop_oneof![1 => clause, 3 => same];
    let product = prop::collection::vec(clause, 3).prop_map(|clauses| Rule { clauses });
    let header = |name: String| {
        let attribute = Attribute::Header(name.as_str().into());
        let some = form(words()).prop_map(|value| (vec![], vec![value]));
        let any = Just((vec![ValueMatch::String(StringMatch::Presence)], vec![]));
        let predicate = prop_oneof![12 => some, 1 => any];
        predicate.prop_map(move |(values, not_values)| Predicate {
            attribute: attribute.clone(),
            values,
            not_values,
        })
    };
    let names = ["x", "y", "z"].map(str::to_owned).into_iter().chain((0..60).map(|i| format!("h{i}")));
    let headers = names.map(header).collect::<Vec<_>>().prop_map(|predicates| Rule {
        clauses: vec![Clause { origin: ClauseOrigin::Unknown, matches: vec![Match { predicates }] }],
    });
    (action(), prop::collection::vec(prop_oneof![product, headers, rule()], 1..4)).prop_map(
        |(action, rules)| Policy {
            name: NamespacedName::new("ns", "wide"),
            scope: Scope::Namespace,
            action,
            dry_run: false,
            rules,
        },
    )
}

/// A policy; its name comes from its place.
pub(crate) fn policy() -> impl Strategy<Value = Policy> {
    (action(), prop::bool::weighted(0.1), prop::collection::vec(rule(), 0..4)).prop_map(
        |(action, dry_run, rules)| Policy {
            name: NamespacedName::new("ns", "p"),
            scope: Scope::Namespace,
            action,
            dry_run,
            rules,
        },
    )
}
