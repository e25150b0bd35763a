// SPDX-License-Identifier: Apache-2.0
//! Names of objects: namespaced names, hostnames and workload uids.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// `<namespace>/<name>`: the name of a Kubernetes object, and of a policy on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespacedName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The object's name.
    pub name: Arc<str>,
}

/// A text that is not `<a>/<b>` with both parts non-empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not have the form <namespace>/<name>")]
pub struct InvalidName(pub String);

impl NamespacedName {
    /// Joins the two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for NamespacedName {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s.split_once('/') {
            Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains('/') => Ok(Self::new(a, b)),
            _ => Err(InvalidName(s.to_owned())),
        }
    }
}

/// `<namespace>/<hostname>`: the xDS name of a service (`istio.workload.Service`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespacedHostname {
    /// The namespace of the Service.
    pub namespace: Arc<str>,
    /// Its host name, e.g. `productpage.default.svc.cluster.local`.
    pub hostname: Arc<str>,
}

impl NamespacedHostname {
    /// Joins the two parts.
    pub fn new(namespace: impl Into<Arc<str>>, hostname: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), hostname: hostname.into() }
    }
}

impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

impl FromStr for NamespacedHostname {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s.split_once('/') {
            Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains('/') => Ok(Self::new(a, b)),
            _ => Err(InvalidName(s.to_owned())),
        }
    }
}

/// The uid of a workload on the wire, e.g. `Kubernetes//Pod/default/curl-0` (`istio.workload.Workload.uid`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadUid(pub Arc<str>);

impl WorkloadUid {
    /// The uid of a Pod: `<cluster>//Pod/<namespace>/<name>`.
    pub fn pod(cluster: &str, namespace: &str, name: &str) -> Self {
        Self(format!("{cluster}//Pod/{namespace}/{name}").into())
    }

    /// The uid as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
