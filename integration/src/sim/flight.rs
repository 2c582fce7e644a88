//! A flight around its streams: asking control, reading the origin, counting blocks, closing. What stands here is what the
//! node's `blob::run` does, as far as it matters for time.

use std::collections::BTreeMap;

use control::swarm::{Ask, Event as Said, Grant, ParentSaid, Say, Signature, Stop, Tell};
use node_proxy::swarm::crew::{Crew, How};
use node_proxy::swarm::intake::Intake;
use node_proxy::swarm::pick::Board;
use node_proxy::swarm::{Parent, ParentAddr};
use shoal_proto::{BlockIndex, BlockSet};

use super::event::{Event, FlowRef, NodeIx, mix};
use super::node::{Flight, Stage};
use super::queue::{MILLISECOND, SECOND, Time};
use super::world::{World, node_at};

/// Progress to control and retries are looked at this often.
const TICK: Time = 250 * MILLISECOND;
/// With control gone, a flight that had no block for this long reads the origin itself.
const STALL: Time = 2 * SECOND;
/// Control is asked again this long after it went away.
const ASK_AGAIN: Time = SECOND;
/// From the last block to the announcement: the rest of the hash, the sync, the rename.
const CLOSE: Time = 5 * MILLISECOND;
/// Ticks between two heartbeats.
const HEARTBEAT: u32 = 4;

impl World {
    /// A flight begins, with what is on disk.
    pub(super) fn start(&mut self, at: NodeIx) {
        let (layout, now, config) = (self.layout, self.queue.now(), self.config.clone());
        let node = &mut self.nodes[at as usize];
        let mut board = Board::new(layout, config.window, mix(u64::from(at) ^ self.plan.seed << 32));
        for block in node.have.runs().iter().flat_map(shoal_proto::frame::Run::blocks) {
            board.set_known(block, true);
            board.set_done(block);
        }
        node.focus = node.have.first_missing(0);
        board.set_focuses(&[node.focus]);
        node.stage = Stage::Fetching;
        if node.crashes == 0 {
            node.started = now;
        }
        let flight = Flight {
            board,
            intake: Intake::default(),
            crew: Crew::new(config.streams),
            crew_at: None,
            parents: Vec::new(),
            named: Vec::new(),
            finder: None,
            ask_at: None,
            begun: !node.have.is_empty(),
            sealed: false,
            fetching_list: false,
            known: node.have.clone(),
            permits: BTreeMap::new(),
            reads: BTreeMap::new(),
            headers: false,
            origin_bytes: 0,
            told: 0,
            grown: (node.have.len(), now),
            kept: node.have.clone(),
        };
        node.flight = Some(Box::new(flight));
        self.ask_control(at);
        self.queue.after(TICK, Event::Tick(at, self.nodes[at as usize].life));
    }

    /// Says `Find`, if control can be reached.
    pub(super) fn ask_control(&mut self, at: NodeIx) {
        let reached = self.hub.up && self.nodes[at as usize].registered;
        let blocks = self.nodes[at as usize].have.len();
        let Some(flight) = self.flight(at).filter(|flight| flight.finder.is_none()) else { return };
        flight.ask_at = None;
        if !reached {
            self.ask_later(at, ASK_AGAIN);
            return self.without_control(at);
        }
        // One permit at most can be named, the one for what readers want first; what else is read stops.
        let permit = flight.permits.values().min_by_key(|grant| grant.first).copied().unwrap_or_default();
        flight.permits.retain(|id, _| *id == permit.id);
        let stopped: Vec<u64> = flight.reads.keys().copied().filter(|id| *id != 0 && *id != permit.id).collect();
        for id in stopped {
            self.leave_read(at, id);
        }
        let finder = self.hub.finder(at);
        let ask = Ask {
            digest: self.hub.digest,
            size: Some(self.layout.size()),
            registry: "registry.example".to_owned(),
            repository: "library/image".to_owned(),
            kind: shoal_proto::Kind::Blob,
            may_read_origin: true,
            blocks,
            permit,
            runs: true,
        };
        if let Some(flight) = self.flight(at) {
            flight.finder = Some(finder);
            flight.told = 0;
        }
        let node = self.nodes[at as usize].id.clone();
        self.tell_control(Said::Find { finder, node, ask });
        if permit.id != 0 {
            self.retell(at, permit.id);
        }
    }

    pub(super) fn ask_later(&mut self, at: NodeIx, wait: Time) {
        let due = self.queue.now() + wait;
        let life = self.nodes[at as usize].life;
        if let Some(flight) = self.flight(at).filter(|flight| flight.ask_at.is_none_or(|at| at > due)) {
            flight.ask_at = Some(due);
            self.queue.at(due, Event::Ask(at, life));
        }
    }

