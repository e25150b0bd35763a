// SPDX-License-Identifier: Apache-2.0
//! Which of many address ranges hold an address: the ranges cut the line of addresses into pieces, each of which knows
//! the narrowest range that covers it, and every range the next wider one.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Post;

const NONE: u32 = u32::MAX;

/// Ranges of both families.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    v4: Line<u32>,
    v6: Line<u128>,
}

#[derive(Clone, Debug, Default)]
struct Line<T> {
    /// Where pieces begin, in order.
    starts: Vec<T>,
    /// The narrowest range of each piece.
    narrowest: Vec<u32>,
    /// Ranges, each with the next wider.
    ranges: Vec<(Post, u32)>,
}

impl Ranges {
    /// From different ranges without host bits.
    pub(super) fn new(ranges: &[(IpNet, Post)]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (range, post) in ranges {
            match range {
                IpNet::V4(r) => v4.push((r.network().to_bits(), r.broadcast().to_bits(), *post)),
                IpNet::V6(r) => v6.push((r.network().to_bits(), r.broadcast().to_bits(), *post)),
            }
        }
        Self { v4: Line::new(v4, |n| n.checked_add(1)), v6: Line::new(v6, |n| n.checked_add(1)) }
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
            + (four.ranges.capacity() + six.ranges.capacity()) * size_of::<(Post, u32)>()
    }
}

impl<T: Copy + Ord> Line<T> {
    fn new(mut all: Vec<(T, T, Post)>, next: impl Fn(T) -> Option<T>) -> Self {
        // Wider ranges before those that they hold.
        all.sort_by(|a, b| (a.0, std::cmp::Reverse(a.1)).cmp(&(b.0, std::cmp::Reverse(b.1))));
        let mut line = Self { starts: Vec::new(), narrowest: Vec::new(), ranges: Vec::new() };
        let mut open: Vec<(T, u32)> = Vec::new();
        for (start, end, post) in all {
            while let Some((ends, _)) = open.last()
                && *ends < start
            {
                line.close(&mut open, &next);
            }
            line.ranges.push((post, open.last().map_or(NONE, |(_, range)| *range)));
            let range = line.ranges.len() as u32 - 1;
            line.begin(start, range);
            open.push((end, range));
        }
        while !open.is_empty() {
            line.close(&mut open, &next);
        }
        line.starts.shrink_to_fit();
        line.narrowest.shrink_to_fit();
        line
    }

    fn close(&mut self, open: &mut Vec<(T, u32)>, next: &impl Fn(T) -> Option<T>) {
        let Some((end, _)) = open.pop() else { return };
        if let Some(after) = next(end) {
            self.begin(after, open.last().map_or(NONE, |(_, range)| *range));
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
        let after = self.starts.partition_point(|start| *start <= ip);
        let mut range = after.checked_sub(1).map_or(NONE, |piece| self.narrowest[piece]);
        while range != NONE {
            let (post, wider) = self.ranges[range as usize];
            with(post);
            range = wider;
        }
    }
}
