// SPDX-License-Identifier: Apache-2.0
//! The client of the node's agent: which Pods are enrolled, and their network namespaces.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use meltemi_linux::netns::NetNs;
use meltemi_linux::seqpacket::SeqPacket;
use meltemi_model::{SpiffeId, WorkloadUid};
use meltemi_runtime::readiness::Ready;
use meltemi_wire::zds::{self, MAX_MESSAGE, Request, Workload};
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::legacy;
use crate::places::Places;
use crate::pod::Pod;
use crate::sockets;
use crate::workers::Workers;

const MIN_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// How long the connections of a Pod that has left may go on.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long the certificates of all Pods are waited for; after that one will do, since the others are refused by a CA that
/// works. Without any the proxy is of no use to anybody, and never ready.
const CERTIFICATES: Duration = Duration::from_secs(30);

/// Waits until the Pods that are still there have certificates.
async fn certified(context: &Context, mut pods: Vec<Arc<Pod>>) {
    let begun = tokio::time::Instant::now();
    let mut look = tokio::time::interval(Duration::from_millis(100));
    loop {
        look.tick().await;
        pods.retain(|pod| !pod.closed.is_cancelled());
        let (have, lack): (Vec<_>, Vec<_>) =
            pods.iter().partition(|pod| context.certificates.is_ready(&pod.identity));
        if lack.is_empty() || (!have.is_empty() && begun.elapsed() > CERTIFICATES) {
            return;
        }
    }
}

/// The client.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    context: Arc<Context>,
    workers: Workers,
    ready: Option<Ready>,
    pods: HashMap<String, Arc<Pod>>,
    successor: CancellationToken,
}

impl Client {
    /// `successor` is cancelled when the agent says that another proxy has taken over.
    pub(crate) fn new(
        socket: PathBuf,
        context: Arc<Context>,
        workers: Workers,
        ready: Ready,
        successor: CancellationToken,
    ) -> Self {
        Self { socket, context, workers, ready: Some(ready), pods: HashMap::new(), successor }
    }

    /// Stays connected until nothing further is accepted. While the agent is away, Pods are served as before.
    pub(crate) async fn run(mut self) -> io::Result<()> {
        let closing = self.context.closing.clone();
        let mut pause = MIN_PAUSE;
        loop {
            let ended = tokio::select! {
                ended = self.talk(&mut pause) => ended,
                () = closing.cancelled() => return Ok(()),
            };
            tracing::warn!(socket = %self.socket.display(), result = ?ended, "the node's agent is away");
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(MAX_PAUSE),
                () = closing.cancelled() => return Ok(()),
            }
        }
    }

    async fn talk(&mut self, pause: &mut Duration) -> io::Result<()> {
        let socket = SeqPacket::connect(&self.socket).await?;
        socket.send(&zds::hello(), &[]).await?;
        tracing::info!("connected to the node's agent");
        let mut seen = Some(HashSet::new());
        loop {
            let message = socket.recv(MAX_MESSAGE).await?;
            if message.bytes.is_empty() {
                return Ok(());
            }
            *pause = MIN_PAUSE;
            let request = Request::decode(&message.bytes).map_err(io::Error::other)?;
            let done = self.handle(request, message.fds, &mut seen).await;
            if let Err(error) = &done {
                tracing::error!(%error, "a request of the node's agent failed");
            }
            let (error, opened) = match done {
                Ok(opened) => (None, opened),
                Err(error) => (Some(error.to_string()), Vec::new()),
            };
            let opened: Vec<_> = opened.iter().map(|fd| fd.as_fd()).collect();
            socket.send(&zds::ack(error.as_deref()), &opened).await?;
        }
    }

    async fn handle(
        &mut self,
        request: Request,
        fds: Vec<OwnedFd>,
        seen: &mut Option<HashSet<String>>,
    ) -> io::Result<Vec<OwnedFd>> {
        match request {
            Request::Add(workload) => {
                if let Some(seen) = seen {
                    seen.insert(workload.uid.clone());
                }
                let mut fds = fds.into_iter();
                let netns = fds.next().ok_or_else(|| io::Error::other("no network namespace came along"))?;
                let keep = workload.keep_listeners;
                let opened = self.add(workload, NetNs::from_fd(netns), fds.collect()).await?;
                return Ok(if keep { opened } else { Vec::new() });
            }
            Request::Keep(uid) => {
                if let Some(seen) = seen {
                    seen.insert(uid);
                }
            }
            Request::Delete(uid) => self.remove(&uid),
            Request::Successor => {
                tracing::info!("another proxy serves this node's Pods as well");
                self.successor.cancel();
            }
            Request::SnapshotSent => {
                // Who was not named has left while nobody was listening.
                let named = seen.take().unwrap_or_default();
                let left: Vec<String> =
                    self.pods.keys().filter(|uid| !named.contains(*uid)).cloned().collect();
                left.iter().for_each(|uid| self.remove(uid));
                if let Some(ready) = self.ready.take() {
                    let (context, pods) = (self.context.clone(), self.pods.values().cloned().collect());
                    self.context.tasks.spawn_job("certificates of the first Pods", async move {
                        let mut drain = context.tasks.drain();
                        tokio::select! {
                            () = certified(&context, pods) => ready.done(),
                            () = drain.started() => {}
                        }
                        Ok::<(), std::convert::Infallible>(())
                    });
                }
            }
        }
        Ok(Vec::new())
    }

    /// Serves a Pod; returns copies of the sockets that were opened for it.
    async fn add(
        &mut self,
        workload: Workload,
        netns: NetNs,
        adopted: Vec<OwnedFd>,
    ) -> io::Result<Vec<OwnedFd>> {
        if let Some(known) = self.pods.get(&workload.uid) {
            if known.netns.id()? == netns.id()? {
                return Ok(Vec::new());
            }
            self.remove(&workload.uid);
        }
        let Workload { uid, name, namespace, service_account, keep_listeners: _ } = workload;
        let identity = SpiffeId::new(&self.context.trust_domain, &namespace, &service_account)
            .map_err(io::Error::other)?;
        self.context.certificates.prefetch(&identity);
        let legacy = legacy::inbound(&netns).unwrap_or_else(|error| {
            tracing::error!(pod = %name, %error, "connections that are older than the enrolment cannot be listed");
            Vec::new()
        });
        let (sockets, opened) = sockets::open(&netns, self.workers.count(), adopted)?;
        let pod = Arc::new(Pod {
            legacy,
            workload: WorkloadUid::pod(&self.context.cluster_id, &namespace, &name),
            identity,
            netns,
            places: Places::new(self.context.connections_per_pod),
            closed: CancellationToken::new(),
            gone: CancellationToken::new(),
        });
        if let Err(error) = self.workers.add(&pod, sockets).await {
            pod.closed.cancel();
            return Err(error);
        }
        tracing::info!(pod = %pod.workload, identity = %pod.identity, "serving");
        self.pods.insert(uid, pod);
        Ok(opened)
    }

    fn remove(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else { return };
        tracing::info!(pod = %pod.workload, "no longer serving");
        pod.closed.cancel();
        if !self.pods.values().any(|other| other.identity == pod.identity) {
            self.context.certificates.forget(&pod.identity);
        }
        self.context.tasks.spawn_job("farewell", async move {
            tokio::time::sleep(FAREWELL).await;
            pod.gone.cancel();
            Ok::<(), std::convert::Infallible>(())
        });
    }
}
