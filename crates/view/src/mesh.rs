// SPDX-License-Identifier: Apache-2.0
//! Everything that a proxy is told, as it stands at one moment.

mod http_policy;
mod http_sets;
mod jwt;
mod listeners;
pub(crate) mod targeted;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meltemi_model::NamespacedHostname;
use meltemi_model::l7::{PathNormalization, Provider, Route, Settings, Target, TlsSecret};
use meltemi_state::Snapshot;

use crate::denial::Denial;

pub use self::http_policy::ValidHttpPolicy;
pub use self::http_sets::HttpSets;
pub use self::jwt::ValidJwt;
pub use self::listeners::Listeners;
pub use self::targeted::{Attached, Targeted};

/// Everything that a proxy is told. A clone shares what does not change: each message of the control plane makes one.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    /// Workloads, services, layer 4 policies.
    pub snapshot: Snapshot,
    /// Layer 7 policies, by name.
    pub http_policies: Arc<Targeted<ValidHttpPolicy>>,
    /// Their sets, by what they apply to.
    pub http_sets: HttpSets,
    /// Routes.
    pub routes: Targeted<Route>,
    /// Listeners.
    pub listeners: Listeners,
    /// Token rules.
    pub jwts: Targeted<ValidJwt>,
    /// Certificates.
    pub secrets: Arc<BTreeMap<String, Arc<TlsSecret>>>,
    /// What is the same for the whole mesh.
    pub settings: Arc<BTreeMap<String, Arc<Settings>>>,
    /// Layer 7 policies and token rules that were refused: their targets are not known, so nothing is allowed until they
    /// are mended.
    pub refused: BTreeMap<String, String>,
    /// Types of which not everything has been heard since the start.
    pub unheard: BTreeSet<String>,
}

impl Mesh {
    /// Checks that every subscribed type was received once. Until then nothing is authorized: a policy that is still on its way
    /// might deny.
    ///
    /// # Errors
    /// A denial that says what is missing.
    pub fn heard(&self) -> Result<(), Denial> {
        let Some(first) = self.unheard.first() else { return Ok(()) };
        Err(Denial::NotSynced { waiting_for: first.clone() })
    }

    /// Whether a layer 7 policy only reports (AUDIT, or a dry run); without one no request has to ask.
    pub fn has_reports(&self) -> bool {
        self.http_policies.has_reports()
    }

    /// Whether some policy or token rule judges for the Pods of a Service ([`Target::Backend`]); without one no request has to
    /// ask.
    pub fn has_closed(&self) -> bool {
        self.http_policies.has_backends() || self.jwts.has_backends()
    }

    /// Whether some policy or token rule judges for the Pods of this Service.
    pub fn is_closed(&self, service: &NamespacedHostname) -> bool {
        let target = Target::Backend(service.clone());
        self.http_policies.is_attached_to(&target) || self.jwts.is_attached_to(&target)
    }

    /// Whether a layer 7 policy asks an external authorizer; without one no request has to ask.
    pub fn has_providers(&self) -> bool {
        self.http_policies.has_asking()
    }

    /// The external authorizer of a name.
    pub fn provider(&self, name: &str) -> Option<&Provider> {
        self.settings
            .values()
            .flat_map(|settings| &settings.providers)
            .find(|provider| &*provider.name == name)
    }

    /// How paths are normalised; as Istio does by default until the control plane has said it.
    pub fn path_normalization(&self) -> PathNormalization {
        self.settings.values().next().map(|s| s.path_normalization).unwrap_or_default()
    }
}
