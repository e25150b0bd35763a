// SPDX-License-Identifier: Apache-2.0
//! The manifests of `deploy/`, part of the binary: `up` applies them here, `install` on Kubernetes. They differ in the node's part.

pub mod apply;
pub mod diff;

use kube::api::DynamicObject;
use meltemi_resources::crds;
use serde::{Deserialize, Serialize};
use serde_json::json;

const NAMESPACE: &str = include_str!("../../../deploy/namespace.yaml");
const RBAC: &str = include_str!("../../../deploy/rbac.yaml");
const CONTROL: &str = include_str!("../../../deploy/istiod.yaml");
const NODE_OF_MACHINE: &str = include_str!("../../../deploy/ztunnel.yaml");
const NODE: &str = include_str!("../../../deploy/node.yaml");

/// What the mesh runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The mesh of one machine, whose runner captures the Pods.
    Machine,
    /// A Kubernetes, where the agent does.
    Kubernetes,
}

/// Every object, in the order in which they are applied.
pub fn objects(engine: Engine) -> anyhow::Result<Vec<DynamicObject>> {
    let mut objects = parsed("namespace.yaml", NAMESPACE)?;
    for definition in crds::all() {
        objects.push(dynamic(&definition)?);
    }
    let node = match engine {
        Engine::Machine => ("ztunnel.yaml", NODE_OF_MACHINE),
        Engine::Kubernetes => ("node.yaml", NODE),
    };
    for (name, text) in [("rbac.yaml", RBAC), ("istiod.yaml", CONTROL), node] {
        objects.extend(parsed(name, text)?);
    }
    if engine == Engine::Machine {
        objects.iter_mut().filter(|object| is(object, "Deployment", "istiod")).for_each(put_on_host_network);
    }
    Ok(objects)
}

/// On one machine the control plane uses the node's network, as the node proxy does there: a mesh of one machine starts
/// before anything carries Pods. So it has the node's ports, and the last one goes before the next one comes.
fn put_on_host_network(deployment: &mut DynamicObject) {
    let spec = &mut deployment.data["spec"];
    spec["strategy"] = json!({ "type": "Recreate" });
    spec["template"]["spec"]["hostNetwork"] = json!(true);
    spec["template"]["spec"]["dnsPolicy"] = json!("ClusterFirstWithHostNet");
}

/// Whether an object belongs to the node's part, which needs the control plane's root certificate to start.
pub fn is_of_node(object: &DynamicObject) -> bool {
    is(object, "DaemonSet", "ztunnel")
}

fn is(object: &DynamicObject, kind: &str, name: &str) -> bool {
    let is_kind = object.types.as_ref().is_some_and(|types| types.kind == kind);
    is_kind && object.metadata.name.as_deref() == Some(name)
}

/// Parses a file of several YAML documents.
pub fn parse(text: &str) -> anyhow::Result<Vec<DynamicObject>> {
    serde_yaml_ng::Deserializer::from_str(text)
        .map(serde_yaml_ng::Value::deserialize)
        .filter(|value| !matches!(value, Ok(serde_yaml_ng::Value::Null)))
        .map(|value| Ok(serde_yaml_ng::from_value(value?)?))
        .collect()
}

fn parsed(name: &str, text: &str) -> anyhow::Result<Vec<DynamicObject>> {
    parse(text).map_err(|e| e.context(format!("deploy/{name}")))
}

fn dynamic(object: &impl Serialize) -> anyhow::Result<DynamicObject> {
    Ok(serde_json::from_value(serde_json::to_value(object)?)?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_manifest_can_be_read() {
        for engine in [super::Engine::Machine, super::Engine::Kubernetes] {
            let objects = super::objects(engine).unwrap();
            assert!(objects.iter().all(|o| o.types.is_some() && o.metadata.name.is_some()));
            assert!(objects.len() > 10);
        }
    }

    #[test]
    fn only_on_one_machine_a_part_uses_the_nodes_network() {
        for (engine, expected) in [(super::Engine::Machine, 2), (super::Engine::Kubernetes, 0)] {
            let objects = super::objects(engine).unwrap();
            let on_host =
                objects.iter().filter(|o| o.data["spec"]["template"]["spec"]["hostNetwork"] == true);
            assert_eq!(on_host.count(), expected, "{engine:?}");
            // Its ports can be had once: with a surge the next one would never start.
            let control = objects.iter().find(|o| super::is(o, "Deployment", "istiod")).unwrap();
            let strategy = if expected > 0 { "Recreate" } else { "RollingUpdate" };
            assert_eq!(control.data["spec"]["strategy"]["type"], strategy);
        }
    }
}
