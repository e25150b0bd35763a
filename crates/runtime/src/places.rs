// SPDX-License-Identifier: Apache-2.0
//! Places for what comes in over the network, counted for each source address: one client does not take those of the
//! others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Places; clones share them.
#[derive(Clone, Debug)]
pub struct PerSource {
    taken: Arc<Mutex<Taken>>,
    each: usize,
    all: usize,
}

#[derive(Debug, Default)]
struct Taken {
    by: HashMap<IpAddr, usize>,
    all: usize,
}

/// A place that is given back when dropped.
#[derive(Debug)]
pub struct Place {
    of: PerSource,
    source: IpAddr,
}

impl PerSource {
    /// `each` places for one address, `all` for all of them together.
    pub fn new(each: usize, all: usize) -> Self {
        Self { taken: Arc::default(), each, all }
    }

    /// A place for an address; none when it has its part, or when there is none left for anybody.
    pub fn take(&self, source: IpAddr) -> Option<Place> {
        let source = source.to_canonical();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by.get(&source).copied().unwrap_or(0);
        if own >= self.each || taken.all >= self.all {
            return None;
        }
        taken.all += 1;
        taken.by.insert(source, own + 1);
        Some(Place { of: self.clone(), source })
    }

    /// How many places nobody has.
    pub fn free(&self) -> usize {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        self.all.saturating_sub(taken.all)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(count) = taken.by.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                taken.by.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_takes_its_own_places_only_and_gives_them_back() {
        let places = PerSource::new(2, 3);
        let [one, mapped, two, three] =
            ["10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|ip| ip.parse().unwrap());
        let mut held = vec![places.take(one).unwrap(), places.take(mapped).unwrap()];
        assert!(places.take(one).is_none(), "its part");
        held.push(places.take(two).unwrap());
        assert!(places.take(three).is_none(), "all");
        assert_eq!(places.free(), 0);
        held.pop();
        assert!(places.take(three).is_some());
        drop(held);
        assert!(places.take(one).is_some());
        let taken = places.taken.lock().unwrap();
        assert!(taken.by.is_empty() && taken.all == 0, "who has none is not remembered");
    }
}
