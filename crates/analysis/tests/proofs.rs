// SPDX-License-Identifier: Apache-2.0
//! No random request contradicts an answer, and every witness is confirmed: by the engine, and by the naive evaluator that
//! follows the specification by the letter and shares no code with either.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use meltemi_analysis::who_can::{Grant, Question};
use meltemi_analysis::{
    Attached, Difference, Differences, Finding, Layer, Place, Witness, World, analyze, compare, who_can,
};
use meltemi_model::authz::{
    Action, Attribute, Clause, ClauseOrigin, Match, PathTemplate, Policy, Predicate, Rule, Scope,
    StringMatch, ValueMatch,
};
use meltemi_model::{NamespacedName, SpiffeId};
use meltemi_policy::{Claims, Facts, HttpFacts, PolicySet, ValidPolicy};
use meltemi_translate::security::{Authorization, Reference};
use proptest::prelude::*;
use proptest::sample::select;

#[path = "../../policy/tests/support/naive.rs"]
#[expect(dead_code, reason = "reports are no questions about all requests")]
mod naive;

fn place(layer: Layer) -> Place {
    Place {
        target: "Service ns/web".into(),
        enforced_at: "somewhere".into(),
        layer,
        port: 80,
        host: "web".into(),
        identities: vec!["td/ns/a/sa/x".into()],
        reach: None,
        ports: vec![],
        other_ports: vec![],
    }
}

fn text(values: &'static [&'static str]) -> BoxedStrategy<ValueMatch> {
    select(values).prop_map(|v| ValueMatch::String(StringMatch::parse(v))).boxed()
}

fn path() -> BoxedStrategy<ValueMatch> {
    let plain = text(&["/", "/a", "/a/*", "/a*", "*b", "*/b", "/a/b", "*", "/b/c"]);
    let template = select(&["/a/{*}", "/{*}/b", "/a/{**}", "/{**}/b", "/a/{*}/b/{**}"][..])
        .prop_map(|t| ValueMatch::PathTemplate(PathTemplate(t.into())));
    prop_oneof![3 => plain, 1 => template].boxed()
}

/// Attributes with values that often meet.
fn values(layer: Layer) -> BoxedStrategy<(Attribute, BoxedStrategy<ValueMatch>)> {
    let claim = |path: &[&str]| {
        Attribute::RequestAuthClaim(path.iter().map(|p| Arc::from(*p)).collect::<Vec<_>>().into())
    };
    let cidr = select(&["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0", "fd00::/8", "::/0"][..])
        .prop_map(|v| ValueMatch::Cidr(v.parse().unwrap()))
        .boxed();
    let port = select(&[80u16, 81, 443][..]).prop_map(ValueMatch::Port).boxed();
    let account = select(&[("a", "x"), ("a", "y"), ("b", "x")][..])
        .prop_map(|(ns, sa)| ValueMatch::ServiceAccount { namespace: ns.into(), name: sa.into() })
        .boxed();
    let mut all = vec![
        (
            Attribute::SourcePrincipal,
            text(&["td/ns/a/sa/x", "td/ns/a/sa/y", "td/ns/a/*", "td/*", "*/sa/x", "*", "td/ns/a/sa/x/*"]),
        ),
        (Attribute::SourceNamespace, text(&["a", "b", "a*", "*b", "*", "a/sa/x"])),
        (Attribute::SourceTrustDomain, text(&["td", "t*", "*d", "*"])),
        (Attribute::SourceServiceAccount, account),
        (Attribute::SourceIp, cidr.clone()),
        (Attribute::DestinationPort, port),
    ];
    if layer == Layer::Request {
        all.extend([
            (Attribute::Method, text(&["GET", "POST", "G*", "*T", "*", "get"])),
            (Attribute::Path, path()),
            (Attribute::Path, path()),
            (Attribute::Host, text(&["a.com", "A.com", "*.com", "a.com:80", "a*", "*", "*:80"])),
            (Attribute::Host, text(&["b.com.", "b.com:80", "*.com.:80", "a.com.*"])),
            (Attribute::Header("host".into()), text(&["a.com", "*.com", "b.com:80", "a*", "*"])),
            (Attribute::Header("h".into()), text(&["1", "2", "1*", "*1", "*"])),
            (claim(&["scope"]), text(&["a", "b", "*"])),
            (Attribute::RemoteIp, cidr.clone()),
            (Attribute::DestinationIp, cidr),
            (Attribute::ConnectionSni, text(&["a.com", "*.com", "*"])),
            (Attribute::RequestPrincipal, text(&["i/s", "i/*", "*/s", "*"])),
            (claim(&["g"]), text(&["a", "b", "a*", "*"])),
            (claim(&["g", "h"]), text(&["a", "*"])),
            (Attribute::RequestAuthPresenter, text(&["a", "b*"])),
            (Attribute::RequestAuthAudiences, text(&["a", "*"])),
            (Attribute::Unsupported("u".into()), text(&["a"])),
        ]);
    } else {
        all.push((Attribute::Method, text(&["GET"])));
    }
    select(all).boxed()
}

