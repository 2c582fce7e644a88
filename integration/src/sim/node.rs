//! One simulated node: what it has, whom it serves and whom it asks.

use std::collections::BTreeMap;

use control::swarm::{FinderId, Grant};
use node_proxy::peer::show::{Child, Show};
use node_proxy::swarm::Parent;
use node_proxy::swarm::crew::Crew;
use node_proxy::swarm::intake::Intake;
use node_proxy::swarm::pick::{Board, Seat};
use shoal_proto::{BlockIndex, BlockSet, Layout, NodeId};

use super::event::{FlowRef, Life};
use super::links::Uplink;
use super::plan::Rate;
use super::queue::Time;

/// Where a node is with the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not started yet, or crashed.
    Down,
    /// Its flight runs.
    Fetching,
    /// The last block is in; it hashes and syncs.
    Closing,
    /// It holds the whole.
    Held,
}

/// How a node went down, which says who notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Down {
    /// The process: its connections are reset at once.
    Process,
    /// The machine: nothing is heard of it any more.
    Machine,
}

/// A flight, from its `Find` to its end.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) board: Board,
    pub(super) intake: Intake,
    pub(super) crew: Crew,
    pub(super) crew_at: Option<Time>,
    /// Streams to parents, those included that have not answered yet, and their seats on the board.
    pub(super) parents: Vec<(FlowRef, Seat)>,
    pub(super) named: Vec<Parent>,
    /// The stream to control.
    pub(super) finder: Option<FinderId>,
    pub(super) ask_at: Option<Time>,
    /// Size and layout are known.
    pub(super) begun: bool,
    pub(super) sealed: bool,
    pub(super) fetching_list: bool,
    /// Blocks whose hashes are known.
    pub(super) known: BlockSet,
    /// Permits by their number.
    pub(super) permits: BTreeMap<u64, Grant>,
    /// Reads of the origin by their permit; 0: without one.
    pub(super) reads: BTreeMap<u64, FlowRef>,
    /// The origin's headers came.
    pub(super) headers: bool,
    pub(super) origin_bytes: u64,
    /// Blocks of the last progress.
    pub(super) told: u32,
    /// Blocks at the last look, and when they last grew.
    pub(super) grown: (u32, Time),
    /// Blocks that are on disk for sure.
    pub(super) kept: BlockSet,
}

/// What is looked at of a child for each block that its parent gets.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) flow: FlowRef,
    pub(super) child: Child,
    /// Blocks that the parent got since it last looked at what to show.
    pub(super) grown: u32,
    pub(super) show_at: Option<Time>,
}

/// A node, through all its lives.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) life: Life,
    pub(super) stage: Stage,
    pub(super) down: Option<Down>,
    pub(super) slow: bool,
    pub(super) liar: bool,
    pub(super) seed: bool,
    /// It says nothing to an order.
    pub(super) deaf: bool,
    pub(super) up: Uplink,
    pub(super) down_rate: Rate,
    pub(super) down_free: Time,
    pub(super) have: BlockSet,
    /// What of it came from the origin to this node.
    pub(super) first_hand: BlockSet,
    /// The first missing block.
    pub(super) focus: BlockIndex,
    pub(super) show: Show,
    pub(super) children: Vec<Served>,
    /// Blobs being served.
    pub(super) uploads: u32,
    pub(super) flight: Option<Box<Flight>>,
    /// Parents to which a connection rests.
    pub(super) rested: Vec<u32>,
    /// Control knows of this life.
    pub(super) registered: bool,
    pub(super) ticks: u32,

    pub(super) started: Time,
    pub(super) done: Option<Time>,
    pub(super) crashes: u32,
}

impl Node {
    /// Whether it has blocks to serve, or soon will.
    pub(super) fn offers(&self) -> bool {
        match self.stage {
            Stage::Down => false,
            Stage::Fetching => self.flight.as_ref().is_some_and(|flight| flight.begun),
            Stage::Closing | Stage::Held => true,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.stage != Stage::Down
    }

    /// What is had of the blob, for a message.
    pub(super) fn describe(&self, layout: Layout) -> String {
        let mut text =
            format!("{} is {:?} with {} of {} blocks", self.id, self.stage, self.have.len(), layout.blocks());
        if let Some(flight) = &self.flight {
            let missing: Vec<BlockIndex> = flight.board.missing().take(8).collect();
            text += &format!(
                ", knows {} hashes, lacks {missing:?}, has {} streams and {} named parents, permits: {:?}, reads of the origin: {}",
                flight.known.len(),
                flight.parents.len(),
                flight.named.len(),
                flight.permits.values().collect::<Vec<_>>(),
                flight.reads.len(),
            );
        }
        text
    }
}
