// SPDX-License-Identifier: Apache-2.0
//! Authorize: the policies of the Service and of the Gateway itself, judged with the client's identity; judged again with
//! every change as long as the request is open.

use meltemi_policy::{Permit, Revoker};
use meltemi_view::Denied;
use meltemi_view::Mesh;
use meltemi_view::judge::judge;
use meltemi_view::registry::Guard;

use crate::context::Context;
use crate::facts::RequestFacts;
use crate::reports;
use crate::tokens::unverified;

impl RequestFacts {
    fn judge(&self, mesh: &Mesh) -> Result<(Permit, Revoker), Denied> {
        mesh.heard()?;
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
        if !mesh.http_reports {
            return None;
        }
        let set = mesh.http_sets.of(&mesh.http_policies, self.service.as_ref(), &self.gateway).ok()?;
        if set.reports_nothing() {
            return None;
        }
        self.with(|facts| reports::text(&set, facts))
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
