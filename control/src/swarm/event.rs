//! What the machine is told, and what it wants done. Plain data.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shoal_proto::{BlockIndex, ClusterId, Digest, Hash, Kind, NodeId};

use super::order::{Order, Reply};

/// Nodes that a flight is remembered to have been fed by, and that one word may tell of.
pub const MOST_FED: usize = 64;

/// A moment: how long control has been running.
pub type At = Duration;

/// A blob in a cluster: what one cluster holds is nothing to another (I3).
pub(super) type Key = (ClusterId, Digest);

/// One Find stream. Numbers grow, so that their order is the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FinderId(pub u64);

/// A node as the swarm sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub node: NodeId,
    /// Where it belongs; `None`: it runs alone.
    pub cluster: Option<ClusterId>,
    /// Where peers reach it.
    pub addr: SocketAddr,
    /// The elements of its location path, outermost first.
    pub location: Vec<String>,
    /// Its job is to fetch from the origin first: others are named before it.
    pub seed: bool,
    /// It takes orders of single blobs.
    pub orders: bool,
}

/// What is known of a blob that a node holds whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Meta {
    /// Bytes.
    pub size: u64,
    /// Root of its piece list.
    pub root: Hash,
    /// Content-Type as the origin gave it; empty when it gave none.
    pub media_type: String,
}

/// Which blob, and what is known of it: one copy for all nodes of a cluster that say the same, however many they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Which blob.
    pub digest: Digest,
    /// What is known of it.
    pub meta: Meta,
}

impl Deref for Fact {
    type Target = Meta;

    fn deref(&self) -> &Meta {
        &self.meta
    }
}

/// What a node signs with its key, so that whoever hears of it can tell that it was not changed here; empty without certificates.
/// Control passes it on and does not look at it: who believes a signature must see to it, and who makes a false one is believed nothing.
pub type Signature = Bytes;

/// By what a node's signatures are checked. It is passed on as it came.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Certificate {
    /// DER.
    pub der: Bytes,
    /// The microsecond since 1970 at which it was issued: the latest counts.
    pub issued: u64,
}

/// Who says something, signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Who.
    pub author: NodeId,
    /// Never empty.
    pub signature: Signature,
}

/// A difference to what the node said before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Announced {
    /// The first message of a session: what is not said again until `complete` is held no more.
    pub reset: bool,
    /// Held whole from now on.
    pub held: Vec<(Digest, Meta, Signature)>,
    /// Held no more.
    pub dropped: Vec<Digest>,
    /// The last message of the first full list.
    pub complete: bool,
}

/// Leave to read blocks of a blob from the origin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Grant {
    /// Its number; 0 for none.
    pub id: u64,
    /// The first block.
    pub first: BlockIndex,
    /// How many; 0: all to the end.
    pub blocks: u32,
}

/// What one flight asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The blob.
    pub digest: Digest,
    /// Its size, when the node knows it.
    pub size: Option<u64>,
    /// Which registry the node would read.
    pub registry: String,
    /// Which repository there.
    pub repository: String,
    /// Blob or manifest.
    pub kind: Kind,
    /// Whether it would read the origin if it got the permit.
    pub may_read_origin: bool,
    /// Blocks on its disk from an earlier flight.
    pub blocks: u32,
    /// The permit that it reads under from before a break.
    pub permit: Grant,
    /// It reads what a permit covers and no more: it may be given a run.
    pub runs: bool,
}

/// Why a permit is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// No connection to the origin, or it broke.
    Unreachable,
    /// The origin does not have it.
    NotFound,
    /// Not readable with an anonymous token.
    Denied,
    /// Come back after this long.
    Busy(Duration),
    /// The node gave the flight up.
    Abandoned,
}

