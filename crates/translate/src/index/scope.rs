// SPDX-License-Identifier: Apache-2.0
//! The objects of one namespace, with their indexes.

use std::collections::{BTreeMap, BTreeSet};
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
    /// Slices by the Pods that they name.
    slices_of_pods: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
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

    /// Replaces a slice; returns the Pods that the old one or the new one names.
    pub(super) fn set_slice(&mut self, name: &Arc<str>, slice: Option<SliceFacts>) -> BTreeSet<Arc<str>> {
        let mut touched = BTreeSet::new();
        for endpoint in self.slices.remove(name).into_iter().flat_map(|old| old.named) {
            if let Some(slices) = self.slices_of_pods.get_mut(&endpoint.pod) {
                slices.remove(name);
                if slices.is_empty() {
                    self.slices_of_pods.remove(&endpoint.pod);
                }
            }
            touched.insert(endpoint.pod);
        }
        if let Some(slice) = slice {
            for endpoint in &slice.named {
                self.slices_of_pods.entry(endpoint.pod.clone()).or_default().insert(name.clone());
                touched.insert(endpoint.pod.clone());
            }
            self.slices.insert(name.clone(), slice);
        }
        touched
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

    /// Services without a selector that have a Pod by name, each with the slice that names it. The address must be the
    /// Pod's: what was written for a Pod that is gone does not lead to the next one of its name.
    pub(super) fn services_naming(&self, pod: &PodFacts) -> Vec<(&ServiceFacts, &SliceFacts)> {
        let names = self.slices_of_pods.get(&pod.name.name).into_iter().flatten();
        let slices = names.filter_map(|name| self.slices.get(name));
        let is_it = |slice: &&SliceFacts| {
            slice.named.iter().any(|e| *e.pod == *pod.name.name && pod.ips.contains(&e.ip))
        };
        let of_slices =
            slices.filter(is_it).filter_map(|slice| Some((self.services.get(&slice.service)?, slice)));
        of_slices.filter(|(service, _)| service.selector.is_none() && !service.external_name).collect()
    }

    /// Services that have a Pod, by their selector or by its name.
    pub(super) fn services_of(&self, pod: &PodFacts) -> Vec<&ServiceFacts> {
        let mut services = self.services_selecting(pod);
        services.extend(self.services_naming(pod).into_iter().map(|(service, _)| service));
        services
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
