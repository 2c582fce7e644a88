//! The child's half: which parents to use, what to ask of them, and what comes. Whom and what are decisions of
//! `swarm::crew` and `swarm::pick`; what stands here is what `swarm::fetch` and `swarm::stream` do around them.

use std::time::Duration;

use control::swarm::Tell;
use node_proxy::swarm::crew::How;
use shoal_proto::BlockIndex;
use shoal_proto::frame::Run;

use super::event::{Event, FlowRef, NodeIx, Why, mix};
use super::node::{Down, Flight};
use super::queue::Time;
use super::world::{World, node_at};

/// One block in so many of a liar is wrong.
const LIES: u64 = 8;

fn nanos(duration: Duration) -> Time {
    duration.as_nanos() as Time
}

impl World {
    pub(super) fn flight(&mut self, node: NodeIx) -> Option<&mut Flight> {
        self.nodes[node as usize].flight.as_deref_mut()
    }

    /// Opens streams while the crew says so.
    pub(super) fn fill(&mut self, node: NodeIx) {
        let now = self.instant();
        loop {
            let Some(flight) = self.flight(node).filter(|flight| flight.begun) else { return };
            let Some(start) = flight.crew.start(now, &flight.board) else { break };
            let parent = node_at(start.parent.addr.0);
            let flow = self.flows.open(parent, node);
            let seat = start.seat;
            if let Some(found) = self.flows.get_mut(flow) {
                (found.seat, found.score) = (seat, start.score);
            }
            if let Some(flight) = self.flight(node) {
                flight.parents.push((flow, seat));
            }
            self.dial(flow);
        }
        let Some(flight) = self.flight(node) else { return };
        let due = flight.crew.due(now);
        let set = flight.crew_at;
        if let Some(due) = due.map(|due| self.time(due))
            && set.is_none_or(|at| at > due)
        {
            let life = self.nodes[node as usize].life;
            if let Some(flight) = self.flight(node) {
                flight.crew_at = Some(due);
            }
            self.queue.at(due, Event::Crew(node, life));
        }
    }

    /// On a rested connection `Open` goes out at once; else two round trips go before it, for TCP and for the hellos.
    fn dial(&mut self, flow: FlowRef) {
        let Some(found) = self.flows.get(flow) else { return };
        let (parent, child) = (found.from, found.to as usize);
        match self.nodes[parent as usize].down {
            Some(Down::Process) => {
                self.queue.after(2 * self.delay, Event::Failed(flow, Why::Broken));
                return self.parent_lets_go(flow);
            }
            Some(Down::Machine) => {
                self.queue.after(nanos(self.config.connect_timeout), Event::Failed(flow, Why::Broken));
                return self.parent_lets_go(flow);
            }
            None => {}
        }
        self.sums.dials += 1;
        let rested = &mut self.nodes[child].rested;
        let pooled = rested.iter().position(|rested| *rested == parent).map(|at| rested.swap_remove(at)).is_some();
        self.queue.after(if pooled { self.delay } else { 5 * self.delay }, Event::Opened(flow));
        // As long as a parent that does not answer is waited for.
        self.check_in(flow, nanos(self.config.silence) + 4 * self.delay);
    }

    /// The parent serves. The origin: its headers are here.
    pub(super) fn served(&mut self, flow: FlowRef) {
        let now = self.queue.now();
        let origin = self.origin_ix();
        let useless = nanos(self.config.useless_after);
        let Some(found) = self.flows.get_mut(flow).filter(|flow| flow.child_open) else { return };
        let (from, to) = (found.from, found.to);
        (found.heard, found.useful, found.owing_since) = (now, now, now);
        found.joined = true;
        let seat = found.seat;
        if from == origin {
            return self.headers(to, flow);
        }
        if let Some(flight) = self.flight(to) {
            flight.board.join(seat);
        }
        self.check_in(flow, useless);
    }

    /// Plans a look after the stream in so long, unless an earlier one is planned: it plans the next.
    fn check_in(&mut self, flow: FlowRef, wait: Time) {
        let at = self.queue.now() + wait;
        if let Some(found) = self.flows.get_mut(flow).filter(|flow| flow.check_at == 0 || flow.check_at > at) {
            found.check_at = at;
            self.queue.at(at, Event::Check(flow));
        }
    }

