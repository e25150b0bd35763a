// SPDX-License-Identifier: Apache-2.0
//! Places: how much of the proxy one Pod, and one client of a Pod, may take. The proxy is shared by all Pods of the node;
//! what a flood at one of them fills is that Pod's part.

use std::net::IpAddr;

use meltemi_runtime::places::{PerSource, Place};

/// Handshakes of one source address with a Pod that are under way. A client's tunnels to one destination are opened one
/// after the other.
const HANDSHAKES: usize = 64;
/// Tunnels of one source address to a Pod; each carries up to 200 connections.
const TUNNELS: usize = 512;

/// The places of a Pod.
#[derive(Debug)]
pub(crate) struct Places {
    /// Connections, whoever opened them: those accepted by the proxy, and those in tunnels. One source, the Pod itself
    /// among them, leaves a quarter to the others.
    connections: PerSource,
    handshakes: PerSource,
    tunnels: PerSource,
}

/// The places of a tunnel: one until its handshake is done, and one until it ends.
#[derive(Debug)]
pub(crate) struct TunnelPlaces {
    pub(crate) handshake: Place,
    pub(crate) tunnel: Place,
}

impl Places {
    pub(crate) fn new(connections: usize) -> Self {
        Self {
            connections: PerSource::new((connections - connections / 4).max(1), connections.max(1)),
            handshakes: PerSource::new(HANDSHAKES, usize::MAX),
            tunnels: PerSource::new(TUNNELS, usize::MAX),
        }
    }

    /// A place for a connection; none when the Pod, or the source in it, has its part.
    pub(crate) fn connection(&self, source: IpAddr) -> Option<Place> {
        self.connections.take(source)
    }

    /// Places for a tunnel from an address; none when the address has its part.
    pub(crate) fn tunnel(&self, source: IpAddr) -> Option<TunnelPlaces> {
        let (handshake, tunnel) = (self.handshakes.take(source)?, self.tunnels.take(source)?);
        Some(TunnelPlaces { handshake, tunnel })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_leaves_a_quarter_of_the_connections_to_the_others() {
        let places = Places::new(100);
        let [hostile, other, third] = [1, 2, 3].map(|n| IpAddr::from([10, 244, 1, n]));
        let fill = |source| std::iter::from_fn(|| places.connection(source)).collect::<Vec<_>>();
        let (mut held, others) = (fill(hostile), fill(other));
        assert_eq!((held.len(), others.len(), fill(third).len()), (75, 25, 0));
        held.truncate(50);
        assert_eq!(fill(third).len(), 25, "what was given back");
        assert_eq!(Places::new(1).connection(hostile).iter().count(), 1);
    }

    #[test]
    fn one_address_fills_its_own_tunnels_only() {
        let places = Places::new(10);
        let [hostile, other] = [1, 2].map(|n| IpAddr::from([10, 244, 1, n]));
        let mut open = Vec::new();
        for _ in 0..TUNNELS {
            let TunnelPlaces { handshake, tunnel } = places.tunnel(hostile).unwrap();
            drop(handshake);
            open.push(tunnel);
        }
        for _ in 0..HANDSHAKES + 1 {
            assert!(places.tunnel(hostile).is_none());
        }
        assert!(places.tunnel(other).is_some(), "another address");
        open.pop();
        // The refused ones have given back the places of their handshakes.
        let begun: Vec<_> = (0..2).filter_map(|_| places.tunnel(hostile)).collect();
        assert_eq!(begun.len(), 1);
        let shaking: Vec<_> = (0..HANDSHAKES + 1).filter_map(|_| places.tunnel(other)).collect();
        assert_eq!(shaking.len(), HANDSHAKES);
    }
}
