// SPDX-License-Identifier: Apache-2.0
//! A concrete request, and what the engine says to it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use meltemi_model::SpiffeId;
use meltemi_model::authz::Attribute;
use meltemi_policy::http::{Normalization, normalize, readings};
use meltemi_policy::{Claims, Decision, Facts, Headers, HttpFacts, PolicySet, decide};
use serde::Serialize;

use crate::error::QueryError;
use crate::proof::{Dimension, Layer, Space, Value};

/// A request that shows a difference. What is not there does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Witness {
    /// The client's principal, or `plaintext`.
    pub from: String,
    /// Address of the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_ip: Option<IpAddr>,
    /// Address that is addressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_ip: Option<IpAddr>,
    /// Port: the workload's at a node proxy, the Service's at a waypoint.
    pub port: u16,
    /// HTTP method; none at a node proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// HTTP path; none at a node proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// HTTP host, where it matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// HTTP headers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Address of the original client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_ip: Option<IpAddr>,
    /// `<issuer>/<subject>` of the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_principal: Option<String>,
    /// Claims of the token, by name; a claim inside of another one is `[outer][inner]`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, Vec<String>>,
    /// Server name of TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// Labels of the workload that is reached.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Word for a client without an identity.
pub const PLAINTEXT: &str = "plaintext";

/// The name of a claim: as it is, or `[outer][inner]`.
pub fn claim_name(path: &[Arc<str>]) -> String {
    match path {
        [name] if !name.starts_with('[') => name.to_string(),
        parts => parts.iter().map(|part| format!("[{part}]")).collect(),
    }
}

/// The path that [`claim_name`] names.
pub fn claim_path(name: &str) -> Vec<Arc<str>> {
    match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(parts) => parts.split("][").map(Arc::from).collect(),
        None => vec![name.into()],
    }
}

impl Headers for Witness {
    fn each(&self, name: &str, with: &mut dyn FnMut(&str)) {
        if let Some(value) = self.headers.get(name) {
            with(value);
        }
    }
}

impl Claims for Witness {
    fn each(&self, path: &[Arc<str>], with: &mut dyn FnMut(&str)) {
        for value in self.claims.get(&claim_name(path)).into_iter().flatten() {
            with(value);
        }
    }

    fn principal(&self) -> Option<&str> {
        self.request_principal.as_deref()
    }
}

impl Witness {
    /// The request of the classes found.
    pub(crate) fn of(space: &Space, classes: &[usize], layer: Layer, port: u16, host: &str) -> Self {
        let mut out = Self { from: "cluster.local/ns/other/sa/anyone".to_owned(), port, ..Self::default() };
        if layer == Layer::Request {
            out.method = Some("GET".to_owned());
            out.path = Some("/".to_owned());
            out.host = Some(host.to_owned());
        }
        for (dim, class) in space.dims.iter().zip(classes) {
            out.set(&dim.key, &dim.values[*class]);
        }
        out
    }

    fn set(&mut self, key: &Dimension, value: &Value) {
        match (key, value) {
            (Dimension::Identity, Value::Text(text)) => self.from.clone_from(text),
            (Dimension::Identity, Value::Absent) => PLAINTEXT.clone_into(&mut self.from),
            (Dimension::Claim(path), Value::Text(text)) => {
                self.claims.entry(claim_name(path)).or_default().push(text.clone());
            }
            (Dimension::Label(label), Value::Text(text)) => {
                self.labels.insert(label.to_string(), text.clone());
            }
            (Dimension::Attribute(attribute), Value::Text(text)) => match attribute {
                Attribute::Method => self.method = Some(text.clone()),
                Attribute::Path => self.path = Some(text.clone()),
                Attribute::Host => self.host = Some(text.clone()),
                Attribute::RequestPrincipal => self.request_principal = Some(text.clone()),
                Attribute::ConnectionSni => self.sni = Some(text.clone()),
                Attribute::Header(name) => {
                    self.headers.insert(name.to_string(), text.clone());
                }
                _ => {}
            },
            (Dimension::Attribute(Attribute::DestinationPort), Value::Port(port)) => self.port = *port,
            (Dimension::Attribute(Attribute::SourceIp), Value::Address(ip)) => self.source_ip = Some(*ip),
            (Dimension::Attribute(Attribute::RemoteIp), Value::Address(ip)) => self.remote_ip = Some(*ip),
            (Dimension::Attribute(Attribute::DestinationIp), Value::Address(ip)) => {
                self.destination_ip = Some(*ip);
            }
            _ => {}
        }
    }

