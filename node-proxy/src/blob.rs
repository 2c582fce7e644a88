//! The engine that every edge calls: a blob's bytes, wherever they are, verified.
//!
//! Owns flights: any number of readers of a digest share one fetch. A flight takes bytes from the store, from parents
//! or from the origin, hashes them, and hands them on from the first block; it alone decides that a blob is held.
//! Does not speak HTTP, gRPC or the peer protocol.
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use shoal_proto::{BlockIndex, BlockSet, Digest, Kind, Layout, PieceList};
use tokio::sync::watch;

use crate::origin;

/// What a reader wants. The repository must be known to be readable with an anonymous token (I10): whoever calls has
/// asked the origin. Anything else is streamed from the origin and never reaches this room.
#[derive(Debug, Clone)]
pub struct Want {
    /// The content.
    pub digest: Digest,
    /// Where the origin has it.
    pub target: origin::Target,
    /// Blob or manifest.
    pub kind: Kind,
}

/// Why bytes can't be given, by what the edge answers.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// This node threw the digest away within the last 10 minutes because it did not match (I1). Answer 404.
    #[error("{0} did not match its digest here; ask the registry")]
    Mismatched(Digest),
    /// The origin says that it is not there. Answer 404.
    #[error("{0} is not at the origin")]
    NotFound(Digest),
    /// No byte within the first byte budget (I8). Pass a Range through, else answer 503.
    #[error("no byte of {digest} within {waited:?}")]
    Slow {
        /// The blob.
        digest: Digest,
        /// How long.
        waited: std::time::Duration,
    },
    /// No room on disk (I11), or a blob that can't be cut into blocks: pass through, keep nothing.
    #[error("{0} can't be kept here: {1}")]
    NotKept(Digest, String),
    /// The origin, and nobody else has it.
    #[error(transparent)]
    Origin(Arc<origin::OriginError>),
    /// Everything that was tried failed mid-way. After bytes have flown: FIN. Before: 503.
    #[error("{0} can't be read: {1}")]
    Failed(Digest, String),
}

/// Where a flight's bytes came from, in bytes so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sources {
    /// Held before anybody asked.
    pub local: u64,
    /// From peers.
    pub peers: u64,
    /// From the origin.
    pub origin: u64,
}

// API, implemented below by Engine (for mirror and peer to write against):
//
// impl Engine {
//     /// Size and media type are known when this returns; no byte need be there yet. Err within the first byte budget.
//     pub async fn open(&self, want: Want) -> Result<Opened, ReadError>;
//     /// After a manifest was GOT by digest: the blobs that it names start flying (DESIGN section 4.3).
//     pub fn look_ahead(&self, manifest: &Opened) -> ();
//     /// What this node can serve of a digest to a peer; None: nothing.
//     pub async fn offer(&self, digest: &Digest) -> Option<Offer>;
// }
// impl Opened {
//     pub fn size(&self) -> u64; pub fn media_type(&self) -> &str; pub fn digest(&self) -> Digest;
//     /// Bytes `range` (half open, inside the blob). Dropping the reading stops it.
//     pub fn read(&self, range: Range<u64>) -> Reading;
// }
// impl Reading {
//     /// The next verified bytes in order; None at the end of the range. The first call answers within the budget.
//     pub async fn next(&mut self) -> Option<Result<Bytes, ReadError>>;
//     pub fn sources(&self) -> Sources;
// }
// impl Offer {   // Clone
//     pub fn layout(&self) -> Layout; pub fn media_type(&self) -> &str; pub fn is_whole(&self) -> bool;
//     /// Hashes known now; complete if whole.
//     pub async fn list(&self) -> Result<PieceList, ReadError>;
//     /// Blocks that can be read now.
//     pub fn have(&self) -> BlockSet;
//     /// Changes when `have` grows or the offer ends.
//     pub fn changed(&self) -> watch::Receiver<u64>;
//     /// True when the flight failed and nothing can be read any more.
//     pub fn is_over(&self) -> bool;
//     /// All bytes of a block that `have` names.
//     pub async fn read_block(&self, block: BlockIndex) -> Result<Bytes, ReadError>;
// }
