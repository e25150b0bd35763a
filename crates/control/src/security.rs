// SPDX-License-Identifier: Apache-2.0
//! Objects of `security.istio.io`: kept, translated, attached, and reported on.

use std::collections::HashMap;
use std::sync::Arc;

use gateway_api::gateways::Gateway;
use kube::api::DynamicObject;
use meltemi_model::NamespacedName;
use meltemi_translate::{Change, Index, MeshConfig};

use crate::publish::Step;
use crate::source::Kind;
use crate::status::StatusQueue;

/// The objects.
#[derive(Debug)]
pub struct Security {
    #[expect(dead_code, reason = "read by the translation of policies")]
    mesh: MeshConfig,
    objects: HashMap<(Kind, NamespacedName), Arc<DynamicObject>>,
}

impl Security {
    /// No objects yet.
    pub fn new(mesh: MeshConfig) -> Self {
        Self { mesh, objects: HashMap::new() }
    }

    /// An object is new, changed or gone.
    pub fn set(&mut self, kind: Kind, name: &NamespacedName, object: Option<&Arc<DynamicObject>>) {
        match object {
            Some(object) => self.objects.insert((kind, name.clone()), object.clone()),
            None => self.objects.remove(&(kind, name.clone())),
        };
    }

    /// A Service changed, or its waypoint did.
    pub fn see_service(&mut self, _name: &NamespacedName) {}

    /// A Gateway changed or is gone.
    pub fn see_gateway(&mut self, _name: &NamespacedName, _gateway: Option<&Arc<Gateway>>) {}

    /// Changes for the index.
    pub fn changes(&mut self, _index: &Index) -> Vec<Change> {
        Vec::new()
    }

    /// Adds layer 7 policies to a step.
    pub fn flush(&mut self, _index: &Index, _step: &mut Step) {}

    /// A step became a generation.
    pub fn published(&mut self, _generation: u64, _step: &Step) {}

    /// Hands on statuses.
    pub fn report(&mut self, _index: &Index, _status: &StatusQueue) {}
}
