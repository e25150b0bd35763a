// SPDX-License-Identifier: Apache-2.0
//! What the author of a policy should know of it: where its verdict differs from Istio's, and what it does not catch.

use meltemi_model::authz::{Action, Attribute, Clause, Policy, Predicate, Rule};

use super::authorization::Authorization;
use super::layer4::fits;
use crate::condition::Condition;

/// Type of the condition that says where a verdict differs from Istio's.
pub const DIFFERS: &str = "meltemi.dev/DiffersFromIstio";
/// Type of the condition that says what a policy does not catch.
pub const ESCAPES: &str = "meltemi.dev/Escapes";

/// Sentences as one condition; none without sentences.
fn say(kind: &str, reason: &str, sentences: &[String]) -> Option<Condition> {
    (!sentences.is_empty()).then(|| Condition::yes(kind, reason, format!("{}.", sentences.join(". "))))
}

/// Where the verdict of a policy differs from Istio's, at the places where it is enforced.
pub fn differs(authorization: &Authorization, at_node: bool, at_gateway: bool) -> Option<Condition> {
    let mut out: Vec<String> = authorization
        .faults
        .iter()
        .map(|fault| {
            format!("The policy is not valid, and what cannot be read of it lets nothing through ({fault})")
        })
        .collect();
    if at_node {
        node(authorization, &mut out);
    }
    if at_gateway {
        gateway(&authorization.policy, &mut out);
    }
    // What is weaker is said first, and by the reason.
    let weaker = if at_gateway { weaker(&authorization.policy) } else { Vec::new() };
    let reason = if weaker.is_empty() { "FailsClosed" } else { WEAKER };
    say(DIFFERS, reason, &[weaker, out].concat())
}

/// Reason of [`DIFFERS`] where a policy stops less than in Istio.
const WEAKER: &str = "Weaker";

/// How a policy stops less than at Istio's waypoint or gateway.
fn weaker(policy: &Policy) -> Vec<String> {
    let remote = |p: &Predicate| p.attribute == Attribute::RemoteIp;
    let has =
        |rule: &&Rule| rule.clauses.iter().flat_map(|c| &c.matches).any(|m| m.predicates.iter().any(remote));
    let rules: Vec<String> = policy
        .rules
        .iter()
        .zip(0..)
        .filter(|(rule, _)| has(rule))
        .map(|(_, i): (_, usize)| i.to_string())
        .collect();
    if rules.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "Rule {}: remoteIpBlocks and remote.ip are weaker than in Istio: they see the address of the direct peer, which may be \
         a gateway; x-forwarded-for and numTrustedProxies are not taken into account",
        rules.join(", ")
    )]
}

fn node(authorization: &Authorization, out: &mut Vec<String>) {
    let policy = &authorization.policy;
    for (index, rule) in policy.rules.iter().enumerate() {
        match policy.action {
            Action::Deny => out.extend(node_denies(rule).map(|why| format!("Rule {index}: {why}"))),
            Action::Allow if domains_beside_others(rule) => out.push(format!(
                "Rule {index}: a node proxy cannot be told of trustDomains, so the rule allows nothing there; Istio's \
                 ignores the field"
            )),
            _ => {}
        }
    }
    if authorization.aliased {
        out.push(
            "Identities are meant in every trust domain alias at node proxies too; Istio's take them as written".into(),
        );
    }
    if authorization.selects_with_nothing() {
        out.push(
            "The empty selector selects every workload; Istio's node proxies apply the policy to none".into(),
        );
    }
}

/// How a DENY rule reaches further than at Istio's node proxy, which skips what has lost its conditions.
fn node_denies(rule: &Rule) -> Option<&'static str> {
    let left = |clause: &Clause| {
        let fit = |p: &Predicate| fits(clause.origin, &p.attribute);
        clause.matches.iter().filter(|m| m.predicates.iter().any(fit)).count()
    };
    let lost = |clause: &&Clause| left(clause) < clause.matches.len();
    if rule.clauses.iter().filter(lost).any(|clause| left(clause) == 0) {
        return Some(
            "without what needs HTTP, a node proxy denies all that remains; Istio's would not apply the rule",
        );
    }
    let narrower = "without what needs HTTP, a node proxy denies all that remains; Istio's would leave out the alternatives \
                    that need it";
    rule.clauses.iter().any(|clause| lost(&clause)).then_some(narrower)
}