    /// The child learns that the stream is over.
    pub(super) fn failed(&mut self, flow: FlowRef, why: Why) {
        let Some(found) = self.flows.get(flow).filter(|flow| flow.child_open) else { return };
        let to = found.to;
        if found.from == self.origin_ix() {
            return;
        }
        let how = match why {
            Why::Busy => How::Busy(self.peer.retry_after),
            Why::Gone | Why::Broken => How::Lost,
        };
        self.end(flow, how);
        self.bump(to);
    }

    /// `Have` reaches the child.
    pub(super) fn shown(&mut self, flow: FlowRef, runs: &[Run]) {
        let now = self.queue.now();
        let Some(found) = self.flows.get_mut(flow).filter(|flow| flow.child_open && flow.joined) else { return };
        found.heard = now;
        let (to, seat) = (found.to, found.seat);
        if let Some(flight) = self.flight(to) {
            flight.board.show(seat, runs);
        }
        self.top_up(flow);
    }

    /// Keeps wants queued at the parent.
    pub(super) fn top_up(&mut self, flow: FlowRef) {
        let (now, instant) = (self.queue.now(), self.instant());
        let (most, silence) = (self.config.queue, nanos(self.config.silence));
        loop {
            let Some(found) = self.flows.get_mut(flow).filter(|flow| flow.child_open && flow.joined) else { return };
            let Some(flight) = self.nodes[found.to as usize].flight.as_deref_mut() else { return };
            if found.owed.len() >= flight.board.queue(most) {
                return;
            }
            flight.board.set_most(flight.intake.most(instant));
            let Some(run) = flight.board.ask(found.seat) else { return };
            if found.owed.is_empty() {
                found.owing_since = now;
                self.check_in(flow, silence);
            }
            let Some(found) = self.flows.get_mut(flow) else { return };
            found.owed.push_back(run.count);
            self.queue.after(self.delay, Event::Want(flow, run));
        }
    }

    /// Something changed that may give any stream of the node something to ask for.
    pub(super) fn bump(&mut self, node: NodeIx) {
        let Some(flight) = self.flight(node) else { return };
        for at in 0..flight.parents.len() {
            let Some(flight) = self.flight(node) else { return };
            let Some((flow, seat)) = flight.parents.get(at).copied() else { return };
            if flight.board.may_ask(seat) {
                self.top_up(flow);
            }
        }
    }

    /// A block is through the downlink.
    pub(super) fn arrive(&mut self, flow: FlowRef, block: BlockIndex) {
        let (now, instant) = (self.queue.now(), self.instant());
        let origin = self.origin_ix();
        let len = self.layout.block_len(block) as u64;
        let Some(found) = self.flows.get_mut(flow) else { return };
        found.flying -= 1;
        let (from, to, seat, open) = (found.from, found.to, found.seat, found.child_open);
        self.take_turn(flow);
        if !open {
            self.sums.lost_bytes += len;
            return;
        }
        if from == origin {
            return self.origin_gave(flow, block);
        }
        let lie = self.nodes[from as usize].liar && mix(u64::from(block) << 32 | u64::from(to)).is_multiple_of(LIES);
        let Some(found) = self.flows.get_mut(flow) else { return };
        let Some(flight) = self.nodes[to as usize].flight.as_deref_mut() else { return };
        debug_assert_eq!(flight.board.awaited(seat), Some(block), "blocks come in the order of the wants");
        if lie {
            self.sums.lies += 1;
            let node = self.nodes[from as usize].id.clone();
            self.tell(to, Tell::Lied { node, block });
            self.end(flow, How::Lied);
            return self.bump(to);
        }
        flight.intake.landed(instant);
        let first = flight.board.land(seat);
        found.score.served(len as usize, Duration::from_nanos(now - found.owing_since));
        (found.owing_since, found.heard, found.useful) = (now, now, now);
        if let Some(left) = found.owed.front_mut() {
            *left -= 1;
            if *left == 0 {
                found.owed.pop_front();
            }
        }
        if std::mem::take(&mut found.late) {
            flight.board.set_late(seat, false);
        }
        flight.board.set_rate(seat, found.score.rate());
        flight.board.settle(seat, first);
        if first {
            self.got(to, block);
        } else {
            self.sums.spare_bytes += len;
        }
        self.bump(to);
    }

