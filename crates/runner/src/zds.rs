// SPDX-License-Identifier: Apache-2.0
//! Hands enrolled Pods to the node proxies: the listening side of ZDS.
//!
//! Several proxies may be connected while one takes over from another: a new Pod goes to the newest connection,
//! a Pod that leaves is told to all. A proxy that connects gets a snapshot first. Whoever waits for a Pod to be
//! taken gets the answer of the first proxy that takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meltemi_linux::netns::NetNs;
use meltemi_linux::seqpacket::{Listener, SeqPacket};
use meltemi_wire::zds::{MAX_MESSAGE, Request, Workload as Named, read_ack, read_hello};
use tokio::sync::{mpsc, oneshot};

use crate::context::{Context, lock};

const ANSWER: Duration = Duration::from_secs(10);

/// An enrolled Pod.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub uid: String,
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    pub netns: Arc<NetNs>,
}

#[derive(Debug)]
enum Command {
    Add(Workload),
    Del(String),
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    workloads: BTreeMap<String, Workload>,
    connections: BTreeMap<u64, Connection>,
    waiting: BTreeMap<String, Vec<oneshot::Sender<Result<(), String>>>>,
}

#[derive(Debug)]
struct Connection {
    commands: mpsc::UnboundedSender<Command>,
    told: BTreeSet<String>,
}

/// The connected proxies and what they have to know.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proxies(Arc<Mutex<Inner>>);

impl Proxies {
    /// Adds a Pod; resolves when a proxy has taken it.
    pub(crate) fn add(&self, workload: Workload) -> impl Future<Output = Result<(), String>> + use<> {
        let (tx, rx) = oneshot::channel();
        let mut inner = lock(&self.0);
        inner.waiting.entry(workload.uid.clone()).or_default().push(tx);
        inner.workloads.insert(workload.uid.clone(), workload.clone());
        if let Some(mut newest) = inner.connections.last_entry() {
            newest.get_mut().told.insert(workload.uid.clone());
            let _ = newest.get().commands.send(Command::Add(workload));
        }
        async move { rx.await.unwrap_or_else(|_| Err("the Pod left the mesh".to_owned())) }
    }

    /// Removes a Pod.
    pub(crate) fn remove(&self, uid: &str) {
        let mut inner = lock(&self.0);
        inner.workloads.remove(uid);
        inner.waiting.remove(uid);
        for connection in inner.connections.values_mut() {
            connection.told.remove(uid);
            let _ = connection.commands.send(Command::Del(uid.to_owned()));
        }
    }

    /// Whether a proxy is connected.
    pub(crate) fn any(&self) -> bool {
        !lock(&self.0).connections.is_empty()
    }

    fn answered(&self, uid: &str, result: &Result<(), String>) {
        let mut inner = lock(&self.0);
        // A refusal is not the end: the proxy tries again, and so may the next one.
        for waiter in inner.waiting.remove(uid).unwrap_or_default() {
            let _ = waiter.send(result.clone());
        }
    }

    fn connect(&self) -> (u64, Vec<Workload>, mpsc::UnboundedReceiver<Command>) {
        let (commands, rx) = mpsc::unbounded_channel();
        let mut inner = lock(&self.0);
        inner.next += 1;
        let id = inner.next;
        let snapshot: Vec<Workload> = inner.workloads.values().cloned().collect();
        let told = inner.workloads.keys().cloned().collect();
        inner.connections.insert(id, Connection { commands, told });
        (id, snapshot, rx)
    }

    /// A proxy is gone: the newest of those left learns what only that one knew.
    fn disconnect(&self, id: u64) {
        let mut inner = lock(&self.0);
        inner.connections.remove(&id);
        let workloads: Vec<Workload> = inner.workloads.values().cloned().collect();
        let Some(mut newest) = inner.connections.last_entry() else { return };
        for workload in workloads {
            if newest.get_mut().told.insert(workload.uid.clone()) {
                let _ = newest.get().commands.send(Command::Add(workload));
            }
        }
    }
}

