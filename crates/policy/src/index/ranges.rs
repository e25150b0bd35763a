// SPDX-License-Identifier: Apache-2.0
//! Which of many address ranges hold an address: the ranges cut the line of addresses into pieces, each of which knows
//! the narrowest range that covers it, and every range the next wider one.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Post;
use super::key::Rows;
use super::sets::SetsBuilder;

const NONE: u32 = u32::MAX;

/// So many ranges may hold one another before the sets of those above are put together.
const DEPTH: usize = 4;

/// Ranges of both families.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    v4: Line<u32>,
    v6: Line<u128>,
}

/// An address as a number.
trait Number: Copy + Ord {
    fn next(self) -> Option<Self>;
    /// The distance from `start`, without its last `shift` bits.
    fn bucket(self, start: Self, shift: u32) -> usize;
    /// Bits that a distance needs.
    fn width(self, start: Self) -> u32;
}

impl Number for u32 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn bucket(self, start: Self, shift: u32) -> usize {
        (self - start).checked_shr(shift).unwrap_or(0) as usize
    }
    fn width(self, start: Self) -> u32 {
        Self::BITS - (self - start).leading_zeros()
    }
}

impl Number for u128 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn bucket(self, start: Self, shift: u32) -> usize {
        (self - start).checked_shr(shift).unwrap_or(0) as usize
    }
    fn width(self, start: Self) -> u32 {
        Self::BITS - (self - start).leading_zeros()
    }
}

#[derive(Clone, Debug, Default)]
struct Line<T> {
    /// Where pieces begin, in order.
    starts: Vec<T>,
    /// The narrowest range of each piece.
    narrowest: Vec<u32>,
    /// Ranges, each with the next wider.
    ranges: Vec<(Post, u32)>,
    /// How many pieces begin before each of equal stretches of the line: where to search.
    buckets: Vec<u32>,
    /// Length of a stretch, in bits.
    shift: u32,
}

impl Ranges {
    /// From different ranges without host bits.
    pub(super) fn new(ranges: Vec<(IpNet, Rows)>, sets: &mut SetsBuilder) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (range, rows) in ranges {
            match range {
                IpNet::V4(r) => v4.push((r.network().to_bits(), r.broadcast().to_bits(), rows)),
                IpNet::V6(r) => v6.push((r.network().to_bits(), r.broadcast().to_bits(), rows)),
            }
        }
        Self { v4: Line::new(v4, sets), v6: Line::new(v6, sets) }
    }

    /// Calls for every range that holds the address, which is canonical.
    #[inline]
    pub(super) fn visit(&self, ip: IpAddr, with: impl FnMut(Post)) {
        match ip {
            IpAddr::V4(ip) => self.v4.visit(ip.to_bits(), with),
            IpAddr::V6(ip) => self.v6.visit(ip.to_bits(), with),
        }
    }

    pub(super) fn heap(&self) -> usize {
        let (four, six) = (&self.v4, &self.v6);
        four.starts.capacity() * 4
            + six.starts.capacity() * 16
            + (four.narrowest.capacity() + six.narrowest.capacity()) * 4
            + (four.buckets.capacity() + six.buckets.capacity()) * 4
            + (four.ranges.capacity() + six.ranges.capacity()) * size_of::<(Post, u32)>()
    }
}

impl<T: Number> Line<T> {
    fn new(mut all: Vec<(T, T, Rows)>, sets: &mut SetsBuilder) -> Self {
        // Wider ranges before those that they hold.
        all.sort_by_key(|(start, end, _)| (*start, std::cmp::Reverse(*end)));
        let mut line = Self { starts: vec![], narrowest: vec![], ranges: vec![], buckets: vec![], shift: 0 };
        // The ranges that hold the next one, each with its end, its number, its rows, and whether those are of all above.
        let mut open: Vec<(T, u32, Rows, bool)> = Vec::new();
        for (start, end, mut rows) in all {
            while let Some((ends, ..)) = open.last()
                && *ends < start
            {
                line.close(&mut open);
            }
            let mut whole = open.is_empty();
            if !whole && open.len().is_multiple_of(DEPTH) {
                whole = sets.gather(&mut rows, open.iter().rev().map(|(_, _, rows, whole)| (rows, *whole)));
            }
            let wider = open.last().filter(|_| !whole).map_or(NONE, |(_, range, ..)| *range);
            line.ranges.push((sets.post(rows.clone()), wider));
            let range = line.ranges.len() as u32 - 1;
            line.begin(start, range);
            open.push((end, range, rows, whole));
        }
        while !open.is_empty() {
            line.close(&mut open);
        }
        line.starts.shrink_to_fit();
        line.narrowest.shrink_to_fit();
        line.ranges.shrink_to_fit();
        line.divide();
        line
    }

    /// Cuts the line into about as many stretches as there are pieces.
    fn divide(&mut self) {
        let (Some(first), Some(last)) = (self.starts.first().copied(), self.starts.last().copied()) else {
            return;
        };
        self.shift = last.width(first).saturating_sub(self.starts.len().ilog2() + 1);
        let count = last.bucket(first, self.shift) + 1;
        self.buckets = Vec::with_capacity(count + 1);
        for (piece, start) in self.starts.iter().enumerate() {
            while self.buckets.len() <= start.bucket(first, self.shift) {
                self.buckets.push(piece as u32);
            }
        }
        self.buckets.push(self.starts.len() as u32);
    }

    fn close(&mut self, open: &mut Vec<(T, u32, Rows, bool)>) {
        let Some((end, ..)) = open.pop() else { return };
        if let Some(after) = end.next() {
            self.begin(after, open.last().map_or(NONE, |(_, range, ..)| *range));
        }
    }

    /// A later word about the same place is the one that counts.
    fn begin(&mut self, start: T, range: u32) {
        if self.starts.last() == Some(&start) {
            self.narrowest.pop();
        } else {
            self.starts.push(start);
        }
        self.narrowest.push(range);
    }

    #[inline]
    fn visit(&self, ip: T, mut with: impl FnMut(Post)) {
        let Some(first) = self.starts.first().copied().filter(|first| *first <= ip) else { return };
        let bucket = ip.bucket(first, self.shift).min(self.buckets.len() - 2);
        let (from, to) = (self.buckets[bucket] as usize, self.buckets[bucket + 1] as usize);
        let after = from + self.starts[from..to].partition_point(|start| *start <= ip);
        // The first piece begins at or before the address, so that one is always before the place found.
        let mut range = self.narrowest[after - 1];
        while range != NONE {
            let (post, wider) = self.ranges[range as usize];
            with(post);
            range = wider;
        }
    }
}
