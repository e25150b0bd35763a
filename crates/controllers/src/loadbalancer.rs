// SPDX-License-Identifier: Apache-2.0
//! Services of type LoadBalancer get an address of the private pool at once.

use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use meltemi_runtime::Tasks;
use serde_json::json;

use crate::cache::Key;
use crate::cluster::Cluster;
use crate::queue::{Outcome, Queue};

const NAME: &str = "service-controller";

pub(crate) fn start(cluster: &Arc<Cluster>, tasks: &Tasks) {
    let queue = Queue::default();
    let (add, services) = (queue.clone(), cluster.services.clone());
    cluster.services.subscribe(move |change| {
        match change.new {
            Some(service) => add.add(Key::of(&**service)),
            // An address is free again.
            None => {
                let waiting = services.all().into_iter().filter(|s| is_balanced(s) && address(s).is_none());
                waiting.for_each(|s| add.add(Key::of(&*s)));
            }
        }
    });
    let c = cluster.clone();
    let synced = async move { c.services.synced().await };
    let cluster = cluster.clone();
    // One at a time: two must not take the same address.
    queue.run(tasks, NAME, 1, synced, move |key| {
        let cluster = cluster.clone();
        async move { reconcile(&cluster, &key).await }
    });
}

fn is_balanced(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|s| {
        s.type_.as_deref() == Some("LoadBalancer")
            && s.load_balancer_class.is_none()
            && service.metadata.deletion_timestamp.is_none()
    })
}

fn address(service: &Service) -> Option<Ipv4Addr> {
    let ingress = service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?;
    ingress.first()?.ip.as_ref()?.parse().ok()
}

/// Addresses of the pool that a Service has by `spec.externalIPs`.
fn external(service: &Service) -> impl Iterator<Item = Ipv4Addr> + '_ {
    let all = service.spec.iter().flat_map(|s| s.external_ips.iter().flatten());
    all.filter_map(|ip| ip.parse().ok())
}

/// The address a Service should have: the one it has, the one it asks for, or the lowest that is free.
fn choose(service: &Service, all: &[Arc<Service>], pool: [u8; 3]) -> Result<Ipv4Addr, String> {
    let other = |s: &&Arc<Service>| s.metadata.uid != service.metadata.uid;
    let used: Vec<Ipv4Addr> =
        all.iter().filter(other).flat_map(|s| address(s).into_iter().chain(external(s))).collect();
    let in_pool = |a: &Ipv4Addr| a.octets()[..3] == pool && !matches!(a.octets()[3], 0 | 255);
    let wanted =
        service.spec.as_ref().and_then(|s| s.load_balancer_ip.as_deref()).filter(|ip| !ip.is_empty());
    if let Some(wanted) = wanted {
        let parsed = wanted.parse().ok().filter(in_pool);
        return match parsed {
            Some(ip) if !used.contains(&ip) => Ok(ip),
            Some(ip) => Err(format!("{ip} is used by another Service")),
            None => Err(format!("{wanted} is not in the pool {}.{}.{}.0/24", pool[0], pool[1], pool[2])),
        };
    }
    let free = |a: &Ipv4Addr| in_pool(a) && !used.contains(a);
    address(service)
        .filter(free)
        .or_else(|| (1..255).map(|n| Ipv4Addr::new(pool[0], pool[1], pool[2], n)).find(free))
        .ok_or_else(|| "all addresses of the pool are in use".into())
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Outcome {
    let Some(service) = cluster.services.get(key) else { return Ok(None) };
    if !is_balanced(&service) {
        let ours = address(&service).is_some_and(|a| a.octets()[..3] == cluster.load_balancer_pool);
        if ours {
            cluster.merge_status(&cluster.services, key, json!({"loadBalancer": {"ingress": null}})).await?;
        }
        return Ok(None);
    }
    match choose(&service, &cluster.services.all(), cluster.load_balancer_pool) {
        Ok(ip) if address(&service) == Some(ip) => {}
        Ok(ip) => {
            let status = json!({"loadBalancer": {"ingress": [{"ip": ip, "ipMode": "VIP"}]}});
            cluster.merge_status(&cluster.services, key, status).await?;
            cluster.events.normal(NAME, &*service, "EnsuredLoadBalancer", format!("Assigned address {ip}"));
        }
        Err(why) => cluster.events.warning(NAME, &*service, "SyncLoadBalancerFailed", why),
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde::Deserialize as _;
    use serde_json::Value;

    use super::*;

    fn service(uid: &str, has: Option<&str>, wants: Option<&str>) -> Arc<Service> {
        let ingress = has.map_or(Value::Null, |ip| json!([{"ip": ip}]));
        Arc::new(
            Service::deserialize(
                json!({"metadata": {"uid": uid}, "spec": {"type": "LoadBalancer", "loadBalancerIP": wants},
                "status": {"loadBalancer": {"ingress": ingress}}}),
            )
            .unwrap(),
        )
    }

    #[test]
    fn addresses_are_kept_asked_for_or_free() {
        let others = [service("a", Some("172.30.1.1"), None), service("b", Some("172.30.1.3"), None)];
        let cases = [
            (None, None, Ok("172.30.1.2")),
            (Some("172.30.1.9"), None, Ok("172.30.1.9")),
            // Taken by another one, foreign, or the broadcast address: not kept.
            (Some("172.30.1.1"), None, Ok("172.30.1.2")),
            (Some("10.0.0.1"), None, Ok("172.30.1.2")),
            (None, Some("172.30.1.77"), Ok("172.30.1.77")),
            (None, Some("172.30.1.3"), Err(())),
            (None, Some("172.30.1.255"), Err(())),
            (None, Some("8.8.8.8"), Err(())),
        ];
        for (has, wants, expected) in cases {
            let got = choose(&service("x", has, wants), &others, [172, 30, 1]).map_err(|_| ());
            assert_eq!(got, expected.map(|ip: &str| ip.parse().unwrap()), "{has:?} {wants:?}");
        }
        let mut external = Service::clone(&service("c", None, None));
        external.spec.get_or_insert_default().external_ips = Some(vec!["172.30.1.1".into()]);
        let next = choose(&service("x", None, None), &[Arc::new(external)], [172, 30, 1]);
        assert_eq!(next, Ok(Ipv4Addr::new(172, 30, 1, 2)), "an external address of another Service");
    }
}