    /// The command that explains it; none when it cannot say all of it. `place` names the enforcement point and what is
    /// reached there.
    pub(crate) fn command(&self, place: &str) -> Option<String> {
        let mut words =
            vec![format!("meltemi authz explain {place} --from {} --port {}", self.from, self.port)];
        let mut say = |option: &str, value: &str| words.push(format!("--{option} {}", quoted(value)));
        for (option, text) in [
            ("method", &self.method),
            ("path", &self.path),
            ("host", &self.host),
            ("sni", &self.sni),
            ("request-principal", &self.request_principal),
        ] {
            text.iter().for_each(|text| say(option, text));
        }
        for (option, ip) in
            [("from-ip", self.source_ip), ("to-ip", self.destination_ip), ("remote-ip", self.remote_ip)]
        {
            ip.iter().for_each(|ip| say(option, &ip.to_string()));
        }
        self.headers.iter().for_each(|(name, value)| say("header", &format!("{name}={value}")));
        for (name, text) in self.claims.iter().flat_map(|(name, all)| all.iter().map(move |t| (name, t))) {
            // `iss` and `sub` say the same as the principal, which a witness need not know.
            match name.as_str() {
                "iss" | "sub" => return None,
                "aud" => say("audience", text),
                "azp" => say("presenter", text),
                name => say("claim", &format!("{name}={text}")),
            }
        }
        Some(words.join(" "))
    }

    /// What the engine decides.
    ///
    /// # Errors
    /// It is not a request that the proxies would judge.
    pub fn decide(&self, set: &PolicySet) -> Result<Decision, QueryError> {
        let source = match self.from.as_str() {
            PLAINTEXT => None,
            text => Some(SpiffeId::parse(&format!("spiffe://{text}"))?),
        };
        let nowhere = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
        let paths = match &self.path {
            Some(path) => {
                let normal = normalize(path, Normalization::Base)?;
                readings(&normal)
            }
            None => Vec::new(),
        };
        let token = self.request_principal.is_some() || !self.claims.is_empty();
        let http = self.method.as_ref().map(|method| HttpFacts {
            method,
            host: self.host.as_deref().unwrap_or_default(),
            paths: &paths,
            headers: self,
            remote_ip: Some(self.remote_ip.or(self.source_ip).unwrap_or(nowhere)),
            claims: token.then_some(self as &dyn Claims),
        });
        let facts = Facts {
            source: source.as_ref(),
            source_ip: self.source_ip.unwrap_or(nowhere),
            destination_ip: self.destination_ip.unwrap_or(nowhere),
            destination_port: self.port,
            sni: self.sni.as_deref(),
            http,
        };
        Ok(decide(set, &facts))
    }
}

/// As a shell reads it.
pub(crate) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

impl std::fmt::Display for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "from {}", self.from)?;
        if let Some(ip) = self.source_ip {
            write!(f, " ({ip})")?;
        }
        write!(f, " to port {}", self.port)?;
        let mut pair = |name: &str, value: &dyn std::fmt::Display| write!(f, " {name} {value}");
        if let (Some(method), Some(path)) = (&self.method, &self.path) {
            pair(method, path)?;
        }
        if let Some(host) = &self.host {
            pair("host", host)?;
        }
        if let Some(ip) = self.destination_ip {
            pair("destination", &ip)?;
        }
        if let Some(ip) = self.remote_ip {
            pair("remote", &ip)?;
        }
        for (name, value) in &self.headers {
            pair("header", &format!("{name}={value}"))?;
        }
        if let Some(principal) = &self.request_principal {
            pair("token", principal)?;
        }
        for (name, values) in &self.claims {
            pair("claim", &format!("{name}={}", values.join(",")))?;
        }
        if let Some(sni) = &self.sni {
            pair("sni", sni)?;
        }
        for (name, value) in &self.labels {
            pair("workload label", &format!("{name}={value}"))?;
        }
        Ok(())
    }
}
