// SPDX-License-Identifier: Apache-2.0
//! What is asked, and what is answered.

use std::net::IpAddr;

use meltemi_model::NamespacedName;
use meltemi_translate::facts::Labels;
use serde::Serialize;

use super::token::Token;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Client {
    /// A ServiceAccount: namespace and name.
    Account(String, String),
    /// A principal, `<trust domain>/ns/<namespace>/sa/<service account>`.
    Principal(String),
    /// Somebody without an identity.
    Plaintext,
}

/// An enforcement point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The Service's waypoint.
    Waypoint,
    /// The node proxy of its Pods, as for a connection that does not come through the waypoint.
    NodeProxy,
}

/// What is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// A Service.
    Service(NamespacedName),
    /// A Pod of a namespace, by its labels; no Service.
    Pod(String, Labels),
    /// A Gateway: what it enforces for everything that passes it.
    Gateway(NamespacedName),
}

impl std::fmt::Display for To {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::Gateway(name) => write!(f, "Gateway {name}"),
            Self::Pod(namespace, labels) => {
                let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                write!(f, "Pod {namespace}/{}", labels.join(","))
            }
        }
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// The client.
    pub from: Client,
    /// Its address, where it is known.
    pub from_ip: Option<IpAddr>,
    /// The address of the original client, where trusted proxies say another one.
    pub remote_ip: Option<IpAddr>,
    /// What is reached.
    pub to: To,
    /// The address that is addressed: the Service's at its waypoint, the Pod's at a node proxy.
    pub to_ip: Option<IpAddr>,
    /// The only enforcement point that is asked; every one on the way when none.
    pub at: Option<At>,
    /// Port of the Service (of the Pod, where no Service is reached); any that there is when none.
    pub port: Option<u16>,
    /// HTTP method.
    pub method: Option<String>,
    /// HTTP path.
    pub path: Option<String>,
    /// HTTP host.
    pub host: Option<String>,
    /// HTTP headers; those that are not here are absent.
    pub headers: Vec<(String, String)>,
    /// Server name of TLS.
    pub sni: Option<String>,
    /// The verified token.
    pub token: Option<Token>,
}

impl Request {
    /// A request of a client of which nothing more is known.
    pub fn new(from: Client, to: To) -> Self {
        Self {
            from,
            from_ip: None,
            remote_ip: None,
            to,
            to_ip: None,
            at: None,
            port: None,
            method: None,
            path: None,
            host: None,
            headers: Vec::new(),
            sni: None,
            token: None,
        }
    }
}

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// It may.
    Allow,
    /// It may not.
    Deny,
    /// It depends on what was not told.
    Unknown,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Unknown => "UNKNOWN",
        })
    }
}

/// What one proxy says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Half {
    /// `node proxy` or `waypoint <ns>/<name>`.
    pub enforced_at: String,
    /// Its verdict.
    pub verdict: Verdict,
    /// Whom it sees as the client.
    pub sees: String,
    /// The policy that decided there, or came closest; none when no policy did.
    pub policy: Option<String>,
    /// Index of its rule.
    pub rule: Option<u32>,
    /// What of the rule decided.
    pub clause: Option<String>,
    /// The port that is judged there: the Service's at a waypoint, the Pod's at a node proxy; none when it may be any.
    pub port: Option<u16>,
    /// A sentence.
    pub reason: String,
}

/// The verdict with its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The verdict.
    pub verdict: Verdict,
    /// The policy that decided, or came closest; of an ALLOW that of the first proxy on the way which has a
    /// rule for it. None when no
    /// policy decided.
    pub policy: Option<String>,
    /// Index of its rule.
    pub rule: Option<u32>,
    /// What of the rule decided.
    pub clause: Option<String>,
    /// `node proxy` or `waypoint <ns>/<name>`.
    pub enforced_at: Option<String>,
    /// A sentence.
    pub reason: String,
    /// Every proxy on the way up to the one that decided.
    pub halves: Vec<Half>,
    /// What the objects lack and was assumed.
    pub assumed: Vec<String>,
    /// Objects among what was assumed: nothing says that they exist.
    pub presumed: Vec<String>,
    /// Names that nothing has; the verdict is UNKNOWN then.
    pub missing: Vec<String>,
    /// What is probably not meant.
    pub warnings: Vec<String>,
}
