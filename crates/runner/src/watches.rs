// SPDX-License-Identifier: Apache-2.0
//! What the runner watches: its Pods, namespaces, Services and their endpoints, and the image table.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use meltemi_linux::nft;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use crate::context::Context;
use crate::{image, pod, services, vip};

/// Changes that come close together are one.
const SETTLE: Duration = Duration::from_millis(10);
const IMAGES: Duration = Duration::from_secs(1);

/// Starts all watches.
pub(crate) fn start(ctx: &Arc<Context>) {
    service(ctx, "watch pods", pods(ctx.clone()));
    service(ctx, "watch namespaces", namespaces(ctx.clone()));
    service(ctx, "watch images", images(ctx.clone()));
    let changed = Arc::new(Notify::new());
    let services = store::<Service>(ctx, "watch services", &changed);
    let slices = store::<EndpointSlice>(ctx, "watch endpoints", &changed);
    service(ctx, "service addresses", addresses(ctx.clone(), services, slices, changed));
}

fn service(ctx: &Arc<Context>, name: &str, work: impl Future<Output = ()> + Send + 'static) {
    let mut drain = ctx.tasks.drain();
    ctx.tasks.spawn(name, async move {
        tokio::select! {
            () = work => {}
            () = drain.started() => {}
        }
        Ok::<(), Infallible>(())
    });
}

async fn pods(ctx: Arc<Context>) {
    let api: Api<Pod> = Api::all(ctx.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", ctx.config.node_name));
    let mut stream = ctx.watches.follow("Pods of the node", api, config).boxed();
    let mut listed = BTreeSet::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(pod)) => {
                listed.insert(pod.metadata.uid.clone().unwrap_or_default());
                pod::observe(&ctx, Arc::new(pod));
            }
            Ok(Event::InitDone) => {
                let known: Vec<_> = ctx.pods().values().cloned().collect();
                for entry in known.iter().filter(|e| !listed.contains(&e.uid)) {
                    pod::vanished(&ctx, &entry.pod());
                }
            }
            Ok(Event::Apply(pod)) => pod::observe(&ctx, Arc::new(pod)),
            Ok(Event::Delete(pod)) => pod::vanished(&ctx, &pod),
            Err(error) => tracing::debug!(%error, "watch of Pods"),
        }
    }
}

async fn namespaces(ctx: Arc<Context>) {
    let api: Api<Namespace> = Api::all(ctx.client.clone());
    let mut stream = ctx.watches.follow("Namespaces", api, watcher::Config::default()).boxed();
    let (mut known, mut listed) = (BTreeSet::new(), BTreeSet::new());
    let set = |ns: Namespace, known: &mut BTreeSet<String>| {
        let name = ns.metadata.name.unwrap_or_default();
        ctx.enrolment.set_namespace(&name, Some(ns.metadata.labels.unwrap_or_default()));
        known.insert(name);
    };
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(ns)) => {
                listed.insert(ns.metadata.name.clone().unwrap_or_default());
                set(ns, &mut known);
            }
            Ok(Event::Apply(ns)) => set(ns, &mut known),
            Ok(Event::Delete(ns)) => {
                let name = ns.metadata.name.unwrap_or_default();
                ctx.enrolment.set_namespace(&name, None);
                known.remove(&name);
            }
            Ok(Event::InitDone) => {
                // What was deleted while nothing was watched.
                for name in known.difference(&listed) {
                    ctx.enrolment.set_namespace(name, None);
                }
                known.clone_from(&listed);
            }
            Err(error) => tracing::debug!(%error, "watch of namespaces"),
        }
    }
}

/// Keeps all objects of a kind; rings when something has changed.
fn store<K>(ctx: &Arc<Context>, name: &str, changed: &Arc<Notify>) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (reader, writer) = reflector::store::<K>();
    let api: Api<K> = Api::all(ctx.client.clone());
    let stream = ctx.watches.follow(&K::plural(&()), api, watcher::Config::default());
    let (changed, what) = (changed.clone(), name.to_owned());
    service(ctx, name, async move {
        let mut stream = reflector::reflector(writer, stream).boxed();
        while let Some(event) = stream.next().await {
            match event {
                Ok(Event::Init | Event::InitApply(_)) => {}
                Ok(_) => changed.notify_one(),
                Err(error) => tracing::debug!(%error, watch = what, "watch failed"),
            }
        }
    });
    reader
}

async fn addresses(
    ctx: Arc<Context>,
    services: Store<Service>,
    slices: Store<EndpointSlice>,
    changed: Arc<Notify>,
) {
    let range = services::CLUSTER_ADDRESSES;
    let held = [ctx.config.api_address, ctx.config.dns_address];
    let mut applied = None;
    let mut pause = Duration::from_millis(100);
    loop {
        // Asked before the table is made: it has then what the first list had.
        let has_all = services.wait_until_ready().now_or_never().is_some();
        let table = services::table(&services.state(), &slices.state());
        let rules = vip::rules(&table, ctx.config.pod_cidr, range, &held);
        ctx.names.set(table);
        if has_all {
            ctx.names.set_whole();
        }
        if applied.as_ref() != Some(&rules) {
            let next = rules.clone();
            let apply = move || {
                nft::replace_here(&[next], &[])?;
                nft::generation_here()
            };
            let result = tokio::task::spawn_blocking(apply).await;
            match result.map_err(std::io::Error::other).and_then(|r| r) {
                Ok(generation) => {
                    ctx.rules.applied(Some(generation));
                    applied = Some(rules);
                    pause = Duration::from_millis(100);
                }
                Err(error) => {
                    tracing::error!(%error, "rules for Service addresses");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                    continue;
                }
            }
        }
        tokio::select! {
            () = changed.notified() => tokio::time::sleep(SETTLE).await,
            () = ctx.rules.lost() => applied = None,
        }
    }
}

/// Reads the image table again when its file has changed.
async fn images(ctx: Arc<Context>) {
    let stamp = |path: &std::path::Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let mut seen = stamp(&ctx.config.images);
    loop {
        tokio::time::sleep(IMAGES).await;
        let now = stamp(&ctx.config.images);
        if now == seen {
            continue;
        }
        seen = now;
        match image::load(&ctx.config.images) {
            Ok(entries) => ctx.set_images(entries),
            Err(error) => tracing::warn!(%error, "image table not read; the one before stays"),
        }
    }
}
