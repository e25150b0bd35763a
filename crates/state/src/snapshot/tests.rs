// SPDX-License-Identifier: Apache-2.0
//! Random changes: a snapshot is what its last objects say, however they came, and a clone stays what it was.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use meltemi_model::authz::Action;
use meltemi_model::service::{AppProtocol, PortMapping};
use proptest::prelude::*;

use super::*;

/// One change, of few names and addresses, so that they meet.
#[derive(Clone, Copy, Debug)]
enum Change {
    Pod { name: u8, ip: u8, service: u8 },
    PodGone { name: u8 },
    Service { name: u8, vip: u8, ranged: bool },
    ServiceGone { name: u8 },
    Policy { name: u8, namespace_wide: bool },
    PolicyGone { name: u8 },
}

const NAMES: u8 = 4;

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let small = || 0..NAMES;
    let one = prop_oneof![
        (small(), small(), small()).prop_map(|(name, ip, service)| Change::Pod { name, ip, service }),
        small().prop_map(|name| Change::PodGone { name }),
        (small(), small(), any::<bool>()).prop_map(|(name, vip, ranged)| Change::Service {
            name,
            vip,
            ranged
        }),
        small().prop_map(|name| Change::ServiceGone { name }),
        (small(), any::<bool>()).prop_map(|(name, namespace_wide)| Change::Policy { name, namespace_wide }),
        small().prop_map(|name| Change::PolicyGone { name }),
    ];
    prop::collection::vec(one, 1..40)
}

fn key(name: u8) -> NamespacedHostname {
    NamespacedHostname::new("ns", format!("s{name}.ns.svc.cluster.local"))
}

fn pod_ip(ip: u8) -> IpAddr {
    Ipv4Addr::new(10, 244, 0, ip).into()
}

fn vip(vip: u8) -> IpAddr {
    Ipv4Addr::new(10, 96, 0, vip).into()
}

fn delta(change: Change) -> Delta {
    match change {
        Change::Pod { name, ip, service } => {
            let uid = WorkloadUid::pod("Kubernetes", "ns", &format!("p{name}"));
            let mut pod = Workload::empty(uid, "ns", format!("p{name}"));
            pod.addresses = vec![pod_ip(ip)];
            let port = PortMapping { service_port: 80, target_port: 80, app_protocol: AppProtocol::Unknown };
            pod.services.insert(key(service), vec![port]);
            Delta::Workload(Box::new(pod))
        }
        Change::PodGone { name } => {
            Delta::AddressGone(WorkloadUid::pod("Kubernetes", "ns", &format!("p{name}")).to_string())
        }
        Change::Service { name, vip: at, ranged } => {
            let mut service = Service::empty(key(name), format!("s{name}"));
            service.addresses = vec![NetworkAddress::local(vip(at))];
            if ranged {
                let range = format!("192.168.{name}.0/24").parse().expect("a range");
                service.address_ranges = vec![("".into(), range)];
            }
            Delta::Service(Box::new(service))
        }
        Change::ServiceGone { name } => Delta::AddressGone(key(name).to_string()),
        Change::Policy { name, namespace_wide } => Delta::Policy(Box::new(Policy {
            name: NamespacedName::new("ns", format!("a{name}")),
            scope: if namespace_wide { Scope::Namespace } else { Scope::Global },
            action: Action::Deny,
            dry_run: false,
            rules: Vec::new(),
        })),
        Change::PolicyGone { name } => Delta::PolicyGone(NamespacedName::new("ns", format!("a{name}"))),
    }
}

/// Everything that can be asked of a snapshot, as text.
fn describe(snapshot: &Snapshot) -> Vec<String> {
    let network: Arc<str> = "".into();
    let mut all = Vec::new();
    for n in 0..NAMES {
        let workload = |found: Option<&Arc<Workload>>| found.map(|w| format!("{:?}", (&w.uid, &w.addresses)));
        let service = |found: Option<&Arc<Service>>| found.map(|s| format!("{:?}", (&s.key, &s.addresses)));
        all.push(format!("{:?}", workload(snapshot.workload_at(&network, pod_ip(n)))));
        all.push(format!("{:?}", workload(snapshot.workload_named("ns", &format!("p{n}")))));
        all.push(format!("{:?}", service(snapshot.service_at(&network, vip(n), "ns"))));
        let in_range = Ipv4Addr::new(192, 168, n, 1).into();
        all.push(format!("{:?}", service(snapshot.service_at(&network, in_range, "ns"))));
        all.push(format!("{:?}", service(snapshot.service_named(&key(n).hostname, "ns"))));
        let endpoints: Vec<_> = snapshot.endpoints(&key(n)).map(|w| (&w.uid, &w.addresses)).collect();
        all.push(format!("{endpoints:?}"));
    }
    let mut lists = [
        snapshot.workloads().map(|w| w.uid.to_string()).collect::<Vec<_>>(),
        snapshot.services().map(|s| s.key.to_string()).collect(),
        snapshot.policies().map(|p| format!("{} {:?}", p.name, p.scope)).collect(),
    ];
    lists.iter_mut().for_each(|list| list.sort());
    let one = Workload::empty(WorkloadUid::pod("Kubernetes", "ns", "any"), "ns", "any");
    let set = snapshot.policies_for(&one);
    let names: Vec<_> = set.policies().iter().map(|p| p.name.to_string()).collect();
    all.push(format!("{lists:?} {names:?}"));
    all
}

/// The last change of each object, in the order in which they came: what a proxy that has just started is told.
fn last_of_each(changes: &[Change]) -> Vec<Change> {
    let object = |change: &Change| match *change {
        Change::Pod { name, .. } | Change::PodGone { name } => (0, name),
        Change::Service { name, .. } | Change::ServiceGone { name } => (1, name),
        Change::Policy { name, .. } | Change::PolicyGone { name } => (2, name),
    };
    let last: BTreeMap<_, usize> = changes.iter().enumerate().map(|(at, c)| (object(c), at)).collect();
    let mut kept: Vec<usize> = last.into_values().collect();
    kept.sort_unstable();
    kept.into_iter().map(|at| changes[at]).collect()
}

proptest! {
    #[test]
    fn a_snapshot_is_what_its_objects_say_and_a_clone_stays_what_it_was(changes in changes()) {
        let mut snapshot = Snapshot::default();
        let mut before: Vec<(Snapshot, Vec<String>)> = Vec::new();
        for change in &changes {
            snapshot.apply([delta(*change)]);
            before.push((snapshot.clone(), describe(&snapshot)));
        }
        for (at, (clone, described)) in before.iter().enumerate() {
            prop_assert_eq!(&describe(clone), described, "the clone after change {}", at);
        }
        let mut fresh = Snapshot::default();
        fresh.apply(last_of_each(&changes).into_iter().map(delta));
        prop_assert_eq!(describe(&snapshot), describe(&fresh));
    }
}
