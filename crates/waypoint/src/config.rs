// SPDX-License-Identifier: Apache-2.0
//! What a proxy is started with.

use meltemi_identity::CertManager;
use meltemi_identity::channel::ControlPlane;
use meltemi_model::{NamespacedName, SpiffeId};
use meltemi_runtime::metrics::Metrics;
use meltemi_runtime::telemetry::Format;
use meltemi_view::access_log::AccessLog;
use meltemi_view::view::View;

use crate::limits::Limits;

/// What a waypoint or gateway is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Gateway that it serves.
    pub gateway: NamespacedName,
    /// Its own Pod.
    pub pod: NamespacedName,
    /// Its identity.
    pub identity: SpiffeId,
    /// Where the control plane is.
    pub control: ControlPlane,
    /// Its cluster.
    pub cluster_id: String,
    /// Its address, for the node id.
    pub instance_ip: String,
    /// Form of the access log.
    pub log_format: Format,
    /// Threads that serve the connections of clients; without any the runtime of the caller does.
    pub workers: usize,
    /// Ports of readiness, metrics, admin.
    pub ready_port: u16,
    /// Metrics.
    pub stats_port: u16,
    /// Admin, loopback only.
    pub admin_port: u16,
}

/// What a proxy works with.
#[derive(Clone, Debug)]
pub struct Parts {
    /// What it is told.
    pub view: View,
    /// Its certificate.
    pub certs: CertManager,
    /// Where its lines go.
    pub log: AccessLog,
    /// Where its metrics are registered.
    pub metrics: Metrics,
    /// How long clients may take.
    pub limits: Limits,
}