/// Whether Istio would take a rule with trust domains for one without: it looks at something else as well, and at
/// nothing that needs HTTP.
fn domains_beside_others(rule: &Rule) -> bool {
    let domain = |p: &&Predicate| p.attribute == Attribute::SourceTrustDomain;
    let named = rule.clauses.iter().flat_map(|c| &c.matches).any(|m| m.predicates.iter().any(|p| domain(&p)));
    let rest = rule.clauses.iter().all(|clause| {
        let others = clause.matches.iter().flat_map(|m| &m.predicates).filter(|p| !domain(p));
        others.clone().count() > 0 && others.into_iter().all(|p| fits(clause.origin, &p.attribute))
    });
    named && rest
}

fn gateway(policy: &Policy, out: &mut Vec<String>) {
    let predicates =
        policy.rules.iter().flat_map(|r| &r.clauses).flat_map(|c| &c.matches).flat_map(|m| &m.predicates);
    let (mut paths, mut headers, mut hosts, mut unknown) = (false, false, false, Vec::new());
    for predicate in predicates {
        match &predicate.attribute {
            Attribute::Path => paths = true,
            Attribute::Host => hosts = true,
            Attribute::Header(name) if matches!(&**name, "host" | ":authority") => hosts = true,
            Attribute::Header(_) => headers = true,
            Attribute::Unsupported(key) if !unknown.contains(key) => unknown.push(key.clone()),
            _ => {}
        }
    }
    if paths {
        out.push(
            "A path that can be read in several ways is judged in all of them: a DENY matches any, an ALLOW needs all".into(),
        );
    }
    if hosts {
        out.push(
            "A host is compared as it was sent, and with values of a DENY and not-values of an ALLOW also without its port and \
             without a dot at its end"
                .into(),
        );
    }
    if headers {
        out.push(
            "Each value of a repeated header is judged, as it was sent and as it is forwarded: a DENY matches any, an ALLOW \
             needs all; values of a DENY and not-values of an ALLOW are looked for in lists as well"
                .into(),
        );
    }
    for key in unknown {
        out.push(format!("{key} cannot be evaluated: an ALLOW never matches by it, a DENY always does"));
    }
    if let Action::Custom { provider } = &policy.action {
        out.push(format!("Where the policy judges a connection without a request, provider {provider} is not asked: what it matches is denied"));
    }
}

/// Where traffic may pass a policy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Passages<'a> {
    /// Workloads that node proxies enforce it for take plaintext.
    pub plaintext: bool,
    /// Waypoints of the Services that those workloads belong to.
    pub through: &'a [String],
    /// Services that waypoints enforce it for, with those waypoints, whose Pods can be reached in other ways.
    pub around: &'a [(String, String)],
}

/// What a policy does not catch.
pub fn escapes(authorization: &Authorization, passages: Passages<'_>) -> Option<Condition> {
    let Passages { plaintext, through, around } = passages;
    let policy = &authorization.policy;
    let (mut reasons, mut out) = (Vec::new(), Vec::new());
    let rules = |rules: Vec<usize>| rules.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let identified: Vec<usize> = denies_by(policy, of_identity).collect();
    if plaintext && !identified.is_empty() {
        reasons.push("Plaintext");
        out.push(format!(
            "Rule {} denies by identity, which plaintext has none of: it passes until a PeerAuthentication is STRICT",
            rules(identified)
        ));
    }
    let by_source: Vec<usize> = denies_by(policy, |a| of_identity(a) || *a == Attribute::SourceIp).collect();
    if !through.is_empty() && !by_source.is_empty() {
        reasons.push("ThroughWaypoint");
        out.push(format!(
            "Rule {} denies by source, and of clients that come through waypoint {} a node proxy sees the waypoint only: \
             they pass, unless a policy with targetRefs denies them there",
            rules(by_source),
            through.join(", ")
        ));
    }
    if !around.is_empty() {
        reasons.push("AroundWaypoint");
        out.extend(around.iter().map(past));
    }
    say(ESCAPES, &reasons.join("And"), &out)
}