    /// After control came back in the middle of a read: it learns the list so far.
    fn retell(&mut self, at: NodeIx, permit: u64) {
        if !self.flight(at).is_some_and(|flight| flight.headers) {
            return;
        }
        self.tell(at, self.hub.headers(permit));
        for run in self.nodes[at as usize].have.runs() {
            self.tell(at, self.hub.hashes(run.first, run.count));
        }
    }

    /// Says a word on the flight's stream to control.
    pub(super) fn tell(&mut self, at: NodeIx, tell: Tell) {
        if let Some(finder) = self.flight(at).and_then(|flight| flight.finder) {
            self.tell_control(Said::Told { finder, tell });
        }
    }

    /// Takes control's word.
    pub(super) fn hear(&mut self, at: NodeIx, say: Say) {
        match say {
            Say::Parents(parents) => self.name(at, &parents),
            Say::Head { .. } => self.begin(at),
            Say::Hashes { first, hashes, .. } => {
                let Some(flight) = self.flight(at) else { return };
                for block in first..first + (hashes.len() / 32) as u32 {
                    flight.board.set_known(block, true);
                    flight.known.insert(block);
                }
                self.bump(at);
            }
            Say::Sealed { .. } => {
                if let Some(flight) = self.flight(at) {
                    flight.sealed = true;
                }
                self.begin(at);
                self.want_list(at);
            }
            Say::Permit(grant) => self.granted(at, grant),
            Say::Stop(Stop::Revoked) => {
                if let Some(flight) = self.flight(at) {
                    flight.permits.clear();
                }
                self.leave_origin(at);
            }
            Say::Stop(Stop::NoSession | Stop::Again(_) | Stop::Invalid(_)) => {
                if let Some(flight) = self.flight(at) {
                    flight.finder = None;
                }
                self.ask_later(at, TICK);
            }
            Say::Stop(Stop::NotFound | Stop::Alone) => {
                if let Some(flight) = self.flight(at) {
                    flight.finder = None;
                }
                self.without_control(at);
            }
            Say::Waiting(_) | Say::Author { .. } => {}
        }
    }

    /// Leave to read; of a permit that is known, another extent.
    fn granted(&mut self, at: NodeIx, grant: Grant) {
        let end = self.end_of(grant);
        let Some(flight) = self.flight(at) else { return };
        flight.permits.insert(grant.id, grant);
        let (read, without) = (flight.reads.get(&grant.id).copied(), flight.reads.contains_key(&0));
        let Some(flow) = read else {
            if !without {
                self.read_origin(at, grant.id);
            }
            if self.flight(at).is_some_and(|flight| !flight.reads.contains_key(&grant.id)) {
                let headers = self.hub.headers(grant.id);
                self.tell(at, headers);
                self.tell_held(at, grant.first, end);
            }
            return;
        };
        let Some(found) = self.flows.get_mut(flow) else { return };
        found.wants.clear();
        let from = found.next.max(grant.first);
        self.request(flow, from, end);
        self.take_turn(flow);
    }

    /// Tells of the blocks between that are here, whoever brought them.
    fn tell_held(&mut self, at: NodeIx, first: BlockIndex, end: BlockIndex) {
        for run in self.nodes[at as usize].have.runs() {
            let (from, to) = (run.first.max(first), run.blocks().end.min(end));
            if from < to {
                let hashes = self.hub.hashes(from, to - from);
                self.tell(at, hashes);
            }
        }
    }

    /// Where a permit's run ends.
    fn end_of(&self, grant: Grant) -> BlockIndex {
        match grant.blocks {
            0 => self.layout.blocks(),
            blocks => grant.first + blocks,
        }
    }

    fn begin(&mut self, at: NodeIx) {
        if let Some(flight) = self.flight(at) {
            flight.begun = true;
        }
        self.fill(at);
    }

    /// Takes control's candidates.
    fn name(&mut self, at: NodeIx, said: &[ParentSaid]) {
        let most = if self.plan.neighbours == 0 { usize::MAX } else { self.plan.neighbours };
        let parents = said.iter().take(most).map(|said| Parent {
            node: said.node.clone(),
            addr: ParentAddr(said.addr),
            complete: said.complete,
        });
        let parents: Vec<Parent> = parents.collect();
        let Some(flight) = self.flight(at) else { return };
        let retired = flight.crew.rename(&parents);
        flight.named = parents;
        for seat in &retired {
            flight.board.retire(*seat);
        }
        let idle: Vec<FlowRef> =
            self.nodes[at as usize].flight.iter().flat_map(|flight| &flight.parents).map(|(flow, _)| *flow).collect();
        for flow in idle {
            let found = self.flows.get(flow);
            if found.is_some_and(|flow| flow.joined && flow.owed.is_empty() && retired.contains(&flow.seat)) {
                self.end(flow, How::Left);
            }
        }
        self.fill(at);
        self.want_list(at);
    }

