// SPDX-License-Identifier: Apache-2.0
//! The manifests of `deploy/`, part of the binary: `up` applies them here, `install` on Kubernetes. They differ in the node's part.

pub mod apply;

use kube::api::DynamicObject;
use meltemi_resources::crds;
use serde::{Deserialize, Serialize};

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
    Ok(objects)
}

/// Whether an object belongs to the node's part, which needs the control plane's root certificate to start.
pub fn is_of_node(object: &DynamicObject) -> bool {
    let is_kind = |kind| object.types.as_ref().is_some_and(|types| types.kind == kind);
    is_kind("DaemonSet") && object.metadata.name.as_deref() == Some("ztunnel")
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
}
