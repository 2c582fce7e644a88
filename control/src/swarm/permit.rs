//! The permit: one node's leave to read a digest from the origin, and when it is overdue (DESIGN I6).

use std::ops::Range;

use shoal_proto::{BlockIndex, NodeId};

use super::event::{At, Cause, FinderId, Grant};

/// I6 (a): without a connection, or without a byte after the headers, for this long.
pub(super) const SILENT: At = At::from_secs(2);
/// I6 (b): without headers for this long.
pub(super) const NO_HEADERS: At = At::from_secs(20);
/// Everything is read, and the holder hashes, syncs and renames: as long as a full disk queue may take.
pub(super) const CLOSING: At = At::from_secs(20);

/// All of a blob, however long it is.
pub(super) const WHOLE: Range<BlockIndex> = 0..BlockIndex::MAX;

/// The first run of a reader while several read, or it is found out whether they should; then as much as it has read already, up to
/// [`SHORT`]. So a slow one does not hold up the others with a long one. One that reads alone reads to the end.
pub(super) const FIRST: u64 = 4 << 20;
/// Pieces of such a run at most, unless that is less than the first: all that is read at a time then lies in the 32 pieces from which
/// nodes fetch first.
pub(super) const SHORT: u32 = 8;

#[derive(Debug)]
pub(super) struct Permit {
    pub(super) id: u64,
    pub(super) node: NodeId,
    /// `None` while its Find stream is broken.
    pub(super) finder: Option<FinderId>,
    pub(super) granted: At,
    /// Since when the origin's answer is there.
    pub(super) answered: Option<At>,
    pub(super) last_byte: At,
    pub(super) origin_bytes: u64,
    /// Everything is read.
    pub(super) closing: bool,
    /// Since when the stream is broken.
    pub(super) lost: Option<At>,
    /// The blocks that it covers.
    pub(super) run: Range<BlockIndex>,
    /// How many of them are still to be read.
    pub(super) left: BlockIndex,
}

impl Permit {
    pub(super) fn new(id: u64, node: NodeId, finder: FinderId, now: At) -> Self {
        Self {
            id,
            node,
            finder: Some(finder),
            granted: now,
            answered: None,
            run: WHOLE,
            left: BlockIndex::MAX,
            last_byte: now,
            origin_bytes: 0,
            closing: false,
            lost: None,
        }
    }

    /// A byte came in, or what proves one.
    pub(super) fn touch(&mut self, now: At) {
        self.last_byte = now;
    }

    /// It covers the blob to its end.
    pub(super) fn is_whole(&self) -> bool {
        self.run == WHOLE
    }

    /// No block is covered by both.
    pub(super) fn is_apart(&self, other: &Self) -> bool {
        self.run.end <= other.run.start || other.run.end <= self.run.start
    }

    /// As its holder is told.
    pub(super) fn grant(&self) -> Grant {
        let blocks = if self.is_whole() { 0 } else { self.run.end - self.run.start };
        Grant { id: self.id, first: self.run.start, blocks }
    }

    /// When the permit moves if nothing else happens, and why. Case (c) of I6 is decided where speeds are known.
    pub(super) fn overdue(&self) -> (At, Cause) {
        match (self.lost, self.answered) {
            (Some(lost), _) => (lost + SILENT, Cause::Lost),
            (None, None) => (self.granted + NO_HEADERS, Cause::NoHeaders),
            (None, Some(_)) if self.closing => (self.last_byte + CLOSING, Cause::Silent),
            (None, Some(_)) => (self.last_byte + SILENT, Cause::Silent),
        }
    }
}
