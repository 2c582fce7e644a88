use smallvec::{SmallVec, smallvec};

use crate::frame::Run;
use crate::{BlockIndex, Layout};

/// The bits of the blocks of 64 MiB lie in the set itself: a look at them costs no further cache line.
type Words = SmallVec<[u64; 4]>;

/// A set of blocks of one blob: a bitmap of at most 8,192 bits.
#[derive(Clone, PartialEq, Eq)]
pub struct BlockSet {
    words: Words,
    of: u32,
    count: u32,
}

impl BlockSet {
    /// The empty set over the blocks of a layout.
    pub fn empty(layout: Layout) -> Self {
        Self { words: smallvec![0; layout.blocks().div_ceil(64) as usize], of: layout.blocks(), count: 0 }
    }

    /// All blocks of a layout.
    pub fn full(layout: Layout) -> Self {
        let of = layout.blocks();
        let mut words: Words = smallvec![u64::MAX; of.div_ceil(64) as usize];
        if let (Some(last), 1..) = (words.last_mut(), of % 64) {
            *last = (1 << (of % 64)) - 1;
        }
        Self { words, of, count: of }
    }

    /// How many blocks are in.
    #[inline]
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// Whether no block is in.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether every block of the blob is in.
    #[inline]
    pub const fn is_full(&self) -> bool {
        self.count == self.of
    }

    /// Whether the block is in; false past the end.
    #[inline]
    pub fn contains(&self, block: BlockIndex) -> bool {
        block < self.of && self.words[(block / 64) as usize] >> (block % 64) & 1 == 1
    }

    /// Puts a block in. True when it was not in; false, without effect, past the end.
    #[inline]
    pub fn insert(&mut self, block: BlockIndex) -> bool {
        if block >= self.of || self.contains(block) {
            return false;
        }
        self.words[(block / 64) as usize] |= 1 << (block % 64);
        self.count += 1;
        true
    }

    /// Takes a block out. True when it was in.
    pub fn remove(&mut self, block: BlockIndex) -> bool {
        let had = self.contains(block);
        if had {
            self.words[(block / 64) as usize] &= !(1 << (block % 64));
            self.count -= 1;
        }
        had
    }

    /// Puts a run in, cut at the end of the blob.
    pub fn insert_run(&mut self, run: Run) {
        for block in run.first..run.blocks().end.min(self.of) {
            self.insert(block);
        }
    }

    /// The blocks of this set that are not in `other`, which is of the same blob.
    pub fn minus(&self, other: &Self) -> Self {
        let words: Words = self.words.iter().zip(&other.words).map(|(here, there)| here & !there).collect();
        let count = words.iter().map(|word| word.count_ones()).sum();
        Self { words, of: self.of, count }
    }

    /// Whether this set has a block that is not in `other`, which is of the same blob.
    pub fn exceeds(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).any(|(here, there)| here & !there != 0)
    }

    /// Whether a block of this set is in `both` too, and in neither of `but`; all are of the same blob.
    pub fn shares(&self, both: &Self, but: [&Self; 2]) -> bool {
        let rest = but[0].words.iter().zip(&but[1].words);
        self.words.iter().zip(&both.words).zip(rest).any(|((here, there), (one, two))| here & there & !(one | two) != 0)
    }

    /// Whether every block of the blob is in this set or in `other`.
    pub fn is_full_with(&self, other: &Self) -> bool {
        // Most sets are far from it.
        self.count + other.count >= self.of
            && self.words.iter().zip(&other.words).map(|(here, there)| (here | there).count_ones()).sum::<u32>()
                == self.of
    }

    /// The blocks of a run as bits, the first one lowest. The run has at most 64 blocks and lies inside the blob.
    #[inline]
    pub fn bits(&self, run: Run) -> u64 {
        let (at, shift) = ((run.first / 64) as usize, run.first % 64);
        let mut bits = self.words[at] >> shift;
        if shift + run.count > 64 {
            bits |= self.words[at + 1] << (64 - shift);
        }
        if run.count < 64 { bits & ((1 << run.count) - 1) } else { bits }
    }

    /// The first block from `from` on that is not in; the number of blocks when all are.
    pub fn first_missing(&self, from: BlockIndex) -> BlockIndex {
        let mut block = from;
        while block < self.of {
            let word = !self.words[(block / 64) as usize] >> (block % 64);
            if word != 0 {
                return (block + word.trailing_zeros()).min(self.of);
            }
            block = (block / 64 + 1) * 64;
        }
        self.of
    }

    /// The first block from `from` on that is in; the number of blocks when none is.
    pub fn first_present(&self, from: BlockIndex) -> BlockIndex {
        let mut block = from;
        while block < self.of {
            let word = self.words[(block / 64) as usize] >> (block % 64);
            if word != 0 {
                return block + word.trailing_zeros();
            }
            block = (block / 64 + 1) * 64;
        }
        self.of
    }

    /// The set as runs, in order.
    pub fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let mut first = self.first_present(0);
        while first < self.of {
            let end = self.first_missing(first);
            runs.push(Run { first, count: end - first });
            first = self.first_present(end);
        }
        runs
    }
}

