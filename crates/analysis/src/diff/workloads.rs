// SPDX-License-Identifier: Apache-2.0
//! Workloads that both sides have and whose node proxy enforces other policies: their labels changed, or whether their
//! traffic is captured. A policy that changed is seen for all labels at once, by namespace.

use meltemi_translate::facts::Labels;

use super::{Pair, place};
use crate::compare::Place;
use crate::proof::Layer;
use crate::side::{Attached, applies};
use crate::world::{Workload, World};

/// Labels that controllers give each Pod or each revision anew, by prefix.
const VOLATILE: &[&str] = &[
    "pod-template-hash",
    "pod-template-generation",
    "controller-revision-hash",
    "controller-uid",
    "job-name",
    "batch.kubernetes.io/",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
];

/// A place for each workload of the new side that is not as a workload of the same name was.
pub(super) fn changed(old: &World, new: &World) -> Vec<Pair> {
    let mut out = Vec::new();
    for now in &new.workloads {
        let before: Vec<&Workload> = old.workloads.iter().filter(|w| w.is_same(now)).collect();
        let captured = new.captures_inbound(now).unwrap_or(true);
        let as_before = |was: &&Workload| {
            stable(&was.labels) == stable(&now.labels)
                && old.captures_inbound(was).unwrap_or(true) == captured
        };
        if before.iter().any(as_before) {
            continue;
        }
        for was in before {
            let target = format!("{} {}", now.kind, now.name);
            let place = Place { port: 80, ..place(&target, "node proxy", Layer::Connection) };
            let (old, new) = (enforced(old, was), enforced(new, now));
            out.push(Pair { place, old, new, is_companion: false });
        }
    }
    out
}

fn stable(labels: &Labels) -> Labels {
    let volatile = |key: &str| VOLATILE.iter().any(|prefix| key.starts_with(prefix));
    labels.iter().filter(|(key, _)| !volatile(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// What decides about connections to a workload; nothing where they are not captured.
fn enforced(world: &World, workload: &Workload) -> Vec<Attached> {
    if world.captures_inbound(workload) == Some(false) {
        return Vec::new();
    }
    let all = world.at_node_proxy(&workload.name.namespace);
    let near = all.into_iter().filter(|a| applies(&a.guard, &workload.labels));
    near.map(|a| a.to_all()).collect()
}