fn predicate(layer: Layer) -> BoxedStrategy<Predicate> {
    values(layer)
        .prop_flat_map(|(attribute, value)| {
            let some = prop::collection::vec(value.clone(), 0..3);
            let none = prop::collection::vec(value, 0..2);
            (Just(attribute), some, none)
        })
        .prop_filter_map("says nothing", |(attribute, values, not_values)| {
            let says = !values.is_empty() || !not_values.is_empty();
            says.then_some(Predicate { attribute, values, not_values })
        })
        .boxed()
}

fn rule(layer: Layer) -> BoxedStrategy<Rule> {
    let one = prop::collection::vec(predicate(layer), 0..3).prop_map(|mut predicates: Vec<Predicate>| {
        let mut seen = Vec::new();
        predicates.retain(|p| {
            !seen.contains(&p.attribute) && {
                seen.push(p.attribute.clone());
                true
            }
        });
        Match { predicates }
    });
    let clause = prop::collection::vec(one, 1..3)
        .prop_map(|matches| Clause { origin: ClauseOrigin::Unknown, matches });
    prop::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses }).boxed()
}

fn policies(layer: Layer) -> BoxedStrategy<Vec<Attached>> {
    let action = prop_oneof![3 => Just(Action::Allow), 2 => Just(Action::Deny), 1 => Just(Action::Audit)];
    let selector = prop_oneof![
        3 => Just(vec![]),
        1 => Just(vec![vec![("app".to_owned(), "a".to_owned(), true)]]),
        1 => Just(vec![vec![("app".to_owned(), "b".to_owned(), true)], vec![("v".to_owned(), "1".to_owned(), true)]]),
        1 => Just(vec![vec![("app".to_owned(), "a".to_owned(), false), ("v".to_owned(), "1".to_owned(), false)]]),
    ];
    let one = (action, prop::collection::vec(rule(layer), 0..3), selector, any::<u8>());
    prop::collection::vec(one, 0..4)
        .prop_map(|all| {
            let policy =
                |(index, (action, rules, guard, dry)): (usize, (Action, Vec<Rule>, _, u8))| Attached {
                    policy: ValidPolicy::new(Policy {
                        name: NamespacedName::new("ns", format!("p{index}")),
                        scope: Scope::Namespace,
                        action,
                        dry_run: dry < 10,
                        rules,
                    })
                    .unwrap(),
                    guard,
                };
            all.into_iter().enumerate().map(policy).collect()
        })
        .boxed()
}

/// The second set: often the first with something changed.
fn pair(layer: Layer) -> BoxedStrategy<(Vec<Attached>, Vec<Attached>)> {
    (policies(layer), policies(layer), 0..4u8, any::<prop::sample::Index>())
        .prop_map(|(old, other, how, at)| {
            let mut new = old.clone();
            match how {
                0 => new = other,
                1 if !new.is_empty() => {
                    new.remove(at.index(new.len()));
                }
                2 => new.extend(other.into_iter().take(1)),
                _ if !new.is_empty() => {
                    let at = at.index(new.len());
                    let mut policy = Policy::clone(&new[at].policy);
                    policy.rules.pop();
                    new[at].policy = ValidPolicy::new(policy).unwrap();
                }
                _ => {}
            }
            (old, new)
        })
        .boxed()
}

