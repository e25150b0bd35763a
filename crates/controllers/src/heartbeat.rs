// SPDX-License-Identifier: Apache-2.0
//! Says in the API, by a Lease, that the controllers are alive and which of their watches are behind, for people who look.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::{Patch, PatchParams};
use meltemi_runtime::Tasks;
use serde_json::json;
use tokio::time::Instant;

use crate::cluster::Cluster;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-controller-manager";
const MANAGER: &str = "kube-controller-manager";
/// Interval between two renewals.
const INTERVAL: Duration = Duration::from_secs(5);
/// A Lease that is older than this belongs to controllers that no longer run.
const LEASE_SECONDS: i32 = 15;

pub(crate) fn start(cluster: &Arc<Cluster>, tasks: &Tasks) {
    let (cluster, mut drain) = (cluster.clone(), tasks.drain());
    tasks.spawn("heartbeat", async move {
        loop {
            if let Err(error) = renew(&cluster).await {
                tracing::debug!(%error, "lease not renewed");
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = drain.started() => return Ok::<(), Infallible>(()),
            }
        }
    });
}

async fn renew(cluster: &Cluster) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": NAME, "annotations": cluster.watches.annotations(Instant::now())},
        "spec": {
            "holderIdentity": NAME, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": MicroTime(Timestamp::now()),
        },
    });
    api.patch(NAME, &PatchParams::apply(MANAGER).force(), &Patch::Apply(lease)).await.map(drop)
}
