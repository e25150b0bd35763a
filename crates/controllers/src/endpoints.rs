// SPDX-License-Identifier: Apache-2.0
//! EndpointSlices and Endpoints of Services with a selector.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use meltemi_runtime::Tasks;

use self::plan::{Group, MANAGED_BY, MANAGER, SERVICE_NAME};
use crate::cache::{Cache, Key};
use crate::cluster::Cluster;
use crate::queue::{Outcome, Queue};

const ENDPOINTS_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";

pub(crate) fn start(cluster: &Arc<Cluster>, tasks: &Tasks) {
    let queue = Queue::default();
    let add = queue.clone();
    cluster.services.subscribe(move |change| {
        if let Some(service) = change.object() {
            add.add(Key::of(&**service));
        }
    });
    let (add, services) = (queue.clone(), cluster.services.clone());
    cluster.pods.subscribe(move |change| {
        let relevant = |pod: &Arc<Pod>| (pod.metadata.labels.clone(), plan::view(pod));
        if change.old.map(relevant) == change.new.map(relevant) {
            return;
        }
        for pod in change.states() {
            for key in selecting(&services, pod) {
                add.add(key);
            }
        }
    });
    let add = queue.clone();
    cluster.slices.subscribe(move |change| {
        for slice in change.states() {
            if slice.labels().get(MANAGED_BY).map(String::as_str) == Some(MANAGER)
                && let Some(service) = slice.labels().get(SERVICE_NAME)
            {
                add.add(Key::new(slice.metadata.namespace.as_deref().unwrap_or_default(), service));
            }
        }
    });
    let add = queue.clone();
    cluster.endpoints.subscribe(move |change| {
        if let Some(endpoints) = change.object() {
            add.add(Key::of(&**endpoints));
        }
    });
    let c = cluster.clone();
    let synced = async move {
        tokio::join!(c.pods.synced(), c.services.synced(), c.slices.synced(), c.endpoints.synced());
    };
    let cluster = cluster.clone();
    queue.run(tasks, "endpointslice-controller", 8, synced, move |key| {
        let cluster = cluster.clone();
        async move { reconcile(&cluster, &key).await }
    });
}

/// The Services whose selector matches the Pod.
fn selecting(services: &Cache<Service>, pod: &Pod) -> Vec<Key> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let all = services.in_namespace(namespace);
    all.iter()
        .filter(|s| plan::selector(s).is_some_and(|sel| plan::selects(sel, pod)))
        .map(|s| Key::of(&**s))
        .collect()
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Outcome {
    let mut slices = cluster.slices.in_namespace(&key.namespace);
    slices.retain(|s| {
        s.labels().get(SERVICE_NAME) == Some(&key.name)
            && s.labels().get(MANAGED_BY).map(String::as_str) == Some(MANAGER)
    });
    let endpoints = cluster.endpoints.get(key);
    let service = cluster.services.get(key).filter(|s| s.metadata.deletion_timestamp.is_none());
    let Some((service, selector)) = service.as_ref().and_then(|s| Some((s, plan::selector(s)?))) else {
        // Without a Service, or for one whose endpoints somebody else writes.
        for slice in &slices {
            cluster.delete(&**slice).await?;
        }
        if let Some(endpoints) = endpoints.filter(|e| e.labels().contains_key(ENDPOINTS_MANAGED_BY)) {
            cluster.delete(&*endpoints).await?;
        }
        return Ok(None);
    };
    let mut pods = cluster.pods.in_namespace(&key.namespace);
    pods.retain(|p| plan::selects(selector, p));
    let groups = plan::groups(service, &pods);
    write_slices(cluster, service, &groups, &slices).await?;
    write_endpoints(cluster, service, &groups, endpoints.as_deref()).await?;
    Ok(None)
}

async fn write_slices(
    cluster: &Cluster,
    service: &Service,
    groups: &[Group],
    existing: &[Arc<EndpointSlice>],
) -> Result<(), kube::Error> {
    let wanted = plan::slices(service, groups);
    for slice in &wanted {
        match existing.iter().find(|s| s.metadata.name == slice.metadata.name) {
            None => drop(cluster.create(&cluster.slices, slice).await?),
            Some(have) if plan::same(have, slice) => {}
            Some(have) => {
                let mut slice = slice.clone();
                slice.metadata.resource_version.clone_from(&have.metadata.resource_version);
                slice.metadata.uid.clone_from(&have.metadata.uid);
                cluster.replace(&cluster.slices, &slice).await?;
            }
        }
    }
    for have in existing.iter().filter(|s| wanted.iter().all(|w| w.metadata.name != s.metadata.name)) {
        cluster.delete(&**have).await?;
    }
    Ok(())
}

async fn write_endpoints(
    cluster: &Cluster,
    service: &Service,
    groups: &[Group],
    existing: Option<&Endpoints>,
) -> Result<(), kube::Error> {
    let subsets = subsets(service, groups);
    let old = existing.and_then(|e| e.subsets.clone()).unwrap_or_default();
    if existing.is_some() && old == subsets {
        return Ok(());
    }
    let mut labels = service.labels().clone();
    labels.insert(ENDPOINTS_MANAGED_BY.into(), "endpoint-controller".into());
    if plan::is_headless(service) {
        labels.insert("service.kubernetes.io/headless".into(), String::new());
    }
    let endpoints = Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            resource_version: existing.and_then(|e| e.metadata.resource_version.clone()),
            uid: existing.and_then(|e| e.metadata.uid.clone()),
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    };
    if existing.is_some() {
        cluster.replace(&cluster.endpoints, &endpoints).await?;
    } else {
        cluster.create(&cluster.endpoints, &endpoints).await?;
    }
    Ok(())
}

/// The older form: a subset for each set of ports, ready and not ready addresses; terminating Pods are left out.
fn subsets(service: &Service, groups: &[Group]) -> Vec<EndpointSubset> {
    let mut subsets = Vec::new();
    for group in groups {
        let ports: Vec<EndpointPort> = group
            .ports
            .iter()
            .map(|p| EndpointPort {
                name: p.name.clone().filter(|n| !n.is_empty()),
                port: p.port,
                protocol: Some(p.protocol.clone()),
                app_protocol: p.app_protocol.clone(),
            })
            .collect();
        let mut by_readiness: BTreeMap<bool, Vec<EndpointAddress>> = BTreeMap::new();
        for member in group.members.iter().filter(|m| !m.terminating || m.ready) {
            let address = EndpointAddress {
                ip: member.address.clone(),
                hostname: member.hostname.clone(),
                node_name: member.node.clone(),
                target_ref: Some(plan::pod_of(service, member)),
            };
            by_readiness.entry(member.ready).or_default().push(address);
        }
        let subset = EndpointSubset {
            addresses: by_readiness.remove(&true),
            not_ready_addresses: by_readiness.remove(&false),
            ports: (!ports.is_empty()).then_some(ports),
        };
        if subset.addresses.is_some() || subset.not_ready_addresses.is_some() {
            subsets.push(subset);
        }
    }
    subsets
}