/// Listens for node proxies.
pub(crate) async fn serve(ctx: Arc<Context>, path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let listener = Listener::bind(path)?;
    let mut drain = ctx.tasks.drain();
    loop {
        let socket = tokio::select! {
            socket = listener.accept() => socket?,
            () = drain.started() => return Ok(()),
        };
        let proxies = ctx.enrolment.proxies.clone();
        match socket.peer() {
            Ok(peer) if is_proxy(&ctx, peer.pid, peer.uid) => {}
            other => {
                tracing::warn!(peer = ?other, "refused a connection to the ZDS socket: not a node proxy of this node");
                continue;
            }
        }
        ctx.job("zds", async move {
            let (id, snapshot, commands) = proxies.connect();
            tracing::info!(proxy = id, pods = snapshot.len(), "node proxy connected");
            let result = talk(&proxies, &socket, snapshot, commands).await;
            proxies.disconnect(id);
            tracing::info!(proxy = id, result = ?result, "node proxy disconnected");
            result
        });
    }
}

/// Only a process of a Pod that runs as istio-system/ztunnel on this node may ask for other Pods' namespaces.
fn is_proxy(ctx: &Context, pid: i32, uid: u32) -> bool {
    let namespace_of = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(theirs) = namespace_of(pid) else { return false };
    uid == nix::unistd::geteuid().as_raw()
        && ctx.pods().values().any(|entry| {
            let pod = entry.pod();
            let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref());
            let proxy = entry.namespace == "istio-system" && account == Some("ztunnel");
            proxy && entry.sandbox().is_some_and(|s| namespace_of(s.pid()).as_ref() == Some(&theirs))
        })
}

async fn talk(
    proxies: &Proxies,
    socket: &SeqPacket,
    snapshot: Vec<Workload>,
    mut commands: mpsc::UnboundedReceiver<Command>,
) -> io::Result<()> {
    let hello = tokio::time::timeout(ANSWER, socket.recv(MAX_MESSAGE)).await??;
    read_hello(&hello.bytes).map_err(io::Error::other)?;
    for workload in snapshot {
        add(proxies, socket, &workload).await?;
    }
    request(socket, &Request::SnapshotSent, None).await?.map_err(io::Error::other)?;
    loop {
        let command = tokio::select! {
            command = commands.recv() => command,
            // Between requests a proxy says nothing; what comes is its end.
            said = socket.recv(MAX_MESSAGE) => {
                return if said?.bytes.is_empty() { Ok(()) } else { Err(io::Error::other("unasked message")) };
            }
        };
        match command {
            Some(Command::Add(workload)) => add(proxies, socket, &workload).await?,
            Some(Command::Del(uid)) => {
                if let Err(reason) = request(socket, &Request::Delete(uid), None).await? {
                    tracing::warn!(reason, "the node proxy did not let a Pod go");
                }
            }
            None => return Ok(()),
        }
    }
}

async fn add(proxies: &Proxies, socket: &SeqPacket, workload: &Workload) -> io::Result<()> {
    let named = Named {
        uid: workload.uid.clone(),
        name: workload.name.clone(),
        namespace: workload.namespace.clone(),
        service_account: workload.service_account.clone(),
    };
    let answer = request(socket, &Request::Add(named), Some(&workload.netns)).await?;
    if let Err(reason) = &answer {
        tracing::warn!(pod = %workload.name, reason, "the node proxy did not take a Pod");
    }
    proxies.answered(&workload.uid, &answer);
    Ok(())
}

/// Sends one request and waits for its answer.
async fn request(
    socket: &SeqPacket,
    request: &Request,
    netns: Option<&NetNs>,
) -> io::Result<Result<(), String>> {
    let fds: Vec<_> = netns.iter().map(|n| n.as_fd()).collect();
    socket.send(&request.encode(), &fds).await?;
    let answer = tokio::time::timeout(ANSWER, socket.recv(MAX_MESSAGE)).await??;
    if answer.bytes.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(read_ack(&answer.bytes).map_err(io::Error::other)?.map_or(Ok(()), Err))
}