/// A canonical request of the same small alphabets.
fn request(layer: Layer) -> BoxedStrategy<Witness> {
    let from = select(
        &["td/ns/a/sa/x", "td/ns/a/sa/y", "td/ns/b/sa/x", "tx/ns/ab/sa/z", "other/ns/c/sa/x", "plaintext"][..],
    );
    let ip = select(&["10.1.2.3", "10.1.0.9", "10.9.9.9", "9.9.9.9", "fd00::1", "2001::1"][..]);
    let port = select(&[80u16, 81, 443, 9][..]);
    let labels = (select(&[None, Some("a"), Some("b")][..]), select(&[None, Some("1"), Some("2")][..]));
    let method = select(&["GET", "POST", "GO", "PUT", "X"][..]);
    let path = select(
        &["/", "/a", "/a/", "/ab", "/a/b", "/b", "/a/x", "/x/b", "/a/x/b/", "/a/x/b/c", "/b/c", "/a/b/c/b"][..],
    );
    let host =
        select(&["a.com", "a.com:80", "a.com.", "b.com:80", "b.com.:80", "a", "c", "", "a.com:81"][..]);
    let header = select(&[None, Some(""), Some("1"), Some("2"), Some("12"), Some("21")][..]);
    let token = select(&[None, Some("i/s"), Some("i/t"), Some("j/s")][..]);
    let claims = prop::collection::vec(select(&["a", "b", "ab", ""][..]), 0..3);
    let some = || prop::collection::vec(select(&["a", "b"][..]), 0..2);
    let other = select(&["10.1.2.3", "10.9.9.9", "fd00::1"][..]);
    let sni = select(&[None, Some("a.com"), Some("b.com"), Some("c")][..]);
    (
        (from, ip, port, labels),
        (method, path, host, header),
        (token, claims, some(), some(), some()),
        (other, sni),
    )
        .prop_map(move |((from, ip, port, labels), (method, path, host, header), token, (other, sni))| {
            let (token, claims, aud, azp, nested) = token;
            let ip = Some(ip.parse().unwrap());
            let mut out = Witness { from: from.into(), source_ip: ip, port, ..Witness::default() };
            out.destination_ip = Some(other.parse().unwrap());
            let pairs = [("app", labels.0), ("v", labels.1)];
            out.labels = pairs.into_iter().filter_map(|(k, v)| Some((k.into(), v?.into()))).collect();
            if layer == Layer::Request {
                out.method = Some(method.into());
                out.path = Some(path.into());
                out.host = Some(host.into());
                out.remote_ip = out.destination_ip;
                out.sni = sni.map(Into::into);
                out.headers = header.map(|h| ("h".to_owned(), h.to_owned())).into_iter().collect();
                out.request_principal = token.map(Into::into);
                let texts = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect::<Vec<_>>();
                let scope = claims.join(" ");
                let claims = [
                    ("g", texts(claims)),
                    ("scope", Some(scope).filter(|s| !s.is_empty()).into_iter().collect()),
                    ("aud", texts(aud)),
                    ("azp", texts(azp)),
                    ("g.h", texts(nested)),
                ];
                out.claims = claims
                    .into_iter()
                    .filter(|(_, v)| !v.is_empty())
                    .map(|(k, v)| (k.to_owned(), v))
                    .collect();
            }
            out
        })
        .boxed()
}

fn holds(guard: &meltemi_analysis::Guard, labels: &BTreeMap<String, String>) -> bool {
    guard.iter().all(|any| any.iter().any(|(k, v, equal)| (labels.get(k) == Some(v)) == *equal))
}

