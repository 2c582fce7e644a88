//! Control: the very machine that `shoal-control` runs, with a delay between it and every node.

use bytes::Bytes;
use control::swarm::{
    Announced, Cause, Effect, Event as Said, FinderId, Member, Meta, Notice, Reply, Say, Signature, State, Tell,
};
use shoal_proto::{ClusterId, Digest, Hash, Layout, PieceList};

use super::event::{Event, NodeIx};
use super::node::Stage;
use super::queue::{SECOND, Time};
use super::world::{World, addr_of};

/// Control has been running for so long when the run begins: its first seconds are over.
const LEAD: Time = 10 * SECOND;
/// How long it is away at a restart.
const AWAY: Time = SECOND;
/// After it is back, nodes come within this: their back-off has grown meanwhile.
const COME_BACK: Time = SECOND;

pub(super) struct Hub {
    pub(super) state: State,
    pub(super) up: bool,
    pub(super) digest: Digest,
    layout: Layout,
    list: PieceList,
    meta: Meta,
    cluster: ClusterId,
    /// When this control started, and how long it had been running then.
    born: Time,
    lead: Time,
    tick_at: Option<Time>,
    /// The node behind each finder, by its number.
    finders: Vec<NodeIx>,
    pub(super) granted: u64,
    pub(super) moved: u64,
    pub(super) moved_slow: u64,
}

/// The hash of a block, as good as any.
fn hash_of(block: u32) -> Hash {
    PieceList::hash(&block.to_le_bytes())
}

impl Hub {
    pub(super) fn new(digest: Digest, layout: Layout, nodes: u32) -> Self {
        let mut list = PieceList::new(layout);
        for block in 0..layout.blocks() {
            list.set(block, hash_of(block)).expect("every block is set once");
        }
        let root = list.root().expect("the list is complete");
        let meta = Meta { size: layout.size(), root, media_type: String::new() };
        Self {
            state: State::new(),
            up: true,
            digest,
            layout,
            list,
            meta,
            cluster: "sim".parse().expect("a short text without spaces"),
            born: 0,
            lead: LEAD,
            tick_at: None,
            finders: Vec::with_capacity(nodes as usize),
            granted: 0,
            moved: 0,
            moved_slow: 0,
        }
    }

    /// A new Find stream of a node.
    pub(super) fn finder(&mut self, node: NodeIx) -> FinderId {
        self.finders.push(node);
        FinderId(self.finders.len() as u64)
    }

    pub(super) fn headers(&self, permit: u64) -> Tell {
        Tell::Headers { permit, size: self.layout.size(), media_type: String::new(), signature: Signature::new() }
    }

    pub(super) fn hashes(&self, first: u32, count: u32) -> Tell {
        let hashes =
            (first..first + count).filter_map(|block| self.list.get(block)).flatten().copied().collect::<Vec<u8>>();
        Tell::Hashes { first, hashes: Bytes::from(hashes), signature: Signature::new() }
    }

    pub(super) fn meta(&self) -> Meta {
        self.meta.clone()
    }

    fn count(&mut self, notice: &Notice) {
        match notice {
            Notice::Granted { .. } => self.granted += 1,
            Notice::Moved { cause, .. } => {
                self.moved += 1;
                self.moved_slow += u64::from(*cause == Cause::Slow);
            }
            _ => {}
        }
    }
}

impl World {
    /// A word goes to control.
    pub(super) fn tell_control(&mut self, said: Said) {
        self.queue.after(self.delay, Event::ToControl(Box::new(said)));
    }