impl std::fmt::Debug for BlockSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockSet({} of {})", self.count, self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn is_a_set_of_numbers(blocks in 0u64..300, take in proptest::collection::btree_set(0u32..320, 0..100)) {
            let layout = Layout::of(blocks * (256 << 10)).unwrap();
            let mut set = BlockSet::empty(layout);
            for block in &take {
                prop_assert_eq!(set.insert(*block), u64::from(*block) < blocks);
            }
            let inside: Vec<u32> = take.iter().copied().filter(|b| u64::from(*b) < blocks).collect();
            prop_assert_eq!(set.len() as usize, inside.len());
            for first in 0..layout.blocks() {
                let run = Run { first, count: (layout.blocks() - first).min(1 + first % 64) };
                let want = run.blocks().filter(|b| inside.contains(b)).fold(0, |bits, b| bits | 1u64 << (b - first));
                prop_assert_eq!(set.bits(run), want);
                let want = (first..layout.blocks()).find(|b| inside.contains(b)).unwrap_or(layout.blocks());
                prop_assert_eq!(set.first_present(first), want);
            }
            let rest = BlockSet::full(layout).minus(&set);
            let mut one_by_one = BlockSet::empty(layout);
            one_by_one.insert_run(Run { first: 0, count: layout.blocks() });
            prop_assert_eq!(&one_by_one, &BlockSet::full(layout));
            prop_assert_eq!(BlockSet::full(layout).exceeds(&set), !set.is_full());
            prop_assert!(!set.exceeds(&BlockSet::full(layout)) && !set.exceeds(&set));
            prop_assert_eq!(rest.len() + set.len(), layout.blocks());
            let (all, none) = (BlockSet::full(layout), BlockSet::empty(layout));
            prop_assert_eq!(all.shares(&set, [&none, &none]), !set.is_empty());
            prop_assert_eq!(all.shares(&all, [&set, &none]), !rest.is_empty());
            prop_assert!(set.is_full_with(&rest) && rest.is_full_with(&set));
            prop_assert_eq!(set.is_full_with(&none), set.is_full());
            prop_assert!(!all.shares(&all, [&rest, &set]) && !rest.shares(&set, [&none, &none]));
            prop_assert!(inside.iter().all(|b| !rest.contains(*b)));
            let from_runs: Vec<u32> = set.runs().iter().flat_map(Run::blocks).collect();
            prop_assert_eq!(&from_runs, &inside);
            for from in 0..layout.blocks() {
                let want = (from..layout.blocks()).find(|b| !inside.contains(b)).unwrap_or(layout.blocks());
                prop_assert_eq!(set.first_missing(from), want);
            }
            prop_assert_eq!(BlockSet::full(layout).len(), layout.blocks());
        }
    }
}
