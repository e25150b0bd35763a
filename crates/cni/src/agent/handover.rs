// SPDX-License-Identifier: Apache-2.0
//! From one agent of a node to the next, while the DaemonSet is updated: the next one's proxy gets the listening sockets of
//! the earlier one's, so that no connection is lost that waits at them. The earlier proxy stops to accept, and the earlier
//! agent to answer plugins, only when the next proxy serves all Pods.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use meltemi_linux::seqpacket::SeqPacket;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::Agent;
use crate::ask::{MAX_MESSAGE, Question, VERSION, Verb};

/// Longest pause between two messages of the earlier agent. One that is silent is taken for gone.
const SILENCE: Duration = Duration::from_secs(5);
/// The next agent's last message.
const TAKEN: &[u8] = b"taken";

/// Listening sockets of a Pod, which come along; without a Pod it is the last message.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    pod: Option<String>,
}

/// Takes what an earlier agent keeps, if there is one. The connection stays: its end is the earlier agent's.
pub(super) async fn take(agent: &Agent) -> Option<SeqPacket> {
    let earlier = SeqPacket::connect(&agent.config.socket).await.ok()?;
    match receive(agent, &earlier).await {
        Ok(pods) => {
            tracing::info!(
                pods,
                "an earlier agent is there; its node proxy goes on until ours serves all Pods"
            );
            Some(earlier)
        }
        Err(error) => {
            tracing::warn!(%error, "an earlier agent does not hand over");
            None
        }
    }
}

async fn receive(agent: &Agent, earlier: &SeqPacket) -> io::Result<usize> {
    let question = Question {
        version: VERSION,
        verb: Verb::Succeed,
        namespace: String::new(),
        name: String::new(),
        uid: String::new(),
        sandbox: String::new(),
        addresses: Vec::new(),
    };
    earlier.send(&serde_json::to_vec(&question)?, &[]).await?;
    let mut pods = 0;
    loop {
        let message = timeout(SILENCE, earlier.recv(MAX_MESSAGE)).await??;
        let Kept { pod: Some(uid) } = serde_json::from_slice(&message.bytes)? else { return Ok(pods) };
        agent.enrolment.proxies().inherit(uid, message.fds);
        pods += 1;
    }
}

/// Waits until this agent's proxy serves all Pods, and says so; or until the earlier agent has ended.
pub(super) async fn complete(agent: &Agent, earlier: &SeqPacket) {
    let mut adopted = agent.adopted.subscribe();
    let serves = async {
        let _ = adopted.wait_for(|adopted| *adopted).await;
        agent.enrolment.proxies().served().await;
    };
    tokio::select! {
        () = serves => {
            let said = earlier.send(TAKEN, &[]).await;
            tracing::info!(?said, "took over from the earlier agent");
        }
        _ = earlier.recv(MAX_MESSAGE) => tracing::info!("the earlier agent has ended"),
    }
}

/// Gives the next agent what this one keeps, and stands back when it says that it has taken over.
pub(super) async fn give(agent: &Agent, next: &SeqPacket) -> io::Result<()> {
    for (uid, kept) in agent.enrolment.proxies().all_listeners() {
        let fds: Vec<BorrowedFd<'_>> = kept.iter().map(|fd| fd.as_fd()).collect();
        next.send(&serde_json::to_vec(&Kept { pod: Some(uid) })?, &fds).await?;
    }
    next.send(&serde_json::to_vec(&Kept { pod: None })?, &[]).await?;
    if next.recv(MAX_MESSAGE).await?.bytes != TAKEN {
        return Err(io::Error::other("the next agent has ended before it took over"));
    }
    tracing::info!("the next agent has taken over");
    agent.succeeded.send_replace(true);
    agent.enrolment.proxies().succeed();
    Ok(())
}
