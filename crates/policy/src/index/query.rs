// SPDX-License-Identifier: Apache-2.0
//! The rows that lie in the intersection of several unions of sets, first ones first, without a place on the heap.

use std::ops::ControlFlow;

use smallvec::SmallVec;

use super::sets::{Level, SetRef, Sets, has};

/// A set of a group, and what it holds of the block that is looked at.
#[derive(Clone, Copy, Debug)]
struct Part {
    set: SetRef,
    level: Level,
    top: u64,
}

/// Where a term is in the lists of the query.
#[derive(Clone, Copy, Debug)]
struct Term {
    plus: u32,
    minus: u32,
    /// Its groups; none when it is a union of sets and nothing else.
    groups: (u32, u32),
    plus_end: u32,
}

/// An intersection of terms; a term is a union of groups; a group is a union of sets less a union of others.
///
/// There is room for what a request brings in some hundreds of sets at once: five readings of a path with a dozen
/// patterns each. A request that brings more, by many duplicates of a header, pays for it with an allocation.
#[derive(Debug)]
pub(super) struct Query<'s> {
    sets: &'s Sets,
    rows: u32,
    plus: SmallVec<[Part; 256]>,
    minus: SmallVec<[Part; 128]>,
    /// Ends in `plus` and `minus`.
    groups: SmallVec<[(u32, u32); 128]>,
    terms: SmallVec<[Term; 64]>,
    /// Where in `plus`, `minus` and `groups` the term begins that is not ended yet.
    begun: (u32, u32, u32),
    /// Blocks that can hold a row of the intersection so far.
    top: u64,
    /// The only row that can be in the intersection.
    only: Option<u32>,
}

impl<'s> Query<'s> {
    /// All of `rows` rows.
    #[inline(always)]
    pub(super) fn new(sets: &'s Sets, rows: u32) -> Self {
        let blocks = rows.div_ceil(1 << 12);
        let top = if blocks >= 64 { u64::MAX } else { (1 << blocks) - 1 };
        Self {
            sets,
            rows,
            plus: SmallVec::new(),
            minus: SmallVec::new(),
            groups: SmallVec::new(),
            terms: SmallVec::new(),
            begun: (0, 0, 0),
            top,
            only: None,
        }
    }

    /// Adds a set to the group.
    #[inline]
    pub(super) fn plus(&mut self, set: SetRef) {
        if set != SetRef::EMPTY {
            self.plus.push(Part { set, level: Level::default(), top: self.sets.top(set) });
        }
    }

    /// Takes a set from the group.
    #[inline]
    pub(super) fn minus(&mut self, set: SetRef) {
        if set != SetRef::EMPTY {
            self.minus.push(Part { set, level: Level::default(), top: self.sets.top(set) });
        }
    }

    /// Ends the group.
    #[inline]
    pub(super) fn end_group(&mut self) {
        self.groups.push((self.plus.len() as u32, self.minus.len() as u32));
    }

    /// Ends the term. False when nothing can be left.
    #[inline]
    pub(super) fn end_term(&mut self) -> bool {
        let (plus, minus, first) = self.begun;
        let last = self.groups.len() as u32;
        let union_only = last == first + 1 && self.minus.len() == minus as usize;
        if union_only && self.plus.len() == plus as usize + 1 {
            let set = self.plus[plus as usize].set;
            if self.sets.is_all(set) {
                self.take_back();
                return true;
            }
            if let Some(row) = set.only() {
                self.take_back();
                return self.only.replace(row).is_none_or(|before| before == row);
            }
        }
        let plus_end = self.plus.len() as u32;
        let groups = if union_only { (0, 0) } else { (first, last) };
        let term = Term { plus, minus, groups, plus_end };
        self.terms.push(term);
        self.begun = (plus_end, self.minus.len() as u32, last);
        let sets = self.sets;
        self.top &= self.term(&term, |part| part.top, |part| sets.top_full(part.set));
        self.top != 0
    }

    /// The term need not be looked at again.
    #[inline]
    fn take_back(&mut self) {
        let (plus, _, groups) = self.begun;
        self.groups.truncate(groups as usize);
        self.plus.truncate(plus as usize);
    }

    /// A term at one place of one level.
    #[inline(always)]
    fn term(&self, term: &Term, plus: impl Fn(&Part) -> u64, minus: impl Fn(&Part) -> u64) -> u64 {
        let mut union = 0;
        if term.groups.1 == 0 {
            for part in &self.plus[term.plus as usize..term.plus_end as usize] {
                union |= plus(part);
            }
            return union;
        }
        let (mut at_plus, mut at_minus) = (term.plus as usize, term.minus as usize);
        for ends in &self.groups[term.groups.0 as usize..term.groups.1 as usize] {
            let mut some = 0;
            for part in &self.plus[at_plus..ends.0 as usize] {
                some |= plus(part);
            }
            for part in &self.minus[at_minus..ends.1 as usize] {
                some &= !minus(part);
            }
            union |= some;
            (at_plus, at_minus) = (ends.0 as usize, ends.1 as usize);
        }
        union
    }

    /// The intersection of all terms at one place of one level.
    #[inline(always)]
    fn intersect(&self, plus: impl Fn(&Part) -> u64, minus: impl Fn(&Part) -> u64) -> u64 {
        let mut left = u64::MAX;
        for term in &self.terms {
            left &= self.term(term, &plus, &minus);
            if left == 0 {
                return 0;
            }
        }
        left
    }

    /// Looks into a block.
    #[inline]
    fn enter(&mut self, top: u32) {
        let sets = self.sets;
        for part in self.plus.iter_mut().chain(&mut self.minus) {
            part.level = if has(part.top, top) { sets.level(part.set, top) } else { Level::default() };
        }
    }

    #[inline]
    fn word(&self, middle: u32) -> u64 {
        let sets = self.sets;
        let word = |part: &Part| sets.word_of(&part.level, middle);
        self.intersect(word, word)
    }

    /// Calls for every row of the intersection, in order, until told to stop.
    #[inline]
    pub(super) fn each(
        &mut self,
        dead: Option<(&Sets, SetRef)>,
        mut with: impl FnMut(u32) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let alive = |row: u32| dead.is_none_or(|(sets, dead)| !sets.holds(dead, row));
        if let Some(row) = self.only {
            self.enter(row >> 12);
            let there = has(self.word(row >> 6 & 63), row & 63) && alive(row);
            return if there { with(row) } else { ControlFlow::Continue(()) };
        }
        let mut tops = self.top;
        while tops != 0 {
            let top = tops.trailing_zeros();
            tops &= tops - 1;
            self.enter(top);
            // A block that is all dead is not worth looking into.
            let dead_level = dead.map(|(sets, set)| sets.level(set, top)).unwrap_or_default();
            let mut middles =
                self.intersect(|part| part.level.some, |part| part.level.full) & !dead_level.full;
            while middles != 0 {
                let middle = middles.trailing_zeros();
                middles &= middles - 1;
                let mut word = self.word(middle);
                if let Some((sets, _)) = dead {
                    word &= !sets.word_of(&dead_level, middle);
                }
                while word != 0 {
                    let row = (top << 6 | middle) << 6 | word.trailing_zeros();
                    word &= word - 1;
                    if row >= self.rows {
                        return ControlFlow::Continue(());
                    }
                    with(row)?;
                }
            }
        }
        ControlFlow::Continue(())
    }
}
