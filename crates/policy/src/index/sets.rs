// SPDX-License-Identifier: Apache-2.0
//! Sets of rows as trees of 64-bit words, three levels high, and the first row that lies in the intersection of several.
//!
//! A level says which parts of the level below hold anything, and which hold everything, so that neither nothing nor
//! everything costs memory or time. One word at the top stands for [`MAX_ROWS`] rows.

use std::ops::ControlFlow;

use hashbrown::HashMap;
use smallvec::SmallVec;

/// Rows of one index at most.
pub(crate) const MAX_ROWS: u32 = 1 << 18;

const NONE: u32 = u32::MAX;
const ONE: u32 = 1 << 31;

/// A set: none, one row, or a tree of [`Sets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SetRef(u32);

impl SetRef {
    /// The empty set.
    pub(crate) const EMPTY: Self = Self(NONE);
}

#[derive(Clone, Copy, Debug)]
struct Tree {
    /// Blocks that hold a row.
    some: u64,
    /// Blocks that hold every row.
    full: u64,
    /// The first of the blocks that hold some but not all.
    blocks: u32,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    some: u64,
    full: u64,
    words: u32,
}

/// Where sets live.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sets {
    trees: Vec<Tree>,
    blocks: Vec<Block>,
    words: Vec<u64>,
}

/// How many of the bits below `bit` are set.
fn rank(word: u64, bit: u32) -> usize {
    (word & ((1u64 << bit) - 1)).count_ones() as usize
}

fn has(word: u64, bit: u32) -> bool {
    word >> bit & 1 == 1
}

impl Sets {
    fn tree(&self, set: SetRef) -> &Tree {
        &self.trees[set.0 as usize]
    }

    /// Blocks that hold a row of the set.
    fn top(&self, set: SetRef) -> u64 {
        match set.0 {
            NONE => 0,
            one if one & ONE != 0 => 1 << ((one & !ONE) >> 12),
            _ => self.tree(set).some,
        }
    }

    fn top_full(&self, set: SetRef) -> u64 {
        if set.0 & ONE != 0 { 0 } else { self.tree(set).full }
    }

    fn block(&self, set: SetRef, top: u32) -> Option<&Block> {
        let tree = self.tree(set);
        has(tree.some, top).then(|| &self.blocks[tree.blocks as usize + rank(tree.some & !tree.full, top)])
    }

    /// Words of a block that hold a row of the set.
    fn middle(&self, set: SetRef, top: u32) -> u64 {
        if set.0 & ONE != 0 {
            let row = set.0 & !ONE;
            return if set.0 != NONE && row >> 12 == top { 1 << (row >> 6 & 63) } else { 0 };
        }
        if has(self.tree(set).full, top) {
            return u64::MAX;
        }
        self.block(set, top).map_or(0, |block| block.some)
    }

    fn middle_full(&self, set: SetRef, top: u32) -> u64 {
        if set.0 & ONE != 0 {
            return 0;
        }
        if has(self.tree(set).full, top) {
            return u64::MAX;
        }
        self.block(set, top).map_or(0, |block| block.full)
    }

    /// Rows of a word that are in the set.
    fn word(&self, set: SetRef, top: u32, middle: u32) -> u64 {
        if set.0 & ONE != 0 {
            let row = set.0 & !ONE;
            return if set.0 != NONE && row >> 6 == (top << 6 | middle) { 1 << (row & 63) } else { 0 };
        }
        if has(self.tree(set).full, top) {
            return u64::MAX;
        }
        let Some(block) = self.block(set, top) else { return 0 };
        if has(block.full, middle) {
            return u64::MAX;
        }
        if !has(block.some, middle) {
            return 0;
        }
        self.words[block.words as usize + rank(block.some & !block.full, middle)]
    }

    /// Bytes on the heap.
    pub(crate) fn heap(&self) -> usize {
        self.trees.capacity() * size_of::<Tree>()
            + self.blocks.capacity() * size_of::<Block>()
            + self.words.capacity() * size_of::<u64>()
    }