/// What a flight says on its Find stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tell {
    /// The origin answered.
    Headers {
        /// Under which permit.
        permit: u64,
        /// Content-Length.
        size: u64,
        /// Content-Type.
        media_type: String,
        /// Over the head of a list that says so.
        signature: Signature,
    },
    /// Hashes of blocks read from the origin, n times 32 bytes.
    Hashes {
        /// The block of the first.
        first: BlockIndex,
        /// n times 32 bytes.
        hashes: Bytes,
        /// Over this part of a list.
        signature: Signature,
    },
    /// The permit is given back.
    Failed {
        /// Which permit.
        permit: u64,
        /// Why.
        why: Trouble,
    },
    /// How much is verified and on disk.
    Progress {
        /// Blocks.
        blocks: u32,
        /// Bytes read from the origin so far.
        origin_bytes: u64,
        /// Who gave bytes since the last word, with all that it gave in this flight.
        fed: Vec<(NodeId, u64)>,
    },
    /// The whole is there and checked; signed as a whole list.
    Done(Meta, Signature),
    /// A parent sent what does not match.
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
    /// The whole did not match its digest.
    Mismatch {
        /// Whose list it was.
        author: NodeId,
    },
    /// What was relayed as said by that node does not prove to be that.
    Unproven {
        /// Who.
        author: NodeId,
    },
}

/// What happens to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A session began. `restarted`: the process is a new one, so that its old streams and permits are over.
    Registered {
        /// Who.
        member: Member,
        /// Another process than before.
        restarted: bool,
    },
    /// A live node belongs elsewhere from now on.
    Moved {
        /// Who.
        node: NodeId,
        /// Where to.
        cluster: Option<ClusterId>,
    },
    /// The lease ended.
    Left {
        /// Who.
        node: NodeId,
    },
    /// How busy a node is with serving.
    Load {
        /// Who.
        node: NodeId,
        /// Uploads now.
        uploads: u32,
        /// Uploads it wants at most; 0 when unknown.
        slots: u32,
    },
    /// A node has another certificate.
    Certified {
        /// Who.
        node: NodeId,
        /// By which its signatures are checked.
        certificate: Arc<Certificate>,
    },
    /// What a node holds.
    Announced {
        /// Who.
        node: NodeId,
        /// The difference.
        what: Announced,
    },
    /// A Find stream began.
    Find {
        /// The stream.
        finder: FinderId,
        /// Whose.
        node: NodeId,
        /// What it wants.
        ask: Ask,
    },
    /// A Find stream said something.
    Told {
        /// The stream.
        finder: FinderId,
        /// What.
        tell: Tell,
    },
    /// A Find stream ended.
    Ended {
        /// The stream.
        finder: FinderId,
        /// The node closed it on purpose: the flight is over. Else the connection broke, and the flight may go on.
        clean: bool,
    },
    /// A seed said what becomes of an order, or could not be given it.
    Answered {
        /// Who.
        seed: NodeId,
        /// The order's number.
        number: u64,
        /// Of what it was.
        digest: Digest,
        /// What.
        answer: Reply,
    },
    /// Time went by.
    Tick,
}

/// One candidate of a finder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentSaid {
    /// Who.
    pub node: NodeId,
    /// Where.
    pub addr: SocketAddr,
    /// Holds it whole.
    pub complete: bool,
}

/// Why a finder has neither parents nor the permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// Control just started.
    Starting {
        /// Until it grants permits.
        left: Duration,
    },
    /// The permit holder's stream is broken, and it may come back.
    HolderConnects,
    /// The permit holder's request is out at the origin.
    HolderWaits,
    /// The permit holder reads, but can't serve this finder.
    HolderReads,
    /// The origin can't be read now.
    Busy {
        /// When somebody tries again.
        left: Duration,
    },
    /// Nobody holds it, and nobody who waits would read the origin.
    Nobody,
    /// A seed was ordered to fetch it, and may come for the permit.
    Seed {
        /// Until it is waited for no more.
        left: Duration,
    },
}

/// Why a finder's stream ends, or its permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The session ended.
    NoSession,
    /// Find again: the node was moved, or what was known of the blob was thrown away.
    Again(&'static str),
    /// The node has no cluster.
    Alone,
    /// The origin does not have it, and nobody holds it.
    NotFound,
    /// What was said makes no sense.
    Invalid(&'static str),
    /// The permit is taken away; the stream goes on. The only one that does not end it.
    Revoked,
}

/// What a finder is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Say {
    /// The whole set of candidates, best first.
    Parents(Vec<ParentSaid>),
    /// By what to check that node's signatures from now on.
    Author {
        /// Who.
        node: NodeId,
        /// By which.
        certificate: Arc<Certificate>,
    },
    /// A growing list starts.
    Head {
        /// Who began it.
        author: NodeId,
        /// Bytes of the blob.
        size: u64,
        /// Content-Type.
        media_type: String,
        /// The author's.
        signature: Signature,
    },
    /// More of the growing list.
    Hashes {
        /// The block of the first.
        first: BlockIndex,
        /// n times 32 bytes.
        hashes: Bytes,
        /// Who says so; `None` where nothing is signed.
        proof: Option<Proof>,
    },
    /// The list is complete.
    Sealed {
        /// Who vouches for it.
        author: NodeId,
        /// What.
        meta: Arc<Fact>,
        /// The author's.
        signature: Signature,
    },
    /// Leave to read the origin, or another extent of a permit that is known already.
    Permit(Grant),
    /// Nothing yet.
    Waiting(Waiting),
    /// The end.
    Stop(Stop),
}