    pub(super) fn hub_hears(&mut self, said: Said) {
        if !self.hub.up {
            return;
        }
        let at = std::time::Duration::from_nanos(self.queue.now() - self.hub.born + self.hub.lead);
        let effects = self.hub.state.apply(at, self.dice.next(), said);
        let mut words: Vec<(FinderId, Say)> = Vec::with_capacity(effects.len());
        for effect in effects {
            match effect {
                Effect::Say(finder, say) => words.push((finder, say)),
                Effect::Notice { notice, .. } => self.hub.count(&notice),
                Effect::Order { back: true, .. } => {}
                Effect::Order { seed, order, back: false } => {
                    let at = self.nodes.iter().position(|node| node.id == seed).expect("a seed is a node") as NodeIx;
                    self.queue.after(self.delay, Event::Ordered(at, order.number));
                }
            }
        }
        if !words.is_empty() {
            self.queue.after(self.delay, Event::FromControl(words.into_boxed_slice()));
        }
        let next = self.hub.state.next_tick().map(|at| at.as_nanos() as Time + self.hub.born);
        if let Some(next) = next.map(|at| at.saturating_sub(self.hub.lead))
            && self.hub.tick_at.is_none_or(|at| at > next)
        {
            self.hub.tick_at = Some(next);
            self.queue.at(next, Event::ControlTick);
        }
    }

    pub(super) fn hub_ticks(&mut self) {
        if self.hub.tick_at.is_some_and(|at| at <= self.queue.now()) {
            self.hub.tick_at = None;
            self.hub_hears(Said::Tick);
        }
    }

    pub(super) fn hub_says(&mut self, words: Box<[(FinderId, Say)]>) {
        for (finder, say) in words {
            let Some(node) = self.hub.finders.get(finder.0 as usize - 1).copied() else { continue };
            if self.flight(node).is_some_and(|flight| flight.finder == Some(finder)) {
                self.hear(node, say);
            }
        }
    }

    /// A seed is told to fetch. One that is down hears nothing.
    pub(super) fn ordered(&mut self, at: NodeIx, number: u64) {
        let node = &self.nodes[at as usize];
        if node.deaf || node.down.is_some() {
            return;
        }
        let (seed, digest) = (node.id.clone(), self.hub.digest);
        let idle = node.stage == Stage::Down;
        self.tell_control(Said::Answered { seed, number, digest, answer: Reply::Begins });
        if idle {
            self.left += 1;
            self.start(at);
        }
    }

    /// A node's session begins.
    pub(super) fn hub_registers(&mut self, at: NodeIx) {
        if !self.hub.up {
            return;
        }
        let node = &mut self.nodes[at as usize];
        node.registered = true;
        let member = Member {
            node: node.id.clone(),
            cluster: Some(self.hub.cluster.clone()),
            addr: addr_of(at),
            location: Vec::new(),
            seed: node.seed,
            orders: true,
        };
        let held = if node.stage == Stage::Held {
            vec![(self.hub.digest, self.hub.meta(), Signature::new())]
        } else {
            Vec::new()
        };
        let what = Announced { reset: true, held, dropped: Vec::new(), complete: true };
        let (id, restarted) = (node.id.clone(), node.crashes > 0);
        self.hub_hears(Said::Registered { member, restarted });
        self.hub_hears(Said::Announced { node: id, what });
    }

    /// Control stops: every stream to it breaks.
    pub(super) fn hub_goes(&mut self) {
        self.hub.up = false;
        for at in 0..self.nodes.len() as NodeIx {
            self.nodes[at as usize].registered = false;
            let delay = self.delay;
            if let Some(flight) = self.flight(at) {
                flight.finder = None;
                self.ask_later(at, delay);
            }
        }
        self.queue.after(AWAY, Event::ControlAway(false));
    }

    /// Control is back, and knows nothing.
    pub(super) fn hub_returns(&mut self) {
        self.hub.state = State::new();
        self.hub.up = true;
        (self.hub.born, self.hub.lead, self.hub.tick_at) = (self.queue.now(), 0, None);
        for at in 0..self.nodes.len() as NodeIx {
            if self.nodes[at as usize].down.is_none() {
                let wait = self.dice.below(COME_BACK);
                self.queue.after(wait, Event::Session(at, self.nodes[at as usize].life));
            }
        }
    }
}