#[cfg(test)]
mod tests {
    use super::*;
    use meltemi_wire::zds::{ack, hello};

    fn workload(uid: &str) -> Workload {
        let text = |suffix: &str| format!("{uid}-{suffix}");
        let netns = Arc::new(NetNs::current().unwrap());
        Workload {
            uid: uid.into(),
            name: text("name"),
            namespace: text("ns"),
            service_account: text("sa"),
            netns,
        }
    }

    /// A proxy's side: what it was asked, answered with success.
    async fn asked(socket: &SeqPacket) -> Request {
        let message = socket.recv(MAX_MESSAGE).await.unwrap();
        let request = Request::decode(&message.bytes).unwrap();
        assert_eq!(message.fds.len(), usize::from(matches!(request, Request::Add(_))));
        if let [fd] = &message.fds[..] {
            let received = NetNs::from_fd(fd.try_clone().unwrap()).id().unwrap();
            assert_eq!(received, NetNs::current().unwrap().id().unwrap());
        }
        socket.send(&ack(None), &[]).await.unwrap();
        request
    }

    fn is_add(request: &Request, uid: &str) -> bool {
        matches!(request, Request::Add(w) if w.uid == uid && w.name == format!("{uid}-name"))
    }

    async fn connected(proxies: &Proxies) -> (SeqPacket, impl Future<Output = ()> + use<>) {
        let (ours, theirs) = SeqPacket::pair().unwrap();
        theirs.send(&hello(), &[]).await.unwrap();
        let (id, snapshot, commands) = proxies.connect();
        let proxies = proxies.clone();
        let serving = async move {
            let _ = talk(&proxies, &ours, snapshot, commands).await;
            proxies.disconnect(id);
        };
        (theirs, serving)
    }

    #[tokio::test]
    async fn a_proxy_gets_a_snapshot_then_changes_and_the_newest_takes_over() {
        let proxies = Proxies::default();
        let early = proxies.add(workload("early"));
        let (first, serving_first) = connected(&proxies).await;
        let script = async {
            assert!(is_add(&asked(&first).await, "early"));
            assert_eq!(asked(&first).await, Request::SnapshotSent);
            early.await.unwrap();
            let (second, serving_second) = connected(&proxies).await;
            let rest = async {
                assert!(is_add(&asked(&second).await, "early"));
                assert_eq!(asked(&second).await, Request::SnapshotSent);
                let late = proxies.add(workload("late"));
                assert!(is_add(&asked(&second).await, "late"));
                late.await.unwrap();
                proxies.remove("early");
                assert_eq!(asked(&second).await, Request::Delete("early".into()));
                assert_eq!(asked(&first).await, Request::Delete("early".into()));
                // The newest goes: the other one learns what only that one knew.
                drop(second);
                assert!(is_add(&asked(&first).await, "late"));
                drop(first);
            };
            tokio::join!(serving_second, rest);
        };
        tokio::time::timeout(Duration::from_secs(5), async { tokio::join!(serving_first, script) })
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_refusal_reaches_who_waits() {
        let proxies = Proxies::default();
        let (proxy, serving) = connected(&proxies).await;
        let script = async {
            assert_eq!(asked(&proxy).await, Request::SnapshotSent);
            let adding = proxies.add(workload("a"));
            proxy.recv(MAX_MESSAGE).await.unwrap();
            proxy.send(&ack(Some("no such namespace")), &[]).await.unwrap();
            assert_eq!(adding.await.unwrap_err(), "no such namespace");
            drop(proxy);
        };
        tokio::time::timeout(Duration::from_secs(5), async { tokio::join!(serving, script) }).await.unwrap();
    }
}
