//! The permit: one node's leave to read a digest from the origin, and when it is overdue (DESIGN I6).

use shoal_proto::NodeId;

use super::event::{At, Cause, FinderId};

/// I6 (a): without a connection, or without a byte after the headers, for this long.
pub(super) const SILENT: At = At::from_secs(2);
/// I6 (b): without headers for this long.
pub(super) const NO_HEADERS: At = At::from_secs(20);
/// Everything is read, and the holder hashes, syncs and renames: as long as a full disk queue may take.
const CLOSING: At = At::from_secs(20);

#[derive(Debug)]
pub(super) struct Permit {
    pub(super) id: u64,
    pub(super) node: NodeId,
    /// `None` while its Find stream is broken.
    pub(super) finder: Option<FinderId>,
    pub(super) granted: At,
    pub(super) headers: bool,
    pub(super) last_byte: At,
    pub(super) origin_bytes: u64,
    /// Everything is read.
    pub(super) closing: bool,
    /// Since when the stream is broken.
    pub(super) lost: Option<At>,
}

impl Permit {
    pub(super) fn new(id: u64, node: NodeId, finder: FinderId, now: At) -> Self {
        Self {
            id,
            node,
            finder: Some(finder),
            granted: now,
            headers: false,
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

    /// When the permit moves if nothing else happens, and why. Case (c) of I6, a reader that is slower than others,
    /// needs the rates of all readers of the cluster and is decided where runs are.
    pub(super) fn overdue(&self) -> (At, Cause) {
        match (self.lost, self.headers) {
            (Some(lost), _) => (lost + SILENT, Cause::Lost),
            (None, false) => (self.granted + NO_HEADERS, Cause::NoHeaders),
            (None, true) if self.closing => (self.last_byte + CLOSING, Cause::Silent),
            (None, true) => (self.last_byte + SILENT, Cause::Silent),
        }
    }
}
