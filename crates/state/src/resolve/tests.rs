// SPDX-License-Identifier: Apache-2.0
//! Destinations in a small mesh: two Pods behind a Service, a waypoint, a stranger.

use std::net::SocketAddr;

use meltemi_model::service::{AppProtocol, PortMapping};
use meltemi_model::workload::{GatewayAddress, GatewayDestination, Health, TunnelProtocol};
use meltemi_model::{NamespacedHostname, NamespacedName, NetworkAddress, Service, Workload, WorkloadUid};

use super::{Refused, Route};
use crate::snapshot::{Delta, Snapshot};

fn key(name: &str) -> NamespacedHostname {
    NamespacedHostname::new("default", format!("{name}.default.svc.cluster.local"))
}

fn pod(name: &str, ip: &str, services: &[(&str, u16, u16)]) -> Workload {
    let mut pod = Workload::empty(WorkloadUid::pod("Kubernetes", "default", name), "default", name);
    pod.addresses = vec![ip.parse().unwrap()];
    pod.service_account = name.into();
    pod.tunnel_protocol = TunnelProtocol::Hbone;
    for (service, service_port, target_port) in services {
        let mapping = PortMapping {
            service_port: *service_port,
            target_port: *target_port,
            app_protocol: AppProtocol::Unknown,
        };
        pod.services.insert(key(service), vec![mapping]);
    }
    pod
}

fn service(name: &str, vip: &str, port: u16, target: u16) -> Service {
    let mut service = Service::empty(key(name), name);
    service.addresses = vec![NetworkAddress::local(vip.parse().unwrap())];
    service.ports =
        vec![PortMapping { service_port: port, target_port: target, app_protocol: AppProtocol::Unknown }];
    service
}

fn mesh(change: impl FnOnce(&mut Service, &mut Workload)) -> Snapshot {
    let mut web = service("web", "10.96.0.20", 80, 8080);
    let mut web_pod = pod("web", "10.244.1.2", &[("web", 80, 8080)]);
    change(&mut web, &mut web_pod);
    let mut snapshot = Snapshot::default();
    let waypoint_pod = pod("waypoint", "10.244.1.9", &[("waypoint", 15008, 15008)]);
    snapshot.apply([
        Delta::Service(Box::new(web)),
        Delta::Workload(Box::new(web_pod)),
        Delta::Service(Box::new(service("waypoint", "10.96.0.30", 15008, 15008))),
        Delta::Workload(Box::new(waypoint_pod)),
        Delta::Workload(Box::new(pod("client", "10.244.2.2", &[]))),
    ]);
    snapshot
}

fn resolve(snapshot: &Snapshot, to: &str) -> Result<String, Refused> {
    let source = snapshot.workload_named("default", "client").unwrap();
    let to: SocketAddr = to.parse().unwrap();
    snapshot.resolve(to, source, &mut |_| 0).map(|route| match route {
        Route::Plain(address, _) => format!("plain {address}"),
        Route::Hbone(hop, _) => {
            format!("hbone {} for {} as {}", hop.dial, hop.authority, hop.expected[0].service_account())
        }
    })
}

#[test]
fn the_order_of_lookups() {
    let plain = mesh(|_, _| {});
    let with_waypoint = mesh(|web, _| {
        web.waypoint = Some(GatewayAddress {
            destination: GatewayDestination::Hostname(key("waypoint")),
            hbone_port: 15008,
        });
    });
    let bogus_waypoint = mesh(|web, _| {
        web.waypoint = Some(GatewayAddress {
            destination: GatewayDestination::Hostname(key("none")),
            hbone_port: 15008,
        });
    });
    let not_in_mesh = mesh(|_, pod| pod.tunnel_protocol = TunnelProtocol::None);
    let unhealthy = mesh(|_, pod| pod.health = Health::Unhealthy);
    let cases = [
        ("service", &plain, "10.96.0.20:80", Ok("hbone 10.244.1.2:15008 for 10.244.1.2:8080 as web")),
        ("workload", &plain, "10.244.1.2:9999", Ok("hbone 10.244.1.2:15008 for 10.244.1.2:9999 as web")),
        ("stranger", &plain, "192.0.2.1:80", Ok("plain 192.0.2.1:80")),
        ("another port of the service", &plain, "10.96.0.20:81", Err("no healthy upstream")),
        (
            "waypoint",
            &with_waypoint,
            "10.96.0.20:80",
            Ok("hbone 10.244.1.9:15008 for 10.96.0.20:80 as waypoint"),
        ),
        (
            "a waypoint is of the service, not of its pods",
            &with_waypoint,
            "10.244.1.2:8080",
            Ok("hbone 10.244.1.2:15008 for 10.244.1.2:8080 as web"),
        ),
        (
            "waypoint that is not there",
            &bogus_waypoint,
            "10.96.0.20:80",
            Err("waypoint default/none.default.svc.cluster.local has no healthy endpoint"),
        ),
        ("endpoint outside the mesh", &not_in_mesh, "10.96.0.20:80", Ok("plain 10.244.1.2:8080")),
        ("unhealthy endpoint", &unhealthy, "10.96.0.20:80", Err("no healthy upstream")),
    ];
    for (what, snapshot, to, expected) in cases {
        let seen = resolve(snapshot, to).map_err(|e| e.to_string());
        assert_eq!(seen.as_deref().map_err(String::as_str), expected, "{what}");
    }
}

#[test]
fn what_is_gone_is_gone_and_a_missing_policy_is_told() {
    let mut snapshot =
        mesh(|_, pod| pod.authorization_policies = vec![NamespacedName::new("default", "late")]);
    let web = snapshot.workload_named("default", "web").unwrap().clone();
    assert_eq!(snapshot.policies_for(&web).missing(), [NamespacedName::new("default", "late")]);
    snapshot.apply([Delta::AddressGone(web.uid.to_string()), Delta::AddressGone(key("web").to_string())]);
    assert_eq!(resolve(&snapshot, "10.96.0.20:80").unwrap(), "plain 10.96.0.20:80");
    assert_eq!(resolve(&snapshot, "10.244.1.2:80").unwrap(), "plain 10.244.1.2:80");
}

#[test]
fn an_alternative_is_another_endpoint_that_can_take_the_connection() {
    let with = |change: fn(&mut Workload)| {
        let mut snapshot = mesh(|_, _| {});
        let mut second = pod("web2", "10.244.1.3", &[("web", 80, 8080)]);
        change(&mut second);
        snapshot.apply([Delta::Workload(Box::new(second))]);
        snapshot
    };
    let cases = [
        ("one endpoint", mesh(|_, _| {}), "10.96.0.20:80", false),
        ("two endpoints", with(|_| {}), "10.96.0.20:80", true),
        ("the address of one of them", with(|_| {}), "10.244.1.2:8080", false),
        ("the other is not ready", with(|other| other.health = Health::Unhealthy), "10.96.0.20:80", false),
        ("the other takes nothing", with(|other| other.capacity = 0), "10.96.0.20:80", false),
        ("the other is of another service", with(|other| other.services.clear()), "10.96.0.20:80", false),
    ];
    for (what, snapshot, to, expected) in cases {
        let source = snapshot.workload_named("default", "client").unwrap();
        let route = snapshot.resolve(to.parse().unwrap(), source, &mut |_| 0).unwrap();
        let (Route::Plain(_, destination) | Route::Hbone(_, destination)) = route;
        assert_eq!(destination.has_alternative, expected, "{what}");
    }
}
