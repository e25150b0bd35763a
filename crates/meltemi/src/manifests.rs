// SPDX-License-Identifier: Apache-2.0
//! The manifests of `deploy/`, part of the binary: what `up` applies here is what Kubernetes gets.

use kube::api::DynamicObject;
use meltemi_resources::crds;
use serde::{Deserialize, Serialize};

const NAMESPACE: &str = include_str!("../../../deploy/namespace.yaml");
const RBAC: &str = include_str!("../../../deploy/rbac.yaml");
const CONTROL: &str = include_str!("../../../deploy/istiod.yaml");
const NODE: &str = include_str!("../../../deploy/ztunnel.yaml");

/// Every object, in the order in which they are applied.
pub fn objects() -> anyhow::Result<Vec<DynamicObject>> {
    let mut objects = parsed("namespace.yaml", NAMESPACE)?;
    for definition in crds::all() {
        objects.push(dynamic(&definition)?);
    }
    for (name, text) in [("rbac.yaml", RBAC), ("istiod.yaml", CONTROL), ("ztunnel.yaml", NODE)] {
        objects.extend(parsed(name, text)?);
    }
    Ok(objects)
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
        let objects = super::objects().unwrap();
        assert!(objects.iter().all(|o| o.types.is_some() && o.metadata.name.is_some()));
        assert!(objects.len() > 10);
    }
}
