// SPDX-License-Identifier: Apache-2.0
//! What of a policy a node proxy is told, and what its status says of it.
//!
//! An ALLOW rule that needs HTTP is dropped: stricter. A DENY rule loses its HTTP conditions and denies what remains,
//! all of it if nothing remains: stricter too.

use meltemi_model::authz::{Action, Attribute, Clause, ClauseOrigin};
use meltemi_policy::ValidPolicy;

use super::authorization::Authorization;
use crate::condition::Condition;

/// Type of the condition.
pub const ZTUNNEL_ACCEPTED: &str = "ZtunnelAccepted";

/// What a node proxy is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projected {
    /// The policy; none when a node proxy has no part in it.
    pub policy: Option<ValidPolicy>,
    /// `ZtunnelAccepted`; none when the policy has targets.
    pub condition: Option<Condition>,
}

/// Projects a policy to layer 4.
pub fn project(authorization: &Authorization) -> Projected {
    let policy = &authorization.policy;
    if !authorization.targets.is_empty() {
        return Projected { policy: None, condition: None };
    }
    let refuse = |message: String| Projected {
        policy: None,
        condition: Some(Condition::no(ZTUNNEL_ACCEPTED, "UnsupportedValue", message)),
    };
    if policy.dry_run {
        return refuse(format!(
            "found policy \"{}\" using dry-run annotation, but support for ambient dry-run authorizationPolicies isn't \
             enabled",
            policy.name
        ));
    }
    match &policy.action {
        Action::Audit => refuse("ztunnel does not support the AUDIT action".to_owned()),
        Action::Custom { .. } => refuse("ztunnel does not support the CUSTOM action".to_owned()),
        Action::Allow => allow(authorization),
        Action::Deny => deny(authorization),
    }
}

/// Whether a node proxy can be told of an attribute. A trust domain is of layer 4, but its wire form has no field for
/// it; a service account has one, but only `from` means it for node proxies.
pub(super) fn fits(origin: ClauseOrigin, attribute: &Attribute) -> bool {
    match attribute {
        Attribute::SourceTrustDomain => false,
        Attribute::SourceServiceAccount => !matches!(origin, ClauseOrigin::When(_)),
        other => !other.needs_l7(),
    }
}

fn accepted(authorization: &Authorization, note: &str) -> Option<Condition> {
    if authorization.http.is_empty() {
        return Some(Condition::yes(ZTUNNEL_ACCEPTED, "Accepted", "attached to ztunnel"));
    }
    let found: Vec<&str> = authorization.http.iter().map(String::as_str).collect();
    let message = format!(
        "ztunnel does not support HTTP attributes (found: {}). In ambient mode you must use a waypoint proxy to enforce \
         HTTP rules. {note}",
        found.join(", ")
    );
    Some(Condition::yes(ZTUNNEL_ACCEPTED, "UnsupportedValue", message))
}

fn allow(authorization: &Authorization) -> Projected {
    let policy = &authorization.policy;
    let policy = policy.retain_rules(|rule| rule.clauses.iter().all(fits_whole));
    let note = "Within an ALLOW policy, rules matching HTTP attributes are omitted. This will be more restrictive than \
                requested.";
    Projected { policy: Some(policy), condition: accepted(authorization, note) }
}

fn fits_whole(clause: &Clause) -> bool {
    clause.matches.iter().flat_map(|m| &m.predicates).all(|p| fits(clause.origin, &p.attribute))
}

fn deny(authorization: &Authorization) -> Projected {
    let policy = &authorization.policy;
    // An empty match on the wire is one that Istio's node proxy skips; `retain_predicates` leaves its clause out.
    let policy = policy.retain_predicates(|origin, predicate| fits(origin, &predicate.attribute));
    let note = "DENY policy with HTTP attributes is enforced without the HTTP rules. This will be more restrictive than \
                requested.";
    Projected { policy: Some(policy), condition: accepted(authorization, note) }
}

#[cfg(test)]
mod tests {
    use meltemi_model::NamespacedName;
    use meltemi_model::authz::Rule;

    use super::*;
    use crate::facts::Labels;
    use crate::mesh::MeshConfig;
    use crate::security::authorization;

    fn projected(yaml: &str) -> Projected {
        let spec = serde_yaml_ng::from_str(yaml).unwrap();
        let name = NamespacedName::new("default", "p");
        project(&authorization::read(&name, &spec, &Labels::new(), &MeshConfig::default()).unwrap())
    }

    #[test]
    fn an_allow_rule_that_needs_http_is_dropped() {
        let both = "{rules: [{from: [{source: {principals: [a]}}]}, {to: [{operation: {methods: [GET]}}]}]}";
        let got = projected(both);
        assert_eq!(got.policy.unwrap().rules.len(), 1);
        let message = got.condition.unwrap().message;
        assert!(
            message.starts_with("ztunnel does not support HTTP attributes (found: methods). In ambient"),
            "{message}"
        );
        assert!(message.ends_with("This will be more restrictive than requested."));
        let only = projected("{rules: [{to: [{operation: {methods: [GET]}}]}]}").policy.unwrap();
        assert!(only.rules.is_empty(), "allows nothing");
    }

    #[test]
    fn a_deny_rule_denies_what_remains() {
        let rules = |yaml: &str| projected(yaml).policy.unwrap().rules.clone();
        let ports = rules("{action: DENY, rules: [{to: [{operation: {ports: ['80'], methods: [GET]}}]}]}");
        assert_eq!(ports[0].clauses[0].matches[0].predicates.len(), 1);
        let from = rules(
            "{action: DENY, rules: [{from: [{source: {principals: [a]}}], to: [{operation: {methods: [GET]}}]}]}",
        );
        assert_eq!(from[0].clauses.len(), 1, "the source is denied everything");
        let nothing = rules("{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}");
        assert_eq!(nothing, [Rule::default()], "everything is denied");
        let either = rules(
            "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}, {operation: {ports: ['80']}}]}]}",
        );
        assert_eq!(either, [Rule::default()], "one of the two could be any request");
    }

    #[test]
    fn trust_domains_have_no_place_on_the_wire() {
        let yaml = "{rules: [{from: [{source: {principals: [a], trustDomains: [b]}}]}]}";
        assert!(projected(yaml).policy.unwrap().rules.is_empty());
    }

    #[test]
    fn plain_policies_are_attached() {
        let yaml = "{rules: [{from: [{source: {principals: [a]}}]}]}";
        assert_eq!(projected(yaml).condition.unwrap().message, "attached to ztunnel");
        assert_eq!(projected("{action: AUDIT, rules: [{}]}").policy, None);
        let targeted = projected("{targetRefs: [{kind: Service, group: '', name: x}]}");
        assert_eq!((targeted.policy, targeted.condition), (None, None));
    }
}
