// SPDX-License-Identifier: Apache-2.0
//! Authorize: the policies of the Service and of the Gateway itself, judged with the client's identity; judged again with
//! every change as long as the request is open.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use meltemi_model::{NamespacedHostname, NamespacedName, SpiffeId};
use meltemi_policy::{Facts, Headers, HttpFacts, Permit, Revoker};
use meltemi_view::judge::{Denied, judge};
use meltemi_view::registry::Guard;
use meltemi_view::view::Mesh;
use tokio::sync::OwnedSemaphorePermit;

use crate::context::Context;
use crate::reports;
use crate::tokens::unverified;

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
    pub(crate) service: Option<NamespacedHostname>,
    pub(crate) gateway: NamespacedName,
    /// Among the heads of open requests, as long as this one is open.
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
    fn judge(&self, mesh: &Mesh) -> Result<(Permit, Revoker), Denied> {
        if let Some((name, reason)) = mesh.refused.iter().next() {
            let text = format!("policy {name} was refused by this proxy and is not known: {reason}");
            return Err(Denied { text, policy: name.parse().ok(), rule: None, clause: None, missing: true });
        }
        if let Some(denied) = unverified(mesh, self) {
            return Err(denied);
        }
        let set = mesh.http_sets.of(&mesh.http_policies, self.service.as_ref(), &self.gateway)?;
        self.with(|facts| judge(&set, facts, mesh.snapshot.generation()))
    }

    /// What AUDIT policies and dry runs say of a request that is allowed; none when there are none.
    pub(crate) fn reported(&self, mesh: &Mesh) -> Option<String> {
        let set = mesh.http_sets.of(&mesh.http_policies, self.service.as_ref(), &self.gateway).ok()?;
        if set.reports_nothing() {
            return None;
        }
        self.with(|facts| reports::text(&set, facts))
    }

    fn with<T>(&self, look: impl FnOnce(&Facts<'_>) -> T) -> T {
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

/// Bytes of a path that the list of open requests keeps.
const MAX_LABEL: usize = 256;

/// Judges a request, and keeps it under watch.
pub(crate) fn authorize(context: &Context, facts: RequestFacts) -> Result<(Permit, Guard), Denied> {
    let path = facts.paths.first().map_or("", String::as_str);
    let label =
        format!("{} {}", facts.method, path.get(..path.floor_char_boundary(MAX_LABEL)).unwrap_or_default())
            .into();
    context.view.registry.open(label, || context.view.mesh(), move |mesh| facts.judge(mesh))
}
