// SPDX-License-Identifier: Apache-2.0
//! The compiled layer 7 policies of each Service and Gateway: made when first asked for, and from what was there before
//! when one of them has changed; a request only looks them up.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use meltemi_model::NamespacedName;
use meltemi_model::l7::{HttpPolicy, Target};
use meltemi_policy::{PolicySet, ValidPolicy};

use crate::denied::Denied;
use crate::mesh::Targeted;

/// Services and Gateways whose sets are kept.
const BOUND: usize = 16_384;

/// All layer 7 policies, by name.
type All = Arc<Targeted<HttpPolicy>>;

/// Sets of Services and Gateways; clones share them.
#[derive(Clone, Debug, Default)]
pub struct HttpSets(Arc<RwLock<Sets>>);

/// A set, with the policies that it was made from.
type Made = (All, Arc<PolicySet>);

#[derive(Debug, Default)]
struct Sets {
    /// Policies that have been checked, as they were then.
    valid: HashMap<String, (Arc<HttpPolicy>, ValidPolicy)>,
    /// By Gateway.
    sets: HashMap<NamespacedName, OfGateway>,
}

/// The sets of one Gateway.
#[derive(Debug, Default)]
struct OfGateway {
    /// Of requests to no Service.
    own: Option<Made>,
    /// By what is addressed or forwarded to: [`Target::Service`] or [`Target::Backend`].
    services: HashMap<Target, Made>,
}

impl HttpSets {
    /// The set that applies to requests that pass a Gateway: `to` is the Service that they are addressed to, or the one
    /// whose Pods they are forwarded to ([`Target::Backend`]). The Gateway's own policies judge what is addressed only, once.
    ///
    /// # Errors
    /// One of the policies is not valid; nothing is allowed by the rest.
    pub fn of(
        &self,
        all: &All,
        to: Option<&Target>,
        gateway: &NamespacedName,
    ) -> Result<Arc<PolicySet>, Denied> {
        // All that a request does, but for the first one after a change.
        if let Some((of, set)) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(to, gateway)
            && Arc::ptr_eq(of, all)
        {
            return Ok(set.clone());
        }
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let before = match inner.get(to, gateway) {
            Some((of, set)) if Arc::ptr_eq(of, all) => return Ok(set.clone()),
            other => other.map(|(_, set)| set.clone()),
        };
        inner.forget_old(all);
        let applying = all.applying(to, gateway).map(|(name, policy)| inner.check(name, policy));
        let mut policies = applying.collect::<Result<Vec<ValidPolicy>, Denied>>()?;
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        let set = Arc::new(match before {
            Some(before) => before.updated(policies, Vec::new()),
            None => PolicySet::new(policies, Vec::new()),
        });
        inner.keep(to, gateway, (all.clone(), set.clone()));
        Ok(set)
    }
}

impl Sets {
    fn get(&self, to: Option<&Target>, gateway: &NamespacedName) -> Option<&Made> {
        let of_gateway = self.sets.get(gateway)?;
        match to {
            Some(to) => of_gateway.services.get(to),
            None => of_gateway.own.as_ref(),
        }
    }

    fn keep(&mut self, to: Option<&Target>, gateway: &NamespacedName, made: Made) {
        if self.sets.values().map(|of| of.services.len() + 1).sum::<usize>() >= BOUND {
            self.sets.clear();
        }
        let of_gateway = self.sets.entry(gateway.clone()).or_default();
        match to {
            Some(to) => drop(of_gateway.services.insert(to.clone(), made)),
            None => of_gateway.own = Some(made),
        }
    }

    /// Checks a policy, once for as long as it does not change.
    fn check(&mut self, name: &str, policy: &Arc<HttpPolicy>) -> Result<ValidPolicy, Denied> {
        if let Some((_, checked)) = self.valid.get(name).filter(|(known, _)| Arc::ptr_eq(known, policy)) {
            return Ok(checked.clone());
        }
        let checked = ValidPolicy::new(policy.policy.clone()).map_err(|invalid| Denied {
            text: invalid.to_string(),
            policy: Some(invalid.policy),
            rule: invalid.rule.and_then(|rule| u32::try_from(rule).ok()),
            clause: None,
            missing: false,
        })?;
        self.valid.insert(name.to_owned(), (policy.clone(), checked.clone()));
        Ok(checked)
    }

