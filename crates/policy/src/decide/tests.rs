// SPDX-License-Identifier: Apache-2.0
//! Verdicts in tables: order of actions, empty parts, absent identities, and requests that try to get around a policy.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use meltemi_model::authz::{
    Action, Attribute, Clause, ClauseOrigin, Match, Policy, Predicate, Rule, Scope, StringMatch, ValueMatch,
};
use meltemi_model::{NamespacedName, SpiffeId};

use super::{Decision, decide};
use crate::check::ValidPolicy;
use crate::explain::explain;
use crate::facts::{Facts, Headers, HttpFacts};
use crate::http::{Normalization, normalize, readings};
use crate::set::PolicySet;

fn texts(values: &[&str]) -> Vec<ValueMatch> {
    values.iter().map(|v| ValueMatch::String(StringMatch::parse(v))).collect()
}

fn predicate(attribute: Attribute, values: &[&str], not_values: &[&str]) -> Predicate {
    Predicate { attribute, values: texts(values), not_values: texts(not_values) }
}

fn rule(predicates: Vec<Predicate>) -> Rule {
    Rule { clauses: vec![Clause { origin: ClauseOrigin::From, matches: vec![Match { predicates }] }] }
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Arc<Policy> {
    let name = NamespacedName::new("ns", name);
    Arc::new(Policy { name, scope: Scope::Namespace, action, dry_run: false, rules })
}

fn l4(source: Option<&SpiffeId>) -> Facts<'_> {
    let ip = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    Facts { source, source_ip: ip, destination_ip: ip, destination_port: 80, sni: None, http: None }
}

#[test]
fn the_order_of_actions_and_the_meaning_of_nothing() {
    let a = SpiffeId::parse("spiffe://cluster.local/ns/foo/sa/a").unwrap();
    let principal = |p: &str| rule(vec![predicate(Attribute::SourcePrincipal, &[p], &[])]);
    let allow = |rules| policy("allow", Action::Allow, rules);
    let deny = |rules| policy("deny", Action::Deny, rules);
    let mine = "cluster.local/ns/foo/sa/a";
    let cases = vec![
        // what, policies, allowed with identity, allowed in plaintext
        ("nothing", vec![], true, true),
        ("allow nothing", vec![allow(vec![])], false, false),
        ("allow everything", vec![allow(vec![Rule::default()])], true, true),
        ("deny everything", vec![deny(vec![Rule::default()])], false, false),
        ("deny nothing", vec![deny(vec![])], true, true),
        ("allow mine", vec![allow(vec![principal(mine)])], true, false),
        ("allow prefix", vec![allow(vec![principal("cluster.local/ns/foo/*")])], true, false),
        ("allow suffix", vec![allow(vec![principal("*/sa/a")])], true, false),
        ("allow another", vec![allow(vec![principal("cluster.local/ns/foo/sa/b")])], false, false),
        ("no regular expressions", vec![allow(vec![principal("cluster.local/ns/fo./sa/a")])], false, false),
        ("anybody authenticated", vec![allow(vec![principal("*")])], true, false),
        ("deny beats allow", vec![allow(vec![Rule::default()]), deny(vec![principal(mine)])], false, true),
        (
            "plaintext is not the absent",
            vec![deny(vec![rule(vec![predicate(Attribute::SourcePrincipal, &[], &["*"])])])],
            true,
            false,
        ),
        (
            "custom cannot be asked",
            vec![policy("c", Action::Custom { provider: "x".into() }, vec![Rule::default()])],
            false,
            false,
        ),
        ("audit never decides", vec![policy("a", Action::Audit, vec![Rule::default()])], true, true),
        (
            "an L7 field never widens an ALLOW",
            vec![allow(vec![rule(vec![predicate(Attribute::Method, &["GET"], &[])])])],
            false,
            false,
        ),
        (
            "nor narrows a DENY",
            vec![deny(vec![rule(vec![predicate(Attribute::Method, &["GET"], &[])])])],
            false,
            false,
        ),
        (
            "an unknown key",
            vec![allow(vec![rule(vec![predicate(Attribute::Unsupported("x".into()), &["y"], &[])])])],
            false,
            false,
        ),
    ];
    for (what, policies, with, without) in cases {
        let set = PolicySet::compile(policies).unwrap();
        assert_eq!(decide(&set, &l4(Some(&a))).is_allow(), with, "{what}");
        assert_eq!(decide(&set, &l4(None)).is_allow(), without, "{what}, plaintext");
    }
}

