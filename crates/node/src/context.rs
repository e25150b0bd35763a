// SPDX-License-Identifier: Apache-2.0
//! What every connection of the proxy shares, and how one is admitted.

use std::net::SocketAddr;

use meltemi_identity::CertManager;
use meltemi_model::TrustDomain;
use meltemi_policy::Permit;
use meltemi_runtime::Tasks;
use meltemi_view::access_log::AccessLog;
use meltemi_view::metrics::TcpMetrics;
use meltemi_view::{Denial, Guard, L4Request, Mesh, View};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connections::Connections;

/// Shared by all workers and Pods.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) view: View,
    pub(crate) certificates: CertManager,
    pub(crate) metrics: TcpMetrics,
    pub(crate) log: AccessLog,
    pub(crate) tasks: Tasks,
    pub(crate) cluster_id: String,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) resolver: SocketAddr,
    pub(crate) connections: Connections,
    pub(crate) connections_per_pod: usize,
    /// What a drain waits for.
    pub(crate) open: TaskTracker,
    /// Nothing further is accepted: a drain has begun, and another proxy has taken over or nothing is open any more.
    pub(crate) closing: CancellationToken,
}

impl Context {
    /// Judges a connection and keeps it judged. What is not known yet is waited for, for a second; then it is denied by name.
    pub(crate) async fn admit(&self, request: L4Request) -> Result<(Permit, Guard), Denial> {
        let mut changes = self.view.changes();
        let deadline = tokio::time::Instant::now() + View::patience();
        loop {
            changes.borrow_and_update();
            let label = format!("{} -> {}", request.from, request.to).into();
            let (judged, workload) = (request.clone(), request.workload.clone());
            let judge = move |mesh: &Mesh| judged.judge(mesh);
            let opened = self.view.registry.open_to_workload(workload, label, || self.view.mesh(), judge);
            match opened {
                Err(denied) if denied.is_transient() => {
                    let waited = tokio::time::timeout_at(deadline, changes.changed()).await;
                    if !matches!(waited, Ok(Ok(()))) {
                        return Err(denied);
                    }
                }
                other => return other,
            }
        }
    }
}
