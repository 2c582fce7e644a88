//! Bytes from peers: which piece to ask of which parent, asking, and checking every block against the piece list.
//!
//! Owns the child's side of the peer protocol: pooled connections, picking, scoring. Does not own the disk, the origin
//! or the flight: those are behind [`Ground`]. Control is behind [`ParentSource`], which the `control` room implements.
//!
//! What always holds: no block reaches [`Ground::accept`] unchecked (I1); a parent that says nothing for 2 s loses its
//! pieces to another (I8); a connection is used only between nodes of one cluster (I3).
//! Picking ([`pick`]), scoring ([`score`]) and the choice of parents ([`crew`]) are pure: a simulator drives them as they are.

pub mod crew;
mod fetch;
pub mod intake;
mod list;
mod locate;
mod metrics;
pub mod pick;
mod pool;
pub mod score;
mod stream;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use shoal_base::limit::Limiter;
use shoal_base::tls::{self, Secured};
use shoal_proto::frame::{Frame, Hello};
use shoal_proto::identity::Known;
use shoal_proto::{BlockIndex, BlockSet, Digest, Hash, Kind, Layout, NodeId, PieceList};
use tokio::sync::{mpsc, watch};

pub use metrics::Metrics;
use pool::Pool;
use wire::{Connection, Loss};

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
    pub permit: Option<Grant>,
    /// Whether it reads a run of a large blob and no more (DESIGN I6), or to the end once it reads.
    pub takes_runs: bool,
}

/// Leave to read blocks of a blob from the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// To be named when the permit is given back. Never 0.
    pub id: u64,
    /// The first block that it covers.
    pub first: BlockIndex,
    /// How many blocks; 0: all to the end.
    pub blocks: u32,
}

impl Grant {
    /// The blocks that it covers; the end may be behind the blob's.
    pub fn covers(&self) -> std::ops::Range<BlockIndex> {
        self.first..if self.blocks == 0 { BlockIndex::MAX } else { self.first.saturating_add(self.blocks) }
    }
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
    /// The list is complete; its body is what came before, or is had from a parent ([`Swarm::fetch_list`]).
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
    /// What was relayed as said by that node did not prove to be that; nothing of it was told.
    Refused {
        /// Whose word it should have been.
        author: NodeId,
    },
    /// Leave to read the origin, or another extent of one that is known already.
    Permit(Grant),
    /// All permits are taken away; go on with parents.
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
        /// Who gave bytes since the last word, with all that it gave in this flight.
        fed: Vec<(NodeId, u64)>,
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
    /// A parent can't be used now.
    Lost {
        /// Who.
        node: NodeId,
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
    /// [`FindError`]: the flight asks the parents that are known, then reads the origin.
    async fn find(&self, ask: Ask) -> Result<Finding, FindError>;

    /// Peers of this node's cluster that control named within a day, the latest first: who is asked while control is away
    /// (I4). Whether they hold anything is not known.
    fn known(&self) -> Vec<Parent>;
}

/// The flight refuses more bytes (it ended, or its disk is full). The swarm stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the flight takes no more blocks")]
pub struct Halt;

/// What a flight has of its blob, and what it knows and waits for.
#[derive(Debug, Clone)]
pub struct Survey {
    /// Blocks that are verified and on disk.
    pub done: BlockSet,
    /// Blocks whose hash is known.
    pub known: BlockSet,
    /// The first missing block of each reader, in any order: where the windows start. Without a reader the first missing one.
    pub focuses: Vec<BlockIndex>,
}

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

    /// What is here, known and waited for, in one look: it is asked for often.
    fn survey(&self) -> Survey;

    /// Changes whenever `expected`, `has` or `survey` may answer differently.
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
    /// The parent sent a block that does not match, or one that was not asked for. It is not asked again in this fetch.
    Lied {
        /// Who.
        node: NodeId,
        /// Which block.
        block: BlockIndex,
    },
    /// The parent sent a piece list that does not match the root.
    LiedOfList {
        /// Who.
        node: NodeId,
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

/// Why [`Swarm::fetch_list`] has no list, by whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The parent's list does not hash to the root.
    #[error("{node} sent a piece list that does not match the root")]
    Lied {
        /// Who.
        node: NodeId,
    },
    /// There was nobody to ask.
    #[error("no parent to ask for the piece list")]
    NoParent,
    /// The parent could not be asked.
    #[error("{node}: {why}")]
    Lost {
        /// Who.
        node: NodeId,
        /// For logs.
        why: String,
    },
}

/// A blob that a parent holds whole, found without control.
#[derive(Debug, Clone, PartialEq)]
pub struct Located {
    /// Who has it, and vouches for the list: it checked the SHA-256 of the whole (I1).
    pub parent: Parent,
    /// Bytes.
    pub size: u64,
    /// Content-Type as the origin gave it; empty when it gave none.
    pub media_type: String,
    /// Complete.
    pub list: PieceList,
}

/// What known parents say of a blob while control is away.
#[derive(Debug, Clone, PartialEq)]
pub enum Sighting {
    /// One holds it whole.
    Whole(Located),
    /// One has some of it, or is fetching it: it can't vouch for the list yet.
    Part,
    /// None of those that answered.
    Nowhere,
}

/// How fetching behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// Parents in use at once by one fetch, at least 1. As many as control names: blocks are passed on one by one, so that many
    /// parents cost no piece its end, and who is connected to few waits for what those few lack (decision 008).
    pub streams: usize,
    /// Pieces from the focus on among which the rarest is picked, at least 1.
    pub window: u32,
    /// Wants queued at each parent, at least 1; with several parents it is 1 (decision 009). With two the next block is on its way
    /// while the want for more travels.
    pub queue: usize,
    /// A parent that owes us something and says nothing for so long is lost (I8).
    pub silence: Duration,
    /// A parent that only says `Wait` for so long, although it showed the block, is lost.
    pub patience: Duration,
    /// Bound on connecting to a parent.
    pub connect_timeout: Duration,
    /// A parent that has nothing for us for so long makes room for another candidate, if there is one.
    pub useless_after: Duration,
    /// How long a connection may rest between two blobs; keep it below the parents' `idle_timeout`. 0: none is kept.
    pub pool_idle: Duration,
    /// Connections that may rest for one address.
    pub pool_per_parent: usize,
    /// What all parents together may send, in bytes of blocks.
    pub download: Limiter,
    /// Parents show certificates; `None`: whoever answers is who control said.
    pub tls: Option<Secured<Known>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            streams: 16,
            window: 32,
            queue: 2,
            silence: Duration::from_secs(2),
            patience: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(1),
            useless_after: Duration::from_secs(1),
            pool_idle: Duration::from_secs(30),
            pool_per_parent: 4,
            download: Limiter::none(),
            tls: None,
        }
    }
}

