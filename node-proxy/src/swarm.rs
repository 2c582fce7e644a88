//! Bytes from peers: which piece to ask of which parent, asking, and checking every block against the piece list.
//!
//! Owns the child's side of the peer protocol: pooled connections, picking, scoring. Does not own the disk, the origin
//! or the flight: those are behind [`Ground`]. Control is behind [`ParentSource`], which the `control` room implements.
//!
//! What always holds: no block reaches [`Ground::accept`] unchecked (I1); a parent that says nothing for 2 s loses its
//! pieces to another (I8); a connection is used only between nodes of one cluster (I3).
//! Picking and scoring are pure functions of what they are given.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use shoal_proto::{BlockIndex, Digest, Hash, Kind, Layout, NodeId, PieceList};
use tokio::sync::{mpsc, watch};

/// Where a peer listens for children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParentAddr(pub SocketAddr);

/// A candidate that control named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Who.
    pub node: NodeId,
    /// Where.
    pub addr: ParentAddr,
    /// Whether it holds the blob whole.
    pub complete: bool,
}

/// What a flight asks control to find.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The blob.
    pub digest: Digest,
    /// Its size when known, from a manifest or from an earlier flight.
    pub size: Option<u64>,
    /// `host[:port]` of the registry.
    pub registry: String,
    /// The repository's path.
    pub repository: String,
    /// Blob or manifest.
    pub kind: Kind,
    /// Whether this node would read the origin if it got the permit.
    pub may_read_origin: bool,
    /// Blocks that are verified on disk from an earlier flight.
    pub blocks_held: u32,
    /// The permit that this flight reads under since before control was lost.
    pub permit: Option<u64>,
}

/// A live answer of control to one flight. Dropping it ends the flight's place in the swarm.
#[derive(Debug)]
pub struct Finding {
    /// What control says, in order. It ends when control is gone; the flight then goes on alone.
    pub news: mpsc::Receiver<News>,
    /// What the flight tells control. A full queue means control is slow: drop progress, wait with all else.
    pub tell: mpsc::Sender<Tell>,
}

/// What control says to a flight.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// The whole set of candidates, best first; replaces the set before.
    Parents(Vec<Parent>),
    /// A growing list starts here; another author replaces all hashes of the one before.
    Head {
        /// Who reads the blob under a permit.
        author: NodeId,
        /// Bytes of the blob.
        size: u64,
        /// Content-Type as the origin gave it.
        media_type: String,
    },
    /// More hashes of the growing list: n times 32 bytes.
    Hashes {
        /// The block of the first hash.
        first: BlockIndex,
        /// n times 32 bytes.
        hashes: Bytes,
    },
    /// The list is complete; its body is what came before, or is had from a parent ([`fetch_list`]).
    Sealed {
        /// Who vouches for the root.
        author: NodeId,
        /// What the body must hash to.
        root: Hash,
        /// Bytes of the blob.
        size: u64,
        /// Content-Type as the origin gave it.
        media_type: String,
    },
    /// Leave to read the origin, from the first missing block on.
    Permit {
        /// To be named when the permit is given back.
        id: u64,
    },
    /// The permit is taken away; go on with parents.
    Revoked,
    /// Nothing yet, and why.
    Waiting {
        /// True while another node's request is out at the origin: the first byte may take 20 s instead of 5 (I8).
        at_origin: bool,
        /// For logs.
        reason: &'static str,
    },
    /// The origin told the permit holder that the digest is not there, and nobody holds it.
    NotFound,
    /// The node was moved or its session ended: find again.
    Again,
    /// The node has no cluster: read the origin.
    Alone,
}

/// Why a permit is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginTrouble {
    /// No connection, or it broke.
    Unreachable,
    /// 404 for the digest.
    NotFound,
    /// An anonymous token can't read it.
    Denied,
    /// 429, or 503 with Retry-After.
    Busy(Duration),
    /// This node gave up the flight.
    Abandoned,
}