impl Say {
    /// Whether the stream ends with it.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Stop(stop) if *stop != Stop::Revoked)
    }
}

/// Why a permit moved away from its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// I6 (a): its stream is gone.
    Lost,
    /// I6 (a): no byte after the headers.
    Silent,
    /// I6 (b): no headers.
    NoHeaders,
    /// I6 (c): far slower than another.
    Slow,
    /// It said that the origin can't be read.
    Failed,
    /// It gave the flight up.
    GaveUp,
    /// What it wrote is not trusted.
    Distrusted,
}

/// Why a seed that was ordered to fetch is not waited for any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Skip {
    /// It did not say that it begins.
    Silent,
    /// It began, and did not come for the permit in time.
    Late,
    /// It said that it can't, or won't.
    Refused,
    /// Its session ended, or another began.
    Gone,
    /// Its session takes no more orders.
    Untold,
}

/// What happened that a person or a counter should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A permit was granted.
    Granted {
        /// To whom.
        node: NodeId,
    },
    /// One more reader of the origin is tried. Beside one: that one is held against it; else, whether all become faster.
    OneMore {
        /// How many read.
        beside: usize,
    },
    /// A permit went away before the blob closed.
    Moved {
        /// From whom.
        node: NodeId,
        /// Why.
        cause: Cause,
    },
    /// Blocks went with those who had read them, and are read from the origin once more, at most.
    ReadAgain {
        /// How many.
        blocks: u32,
    },
    /// Two nodes say that they checked the whole and yet differ; the later one is refused.
    RootsDiffer {
        /// Who was first.
        first: NodeId,
        /// Who came later.
        later: NodeId,
    },
    /// Two readers of the origin say different hashes for one block.
    ReadersDiffer {
        /// Who began the list.
        first: NodeId,
        /// Who said otherwise.
        later: NodeId,
    },
    /// A whole blob did not match its digest.
    AuthorLied {
        /// Whose list or root it was.
        author: NodeId,
        /// Who else added to it.
        writers: Vec<NodeId>,
        /// Who says so.
        reporter: NodeId,
    },
    /// A parent sent a block that does not match.
    ParentLied {
        /// Who.
        parent: NodeId,
        /// Who says so.
        reporter: NodeId,
    },
    /// A seed was ordered to fetch a blob.
    SeedAsked {
        /// Who.
        seed: NodeId,
    },
    /// It came for the permit.
    SeedCame {
        /// Who.
        seed: NodeId,
    },
    /// It is waited for no more.
    SeedSkipped {
        /// Who.
        seed: NodeId,
        /// Why.
        why: Skip,
    },
}

/// A flight that began or ended, for people who look on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlightChange {
    /// A node looks for a blob.
    Began {
        /// Who.
        node: NodeId,
        /// Where.
        cluster: ClusterId,
        /// What.
        digest: Digest,
        /// Bytes, when the node knows them.
        size: Option<u64>,
    },
    /// It does no more.
    Ended {
        /// Who.
        node: NodeId,
        /// Where it began.
        cluster: ClusterId,
        /// What.
        digest: Digest,
        /// It has the whole, checked.
        complete: bool,
    },
}

/// What the machine wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Tell a finder.
    Say(FinderId, Say),
    /// Tell people.
    Notice {
        /// Where.
        cluster: ClusterId,
        /// About which blob.
        digest: Digest,
        /// What.
        notice: Notice,
    },
    /// Tell a seed to fetch.
    Order {
        /// Who.
        seed: NodeId,
        /// What.
        order: Order,
        /// It is taken back.
        back: bool,
    },
}
