// SPDX-License-Identifier: Apache-2.0
//! For how long each node has been silent, as far as this process could see. Pure: time is a parameter.
//!
//! The times that a lease carries are not compared with a clock: the wall clock may jump. What counts is when a renewal
//! was seen, by the monotonic clock, and only time during which renewals could be seen. When this process was stopped, or
//! the API did not answer, every node gets its whole grace anew: a pause of the observer is not the death of the observed.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// A lease as it was last seen.
#[derive(Clone, Debug)]
struct Seen {
    version: String,
    renewed: Instant,
}

/// The leases of all nodes.
#[derive(Debug)]
pub(super) struct Leases {
    seen: HashMap<String, Seen>,
    /// When the leases were last read.
    read: Option<Instant>,
    /// Longest time between two reads that is no gap.
    gap: Duration,
}

impl Leases {
    pub(super) fn new(gap: Duration) -> Self {
        Self { seen: HashMap::new(), read: None, gap }
    }

    /// Takes all leases, as (node, resource version), as they were read at `now`.
    pub(super) fn read(&mut self, leases: impl IntoIterator<Item = (String, String)>, now: Instant) {
        let blind = self.read.is_none_or(|last| now.saturating_duration_since(last) > self.gap);
        self.read = Some(now);
        let mut seen = HashMap::new();
        for (node, version) in leases {
            let same = self.seen.get(&node).filter(|old| old.version == version && !blind);
            let renewed = same.map_or(now, |old| old.renewed);
            seen.insert(node, Seen { version, renewed });
        }
        // A node without a lease is as silent as one that does not renew it.
        for (node, old) in self.seen.drain().filter(|(_, old)| old.version.is_empty()) {
            let renewed = if blind { now } else { old.renewed };
            seen.entry(node).or_insert(Seen { renewed, ..old });
        }
        self.seen = seen;
    }

    /// For how long a node has been silent while it could have been heard; a node is heard for the first time when it is
    /// first asked for. `None` while nothing can be seen: then nothing is known of any node.
    pub(super) fn silence(&mut self, node: &str, now: Instant) -> Option<Duration> {
        let read = self.read.filter(|read| now.saturating_duration_since(*read) <= self.gap)?;
        let unknown = Seen { version: String::new(), renewed: read };
        let seen = self.seen.entry(node.to_owned()).or_insert(unknown);
        Some(read.saturating_duration_since(seen.renewed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Duration = Duration::from_secs(3);

    /// A script of one second a letter: `r` a read that shows a renewal, `.` one that shows none, ` ` no read. Returns the
    /// silence in seconds after each letter.
    fn run(script: &str, leased: bool) -> Vec<Option<u64>> {
        let begun = Instant::now();
        let (mut leases, mut version) = (Leases::new(GAP), 0);
        let step = |(at, letter): (usize, char)| {
            let now = begun + Duration::from_secs(at.try_into().unwrap());
            version += i32::from(letter == 'r');
            if letter != ' ' {
                let lease = leased.then(|| ("n".to_owned(), version.to_string()));
                leases.read(lease, now);
            }
            leases.silence("n", now).map(|silence| silence.as_secs())
        };
        script.chars().enumerate().map(step).collect()
    }

    #[test]
    fn only_time_in_which_a_node_could_be_heard_counts() {
        let cases = [
            ("renewed", "r.r.r", true, Some(0)),
            ("silent", "r.........", true, Some(9)),
            ("no lease", "..........", false, Some(9)),
            ("silent, between short gaps", "r..  ..  .", true, Some(9)),
            ("the observer is away", "r..       ", true, None),
            ("the observer was away, the node was silent before and is now", "r.....    ..", true, Some(1)),
            ("the observer was away, there is no lease", "......     ..", false, Some(1)),
            ("the observer was away, the node is back", "r..    .r.", true, Some(1)),
        ];
        for (what, script, leased, expected) in cases {
            assert_eq!(run(script, leased).last(), Some(&expected), "{what}");
        }
    }
}