/// The child's side of the peer protocol: fetches blobs from parents. One for the whole process.
#[derive(Debug)]
pub struct Swarm {
    config: Config,
    /// What connections to parents are made with, where there are certificates.
    client: Option<Arc<rustls::ClientConfig>>,
    me: watch::Receiver<Option<Hello>>,
    metrics: Metrics,
    pool: Arc<Mutex<Pool>>,
    /// Makes this node's order of equal pieces differ from others'.
    salt: u64,
}

/// What a parent says to `Open`.
enum Answer {
    /// It serves.
    Blob(Connection, Served),
    /// It has no slot now. The connection is still good.
    Busy(Connection, Duration),
}

/// What a parent says of its blob.
#[derive(Debug)]
struct Served {
    size: u64,
    whole: bool,
    media_type: String,
}

/// Opens a blob, in the trace of the current span. `holders`: so many are known to hold it whole; 0: says nothing.
fn open_frame(digest: Digest, holders: u8) -> Frame {
    let traceparent = shoal_base::telemetry::traceparent_of(&tracing::Span::current()).unwrap_or_default();
    Frame::Open { digest, traceparent, holders }
}

impl Swarm {
    /// A swarm that is `me` to parents; while `me` is `None` this node has no cluster and asks nobody.
    pub fn new(config: Config, me: watch::Receiver<Option<Hello>>, metrics: Metrics) -> Arc<Self> {
        let client = config.tls.as_ref().map(|tls| tls::client(&tls.keeper, None, &[]));
        Arc::new(Self { config, client, me, metrics, pool: Arc::default(), salt: rand::random() })
    }

    /// The metrics, for heartbeats.
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Connections that rest between two blobs.
    pub fn resting(&self) -> usize {
        self.pool.lock().len()
    }

    /// Opens a blob at a parent, on a rested connection if there is one. Its blocks are no longer than `layout` says.
    async fn open(&self, parent: &Parent, open: &Frame, layout: Layout) -> Result<Answer, Loss> {
        let me = self.me.borrow().clone().map(Arc::new).ok_or(Loss::Unassigned)?;
        loop {
            let rested = self.pool.lock().take(parent, &me, &self.config);
            let from = if rested.is_some() { metrics::Source::Pool } else { metrics::Source::Dial };
            let mut connection = match rested {
                Some(connection) => connection,
                None => Connection::dial(parent, me.clone(), &self.config, self.client.clone()).await?,
            };
            self.metrics.connections.get_or_create(&metrics::ConnectionLabels { from }).inc();
            connection.expect(layout);
            let answer = match connection.send(open).await {
                Ok(()) => connection.next_in_time().await,
                Err(loss) => Err(loss),
            };
            match answer {
                Ok(Frame::Blob { size, whole, media_type }) => {
                    return Ok(Answer::Blob(connection, Served { size, whole, media_type }));
                }
                Ok(Frame::Busy { retry_after_ms }) => {
                    return Ok(Answer::Busy(connection, Duration::from_millis(retry_after_ms.into())));
                }
                Ok(Frame::Gone) => {
                    self.rest(parent.clone(), connection);
                    return Err(Loss::Gone);
                }
                Ok(Frame::Refused(refusal)) => return Err(Loss::Refused(refusal)),
                Ok(_) => return Err(Loss::Protocol("unexpected answer to Open".into())),
                // The parent may have closed a rested connection at this very moment: that says nothing about it.
                Err(Loss::Closed | Loss::Broken(_)) if connection.pooled => {}
                Err(loss) => return Err(loss),
            }
        }
    }

    /// Ends the blob on a connection that owes nothing, and keeps the connection for the next one.
    fn rest(&self, parent: Parent, mut connection: Connection) {
        if self.config.pool_idle.is_zero() || self.config.pool_per_parent == 0 {
            return;
        }
        let (pool, config, mut me) = (self.pool.clone(), self.config.clone(), self.me.clone());
        // Off the fetch's path: it ends by itself after the silence and the idle limit, or when this node moves.
        tokio::spawn(async move {
            if let Err(loss) = connection.close_blob().await {
                tracing::debug!(peer.node = %parent.node, error = %loss, "connection not kept");
                return;
            }
            if me.borrow_and_update().as_ref() != Some(&*connection.said) {
                return;
            }
            pool.lock().give(&parent, connection, &config);
            let end = tokio::time::Instant::now() + config.pool_idle;
            let mut more = true;
            while more {
                more = matches!(tokio::time::timeout_at(end, me.changed()).await, Ok(Ok(())));
                let now = me.borrow_and_update().clone();
                pool.lock().sweep(now.as_ref(), &config);
            }
        });
    }
}
