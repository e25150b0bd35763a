// SPDX-License-Identifier: Apache-2.0
//! Authorize: the policies of the Service and of the Gateway itself, judged with the client's identity; those of closed
//! Services for the Pod that was chosen; judged again with every change as long as the request is open.
//!
//! A proxy that does not serve a Service holds none of its policies, so it lets nothing through to it: a connection that
//! was opened before the Service moved to another waypoint is not a way around.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use meltemi_model::l7::Target;
use meltemi_model::{NamespacedHostname, NamespacedName, Service, Workload, WorkloadUid};
use meltemi_policy::{Permit, Revoker};
use meltemi_view::judge::judge_after;
use meltemi_view::registry::Guard;
use meltemi_view::{Denial, Mesh};

use crate::context::{Context, serves, serves_workload};
use crate::facts::RequestFacts;
use crate::reports;
use crate::tokens;

/// An open request or connection, as it is judged again with every change.
#[derive(Debug)]
pub(crate) struct Subject {
    /// As it is addressed.
    facts: RequestFacts,
    /// External authorizers that have allowed it.
    allowed: BTreeSet<Arc<str>>,
    /// As it is forwarded, once an endpoint was chosen; another one when nothing was sent to the first.
    forwarded: Mutex<Option<Arc<Forwarded>>>,
}

/// What is forwarded, and the Pod that gets it.
#[derive(Debug)]
pub(crate) struct Forwarded {
    /// The Pod.
    pub(crate) workload: Arc<Workload>,
    /// Its port.
    pub(crate) port: u16,
    /// The request as it is forwarded; `None` when no Service was closed at that time.
    pub(crate) facts: Option<RequestFacts>,
}

/// Verdict on an open request: may be revoked.
pub(crate) type Verdict = Result<(Permit, Revoker), Denial>;

impl Subject {
    /// One that no external authorizer has been asked about.
    pub(crate) fn new(facts: RequestFacts) -> Arc<Self> {
        Self::allowed_by(facts, BTreeSet::new())
    }

    /// One that these external authorizers have allowed.
    pub(crate) fn allowed_by(facts: RequestFacts, allowed: BTreeSet<Arc<str>>) -> Arc<Self> {
        Arc::new(Self { facts, allowed, forwarded: Mutex::default() })
    }

    /// The same request once more, for a copy that is forwarded to another endpoint.
    pub(crate) fn same(&self) -> Arc<Self> {
        Self::allowed_by(self.facts.clone(), self.allowed.clone())
    }

    /// Why this proxy may not carry what is addressed to the Service; `None` when it may.
    pub(crate) fn unserved(&self, mesh: &Mesh) -> Option<Denial> {
        match (&self.facts.target, &self.facts.workload) {
            (Some(Target::Service(key)), _) => unserved(mesh, key, &self.facts.gateway),
            (None, Some(uid)) => unserved_workload(mesh, uid, &self.facts),
            _ => None,
        }
    }

    fn judge(&self, mesh: &Mesh) -> Verdict {
        mesh.heard()?;
        if let Some(denied) = self.unserved(mesh) {
            return Err(denied);
        }
        let permitted = self.facts.judge(mesh, &self.allowed)?;
        let forwarded = self.forwarded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(forwarded) = forwarded {
            forwarded.judge(mesh, self.facts.target.as_ref())?;
        }
        Ok(permitted)
    }

    /// Judges what is forwarded as well, now and with every change. What was to be forwarded before is forgotten.
    ///
    /// # Errors
    /// A policy of a closed Service that the Pod belongs to denies it.
    pub(crate) fn forward(&self, context: &Context, forwarded: Forwarded) -> Result<(), Denial> {
        // Set before the state is read: a change in between judges the entry of the registry with it.
        let forwarded = Arc::new(forwarded);
        *self.forwarded.lock().unwrap_or_else(PoisonError::into_inner) = Some(forwarded.clone());
        forwarded.judge(&context.view.mesh(), self.facts.target.as_ref())
    }