    /// The child looks after one stream: the same limits in the same order as in `swarm::stream`.
    pub(super) fn check(&mut self, flow: FlowRef) {
        let now = self.queue.now();
        let instant = self.instant();
        let (silence, patience) = (nanos(self.config.silence), nanos(self.config.patience));
        let useless = nanos(self.config.useless_after);
        let Some(found) = self.flows.get_mut(flow).filter(|flow| flow.child_open) else { return };
        let (to, seat) = (found.to, found.seat);
        if found.check_at != now || found.from as usize >= self.nodes.len() {
            return;
        }
        found.check_at = 0;
        if !found.joined {
            // Nobody has answered to `Open` in time.
            self.end(flow, How::Lost);
            return self.bump(to);
        }
        let Some(flight) = self.nodes[to as usize].flight.as_deref_mut() else { return };
        let owes = !found.owed.is_empty();
        if owes {
            found.useful = now;
            if found.flying > 0 && now >= found.heard.max(found.owing_since) + silence {
                // Its bytes arrive.
                found.heard = now;
            }
            if now >= found.owing_since + patience || now >= found.heard.max(found.owing_since) + silence {
                self.end(flow, How::Lost);
                return self.bump(to);
            }
            let late = now >= found.owing_since + silence;
            let next = if late { found.owing_since + patience } else { found.owing_since + silence };
            let next = next.min(found.heard.max(found.owing_since) + silence);
            let changed = found.late != late;
            found.late = late;
            if changed {
                flight.board.set_late(seat, late);
                flight.board.set_idle(seat, late && found.flying == 0);
                if late {
                    flight.intake.late(instant);
                }
            }
            self.check_in(flow, next - now);
            if changed {
                self.bump(to);
            }
            return;
        }
        if flight.board.is_retired(seat) {
            self.end(flow, How::Left);
            return self.bump(to);
        }
        if now >= found.useful + useless && flight.crew.has_spare(instant) {
            self.sums.useless += 1;
            self.end(flow, How::Useless);
            return self.bump(to);
        }
        self.check_in(flow, useless / 4);
    }

    /// The child's half of a stream ends; its blocks are free for others, and its place for another parent.
    pub(super) fn end(&mut self, flow: FlowRef, how: How) {
        let Some(to) = self.child_lets_go(flow, how) else { return };
        self.fill(to);
    }

    /// The same without looking for another parent.
    fn child_lets_go(&mut self, flow: FlowRef, how: How) -> Option<NodeIx> {
        let now = self.instant();
        let found = self.flows.get_mut(flow).filter(|flow| flow.child_open)?;
        found.child_open = false;
        let (from, to, seat, joined) = (found.from, found.to, found.seat, found.joined);
        let settled = found.owed.is_empty();
        let score = std::mem::take(&mut found.score);
        let parent_open = found.parent_open;
        let node = &mut self.nodes[to as usize];
        if let Some(flight) = node.flight.as_deref_mut() {
            flight.board.leave(seat);
            flight.crew.ended(seat, score, how, now);
            flight.parents.retain(|(other, _)| *other != flow);
        }
        if settled && joined && matches!(how, How::Left | How::Useless | How::Busy(_)) {
            node.rested.push(from);
        }
        if parent_open {
            self.queue.after(self.delay, Event::Closed(flow));
        } else {
            self.flows.settle(flow);
        }
        match how {
            How::Lost => {
                self.sums.lost += 1;
                let node = self.nodes[from as usize].id.clone();
                self.tell(to, Tell::Lost { node });
            }
            How::Busy(_) => self.sums.busy += 1,
            How::Left | How::Useless | How::Lied => {}
        }
        Some(to)
    }

    /// All streams of a node to its parents end. `told`: after what time the parents know.
    pub(super) fn drop_parents(&mut self, node: NodeIx, parents: Vec<FlowRef>, told: Time) {
        for flow in parents {
            let Some(found) = self.flows.get_mut(flow).filter(|flow| flow.child_open) else { continue };
            found.child_open = false;
            let (from, settled) = (found.from, found.owed.is_empty() && found.joined);
            if found.parent_open {
                self.queue.after(told, Event::Closed(flow));
            } else {
                self.flows.settle(flow);
            }
            if settled && (from as usize) < self.nodes.len() {
                self.nodes[node as usize].rested.push(from);
            }
        }
    }
}
