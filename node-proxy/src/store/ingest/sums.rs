//! The hashes of bytes that come in order: SHA-256 of the whole, BLAKE3 of every block.

use sha2::{Digest as _, Sha256};
use shoal_proto::{Digest, Hash, Layout, PieceList};

/// Hashes of what came so far.
#[derive(Clone)]
pub(in crate::store) struct Sums {
    whole: Sha256,
    cut: Cut,
}

/// Hashes of blocks of one size.
#[derive(Clone)]
pub(in crate::store) struct Cut {
    block_size: u64,
    /// Of the blocks that are full.
    blocks: Vec<Hash>,
    block: blake3::Hasher,
    /// Bytes in `block`, below the size of one.
    filled: u64,
}

impl Sums {
    /// For a blob of `total` bytes; 0: not known.
    pub(in crate::store) fn new(total: u64) -> Self {
        Self { whole: Sha256::new(), cut: Cut::new(total) }
    }

    pub(in crate::store) fn update(&mut self, bytes: &[u8]) {
        self.whole.update(bytes);
        self.cut.update(bytes);
    }

    /// The digest of what came so far.
    pub(in crate::store) fn digest(&self) -> Digest {
        Digest::from_bytes(self.whole.clone().finalize().into())
    }

    /// The piece list of a blob that ends here. `None`: it is cut into other blocks than these.
    pub(in crate::store) fn list(&self, layout: Layout) -> Option<PieceList> {
        self.cut.list(layout)
    }

    /// Whether a blob of `size` bytes is cut into other blocks than these.
    pub(in crate::store) fn outgrown(&self, size: u64) -> bool {
        Layout::of(size).is_ok_and(|layout| layout.block_size() != self.cut.block_size)
    }

    /// Goes on with other blocks, into which all that came so far was cut again.
    pub(in crate::store) fn cut_anew(&mut self, cut: Cut) {
        self.cut = cut;
    }
}

impl Cut {
    /// As a blob of `size` bytes is cut; 0: not known.
    pub(in crate::store) fn new(size: u64) -> Self {
        let layout = Layout::of(size).or_else(|_| Layout::of(0));
        let block_size = layout.map_or(256 << 10, |layout| layout.block_size());
        Self { block_size, blocks: Vec::new(), block: blake3::Hasher::new(), filled: 0 }
    }

    pub(in crate::store) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = usize::try_from(self.block_size - self.filled).unwrap_or(usize::MAX);
            let (part, rest) = bytes.split_at(room.min(bytes.len()));
            self.block.update(part);
            self.filled += part.len() as u64;
            if self.filled == self.block_size {
                self.blocks.push(*self.block.finalize().as_bytes());
                self.block.reset();
                self.filled = 0;
            }
            bytes = rest;
        }
    }

    /// The piece list of a blob that ends here. `None`: it is cut into other blocks than these.
    pub(in crate::store) fn list(&self, layout: Layout) -> Option<PieceList> {
        if self.block_size != layout.block_size() {
            return None;
        }
        let mut list = PieceList::new(layout);
        let last = (self.filled > 0).then(|| *self.block.finalize().as_bytes());
        let blocks = self.blocks.iter().copied().chain(last);
        for (block, hash) in (0..).zip(blocks) {
            list.set(block, hash).ok()?;
        }
        list.is_complete().then_some(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_in_parts_have_the_hashes_of_the_whole(
            size in 0usize..1_200_000,
            cuts in proptest::collection::vec(1usize..300_000, 1..20),
        ) {
            let bytes: Vec<u8> = (0..size).map(|at| (at * 7 + at / 251) as u8).collect();
            let layout = Layout::of(size as u64).unwrap();
            let mut sums = Sums::new(size as u64);
            let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (part, after) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                sums.update(part);
                rest = after;
            }
            prop_assert_eq!(sums.digest(), Digest::from_bytes(Sha256::digest(&bytes).into()));
            let list = sums.list(layout).unwrap();
            for block in 0..layout.blocks() {
                let range = layout.block_range(block);
                let want = PieceList::hash(&bytes[range.start as usize..range.end as usize]);
                prop_assert_eq!(list.get(block), Some(&want));
            }
        }
    }

    #[test]
    fn blocks_of_another_size_make_no_list() {
        let mut sums = Sums::new(3 << 30);
        sums.update(&[0; 1 << 20]);
        assert!(sums.list(Layout::of(1 << 20).unwrap()).is_none());
    }

    #[test]
    fn who_did_not_know_how_much_would_come_cuts_it_anew_and_hashes_the_whole_once() {
        let (mut sums, bytes) = (Sums::new(0), vec![7; (1 << 20) + 3]);
        sums.update(&bytes);
        assert!(!sums.outgrown(2 << 30) && sums.outgrown((2 << 30) + 1));
        assert!(!sums.outgrown(u64::MAX), "what can't be cut at all stays as it is");
        let digest = sums.digest();
        let mut cut = Cut::new((2 << 30) + 1);
        cut.update(&bytes);
        sums.cut_anew(cut);
        assert!(!sums.outgrown((2 << 30) + 1));
        assert_eq!(sums.digest(), digest);
        let mut known = Sums::new((2 << 30) + 1);
        known.update(&bytes);
        assert_eq!((sums.cut.block_size, sums.cut.blocks), (known.cut.block_size, known.cut.blocks));
    }
}
