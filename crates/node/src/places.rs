// SPDX-License-Identifier: Apache-2.0
//! Places: how much of the proxy one Pod, and one client of a Pod, may take. The proxy is shared by all Pods of the node;
//! what a flood at one of them fills is that Pod's part.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

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
            handshakes: PerSource::new(HANDSHAKES),
            tunnels: PerSource::new(TUNNELS),
        }
    }

    /// A place for a connection; none when the Pod has its part.
    pub(crate) fn connection(&self) -> Option<OwnedSemaphorePermit> {
        self.connections.clone().try_acquire_owned().ok()
    }
}

/// Places for each source address: one client does not take those of the others.
#[derive(Clone, Debug)]
pub(crate) struct PerSource {
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    limit: usize,
}

/// A place that is given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    of: PerSource,
    source: IpAddr,
}

impl PerSource {
    fn new(limit: usize) -> Self {
        Self { taken: Arc::default(), limit }
    }

    pub(crate) fn take(&self, source: IpAddr) -> Option<Place> {
        let source = source.to_canonical();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(source).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Place { of: self.clone(), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_takes_its_own_places_only_and_gives_them_back() {
        let places = PerSource::new(2);
        let (one, two): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let mapped = "::ffff:10.0.0.1".parse().unwrap();
        let held = [places.take(one).unwrap(), places.take(mapped).unwrap()];
        assert!(places.take(one).is_none());
        assert!(places.take(two).is_some());
        drop(held);
        assert!(places.take(one).is_some());
        assert!(places.taken.lock().unwrap().is_empty(), "who has none is not remembered");
    }
}