#[test]
fn a_missing_policy_is_not_skipped() {
    let name = NamespacedName::new("ns", "late");
    let allow = ValidPolicy::new(policy("allow", Action::Allow, vec![Rule::default()])).unwrap();
    let set = PolicySet::new(vec![allow], vec![name]);
    assert_eq!(decide(&set, &l4(None)), Decision::Undecided { missing: 0 });
    assert_eq!(explain(&set, &l4(None)).text, "policy ns/late applies but is not known yet");
}

struct Fields(Vec<(&'static str, &'static str)>);

impl Headers for Fields {
    fn each(&self, name: &str, with: &mut dyn FnMut(&str)) {
        self.0.iter().filter(|(n, _)| *n == name).for_each(|(_, v)| with(v));
    }
}

fn allowed(
    set: &PolicySet,
    method: &str,
    host: &str,
    path: &str,
    headers: &[(&'static str, &'static str)],
) -> bool {
    let headers = Fields(headers.to_vec());
    let paths = readings(&normalize(path, Normalization::Base).unwrap());
    let http = HttpFacts { method, host, paths: &paths, headers: &headers, remote_ip: None, claims: None };
    decide(set, &Facts { http: Some(http), ..l4(None) }).is_allow()
}

#[test]
fn ways_around_a_policy() {
    let deny = |predicates| PolicySet::compile([policy("p", Action::Deny, vec![rule(predicates)])]).unwrap();
    let allow =
        |predicates| PolicySet::compile([policy("p", Action::Allow, vec![rule(predicates)])]).unwrap();
    let p1 = deny(vec![predicate(Attribute::Path, &["/admin", "/admin/*"], &[])]);
    let p2 = allow(vec![
        predicate(Attribute::Path, &["/public/*"], &[]),
        predicate(Attribute::Method, &["GET"], &[]),
    ]);
    let p3 = deny(vec![predicate(Attribute::Header("x-block".into()), &["1"], &[])]);
    let p4 = allow(vec![predicate(Attribute::Header("x-tenant".into()), &["a"], &[])]);
    let p5 = deny(vec![predicate(Attribute::Host, &["secret.com"], &[])]);
    let p10 = deny(vec![predicate(Attribute::Method, &["DELETE"], &[])]);
    for path in [
        "/admin",
        "//admin",
        "/%2Fadmin",
        "/x%2f..%2fadmin",
        "/%61dmin",
        "/admin?x=1",
        "/admin?",
        "/admin/",
        "/public/../admin",
        "/admin;x=1",
        "/a\\..\\admin",
    ] {
        assert!(!allowed(&p1, "GET", "h", path, &[]), "{path}");
    }
    assert!(allowed(&p1, "GET", "h", "/ADMIN", &[]) && allowed(&p1, "GET", "h", "/administrator", &[]));
    for path in [
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public\\..\\admin",
        "/public/..%2fadmin",
        "/public/..;/admin",
    ] {
        assert!(!allowed(&p2, "GET", "h", path, &[]), "{path}");
    }
    assert!(allowed(&p2, "GET", "h", "/public/x", &[]) && !allowed(&p2, "GeT", "h", "/public/x", &[]));
    assert!(!allowed(&p3, "GET", "h", "/", &[("x-block", "0"), ("x-block", "1")]));
    assert!(allowed(&p3, "GET", "h", "/", &[("x-block", "0")]) && allowed(&p3, "GET", "h", "/", &[]));
    assert!(!allowed(&p4, "GET", "h", "/", &[("x-tenant", "a"), ("x-tenant", "b")]));
    assert!(allowed(&p4, "GET", "h", "/", &[("x-tenant", "a")]) && !allowed(&p4, "GET", "h", "/", &[]));
    for host in ["secret.com", "SECRET.com", "secret.com.", "secret.com:8080"] {
        assert!(!allowed(&p5, "GET", host, "/", &[]), "{host}");
    }
    assert!(allowed(&p5, "GET", "public.com", "/", &[]));
    assert!(!allowed(&p10, "DELETE", "h", "/", &[]) && allowed(&p10, "GET", "h", "/", &[]));
}

#[test]
fn a_denial_names_the_closest_rule_and_the_clause_that_failed() {
    let a = SpiffeId::parse("spiffe://cluster.local/ns/default/sa/curl").unwrap();
    let wanted = "cluster.local/ns/default/sa/bookinfo-gateway-istio";
    let set = PolicySet::compile([policy(
        "productpage-ztunnel",
        Action::Allow,
        vec![rule(vec![predicate(Attribute::SourcePrincipal, &[wanted], &[])])],
    )])
    .unwrap();
    let why = explain(&set, &l4(Some(&a)));
    assert_eq!(why.policy.unwrap().to_string(), "ns/productpage-ztunnel");
    assert_eq!(why.clause.unwrap(), format!("from(principals=[{wanted}])"));
}
