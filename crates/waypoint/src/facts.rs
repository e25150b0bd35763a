// SPDX-License-Identifier: Apache-2.0
//! A request's facts, owned, so that it can be judged again.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use meltemi_model::l7::Target;
use meltemi_model::{NamespacedName, SpiffeId, WorkloadUid};
use meltemi_policy::http::is_of_framing;
use meltemi_policy::{Claims, Facts, Headers, HttpFacts};
use meltemi_tokens::Accepted;
use tokio::sync::OwnedSemaphorePermit;

use crate::headers::{Changes, is_same, size};

/// A request's facts, owned.
#[derive(Clone, Debug)]
pub(crate) struct RequestFacts {
    pub(crate) source: Option<SpiffeId>,
    pub(crate) source_ip: IpAddr,
    pub(crate) to: SocketAddr,
    /// The host that the client has named in its TLS handshake with this proxy.
    pub(crate) sni: Option<Arc<str>>,
    /// A request; otherwise a connection that no HTTP is read from, and the fields of HTTP are empty.
    pub(crate) http: bool,
    /// Whether its port declares no protocol, so that the client has chosen by its first bytes what it is judged as.
    pub(crate) detected: bool,
    /// The query as it was sent, without `?`.
    pub(crate) query: String,
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) paths: Vec<String>,
    /// As they are forwarded, with those of the hop that this proxy acts on.
    pub(crate) headers: HeaderMap,
    /// How the client sent them.
    pub(crate) changes: Changes,
    /// Of all headers, those that [`aliases`] gives.
    pub(crate) aliases: Vec<HeaderName>,
    /// The Service that it is addressed to ([`Target::Service`]) or whose Pod it is forwarded to ([`Target::Backend`]);
    /// `None` at a listener, and for what is addressed to a Pod.
    pub(crate) target: Option<Target>,
    /// The Pod that it is addressed to, at a waypoint for traffic to Pods.
    pub(crate) workload: Option<WorkloadUid>,
    pub(crate) gateway: NamespacedName,
    /// Among the heads of open requests, as long as this one is open.
    #[expect(dead_code, reason = "it is held, not read")]
    pub(crate) room: Option<Arc<OwnedSemaphorePermit>>,
}

struct Fields<'a>(&'a RequestFacts);

impl Fields<'_> {
    /// Values that were sent or are forwarded.
    fn values(&self, name: &str) -> impl Iterator<Item = &HeaderValue> {
        self.0.headers.get_all(name).iter().chain(self.0.changes.withheld.get_all(name))
    }

    /// Headers that some servers take for this one, others do not: servers that put headers into variables take `x_a` for
    /// `x-a`.
    fn aliases<'n>(&'n self, name: &'n str) -> impl Iterator<Item = &'n HeaderName> {
        let aliases = self.0.aliases.iter();
        aliases.filter(move |alias| alias.as_str() != name && is_same(alias.as_str(), name))
    }
}

impl Headers for Fields<'_> {
    fn each(&self, name: &str, with: &mut dyn FnMut(&str)) {
        let aliases = self.aliases(name).flat_map(|alias| self.values(alias.as_str()));
        for value in self.values(name).chain(aliases) {
            with(&String::from_utf8_lossy(value.as_bytes()));
        }
    }

    fn may_lack(&self, name: &str) -> bool {
        let RequestFacts { headers, changes, .. } = self.0;
        !headers.contains_key(name)
            || is_of_framing(name)
            || changes.added.iter().any(|added| added.as_str() == name)
    }
}

/// Headers whose names some servers take for another one's.
pub(crate) fn aliases(headers: &HeaderMap, changes: &Changes) -> Vec<HeaderName> {
    let names = headers.keys().chain(changes.withheld.keys());
    names.filter(|name| name.as_str().contains('_')).cloned().collect()
}

impl RequestFacts {
    /// Bytes that the head takes as long as the request is open: an estimate.
    pub(crate) fn size(&self, target: &Uri) -> usize {
        let target = target.path_and_query().map_or(0, |target| target.as_str().len());
        size(&self.headers) + size(&self.changes.withheld) + target
    }

    /// Lends the facts as the engine takes them, with the claims of a token that was verified.
    pub(crate) fn with<T>(&self, token: Option<&Accepted>, look: impl FnOnce(&Facts<'_>) -> T) -> T {
        let headers = Fields(self);
        let http = HttpFacts {
            method: &self.method,
            host: &self.host,
            paths: &self.paths,
            headers: &headers,
            remote_ip: Some(self.source_ip),
            claims: token.map(|token| token as &dyn Claims),
        };
        look(&Facts {
            source: self.source.as_ref(),
            source_ip: self.source_ip,
            destination_ip: self.to.ip().to_canonical(),
            destination_port: self.to.port(),
            sni: self.sni.as_deref(),
            http: self.http.then_some(http),
        })
    }
}
