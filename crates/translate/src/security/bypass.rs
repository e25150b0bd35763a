// SPDX-License-Identifier: Apache-2.0
//! `meltemi.dev/waypoint-bypass: deny` on a Service or its namespace: the Service's Pods take connections from its waypoint
//! only, so that nobody goes around the policies there. It becomes a DENY policy of node proxies.

use meltemi_model::NamespacedName;
use meltemi_model::authz::{
    Action, Attribute, Clause, ClauseOrigin, Match, Policy, Predicate, Rule, Scope, StringMatch, ValueMatch,
};

use crate::facts::Labels;
use crate::labels::WAYPOINT_BYPASS;
use crate::mesh::MeshConfig;

/// Prefix of the policies' names; no object can have it.
const PREFIX: &str = "meltemi_only_through_waypoint_";

/// Whether the way around is closed: the Service says so, or it says nothing and its namespace does.
pub fn is_closed(service: &Labels, namespace: &Labels) -> bool {
    let said = service.get(WAYPOINT_BYPASS).or_else(|| namespace.get(WAYPOINT_BYPASS));
    said.is_some_and(|value| value == "deny")
}

/// Name of the policy of a Service.
pub fn name(service: &NamespacedName) -> NamespacedName {
    NamespacedName::new(service.namespace.clone(), format!("{PREFIX}{}", service.name))
}

/// The policy: denies everybody but the waypoint, plaintext too; at these ports of the Pods, at all of them without.
/// `account` is the ServiceAccount that the waypoint's proxies run as.
pub fn policy(
    service: &NamespacedName,
    ports: &[u16],
    account: &NamespacedName,
    mesh: &MeshConfig,
) -> Policy {
    let principal = format!("{}/ns/{}/sa/{}", mesh.trust_domain, account.namespace, account.name);
    let clause = |origin, predicate| Clause { origin, matches: vec![Match { predicates: vec![predicate] }] };
    let mut clauses = vec![clause(
        ClauseOrigin::From,
        Predicate {
            attribute: Attribute::SourcePrincipal,
            values: Vec::new(),
            not_values: vec![ValueMatch::String(StringMatch::Exact(principal.into()))],
        },
    )];
    if !ports.is_empty() {
        let values = ports.iter().map(|port| ValueMatch::Port(*port)).collect();
        let at = Predicate { attribute: Attribute::DestinationPort, values, not_values: Vec::new() };
        clauses.push(clause(ClauseOrigin::To, at));
    }
    Policy {
        name: name(service),
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule { clauses }],
    }
}