/// What a flight tells control.
#[derive(Debug, Clone, PartialEq)]
pub enum Tell {
    /// Under a permit: the origin answered.
    Headers {
        /// The permit.
        permit: u64,
        /// Content-Length.
        size: u64,
        /// Content-Type.
        media_type: String,
    },
    /// Under a permit: hashes of blocks just read, n times 32 bytes.
    Hashes {
        /// The block of the first hash.
        first: BlockIndex,
        /// n times 32 bytes.
        hashes: Bytes,
    },
    /// Under a permit: it is given back.
    Trouble {
        /// The permit.
        permit: u64,
        /// Why.
        why: OriginTrouble,
    },
    /// How much is verified here.
    Progress {
        /// Verified blocks.
        blocks: u32,
        /// Bytes read from the origin in this flight.
        origin_bytes: u64,
    },
    /// Held: SHA-256 of the whole checked.
    Done {
        /// Bytes.
        size: u64,
        /// Root of the list.
        root: Hash,
        /// Content-Type.
        media_type: String,
    },
    /// A peer sent a block that does not match the list.
    Lied {
        /// Who.
        node: NodeId,
        /// Which block.
        block: BlockIndex,
    },
    /// The whole did not match the digest: the list's author is at fault.
    Mismatch {
        /// Who.
        author: NodeId,
    },
}

/// Why control can't be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// No control is configured, or it can't be reached. Read the origin, outside "once" (I6).
    #[error("control cannot be reached: {0}")]
    Unreachable(String),
    /// The node has no cluster. Read the origin.
    #[error("this node has no cluster: {0}")]
    Alone(String),
}

/// Who knows where a blob is. Implemented by the `control` room; a fake for tests is a real in-process one.
#[async_trait::async_trait]
pub trait ParentSource: Send + Sync + 'static {
    /// Opens one live answer. Fails within 1 s rather than wait for a control that is away.
    ///
    /// # Errors
    /// [`FindError`]: the flight reads the origin.
    async fn find(&self, ask: Ask) -> Result<Finding, FindError>;
}

/// The flight refuses more bytes (it ended, or its disk is full). The swarm stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the flight takes no more blocks")]
pub struct Halt;

/// What a swarm fetch needs of the flight that it works for.
#[async_trait::async_trait]
pub trait Ground: Send + Sync + 'static {
    /// The blob.
    fn digest(&self) -> Digest;

    /// How it is cut.
    fn layout(&self) -> Layout;

    /// The hash that a block must have; `None` while the list has not grown that far.
    fn expected(&self, block: BlockIndex) -> Option<Hash>;

    /// Whether the block is verified and on disk.
    fn has(&self, block: BlockIndex) -> bool;

    /// The first block that somebody waits for, or the first missing one: where the window starts.
    fn focus(&self) -> BlockIndex;

    /// Changes whenever `expected`, `has` or `focus` may answer differently.
    fn changed(&self) -> watch::Receiver<u64>;

    /// Takes a block that was checked against `expected`. Returns when it is written; that is the back-pressure.
    ///
    /// # Errors
    /// [`Halt`]: stop fetching.
    async fn accept(&self, block: BlockIndex, bytes: Bytes, from: &NodeId) -> Result<(), Halt>;
}

/// What a fetch reports while it runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The parent sent a block that does not match. It is not asked again in this fetch.
    Lied {
        /// Who.
        node: NodeId,
        /// Which block.
        block: BlockIndex,
    },
    /// The parent can't serve this blob now, and why (connection, silence, gone, refused).
    Lost {
        /// Who.
        node: NodeId,
        /// For logs.
        why: String,
    },
    /// First block from this parent.
    Serving {
        /// Who.
        node: NodeId,
    },
}

/// Helps `fetch_list` say whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The parent's list does not hash to the root.
    #[error("{node} sent a piece list that does not match the root")]
    Lied {
        /// Who.
        node: NodeId,
    },
    /// The parent could not be asked.
    #[error("{node}: {why}")]
    Lost {
        /// Who.
        node: NodeId,
        /// For logs.
        why: String,
    },
}

/// A piece list's body, checked against the root.
pub type ListBody = PieceList;
