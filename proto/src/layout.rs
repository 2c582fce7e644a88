use std::ops::Range;

/// The block of a blob: what is hashed, checked, written, shown and passed on. Counted from 0.
pub type BlockIndex = u32;
/// A piece of a blob: a run of blocks, what is asked for at once. Counted from 0.
pub type PieceIndex = u32;

/// 256 KiB: small enough for cut-through to cost little (SWARM.md), large enough that frames and hashes cost little.
const SMALLEST_BLOCK: u64 = 256 << 10;
/// So that a piece list is never above 256 KiB, and a bitmap never above 1 KiB.
const MOST_BLOCKS: u64 = 8192;
/// So that one frame fits a bounded buffer. Reached at 256 GiB; a larger blob passes through from the origin.
const LARGEST_BLOCK: u64 = 32 << 20;
/// The piece is a 256th of the blob, within these bounds.
const LARGEST_PIECE: u64 = 8 << 20;

/// How a blob of a given size is cut into blocks and pieces. A pure function of the size, so that every node agrees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    size: u64,
    block: u64,
    piece: u64,
}

/// The blob is too large to be cut into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a blob of {0} bytes is above the limit of 256 GiB")]
pub struct LayoutError(pub u64);

impl Layout {
    /// The layout of a blob of `size` bytes; 0 is allowed and has no block.
    ///
    /// # Errors
    /// When the size is above 256 GiB.
    pub fn of(size: u64) -> Result<Self, LayoutError> {
        let mut block = SMALLEST_BLOCK;
        while size.div_ceil(block) > MOST_BLOCKS {
            block *= 2;
            if block > LARGEST_BLOCK {
                return Err(LayoutError(size));
            }
        }
        let piece = size.div_ceil(256).next_power_of_two().clamp(SMALLEST_BLOCK, LARGEST_PIECE).max(block);
        Ok(Self { size, block, piece })
    }

    /// Bytes of the whole blob.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of every block but the last.
    pub const fn block_size(&self) -> u64 {
        self.block
    }

    /// Bytes of every piece but the last; a multiple of the block's.
    pub const fn piece_size(&self) -> u64 {
        self.piece
    }

    /// How many blocks there are, at most 8,192.
    #[inline]
    pub const fn blocks(&self) -> u32 {
        // Sizes of blocks and pieces are powers of two, and picking asks for this all the time: no division.
        ((self.size + (self.block - 1)) >> self.block.trailing_zeros()) as u32
    }

    /// How many blocks a piece has.
    #[inline]
    const fn blocks_per_piece(&self) -> u32 {
        1 << (self.piece.trailing_zeros() - self.block.trailing_zeros())
    }

    /// How many pieces there are.
    pub const fn pieces(&self) -> u32 {
        self.size.div_ceil(self.piece) as u32
    }

    /// The block that holds the byte at `offset`, which must be below the size.
    pub const fn block_at(&self, offset: u64) -> BlockIndex {
        (offset / self.block) as u32
    }

    /// The bytes of a block, half open; empty past the end.
    pub fn block_range(&self, block: BlockIndex) -> Range<u64> {
        let start = (u64::from(block) * self.block).min(self.size);
        start..(start + self.block).min(self.size)
    }

    /// How many bytes a block has.
    pub fn block_len(&self, block: BlockIndex) -> usize {
        let range = self.block_range(block);
        usize::try_from(range.end - range.start).expect("a block is at most 32 MiB")
    }

    /// The blocks of a piece, half open.
    #[inline]
    pub fn piece_blocks(&self, piece: PieceIndex) -> Range<BlockIndex> {
        let per = self.blocks_per_piece();
        let start = piece.saturating_mul(per).min(self.blocks());
        start..(start + per).min(self.blocks())
    }

    /// The piece that holds a block.
    #[inline]
    pub const fn piece_of(&self, block: BlockIndex) -> PieceIndex {
        block / self.blocks_per_piece()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn cuts_as_the_design_says() {
        for (size, block, piece) in [
            (0, 256 << 10, 256 << 10),
            (1, 256 << 10, 256 << 10),
            (64 * MIB, 256 << 10, 256 << 10),
            (65 * MIB, 256 << 10, 512 << 10),
            (512 * MIB, 256 << 10, 2 * MIB),
            (2 * GIB, 256 << 10, 8 * MIB),
            (2 * GIB + 1, 512 << 10, 8 * MIB),
            (4 * GIB, 512 << 10, 8 * MIB),
            (128 * GIB, 16 * MIB, 16 * MIB),
        ] {
            let layout = Layout::of(size).unwrap();
            assert_eq!((layout.block_size(), layout.piece_size()), (block, piece), "{size}");
        }
        assert_eq!(Layout::of(257 * GIB), Err(LayoutError(257 * GIB)));
    }

    proptest! {
        #[test]
        fn blocks_and_pieces_cover_the_blob_once(size in 0..300 * GIB) {
            let Ok(layout) = Layout::of(size) else { return Ok(()) };
            prop_assert!(layout.blocks() <= 8192);
            prop_assert_eq!(layout.piece_size() % layout.block_size(), 0);
            let mut next = 0;
            for piece in 0..layout.pieces() {
                for block in layout.piece_blocks(piece) {
                    prop_assert_eq!(layout.piece_of(block), piece);
                    let range = layout.block_range(block);
                    prop_assert_eq!(range.start, next);
                    prop_assert!(range.end > range.start);
                    prop_assert_eq!(layout.block_at(range.start), block);
                    next = range.end;
                }
            }
            prop_assert_eq!(next, size);
        }
    }
}
