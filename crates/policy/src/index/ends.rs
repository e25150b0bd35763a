// SPDX-License-Identifier: Apache-2.0
//! Which of many prefixes (or suffixes) a text has: a binary search over the lengths that there are, one hash look-up a
//! step, finds the longest one; the others hang on it.
//!
//! So that the search knows when a longer one may be worth a look, every pattern leaves a marker at each shorter length
//! that the search for it passes, with the longest pattern that the marker itself has (Waldvogel et al., "Scalable High
//! Speed IP Routing Lookups", 1997).

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::Post;
use super::key::Nested;
use super::sets::SetsBuilder;

const NONE: u32 = u32::MAX;

/// So many patterns may begin one another before the sets of those above are put together.
const DEPTH: usize = 8;

/// Prefixes, or suffixes.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    /// Prefixes.
    front: bool,
    /// Lengths of patterns, in order.
    lengths: Vec<u32>,
    /// Patterns and markers.
    table: HashTable<Marker>,
    /// By pattern: what it stands for, and the next shorter one that is not in it yet.
    posts: Vec<(Post, u32)>,
}

#[derive(Clone, Debug)]
struct Marker {
    /// The pattern that left it.
    text: Arc<[u8]>,
    /// How much of the text it is.
    length: u32,
    /// The longest pattern that begins (or ends) it.
    best: u32,
}

/// The beginning of a text, or its end.
#[inline]
fn piece(text: &[u8], front: bool, length: usize) -> &[u8] {
    if front { &text[..length] } else { &text[text.len() - length..] }
}

impl Ends {
    pub(super) fn new(
        mut patterns: Vec<Nested>,
        front: bool,
        sets: &mut SetsBuilder,
        hash: &DefaultHashBuilder,
    ) -> Option<Self> {
        if patterns.is_empty() {
            return None;
        }
        if front {
            patterns.sort_by(|a, b| a.text.cmp(&b.text));
        } else {
            patterns.sort_by(|a, b| a.text.iter().rev().cmp(b.text.iter().rev()));
        }
        let mut lengths: Vec<u32> = patterns.iter().map(|p| p.text.len() as u32).collect();
        lengths.sort_unstable();
        lengths.dedup();
        lengths.shrink_to_fit();
        let mut ends =
            Self { front, lengths, table: HashTable::new(), posts: Vec::with_capacity(patterns.len()) };
        // Sorted so, a pattern comes right after those that begin it.
        let mut chain: Vec<usize> = Vec::new();
        let mut whole = vec![false; patterns.len()];
        for at in 0..patterns.len() {
            while let Some(before) = chain.last()
                && !ends.begins(&patterns[*before].text, &patterns[at].text)
            {
                chain.pop();
            }
            if !chain.is_empty() && chain.len().is_multiple_of(DEPTH) {
                let mut rows = std::mem::take(&mut patterns[at].rows);
                let above = chain.iter().rev().map(|before| (&patterns[*before].rows, whole[*before]));
                whole[at] = sets.gather(&mut rows, above);
                patterns[at].rows = rows;
            }
            let above = chain.last().filter(|_| !whole[at]).map_or(NONE, |above| *above as u32);
            let Nested { text, rows } = &patterns[at];
            ends.posts.push((sets.post(rows.clone()), above));
            chain.push(at);
            ends.mark(text, &chain, &patterns, hash);
        }
        Some(ends)
    }

    fn begins(&self, short: &[u8], long: &[u8]) -> bool {
        if self.front { long.starts_with(short) } else { long.ends_with(short) }
    }

    /// Leaves the markers of a pattern, the last of the chain, and the pattern itself.
    fn mark(&mut self, text: &Arc<[u8]>, chain: &[usize], patterns: &[Nested], hash: &DefaultHashBuilder) {
        let own = text.len() as u32;
        let (mut low, mut high) = (0, self.lengths.len());
        while low < high {
            let middle = low.midpoint(high);
            let length = self.lengths[middle];
            if length > own {
                high = middle;
                continue;
            }
            let known = chain.partition_point(|before| patterns[*before].text.len() <= length as usize);
            let best = known.checked_sub(1).map_or(NONE, |last| chain[last] as u32);
            let (front, piece_of) = (self.front, piece(text, self.front, length as usize));
            let same = |marker: &Marker| piece(&marker.text, front, marker.length as usize) == piece_of;
            let at = hash.hash_one(piece_of);
            if self.table.find(at, same).is_none() {
                let rehash = |m: &Marker| hash.hash_one(piece(&m.text, front, m.length as usize));
                self.table.insert_unique(at, Marker { text: text.clone(), length, best }, rehash);
            }
            if length == own {
                return;
            }
            low = middle + 1;
        }
    }

    /// Calls for patterns whose sets together are those of all that the text has.
    #[inline]
    pub(super) fn visit(&self, hash: &DefaultHashBuilder, text: &[u8], with: &mut impl FnMut(Post)) {
        let mut best = NONE;
        let (mut low, mut high) = (0, self.lengths.len());
        while low < high {
            let middle = low.midpoint(high);
            let length = self.lengths[middle] as usize;
            if length > text.len() {
                high = middle;
                continue;
            }
            let piece_of = piece(text, self.front, length);
            let same = |marker: &Marker| {
                marker.length as usize == length && piece(&marker.text, self.front, length) == piece_of
            };
            match self.table.find(hash.hash_one(piece_of), same) {
                Some(marker) => {
                    best = marker.best;
                    low = middle + 1;
                }
                None => high = middle,
            }
        }
        while best != NONE {
            let (post, above) = self.posts[best as usize];
            with(post);
            best = above;
        }
    }

    pub(super) fn heap(&self) -> usize {
        self.lengths.capacity() * 4
            + self.table.allocation_size()
            + self.posts.capacity() * size_of::<(Post, u32)>()
    }
}
