// SPDX-License-Identifier: Apache-2.0
//! What a peer does that brings it nothing: a bucket that fills with each, and empties with time.

use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Bucket {
    capacity: f64,
    per_second: f64,
    level: f64,
    at: Option<Instant>,
}

impl Bucket {
    pub(super) fn new(capacity: u32, per_second: u32) -> Self {
        Self { capacity: capacity.into(), per_second: per_second.into(), level: 0.0, at: None }
    }

    /// Counts; whether it is still within its bound.
    pub(super) fn add(&mut self, cost: u32) -> bool {
        self.add_at(cost, Instant::now())
    }

    fn add_at(&mut self, cost: u32, now: Instant) -> bool {
        let drained = self.at.map_or(0.0, |at| now.duration_since(at).as_secs_f64() * self.per_second);
        self.level = (self.level - drained).max(0.0) + f64::from(cost);
        self.at = Some(now);
        self.level <= self.capacity
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_pace_is_borne_and_a_flood_is_not() {
        let (mut bucket, now) = (Bucket::new(10, 2), Instant::now());
        assert!((0..10).all(|_| bucket.add_at(1, now)));
        assert!(!bucket.add_at(1, now));
        assert!(bucket.add_at(1, now + Duration::from_secs(1)));
        assert!((1..1000).all(|n| bucket.add_at(2, now + Duration::from_secs(n + 1))));
        assert!(!bucket.add_at(11, now + Duration::from_secs(1000)));
    }
}
