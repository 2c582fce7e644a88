//! The hashes of bytes that come in order: SHA-256 of the whole, BLAKE3 of every block.

use sha2::{Digest as _, Sha256};
use shoal_proto::{Digest, Hash, Layout, PieceList};

/// Hashes of what came so far.
#[derive(Clone)]
pub(in crate::store) struct Sums {
    whole: Sha256,
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
        let layout = Layout::of(total).or_else(|_| Layout::of(0));
        Self {
            whole: Sha256::new(),
            block_size: layout.map_or(256 << 10, |layout| layout.block_size()),
            blocks: Vec::new(),
            block: blake3::Hasher::new(),
            filled: 0,
        }
    }

    pub(in crate::store) fn update(&mut self, mut bytes: &[u8]) {
        self.whole.update(bytes);
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

    /// The digest of what came so far.
    pub(in crate::store) fn digest(&self) -> Digest {
        Digest::from_bytes(self.whole.clone().finalize().into())
    }

    /// The piece list of a blob that ends here. `None`: it is cut into other blocks than these.
    pub(in crate::store) fn list(&self, layout: Layout) -> Option<PieceList> {
        let mut list = PieceList::new(layout);
        let last = (self.filled > 0).then(|| *self.block.finalize().as_bytes());
        let blocks = self.blocks.iter().copied().chain(last);
        for (block, hash) in (0..).zip(blocks) {
            list.set(block, hash).ok()?;
        }
        (self.block_size == layout.block_size() && list.is_complete()).then_some(list)
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
}
