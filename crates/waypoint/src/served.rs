// SPDX-License-Identifier: Apache-2.0
//! What a connection is for, and who its client is.

use std::net::SocketAddr;
use std::sync::Arc;

use meltemi_model::{NamespacedHostname, SpiffeId, WorkloadUid};
use meltemi_runtime::places::Place;

use crate::certificates::Secured;

/// Who is on the other side.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Who it has proven to be, by its tunnel and by nothing else.
    pub(crate) identity: Option<SpiffeId>,
    /// Its address.
    pub(crate) address: SocketAddr,
}

impl Peer {
    /// For the log.
    pub(crate) fn text(&self) -> Arc<str> {
        self.identity.as_ref().map_or_else(|| self.address.to_string().into(), SpiffeId::text)
    }
}

/// What gets a request or connection in the end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum BackendRef {
    /// An endpoint of a Service, by the Service's port.
    Service(NamespacedHostname, u16),
    /// This Pod, at the address that the client has dialled.
    Workload(WorkloadUid, SocketAddr),
}

/// What a connection is for.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    /// The addressed Service, at a waypoint.
    pub(crate) service: Option<NamespacedHostname>,
    /// The addressed Pod, at a waypoint for traffic to Pods.
    pub(crate) workload: Option<WorkloadUid>,
    /// The addressed address and port.
    pub(crate) to: SocketAddr,
    /// The listener's port, at a gateway.
    pub(crate) listener: Option<u16>,
    /// The client.
    pub(crate) peer: Peer,
    /// Its place among the connections; a WebSocket keeps it when HTTP has ended. Of a tunnel's stream the tunnel has it.
    pub(crate) place: Option<Arc<Place>>,
    /// What the client has said in its TLS handshake, at a gateway; none in the clear, and in tunnels.
    pub(crate) secured: Option<Secured>,
}

impl Served {
    /// The scheme that the client speaks.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.secured.is_some() { "https" } else { "http" }
    }
}
