// SPDX-License-Identifier: Apache-2.0
//! Hands enrolled Pods to the node proxies: the listening side of ZDS.
//!
//! Several proxies may be connected while one takes over from another: a new Pod goes to the newest connection,
//! a Pod that leaves is told to all. A proxy that connects gets a snapshot first. A Pod that a proxy refuses (its listeners
//! could not be opened) is handed over again by time.

pub(crate) mod proxies;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use meltemi_linux::seqpacket::{Listener, SeqPacket};
use meltemi_linux::sockopt::PeerCredentials;
use meltemi_runtime::Tasks;
use meltemi_wire::zds::{Hello, MAX_MESSAGE, Request, Workload as Named, read_ack, read_hello};
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use self::proxies::Proxies;
use self::proxies::{Command, Workload};
use crate::Enrolment;

const ANSWER: Duration = Duration::from_secs(10);
/// First and longest pause before Pods that a proxy refused are handed to it again.
const MIN_RETRY: Duration = Duration::from_millis(500);
const MAX_RETRY: Duration = Duration::from_secs(5);
/// How long connections wait for the next proxy after the last one has ended; then they are refused.
const HOLD: Duration = Duration::from_secs(10);

/// Listens for node proxies until the drain; `admits` decides who may have the Pods' network namespaces.
///
/// # Errors
/// The socket cannot be bound.
pub async fn serve<A>(shared: Arc<Enrolment>, path: &Path, tasks: &Tasks, admits: A) -> io::Result<()>
where
    A: Fn(PeerCredentials) -> bool + Send,
{
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let listener = Listener::bind(path)?;
    let mut drain = tasks.drain();
    loop {
        let socket = tokio::select! {
            socket = listener.accept() => socket?,
            () = drain.started() => return Ok(()),
        };
        match socket.peer() {
            Ok(peer) if admits(peer) => {}
            other => {
                tracing::warn!(peer = ?other, "refused a connection to the ZDS socket: not a node proxy of this node");
                continue;
            }
        }
        let (proxies, mut drain) = (shared.proxies.clone(), tasks.drain());
        tasks.spawn_job("zds", async move {
            tokio::select! {
                result = converse(&proxies, &socket) => result,
                () = drain.started() => Ok(()),
            }
        });
    }
}

/// Tells one proxy of the Pods until it goes.
async fn converse(proxies: &Proxies, socket: &SeqPacket) -> io::Result<()> {
    let (id, snapshot, commands) = proxies.connect();
    tracing::info!(proxy = id, pods = snapshot.len(), "node proxy connected");
    let result = Talk { id, proxies, socket }.run(snapshot, commands).await;
    proxies.disconnect(id);
    tracing::info!(proxy = id, result = ?result, "node proxy disconnected");
    close_after_last(proxies).await;
    result
}

/// Closes the kept listeners when no proxy has come for [`HOLD`] after the last one.
async fn close_after_last(proxies: &Proxies) {
    if let Some(so_far) = proxies.abandoned() {
        tokio::time::sleep(HOLD).await;
        // One that came meanwhile and has gone again has a time of its own.
        proxies.close_abandoned(so_far);
    }
}

/// The conversation with one proxy.
struct Talk<'a> {
    id: u64,
    proxies: &'a Proxies,
    socket: &'a SeqPacket,
}

impl Talk<'_> {
    async fn run(
        &self,
        snapshot: Vec<Workload>,
        mut commands: mpsc::UnboundedReceiver<Command>,
    ) -> io::Result<()> {
        let hello = tokio::time::timeout(ANSWER, self.socket.recv(MAX_MESSAGE)).await??;
        let Hello { keeps_listeners } = read_hello(&hello.bytes).map_err(io::Error::other)?;
        self.proxies.greeted(self.id, keeps_listeners);
        let mut refused = Refused::default();
        for workload in snapshot {
            refused.note(&workload.uid, self.add(&workload, keeps_listeners).await?);
        }
        request(self.socket, &Request::SnapshotSent, &[]).await?.0.map_err(io::Error::other)?;
        self.proxies.took_over(self.id);
        loop {
            let command = tokio::select! {
                command = commands.recv() => command,
                () = refused.due() => {
                    for uid in refused.take() {
                        if let Some(workload) = self.proxies.get(&uid) {
                            refused.note(&uid, self.add(&workload, keeps_listeners).await?);
                        }
                    }
                    continue;
                }
                // Between requests a proxy says nothing; what comes is its end.
                said = self.socket.recv(MAX_MESSAGE) => {
                    return if said?.bytes.is_empty() { Ok(()) } else { Err(io::Error::other("unasked message")) };
                }
            };
            match command {
                Some(Command::Add(workload)) => {
                    refused.note(&workload.uid, self.add(&workload, keeps_listeners).await?);
                }
                Some(Command::Del(uid)) => {
                    refused.note(&uid, true);
                    if let (Err(reason), _) = request(self.socket, &Request::Delete(uid), &[]).await? {
                        tracing::warn!(reason, "the node proxy did not let a Pod go");
                    }
                }
                Some(Command::Successor) => drop(request(self.socket, &Request::Successor, &[]).await?),
                None => return Ok(()),
            }
        }
    }

    /// Hands a Pod over; whether the proxy serves it.
    async fn add(&self, workload: &Workload, keep_listeners: bool) -> io::Result<bool> {
        let named = Named {
            uid: workload.uid.clone(),
            name: workload.name.clone(),
            namespace: workload.namespace.clone(),
            service_account: workload.service_account.clone(),
            keep_listeners,
        };
        let kept = if keep_listeners { self.proxies.listeners(&workload.uid) } else { Vec::new() };
        let fds: Vec<_> =
            [workload.netns.as_fd()].into_iter().chain(kept.iter().map(|fd| fd.as_fd())).collect();
        let (answer, opened) = request(self.socket, &Request::Add(named), &fds).await?;
        if keep_listeners && answer.is_ok() {
            self.proxies.keep_listeners(&workload.uid, opened);
        }
        if let Err(reason) = &answer {
            tracing::warn!(pod = %workload.name, reason, "the node proxy did not take a Pod; it is handed over again");
        }
        let taken = answer.is_ok();
        self.proxies.answered(self.id, &workload.uid, answer);
        Ok(taken)
    }
}

