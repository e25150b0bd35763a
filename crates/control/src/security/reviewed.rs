// SPDX-License-Identifier: Apache-2.0
//! The review of all policies: what it is given to look at, and what it said.

use std::collections::BTreeMap;
use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_model::authz::Attribute;
use meltemi_model::names::WorkloadUid;
use meltemi_model::service::AppProtocol;
use meltemi_translate::Index;
use meltemi_translate::facts::{Labels, PodFacts, ServiceFacts, ServicePort, TargetPort};
use meltemi_translate::security::Authorization;
use meltemi_translate::{labels, workloads};

use super::Security;
use crate::review::{Remarks, SelectedPod, Subject, TargetedService};

fn targeted_service(facts: &ServiceFacts) -> TargetedService {
    let number = |port: &ServicePort| match port.target {
        TargetPort::Number(number) => Some(number),
        TargetPort::Named(_) => None,
    };
    let is_stream = |port: &&ServicePort| matches!(port.app_protocol, AppProtocol::Tcp | AppProtocol::Tls);
    TargetedService {
        labels: facts.labels.clone(),
        ports: facts.ports.iter().map(|port| (port.port, number(port))).collect(),
        streams: facts.ports.iter().filter(is_stream).map(|port| port.port).collect(),
    }
}

/// Pods that a policy without targets selects, where a review compares its ports with theirs.
fn selected_pods(policy: &Authorization, index: &Index) -> Vec<SelectedPod> {
    let clauses = policy.policy.rules.iter().flat_map(|rule| &rule.clauses);
    let mut predicates = clauses.flat_map(|clause| &clause.matches).flat_map(|one| &one.predicates);
    if !policy.targets.is_empty() || !predicates.any(|p| p.attribute == Attribute::DestinationPort) {
        return Vec::new();
    }
    let pods = index.pods_selected(&policy.policy.name.namespace, policy.selector.as_ref());
    pods.into_iter().filter(|pod| workloads::is_workload(pod)).map(|pod| selected_pod(pod, index)).collect()
}

fn selected_pod(pod: &PodFacts, index: &Index) -> SelectedPod {
    let uid = WorkloadUid::pod(&index.mesh().cluster_id, &pod.name.namespace, &pod.name.name);
    let services = index.workload(&uid).map(|workload| workload.services.clone()).unwrap_or_default();
    let reached = services.values().flatten().map(|mapping| mapping.target_port);
    SelectedPod {
        namespace: pod.name.namespace.clone(),
        labels: pod.labels.clone(),
        ports: pod.ports.iter().copied().chain(reached).collect(),
    }
}

impl Security {
    /// Whether something has changed that a review would see, since this was last asked.
    pub fn take_unreviewed(&mut self) -> bool {
        std::mem::take(&mut self.unreviewed)
    }

    /// What a review looks at. A policy whose object is not what is enforced is left out: its status says so.
    pub fn subject(&self, index: &Index) -> Subject {
        let whole = self.policies.iter().filter(|(_, entry)| entry.fault.is_none());
        let targeted = self.by_service.keys();
        let services: BTreeMap<NamespacedName, TargetedService> = targeted
            .filter_map(|name| Some((name.clone(), targeted_service(index.service(name)?))))
            .collect();
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
            pods: self
                .policies
                .values()
                .flat_map(|entry| selected_pods(&entry.authorization, index))
                .collect(),
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
