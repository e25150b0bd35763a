// SPDX-License-Identifier: Apache-2.0
//! Pods that run and that no plugin has told of: those from before the agent. Their network namespaces are found by the
//! node's processes, whose cgroups name the Pod; it must hold the Pod's address.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use meltemi_linux::netns::NetNs;
use meltemi_runtime::Ready;
use meltemi_runtime::backoff::Backoff;

use super::entry::{self, Found, addresses};
use super::{Agent, full_name, pods};

/// First and longest pause before the processes are looked at again for Pods that were not found. It never ends: a Pod
/// that is not found is not captured.
const MIN_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Annotation of a mirror Pod: the uid under which the kubelet runs the static Pod.
const STATIC_UID: &str = "kubernetes.io/config.hash";

/// Takes up all Pods that run without an entry, for ever; `listed` is told after the first round.
pub(super) async fn run(agent: Arc<Agent>, listed: Ready) {
    let mut objects = agent.objects.subscribe();
    if objects.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let mut listed = Some(listed);
    let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
    loop {
        objects.mark_unchanged();
        let missing = missing(&agent);
        let left = take_up(&agent, missing).await;
        if let Some(listed) = listed.take() {
            tracing::info!(pods = agent.entries().len(), "the running Pods are taken up");
            listed.done();
            agent.adopted.send_replace(true);
        }
        if left.is_empty() {
            backoff.reset();
            if objects.changed().await.is_err() {
                return;
            }
            continue;
        }
        let pause = backoff.next().unwrap_or(MAX_PAUSE);
        if pause == MAX_PAUSE {
            let names: Vec<String> = left.iter().map(|pod| full_name(pod)).collect();
            tracing::warn!(pods = %names.join(", "), "the network namespaces of running Pods are not found");
        }
        tokio::time::sleep(pause).await;
    }
}

/// Pods that run here and have no entry. Those that come once another agent has taken over are that one's.
fn missing(agent: &Agent) -> Vec<Arc<Pod>> {
    if *agent.succeeded.borrow() {
        return Vec::new();
    }
    let objects = agent.objects.borrow().clone().unwrap_or_default();
    let entries = agent.entries();
    let has_entry = |pod: &Pod| pod.metadata.uid.as_ref().is_some_and(|uid| entries.contains_key(uid));
    objects
        .into_values()
        .filter(|pod| !agent.ignores(pod) && !pods::has_ended(pod) && runs(pod) && !has_entry(pod))
        .collect()
}

/// Whether a process of the Pod has begun, as far as its status tells.
fn runs(pod: &Pod) -> bool {
    let Some(status) = pod.status.as_ref() else { return false };
    let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    !addresses(pod).is_empty() || { containers }.any(has_begun)
}

fn has_begun(container: &ContainerStatus) -> bool {
    container.state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
}

/// Adopts what is found, and returns the rest.
async fn take_up(agent: &Arc<Agent>, missing: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
    if missing.is_empty() {
        return missing;
    }
    let searching = agent.clone();
    let searched = tokio::task::spawn_blocking(move || search(&searching, missing)).await;
    let Ok((found, left)) = searched else { return Vec::new() };
    join_all(found.into_iter().map(|found| entry::adopt(agent, found))).await;
    left
}

fn search(agent: &Agent, missing: Vec<Arc<Pod>>) -> (Vec<Found>, Vec<Arc<Pod>>) {
    let processes = processes_by_pod(&agent.config.host_proc);
    let (mut found, mut left) = (Vec::new(), Vec::new());
    for pod in missing {
        let pids = node_uids(&pod).find_map(|uid| processes.get(&uid)).cloned().unwrap_or_default();
        let netns = pids.iter().find_map(|pid| netns_of(agent, *pid, &pod));
        // The plugin may have told of it meanwhile.
        let known = pod.metadata.uid.as_ref().is_some_and(|uid| agent.entries().contains_key(uid));
        match netns {
            Some(netns) if !known => found.push(netns),
            _ => left.push(pod),
        }
    }
    (found, left)
}

