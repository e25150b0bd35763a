// SPDX-License-Identifier: Apache-2.0
//! The life of one Pod: sandbox, network, capture, volumes, init containers, containers, end.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Preconditions};
use meltemi_enrolment::Capture;
use tokio::sync::watch;

use crate::context::{Context, PodEntry};
use crate::restart::RestartPolicy;
use crate::sandbox::Sandbox;
use crate::state::State;
use crate::{enrol, net, rights, unenforced, volumes};

mod backoff;
pub(crate) mod ephemeral;
mod run;
mod status;

/// How often volumes are looked at although nothing they show has changed: tokens are renewed then.
const REFRESH: Duration = Duration::from_secs(60);
/// Longest pause after a failure: what failed during an outage of the API is done within this time after it.
const MAX_RETRY: Duration = Duration::from_secs(2);

/// Takes a Pod of this node over, or tells its task of the new object.
pub(crate) fn observe(ctx: &Arc<Context>, pod: Arc<Pod>) {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let mut pods = ctx.pods();
    if let Some(entry) = pods.get(&uid) {
        entry.object.send_replace(pod);
        entry.changed.notify_one();
        return;
    }
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    let over = phase == "Succeeded" || phase == "Failed";
    if over && pod.metadata.deletion_timestamp.is_none() {
        return;
    }
    let state = State::of(&pod, IpAddr::V4(ctx.config.address), Timestamp::now());
    let entry = Arc::new(PodEntry::new(pod, state));
    pods.insert(uid.clone(), entry.clone());
    drop(pods);
    let ctx = ctx.clone();
    ctx.clone().job("pod", async move {
        live(&ctx, &entry).await;
        ctx.pods().remove(&uid);
        Ok::<(), Infallible>(())
    });
}

/// A Pod has gone from the API (forced deletion): its processes go at once.
pub(crate) fn vanished(ctx: &Arc<Context>, pod: &Pod) {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let entry = ctx.pods().get(&uid).cloned();
    if let Some(entry) = entry {
        let mut gone = (*entry.pod()).clone();
        gone.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now()));
        gone.metadata.deletion_grace_period_seconds = Some(0);
        entry.object.send_replace(Arc::new(gone));
    }
}

async fn live(ctx: &Arc<Context>, entry: &Arc<PodEntry>) {
    let (over_tx, over) = watch::channel(false);
    let reporting = status::report(ctx, entry, over);
    let living = async {
        let mut object = entry.object.subscribe();
        let asked = async {
            let _ = object.wait_for(|p| p.metadata.deletion_timestamp.is_some()).await;
        };
        tokio::select! {
            () = work(ctx, entry) => {}
            () = asked => {}
            () = deadline(entry) => {
                let message = "Pod was active on the node longer than the specified deadline".to_owned();
                ctx.events.normal(&entry.pod(), None, "DeadlineExceeded", message.clone());
                run::terminate(ctx, entry).await;
                entry.update(|s| s.failed = Some(("DeadlineExceeded".to_owned(), message)));
            }
        }
        // Finished Pods stay until somebody deletes them.
        let mut object = entry.object.subscribe();
        if entry.pod().metadata.deletion_timestamp.is_none() {
            release(ctx, entry).await;
            let _ = object.wait_for(|p| p.metadata.deletion_timestamp.is_some()).await;
        }
        run::terminate(ctx, entry).await;
        release(ctx, entry).await;
        over_tx.send_replace(true);
    };
    tokio::join!(living, reporting);
    delete(ctx, entry).await;
    let dir = ctx.config.pods_dir.join(&entry.uid);
    let logs = ctx.config.logs_dir.join(format!("{}_{}_{}", entry.namespace, entry.name, entry.uid));
    let _ = tokio::task::spawn_blocking(move || {
        let _ = std::fs::remove_dir_all(dir);
        std::fs::remove_dir_all(logs)
    })
    .await;
}

/// Resolves when the Pod has been active for as long as it may.
async fn deadline(entry: &Arc<PodEntry>) {
    let mut object = entry.object.subscribe();
    loop {
        let seconds = object.borrow_and_update().spec.as_ref().and_then(|s| s.active_deadline_seconds);
        let passed = Timestamp::now().duration_since(entry.state().started);
        let left = seconds.map(|s| jiff::SignedDuration::from_secs(s).saturating_sub(passed));
        let over = async {
            match left {
                Some(left) => tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => return,
            changed = object.changed() => if changed.is_err() { return std::future::pending().await },
        }
    }
}

/// Everything from the sandbox to the last container's end.
async fn work(ctx: &Arc<Context>, entry: &Arc<PodEntry>) {
    let pod = entry.pod();
    // An earlier life of the runner has begun it, and it runs once.
    if entry.state().is_over(RestartPolicy::of_pod(&pod)) {
        return;
    }
    let mut pause = Duration::from_millis(200);
    let sandbox = loop {
        match set_up(ctx, entry).await {
            Ok(sandbox) => break sandbox,
            Err(error) => {
                let message = format!("Failed to create pod sandbox: {error}");
                ctx.events.warning(&entry.pod(), None, "FailedCreatePodSandBox", message);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_RETRY);
            }
        }
    };
    report_unenforced(ctx, entry, &sandbox);
    let dir = ctx.config.pods_dir.join(&entry.uid);
    let owner = volumes::Owner::of(&sandbox, &entry.pod());
    let mut pause = Duration::from_millis(100);
    let mut configs = ctx.configs.changes();
    while let Err(error) = volumes::prepare(ctx, &entry.pod(), &dir, owner).await {
        ctx.events.warning(&entry.pod(), None, "FailedMount", error.to_string());
        // What is missing is most often a config map that is about to be written.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = configs.changed() => {}
        }
        pause = (pause * 2).min(Duration::from_secs(2));
    }
    let refreshing = async {
        if !volumes::changes(&entry.pod()) {
            std::future::pending::<()>().await;
        }
        let (mut configs, mut object) = (ctx.configs.changes(), entry.object.subscribe());
        loop {
            tokio::select! {
                () = tokio::time::sleep(REFRESH) => {}
                _ = configs.changed() => {}
                // Labels and annotations may be shown in a volume.
                _ = object.changed() => {}
            }
            if let Err(error) = volumes::prepare(ctx, &entry.pod(), &dir, owner).await {
                tracing::debug!(pod = %entry.full_name(), %error, "volumes not refreshed");
            }
        }
    };
    tokio::select! {
        () = run::containers(ctx, entry, &sandbox) => {}
        () = ephemeral::run(ctx, entry, &sandbox) => {}
        () = refreshing => {}
    }
}

