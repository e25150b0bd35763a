// SPDX-License-Identifier: Apache-2.0
//! What the plugin asks the agent: one message and its answer over a `SOCK_SEQPACKET` socket. The Pod's network namespace
//! travels with the question as a descriptor, so that the agent needs none of the node's folders to find it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use meltemi_linux::seqpacket;
use serde::{Deserialize, Serialize};

/// Version of the messages. An agent answers questions of its own version and of earlier ones.
pub const VERSION: u32 = 1;
/// Largest message, in bytes.
pub const MAX_MESSAGE: usize = 16 * 1024;
/// Longest time that the plugin waits for an answer. The agent takes a few seconds where no node proxy is there.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What is asked of a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// It is about to start: capture it if it belongs into the mesh.
    Add,
    /// Is it as it should be?
    Check,
    /// Its network namespace is about to go.
    Del,
    /// Not of a Pod: the next agent of the node asks for what this one keeps.
    Succeed,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// Version of the message.
    pub version: u32,
    /// What is asked.
    pub verb: Verb,
    /// Namespace of the Pod.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; empty where the runtime does not tell it.
    #[serde(default)]
    pub uid: String,
    /// Id of its sandbox at the runtime: a Pod that gets another sandbox keeps its uid.
    pub sandbox: String,
    /// The addresses that the plugins before gave it.
    #[serde(default)]
    pub addresses: Vec<std::net::IpAddr>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Why the Pod may not start; `None` lets it.
    pub refused: Option<String>,
}

/// Asks the agent and waits for its answer.
///
/// # Errors
/// No agent listens, it does not answer in time, or it says something else.
pub fn ask(socket: &Path, question: &Question, netns: Option<BorrowedFd<'_>>) -> io::Result<Answer> {
    let bytes = serde_json::to_vec(question)?;
    let connection = seqpacket::connect_blocking(socket, TIMEOUT)?;
    let fds: Vec<BorrowedFd<'_>> = netns.into_iter().collect();
    seqpacket::send(connection.as_fd(), &bytes, &fds)?;
    let message = seqpacket::recv(connection.as_fd(), MAX_MESSAGE)?;
    if message.bytes.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the agent has closed the connection"));
    }
    Ok(serde_json::from_slice(&message.bytes)?)
}