/// Pods that a proxy refused, and when they are handed to it again.
#[derive(Debug, Default)]
struct Refused {
    pods: BTreeSet<String>,
    next: Option<Instant>,
    pause: Duration,
}

impl Refused {
    /// Takes the answer for a Pod.
    fn note(&mut self, uid: &str, taken: bool) {
        if taken {
            self.pods.remove(uid);
            return;
        }
        self.pods.insert(uid.to_owned());
        if self.next.is_none() {
            self.pause = (self.pause * 2).clamp(MIN_RETRY, MAX_RETRY);
            self.next = Some(Instant::now() + self.pause);
        }
    }

    /// Resolves when there is something to hand over again.
    async fn due(&self) {
        match self.next {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    fn take(&mut self) -> BTreeSet<String> {
        self.next = None;
        if self.pods.is_empty() {
            self.pause = Duration::ZERO;
        }
        std::mem::take(&mut self.pods)
    }
}

/// Sends one request and waits for its answer, and the descriptors that come with it.
async fn request(
    socket: &SeqPacket,
    request: &Request,
    fds: &[BorrowedFd<'_>],
) -> io::Result<(Result<(), String>, Vec<OwnedFd>)> {
    socket.send(&request.encode(), fds).await?;
    let answer = tokio::time::timeout(ANSWER, socket.recv(MAX_MESSAGE)).await??;
    if answer.bytes.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let done = read_ack(&answer.bytes).map_err(io::Error::other)?.map_or(Ok(()), Err);
    Ok((done, answer.fds))
}

#[cfg(test)]
mod tests {
    use super::proxies::MAX_LISTENERS;
    use super::*;
    use meltemi_linux::netns::NetNs;
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
            answer: Arc::new(tokio::sync::watch::channel(None).0),
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
            let _ = Talk { id, proxies: &proxies, socket: &ours }.run(snapshot, commands).await;
            proxies.disconnect(id);
        };
        (theirs, serving)
    }

    #[tokio::test]
    async fn a_proxy_gets_a_snapshot_then_changes_and_the_newest_takes_over() {
        let proxies = Proxies::default();
        let early = workload("early");
        proxies.add(early.clone());
        let (first, serving_first) = connected(&proxies).await;
        let script = async {
            assert!(is_add(&asked(&first).await, "early"));
            assert_eq!(asked(&first).await, Request::SnapshotSent);
            answered(&early).await.unwrap();
            let (second, serving_second) = connected(&proxies).await;
            let rest = async {
                assert!(is_add(&asked(&second).await, "early"));
                assert_eq!(asked(&second).await, Request::SnapshotSent);
                assert_eq!(asked(&first).await, Request::Successor);
                let late = workload("late");
                proxies.add(late.clone());
                assert!(is_add(&asked(&second).await, "late"));
                answered(&late).await.unwrap();
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

    /// A proxy's side of an Add: the numbers of the ports that came along, answered with these sockets.
    async fn taken(socket: &SeqPacket, opened: &[&std::net::TcpListener]) -> Vec<u16> {
        let message = socket.recv(MAX_MESSAGE).await.unwrap();
        assert!(matches!(Request::decode(&message.bytes).unwrap(), Request::Add(w) if w.keep_listeners));
        let fds: Vec<_> = opened.iter().map(|listener| listener.as_fd()).collect();
        socket.send(&ack(None), &fds).await.unwrap();
        let port = |fd: OwnedFd| std::net::TcpListener::from(fd).local_addr().unwrap().port();
        message.fds.into_iter().skip(1).map(port).collect()
    }

    #[tokio::test]
    async fn listeners_outlive_a_proxy_and_come_to_the_next_one() {
        let proxies = Proxies::default();
        let adding = workload("a");
        proxies.add(adding.clone());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (first, serving) = connected(&proxies).await;
        let script = async {
            assert!(taken(&first, &[&listener]).await.is_empty(), "nobody listened before");
            answered(&adding).await.unwrap();
            assert_eq!(asked(&first).await, Request::SnapshotSent);
            drop((first, listener));
        };
        tokio::join!(serving, script);
        // Between two proxies a connection waits in the kernel.
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (second, serving) = connected(&proxies).await;
        let script = async {
            assert_eq!(taken(&second, &[]).await, [port]);
            assert_eq!(asked(&second).await, Request::SnapshotSent);
            drop(second);
        };
        tokio::join!(serving, script);
        // After the last proxy and the time that clients are let wait, it is refused: from the end of the last one on, not of
        // one before it.
        tokio::time::pause();
        let come_and_gone = async {
            tokio::time::sleep(HOLD / 2).await;
            let (id, ..) = proxies.connect();
            proxies.disconnect(id);
        };
        tokio::join!(close_after_last(&proxies), come_and_gone);
        assert!(!proxies.listeners("a").is_empty());
        let begun = tokio::time::Instant::now();
        close_after_last(&proxies).await;
        assert_eq!(begun.elapsed().as_secs(), HOLD.as_secs());
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
        drop(client);
    }

    #[tokio::test]
    async fn listeners_beyond_the_bound_are_not_kept_and_other_pods_have_theirs() {
        let proxies = Proxies::default();
        let sockets = |count: usize| {
            let one = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            (0..count).map(|_| OwnedFd::from(one.try_clone().unwrap())).collect::<Vec<_>>()
        };
        for uid in ["hostile", "other"] {
            proxies.add(workload(uid));
        }
        for count in [MAX_LISTENERS - 1, 100, 1] {
            proxies.keep_listeners("hostile", sockets(count));
        }
        proxies.keep_listeners("other", sockets(3));
        assert_eq!(
            (proxies.listeners("hostile").len(), proxies.listeners("other").len()),
            (MAX_LISTENERS, 3)
        );
        // With the network namespace as many as one message carries.
        assert_eq!(MAX_LISTENERS + 1, meltemi_linux::seqpacket::MAX_FDS);
    }

    async fn answered(workload: &Workload) -> Result<(), String> {
        let mut answers = workload.answer.subscribe();
        let answer = answers.wait_for(Option::is_some).await.unwrap().clone();
        answer.unwrap()
    }

    #[tokio::test]
    async fn a_refused_pod_is_handed_over_again_until_it_is_taken() {
        let proxies = Proxies::default();
        let (proxy, serving) = connected(&proxies).await;
        let script = async {
            assert_eq!(asked(&proxy).await, Request::SnapshotSent);
            let refused = workload("a");
            proxies.add(refused.clone());
            for _ in 0..2 {
                proxy.recv(MAX_MESSAGE).await.unwrap();
                proxy.send(&ack(Some("address in use")), &[]).await.unwrap();
                assert_eq!(answered(&refused).await.unwrap_err(), "address in use");
            }
            assert!(is_add(&asked(&proxy).await, "a"));
            while answered(&refused).await.is_err() {
                tokio::task::yield_now().await;
            }
            proxies.remove("a");
            assert_eq!(asked(&proxy).await, Request::Delete("a".into()));
            drop(proxy);
        };
        tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(serving, script) }).await.unwrap();
    }

    #[tokio::test]
    async fn listeners_go_to_the_proxy_of_the_next_agent() {
        let (before, after) = (Proxies::default(), Proxies::default());
        before.add(workload("a"));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (old, serving_old) = connected(&before).await;
        let script = async {
            assert!(taken(&old, &[&listener]).await.is_empty());
            assert_eq!(asked(&old).await, Request::SnapshotSent);
            for (uid, kept) in before.all_listeners() {
                let copies = kept.iter().map(|fd| fd.try_clone().unwrap()).collect();
                after.inherit(uid, copies);
            }
            after.add(workload("a"));
            let (new, serving_new) = connected(&after).await;
            let script = async {
                assert_eq!(taken(&new, &[]).await, [port]);
                assert_eq!(asked(&new).await, Request::SnapshotSent);
                after.served().await;
                before.succeed();
                assert_eq!(asked(&old).await, Request::Successor);
                drop((new, old, listener));
            };
            tokio::join!(serving_new, script);
        };
        tokio::join!(serving_old, script);
    }
}