/// Makes the sandbox and captures its traffic: a Pod that should be captured is, or it has no sandbox and nothing starts.
async fn set_up(ctx: &Arc<Context>, entry: &Arc<PodEntry>) -> std::io::Result<Arc<Sandbox>> {
    let sandbox = sandbox(ctx, entry).await?;
    entry.set_sandbox(Some(sandbox.clone()));
    let Err(error) = enrol::before_start(ctx, entry, &sandbox).await else { return Ok(sandbox) };
    drop(sandbox);
    release(ctx, entry).await;
    let message = error.to_string();
    entry.update(|s| {
        s.address = None;
        s.capture = Capture::Not { reason: "CaptureFailed", message: message.clone() };
    });
    Err(std::io::Error::other(message))
}

/// Names what the Pod asks for and this machine does not give.
fn report_unenforced(ctx: &Context, entry: &PodEntry, sandbox: &Sandbox) {
    let pod = entry.pod();
    let fields = unenforced::fields(&pod, |limit| ctx.cgroups.holds(limit));
    if !fields.is_empty() {
        let message = format!("not in force on this machine: {}", fields.join(", "));
        ctx.events.normal(&pod, None, "NotEnforced", message);
    }
    if sandbox.users().is_some_and(crate::users::Users::is_single) {
        let message = "all users of this Pod are the user that the mesh runs as: more need newuidmap (package \
                       uidmap) and ranges of that user in /etc/subuid and /etc/subgid";
        ctx.events.warning(&pod, None, "OneUser", message.to_owned());
    }
}

/// Makes the Pod's namespaces and connects them.
async fn sandbox(ctx: &Arc<Context>, entry: &Arc<PodEntry>) -> std::io::Result<Arc<Sandbox>> {
    let host = entry.host_network();
    let pod = entry.pod();
    let users = match rights::is_system(&pod) {
        true => None,
        false => {
            let mut named = rights::named_ids(&pod);
            named.append(&mut crate::container::image_ids(ctx, &pod));
            Some(ctx.users.take(&named)?)
        }
    };
    if host {
        enrol::check_host_network(ctx, entry).await.map_err(std::io::Error::other)?;
        let sandbox = tokio::task::spawn_blocking(|| Sandbox::start(true, users)).await??;
        entry.update(|s| s.address = Some(IpAddr::V4(ctx.config.address)));
        return Ok(Arc::new(sandbox));
    }
    let wish = pod.status.as_ref().and_then(|s| s.pod_ip.as_ref()).and_then(|ip| ip.parse::<Ipv4Addr>().ok());
    let address = ctx.pool().take(&entry.uid, wish);
    let address = address.ok_or_else(|| std::io::Error::other("no address left in the node's range"))?;
    let node = ctx.config.address;
    let made = tokio::task::spawn_blocking(move || {
        let sandbox = Sandbox::start(false, users)?;
        net::disconnect_pod(address)?;
        net::connect_pod(sandbox.netns(), address, node)?;
        if let Some(users) = sandbox.users() {
            net::allow_ping(sandbox.netns(), users.first_run())?;
        }
        Ok::<_, std::io::Error>(sandbox)
    })
    .await?;
    match made {
        Ok(sandbox) => {
            entry.update(|s| s.address = Some(IpAddr::V4(address)));
            Ok(Arc::new(sandbox))
        }
        Err(error) => {
            ctx.pool().give_back(address);
            Err(error)
        }
    }
}

/// Takes the Pod's sandbox and address back.
async fn release(ctx: &Arc<Context>, entry: &Arc<PodEntry>) {
    enrol::after_end(ctx, entry).await;
    entry.running().clear();
    let Some(sandbox) = entry.sandbox() else { return };
    entry.set_sandbox(None);
    sandbox.end();
    let _ = tokio::time::timeout(Duration::from_secs(5), sandbox.ended()).await;
    drop(sandbox);
    let (cgroups, uid) = (ctx.clone(), entry.uid.clone());
    let _ = tokio::task::spawn_blocking(move || cgroups.cgroups.remove_pod(&uid)).await;
    if let (false, Some(IpAddr::V4(address))) = (entry.host_network(), entry.state().address) {
        let _ = tokio::task::spawn_blocking(move || net::disconnect_pod(address)).await;
        ctx.pool().give_back(address);
    }
}

/// Tells the API that nothing of the Pod is left.
async fn delete(ctx: &Arc<Context>, entry: &Arc<PodEntry>) {
    let api: Api<Pod> = Api::namespaced(ctx.client.clone(), &entry.namespace);
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: Some(entry.uid.clone()), resource_version: None }),
        ..DeleteParams::default()
    };
    let mut pause = Duration::from_millis(100);
    loop {
        match api.delete(&entry.name, &params).await {
            Ok(_) => return,
            Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => return,
            Err(error) => tracing::warn!(pod = %entry.full_name(), %error, "Pod not deleted"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_RETRY);
    }
}