/// The network namespace of one of a Pod's processes, if it is the Pod's own: a process may have gone into another.
fn netns_of(agent: &Agent, pid: u32, pod: &Arc<Pod>) -> Option<Found> {
    let netns = NetNs::from_path(&agent.config.host_proc.join(format!("{pid}/ns/net"))).ok()?;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let netns_id = agent.check_netns(&netns, &uid).ok()?;
    let addresses = addresses(pod);
    let holds = addresses.iter().any(|address| holds(&netns, *address));
    holds.then(|| Found { pod: pod.clone(), sandbox: String::new(), netns, netns_id, addresses })
}

/// Whether an address is one of the namespace's own: a socket can be bound to no other.
fn holds(netns: &NetNs, address: IpAddr) -> bool {
    netns.bind_udp(SocketAddr::new(address, 0), |_| Ok(())).is_ok()
}

/// The node's processes by the uid of the Pod that they belong to, the oldest first.
fn processes_by_pod(proc: &Path) -> BTreeMap<String, Vec<u32>> {
    let mut all: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let Ok(folder) = std::fs::read_dir(proc) else { return all };
    let mut pids: Vec<u32> =
        folder.flatten().filter_map(|process| process.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    for pid in pids {
        if let Some(uid) = pod_of(&proc.join(pid.to_string())) {
            all.entry(uid).or_default().push(pid);
        }
    }
    all
}

fn pod_of(process: &Path) -> Option<String> {
    let cgroups: io::Result<String> = std::fs::read_to_string(process.join("cgroup"));
    cgroups.ok()?.lines().find_map(uid_in)
}

/// The uid in a cgroup's path: `…/pod<uid>/…` with cgroupfs, `…-pod<uid with _>.slice/…` with systemd.
fn uid_in(line: &str) -> Option<String> {
    line.split('/').find_map(|part| {
        let (before, uid) = part.strip_suffix(".slice").unwrap_or(part).rsplit_once("pod")?;
        let uid = uid.replace('_', "-");
        let is_uid = uid.len() >= 32 && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        (is_uid && (before.is_empty() || before.ends_with('-'))).then_some(uid)
    })
}

/// The uids by which the node may know a Pod: its own, and that of the static Pod that it mirrors.
pub(super) fn node_uids(pod: &Pod) -> impl Iterator<Item = String> + use<> {
    let of_static = pod.metadata.annotations.as_ref().and_then(|all| all.get(STATIC_UID)).cloned();
    pod.metadata.uid.clone().into_iter().chain(of_static)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_names_its_pod() {
        let uid = "3f2504e0-4f89-11d3-9a0c-0305e82c3301";
        let under = uid.replace('-', "_");
        for line in [
            format!("9:memory:/kubepods/burstable/pod{uid}/0123"),
            format!(
                "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{under}.slice/cri-containerd-1.scope"
            ),
            format!("0::/../../pod{uid}/0123"),
            format!("4:cpu:/mk-node-1/kubepods/pod{uid}"),
        ] {
            assert_eq!(uid_in(&line).as_deref(), Some(uid), "{line}");
        }
        let of_static = "a1b2c3d4e5f60718293a4b5c6d7e8f90";
        assert_eq!(uid_in(&format!("0::/kubepods/pod{of_static}/x")).as_deref(), Some(of_static));
        for line in
            ["0::/system.slice/podman.service", "0::/", "0::/user/tripod3f2504e0-4f89-11d3-9a0c-0305e82c3301"]
        {
            assert_eq!(uid_in(line), None, "{line}");
        }
    }

    #[test]
    fn processes_are_found_by_their_cgroup() {
        let folder = tempfile::tempdir().unwrap();
        let uid = "3f2504e0-4f89-11d3-9a0c-0305e82c3301";
        for (pid, cgroup) in
            [("12", format!("0::/kubepods/pod{uid}/b")), ("7", format!("0::/kubepods/pod{uid}/a"))]
        {
            std::fs::create_dir(folder.path().join(pid)).unwrap();
            std::fs::write(folder.path().join(pid).join("cgroup"), cgroup).unwrap();
        }
        std::fs::create_dir(folder.path().join("8")).unwrap();
        std::fs::write(folder.path().join("8/cgroup"), "0::/init.scope").unwrap();
        std::fs::create_dir(folder.path().join("sys")).unwrap();
        assert_eq!(processes_by_pod(folder.path()), BTreeMap::from([(uid.to_owned(), vec![7, 12])]));
    }
}
