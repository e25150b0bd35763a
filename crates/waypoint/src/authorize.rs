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
    fn judge(&self, mesh: &Mesh) -> Result<(Permit, Revoker), Denied> {
        if let Some((name, reason)) = mesh.refused.iter().next() {
            let text = format!("policy {name} was refused by this proxy and is not known: {reason}");
            return Err(Denied { text, policy: name.parse().ok(), rule: None, clause: None, missing: true });
        }
        let applies = |target: &Target| match target {
            Target::Service(key) => Some(key) == self.service.as_ref(),
            Target::Gateway(name) => *name == self.gateway,
        };
        // A proxy that verifies no tokens lets through nothing that tokens were to be verified for.
        if let Some(jwt) = mesh.jwts.values().find(|jwt| jwt.targets.iter().any(applies)) {
            let text =
                format!("RequestAuthentication {} applies, and this proxy verifies no tokens", jwt.name);
            return Err(Denied {
                text,
                policy: Some(jwt.name.clone()),
                rule: None,
                clause: None,
                missing: false,
            });
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
            http: Some(http),
        };
        judge(&set, &facts, mesh.snapshot.generation())
    }
}

/// Judges a request, and keeps it under watch.
pub(crate) fn authorize(context: &Context, facts: RequestFacts) -> Result<(Permit, Guard), Denied> {
    let label = format!("{} {}", facts.method, facts.paths.first().map_or("", String::as_str)).into();
    context.view.registry.open(label, || context.view.mesh(), move |mesh| facts.judge(mesh))
}
