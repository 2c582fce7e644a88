use crate::{BlockIndex, BlockSet, Layout};

/// The BLAKE3 hash of one block, or the root of a piece list.
pub type Hash = [u8; 32];

/// Separates roots from every other use of BLAKE3. It may never change.
const ROOT_CONTEXT: &str = "shoal 2026-11 piece list root v1";

/// The BLAKE3 hash of every block of a blob, known in part while its author still reads.
///
/// Who vouches for it is not stored here: whoever keeps a list keeps its author beside it.
#[derive(Clone, PartialEq, Eq)]
pub struct PieceList {
    layout: Layout,
    hashes: Vec<Option<Hash>>,
    known: BlockSet,
}

/// A part that does not fit a list: past the end, not whole hashes, or another hash than before for the same block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("piece list part does not fit at block {0}")]
pub struct Conflict(pub BlockIndex);

impl PieceList {
    /// A list of which nothing is known.
    pub fn new(layout: Layout) -> Self {
        Self { layout, hashes: vec![None; layout.blocks() as usize], known: BlockSet::empty(layout) }
    }

    /// How the blob is cut.
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// How many hashes are known.
    pub const fn known(&self) -> u32 {
        self.known.len()
    }

    /// The blocks whose hashes are known.
    pub const fn known_blocks(&self) -> &BlockSet {
        &self.known
    }

    /// Whether every hash is known.
    pub const fn is_complete(&self) -> bool {
        self.known.is_full()
    }

    /// The hash of a block, when known.
    pub fn get(&self, block: BlockIndex) -> Option<&Hash> {
        self.hashes.get(block as usize)?.as_ref()
    }

    /// Takes the hash of one block. Saying the same twice is fine.
    ///
    /// # Errors
    /// [`Conflict`] when the block does not exist or has another hash; nothing is changed then.
    pub fn set(&mut self, block: BlockIndex, hash: Hash) -> Result<(), Conflict> {
        let slot = self.hashes.get_mut(block as usize).ok_or(Conflict(block))?;
        match slot {
            Some(known) if *known != hash => Err(Conflict(block)),
            Some(_) => Ok(()),
            None => {
                *slot = Some(hash);
                self.known.insert(block);
                Ok(())
            }
        }
    }

    /// Takes a run of hashes, `bytes` being n times 32 bytes, for the blocks `first..first + n`.
    ///
    /// # Errors
    /// [`Conflict`] at the first block that does not fit; the blocks before it are kept.
    pub fn set_run(&mut self, first: BlockIndex, bytes: &[u8]) -> Result<(), Conflict> {
        let (hashes, rest) = bytes.as_chunks::<32>();
        if !rest.is_empty() {
            return Err(Conflict(first));
        }
        for (at, hash) in hashes.iter().enumerate() {
            let block = u32::try_from(at).ok().and_then(|at| first.checked_add(at)).ok_or(Conflict(first))?;
            self.set(block, *hash)?;
        }
        Ok(())
    }

    /// The known hashes as runs: first block, and n times 32 bytes. At most `most` hashes a run.
    pub fn runs(&self, most: usize) -> Vec<(BlockIndex, Vec<u8>)> {
        let mut runs: Vec<(BlockIndex, Vec<u8>)> = Vec::new();
        let mut open = false;
        for (block, hash) in self.hashes.iter().enumerate() {
            let Some(hash) = hash else {
                open = false;
                continue;
            };
            match runs.last_mut().filter(|(_, bytes)| open && bytes.len() < most * 32) {
                Some((_, bytes)) => bytes.extend_from_slice(hash),
                None => runs.push((block as u32, hash.to_vec())),
            }
            open = true;
        }
        runs
    }

    /// What a complete list is recognised by: BLAKE3, in key derivation mode, over size and block size (64 bit, little
    /// endian) and all hashes in order. `None` while a hash is missing.
    pub fn root(&self) -> Option<Hash> {
        let mut hasher = blake3::Hasher::new_derive_key(ROOT_CONTEXT);
        hasher.update(&self.layout.size().to_le_bytes());
        hasher.update(&self.layout.block_size().to_le_bytes());
        for hash in &self.hashes {
            hasher.update(hash.as_ref()?);
        }
        Some(*hasher.finalize().as_bytes())
    }

    /// The hash of a block's bytes.
    pub fn hash(bytes: &[u8]) -> Hash {
        *blake3::hash(bytes).as_bytes()
    }
}

impl std::fmt::Debug for PieceList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PieceList({} of {} blocks)", self.known(), self.layout.blocks())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(blocks: u64) -> PieceList {
        PieceList::new(Layout::of(blocks * (256 << 10)).unwrap())
    }

    #[test]
    fn a_part_may_repeat_but_not_contradict() {
        let mut list = list(3);
        list.set_run(1, &[7; 64]).unwrap();
        list.set_run(1, &[7; 32]).unwrap();
        assert_eq!(list.known(), 2);
        assert_eq!(list.set(2, [8; 32]), Err(Conflict(2)));
        assert_eq!(list.set_run(2, &[7; 64]), Err(Conflict(3)));
        assert_eq!(list.set_run(0, &[7; 33]), Err(Conflict(0)));
        assert_eq!(list.set_run(u32::MAX, &[7; 64]), Err(Conflict(u32::MAX)));
    }

    #[test]
    fn runs_rebuild_the_list() {
        let mut list = list(9);
        for block in [0, 1, 2, 5, 6, 8] {
            list.set(block, [block as u8; 32]).unwrap();
        }
        let runs = list.runs(2);
        assert_eq!(
            runs.iter().map(|(first, bytes)| (*first, bytes.len() / 32)).collect::<Vec<_>>(),
            [(0, 2), (2, 1), (5, 2), (8, 1)]
        );
        let mut copy = PieceList::new(list.layout());
        for (first, bytes) in runs {
            copy.set_run(first, &bytes).unwrap();
        }
        assert_eq!(copy, list);
    }

    #[test]
    fn the_root_needs_every_hash_and_binds_the_size() {
        let mut two = list(2);
        two.set(0, [1; 32]).unwrap();
        assert_eq!(two.root(), None);
        two.set(1, [2; 32]).unwrap();
        let mut shorter = PieceList::new(Layout::of(2 * (256 << 10) - 1).unwrap());
        shorter.set_run(0, &[[1; 32], [2; 32]].concat()).unwrap();
        assert_ne!(two.root().unwrap(), shorter.root().unwrap());
    }
}