/// By the specification. The facts are read here anew: the path has one reading, the header one value.
fn specified(policies: &[Policy], request: &Witness) -> naive::Verdict {
    let parsed = SpiffeId::parse(&format!("spiffe://{}", request.from)).ok();
    assert_eq!(parsed.is_none(), request.from == "plaintext", "{request}");
    let nowhere: IpAddr = "10.0.0.1".parse().unwrap();
    let paths: Vec<String> = request.path.clone().into_iter().collect();
    let token = request.request_principal.is_some() || !request.claims.is_empty();
    let source_ip = request.source_ip.unwrap_or(nowhere);
    let http = request.method.as_ref().map(|method| HttpFacts {
        method,
        host: request.host.as_deref().unwrap_or_default(),
        paths: &paths,
        headers: request,
        remote_ip: Some(request.remote_ip.unwrap_or(source_ip)),
        claims: token.then_some(request as &dyn Claims),
    });
    let facts = Facts {
        source: parsed.as_ref(),
        source_ip,
        destination_ip: request.destination_ip.unwrap_or(nowhere),
        destination_port: request.port,
        sni: request.sni.as_deref(),
        http,
    };
    naive::judge(policies, false, &facts, &[])
}

/// Whether a request is allowed: the engine and the specification say the same.
fn allowed(policies: &[Attached], request: &Witness) -> bool {
    let applies: Vec<Policy> = policies
        .iter()
        .filter(|a| holds(&a.guard, &request.labels))
        .map(|a| Policy::clone(&a.policy))
        .collect();
    let specified = match specified(&applies, request) {
        naive::Verdict::Allow(_) => true,
        naive::Verdict::Deny(_) => false,
        other => panic!("{other:?}: no policy here asks anybody"),
    };
    let set = PolicySet::compile(applies.into_iter().map(Into::into)).unwrap();
    let decided = request.decide(&set).unwrap().is_allow();
    assert_eq!(decided, specified, "{request}: the engine and the specification differ");
    decided
}

/// Whether a request is inside of what was reported.
fn inside(reported: &Difference, request: &Witness, both: &[&[Attached]]) -> bool {
    let Some(rule) = &reported.within else { return true };
    // In the sense of the policy: what cannot be seen matches in a DENY and does not in an ALLOW.
    let named =
        both.iter().flat_map(|p| p.iter()).filter(|a| Some(a.policy.name.to_string()) == reported.policy);
    named.into_iter().any(|a| {
        let policy = Policy { rules: vec![rule.clone()], dry_run: false, ..Policy::clone(&a.policy) };
        let denies = policy.action == Action::Deny;
        let alone = Attached { policy: ValidPolicy::new(policy).unwrap(), guard: a.guard.clone() };
        holds(&a.guard, &request.labels) && allowed(&[alone], request) != denies
    })
}

fn check(
    layer: Layer,
    old: &[Attached],
    new: &[Attached],
    requests: &[Witness],
) -> Result<(), TestCaseError> {
    let found: Differences = compare(&place(layer), old, new);
    prop_assert!(found.unknown.is_empty(), "{:?}", found.unknown);
    for (list, was, is) in [(&found.newly_allowed, old, new), (&found.newly_denied, new, old)] {
        for difference in list {
            let w = &difference.witness;
            prop_assert!(!allowed(was, w) && allowed(is, w), "not so: {difference:?}");
            prop_assert!(inside(difference, w, &[old, new]), "outside of its condition: {difference:?}");
        }
    }
    for request in requests {
        let (was, is) = (allowed(old, request), allowed(new, request));
        let list = if is { &found.newly_allowed } else { &found.newly_denied };
        if was != is {
            let told = list.iter().any(|d| inside(d, request, &[old, new]));
            prop_assert!(told, "{request} flips to {is}, reported: {list:?}");
        }
    }
    Ok(())
}

/// Policies attached to one Service; every client of the requests is a ServiceAccount that exists.
fn world(policies: &[Attached]) -> World {
    let mut world = World::default();
    world.mesh.trust_domain = "td".parse().unwrap();
    for (namespace, name) in [("a", "x"), ("a", "y"), ("b", "x")] {
        world.accounts.insert(NamespacedName::new(namespace, name));
    }
    for attached in policies {
        let policy = attached.policy.clone();
        let read = Authorization {
            policy: policy.clone(),
            selector: None,
            targets: vec![Reference::Service("web".into())],
            http: Default::default(),
            aliased: false,
            faults: Vec::new(),
        };
        world.policies.insert(policy.name.clone(), read);
    }
    world
}

