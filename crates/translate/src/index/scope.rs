// SPDX-License-Identifier: Apache-2.0
//! The objects of one namespace, with their indexes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::labelled::{Labelled, Selectors};
use crate::facts::{Labels, NamespaceFacts, PodFacts, ServiceFacts, SliceFacts, selects};
use crate::workloads;

#[derive(Debug, Default)]
pub(super) struct Scope {
    pub(super) facts: Option<NamespaceFacts>,
    pub(super) pods: BTreeMap<Arc<str>, PodFacts>,
    pub(super) services: BTreeMap<Arc<str>, ServiceFacts>,
    pub(super) slices: BTreeMap<Arc<str>, SliceFacts>,
    selector_policies: BTreeMap<Arc<str>, Labels>,
    pod_labels: Labelled,
    service_selectors: Selectors,
    policy_selectors: Selectors,
}

impl Scope {
    pub(super) fn set_pod(&mut self, name: &Arc<str>, pod: Option<PodFacts>) {
        if let Some(old) = self.pods.remove(name) {
            self.pod_labels.remove(name, &old.labels);
        }
        if let Some(pod) = pod {
            self.pod_labels.insert(name, &pod.labels);
            self.pods.insert(name.clone(), pod);
        }
    }

    pub(super) fn set_service(&mut self, name: &Arc<str>, service: Option<ServiceFacts>) {
        if let Some(selector) = self.services.remove(name).and_then(|s| s.selector) {
            self.service_selectors.remove(name, &selector);
        }
        if let Some(service) = service {
            if let Some(selector) = &service.selector {
                self.service_selectors.insert(name, selector);
            }
            self.services.insert(name.clone(), service);
        }
    }

    pub(super) fn set_selector_policy(&mut self, name: &Arc<str>, selector: Option<Labels>) {
        if let Some(old) = self.selector_policies.remove(name) {
            self.policy_selectors.remove(name, &old);
        }
        if let Some(selector) = selector {
            self.policy_selectors.insert(name, &selector);
            self.selector_policies.insert(name.clone(), selector);
        }
    }

    /// Pods that a selector selects.
    pub(super) fn pods_selected(&self, selector: &Labels) -> Vec<Arc<str>> {
        let matches = |name: &Arc<str>| self.pods.get(name).is_some_and(|p| selects(selector, &p.labels));
        match self.pod_labels.candidates(selector) {
            Some(names) => names.into_iter().filter(matches).collect(),
            None => self.pods.keys().cloned().collect(),
        }
    }

    /// Services that select a Pod.
    pub(super) fn services_selecting(&self, pod: &PodFacts) -> Vec<&ServiceFacts> {
        let names = self.service_selectors.candidates(&pod.labels);
        names.iter().filter_map(|n| self.services.get(n)).filter(|s| workloads::selected_by(s, pod)).collect()
    }

    /// Selector policies that select these labels.
    pub(super) fn policies_selecting(&self, labels: &Labels) -> Vec<Arc<str>> {
        let names = self.policy_selectors.candidates(labels);
        names
            .into_iter()
            .filter(|n| self.selector_policies.get(n).is_some_and(|selector| selects(selector, labels)))
            .collect()
    }
}
