// SPDX-License-Identifier: Apache-2.0
//! A request's facts, owned, so that it can be judged again.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use meltemi_model::l7::Target;
use meltemi_model::{NamespacedName, SpiffeId};
use meltemi_policy::{Facts, Headers, HttpFacts};
use tokio::sync::OwnedSemaphorePermit;

/// A request's facts, owned.
#[derive(Clone, Debug)]
pub(crate) struct RequestFacts {
    pub(crate) source: Option<SpiffeId>,
    pub(crate) source_ip: IpAddr,
    pub(crate) to: SocketAddr,
    /// A request; otherwise a connection that no HTTP is read from, and the fields of HTTP are empty.
    pub(crate) http: bool,
    /// The query, without `?`.
    pub(crate) query: String,
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) paths: Vec<String>,
    pub(crate) headers: HeaderMap,
    /// Of the headers, those that [`aliases`] gives.
    pub(crate) aliases: Vec<HeaderName>,
    /// The Service that it is addressed to ([`Target::Service`]) or whose Pod it is forwarded to ([`Target::Backend`]);
    /// `None` at a listener.
    pub(crate) target: Option<Target>,
    pub(crate) gateway: NamespacedName,
    /// Among the heads of open requests, as long as this one is open.
    #[expect(dead_code, reason = "it is held, not read")]
    pub(crate) room: Option<Arc<OwnedSemaphorePermit>>,
}

struct Fields<'a>(&'a RequestFacts);

impl Headers for Fields<'_> {
    fn each(&self, name: &str, with: &mut dyn FnMut(&str)) {
        let headers = &self.0.headers;
        for value in headers.get_all(name) {
            with(&String::from_utf8_lossy(value.as_bytes()));
        }
        // Servers that put headers into variables take `x_a` for `x-a`, others do not: both are read.
        let mut absent = !headers.contains_key(name);
        for alias in self.0.aliases.iter().filter(|alias| is_alias(alias.as_str(), name)) {
            if std::mem::take(&mut absent) {
                with("");
            }
            for value in headers.get_all(alias) {
                with(&String::from_utf8_lossy(value.as_bytes()));
            }
        }
    }
}

/// Headers whose names some servers take for another one's.
pub(crate) fn aliases(headers: &HeaderMap) -> Vec<HeaderName> {
    headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect()
}

fn is_alias(alias: &str, name: &str) -> bool {
    let fold = |b: u8| if b == b'_' { b'-' } else { b };
    alias != name && alias.bytes().map(fold).eq(name.bytes().map(fold))
}

impl RequestFacts {
    /// Lends the facts as the engine takes them.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&Facts<'_>) -> T) -> T {
        let headers = Fields(self);
        let http = HttpFacts {
            method: &self.method,
            host: &self.host,
            paths: &self.paths,
            headers: &headers,
            remote_ip: Some(self.source_ip),
            claims: None,
        };
        look(&Facts {
            source: self.source.as_ref(),
            source_ip: self.source_ip,
            destination_ip: self.to.ip().to_canonical(),
            destination_port: self.to.port(),
            sni: None,
            http: self.http.then_some(http),
        })
    }
}
