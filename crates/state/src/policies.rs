// SPDX-License-Identifier: Apache-2.0
//! The policies of a snapshot: by scope, and the compiled set of each list that workloads have in common.
//!
//! A set is made once for a list and kept until one of its policies changes; what is made then is made from what was
//! there before.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use meltemi_model::authz::{Policy, Scope};
use meltemi_model::{NamespacedName, Workload};
use meltemi_policy::{InvalidPolicy, PolicySet, ValidPolicy};

use crate::SharedMap;

/// Lists whose sets are kept; a proxy judges the workloads of its node.
const BOUND: usize = 4096;

/// Policies of one scope. What was refused applies too, but is not known.
#[derive(Clone, Debug, Default)]
struct Scoped {
    policies: BTreeMap<NamespacedName, ValidPolicy>,
    refused: BTreeMap<NamespacedName, Arc<str>>,
}

/// Policies by name and by scope.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policies {
    by_name: SharedMap<NamespacedName, ValidPolicy>,
    refused: SharedMap<NamespacedName, Arc<str>>,
    global: Arc<Scoped>,
    namespaces: SharedMap<Arc<str>, Arc<Scoped>>,
    sets: Arc<RwLock<HashMap<Key, Kept>>>,
}

/// What two workloads have in common when the same policies apply to them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    namespace: Arc<str>,
    named: Vec<NamespacedName>,
}

/// A set, with what it was made of.
#[derive(Clone, Debug)]
struct Kept {
    global: Arc<Scoped>,
    local: Option<Arc<Scoped>>,
    named: Vec<Option<ValidPolicy>>,
    set: Arc<PolicySet>,
}

impl Policies {
    /// Puts a policy in force.
    ///
    /// # Errors
    /// The policy is not valid. The one before it stays in force; if there is none, its scope is denied by its name.
    pub(crate) fn put(&mut self, policy: Policy) -> Result<(), InvalidPolicy> {
        let (name, scope) = (policy.name.clone(), policy.scope);
        match ValidPolicy::new(policy) {
            Ok(valid) => {
                self.remove(&name);
                if let Some(scoped) = self.scope(scope, &name.namespace) {
                    scoped.policies.insert(name.clone(), valid.clone());
                }
                self.by_name.insert_mut(name, valid);
                Ok(())
            }
            Err(invalid) => {
                self.refuse(name, Some(scope), invalid.to_string().into());
                Err(invalid)
            }
        }
    }

    /// Notes that a policy could not be read. The one before it stays in force. If there is none, nothing is allowed
    /// where it applies; everywhere, when not even that is known.
    pub(crate) fn refuse(&mut self, name: NamespacedName, scope: Option<Scope>, reason: Arc<str>) {
        if !self.by_name.contains_key(&name) {
            self.remove(&name);
            if let Some(scoped) = self.scope(scope.unwrap_or(Scope::Global), &name.namespace) {
                scoped.refused.insert(name.clone(), reason.clone());
            }
        }
        self.refused.insert_mut(name, reason);
    }

    /// Takes a policy out.
    pub(crate) fn remove(&mut self, name: &NamespacedName) {
        self.refused.remove_mut(name);
        self.by_name.remove_mut(name);
        for scoped in [Some(&mut self.global), self.namespaces.get_mut(&name.namespace)].into_iter().flatten()
        {
            if scoped.policies.contains_key(name) || scoped.refused.contains_key(name) {
                let scoped = Arc::make_mut(scoped);
                scoped.policies.remove(name);
                scoped.refused.remove(name);
            }
        }
        if self.namespaces.get(&name.namespace).is_some_and(|s| s.policies.is_empty() && s.refused.is_empty())
        {
            self.namespaces.remove_mut(&name.namespace);
        }
    }

    fn scope(&mut self, scope: Scope, namespace: &Arc<str>) -> Option<&mut Scoped> {
        match scope {
            Scope::Global => Some(Arc::make_mut(&mut self.global)),
            Scope::Namespace => {
                if !self.namespaces.contains_key(namespace) {
                    self.namespaces.insert_mut(namespace.clone(), Arc::default());
                }
                self.namespaces.get_mut(namespace).map(Arc::make_mut)
            }
            // Who names it and does not find it knows what that means.
            Scope::WorkloadSelector => None,
        }
    }

    /// All policies.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.by_name.values().map(ValidPolicy::policy)
    }

    /// Why a policy was refused.
    pub(crate) fn refused(&self, name: &NamespacedName) -> Option<&Arc<str>> {
        self.refused.get(name)
    }

    /// The set of a workload: policies of the mesh, of its namespace, and those that it names.
    pub(crate) fn of(&self, workload: &Workload) -> Arc<PolicySet> {
        let key =
            Key { namespace: workload.namespace.clone(), named: workload.authorization_policies.to_vec() };
        let local = self.namespaces.get(&key.namespace);
        let before = {
            let sets = self.sets.read().unwrap_or_else(PoisonError::into_inner);
            match sets.get(&key) {
                Some(kept) if self.is_current(kept, &key, local) => return kept.set.clone(),
                other => other.map(|kept| kept.set.clone()),
            }
        };
        let (policies, missing) = self.list(&key, local);
        let set = Arc::new(match before {
            Some(before) => before.updated(policies, missing),
            None => PolicySet::new(policies, missing),
        });
        let named = key.named.iter().map(|name| self.by_name.get(name).cloned()).collect();
        let kept = Kept { global: self.global.clone(), local: local.cloned(), named, set: set.clone() };
        let mut sets = self.sets.write().unwrap_or_else(PoisonError::into_inner);
        if sets.len() >= BOUND {
            sets.clear();
        }
        sets.insert(key, kept);
        set
    }

    /// Whether a set was made of what is there now. Compared by identity: a changed policy is another value.
    fn is_current(&self, kept: &Kept, key: &Key, local: Option<&Arc<Scoped>>) -> bool {
        let same_local = match (&kept.local, local) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        let same = |(name, before): (&NamespacedName, &Option<ValidPolicy>)| match (
            before,
            self.by_name.get(name),
        ) {
            (Some(a), Some(b)) => a.is(b),
            (None, None) => true,
            _ => false,
        };
        Arc::ptr_eq(&kept.global, &self.global) && same_local && key.named.iter().zip(&kept.named).all(same)
    }

    /// What applies, in the order in which it decides, and what applies but is not known.
    fn list(&self, key: &Key, local: Option<&Arc<Scoped>>) -> (Vec<ValidPolicy>, Vec<NamespacedName>) {
        let scopes = || std::iter::once(&self.global).chain(local);
        let mut policies: Vec<ValidPolicy> = scopes().flat_map(|s| s.policies.values()).cloned().collect();
        let mut missing: Vec<NamespacedName> = scopes().flat_map(|s| s.refused.keys()).cloned().collect();
        let mut named: Vec<&NamespacedName> = key.named.iter().collect();
        named.sort();
        named.dedup();
        for name in named {
            match self.by_name.get(name) {
                Some(policy) if policy.scope == Scope::WorkloadSelector => policies.push(policy.clone()),
                // It applies by its scope already, or belongs to another namespace's workloads as well.
                Some(policy) if policies.iter().any(|p| p.is(policy)) => {}
                Some(policy) => policies.push(policy.clone()),
                None => missing.push(name.clone()),
            }
        }
        // By name: that is how a set finds what it has in common with the one before it.
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        missing.dedup();
        (policies, missing)
    }
}

#[cfg(test)]
mod tests;
