//! Streams of blocks and the links that carry them.
//!
//! A sender (a node's uplink, or the origin) serves its streams in turn, one block each: that is the fair share of TCP
//! closely enough. A stream has at most [`WINDOW`] blocks between the two ends, so that a slow receiver holds up its own
//! stream and no other. A receiver's downlink passes blocks in the order in which their last byte arrives.

use std::collections::VecDeque;

use node_proxy::peer::show::Child;
use node_proxy::swarm::pick::Seat;
use node_proxy::swarm::score::Score;
use shoal_proto::BlockIndex;
use shoal_proto::frame::Run;

use super::event::{FlowRef, NodeIx};
use super::plan::Rate;
use super::queue::Time;

/// 4 MiB of blocks at 256 KiB: what a TCP stream has under way at most with the buffers that Linux gives by default.
pub(super) const WINDOW: u32 = 16;

/// One stream: from its `Open` until both ends know that it is over.
#[derive(Debug, Default)]
pub(super) struct Flow {
    turn: u32,
    pub(super) from: u32,
    pub(super) to: NodeIx,
    /// This end still uses it.
    pub(super) parent_open: bool,
    pub(super) child_open: bool,

    // The sender's half.
    /// `Open` was answered: a slot is in use.
    pub(super) served: bool,
    pub(super) child: Child,
    pub(super) wants: VecDeque<Run>,
    /// The permit under which the origin is read.
    pub(super) permit: u64,
    /// The block after the last that was sent.
    pub(super) next: BlockIndex,
    /// Waits for its turn at the uplink.
    pub(super) queued: bool,
    /// Blocks on their way.
    pub(super) flying: u32,

    // The receiver's half.
    pub(super) seat: Seat,
    pub(super) score: Score,
    /// The parent has answered: the seat is on the board.
    pub(super) joined: bool,
    /// Blocks still to come of each want, in order.
    pub(super) owed: VecDeque<u32>,
    pub(super) owing_since: Time,
    pub(super) heard: Time,
    pub(super) useful: Time,
    pub(super) late: bool,
    /// When the child looks after it next; 0: not planned.
    pub(super) check_at: Time,
}

/// All streams. A slot is used again; a stale reference finds nothing.
#[derive(Debug, Default)]
pub(super) struct Flows {
    all: Vec<Flow>,
    free: Vec<u32>,
}

impl Flows {
    /// A new stream, of which both ends are open.
    pub(super) fn open(&mut self, from: u32, to: NodeIx) -> FlowRef {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.all.push(Flow::default());
            self.all.len() as u32 - 1
        });
        let flow = &mut self.all[slot as usize];
        let turn = flow.turn + 1;
        *flow = Flow { turn, from, to, parent_open: true, child_open: true, ..Flow::default() };
        FlowRef { slot, turn }
    }

    pub(super) fn get(&self, flow: FlowRef) -> Option<&Flow> {
        self.all.get(flow.slot as usize).filter(|found| found.turn == flow.turn)
    }

    pub(super) fn get_mut(&mut self, flow: FlowRef) -> Option<&mut Flow> {
        self.all.get_mut(flow.slot as usize).filter(|found| found.turn == flow.turn)
    }

    /// Frees the slot once both ends are closed.
    pub(super) fn settle(&mut self, flow: FlowRef) {
        if let Some(found) = self.get_mut(flow).filter(|flow| !flow.parent_open && !flow.child_open) {
            found.turn += 1;
            found.wants = VecDeque::new();
            found.owed = VecDeque::new();
            self.free.push(flow.slot);
        }
    }
}

/// A link's sending half.
#[derive(Debug)]
pub(super) struct Uplink {
    pub(super) rate: Rate,
    pub(super) busy: bool,
    /// Whose turn it is: streams with something to send.
    pub(super) turns: VecDeque<FlowRef>,
}

impl Uplink {
    pub(super) const fn new(rate: Rate) -> Self {
        Self { rate, busy: false, turns: VecDeque::new() }
    }
}
