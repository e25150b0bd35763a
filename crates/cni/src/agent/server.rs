// SPDX-License-Identifier: Apache-2.0
//! The socket at which the plugin asks. Only root of the node may.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use meltemi_enrolment::Capture;
use meltemi_linux::netns::NetNs;
use meltemi_linux::seqpacket::{Listener, SeqPacket};
use meltemi_runtime::Ready;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::entry::{self, Entry, Found};
use super::refusal::Refusal;
use super::{Agent, adopt, handover};
use crate::ask::{Answer, MAX_MESSAGE, Question, VERSION, Verb};

/// Questions that are answered at once; others wait.
const AT_ONCE: usize = 256;
/// Longest time between a connection and its question.
const QUESTION: Duration = Duration::from_secs(10);
/// How long the watch has time to bring a Pod that the kubelet knows already; then the API is asked.
const WAIT_FOR_WATCH: Duration = Duration::from_secs(1);
/// Pause after a failed accept.
const PAUSE: Duration = Duration::from_millis(100);

/// Makes the socket, in a folder that only root may enter. It takes the place of an earlier agent's at once: at no moment is
/// there none.
fn listen(path: &Path) -> io::Result<Listener> {
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
    }
    let new = path.with_extension("new");
    let listener = Listener::bind(&new)?;
    std::fs::rename(&new, path)?;
    Ok(listener)
}

/// Answers the plugins of this node. While an earlier agent is there, it does, until this one's proxy serves the Pods.
pub(super) async fn serve(agent: Arc<Agent>, earlier: Option<SeqPacket>, takes_questions: Ready) {
    if let Some(earlier) = earlier {
        handover::complete(&agent, &earlier).await;
    }
    let listener = loop {
        match listen(&agent.config.socket) {
            Ok(listener) => break listener,
            Err(error) => {
                let path = agent.config.socket.display();
                tracing::error!(%path, %error, "the plugin's socket cannot be made; it is tried again");
                tokio::time::sleep(PAUSE * 10).await;
            }
        }
    };
    takes_questions.done();
    agent.serving.send_replace(true);
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let socket = match listener.accept().await {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, "the plugin's connection is not accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if !socket.peer().is_ok_and(|peer| peer.uid == 0) {
            tracing::warn!(peer = ?socket.peer(), "refused a connection to the plugin's socket: not root of this node");
            continue;
        }
        let asked = agent.clone();
        agent.job("plugin question", async move {
            if let Err(error) = converse(&asked, &socket).await {
                tracing::warn!(%error, "a question of the plugin failed");
            }
            drop(place);
        });
    }
}

async fn converse(agent: &Arc<Agent>, socket: &SeqPacket) -> io::Result<()> {
    let message = timeout(QUESTION, socket.recv(MAX_MESSAGE)).await??;
    let question: Question = serde_json::from_slice(&message.bytes)?;
    if question.verb == Verb::Succeed {
        return handover::give(agent, socket).await;
    }
    let result = match question.version {
        1..=VERSION => answer(agent, &question, message.fds).await,
        other => Err(Refusal::Version(other)),
    };
    let refused = result.err().map(|refusal| refusal.to_string());
    if let Some(reason) = &refused {
        let pod = format!("{}/{}", question.namespace, question.name);
        tracing::warn!(pod, verb = ?question.verb, reason, "refused");
    }
    socket.send(&serde_json::to_vec(&Answer { refused })?, &[]).await
}

async fn answer(agent: &Arc<Agent>, question: &Question, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
    match question.verb {
        Verb::Add => add(agent, question, netns(fds)?).await,
        Verb::Check => check(agent, question, &netns(fds)?),
        Verb::Del => {
            if let Some(ended) = of_sandbox(agent, &question.sandbox) {
                entry::end(agent, &ended.uid).await;
            }
            Ok(())
        }
        Verb::Succeed => Err(Refusal::NoQuestion),
    }
}

fn of_sandbox(agent: &Agent, sandbox: &str) -> Option<Arc<Entry>> {
    agent.entries().values().find(|entry| entry.sandbox == sandbox).cloned()
}

fn netns(fds: Vec<OwnedFd>) -> Result<NetNs, Refusal> {
    fds.into_iter().next().map(NetNs::from_fd).ok_or(Refusal::NoNamespace)
}

async fn add(agent: &Arc<Agent>, question: &Question, netns: NetNs) -> Result<(), Refusal> {
    let pod = find(agent, question).await?;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let netns_id = agent.check_netns(&netns, &uid)?;
    if agent.ignores(&pod) {
        return Ok(());
    }
    let found = Found {
        pod,
        sandbox: question.sandbox.clone(),
        netns,
        netns_id,
        addresses: question.addresses.clone(),
    };
    Ok(entry::start(agent, found).await?)
}

fn check(agent: &Arc<Agent>, question: &Question, netns: &NetNs) -> Result<(), Refusal> {
    let Some(entry) = of_sandbox(agent, &question.sandbox) else { return Ok(()) };
    if netns.id().map_err(Refusal::Namespace)? != entry.netns_id {
        return Err(Refusal::AnotherNamespace);
    }
    let should_be = *entry.capture.borrow() != Capture::Outside;
    if should_be && !meltemi_capture::is_applied(netns)? {
        return Err(Refusal::RulesLost);
    }
    Ok(())
}

/// The Pod's object: by the watch, or else asked for. It must be the very Pod, and of this node.
async fn find(agent: &Arc<Agent>, question: &Question) -> Result<Arc<Pod>, Refusal> {
    let key = (question.namespace.clone(), question.name.clone());
    let mut objects = agent.objects.subscribe();
    let watched = async {
        loop {
            let known = objects.borrow_and_update().as_ref().and_then(|all| all.get(&key).cloned());
            match known.filter(|pod| is_asked_for(question, pod)) {
                Some(pod) => return Some(pod),
                None => objects.changed().await.ok()?,
            }
        }
    };
    if let Ok(Some(pod)) = timeout(WAIT_FOR_WATCH, watched).await {
        return Ok(pod);
    }
    let api: Api<Pod> = Api::namespaced(agent.client.clone(), &question.namespace);
    let asked = timeout(QUESTION, api.get_opt(&question.name)).await.map_err(|_| Refusal::Silent)?;
    let pod = asked.map_err(Refusal::Api)?.ok_or(Refusal::NoPod)?;
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let is_here = node == Some(agent.config.node_name.as_str());
    if is_here && is_asked_for(question, &pod) { Ok(Arc::new(pod)) } else { Err(Refusal::AnotherPod) }
}

/// Whether the Pod of the name is the very one, where the runtime tells its uid.
fn is_asked_for(question: &Question, pod: &Pod) -> bool {
    question.uid.is_empty() || adopt::node_uids(pod).any(|uid| uid == question.uid)
}
