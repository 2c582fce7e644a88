//! What happens in a run, and the fingerprint of all that happened.

use sha2::{Digest as _, Sha256};
use shoal_proto::frame::Run;
use shoal_proto::{BlockIndex, NodeId};

use control::swarm::{Event as Said, FinderId, Say};

use super::queue::Time;

/// A node's number, from 0.
pub(super) type NodeIx = u32;

/// One stream of blocks. The slot is used again after its end; the use tells what is meant for an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FlowRef {
    pub(super) slot: u32,
    pub(super) turn: u32,
}

/// A life of a node: what was planned in an earlier one is void.
pub(super) type Life = u16;

/// Why a stream never began, or broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// No slot is free.
    Busy,
    /// The parent has nothing of the blob.
    Gone,
    /// Nobody answers, or the connection broke.
    Broken,
}

#[derive(Debug)]
pub(super) enum Event {
    /// A node begins to look for the blob.
    Start(NodeIx, Life),
    /// The quarter of a second in which a flight looks around.
    Tick(NodeIx, Life),
    /// A candidate that rested may be tried again.
    Crew(NodeIx, Life),
    /// A flight asks control again.
    Ask(NodeIx, Life),
    /// The body of a sealed piece list has come.
    List(NodeIx, Life),
    /// Everything is there and hashed.
    Close(NodeIx, Life),
    /// A child's `Open` reaches the parent, or a reader's request the origin.
    Opened(FlowRef),
    /// The parent's `Blob`, or the origin's headers, reach the child.
    Served(FlowRef),
    /// The child learns that the stream is no more, or won't be.
    Failed(FlowRef, Why),
    /// `Want` reaches the parent.
    Want(FlowRef, Run),
    /// `Have` reaches the child.
    Have(FlowRef, Box<[Run]>),
    /// The parent may have something to show to this child.
    Show(FlowRef),
    /// A sender's uplink is free for the next block. The origin comes after the nodes.
    UpFree(u32),
    /// The last byte of a block is at the child's downlink.
    Landing(FlowRef, BlockIndex),
    /// The block is through the child's downlink.
    Arrive(FlowRef, BlockIndex),
    /// The child looks whether its parent is silent, late or of no use.
    Check(FlowRef),
    /// The parent learns that the child has closed the stream.
    Closed(FlowRef),
    /// A node's word reaches control.
    ToControl(Box<Said>),
    /// Control's words reach nodes.
    FromControl(Box<[(FinderId, Say)]>),
    /// Control's own time.
    ControlTick,
    /// Control stops; false: it is back.
    ControlAway(bool),
    /// It is seen who crashes.
    Fate,
    /// A crashed node is back.
    Return(NodeIx),
    /// A lease ends, unless the node was back in time.
    Lease(NodeIx, Box<NodeId>),
    /// A node has a session with control again.
    Session(NodeIx, Life),
    /// A seed is told to fetch: the order's number.
    Ordered(NodeIx, u64),
}

/// The running hash of every event: kind, moment, and whom it is about.
pub(super) struct Fingerprint {
    hash: Sha256,
    buffer: Vec<u8>,
    events: u64,
}

/// Hashed at once.
const BUFFER: usize = 64 << 10;

impl Fingerprint {
    pub(super) fn new() -> Self {
        Self { hash: Sha256::new(), buffer: Vec::with_capacity(BUFFER + 64), events: 0 }
    }

    pub(super) fn take(&mut self, at: Time, event: &Event) {
        self.events += 1;
        let (kind, a, b): (u8, u64, u64) = match event {
            Event::Start(node, life) => (0, u64::from(*node), u64::from(*life)),
            Event::Tick(node, life) => (1, u64::from(*node), u64::from(*life)),
            Event::Crew(node, life) => (2, u64::from(*node), u64::from(*life)),
            Event::Ask(node, life) => (3, u64::from(*node), u64::from(*life)),
            Event::List(node, life) => (4, u64::from(*node), u64::from(*life)),
            Event::Close(node, life) => (5, u64::from(*node), u64::from(*life)),
            Event::Opened(flow) => (6, flow.number(), 0),
            Event::Served(flow) => (7, flow.number(), 0),
            Event::Failed(flow, why) => (8, flow.number(), *why as u64),
            Event::Want(flow, run) => (9, flow.number(), number(*run)),
            Event::Have(flow, runs) => (10, flow.number(), runs.iter().fold(0, |sum, run| mix(sum ^ number(*run)))),
            Event::Show(flow) => (11, flow.number(), 0),
            Event::UpFree(sender) => (12, u64::from(*sender), 0),
            Event::Landing(flow, block) => (13, flow.number(), u64::from(*block)),
            Event::Arrive(flow, block) => (14, flow.number(), u64::from(*block)),
            Event::Check(flow) => (15, flow.number(), 0),
            Event::Closed(flow) => (16, flow.number(), 0),
            Event::ToControl(said) => (17, text(said), 0),
            Event::FromControl(words) => {
                (18, words.len() as u64, words.iter().fold(0, |sum, word| mix(sum ^ say(word))))
            }
            Event::ControlTick => (19, 0, 0),
            Event::ControlAway(away) => (20, u64::from(*away), 0),
            Event::Fate => (21, 0, 0),
            Event::Return(node) => (22, u64::from(*node), 0),
            Event::Lease(node, id) => (23, u64::from(*node), text(id)),
            Event::Session(node, life) => (24, u64::from(*node), u64::from(*life)),
            Event::Ordered(node, number) => (25, u64::from(*node), *number),
        };
        self.buffer.push(kind);
        for number in [at, a, b] {
            self.buffer.extend_from_slice(&number.to_le_bytes());
        }
        if self.buffer.len() >= BUFFER {
            self.hash.update(&self.buffer);
            self.buffer.clear();
        }
    }

    pub(super) const fn events(&self) -> u64 {
        self.events
    }

    pub(super) fn finish(mut self) -> String {
        self.hash.update(&self.buffer);
        hex::encode(self.hash.finalize())
    }
}

impl FlowRef {
    fn number(self) -> u64 {
        u64::from(self.slot) << 32 | u64::from(self.turn)
    }
}

fn number(run: Run) -> u64 {
    u64::from(run.first) << 32 | u64::from(run.count)
}

/// One word of control, without the parts that are the same for all.
fn say((finder, say): &(FinderId, Say)) -> u64 {
    let what = match say {
        Say::Parents(parents) => parents.iter().fold(1, |sum, parent| {
            let node = parent.node.as_str().bytes().fold(0, |sum: u64, byte| mix(sum ^ u64::from(byte)));
            mix(sum ^ node ^ u64::from(parent.complete))
        }),
        Say::Hashes { first, .. } => 2 + (u64::from(*first) << 8),
        other => text(other),
    };
    mix(finder.0) ^ what
}

/// Of what is rare: how it reads.
fn text(what: &impl std::fmt::Debug) -> u64 {
    format!("{what:?}").bytes().fold(0, |sum, byte| mix(sum ^ u64::from(byte)))
}

/// A step of SplitMix64 (Steele, Lea and Flood 2014).
pub(super) const fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Random numbers from a seed, the same on every machine and in every version.
#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0)
    }

    /// Below `bound`, which is above 0.
    pub(super) const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// From 0 to 1.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
