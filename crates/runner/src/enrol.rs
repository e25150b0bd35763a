// SPDX-License-Identifier: Apache-2.0
//! Enrolment of Pods in the mesh, as the CNI agent does it: who is eligible, capture, the node proxy's knowledge,
//! and the annotation that says so.

pub(crate) mod enrolment;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, Patch, PatchParams};
use meltemi_capture::{Options, Plan};
use meltemi_runtime::backoff::Backoff;

use crate::context::{Context, PodEntry};
use crate::lock::lock;
use crate::sandbox::Sandbox;
use crate::zds;

const MODE: &str = "istio.io/dataplane-mode";
const ANNOTATION: &str = "ambient.istio.io/redirection";
/// A new Pod waits this long for the node proxy to know it; then it starts, captured: refused until it does.
const WAIT_FOR_PROXY: Duration = Duration::from_secs(5);
/// And this long when no proxy is connected at all.
const WAIT_FOR_NONE: Duration = Duration::from_secs(2);
/// First and longest pause between two attempts to write the annotation.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Whether a Pod belongs into the mesh.
pub(crate) fn eligible(pod: &Pod, namespace: Option<&BTreeMap<String, String>>) -> bool {
    let spec = pod.spec.as_ref();
    let sidecar =
        pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key("sidecar.istio.io/status"));
    if spec.and_then(|s| s.host_network) == Some(true) || sidecar {
        return false;
    }
    let own = pod.metadata.labels.as_ref().and_then(|l| l.get(MODE)).map(String::as_str);
    let of_namespace = namespace.and_then(|l| l.get(MODE)).map(String::as_str);
    own == Some("ambient") || (of_namespace == Some("ambient") && own != Some("none"))
}

/// Whether the Pod's annotation says that it is enrolled.
fn said(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(ANNOTATION))
}

/// A Pod's own choices.
fn options(pod: &Pod) -> Options {
    let annotation =
        |name: &str| pod.metadata.annotations.as_ref().and_then(|a| a.get(name)).map(String::as_str);
    Options {
        dns_capture: annotation("ambient.istio.io/dns-capture") != Some("false"),
        bypass_inbound: annotation("ambient.istio.io/bypass-inbound-capture") == Some("true"),
        ipv6: true,
    }
}

/// Before the first process of a Pod starts.
pub(crate) async fn before_start(ctx: &Arc<Context>, entry: &Arc<PodEntry>, sandbox: &Arc<Sandbox>) {
    reconcile(ctx, entry, sandbox, true).await;
    let (ctx, entry, sandbox) = (ctx.clone(), entry.clone(), Arc::downgrade(sandbox));
    ctx.clone().job("enrolment", async move {
        let mut object = entry.object.subscribe();
        let mut namespaces = ctx.enrolment.namespaces.subscribe();
        loop {
            let changed = tokio::select! {
                changed = object.changed() => changed,
                changed = namespaces.changed() => changed,
            };
            let Some(sandbox) = sandbox.upgrade() else { return Ok(()) };
            if changed.is_err() || entry.sandbox().is_none() {
                return Ok::<(), std::convert::Infallible>(());
            }
            reconcile(&ctx, &entry, &sandbox, false).await;
        }
    });
}

/// After the last process of a Pod has ended.
pub(crate) async fn after_end(ctx: &Arc<Context>, entry: &Arc<PodEntry>) {
    let gate = ctx.enrolment.gate(&entry.uid);
    let mut enrolled = gate.lock().await;
    if *enrolled {
        *enrolled = false;
        ctx.enrolment.proxies.remove(&entry.uid);
    }
    lock(&ctx.enrolment.gate).remove(&entry.uid);
}

/// Brings a Pod's capture in line with its labels.
async fn reconcile(ctx: &Arc<Context>, entry: &Arc<PodEntry>, sandbox: &Arc<Sandbox>, starting: bool) {
    let gate = ctx.enrolment.gate(&entry.uid);
    let mut enrolled = gate.lock().await;
    if starting && !namespace_known(ctx, &entry.namespace).await {
        tracing::warn!(pod = %entry.full_name(), "the labels of its namespace are not known");
    }
    let pod = entry.pod();
    let wanted = {
        let namespaces = ctx.enrolment.namespaces.borrow();
        eligible(&pod, namespaces.get(&entry.namespace))
    };
    if wanted == *enrolled {
        // Left by an earlier life of the Pod or of this process.
        if starting && !wanted && said(&pod) {
            annotate(ctx, entry, None).await;
        }
        return;
    }
    let result = if wanted {
        enrol(ctx, entry, sandbox, &pod, starting).await
    } else {
        leave(ctx, entry, sandbox).await
    };
    match result {
        Ok(()) => *enrolled = wanted,
        Err(error) => {
            tracing::error!(pod = %entry.full_name(), %error, "enrolment failed");
            ctx.events.warning(&pod, None, "EnrolmentFailed", error.to_string());
        }
    }
}

async fn namespace_known(ctx: &Arc<Context>, name: &str) -> bool {
    let mut namespaces = ctx.enrolment.namespaces.subscribe();
    let known = namespaces.wait_for(|all| all.contains_key(name));
    if tokio::time::timeout(Duration::from_millis(300), known).await.is_ok_and(|r| r.is_ok()) {
        return true;
    }
    let api: Api<Namespace> = Api::all(ctx.client.clone());
    match api.get_opt(name).await {
        Ok(Some(found)) => {
            ctx.enrolment.set_namespace(name, Some(found.metadata.labels.unwrap_or_default()));
            true
        }
        _ => false,
    }
}

