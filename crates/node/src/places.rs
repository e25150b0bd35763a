// SPDX-License-Identifier: Apache-2.0
//! Places: how much of the proxy one Pod, and one client of a Pod, may take. The proxy is shared by all Pods of the node;
//! what a flood at one of them fills is that Pod's part.

use std::sync::Arc;

use meltemi_runtime::places::PerSource;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Handshakes of one source address with a Pod that are under way. A client's tunnels to one destination are opened one
/// after the other.
const HANDSHAKES: usize = 64;
/// Tunnels of one source address to a Pod; each carries up to 200 connections.
const TUNNELS: usize = 512;

/// The places of a Pod.
#[derive(Debug)]
pub(crate) struct Places {
    /// Connections, whoever opened them: those accepted by the proxy, and those in tunnels.
    connections: Arc<Semaphore>,
    pub(crate) handshakes: PerSource,
    pub(crate) tunnels: PerSource,
}

impl Places {
    pub(crate) fn new(connections: usize) -> Self {
        Self {
            connections: Arc::new(Semaphore::new(connections.clamp(1, Semaphore::MAX_PERMITS))),
            handshakes: PerSource::new(HANDSHAKES, usize::MAX),
            tunnels: PerSource::new(TUNNELS, usize::MAX),
        }
    }

    /// A place for a connection; none when the Pod has its part.
    pub(crate) fn connection(&self) -> Option<OwnedSemaphorePermit> {
        self.connections.clone().try_acquire_owned().ok()
    }
}
