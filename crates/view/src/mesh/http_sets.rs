// SPDX-License-Identifier: Apache-2.0
//! The compiled layer 7 policies of each Service and Gateway: made when first asked for, and from what was there before
//! when one of them has changed; a request only looks them up.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use meltemi_model::NamespacedName;
use meltemi_model::l7::Target;
use meltemi_policy::{PolicySet, ValidPolicy};

use crate::mesh::{Targeted, ValidHttpPolicy};

/// Services and Gateways whose sets are kept.
const BOUND: usize = 16_384;

/// All layer 7 policies, by name.
type All = Arc<Targeted<ValidHttpPolicy>>;

/// Sets of Services and Gateways; clones share them.
#[derive(Clone, Debug, Default)]
pub struct HttpSets(Arc<RwLock<Sets>>);

/// A set, with the policies that it was made from.
type Made = (All, Arc<PolicySet>);

#[derive(Debug, Default)]
struct Sets {
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
    pub fn of(&self, all: &All, to: Option<&Target>, gateway: &NamespacedName) -> Arc<PolicySet> {
        // All that a request does, but for the first one after a change.
        if let Some((of, set)) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(to, gateway)
            && Arc::ptr_eq(of, all)
        {
            return set.clone();
        }
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let before = match inner.get(to, gateway) {
            Some((of, set)) if Arc::ptr_eq(of, all) => return set.clone(),
            other => other.map(|(_, set)| set.clone()),
        };
        let applying = all.applying(to, gateway).map(|(_, policy)| policy.policy.clone());
        let mut policies: Vec<ValidPolicy> = applying.collect();
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        let set = Arc::new(match before {
            Some(before) => before.updated(policies, Vec::new()),
            None => PolicySet::new(policies, Vec::new()),
        });
        inner.keep(to, gateway, (all.clone(), set.clone()));
        set
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
}

#[cfg(test)]
mod tests {
    use meltemi_model::NamespacedHostname;
    use meltemi_model::authz::{Action, Policy, Rule, Scope};
    use meltemi_model::l7::HttpPolicy;

    use super::*;

    fn policy(name: &str, rules: Vec<Rule>, targets: Vec<Target>) -> Arc<ValidHttpPolicy> {
        let name = NamespacedName::new("ns", name);
        let policy =
            Policy { name, scope: Scope::WorkloadSelector, action: Action::Allow, dry_run: false, rules };
        Arc::new(HttpPolicy { policy, targets }.try_into().unwrap())
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
        let first = of(&all, Some(&to_web));
        assert_eq!(names(&first), ["a", "b"], "of the Service and of the Gateway, each once");
        assert_eq!(names(&of(&all, None)), ["a"]);
        assert_eq!(names(&of(&all, Some(&other))), ["a", "c"]);
        assert_eq!(names(&of(&all, Some(&behind_web))), ["c"], "the Gateway's has been judged already");
        assert!(Arc::ptr_eq(&first, &of(&all, Some(&to_web))), "asked again");

        let before = all.clone();
        put(&mut all, "ns/b", policy("b", vec![Rule::default()], vec![to_web.clone()]));
        let second = of(&all, Some(&to_web));
        assert_eq!(second.policies()[1].rules.len(), 1);
        assert!(second.policies()[0].is(&first.policies()[0]), "what has not changed is not checked again");
        // Who still looks at the state before sees its policies.
        assert_eq!(of(&before, Some(&to_web)).policies()[1].rules.len(), 0);
    }
}
