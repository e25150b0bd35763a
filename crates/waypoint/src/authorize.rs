// SPDX-License-Identifier: Apache-2.0
//! Authorize: the policies of the Service and of the Gateway itself, judged with the client's identity; judged again with
//! every change as long as the request is open.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use meltemi_model::l7::Target;
use meltemi_model::{NamespacedHostname, NamespacedName, SpiffeId};
use meltemi_policy::{Facts, Headers, HttpFacts, Permit, Revoker};
use meltemi_view::judge::{Denied, judge};
use meltemi_view::registry::Guard;
use meltemi_view::view::Mesh;

use crate::context::Context;

/// A request's facts, owned.
#[derive(Clone, Debug)]
pub(crate) struct RequestFacts {
    pub(crate) source: Option<SpiffeId>,
    pub(crate) source_ip: IpAddr,
    pub(crate) to: SocketAddr,
    /// A request; otherwise a connection that no HTTP is read from, and the fields of HTTP are empty.
    pub(crate) http: bool,
    /// It carries a token where tokens are looked for.
    pub(crate) token: bool,
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) paths: Vec<String>,
    pub(crate) headers: HeaderMap,
    pub(crate) service: Option<NamespacedHostname>,
    pub(crate) gateway: NamespacedName,
}

struct Fields<'a>(&'a HeaderMap);

impl Headers for Fields<'_> {
    fn each(&self, name: &str, with: &mut dyn FnMut(&str)) {
        for value in self.0.get_all(name) {
            with(&String::from_utf8_lossy(value.as_bytes()));
        }
    }
}

impl RequestFacts {
    fn is_at(&self, target: &Target) -> bool {
        match target {
            Target::Service(key) => Some(key) == self.service.as_ref(),
            Target::Gateway(name) => *name == self.gateway,
        }
    }

    fn judge(&self, mesh: &Mesh) -> Result<(Permit, Revoker), Denied> {
        if let Some((name, reason)) = mesh.refused.iter().next() {
            let text = format!("policy {name} was refused by this proxy and is not known: {reason}");
            return Err(Denied { text, policy: name.parse().ok(), rule: None, clause: None, missing: true });
        }
        if let Some(denied) = unverified(mesh, self) {
            return Err(denied);
        }
        let set = mesh.http_sets.of(&mesh.http_policies, self.service.as_ref(), &self.gateway)?;
        let headers = Fields(&self.headers);
        let http = HttpFacts {
            method: &self.method,
            host: &self.host,
            paths: &self.paths,
            headers: &headers,
            remote_ip: Some(self.source_ip),
            claims: None,
        };
        let facts = Facts {
            source: self.source.as_ref(),
            source_ip: self.source_ip,
            destination_ip: self.to.ip().to_canonical(),
            destination_port: self.to.port(),
            sni: None,
            http: self.http.then_some(http),
        };
        judge(&set, &facts, mesh.snapshot.generation())
    }
}

/// Whether a request carries a token at the places where a RequestAuthentication looks for one: `Authorization: Bearer`
/// and the query parameter `access_token`.
pub(crate) fn carries_token(headers: &HeaderMap, query: &str) -> bool {
    const SCHEME: &[u8] = b"bearer";
    let bearer = |value: &http::HeaderValue| {
        let value = value.as_bytes().trim_ascii_start();
        value.get(..SCHEME.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME))
    };
    let named = |parameter: &str| {
        let name = parameter.split('=').next().unwrap_or_default();
        percent_encoding::percent_decode_str(name).eq(*b"access_token")
    };
    headers.get_all(http::header::AUTHORIZATION).iter().any(bearer) || query.split(['&', ';']).any(named)
}

/// This proxy verifies no tokens. Where a RequestAuthentication asks for it, a request with a token is refused, since a
/// backend would take the token for verified; one without is as it is in Istio: allowed by the RequestAuthentication, and
/// without claims for the policies that ask for them.
pub(crate) fn unverified(mesh: &Mesh, facts: &RequestFacts) -> Option<Denied> {
    let jwt =
        mesh.jwts.values().find(|jwt| jwt.targets.iter().any(|t| facts.is_at(t))).filter(|_| facts.token)?;
    let text = format!("RequestAuthentication {} applies, and this proxy verifies no tokens", jwt.name);
    Some(Denied { text, policy: Some(jwt.name.clone()), rule: None, clause: None, missing: false })
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
