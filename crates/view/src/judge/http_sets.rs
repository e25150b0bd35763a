// SPDX-License-Identifier: Apache-2.0
//! The compiled layer 7 policies of each Service and Gateway: made when first asked for, and from what was there before
//! when one of them has changed; a request only looks them up.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use meltemi_model::l7::{HttpPolicy, Target};
use meltemi_model::{NamespacedHostname, NamespacedName};
use meltemi_policy::{PolicySet, ValidPolicy};

use super::Denied;

/// Services and Gateways whose sets are kept.
const BOUND: usize = 16_384;

/// All layer 7 policies, by name.
type All = Arc<BTreeMap<String, Arc<HttpPolicy>>>;

/// Sets of Services and Gateways; clones share them.
#[derive(Clone, Debug, Default)]
pub struct HttpSets(Arc<Mutex<Sets>>);

#[derive(Debug, Default)]
struct Sets {
    /// The policies that `valid` was made from.
    all: All,
    valid: BTreeMap<String, (Arc<HttpPolicy>, ValidPolicy)>,
    /// With the policies that each was made from.
    sets: HashMap<(Option<NamespacedHostname>, NamespacedName), (All, Arc<PolicySet>)>,
}

impl HttpSets {
    /// The set that applies to requests to a Service that pass a Gateway.
    ///
    /// # Errors
    /// One of the policies is not valid; nothing is allowed by the rest.
    pub fn of(
        &self,
        all: &All,
        service: Option<&NamespacedHostname>,
        gateway: &NamespacedName,
    ) -> Result<Arc<PolicySet>, Denied> {
        let key = (service.cloned(), gateway.clone());
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match inner.sets.get(&key) {
            Some((of, set)) if Arc::ptr_eq(of, all) => return Ok(set.clone()),
            other => other.map(|(_, set)| set.clone()),
        };
        inner.refresh(all)?;
        let applies = |target: &Target| match target {
            Target::Service(key) => Some(key) == service,
            Target::Gateway(name) => name == gateway,
        };
        let of_target = inner.valid.values().filter(|(policy, _)| policy.targets.iter().any(applies));
        let mut policies: Vec<ValidPolicy> = of_target.map(|(_, valid)| valid.clone()).collect();
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        let set = Arc::new(match before {
            Some(before) => before.updated(policies, Vec::new()),
            None => PolicySet::new(policies, Vec::new()),
        });
        if inner.sets.len() >= BOUND {
            inner.sets.clear();
        }
        inner.sets.insert(key, (all.clone(), set.clone()));
        Ok(set)
    }
}

impl Sets {
    /// Checks what has changed since the last time.
    fn refresh(&mut self, all: &All) -> Result<(), Denied> {
        if Arc::ptr_eq(&self.all, all) {
            return Ok(());
        }
        let mut valid = BTreeMap::new();
        for (name, policy) in &**all {
            let known = self.valid.get(name).filter(|(known, _)| Arc::ptr_eq(known, policy));
            let checked = match known {
                Some((_, checked)) => checked.clone(),
                None => ValidPolicy::new(policy.policy.clone()).map_err(|invalid| Denied {
                    text: invalid.to_string(),
                    policy: Some(invalid.policy),
                    rule: invalid.rule.and_then(|rule| u32::try_from(rule).ok()),
                    clause: None,
                    missing: false,
                })?,
            };
            valid.insert(name.clone(), (policy.clone(), checked));
        }
        (self.valid, self.all) = (valid, all.clone());
        Ok(())
    }
}