/// What a policy of any kind that waypoints enforce does not catch.
pub fn around(around: &[(String, String)]) -> Option<Condition> {
    say(ESCAPES, "AroundWaypoint", &around.iter().map(past).collect::<Vec<_>>())
}

fn past((service, waypoint): &(String, String)) -> String {
    format!(
        "Connections to Pods of Service {service} that do not pass waypoint {waypoint}, or that are addressed there to \
         another Service, are not judged by this policy"
    )
}

/// Attributes that only a peer with an identity has.
fn of_identity(attribute: &Attribute) -> bool {
    matches!(
        attribute,
        Attribute::SourcePrincipal
            | Attribute::SourceNamespace
            | Attribute::SourceServiceAccount
            | Attribute::SourceTrustDomain
    )
}

/// DENY rules that match nobody unless one of these attributes has a certain value.
fn denies_by(policy: &Policy, attribute: impl Fn(&Attribute) -> bool) -> impl Iterator<Item = usize> {
    let wants = move |p: &Predicate| attribute(&p.attribute) && !p.values.is_empty();
    let needs = move |clause: &Clause| {
        !clause.matches.is_empty() && clause.matches.iter().all(|m| m.predicates.iter().any(&wants))
    };
    let deny = policy.action == Action::Deny;
    let rules =
        policy.rules.iter().enumerate().filter(move |(_, rule)| deny && rule.clauses.iter().any(&needs));
    rules.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use meltemi_model::NamespacedName;

    use super::*;
    use crate::facts::Labels;
    use crate::mesh::MeshConfig;
    use crate::security::authorization;

    fn read(yaml: &str) -> Authorization {
        let spec = serde_yaml_ng::from_str(yaml).unwrap();
        let mesh = MeshConfig { trust_domain_aliases: vec!["old".into()], ..MeshConfig::default() };
        authorization::read(&NamespacedName::new("default", "p"), &spec, &Labels::new(), &mesh).unwrap()
    }

    const REST: &str = "without what needs HTTP, a node proxy denies all that remains; Istio's would";

    #[test]
    fn differences_at_a_node_proxy_are_told() {
        let deny = |rule: &str| format!("{{action: DENY, rules: [{rule}]}}");
        let get = "{operation: {methods: [GET]}}";
        let cases = [
            (deny("{from: [{source: {namespaces: [a]}}]}"), String::new()),
            (deny("{to: [{operation: {ports: ['80'], methods: [GET]}}]}"), String::new()),
            (deny(&format!("{{to: [{get}]}}")), format!("Rule 0: {REST} not apply the rule.")),
            (
                deny(&format!("{{}}, {{from: [{{source: {{namespaces: [a]}}}}], to: [{get}]}}")),
                format!("Rule 1: {REST} not apply the rule."),
            ),
            (
                deny(&format!("{{to: [{get}, {{operation: {{ports: ['80']}}}}]}}")),
                format!("Rule 0: {REST} leave out the alternatives that need it."),
            ),
            (
                deny("{when: [{key: source.serviceAccount, values: [a]}]}"),
                format!("Rule 0: {REST} not apply the rule."),
            ),
            (format!("{{rules: [{{to: [{get}]}}]}}"), String::new()),
            (
                "{rules: [{from: [{source: {namespaces: [a], trustDomains: [b]}}]}]}".to_owned(),
                "Rule 0: a node proxy cannot be told of trustDomains, so the rule allows nothing there; Istio's ignores the \
                 field."
                    .to_owned(),
            ),
            ("{rules: [{from: [{source: {trustDomains: [b]}}]}]}".to_owned(), String::new()),
            (
                "{rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b]}}]}]}".to_owned(),
                "Identities are meant in every trust domain alias at node proxies too; Istio's take them as written."
                    .to_owned(),
            ),
            (
                "{selector: {}}".to_owned(),
                "The empty selector selects every workload; Istio's node proxies apply the policy to none.".to_owned(),
            ),
        ];
        for (yaml, expected) in cases {
            let told = differs(&read(&yaml), true, false).map(|c| c.message).unwrap_or_default();
            assert_eq!(told, expected, "{yaml}");
        }
    }

    #[test]
    fn differences_at_a_gateway_are_told() {
        let target = "targetRefs: [{kind: Service, group: '', name: x}]";
        let cases = [
            ("rules: [{to: [{operation: {methods: [GET]}}]}]", ""),
            ("rules: [{to: [{operation: {paths: [/a]}}]}]", "A path that can be read in several ways"),
            (
                "rules: [{when: [{key: 'request.headers[a]', values: [b]}]}]",
                "Each value of a repeated header",
            ),
            (
                "rules: [{when: [{key: 'experimental.envoy.filters.a[b]', values: [c]}]}]",
                "experimental.envoy.filters.a[b] cannot be evaluated",
            ),
            (
                "action: CUSTOM, provider: {name: opa}, rules: [{}]",
                "Where the policy judges a connection without a request, provider opa is not asked",
            ),
            ("rules: [{to: [{operation: {hosts: [a]}}]}]", "A host is compared as it was sent"),
            (
                "rules: [{when: [{key: 'request.headers[Host]', values: [a]}]}]",
                "A host is compared as it was sent",
            ),
            (
                "action: DENY, rules: [{}, {from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]}]",
                "Rule 1: remoteIpBlocks and remote.ip are weaker than in Istio",
            ),
            (
                "rules: [{to: [{operation: {paths: [/a]}}], when: [{key: remote.ip, notValues: [10.0.0.1]}]}]",
                "Rule 0: remoteIpBlocks and remote.ip are weaker than in Istio",
            ),
        ];
        for (fields, expected) in cases {
            let told = differs(&read(&format!("{{{target}, {fields}}}")), false, true);
            let is_weaker = told.as_ref().is_some_and(|c| c.reason == WEAKER);
            assert_eq!(is_weaker, expected.contains("weaker"), "{fields}");
            let told = told.map(|c| c.message).unwrap_or_default();
            assert!(told.starts_with(expected) && told.is_empty() == expected.is_empty(), "{fields}: {told}");
        }
    }

    #[test]
    fn what_a_policy_does_not_catch_is_told() {
        let deny = read("{action: DENY, rules: [{}, {from: [{source: {namespaces: [a]}}]}]}");
        let plaintext = Passages { plaintext: true, ..Passages::default() };
        let plain = escapes(&deny, plaintext).unwrap();
        assert_eq!(plain.reason, "Plaintext");
        assert!(plain.message.starts_with("Rule 1 denies by identity"), "{}", plain.message);
        assert_eq!(escapes(&deny, Passages::default()), None);
        let ports = read("{action: DENY, rules: [{to: [{operation: {ports: ['80']}}]}]}");
        let strangers = read("{action: DENY, rules: [{from: [{source: {notNamespaces: [a]}}]}]}");
        let allow = read("{rules: [{from: [{source: {namespaces: [a]}}]}]}");
        for policy in [&ports, &strangers, &allow] {
            let all = Passages { through: &["default/waypoint".to_owned()], ..plaintext };
            assert_eq!(escapes(policy, all), None, "{policy:?}");
        }
        let around = [("default/web".to_owned(), "default/waypoint".to_owned())];
        let told = escapes(&allow, Passages { around: &around, ..plaintext }).unwrap();
        assert_eq!(told.reason, "AroundWaypoint");
        assert_eq!(
            told.message,
            "Connections to Pods of Service default/web that do not pass waypoint default/waypoint, or that are addressed \
             there to another Service, are not judged by this policy."
        );
        let reason = |deny, passages| escapes(deny, passages).unwrap().reason;
        assert_eq!(reason(&deny, Passages { around: &around, ..plaintext }), "PlaintextAndAroundWaypoint");
        let through = ["default/waypoint".to_owned()];
        let through = Passages { through: &through, ..Passages::default() };
        let told = escapes(&deny, through).unwrap();
        assert_eq!(told.reason, "ThroughWaypoint");
        assert!(
            told.message.starts_with(
                "Rule 1 denies by source, and of clients that come through waypoint default/waypoint"
            ),
            "{}",
            told.message
        );
        let blocks = read("{action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}]}");
        assert_eq!(reason(&blocks, through), "ThroughWaypoint");
        assert_eq!(escapes(&blocks, plaintext), None);
    }
}
