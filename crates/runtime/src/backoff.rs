// SPDX-License-Identifier: Apache-2.0
//! Delays between attempts of something that fails: they double up to a bound.

use std::time::Duration;

/// An endless sequence of delays: the first, then twice the one before, never more than the largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    largest: Duration,
    next: Duration,
}

impl Backoff {
    /// Delays from `first` to `largest`.
    pub const fn new(first: Duration, largest: Duration) -> Self {
        Self { first, largest, next: first }
    }

    /// Starts again with the first delay: an attempt has succeeded.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let delay = self.next.min(self.largest);
        self.next = delay.saturating_mul(2).min(self.largest);
        Some(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_largest_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
        let millis = |b: &mut Backoff, n| b.take(n).map(|d| d.as_millis()).collect::<Vec<_>>();
        assert_eq!(millis(&mut backoff, 5), [200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(millis(&mut backoff, 2), [200, 400]);
    }
}