    /// Forgets what is not among the policies any more, when that is most of what is kept.
    fn forget_old(&mut self, all: &All) {
        if self.valid.len() > 2 * all.len() + 64 {
            self.valid.retain(|name, (policy, _)| all.get(name).is_some_and(|now| Arc::ptr_eq(now, policy)));
        }
    }
}

#[cfg(test)]
mod tests {
    use meltemi_model::NamespacedHostname;
    use meltemi_model::authz::{
        Action, Attribute, Clause, ClauseOrigin, Match, Policy, Predicate, Rule, Scope, StringMatch,
        ValueMatch,
    };

    use super::*;

    fn policy(name: &str, rules: Vec<Rule>, targets: Vec<Target>) -> Arc<HttpPolicy> {
        let name = NamespacedName::new("ns", name);
        let policy =
            Policy { name, scope: Scope::WorkloadSelector, action: Action::Allow, dry_run: false, rules };
        Arc::new(HttpPolicy { policy, targets })
    }

    fn names(set: &PolicySet) -> Vec<&str> {
        set.policies().iter().map(|p| &*p.name.name).collect()
    }

    #[test]
    fn a_set_is_made_once_for_what_is_there_and_again_when_that_changes() {
        let gateway = NamespacedName::new("ns", "gw");
        let (web, to_gateway) = (NamespacedHostname::new("ns", "web"), Target::Gateway(gateway.clone()));
        let other = Target::Service(NamespacedHostname::new("ns", "other"));
        let (to_web, behind_web) = (Target::Service(web.clone()), Target::Backend(web));
        let mut all: All = Arc::default();
        let put = |all: &mut All, key: &str, policy| Arc::make_mut(all).insert(key.to_owned(), policy);
        put(&mut all, "ns/b", policy("b", vec![], vec![to_web.clone()]));
        put(&mut all, "ns/a", policy("a", vec![], vec![to_gateway, to_web.clone()]));
        put(&mut all, "ns/c", policy("c", vec![], vec![other.clone(), behind_web.clone()]));
        let sets = HttpSets::default();
        let of = |all: &All, to| sets.of(all, to, &gateway);
        let first = of(&all, Some(&to_web)).unwrap();
        assert_eq!(names(&first), ["a", "b"], "of the Service and of the Gateway, each once");
        assert_eq!(names(&of(&all, None).unwrap()), ["a"]);
        assert_eq!(names(&of(&all, Some(&other)).unwrap()), ["a", "c"]);
        assert_eq!(
            names(&of(&all, Some(&behind_web)).unwrap()),
            ["c"],
            "the Gateway's has been judged already"
        );
        assert!(Arc::ptr_eq(&first, &of(&all, Some(&to_web)).unwrap()), "asked again");

        let before = all.clone();
        put(&mut all, "ns/b", policy("b", vec![Rule::default()], vec![to_web.clone()]));
        let second = of(&all, Some(&to_web)).unwrap();
        assert_eq!(second.policies()[1].rules.len(), 1);
        assert!(second.policies()[0].is(&first.policies()[0]), "what has not changed is not checked again");
        // Who still looks at the state before sees its policies.
        assert_eq!(of(&before, Some(&to_web)).unwrap().policies()[1].rules.len(), 0);

        let values = vec![ValueMatch::String(StringMatch::Suffix("".into()))];
        let predicates = vec![Predicate { attribute: Attribute::Path, values, not_values: vec![] }];
        let clauses = vec![Clause { origin: ClauseOrigin::To, matches: vec![Match { predicates }] }];
        put(&mut all, "ns/bad", policy("bad", vec![Rule { clauses }], vec![to_web.clone()]));
        let denied = of(&all, Some(&to_web)).unwrap_err();
        assert!(denied.text.starts_with("policy ns/bad is not valid rule[0] clause[0]: paths"), "{denied}");
    }
}
