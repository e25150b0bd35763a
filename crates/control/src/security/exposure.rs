// SPDX-License-Identifier: Apache-2.0
//! What a policy for node proxies selects: Pods behind a node proxy, and Pods that none stands before.

use std::collections::BTreeSet;
use std::sync::Arc;

use meltemi_translate::Index;
use meltemi_translate::condition::Condition;
use meltemi_translate::facts::{Labels, PodFacts};
use meltemi_translate::labels;
use meltemi_translate::security::captured::{Passage, listed, passage};
use meltemi_translate::security::notes::ESCAPES;

use crate::access::Scope;
use crate::xds::Proxy;

/// The Pods that a policy selects.
#[derive(Debug, Default)]
pub(super) struct Exposure<'a> {
    /// Those whose traffic passes a node proxy.
    pub captured: Vec<&'a PodFacts>,
    /// Those of the mesh whose traffic does not, each as `<namespace>/<name> (<reason>)`.
    pub open: Vec<String>,
    /// Namespaces outside the mesh, when the policy is one of the whole mesh.
    pub outside: BTreeSet<Arc<str>>,
}

impl<'a> Exposure<'a> {
    /// The Pods of a policy of that namespace and selector.
    ///
    /// Proxies of Gateways are left out: they judge by policies of their own. They are known by their streams, which they
    /// open with the credentials of their Pod, and not by labels, which any Pod can have.
    pub(super) fn of(
        index: &'a Index,
        namespace: &str,
        selector: Option<&Labels>,
        proxies: &[Proxy],
    ) -> Self {
        let root = &index.mesh().root_namespace;
        let nothing = Labels::new();
        let (mut out, mut strangers) = (Self::default(), Vec::new());
        for pod in index.pods_selected(namespace, selector) {
            let labels = index.namespace(&pod.name.namespace).map_or(&nothing, |n| &n.labels);
            match passage(pod, labels) {
                Passage::Proxy => out.captured.push(pod),
                Passage::Nothing => {}
                // The mesh's own: control plane and node proxies.
                Passage::Outside if pod.name.namespace == *root => {}
                Passage::Outside if *namespace == **root => {
                    out.outside.insert(pod.name.namespace.clone());
                }
                Passage::Outside => strangers.push(format!("{} (outside the mesh)", pod.name)),
                Passage::Open(_) if is_gateway_proxy(pod, proxies) => {}
                Passage::Open(why) => out.open.push(format!("{} ({why})", pod.name)),
            }
        }
        // A namespace of which no Pod is in the mesh is one that was never enrolled: that has a message of its own.
        if !(out.captured.is_empty() && out.open.is_empty()) {
            out.open.append(&mut strangers);
        }
        out.open.sort();
        out
    }

    /// The nodes whose proxies have to know the policy.
    pub(super) fn nodes(&self) -> BTreeSet<Arc<str>> {
        self.captured.iter().map(|pod| pod.node.clone()).collect()
    }
}

fn is_gateway_proxy(pod: &PodFacts, proxies: &[Proxy]) -> bool {
    let name = format!("{}.{}", pod.name.name, pod.name.namespace);
    let gateway = pod.labels.get(labels::GATEWAY_NAME);
    gateway.is_some_and(|gateway| {
        proxies.iter().any(|proxy| {
            let of_it = matches!(&proxy.scope, Scope::Gateway(g) if *g.name == **gateway && g.namespace == pod.name.namespace);
            of_it && proxy.name == name
        })
    })
}

/// Says in `meltemi.dev/Escapes` of which namespaces a policy of the whole mesh selects Pods that are not in it.
pub(super) fn add_outside(conditions: &mut Vec<Condition>, exposure: &Exposure<'_>) {
    if exposure.outside.is_empty() {
        return;
    }
    let names: Vec<String> = exposure.outside.iter().map(ToString::to_string).collect();
    let sentence = format!(
        "Pods of namespaces that are not in the mesh are selected, and nothing is enforced for them: {}.",
        listed(&names)
    );
    match conditions.iter_mut().find(|condition| condition.kind == ESCAPES) {
        Some(condition) => {
            condition.reason.push_str("AndOutsideMesh");
            condition.message.push(' ');
            condition.message.push_str(&sentence);
        }
        None => conditions.push(Condition::yes(ESCAPES, "OutsideMesh", sentence)),
    }
}
