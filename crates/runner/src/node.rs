// SPDX-License-Identifier: Apache-2.0
//! The node in the API: registered, its conditions kept, its lease renewed.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::context::Context;
use crate::downward;

const RENEW: Duration = Duration::from_secs(5);
/// Pause after a renewal that failed: the node is heard again this soon after the API can be reached.
const RETRY: Duration = Duration::from_secs(1);
const LEASE_SECONDS: i32 = 20;
const MANAGER: &str = "kubelet";
const KUBELET_PORT: u16 = 10250;

/// Registers the node (again) until it is there.
pub(crate) async fn register(ctx: &Context) {
    let mut pause = Duration::from_millis(50);
    while let Err(error) = try_register(ctx).await {
        tracing::info!(%error, "the node is not registered yet");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

async fn try_register(ctx: &Context) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(ctx.client.clone());
    let name = ctx.config.node_name.as_str();
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let labels: BTreeMap<&str, &str> = BTreeMap::from([
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ]);
    let cidr = ctx.config.pod_cidr.to_string();
    let spec = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
    let body = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": spec});
    match api.get_opt(name).await? {
        None => {
            let node: Node = serde_json::from_value(body).map_err(kube::Error::SerdeError)?;
            api.create(
                &PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() },
                &node,
            )
            .await?;
        }
        Some(_) => {
            api.patch(name, &PatchParams::default(), &Patch::Merge(body)).await?;
        }
    }
    write_status(ctx).await
}

async fn write_status(ctx: &Context) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(ctx.client.clone());
    let name = ctx.config.node_name.as_str();
    let before =
        api.get_opt(name).await?.and_then(|n| n.status).and_then(|s| s.conditions).unwrap_or_default();
    let now = Time(Timestamp::now());
    let conditions: Vec<_> = [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ]
    .iter()
    .map(|(kind, status, reason, message)| {
        let old = before.iter().find(|c| c.type_ == *kind && c.status == *status);
        let since = old.and_then(|c| c.last_transition_time.clone()).unwrap_or_else(|| now.clone());
        json!({"type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": since})
    })
    .collect();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    let memory = format!("{}Ki", downward::memory() / 1024);
    let capacity = json!({"cpu": cpus, "memory": memory, "pods": "110", "ephemeral-storage": "10Gi"});
    let status = json!({"status": {
        "addresses": [
            {"type": "InternalIP", "address": ctx.config.address.to_string()},
            {"type": "Hostname", "address": name},
        ],
        "capacity": capacity, "allocatable": capacity, "conditions": conditions,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": KUBELET_PORT}},
        "nodeInfo": node_info(),
    }});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.map(drop)
}

fn node_info() -> serde_json::Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let release = read("/etc/os-release");
    let pretty = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
    let arch = if std::env::consts::ARCH == "x86_64" { "amd64" } else { "arm64" };
    json!({
        "machineID": "", "systemUUID": "", "bootID": read("/proc/sys/kernel/random/boot_id"),
        "kernelVersion": read("/proc/sys/kernel/osrelease"), "osImage": pretty.trim_matches('"'),
        "containerRuntimeVersion": format!("meltemi://{}", env!("CARGO_PKG_VERSION")),
        "kubeletVersion": format!("v1.35.0+meltemi-{}", env!("CARGO_PKG_VERSION")),
        "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": arch,
    })
}

/// Renews the lease, and the status now and then.
pub(crate) async fn heartbeat(ctx: Arc<Context>) -> Result<(), Infallible> {
    let mut drain = ctx.tasks.drain();
    let mut beats: u32 = 0;
    loop {
        let renewed = renew(&ctx).await;
        if let Err(error) = &renewed {
            tracing::debug!(%error, "lease not renewed");
        }
        if (beats % 12 == 11 || !is_ready(&ctx).await)
            && let Err(error) = try_register(&ctx).await
        {
            tracing::debug!(%error, "node status not written");
        }
        beats = beats.wrapping_add(1);
        tokio::select! {
            () = tokio::time::sleep(if renewed.is_ok() { RENEW } else { RETRY }) => {}
            () = drain.started() => return Ok(()),
        }
    }
}

/// Whether the API says that the node is ready. Somebody may have taken it for lost; an answer that fails says nothing.
async fn is_ready(ctx: &Context) -> bool {
    let api: Api<Node> = Api::all(ctx.client.clone());
    let Ok(found) = api.get_opt(&ctx.config.node_name).await else { return true };
    let conditions = found.and_then(|n| n.status).and_then(|s| s.conditions).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

async fn renew(ctx: &Context) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(ctx.client.clone(), "kube-node-lease");
    let name = ctx.config.node_name.as_str();
    let spec = json!({
        "holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": MicroTime(Timestamp::now()),
    });
    // Which watches are behind, for people who look.
    let annotations = ctx.watches.annotations(tokio::time::Instant::now());
    let metadata = json!({"name": name, "annotations": annotations});
    let body =
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec});
    let patch = json!({"metadata": {"annotations": annotations}, "spec": spec});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(e)) if e.code == 404 => {
            let lease: Lease = serde_json::from_value(body).map_err(kube::Error::SerdeError)?;
            api.create(&PostParams::default(), &lease).await.map(drop)
        }
        Err(error) => Err(error),
    }
}
