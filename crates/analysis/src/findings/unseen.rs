// SPDX-License-Identifier: Apache-2.0
//! Conditions on what the proxy that enforces the policy never sees: they never hold, and a DENY by them never fires.

use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Attribute, Clause, Predicate};
use meltemi_policy::http::is_never_seen;
use meltemi_translate::security::{Authorization, Reference};

use super::{Finding, Level, NEVER};
use crate::words;
use crate::world::World;

pub(super) fn find(world: &World, out: &mut Vec<Finding>) {
    for policy in world.policies.values().filter(|p| !p.policy.dry_run && !p.targets.is_empty()) {
        let only_requests = only_requests(world, policy);
        for (index, rule) in policy.policy.rules.iter().enumerate() {
            for clause in &rule.clauses {
                out.extend(finding(policy, index, clause, only_requests));
            }
        }
    }
}

/// Whether a policy judges requests only; what becomes of connections without requests is a finding of its own.
fn only_requests(world: &World, policy: &Authorization) -> bool {
    policy.targets.iter().all(|target| match target {
        Reference::Service(name) => {
            let name = NamespacedName::new(policy.policy.name.namespace.clone(), name.as_str());
            world.services.get(&name).is_some_and(|s| !s.ports.is_empty() && s.streams.is_empty())
        }
        _ => false,
    })
}

fn finding(policy: &Authorization, index: usize, clause: &Clause, only_requests: bool) -> Option<Finding> {
    let unseen = |p: &Predicate| -> Option<&'static str> {
        match &p.attribute {
            _ if p.values.is_empty() => None,
            Attribute::ConnectionSni if only_requests => {
                Some("a waypoint reads no server name of TLS on ports with HTTP")
            }
            Attribute::Header(name) if is_never_seen(name) => {
                Some("the header is for the proxy itself, and policies do not see it")
            }
            _ => None,
        }
    };
    let mut reasons = clause.matches.iter().map(|m| m.predicates.iter().find_map(|p| Some((p, unseen(p)?))));
    // Another alternative may match.
    let all: Vec<(&Predicate, &str)> = reasons.by_ref().collect::<Option<_>>()?;
    let (predicate, why) = all.first()?;
    let message = format!("rule[{index}] can never match: {why} ({})", words::predicate(predicate));
    let level = if policy.policy.action == Action::Deny { Level::Error } else { NEVER.level };
    let fix = "judge by something that the proxy sees, or delete the rule";
    Some(Finding::policy(NEVER, &policy.policy.name, message, fix).at(level))
}
