// SPDX-License-Identifier: Apache-2.0
//! AuthorizationPolicies as they come and go: read, and noted with what they are for.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::api::DynamicObject;
use meltemi_model::NamespacedName;
use meltemi_resources::policies::validate;
use meltemi_translate::facts::Labels;
use meltemi_translate::index::PolicyFacts;
use meltemi_translate::security::attachment::Attached;
use meltemi_translate::security::authorization::{self, Authorization, Reference};
use meltemi_translate::security::{layer4, stand_in};
use meltemi_translate::{Change, MeshConfig};
use serde_json::Value;

use super::enforced::Generations;
use super::{Entry, Security, settings};
use crate::source::Kind;

/// What of an object may have to be read again when the mesh's settings change.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Source {
    pub(super) spec: Value,
    pub(super) annotations: Labels,
}

impl Source {
    pub(super) fn of(object: &DynamicObject) -> Self {
        let mut annotations = object.metadata.annotations.clone().unwrap_or_default();
        annotations.retain(|key, _| key == validate::DRY_RUN);
        Self { spec: object.data.get("spec").cloned().unwrap_or_default(), annotations }
    }
}

impl Security {
    /// Takes other settings of the mesh: reads every policy again.
    pub fn set_mesh(&mut self, mesh: MeshConfig) {
        if self.mesh == mesh {
            return;
        }
        self.settings = Some(settings(&mesh));
        self.mesh = mesh;
        let all: Vec<_> =
            self.policies.iter().map(|(n, e)| (n.clone(), e.generation, e.object.clone())).collect();
        for (name, generation, object) in all {
            self.read(&name, generation, object);
        }
    }

    /// An object is new, changed or gone.
    pub fn set(&mut self, kind: Kind, name: &NamespacedName, object: Option<&Arc<DynamicObject>>) {
        let object = object.map(|o| &**o);
        match kind {
            Kind::AuthorizationPolicy => match object {
                Some(object) => self.read(name, object.metadata.generation, Source::of(object)),
                None => self.forget(name),
            },
            Kind::PeerAuthentication => self.changes.extend(self.peers.set(name, object)),
            Kind::RequestAuthentication => self.tokens.set(name, object),
            _ => {}
        }
    }

    fn forget(&mut self, name: &NamespacedName) {
        self.policies.remove(name);
        self.unreported.remove(name);
        self.pending.remove(name);
        self.moved.remove(name);
        self.unattached.insert(name.clone());
        self.changes.push(Change::Policy(name.clone(), None));
        self.target(name, BTreeSet::new());
    }

    fn read(&mut self, name: &NamespacedName, generation: Option<i64>, object: Source) {
        let read = validate::spec(&serde_json::json!({ "spec": object.spec }))
            .and_then(|spec| authorization::read(name, &spec, &object.annotations, &self.mesh));
        let (authorization, fault) = match (read, self.policies.get_mut(name)) {
            (Ok(authorization), _) => (authorization, None),
            (Err(reason), Some(entry)) if entry.authorization.faults.is_empty() => {
                tracing::error!(policy = %name, %reason, "AuthorizationPolicy is not valid; what was known of it stays");
                entry.generation = generation;
                entry.fault = Some(reason);
                self.unreported.insert(name.clone());
                return;
            }
            (Err(reason), _) => {
                tracing::error!(policy = %name, %reason, "AuthorizationPolicy is not valid; what cannot be read lets nothing through");
                let mesh = &self.mesh;
                let instead = stand_in::read(name, &object.spec, &object.annotations, mesh, reason.clone());
                (instead, Some(reason))
            }
        };
        self.take(name, generation, object, authorization, fault);
    }

    fn take(
        &mut self,
        name: &NamespacedName,
        generation: Option<i64>,
        object: Source,
        authorization: Authorization,
        fault: Option<String>,
    ) {
        let since = match self.policies.get_mut(name) {
            Some(entry) if *entry.authorization == authorization => {
                if entry.generation != generation || entry.fault != fault {
                    (entry.generation, entry.fault, entry.object) = (generation, fault, object);
                    self.unreported.insert(name.clone());
                }
                return;
            }
            Some(entry) => entry.since,
            None => Generations::default(),
        };
        let projected = layer4::project(&authorization);
        let facts = projected.policy.as_ref().map(|policy| PolicyFacts {
            policy: policy.policy().clone(),
            selector: authorization.selector.clone(),
        });
        self.changes.push(Change::Policy(name.clone(), facts));
        self.target(name, services(name, &authorization.targets));
        let attached = Attached::default();
        let authorization = Arc::new(authorization);
        let remarks = Vec::new();
        let entry = Entry { object, generation, authorization, projected, fault, attached, since, remarks };
        self.policies.insert(name.clone(), entry);
        self.moved.insert(name.clone());
        self.unattached.insert(name.clone());
        self.unreported.insert(name.clone());
    }

    /// Notes which Services a policy targets.
    fn target(&mut self, policy: &NamespacedName, services: BTreeSet<NamespacedName>) {
        self.by_service.retain(|_, policies| {
            policies.remove(policy);
            !policies.is_empty()
        });
        for service in &services {
            self.by_service.entry(service.clone()).or_default().insert(policy.clone());
        }
        self.changes.push(Change::Targets(policy.clone(), services.into_iter().collect()));
    }
}

/// Services among targets.
pub(super) fn services(policy: &NamespacedName, targets: &[Reference]) -> BTreeSet<NamespacedName> {
    let service = |target: &Reference| match target {
        Reference::Service(name) => Some(NamespacedName::new(policy.namespace.clone(), name.as_str())),
        _ => None,
    };
    targets.iter().filter_map(service).collect()
}