    /// What AUDIT policies and dry runs say of a request that is allowed; none when there are none.
    pub(crate) fn reported(&self, mesh: &Mesh) -> Option<String> {
        let facts = &self.facts;
        if !mesh.has_reports() {
            return None;
        }
        let set = mesh.http_sets.of(&mesh.http_policies, facts.target.as_ref(), &facts.gateway);
        if set.reports_nothing() {
            return None;
        }
        let token = tokens::judge(mesh, facts).ok().flatten();
        facts.with(token.as_ref(), |facts| reports::text(&set, facts))
    }
}

impl RequestFacts {
    fn judge(&self, mesh: &Mesh, allowed: &BTreeSet<Arc<str>>) -> Verdict {
        if let Some((name, reason)) = mesh.refused.iter().next() {
            return Err(Denial::ResourceRejected { resource: name.clone(), reason: reason.clone() });
        }
        let token = tokens::judge(mesh, self)?;
        let set = mesh.http_sets.of(&mesh.http_policies, self.target.as_ref(), &self.gateway);
        self.with(token.as_ref(), |facts| judge_after(&set, facts, allowed, mesh.snapshot.generation()))
    }
}

impl Forwarded {
    /// Judges by the policies of every closed Service that the Pod belongs to now, but for the one that was addressed.
    fn judge(&self, mesh: &Mesh, addressed: Option<&Target>) -> Result<(), Denial> {
        if !mesh.has_closed() {
            return Ok(());
        }
        // A Pod that is gone still ends what it has begun: it is judged as what it was.
        let workload = mesh.snapshot.workload(&self.workload.uid).unwrap_or(&self.workload);
        for (key, ports) in &workload.services {
            let is_addressed = matches!(addressed, Some(Target::Service(service)) if service == key);
            if is_addressed || !mesh.is_closed(key) {
                continue;
            }
            let Some(facts) = &self.facts else {
                return Err(Denial::ClosedMeanwhile { service: key.clone() });
            };
            // Node proxies close the ports of the Service only.
            for port in ports.iter().filter(|port| port.target_port == self.port) {
                let service = mesh.snapshot.service(key);
                let ip =
                    service.and_then(|s| s.addresses.first()).map_or(facts.to.ip(), |address| address.ip);
                let mut facts = facts.clone();
                facts.to = (ip, port.service_port).into();
                facts.target = Some(Target::Backend(key.clone()));
                // An authorizer was asked about what is addressed, which is another request than this one.
                let (_permit, _) = facts.judge(mesh, &BTreeSet::new())?;
            }
        }
        Ok(())
    }
}

/// Why a Gateway may not carry what is addressed to a Service.
fn unserved(mesh: &Mesh, key: &NamespacedHostname, gateway: &NamespacedName) -> Option<Denial> {
    let service: Option<&Arc<Service>> = mesh.snapshot.service(key);
    if service.is_some_and(|service| serves(gateway, service)) {
        return None;
    }
    let (gateway, exists) = (gateway.clone(), service.is_some());
    Some(Denial::ServiceNotServed { gateway, service: key.clone(), exists })
}

/// Why a Gateway may not carry what is addressed to a Pod. One of the same name that has come in its place has another
/// address.
fn unserved_workload(mesh: &Mesh, uid: &WorkloadUid, facts: &RequestFacts) -> Option<Denial> {
    let (to, gateway) = (facts.to, &facts.gateway);
    let workload = mesh.snapshot.workload(uid).filter(|w| w.addresses.contains(&to.ip().to_canonical()));
    match workload {
        Some(workload) if serves_workload(gateway, workload) => None,
        Some(_) => Some(Denial::WorkloadNotServed { gateway: gateway.clone(), workload: uid.clone() }),
        None => Some(Denial::WorkloadGone { workload: uid.clone(), address: to }),
    }
}

/// Bytes of a path that the list of open requests keeps.
const MAX_LABEL: usize = 256;

/// Judges a request, and keeps it under watch.
pub(crate) fn authorize(context: &Context, subject: &Arc<Subject>) -> Result<(Permit, Guard), Denial> {
    let facts = &subject.facts;
    let path = facts.paths.first().map_or("", String::as_str);
    let label =
        format!("{} {}", facts.method, path.get(..path.floor_char_boundary(MAX_LABEL)).unwrap_or_default())
            .into();
    let subject = subject.clone();
    context.view.registry.open(label, || context.view.mesh(), move |mesh| subject.judge(mesh))
}
