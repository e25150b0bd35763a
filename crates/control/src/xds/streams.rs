// SPDX-License-Identifier: Apache-2.0
//! How many streams a proxy has: each holds memory of the control plane's.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// Streams of one proxy at once; a further one ends the oldest, most likely one that nobody reads any more.
const STREAMS: usize = 4;

/// The streams of every proxy, the oldest first; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams(Arc<Mutex<HashMap<String, VecDeque<Stream>>>>);

#[derive(Debug)]
struct Stream {
    id: String,
    superseded: CancellationToken,
}

impl Streams {
    /// Begins a stream of a proxy: the token is cancelled when newer ones need its place.
    pub(super) fn begin(&self, proxy: &str, id: &str) -> CancellationToken {
        let superseded = CancellationToken::new();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = all.entry(proxy.to_owned()).or_default();
        own.push_back(Stream { id: id.to_owned(), superseded: superseded.clone() });
        while own.len() > STREAMS {
            if let Some(oldest) = own.pop_front() {
                oldest.superseded.cancel();
            }
        }
        superseded
    }

    /// A stream has ended.
    pub(super) fn end(&self, proxy: &str, id: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = all.get_mut(proxy) {
            own.retain(|stream| stream.id != id);
            if own.is_empty() {
                all.remove(proxy);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_stream_of_a_proxy_makes_room() {
        let streams = Streams::default();
        let other = streams.begin("b", "b#0");
        let own: Vec<_> = (0..6).map(|n| streams.begin("a", &format!("a#{n}"))).collect();
        let ended: Vec<bool> = own.iter().map(CancellationToken::is_cancelled).collect();
        assert_eq!(ended, [true, true, false, false, false, false]);
        assert!(!other.is_cancelled());
        for id in ["a#0", "a#2", "a#3", "a#4", "a#5", "a#5"] {
            streams.end("a", id);
        }
        streams.end("b", "b#0");
        assert!(streams.0.lock().unwrap().is_empty(), "who has none is not remembered");
    }
}
