// SPDX-License-Identifier: Apache-2.0
//! What is refused, and where the error points.

use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_model::authz::{
    Action, Attribute, Clause, ClauseOrigin, Match, PathTemplate, Policy, Predicate, Rule, Scope,
    StringMatch, ValueMatch,
};

use super::{MAX_CLAUSES, MAX_SEGMENTS, MAX_TEXT, MAX_VALUES, ValidPolicy};
use crate::set::PolicySet;

fn policy(action: Action, rules: Vec<Rule>) -> Policy {
    let name = NamespacedName::new("ns", "p");
    Policy { name, scope: Scope::Namespace, action, dry_run: false, rules }
}

fn one(attribute: Attribute, values: Vec<ValueMatch>, not_values: Vec<ValueMatch>) -> Policy {
    let clause = |matches| Clause { origin: ClauseOrigin::Unknown, matches };
    let wrong = Match { predicates: vec![Predicate { attribute, values, not_values }] };
    // The fault is in the second clause of the second rule.
    let rule = Rule { clauses: vec![clause(vec![]), clause(vec![Match::never(), wrong])] };
    policy(Action::Deny, vec![Rule::default(), rule])
}

fn text(form: fn(Arc<str>) -> StringMatch, text: &str) -> ValueMatch {
    ValueMatch::String(form(text.into()))
}

fn template(text: &str) -> ValueMatch {
    ValueMatch::PathTemplate(PathTemplate(text.into()))
}

#[test]
fn a_policy_that_is_not_valid_is_refused_by_name_rule_clause_and_field() {
    let cidr = || ValueMatch::Cidr("10.0.0.0/8".parse().unwrap());
    let account = |ns: &str, sa: &str| ValueMatch::ServiceAccount { namespace: ns.into(), name: sa.into() };
    let claim = |path: &[&str]| Attribute::RequestAuthClaim(path.iter().map(|p| Arc::from(*p)).collect());
    let exact = |t: &str| text(StringMatch::Exact, t);
    let path = |t: &str| (Attribute::Path, template(t), "paths");
    let long = "a".repeat(MAX_TEXT + 1);
    let deep = format!("/{{*}}{}", "/a".repeat(MAX_SEGMENTS));
    let cases = vec![
        (Attribute::SourcePrincipal, text(StringMatch::Prefix, ""), "principals"),
        (Attribute::SourcePrincipal, StringMatch::parse("**").into_value(), "principals"),
        (Attribute::SourcePrincipal, StringMatch::parse("***").into_value(), "principals"),
        (Attribute::SourceNamespace, text(StringMatch::Suffix, ""), "namespaces"),
        (Attribute::Host, exact(""), "hosts"),
        (Attribute::Host, exact(&long), "hosts"),
        (Attribute::Method, cidr(), "methods"),
        (Attribute::Method, template("/{*}"), "methods"),
        (Attribute::SourceIp, exact("10.0.0.1"), "ipBlocks"),
        (Attribute::RemoteIp, ValueMatch::Port(1), "remoteIpBlocks"),
        (Attribute::DestinationIp, account("a", "b"), "destination.ip"),
        (Attribute::DestinationPort, exact("80"), "ports"),
        (Attribute::SourceServiceAccount, exact("a/b"), "serviceAccounts"),
        (Attribute::SourceServiceAccount, account("", "b"), "serviceAccounts"),
        (Attribute::SourceServiceAccount, account("a", "b/c"), "serviceAccounts"),
        (Attribute::SourceServiceAccount, account("a", "*"), "serviceAccounts"),
        (Attribute::Header("X-Up".into()), exact("a"), "request.headers[X-Up]"),
        (Attribute::Header("".into()), exact("a"), "request.headers[]"),
        (Attribute::Header("a b".into()), exact("a"), "request.headers[a b]"),
        (claim(&[]), exact("a"), "request.auth.claims"),
        (claim(&["a", ""]), exact("a"), "request.auth.claims[a][]"),
        path("/a"),
        path("a/{*}"),
        path("/{**}/{*}"),
        path("/{**}/{**}"),
        path("/a{*}"),
        path("/{x}/{*}"),
        path("/{*}/*"),
        path("//{*}"),
        path("/a b/{*}"),
        path(&deep),
    ];
    for (attribute, value, field) in cases {
        for not in [false, true] {
            let (values, not_values) =
                if not { (vec![], vec![value.clone()]) } else { (vec![value.clone()], vec![]) };
            let error = ValidPolicy::new(one(attribute.clone(), values, not_values)).unwrap_err();
            assert_eq!((error.rule, error.clause), (Some(1), Some(1)), "{attribute:?} {value:?}");
            assert_eq!(
                (error.policy.to_string().as_str(), error.field.as_str()),
                ("ns/p", field),
                "{value:?}"
            );
        }
    }
    let empty = ValidPolicy::new(one(Attribute::Path, vec![], vec![])).unwrap_err();
    assert_eq!(
        empty.to_string(),
        "policy ns/p is not valid rule[1] clause[1]: paths: has neither values nor not-values"
    );
}

#[test]
fn limits_and_what_is_wrong_with_the_policy_itself() {
    let field = |policy: Policy| ValidPolicy::new(policy).unwrap_err().field;
    assert_eq!(field(policy(Action::Custom { provider: "".into() }, vec![])), "provider.name");
    assert_eq!(field(Policy { name: NamespacedName::new("ns", ""), ..policy(Action::Deny, vec![]) }), "name");
    let many = vec![Clause { origin: ClauseOrigin::Unknown, matches: vec![] }; MAX_CLAUSES + 1];
    assert_eq!(field(policy(Action::Deny, vec![Rule { clauses: many }])), "clauses");
    let ports = vec![ValueMatch::Port(1); MAX_VALUES + 1];
    assert_eq!(field(one(Attribute::DestinationPort, ports, vec![])), "ports");
    let twice = Predicate {
        attribute: Attribute::DestinationPort,
        values: vec![ValueMatch::Port(1)],
        not_values: vec![],
    };
    let twice = Match { predicates: vec![twice.clone(), twice] };
    let clause = Clause { origin: ClauseOrigin::To, matches: vec![twice] };
    assert_eq!(field(policy(Action::Deny, vec![Rule { clauses: vec![clause] }])), "ports");
}

#[test]
fn what_is_valid_is_taken() {
    let cases = [
        (Attribute::Path, template("/{*}/")),
        (Attribute::Path, template("/store/{**}/cart")),
        (Attribute::Path, template("/a~%!$&'()+,;:@=/{*}/{**}")),
        (Attribute::Path, text(StringMatch::Prefix, "/a*b")),
        (Attribute::Header(":authority".into()), text(StringMatch::Exact, "a")),
        (Attribute::SourceIp, ValueMatch::Cidr("10.1.2.3/8".parse().unwrap())),
        (Attribute::DestinationPort, ValueMatch::Port(0)),
        (Attribute::Unsupported("experimental.envoy.filters.x".into()), text(StringMatch::Exact, "")),
    ];
    for (attribute, value) in cases {
        assert!(ValidPolicy::new(one(attribute, vec![value.clone()], vec![])).is_ok(), "{value:?}");
    }
    let bad = Arc::new(one(Attribute::Path, vec![], vec![]));
    let good = Arc::new(policy(Action::Allow, vec![]));
    assert!(PolicySet::compile([good, bad]).is_err(), "one that is not valid is enough");
}

trait IntoValue {
    fn into_value(self) -> ValueMatch;
}

impl IntoValue for StringMatch {
    fn into_value(self) -> ValueMatch {
        ValueMatch::String(self)
    }
}
