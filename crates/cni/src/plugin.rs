// SPDX-License-Identifier: Apache-2.0
//! The plugin's side of the CNI specification, versions 0.3.0 to 1.1.0, as the last of a chain.
//!
//! ADD passes on what the plugins before it have made once the agent lets the Pod start. DEL always succeeds: a Pod that
//! cannot be told of must still end. STATUS does not ask for the agent: with a refusal the kubelet would start no Pod on
//! the node, and so not the agent's.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::ask::{self, Question, VERSION, Verb};
use crate::conflist::Entry;

/// Versions of the specification that the plugin speaks.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// How the runtime calls a plugin: variables of the environment, and the standard input.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// The standard input.
    pub input: Vec<u8>,
}

/// Why a call fails; the number is the specification's code.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("cniVersion {0} is not supported; supported are {list}", list = VERSIONS.join(", "))]
    Version(String),
    #[error("{0}")]
    Environment(String),
    #[error("the network configuration cannot be read: {0}")]
    Decode(serde_json::Error),
    #[error("{0}")]
    Configuration(&'static str),
    #[error("{0}")]
    Later(String),
}

impl Refusal {
    fn code(&self) -> u32 {
        match self {
            Self::Version(_) => 1,
            Self::Environment(_) => 4,
            Self::Decode(_) => 6,
            Self::Configuration(_) => 7,
            Self::Later(_) => 11,
        }
    }
}

/// The part of the configuration that every command reads.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    #[serde(default)]
    cni_version: String,
    #[serde(default)]
    prev_result: Option<Value>,
    #[serde(flatten)]
    entry: Option<Entry>,
}

/// A Pod as `CNI_ARGS` names it.
#[derive(Debug, PartialEq, Eq)]
struct Pod {
    namespace: String,
    name: String,
    uid: String,
}

/// Carries out a call. Returns what goes to the standard output, and whether it succeeded.
pub fn answer(call: &Call) -> (String, bool) {
    let version = serde_json::from_slice::<Configuration>(&call.input).map(|read| read.cni_version);
    match carry_out(call) {
        Ok(Some(result)) => (format!("{result}\n"), true),
        Ok(None) => (String::new(), true),
        Err(refusal) => {
            let version = version.ok().filter(|version| VERSIONS.contains(&version.as_str()));
            let said = json!({
                "cniVersion": version.unwrap_or_else(|| VERSIONS[VERSIONS.len() - 1].to_owned()),
                "code": refusal.code(),
                "msg": format!("meltemi: {refusal}"),
            });
            (format!("{said}\n"), false)
        }
    }
}

fn carry_out(call: &Call) -> Result<Option<Value>, Refusal> {
    if call.command == "VERSION" {
        return Ok(Some(json!({"cniVersion": VERSIONS[VERSIONS.len() - 1], "supportedVersions": VERSIONS})));
    }
    let read: Configuration = serde_json::from_slice(&call.input).map_err(Refusal::Decode)?;
    if !VERSIONS.contains(&read.cni_version.as_str()) {
        return Err(Refusal::Version(read.cni_version));
    }
    match call.command.as_str() {
        "ADD" => add(call, &read).map(Some),
        "CHECK" => {
            let entry = read.entry.as_ref().ok_or(Refusal::Configuration(INCOMPLETE))?;
            let pod = pod(&call.args)?;
            if !passes(entry, &pod) {
                question(call, entry, Verb::Check, pod, Vec::new())?;
            }
            Ok(None)
        }
        "DEL" => {
            if let (Some(entry), Ok(pod)) = (&read.entry, pod(&call.args)) {
                // The agent hears of the Pod's end by the API as well.
                let _ = question(call, entry, Verb::Del, pod, Vec::new());
            }
            Ok(None)
        }
        "GC" | "STATUS" => Ok(None),
        other => Err(Refusal::Environment(format!("CNI_COMMAND {other:?} is not known"))),
    }
}

const INCOMPLETE: &str =
    "the plugin's entry lacks socket, ownNamespace or ownPrefix; the agent of the node writes it anew";

fn add(call: &Call, read: &Configuration) -> Result<Value, Refusal> {
    let before = read.prev_result.as_ref();
    let before =
        before.ok_or(Refusal::Configuration("prevResult is missing: the plugin is the last of a chain"))?;
    let entry = read.entry.as_ref().ok_or(Refusal::Configuration(INCOMPLETE))?;
    let pod = pod(&call.args)?;
    if !passes(entry, &pod) {
        question(call, entry, Verb::Add, pod, addresses(before))?;
    }
    Ok(before.clone())
}

/// Whether a Pod starts without the agent.
fn passes(entry: &Entry, pod: &Pod) -> bool {
    let own = pod.namespace == entry.own_namespace && pod.name.starts_with(&entry.own_prefix);
    own || entry.excluded_namespaces.contains(&pod.namespace)
}

/// The Pod that `CNI_ARGS` names. Without one nothing is known of what starts, and it does not.
fn pod(args: &str) -> Result<Pod, Refusal> {
    let value = |key: &str| {
        let pair = args.split(';').filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key);
        pair.map(|(_, value)| value.to_owned())
    };
    let named = |key: &str| {
        let missing = || {
            Refusal::Environment(format!("CNI_ARGS does not name {key}: only Pods of Kubernetes start here"))
        };
        value(key).filter(|value| !value.is_empty()).ok_or_else(missing)
    };
    let uid = value("K8S_POD_UID").unwrap_or_default();
    Ok(Pod { namespace: named("K8S_POD_NAMESPACE")?, name: named("K8S_POD_NAME")?, uid })
}