    /// Gets the body of a sealed list from a whole parent: a connection, and 32 bytes a block.
    fn want_list(&mut self, at: NodeIx) {
        let (blocks, delay) = (self.layout.blocks(), self.delay);
        let life = self.nodes[at as usize].life;
        let whole = |parent: &Parent| {
            self.nodes.get(node_at(parent.addr.0) as usize).is_some_and(|node| match &node.flight {
                Some(flight) => node.is_up() && flight.known.is_full(),
                None => node.stage == Stage::Held,
            })
        };
        let Some(flight) = &self.nodes[at as usize].flight else { return };
        if !flight.sealed || flight.fetching_list || flight.known.is_full() || !flight.named.iter().any(whole) {
            return;
        }
        let takes = self.nodes[at as usize].down_rate.takes(u64::from(blocks) * 32);
        if let Some(flight) = self.flight(at) {
            flight.fetching_list = true;
        }
        self.queue.after(6 * delay + takes, Event::List(at, life));
    }

    pub(super) fn list_came(&mut self, at: NodeIx) {
        let all = BlockSet::full(self.layout);
        let Some(flight) = self.flight(at) else { return };
        flight.board.set_all_known(all.clone());
        (flight.known, flight.fetching_list) = (all, false);
        self.bump(at);
    }

    /// Control is away: parents that serve go on serving; without any that does, the origin is read.
    fn without_control(&mut self, at: NodeIx) {
        let now = self.queue.now();
        let Some(flight) = self.flight(at) else { return };
        let serves = !flight.named.is_empty() && now < flight.grown.1 + STALL;
        if flight.reads.is_empty() && !serves {
            self.sums.outside_reads += 1;
            self.read_origin(at, 0);
        }
    }

    /// Reads what is missing of what a permit covers, or of all: a connection, TLS, the request.
    fn read_origin(&mut self, at: NodeIx, permit: u64) {
        let (origin, blocks, delay) = (self.origin_ix(), self.layout.blocks(), self.delay);
        let Some(flight) = self.flight(at).filter(|flight| !flight.reads.contains_key(&permit)) else { return };
        let grant = flight.permits.get(&permit).copied();
        let (first, end) = grant.map_or((0, blocks), |grant| (grant.first, self.end_of(grant)));
        if self.nodes[at as usize].have.first_missing(first) >= end {
            return;
        }
        let flow = self.flows.open(origin, at);
        if let Some(found) = self.flows.get_mut(flow) {
            (found.permit, found.next) = (permit, first);
        }
        self.request(flow, first, end);
        if let Some(flight) = self.flight(at) {
            flight.reads.insert(permit, flow);
        }
        // The connection of an earlier read is used again.
        let warm = self.flight(at).is_some_and(|flight| flight.headers);
        self.queue.after(if warm { delay } else { 5 * delay }, Event::Opened(flow));
    }

    fn leave_read(&mut self, at: NodeIx, permit: u64) {
        let Some(flow) = self.flight(at).and_then(|flight| flight.reads.remove(&permit)) else { return };
        self.drop_parents(at, vec![flow], self.delay);
    }

    pub(super) fn leave_origin(&mut self, at: NodeIx) {
        let Some(flight) = self.flight(at) else { return };
        let flows: Vec<FlowRef> = std::mem::take(&mut flight.reads).into_values().collect();
        self.drop_parents(at, flows, self.delay);
    }

    /// The origin answers.
    pub(super) fn headers(&mut self, at: NodeIx, flow: FlowRef) {
        let permit = self.flows.get(flow).map_or(0, |flow| flow.permit);
        let Some(flight) = self.flight(at) else { return };
        flight.headers = true;
        if flight.permits.contains_key(&permit) {
            let headers = self.hub.headers(permit);
            self.tell(at, headers);
        }
        self.begin(at);
    }

