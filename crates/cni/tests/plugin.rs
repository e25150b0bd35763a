// SPDX-License-Identifier: Apache-2.0
//! The plugin before an agent: what it asks, and what becomes of the answer.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use meltemi_cni::ask::{Answer, MAX_MESSAGE, Question, Verb};
use meltemi_cni::plugin::{self, Call};
use meltemi_linux::netns::NetNs;
use meltemi_linux::seqpacket::Listener;
use serde_json::{Value, json};

fn call(command: &str, socket: &Path) -> Call {
    let input = json!({
        "cniVersion": "1.0.0", "name": "bridge", "type": "meltemi-cni", "socket": socket,
        "ownNamespace": "istio-system", "ownPrefix": "ztunnel-",
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.244.0.7/24"}, {"address": "fd00::7/64"}]},
    });
    Call {
        command: command.into(),
        container: "sandbox-1".into(),
        netns: "/proc/self/ns/net".into(),
        args: "K8S_POD_NAMESPACE=bank;K8S_POD_NAME=web-0;K8S_POD_UID=u-1".into(),
        input: input.to_string().into_bytes(),
    }
}

/// Calls the plugin before an agent that answers this; returns the question, how many descriptors were this namespace, and
/// what the plugin said.
async fn asked(command: &'static str, answer: Answer) -> (Question, usize, (String, bool)) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let listener = Listener::bind(&path).unwrap();
    let plugin = tokio::task::spawn_blocking(move || plugin::answer(&call(command, &path)));
    let socket = listener.accept().await.unwrap();
    let message = socket.recv(MAX_MESSAGE).await.unwrap();
    let here = NetNs::current().unwrap().id().unwrap();
    let same =
        message.fds.into_iter().filter(|fd| NetNs::from_fd(fd.try_clone().unwrap()).id().unwrap() == here);
    let count = same.count();
    socket.send(&serde_json::to_vec(&answer).unwrap(), &[]).await.unwrap();
    (serde_json::from_slice(&message.bytes).unwrap(), count, plugin.await.unwrap())
}

#[tokio::test]
async fn a_pod_starts_when_the_agent_lets_it() {
    let (question, descriptors, (said, succeeded)) = asked("ADD", Answer { refused: None }).await;
    assert!(succeeded, "{said}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["ips"][0]["address"], "10.244.0.7/24", "what the plugins before made is passed on");
    assert_eq!(descriptors, 1);
    assert_eq!((question.verb, question.version), (Verb::Add, 1));
    let names = [&question.namespace, &question.name, &question.uid, &question.sandbox];
    assert_eq!(names, ["bank", "web-0", "u-1", "sandbox-1"]);
    assert_eq!(
        question.addresses,
        ["10.244.0.7".parse().unwrap(), "fd00::7".parse::<std::net::IpAddr>().unwrap()]
    );
}

#[tokio::test]
async fn a_refusal_is_to_be_tried_again_but_not_of_an_end() {
    let refused = || Answer { refused: Some("the rules cannot be made".into()) };
    for command in ["ADD", "CHECK"] {
        let (_, descriptors, (said, succeeded)) = asked(command, refused()).await;
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!((descriptors, succeeded, said["code"].as_u64()), (1, false, Some(11)), "{command}");
        assert!(said["msg"].as_str().unwrap().contains("the rules cannot be made"), "{said}");
    }
    let (question, descriptors, said) = asked("DEL", refused()).await;
    assert_eq!((question.verb, descriptors, said), (Verb::Del, 0, (String::new(), true)));
}

#[tokio::test]
async fn an_agent_that_ends_without_an_answer_lets_nothing_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let listener = Listener::bind(&path).unwrap();
    let plugin = tokio::task::spawn_blocking(move || plugin::answer(&call("ADD", &path)));
    drop(listener.accept().await.unwrap());
    let (said, succeeded) = plugin.await.unwrap();
    assert!(!succeeded && said.contains("\"code\":11"), "{said}");
}