    fn shrink(&mut self) {
        self.trees.shrink_to_fit();
        self.blocks.shrink_to_fit();
        self.words.shrink_to_fit();
    }
}

/// Fills [`Sets`]; equal sets are kept once.
#[derive(Debug)]
pub(crate) struct SetsBuilder {
    sets: Sets,
    rows: u32,
    known: HashMap<Box<[u32]>, SetRef>,
}

impl SetsBuilder {
    /// For sets of the rows below `rows`.
    pub(crate) fn new(rows: u32) -> Self {
        Self { sets: Sets::default(), rows, known: HashMap::new() }
    }

    /// The set of some rows, in order.
    pub(crate) fn set(&mut self, mut rows: Vec<u32>) -> SetRef {
        rows.dedup();
        match rows.as_slice() {
            [] => return SetRef::EMPTY,
            [one] => return SetRef(ONE | one),
            _ => {}
        }
        if let Some(known) = self.known.get(rows.as_slice()) {
            return *known;
        }
        let set = self.tree(&rows, false);
        self.known.insert(rows.into(), set);
        set
    }

    /// The set of all rows but some, in order.
    pub(crate) fn all_but(&mut self, rows: &[u32]) -> SetRef {
        if rows.len() == self.rows as usize { SetRef::EMPTY } else { self.tree(rows, true) }
    }

    fn tree(&mut self, rows: &[u32], inverse: bool) -> SetRef {
        let mut rest = rows;
        let mut tree = Tree { some: 0, full: 0, blocks: self.sets.blocks.len() as u32 };
        for top in 0..self.rows.div_ceil(1 << 12) {
            let mut block = Block { some: 0, full: 0, words: self.sets.words.len() as u32 };
            for middle in 0..64 {
                match self.take_word(&mut rest, (top << 6 | middle) << 6, inverse) {
                    // No such rows: they keep nothing from being full.
                    None => block.full |= 1 << middle,
                    Some(0) => {}
                    Some(u64::MAX) => {
                        block.some |= 1 << middle;
                        block.full |= 1 << middle;
                    }
                    Some(word) => {
                        block.some |= 1 << middle;
                        self.sets.words.push(word);
                    }
                }
            }
            if block.some != 0 {
                tree.some |= 1 << top;
            }
            if block.full == u64::MAX {
                tree.full |= 1 << top;
            } else if block.some != 0 {
                self.sets.blocks.push(block);
            }
        }
        self.sets.trees.push(tree);
        SetRef(self.sets.trees.len() as u32 - 1)
    }

    /// The word that begins at a row; none beyond the rows. Bits of a last word that stand for no row are set when all
    /// others are: nobody asks for them, and the word is full.
    fn take_word(&self, rest: &mut &[u32], first: u32, inverse: bool) -> Option<u64> {
        let there = self.rows.checked_sub(first).filter(|there| *there > 0)?;
        let mut word = 0u64;
        while let [row, after @ ..] = *rest
            && *row < first + 64
        {
            word |= 1 << (row - first);
            *rest = after;
        }
        let valid = if there >= 64 { u64::MAX } else { (1 << there) - 1 };
        let word = if inverse { !word & valid } else { word };
        Some(if word == valid { u64::MAX } else { word })
    }

    /// The sets.
    pub(crate) fn build(mut self) -> Sets {
        self.sets.shrink();
        self.sets
    }
}

#[derive(Clone, Copy, Debug)]
struct Part {
    set: SetRef,
    top: u64,
}

/// An intersection of terms; a term is a union of groups; a group is a union of sets less a union of others.
#[derive(Debug)]
pub(crate) struct Query<'s> {
    sets: &'s Sets,
    plus: SmallVec<[Part; 64]>,
    minus: SmallVec<[Part; 32]>,
    /// Ends in `plus` and `minus`.
    groups: SmallVec<[(u32, u32); 32]>,
    /// Ends in `groups`.
    terms: SmallVec<[u32; 32]>,
    /// Blocks that can hold a row of the intersection so far.
    top: u64,
}