    /// A block of the origin: this node says what it is.
    pub(super) fn origin_gave(&mut self, flow: FlowRef, block: BlockIndex) {
        let Some(found) = self.flows.get(flow) else { return };
        let (at, permit, over) = (found.to, found.permit, found.wants.is_empty() && found.flying == 0);
        let len = self.layout.block_len(block) as u64;
        self.sums.origin_bytes += len;
        if self.nodes[at as usize].seed {
            self.sums.origin_to_seeds += len;
        }
        let hashes = self.hub.hashes(block, 1);
        let Some(flight) = self.flight(at) else { return };
        flight.origin_bytes += len;
        flight.board.set_known(block, true);
        flight.board.set_done(block);
        flight.known.insert(block);
        if !flight.permits.is_empty() {
            self.tell(at, hashes);
        }
        let node = &mut self.nodes[at as usize];
        node.first_hand.insert(block);
        if node.have.contains(block) {
            self.sums.spare_bytes += len;
        } else {
            self.got(at, block);
        }
        if over {
            let grant = self.flight(at).and_then(|flight| flight.permits.get(&permit).copied());
            if let Some(grant) = grant {
                self.tell_held(at, grant.first, self.end_of(grant));
            }
            self.leave_read(at, permit);
            if let Some(flight) = self.flight(at).filter(|_| grant.is_some_and(|grant| grant.blocks > 0)) {
                flight.permits.remove(&permit);
            }
        }
    }

    /// A block is verified and on disk.
    pub(super) fn got(&mut self, at: NodeIx, block: BlockIndex) {
        let now = self.queue.now();
        self.grew = now;
        self.sums.blocks += 1;
        let node = &mut self.nodes[at as usize];
        if !node.have.insert(block) {
            return;
        }
        node.focus = node.have.first_missing(node.focus);
        let (focus, blocks, full) = (node.focus, node.have.len(), node.have.is_full());
        if let Some(flight) = self.flight(at) {
            flight.board.set_focuses(&[focus]);
            if flight.told == 0 {
                flight.told = blocks;
                let tell = Tell::Progress { blocks, origin_bytes: flight.origin_bytes, fed: Vec::new() };
                self.tell(at, tell);
            }
        }
        self.grew(at);
        if full {
            let node = &mut self.nodes[at as usize];
            node.stage = Stage::Closing;
            let (life, delay) = (node.life, self.delay);
            if let Some(flight) = self.flight(at) {
                let parents = std::mem::take(&mut flight.parents).into_iter().map(|(flow, _)| flow).collect();
                self.drop_parents(at, parents, delay);
            }
            self.queue.after(CLOSE, Event::Close(at, life));
        }
    }

    /// The whole is hashed and held.
    pub(super) fn closed_whole(&mut self, at: NodeIx) {
        let meta = self.hub.meta();
        self.tell(at, Tell::Done(meta, Signature::new()));
        self.leave_origin(at);
        let now = self.queue.now();
        let node = &mut self.nodes[at as usize];
        node.stage = Stage::Held;
        if node.done.is_none() {
            node.done = Some(now);
            self.left -= 1;
        }
        if let Some(finder) = node.flight.take().and_then(|flight| flight.finder) {
            self.tell_control(Said::Ended { finder, clean: true });
        }
    }

    pub(super) fn tick(&mut self, at: NodeIx) {
        let now = self.queue.now();
        let node = &mut self.nodes[at as usize];
        node.ticks += 1;
        let (life, blocks, registered) = (node.life, node.have.len(), node.registered);
        if node.ticks.is_multiple_of(HEARTBEAT) && registered && self.hub.up {
            let load = Said::Load { node: node.id.clone(), uploads: node.uploads, slots: self.peer.upload_slots };
            self.tell_control(load);
        }
        let held = self.nodes[at as usize].stage == Stage::Held;
        self.queue.after(if held { TICK * Time::from(HEARTBEAT) } else { TICK }, Event::Tick(at, life));
        if held {
            self.nodes[at as usize].ticks |= HEARTBEAT - 1;
        }
        let kept = self.nodes[at as usize].have.clone();
        let Some(flight) = self.flight(at) else { return };
        flight.kept = kept;
        if blocks > flight.grown.0 {
            flight.grown = (blocks, now);
        }
        let (alone, quiet) = (flight.finder.is_none(), now >= flight.grown.1 + STALL);
        if blocks > flight.told {
            flight.told = blocks;
            let tell = Tell::Progress { blocks, origin_bytes: flight.origin_bytes, fed: Vec::new() };
            self.tell(at, tell);
        }
        self.want_list(at);
        if alone && quiet {
            self.without_control(at);
        }
    }

    /// What is on disk after a crash.
    pub(super) fn kept(&self, at: NodeIx) -> BlockSet {
        let node = &self.nodes[at as usize];
        match (&node.flight, node.stage) {
            (_, Stage::Held | Stage::Closing) => node.have.clone(),
            (Some(flight), _) => flight.kept.clone(),
            (None, _) => BlockSet::empty(self.layout),
        }
    }
}