/// Who may reach the Service that the policies are attached to.
fn granted(policies: &[Attached]) -> Vec<Grant> {
    let to = NamespacedName::new("ns", "web");
    let found =
        who_can(&world(policies), &Question { to, port: Some(80), method: None, path: None }).unwrap();
    // Without policies there is no waypoint, and the node proxy lets everybody in.
    let door = found.doors.into_iter().next().unwrap();
    assert_eq!(door.unknown, Vec::<String>::new());
    door.grants
}

fn names(grant: &Grant, from: &str) -> bool {
    match from {
        "plaintext" => grant.plaintext,
        // Somebody of another kind is in words only.
        _ if !from.starts_with("td/") => grant.any_identity || !grant.identities.is_empty(),
        _ => grant.any_identity || grant.identities.iter().any(|i| i == from),
    }
}

/// The policies without a rule, of those that a finding is about.
fn without(policies: &[Attached], finding: &Finding) -> Vec<Attached> {
    let number = finding.message.strip_prefix("rule[").and_then(|m| m.split(']').next()).unwrap();
    let mut without = policies.to_vec();
    for attached in without.iter_mut().filter(|a| finding.origin.ends_with(&a.policy.name.to_string())) {
        let mut policy = Policy::clone(&attached.policy);
        policy.rules.remove(number.parse::<usize>().unwrap());
        attached.policy = ValidPolicy::new(policy).unwrap();
    }
    without
}

fn everywhere(policies: Vec<Attached>) -> Vec<Attached> {
    policies.into_iter().map(|a| Attached { guard: vec![], ..a }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn connections(
        (old, new) in pair(Layer::Connection),
        requests in prop::collection::vec(request(Layer::Connection), 30),
    ) {
        check(Layer::Connection, &old, &new, &requests)?;
    }

    #[test]
    fn who_can_names_those_who_may_and_nobody_else(
        policies in policies(Layer::Request),
        requests in prop::collection::vec(request(Layer::Request), 30),
    ) {
        let policies = everywhere(policies);
        let grants = granted(&policies);
        for grant in &grants {
            for witness in &grant.witnesses {
                prop_assert!(allowed(&policies, witness), "{witness} is not allowed");
            }
            // Whoever is named has a request; of several in words, one is enough.
            for identity in grant.identities.iter().filter(|i| !i.contains(' ')) {
                prop_assert!(grant.witnesses.iter().any(|w| w.from == *identity), "{identity}: {grant:?}");
            }
            let nobody = grant.witnesses.iter().any(|w| w.from == "plaintext");
            prop_assert_eq!(nobody, grant.plaintext);
            let somebody = grant.any_identity || !grant.identities.is_empty();
            prop_assert_eq!(grant.witnesses.iter().any(|w| w.from != "plaintext"), somebody);
        }
        for mut request in requests {
            request.port = 80;
            if allowed(&policies, &request) {
                prop_assert!(grants.iter().any(|g| names(g, &request.from)), "{request} is allowed");
            }
        }
    }

    #[test]
    fn a_rule_that_changes_nothing_can_go(
        policies in policies(Layer::Request),
        requests in prop::collection::vec(request(Layer::Request), 30),
    ) {
        let policies = everywhere(policies);
        let found = analyze(&world(&policies), None);
        for finding in found.iter().filter(|f| ["MLT0101", "MLT0102"].contains(&f.code)) {
            let without = without(&policies, finding);
            for request in &requests {
                prop_assert_eq!(allowed(&policies, request), allowed(&without, request), "{}", finding);
            }
            let found = compare(&place(Layer::Request), &policies, &without);
            prop_assert!(found.is_same(), "{finding}: {found:?}");
        }
    }

    #[test]
    fn requests(
        (old, new) in pair(Layer::Request),
        requests in prop::collection::vec(request(Layer::Request), 30),
    ) {
        check(Layer::Request, &old, &new, &requests)?;
    }
}