async fn enrol(
    ctx: &Arc<Context>,
    entry: &Arc<PodEntry>,
    sandbox: &Arc<Sandbox>,
    pod: &Pod,
    starting: bool,
) -> Result<(), meltemi_capture::Error> {
    let plan = Plan::for_pod(&options(pod));
    let netns = sandbox.netns().try_clone().map_err(meltemi_capture::Error::Routes)?;
    // A running Pod is captured only when the proxy is there for it: until then its traffic goes on as it is.
    let account = pod
        .spec
        .as_ref()
        .and_then(|s| s.service_account_name.clone())
        .unwrap_or_else(|| "default".to_owned());
    let workload = zds::Workload {
        uid: entry.uid.clone(),
        name: entry.name.clone(),
        namespace: entry.namespace.clone(),
        service_account: account,
        netns: Arc::new(sandbox.netns().try_clone().map_err(meltemi_capture::Error::Routes)?),
    };
    let apply = move || meltemi_capture::apply(&netns, &plan);
    if starting {
        blocking(apply).await?;
    }
    let acknowledged = ctx.enrolment.proxies.add(workload);
    let patience = if ctx.enrolment.proxies.any() { WAIT_FOR_PROXY } else { WAIT_FOR_NONE };
    let in_time = tokio::time::timeout(patience, acknowledged).await;
    match in_time {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => {
            tracing::warn!(pod = %entry.full_name(), %reason, "the node proxy did not take the Pod")
        }
        Err(_) => {
            tracing::warn!(pod = %entry.full_name(), "no node proxy has taken the Pod yet: its traffic is refused")
        }
    }
    if !starting {
        let plan = Plan::for_pod(&options(pod));
        let netns = sandbox.netns().try_clone().map_err(meltemi_capture::Error::Routes)?;
        blocking(move || meltemi_capture::apply(&netns, &plan)).await?;
    }
    annotate(ctx, entry, Some("enabled")).await;
    Ok(())
}

async fn leave(
    ctx: &Arc<Context>,
    entry: &Arc<PodEntry>,
    sandbox: &Arc<Sandbox>,
) -> Result<(), meltemi_capture::Error> {
    let netns = sandbox.netns().try_clone().map_err(meltemi_capture::Error::Routes)?;
    blocking(move || meltemi_capture::remove(&netns)).await?;
    ctx.enrolment.proxies.remove(&entry.uid);
    annotate(ctx, entry, None).await;
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, meltemi_capture::Error> + Send + 'static,
) -> Result<T, meltemi_capture::Error> {
    let failed = |e: tokio::task::JoinError| meltemi_capture::Error::Rules(std::io::Error::other(e));
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

/// Says in the Pod's annotation whether it is enrolled. While the API is away, goes on trying beside everything else.
async fn annotate(ctx: &Arc<Context>, entry: &Arc<PodEntry>, value: Option<&'static str>) {
    if try_annotate(ctx, entry, value).await {
        return;
    }
    let (shared, entry) = (ctx.clone(), entry.clone());
    ctx.job("annotation", async move {
        let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
            if !shared.pods().contains_key(&entry.uid) {
                return Ok::<(), std::convert::Infallible>(());
            }
            // It may have changed meanwhile.
            let enrolled = *shared.enrolment.gate(&entry.uid).lock().await;
            if try_annotate(&shared, &entry, enrolled.then_some("enabled")).await {
                return Ok(());
            }
        }
    });
}

/// Whether the annotation is written, or need not be.
async fn try_annotate(ctx: &Context, entry: &PodEntry, value: Option<&str>) -> bool {
    let api: Api<Pod> = Api::namespaced(ctx.client.clone(), &entry.namespace);
    let patch = serde_json::json!({"metadata": {"uid": entry.uid, "annotations": {ANNOTATION: value}}});
    match api.patch_status(&entry.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => true,
        Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => true,
        Err(error) => {
            tracing::warn!(pod = %entry.full_name(), %error, "annotation not written");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_eligible() {
        let ambient = BTreeMap::from([(MODE.to_owned(), "ambient".to_owned())]);
        for (label, host, sidecar, namespace, expected) in [
            (None, false, false, Some(&ambient), true),
            (None, false, false, None, false),
            (Some("none"), false, false, Some(&ambient), false),
            (Some("ambient"), false, false, None, true),
            (Some("ambient"), true, false, Some(&ambient), false),
            (None, false, true, Some(&ambient), false),
        ] {
            let mut pod: Pod = serde_json::from_value(serde_json::json!({
                "metadata": {"name": "p"}, "spec": {"containers": [], "hostNetwork": host}
            }))
            .unwrap();
            pod.metadata.labels = label.map(|l| BTreeMap::from([(MODE.to_owned(), l.to_owned())]));
            if sidecar {
                pod.metadata.annotations =
                    Some(BTreeMap::from([("sidecar.istio.io/status".to_owned(), "{}".to_owned())]));
            }
            assert_eq!(eligible(&pod, namespace), expected, "{label:?} {host} {sidecar}");
        }
    }
}
