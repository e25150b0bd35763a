// SPDX-License-Identifier: Apache-2.0
//! The kubelet's probes. It dials the Pod from the node, where any Pod on the node's network could dial from as well; so
//! the node's address is trusted for nothing. Connections of the node's root to ports that a captured Pod's probes name get
//! [`PROBE_SOURCE_V4`] for their source, which the capture lets pass. Nobody else can have that address: what comes to the
//! node under it, or goes through the node to it, is dropped.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use meltemi_capture::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};
use meltemi_enrolment::Capture;
use meltemi_linux::nft::{self, Action, Base, Chain, Family, Hook, Is, Kind, L4, Match, Rule, Table};

use super::Agent;
use super::entry::Entry;

/// Name of the table on the node.
const TABLE: &str = "meltemi-probes";
/// Before those who masquerade: the first to give a connection a source decides.
const PRIORITY_SOURCE: i32 = 90;
/// Before the filters of others, which could accept.
const PRIORITY_DROP: i32 = -310;
/// Changes that come close together are one.
const SETTLE: Duration = Duration::from_millis(5);
/// How often it is looked whether the table is still there.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The kubelet's user.
const ROOT: u32 = 0;

/// Where probes go.
type Targets = BTreeSet<(IpAddr, u16)>;

/// Keeps the node's rules in line with the captured Pods.
pub(super) async fn run(agent: &Arc<Agent>) {
    let mut adopted = agent.adopted.subscribe();
    // Until all Pods are known, the rules of an earlier agent are better than ours.
    let _ = adopted.wait_for(|adopted| *adopted).await;
    let mut applied: Option<Targets> = None;
    loop {
        let wanted = targets(agent);
        let is_there = nft::table_exists(&agent.host_netns, Family::Inet, TABLE).unwrap_or(false);
        if !is_there || applied.as_ref() != Some(&wanted) {
            let (table, working) = (table(&wanted), agent.clone());
            let replaced =
                tokio::task::spawn_blocking(move || nft::replace(&working.host_netns, &[table], &[])).await;
            match replaced.map_err(std::io::Error::other).and_then(|r| r) {
                Ok(()) => applied = Some(wanted),
                Err(error) => {
                    tracing::error!(%error, "the node's rules for probes are not written; it is tried again")
                }
            }
        }
        tokio::select! {
            () = agent.probes_changed.notified() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

/// Takes the rules away.
pub(super) fn remove(agent: &Agent) -> std::io::Result<()> {
    nft::replace(&agent.host_netns, &[], &[(Family::Inet, TABLE)])
}

/// Of the Pods that are captured, and of those that are about to be.
fn targets(agent: &Agent) -> Targets {
    let entries: Vec<_> = agent.entries().values().cloned().collect();
    let captured = entries.iter().filter(|entry| is_of_mesh(agent, entry));
    captured
        .flat_map(|entry| {
            let ports = ports(&entry.object.borrow());
            let addresses = entry.all_addresses();
            addresses
                .into_iter()
                .flat_map(move |address| ports.clone().into_iter().map(move |p| (address, p)))
        })
        .collect()
}

fn is_of_mesh(agent: &Agent, entry: &Entry) -> bool {
    *entry.capture.borrow() != Capture::Outside || agent.enrolment.expects(&entry.object.borrow())
}

/// The ports that a Pod's probes and hooks name.
fn ports(pod: &Pod) -> BTreeSet<u16> {
    let Some(spec) = pod.spec.as_ref() else { return BTreeSet::new() };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    containers.flat_map(ports_of).collect()
}

fn ports_of(container: &Container) -> Vec<u16> {
    let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
    let hooks = container.lifecycle.as_ref().map(|lifecycle| [&lifecycle.post_start, &lifecycle.pre_stop]);
    let probed = probes.into_iter().flatten().filter_map(|probe| of_probe(container, probe));
    let hooked = hooks.into_iter().flatten().flatten().filter_map(|hook| of_hook(container, hook));
    probed.chain(hooked).collect()
}

fn of_probe(container: &Container, probe: &Probe) -> Option<u16> {
    if let Some(grpc) = &probe.grpc {
        return u16::try_from(grpc.port).ok();
    }
    let http = probe.http_get.as_ref().map(|http| &http.port);
    number(container, http.or(probe.tcp_socket.as_ref().map(|tcp| &tcp.port))?)
}

fn of_hook(container: &Container, hook: &LifecycleHandler) -> Option<u16> {
    number(container, &hook.http_get.as_ref()?.port)
}

fn number(container: &Container, port: &IntOrString) -> Option<u16> {
    let named = |name: &str| {
        let mut ports = container.ports.iter().flatten();
        ports.find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port)
    };
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(text) => named(text).or_else(|| text.parse().ok()),
    };
    number.and_then(|number| u16::try_from(number).ok())
}

fn source(v6: bool) -> IpAddr {
    if v6 { IpAddr::V6(PROBE_SOURCE_V6) } else { IpAddr::V4(PROBE_SOURCE_V4) }
}

fn table(targets: &Targets) -> Table {
    let chain = |name: &str, kind, hook, priority, rules| Chain {
        name: name.to_owned(),
        base: Some(Base { kind, hook, priority }),
        rules,
    };
    let give = targets.iter().map(|(address, port)| {
        Rule::new()
            .when(Match::Protocol(L4::Tcp))
            .when(Match::Destination(IpNet::from(*address), Is::Equal))
            .when(Match::DestinationPort(*port, Is::Equal))
            .when(Match::SocketUser(ROOT))
            .then(Action::Snat(source(address.is_ipv6())))
    });
    let forged = [false, true].map(|v6| {
        let from = Match::Source(IpNet::from(source(v6)), Is::Equal);
        Rule::new().when(from).then(Action::Drop)
    });
    let through = [false, true].map(|v6| {
        let to = Match::Destination(IpNet::from(source(v6)), Is::Equal);
        Rule::new().when(to).then(Action::Drop)
    });
    Table {
        family: Family::Inet,
        name: TABLE.to_owned(),
        chains: vec![
            chain("postrouting", Kind::Nat, Hook::Postrouting, PRIORITY_SOURCE, give.collect()),
            chain("prerouting", Kind::Filter, Hook::Prerouting, PRIORITY_DROP, forged.to_vec()),
            chain("forward", Kind::Filter, Hook::Forward, PRIORITY_DROP, through.to_vec()),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_probes_and_hooks() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p"},
            "spec": {
                "initContainers": [{"name": "i", "startupProbe": {"tcpSocket": {"port": 7}}}],
                "containers": [
                    {"name": "a", "ports": [{"name": "web", "containerPort": 8080}, {"containerPort": 9}],
                     "readinessProbe": {"httpGet": {"path": "/", "port": "web"}},
                     "livenessProbe": {"grpc": {"port": 50051}},
                     "startupProbe": {"exec": {"command": ["true"]}},
                     "lifecycle": {"preStop": {"httpGet": {"path": "/", "port": 81}}, "postStart": {"exec": {"command": ["true"]}}}},
                    {"name": "b", "readinessProbe": {"tcpSocket": {"port": "web"}}, "livenessProbe": {"httpGet": {"port": 70000}}},
                ]
            }
        }))
        .unwrap();
        assert_eq!(ports(&pod), BTreeSet::from([7, 81, 8080, 50051]));
    }
}
