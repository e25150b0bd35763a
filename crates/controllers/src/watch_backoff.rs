// SPDX-License-Identifier: Apache-2.0
//! The pace at which watches are started again: after an outage of the API server, however long, at most
//! [`LARGEST`] passes before the next attempt.

use std::time::Duration;

use kube::runtime::utils::Backoff;
use meltemi_runtime::backoff;

const FIRST: Duration = Duration::from_millis(200);
const LARGEST: Duration = Duration::from_secs(1);

/// Delays between attempts of one watch.
#[derive(Debug)]
pub(crate) struct WatchBackoff(backoff::Backoff);

impl Default for WatchBackoff {
    fn default() -> Self {
        Self(backoff::Backoff::new(FIRST, LARGEST))
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next()
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.0.reset();
    }
}
