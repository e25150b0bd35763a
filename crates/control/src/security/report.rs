// SPDX-License-Identifier: Apache-2.0
//! What the status of a policy says: one list of conditions, by one manager.

use std::collections::{BTreeMap, BTreeSet};

use meltemi_model::NamespacedName;
use meltemi_model::authz::Action;
use meltemi_model::l7::HttpPolicy;
use meltemi_translate::Index;
use meltemi_translate::condition::Condition;
use meltemi_translate::facts::PodFacts;
use meltemi_translate::security::layer4;
use meltemi_translate::security::notes::{self, Passages};
use meltemi_wire::xds::types;

use super::enforced::{self, Where};
use super::exposure::{self, Exposure};
use super::sent::{Leaving, Sent};
use super::{Entry, Security};
use crate::review;
use crate::status::{Key, StatusQueue, Wish};
use crate::xds::Proxy;

/// Type of the condition that says that no request can be asked about at a policy's provider.
const PROVIDER: &str = "meltemi.dev/ProviderUsable";
/// Field manager of every condition on a policy.
const MANAGER: &str = "istio-ambient-policy";

/// The status of an object of the group.
pub(super) fn key(kind: &'static str, plural: &'static str, name: &NamespacedName) -> Key {
    Key { api_version: "security.istio.io/v1", kind, plural, name: name.clone(), manager: MANAGER }
}

impl Security {
    /// Hands on the statuses that may be others now.
    pub fn report(&mut self, index: &Index, status: &StatusQueue) {
        let due = std::mem::take(&mut self.unreported);
        self.write(due, index, status);
        let proxies = self.proxies.all();
        self.peers.report(index, &proxies, status);
        self.tokens.report(&proxies, status);
    }

    /// A proxy has come, gone or said something: looks again at what not every proxy had acknowledged.
    pub fn acknowledged(&mut self, index: &Index, status: &StatusQueue) {
        let due = self.pending.clone();
        self.write(due, index, status);
        let proxies = self.proxies.all();
        self.peers.report_pending(index, &proxies, status);
        self.tokens.report_pending(&proxies, status);
    }

    fn write(&mut self, due: BTreeSet<NamespacedName>, index: &Index, status: &StatusQueue) {
        if due.is_empty() {
            return;
        }
        let proxies = self.proxies.all();
        for name in due {
            let Some(entry) = self.policies.get(&name) else { continue };
            let conditions = conditions(&name, entry, index, &proxies, &self.sent);
            match is_pending(&conditions) {
                true => self.pending.insert(name.clone()),
                false => self.pending.remove(&name),
            };
            let key = key("AuthorizationPolicy", "authorizationpolicies", &name);
            status.set(key, Wish::Conditions { generation: entry.generation, conditions });
        }
    }
}

/// Gateways that have to acknowledge that they no longer serve a Service, with the generation that says so.
pub(super) fn acknowledging(leaving: Option<&Leaving>) -> BTreeMap<NamespacedName, u64> {
    leaving.into_iter().flatten().filter_map(|(gateway, since)| Some((gateway.clone(), (*since)?))).collect()
}

/// Whether the next word of a proxy may change it: one has to acknowledge it yet, or a Pod that no node proxy stands before may
/// turn out to be a proxy itself.
pub(super) fn is_pending(conditions: &[Condition]) -> bool {
    let pending = ["Pending", enforced::NOT_CAPTURED];
    conditions.iter().any(|c| c.kind == enforced::ENFORCED && pending.contains(&c.reason.as_str()))
}

/// Everything that is said of a policy.
fn conditions(
    name: &NamespacedName,
    entry: &Entry,
    index: &Index,
    proxies: &[Proxy],
    sent: &Sent<HttpPolicy>,
) -> Vec<Condition> {
    let authorization = &entry.authorization;
    let selector = authorization.selector.as_ref();
    let at_node = entry.projected.policy.is_some();
    let exposure = match at_node {
        true => Exposure::of(index, &name.namespace, selector, proxies),
        false => Exposure::default(),
    };
    let at = Where {
        nodes: exposure.nodes(),
        gateways: sent.since(name, &entry.attached.gateways),
        told: Some(types::HTTP_POLICY),
        leaving: acknowledging(sent.leaving(name)),
    };
    let (mesh, peers) = (index.mesh(), index.peers());
    let takes = |pod: &&PodFacts| peers.take_plaintext(&pod.name.namespace, &pod.labels, mesh);
    let plaintext = exposure.captured.iter().any(takes);
    let through: BTreeSet<NamespacedName> =
        exposure.captured.iter().flat_map(|pod| index.waypoints_of_pod(pod)).collect();
    let through: Vec<String> = through.iter().map(ToString::to_string).collect();
    let mut out = Vec::new();
    match &entry.fault {
        // What is enforced is not what its author wrote last.
        Some(fault) if authorization.faults.is_empty() => {
            let message = format!("{fault}; what was accepted before stays in force");
            out.push(Condition::no(layer4::ZTUNNEL_ACCEPTED, "Invalid", message));
        }
        Some(fault) => out.push(Condition::no(layer4::ZTUNNEL_ACCEPTED, "Invalid", fault.clone())),
        None => out.extend(entry.projected.condition.clone()),
    }
    out.extend(entry.attached.condition.clone());
    out.extend(notes::differs(authorization, at_node, !at.gateways.is_empty()));
    if let Action::Custom { provider } = &authorization.policy.action
        && !at.gateways.is_empty()
        && let Some(reason) = mesh.unusable_provider(provider)
    {
        let message = format!("{reason}; what the policy matches is denied");
        out.push(Condition::no(PROVIDER, "NotConfigured", message));
    }
    out.extend(notes::escapes(
        authorization,
        Passages { plaintext, through: &through, around: &entry.attached.around },
    ));
    exposure::add_outside(&mut out, &exposure);
    out.extend(review::condition(&entry.remarks));
    // One that no proxy of the mesh can enforce has nothing to count.
    if authorization.policy.dry_run && !at.gateways.is_empty() {
        let message = "it is reported on, never enforced";
        out.push(Condition::no(enforced::ENFORCED, "DryRun", message));
    } else if at_node || !at.gateways.is_empty() || !authorization.targets.is_empty() {
        out.push(enforced::condition(&[name.to_string()], &at, entry.since, proxies, &exposure.open));
    }
    out
}
