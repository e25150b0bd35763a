// SPDX-License-Identifier: Apache-2.0
//! Whether objects that a question names are there. Files may leave most of a cluster out, so a name that they lack is
//! assumed to exist, unless they hold others of its kind in its namespace: then it is probably misspelt.

use meltemi_model::NamespacedName;
use meltemi_translate::facts::{Labels, selects};

use super::World;

/// Whether an object exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It does.
    Yes,
    /// Nothing says so, and nothing contradicts it.
    Assumed,
    /// It does not.
    No,
}

impl Known {
    /// `others`: whether there are others of the kind, so that this one would be among them.
    fn of(found: bool, others: impl FnOnce() -> bool) -> Self {
        match found {
            true => Self::Yes,
            false if others() => Self::No,
            false => Self::Assumed,
        }
    }
}

impl World {
    /// Whether a Service exists.
    pub fn knows_service(&self, name: &NamespacedName) -> Known {
        let near = || self.services.keys().any(|other| other.namespace == name.namespace);
        Known::of(self.services.contains_key(name), || self.complete || near())
    }

    /// Whether a Gateway exists.
    pub fn knows_gateway(&self, name: &NamespacedName) -> Known {
        let near = || self.gateways.keys().any(|other| other.namespace == name.namespace);
        Known::of(self.gateways.contains_key(name), || self.complete || near())
    }

    /// Whether a ServiceAccount exists: it is declared, something runs as it, it is that of a Gateway's proxies, or the
    /// `default` of a namespace.
    pub fn knows_account(&self, name: &NamespacedName) -> Known {
        let runs =
            self.workloads.iter().any(|w| w.name.namespace == name.namespace && *w.account == *name.name);
        let proxies = self.gateways.keys().filter(|gateway| gateway.namespace == name.namespace);
        let of_proxies = proxies.into_iter().any(|gateway| self.proxy_account(gateway) == *name.name);
        let default =
            *name.name == *"default" && (!self.complete || self.namespaces.contains_key(&*name.namespace));
        let near = || self.accounts.iter().any(|other| other.namespace == name.namespace);
        let found = self.accounts.contains(name) || runs || of_proxies || default;
        Known::of(found, || self.complete || near())
    }

    /// Whether a Namespace exists: it is declared, or something is in it. Files rarely hold every Namespace.
    pub fn knows_namespace(&self, name: &str) -> Known {
        let holds = self.objects.iter().any(|(_, object)| *object.namespace == *name);
        Known::of(self.namespaces.contains_key(name) || holds, || self.complete)
    }

    /// Whether a workload with these labels exists. A question may be about one that does not run yet.
    pub fn knows_pod(&self, namespace: &str, labels: &Labels) -> Known {
        let mut near = self.workloads.iter().filter(|w| *w.name.namespace == *namespace);
        let found = near.any(|w| selects(labels, &w.labels));
        Known::of(found, || false)
    }
}
