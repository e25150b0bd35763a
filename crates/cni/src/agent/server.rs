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
use meltemi_linux::netns::NetNs;
use meltemi_linux::seqpacket::{Listener, SeqPacket};
use meltemi_runtime::Ready;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::entry::{self, Found};
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
        other => Err(format!(
            "the plugin speaks version {other} and the agent {VERSION}: one of them is of another release"
        )),
    };
    if let Err(reason) = &result {
        let pod = format!("{}/{}", question.namespace, question.name);
        tracing::warn!(pod, verb = ?question.verb, reason, "refused");
    }
    socket.send(&serde_json::to_vec(&Answer { refused: result.err() })?, &[]).await
}

async fn answer(agent: &Arc<Agent>, question: &Question, fds: Vec<OwnedFd>) -> Result<(), String> {
    match question.verb {
        Verb::Add => add(agent, question, netns(fds)?).await,
        Verb::Check => check(agent, question, &netns(fds)?),
        Verb::Del => {
            let sandbox = |entry: &Arc<entry::Entry>| entry.sandbox == question.sandbox;
            let ended = agent.entries().values().find(|entry| sandbox(entry)).map(|entry| entry.uid.clone());
            if let Some(uid) = ended {
                entry::end(agent, &uid).await;
            }
            Ok(())
        }
        Verb::Succeed => Err("this is no question of a plugin".to_owned()),
    }
}

fn netns(fds: Vec<OwnedFd>) -> Result<NetNs, String> {
    fds.into_iter().next().map(NetNs::from_fd).ok_or_else(|| "no network namespace came along".to_owned())
}

async fn add(agent: &Arc<Agent>, question: &Question, netns: NetNs) -> Result<(), String> {
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
    entry::start(agent, found).await.map_err(|error| error.to_string())
}

fn check(agent: &Arc<Agent>, question: &Question, netns: &NetNs) -> Result<(), String> {
    let entry = agent.entries().values().find(|entry| entry.sandbox == question.sandbox).cloned();
    let Some(entry) = entry else { return Ok(()) };
    if netns.id().ok() != Some(entry.netns_id) {
        return Err("the network namespace is not the one that was captured".to_owned());
    }
    let should = *entry.capture.borrow() != meltemi_enrolment::Capture::Outside;
    match meltemi_capture::is_applied(netns) {
        Ok(is) if is || !should => Ok(()),
        Ok(_) => Err("the rules of the capture are not there".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The Pod's object: by the watch, or else asked for. It must be the very Pod, and of this node.
async fn find(agent: &Arc<Agent>, question: &Question) -> Result<Arc<Pod>, String> {
    let key = (question.namespace.clone(), question.name.clone());
    let is_it = |pod: &Pod| question.uid.is_empty() || adopt::node_uids(pod).any(|uid| uid == question.uid);
    let mut objects = agent.objects.subscribe();
    let watched = async {
        loop {
            let known = objects.borrow_and_update().as_ref().and_then(|all| all.get(&key).cloned());
            match known.filter(|pod| is_it(pod)) {
                Some(pod) => return Some(pod),
                None => objects.changed().await.ok()?,
            }
        }
    };
    if let Ok(Some(pod)) = timeout(WAIT_FOR_WATCH, watched).await {
        return Ok(pod);
    }
    let api: Api<Pod> = Api::namespaced(agent.client.clone(), &question.namespace);
    let asked = timeout(QUESTION, api.get_opt(&question.name)).await;
    let pod = match asked {
        Ok(Ok(Some(pod))) => pod,
        Ok(Ok(None)) => return Err("the API has no such Pod".to_owned()),
        Ok(Err(error)) => return Err(format!("the Pod cannot be asked for: {error}")),
        Err(_) => return Err("the API server does not answer".to_owned()),
    };
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    match is_it(&pod) && node == Some(agent.config.node_name.as_str()) {
        true => Ok(Arc::new(pod)),
        false => Err("the Pod of this name is another one".to_owned()),
    }
}
