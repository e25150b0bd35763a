// SPDX-License-Identifier: Apache-2.0
//! Sets of small numbers: classes of an attribute's values.

/// A set of numbers below a size that is the same for all sets of one dimension.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Bits(Box<[u64]>);

impl Bits {
    pub(crate) fn none(size: usize) -> Self {
        Self(vec![0; size.div_ceil(64)].into())
    }

    pub(crate) fn all(size: usize) -> Self {
        let mut bits = Self(vec![u64::MAX; size.div_ceil(64)].into());
        if let (Some(last), rest @ 1..) = (bits.0.last_mut(), size % 64) {
            *last = (1 << rest) - 1;
        }
        bits
    }

    pub(crate) fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    pub(crate) fn has(&self, index: usize) -> bool {
        self.0[index / 64] & (1 << (index % 64)) != 0
    }

    /// The smallest member.
    pub(crate) fn first(&self) -> Option<usize> {
        let (word, bits) = self.0.iter().enumerate().find(|(_, w)| **w != 0)?;
        Some(word * 64 + bits.trailing_zeros() as usize)
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(word, bits)| {
            (0..64).filter(move |bit| bits & (1u64 << bit) != 0).map(move |bit| word * 64 + bit)
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|w| *w == 0)
    }

    pub(crate) fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(a, b)| a & b != 0)
    }

    pub(crate) fn within(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a & !b == 0)
    }

    pub(crate) fn keep(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a &= b);
    }

    pub(crate) fn remove(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a &= !b);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a |= b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_over_word_borders() {
        for size in [1, 63, 64, 65, 130] {
            let all = Bits::all(size);
            assert_eq!(all.members().count(), size);
            let mut some = Bits::none(size);
            some.insert(size - 1);
            assert!(some.has(size - 1) && some.first() == Some(size - 1) && some.within(&all));
            let mut rest = all.clone();
            rest.remove(&some);
            assert!(!rest.meets(&some) && rest.members().count() == size - 1);
            rest.add(&some);
            assert_eq!(rest, all);
            rest.keep(&Bits::none(size));
            assert!(rest.is_empty());
        }
    }
}
