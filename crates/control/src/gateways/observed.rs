// SPDX-License-Identifier: Apache-2.0
//! Watches the Deployments and Services behind Gateways.

use std::collections::HashMap;
use std::convert::Infallible;

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use meltemi_kubeclient::Watches;
use meltemi_model::NamespacedName;
use meltemi_runtime::Tasks;
use meltemi_translate::facts::name_of;
use meltemi_translate::gateways::status::Observed;
use meltemi_translate::labels;

use super::Gateways;

/// Starts the two watchers.
pub(super) fn start(client: Client, tasks: &Tasks, gateways: &Gateways, watches: &Watches) {
    watch(
        Api::<Deployment>::all(client.clone()),
        tasks,
        (gateways, watches),
        "watch gateway Deployments",
        |observed, object| {
            let ready = object.and_then(|d| d.status.as_ref()?.available_replicas).unwrap_or(0);
            observed.ready = u32::try_from(ready).unwrap_or(0);
        },
    );
    watch(Api::<Service>::all(client), tasks, (gateways, watches), "watch gateway Services", see_service);
}

fn see_service(observed: &mut Observed, service: Option<&Service>) {
    let spec = service.and_then(|s| s.spec.as_ref());
    let ips = spec.and_then(|s| s.cluster_ips.clone()).filter(|ips| !ips.is_empty());
    let ips = ips.or_else(|| Some(vec![spec?.cluster_ip.clone()?])).unwrap_or_default();
    observed.cluster_ips = ips.into_iter().filter(|ip| !ip.is_empty() && ip != "None").collect();
    observed.load_balancer = spec.is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer"));
    let ingress = service.and_then(|s| s.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref());
    observed.external = ingress
        .into_iter()
        .flatten()
        .filter_map(|i| match (&i.ip, &i.hostname) {
            (Some(ip), _) if !ip.is_empty() => Some(("IPAddress".to_owned(), ip.clone())),
            (_, Some(host)) if !host.is_empty() => Some(("Hostname".to_owned(), host.clone())),
            _ => None,
        })
        .collect();
}

fn gateway_of(meta: &ObjectMeta) -> Option<NamespacedName> {
    let name = meta.labels.as_ref()?.get(labels::GATEWAY_NAME)?;
    Some(NamespacedName::new(meta.namespace.as_deref()?, name.as_str()))
}

fn watch<K>(
    api: Api<K>,
    tasks: &Tasks,
    (gateways, watches): (&Gateways, &Watches),
    name: &'static str,
    see: fn(&mut Observed, Option<&K>),
) where
    K: Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let gateways = gateways.clone();
    gateways.expect(name);
    let mut drain = tasks.drain();
    let config = watcher::Config::default().labels(labels::MANAGED);
    let followed = watches.follow(name.trim_start_matches("watch "), api, config);
    tasks.spawn(name, async move {
        let mut stream = followed.boxed();
        let mut known: HashMap<NamespacedName, NamespacedName> = HashMap::new();
        let mut listed: HashMap<NamespacedName, NamespacedName> = HashMap::new();
        loop {
            let event = tokio::select! {
                () = drain.started() => return Ok::<(), Infallible>(()),
                event = stream.next() => event,
            };
            match event {
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object))) => {
                    if let Some(gateway) = gateway_of(object.meta()) {
                        known.insert(name_of(object.meta()), gateway.clone());
                        listed.insert(name_of(object.meta()), gateway.clone());
                        gateways.observe(&gateway, |observed| see(observed, Some(&object)));
                    }
                }
                Some(Ok(watcher::Event::Delete(object))) => {
                    if let Some(gateway) = known.remove(&name_of(object.meta())) {
                        gateways.observe(&gateway, |observed| see(observed, None));
                    }
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    for (name, gateway) in std::mem::replace(&mut known, listed.clone()) {
                        if !listed.contains_key(&name) {
                            gateways.observe(&gateway, |observed| see(observed, None));
                        }
                    }
                    gateways.synced(name);
                }
                Some(Err(error)) => tracing::warn!(%error, "watching failed, trying again"),
                None => return Ok(()),
            }
        }
    });
}
