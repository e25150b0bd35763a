// SPDX-License-Identifier: Apache-2.0
//! Sets of rows as trees of 64-bit words, three levels high.
//!
//! A level says which parts of the level below hold anything, and which hold everything, so that neither nothing nor
//! everything costs memory or time. One word at the top stands for [`MAX_ROWS`] rows.

use hashbrown::HashMap;

use super::Post;
use super::key::Rows;

/// Rows of one index at most.
pub(crate) const MAX_ROWS: u32 = 1 << 18;

const NONE: u32 = u32::MAX;
const ONE: u32 = 1 << 31;

/// A set: none, one row, or a tree of [`Sets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SetRef(u32);

impl SetRef {
    /// The empty set.
    pub(super) const EMPTY: Self = Self(NONE);

    /// The row of a set of one.
    #[inline]
    pub(super) fn only(self) -> Option<u32> {
        (self.0 & ONE != 0 && self.0 != NONE).then_some(self.0 & !ONE)
    }
}

/// What a set holds of one block.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Level {
    /// Words that hold a row.
    pub(super) some: u64,
    /// Words that hold every row.
    pub(super) full: u64,
    /// Where the words that hold some are; of a set of one row, its bit in the word.
    words: u32,
}

#[derive(Clone, Copy, Debug)]
struct Tree {
    /// Blocks that hold a row.
    some: u64,
    /// Blocks that hold every row.
    full: u64,
    /// The first of the blocks that hold some but not all.
    blocks: u32,
    /// Every row is in it.
    all: bool,
}

/// Where sets live.
#[derive(Clone, Debug, Default)]
pub(super) struct Sets {
    trees: Vec<Tree>,
    blocks: Vec<Level>,
    words: Vec<u64>,
}

/// How many of the bits below `bit` are set.
fn rank(word: u64, bit: u32) -> usize {
    (word & ((1u64 << bit) - 1)).count_ones() as usize
}

#[inline]
pub(super) fn has(word: u64, bit: u32) -> bool {
    word >> bit & 1 == 1
}

impl Sets {
    fn tree(&self, set: SetRef) -> &Tree {
        &self.trees[set.0 as usize]
    }

    /// Blocks that hold a row of the set.
    #[inline]
    pub(super) fn top(&self, set: SetRef) -> u64 {
        match set.only() {
            Some(row) => 1 << (row >> 12),
            None if set == SetRef::EMPTY => 0,
            None => self.tree(set).some,
        }
    }

    /// Blocks that hold nothing but rows of the set.
    #[inline]
    pub(super) fn top_full(&self, set: SetRef) -> u64 {
        if set.0 & ONE != 0 { 0 } else { self.tree(set).full }
    }

    /// Whether every row is in the set.
    #[inline]
    pub(super) fn is_all(&self, set: SetRef) -> bool {
        set.0 & ONE == 0 && self.tree(set).all
    }

    /// What the set holds of a block.
    #[inline]
    pub(super) fn level(&self, set: SetRef, top: u32) -> Level {
        if let Some(row) = set.only() {
            let some = if row >> 12 == top { 1 << (row >> 6 & 63) } else { 0 };
            return Level { some, full: 0, words: ONE | row & 63 };
        }
        if set == SetRef::EMPTY {
            return Level::default();
        }
        let tree = self.tree(set);
        if has(tree.full, top) {
            return Level { some: u64::MAX, full: u64::MAX, words: 0 };
        }
        if has(tree.some, top) {
            self.blocks[tree.blocks as usize + rank(tree.some & !tree.full, top)]
        } else {
            Level::default()
        }
    }

    /// Rows of a word that are in the set whose level this is.
    #[inline]
    pub(super) fn word_of(&self, level: &Level, middle: u32) -> u64 {
        if has(level.full, middle) {
            return u64::MAX;
        }
        if !has(level.some, middle) {
            return 0;
        }
        if level.words & ONE != 0 {
            return 1 << (level.words & 63);
        }
        self.words[level.words as usize + rank(level.some & !level.full, middle)]
    }

    /// Whether a row is in the set.
    pub(super) fn holds(&self, set: SetRef, row: u32) -> bool {
        has(self.word_of(&self.level(set, row >> 12), row >> 6 & 63), row & 63)
    }

    /// Bytes on the heap.
    pub(super) fn heap(&self) -> usize {
        self.trees.capacity() * size_of::<Tree>()
            + self.blocks.capacity() * size_of::<Level>()
            + self.words.capacity() * size_of::<u64>()
    }

    fn shrink(&mut self) {
        self.trees.shrink_to_fit();
        self.blocks.shrink_to_fit();
        self.words.shrink_to_fit();
    }
}

/// Rows that values may have of those above them put together, for each row of the index: what one look-up then saves
/// costs memory, and whoever writes many values inside of each other must not get it without a bound.
const GATHERED: usize = 64;

/// Fills [`Sets`]; equal sets are kept once.
#[derive(Debug)]
pub(super) struct SetsBuilder {
    sets: Sets,
    rows: u32,
    /// Rows that may still be gathered.
    room: usize,
    known: HashMap<Box<[u32]>, SetRef>,
}

impl SetsBuilder {
    /// For sets of the rows below `rows`.
    pub(super) fn new(rows: u32) -> Self {
        let room = GATHERED * rows as usize;
        Self { sets: Sets::default(), rows, room, known: HashMap::new() }
    }

    /// Gives a value the rows of those above it, the nearest first, up to one that has its own already (`true`). False
    /// when there is no room.
    pub(super) fn gather<'a>(
        &mut self,
        own: &mut Rows,
        above: impl Iterator<Item = (&'a Rows, bool)> + Clone,
    ) -> bool {
        let mut size = 0;
        for (rows, whole) in above.clone() {
            size += rows.plus.len() + rows.minus.len();
            if whole {
                break;
            }
        }
        let Some(room) = self.room.checked_sub(size) else { return false };
        self.room = room;
        for (rows, whole) in above {
            own.plus.extend(&rows.plus);
            own.minus.extend(&rows.minus);
            if whole {
                break;
            }
        }
        own.plus.sort_unstable();
        own.minus.sort_unstable();
        own.plus.dedup();
        own.minus.dedup();
        true
    }

    /// The sets of a value's rows.
    pub(super) fn post(&mut self, rows: Rows) -> Post {
        Post { plus: self.set(rows.plus), minus: self.set(rows.minus) }
    }

    /// The set of some rows, in order.
    pub(super) fn set(&mut self, mut rows: Vec<u32>) -> SetRef {
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
    pub(super) fn all_but(&mut self, rows: &[u32]) -> SetRef {
        if rows.len() == self.rows as usize { SetRef::EMPTY } else { self.tree(rows, true) }
    }

    fn tree(&mut self, rows: &[u32], inverse: bool) -> SetRef {
        let mut rest = rows;
        let mut tree = Tree { some: 0, full: 0, blocks: self.sets.blocks.len() as u32, all: false };
        for top in 0..self.rows.div_ceil(1 << 12) {
            let mut block = Level { some: 0, full: 0, words: self.sets.words.len() as u32 };
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
        tree.all = (0..self.rows.div_ceil(1 << 12)).all(|top| has(tree.full, top));
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
    pub(super) fn build(mut self) -> Sets {
        self.sets.shrink();
        self.sets
    }
}