fn addresses(result: &Value) -> Vec<IpAddr> {
    let all = result.get("ips").and_then(Value::as_array).into_iter().flatten();
    let texts = all.filter_map(|ip| ip.get("address")?.as_str());
    texts.filter_map(|text| text.parse::<ipnet::IpNet>().ok()).map(|net| net.addr()).collect()
}

fn question(call: &Call, entry: &Entry, verb: Verb, pod: Pod, addresses: Vec<IpAddr>) -> Result<(), Refusal> {
    let Pod { namespace, name, uid } = pod;
    let sandbox = call.container.clone();
    let question = Question { version: VERSION, verb, namespace, name, uid, sandbox, addresses };
    let netns = match verb {
        Verb::Del | Verb::Succeed => None,
        Verb::Add | Verb::Check => Some(
            File::open(&call.netns)
                .map_err(|error| Refusal::Environment(format!("CNI_NETNS {:?}: {error}", call.netns)))?,
        ),
    };
    let answered = ask::ask(Path::new(&entry.socket), &question, netns.as_ref().map(|file| file.as_fd()));
    match answered {
        Ok(answer) => answer.refused.map_or(Ok(()), |reason| Err(Refusal::Later(reason))),
        Err(error) => Err(Refusal::Later(format!(
            "the agent of this node does not answer at {}: {error}; the Pod starts when it does (ds/ztunnel in {})",
            entry.socket, entry.own_namespace
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=bank;K8S_POD_NAME=web-0;K8S_POD_UID=u-1";

    fn call(command: &str, args: &str, version: &str) -> Call {
        let input = json!({
            "cniVersion": version, "name": "bridge", "type": "meltemi-cni",
            "socket": "/nonexistent/agent.sock", "excludedNamespaces": ["kube-system"],
            "ownNamespace": "istio-system", "ownPrefix": "ztunnel-",
            "prevResult": {"cniVersion": version, "ips": [{"address": "10.244.0.7/24"}], "dns": {}},
        });
        Call {
            command: command.into(),
            container: "c".into(),
            netns: "/proc/self/ns/net".into(),
            args: args.into(),
            input: input.to_string().into_bytes(),
        }
    }

    fn code(call: &Call) -> Value {
        let (said, succeeded) = answer(call);
        assert!(!succeeded, "{said}");
        let said: Value = serde_json::from_str(&said).unwrap();
        assert!(VERSIONS.contains(&said["cniVersion"].as_str().unwrap()), "{said}");
        said["code"].clone()
    }

    #[test]
    fn without_an_agent_nothing_starts_but_what_needs_none() {
        for version in VERSIONS {
            assert_eq!(code(&call("ADD", ARGS, version)), 11);
        }
        assert_eq!(code(&call("CHECK", ARGS, "1.0.0")), 11);
        for args in [
            "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=coredns-1",
            "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=ztunnel-abcde",
        ] {
            let (said, succeeded) = answer(&call("ADD", args, "0.4.0"));
            assert!(succeeded, "{said}");
            let said: Value = serde_json::from_str(&said).unwrap();
            assert_eq!(said["ips"][0]["address"], "10.244.0.7/24");
            assert_eq!(said["cniVersion"], "0.4.0");
        }
        for args in [
            "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=web",
            "K8S_POD_NAMESPACE=bank;K8S_POD_NAME=ztunnel-1",
        ] {
            assert_eq!(code(&call("ADD", args, "1.0.0")), 11, "{args}");
        }
    }

    #[test]
    fn an_end_always_succeeds() {
        for args in [ARGS, ""] {
            assert_eq!(answer(&call("DEL", args, "1.0.0")), (String::new(), true));
        }
        for command in ["GC", "STATUS"] {
            assert_eq!(answer(&call(command, "", "1.1.0")), (String::new(), true));
        }
        let gone = Call { netns: String::new(), ..call("DEL", ARGS, "0.3.1") };
        assert!(answer(&gone).1);
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_its_code() {
        assert_eq!(code(&call("ADD", "", "1.0.0")), 4);
        assert_eq!(code(&call("ADD", "K8S_POD_NAMESPACE=;K8S_POD_NAME=x", "1.0.0")), 4);
        assert_eq!(code(&call("ADD", ARGS, "0.2.0")), 1);
        assert_eq!(code(&call("NOP", ARGS, "1.0.0")), 4);
        assert_eq!(code(&Call { input: b"{".to_vec(), ..call("ADD", ARGS, "1.0.0") }), 6);
        let bare = Call { input: br#"{"cniVersion":"1.0.0"}"#.to_vec(), ..call("ADD", ARGS, "1.0.0") };
        assert_eq!(code(&bare), 7);
        assert_eq!(code(&Call { netns: "/nonexistent".into(), ..call("ADD", ARGS, "1.0.0") }), 4);
    }

    #[test]
    fn versions_are_told_without_an_environment() {
        let (said, succeeded) = answer(&Call { command: "VERSION".into(), ..Call::default() });
        let said: Value = serde_json::from_str(&said).unwrap();
        assert!(succeeded);
        assert_eq!(said["supportedVersions"], json!(VERSIONS));
    }
}
