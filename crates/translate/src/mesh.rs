// SPDX-License-Identifier: Apache-2.0
//! What is the same for the whole mesh.

use std::sync::Arc;

use meltemi_model::{NamespacedHostname, TrustDomain};

/// Settings that translation needs; the defaults are those of a mesh that was not configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// Trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// DNS suffix of Services, e.g. `cluster.local`.
    pub cluster_domain: Arc<str>,
    /// Name of this cluster, e.g. `Kubernetes`.
    pub cluster_id: Arc<str>,
    /// Namespace whose policies apply to the whole mesh.
    pub root_namespace: Arc<str>,
    /// Name of the network of all workloads, often empty.
    pub network: Arc<str>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            cluster_domain: "cluster.local".into(),
            cluster_id: "Kubernetes".into(),
            root_namespace: "istio-system".into(),
            network: "".into(),
        }
    }
}

impl MeshConfig {
    /// Host name of a Service: `<name>.<namespace>.svc.<domain>`.
    pub fn hostname(&self, namespace: &str, name: &str) -> String {
        format!("{name}.{namespace}.svc.{}", self.cluster_domain)
    }

    /// The key of a Service on the wire.
    pub fn service_key(&self, namespace: &str, name: &str) -> NamespacedHostname {
        NamespacedHostname::new(namespace, self.hostname(namespace, name))
    }
}
