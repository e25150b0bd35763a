// SPDX-License-Identifier: Apache-2.0
//! The review of all policies: what it is given to look at, and what it said.

use std::collections::BTreeMap;
use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_translate::Index;
use meltemi_translate::facts::Labels;
use meltemi_translate::labels;

use super::Security;
use crate::review::{Remarks, Subject};

impl Security {
    /// Whether something has changed that a review would see, since this was last asked.
    pub fn take_unreviewed(&mut self) -> bool {
        std::mem::take(&mut self.unreviewed)
    }

    /// What a review looks at. A policy whose object is not what is enforced is left out: its status says so.
    pub fn subject(&self, index: &Index) -> Subject {
        let whole = self.policies.iter().filter(|(_, entry)| entry.fault.is_none());
        let targeted = self.by_service.keys();
        let services: BTreeMap<NamespacedName, Labels> =
            targeted.filter_map(|name| Some((name.clone(), index.service(name)?.labels.clone()))).collect();
        let namespaces = services.keys().map(|name| &name.namespace);
        let namespaces: BTreeMap<Arc<str>, Labels> =
            namespaces.filter_map(|n| Some((n.clone(), index.namespace(n)?.labels.clone()))).collect();
        let ingress = self.ingress.iter().map(|(gateway, made)| {
            let own = Labels::from([(labels::GATEWAY_NAME.to_owned(), gateway.name.to_string())]);
            let pods = index.pods_selected(&gateway.namespace, Some(&own));
            let near = pods.into_iter().filter(|pod| pod.name.namespace == gateway.namespace);
            let labels = std::iter::once(made.clone()).chain(near.map(|pod| pod.labels.clone()));
            (gateway.clone(), labels.collect())
        });
        Subject {
            mesh: self.mesh.clone(),
            policies: whole.map(|(name, entry)| (name.clone(), entry.authorization.clone())).collect(),
            services,
            namespaces,
            ingress: ingress.collect(),
        }
    }

    /// Takes what a review has said; of a policy that has changed since, the next one will say it.
    pub fn remark(&mut self, subject: &Subject, mut remarks: Remarks) {
        for (name, entry) in &mut self.policies {
            let same = |seen: &Arc<_>| Arc::ptr_eq(seen, &entry.authorization);
            if !subject.policies.get(name).is_some_and(same) {
                continue;
            }
            let said = remarks.remove(name).unwrap_or_default();
            if entry.remarks != said {
                entry.remarks = said;
                self.unreported.insert(name.clone());
            }
        }
    }
}