impl<'s> Query<'s> {
    /// All of `rows` rows.
    pub(crate) fn new(sets: &'s Sets, rows: u32) -> Self {
        let blocks = rows.div_ceil(1 << 12);
        let top = if blocks >= 64 { u64::MAX } else { (1 << blocks) - 1 };
        Self {
            sets,
            plus: SmallVec::new(),
            minus: SmallVec::new(),
            groups: SmallVec::new(),
            terms: SmallVec::new(),
            top,
        }
    }

    /// Adds a set to the group.
    #[inline]
    pub(crate) fn plus(&mut self, set: SetRef) {
        if set != SetRef::EMPTY {
            self.plus.push(Part { set, top: self.sets.top(set) });
        }
    }

    /// Takes a set from the group.
    #[inline]
    pub(crate) fn minus(&mut self, set: SetRef) {
        if set != SetRef::EMPTY {
            self.minus.push(Part { set, top: self.sets.top(set) });
        }
    }

    /// Ends the group.
    #[inline]
    pub(crate) fn end_group(&mut self) {
        self.groups.push((self.plus.len() as u32, self.minus.len() as u32));
    }

    /// Ends the term. False when nothing can be left.
    #[inline]
    pub(crate) fn end_term(&mut self) -> bool {
        let first = self.terms.last().map_or(0, |end| *end as usize);
        let (mut plus, mut minus) = first.checked_sub(1).map_or((0, 0), |before| self.groups[before]);
        let mut union = 0;
        for (plus_end, minus_end) in &self.groups[first..] {
            let mut some = 0;
            for part in &self.plus[plus as usize..*plus_end as usize] {
                some |= part.top;
            }
            for part in &self.minus[minus as usize..*minus_end as usize] {
                some &= !self.sets.top_full(part.set);
            }
            union |= some;
            (plus, minus) = (*plus_end, *minus_end);
        }
        self.terms.push(self.groups.len() as u32);
        self.top &= union;
        self.top != 0
    }

    /// The intersection of all terms at one place of one level.
    #[inline]
    fn level(&self, all: u64, plus: impl Fn(&Part) -> u64, minus: impl Fn(&Part) -> u64) -> u64 {
        let mut left = all;
        let (mut at_plus, mut at_minus, mut group) = (0, 0, 0);
        for end in &self.terms {
            let mut union = 0;
            for ends in &self.groups[group..*end as usize] {
                let mut some = 0;
                for part in &self.plus[at_plus..ends.0 as usize] {
                    some |= plus(part);
                }
                for part in &self.minus[at_minus..ends.1 as usize] {
                    if some == 0 {
                        break;
                    }
                    some &= !minus(part);
                }
                union |= some;
                (at_plus, at_minus) = (ends.0 as usize, ends.1 as usize);
            }
            group = *end as usize;
            left &= union;
            if left == 0 {
                return 0;
            }
        }
        left
    }

    /// Calls for every row of the intersection, in order, until told to stop.
    #[inline]
    pub(crate) fn each(
        &self,
        rows: u32,
        dead: Option<(&Sets, SetRef)>,
        mut with: impl FnMut(u32) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let sets = self.sets;
        let mut tops = self.top;
        while tops != 0 {
            let top = tops.trailing_zeros();
            tops &= tops - 1;
            let mut middles = self.level(
                u64::MAX,
                |part| if has(part.top, top) { sets.middle(part.set, top) } else { 0 },
                |part| if has(part.top, top) { sets.middle_full(part.set, top) } else { 0 },
            );
            while middles != 0 {
                let middle = middles.trailing_zeros();
                middles &= middles - 1;
                let mut word = self.level(
                    u64::MAX,
                    |part| if has(part.top, top) { sets.word(part.set, top, middle) } else { 0 },
                    |part| if has(part.top, top) { sets.word(part.set, top, middle) } else { 0 },
                );
                if let Some((sets, dead)) = dead {
                    word &= !sets.word(dead, top, middle);
                }
                while word != 0 {
                    let row = (top << 6 | middle) << 6 | word.trailing_zeros();
                    word &= word - 1;
                    if row >= rows {
                        return ControlFlow::Continue(());
                    }
                    with(row)?;
                }
            }
        }
        ControlFlow::Continue(())
    }
}
