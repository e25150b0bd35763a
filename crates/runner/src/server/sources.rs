// SPDX-License-Identifier: Apache-2.0
//! Places for connections to the kubelet's API. Its only client proves itself by a certificate; until then a source
//! gets few places, and nobody gets those of a source that has proven itself. The descriptors of the process are for
//! Pods in the first place.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use meltemi_runtime::places::{PerSource, Place};

use crate::lock::lock;

/// Connections of the API server, at most; a quarter of the descriptors if that is less.
const PROVEN: usize = 2048;
/// Connections of one other source, and of all others.
const UNPROVEN: (usize, usize) = (16, 64);
/// Addresses that are remembered as proven.
const REMEMBERED: usize = 16;

/// Places for connections; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    proven: Arc<Mutex<HashSet<IpAddr>>>,
    of_proven: PerSource,
    of_others: PerSource,
}

impl Sources {
    /// Places for a process with this many descriptors.
    pub(super) fn new(descriptors: u64) -> Self {
        let quarter = usize::try_from(descriptors / 4).unwrap_or(PROVEN).clamp(1, PROVEN);
        Self {
            proven: Arc::default(),
            of_proven: PerSource::new(quarter, quarter),
            of_others: PerSource::new(UNPROVEN.0, UNPROVEN.1.min(quarter)),
        }
    }

    /// A place for a new connection.
    pub(super) fn take(&self, source: IpAddr) -> Option<Place> {
        if lock(&self.proven).contains(&source) {
            self.of_proven.take(source)
        } else {
            self.of_others.take(source)
        }
    }

    /// A place for a connection whose client has proven that it is the API server, for the one before.
    pub(super) fn prove(&self, source: IpAddr, before: Place) -> Option<Place> {
        let mut proven = lock(&self.proven);
        if proven.contains(&source) {
            return Some(before);
        }
        if proven.len() < REMEMBERED {
            proven.insert(source);
        }
        self.of_proven.take(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_not_proven_itself_gets_few_places_and_keeps_none_from_who_has() {
        let sources = Sources::new(4000);
        let of = |n: u8| IpAddr::from([10, 244, 0, n]);
        let api = IpAddr::from([172, 30, 0, 1]);
        let first = sources.take(api).unwrap();
        let mut held = vec![sources.prove(api, first).unwrap()];
        let mut fill = |source: IpAddr| {
            let before = held.len();
            held.extend(std::iter::from_fn(|| sources.take(source)));
            held.len() - before
        };
        assert_eq!(fill(of(1)), UNPROVEN.0);
        assert_eq!((2..9).map(|n| fill(of(n))).sum::<usize>(), UNPROVEN.1 - UNPROVEN.0);
        assert_eq!(fill(api), 1000 - 1, "a quarter of the descriptors");
        assert_eq!(fill(of(1)), 0);
    }

    #[test]
    fn few_descriptors_leave_few_places() {
        let sources = Sources::new(64);
        let held: Vec<_> = (0..=255)
            .flat_map(|n| {
                std::iter::from_fn(|| sources.take(IpAddr::from([10, 0, 0, n]))).collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(held.len(), 16);
    }
}
