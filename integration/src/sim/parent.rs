//! The parent's half of a stream, and the origin's: answering, showing, sending. What to show is `peer::show`'s decision.

use node_proxy::peer::show::Opening;
use shoal_proto::BlockIndex;
use shoal_proto::frame::Run;

use super::event::{Event, FlowRef, NodeIx, Why};
use super::node::{Served, Stage};
use super::queue::Time;
use super::world::{World, since};

/// So much growth is looked at without waiting for `have_every`, as the serving loop does.
const MUCH_GROWTH: u32 = 16;

impl World {
    /// `Open` reaches the parent, or a request the origin.
    pub(super) fn opened(&mut self, flow: FlowRef) {
        let Some(found) = self.flows.get(flow) else { return };
        let from = found.from;
        if !found.parent_open {
            return;
        }
        if from == self.origin_ix() {
            self.queue.after(self.delay, Event::Served(flow));
            self.take_turn(flow);
            return;
        }
        let now = self.instant();
        let known = self.nodes[found.to as usize].flight.as_ref();
        let holders = known.map_or(0, |flight| flight.named.iter().filter(|parent| parent.complete).count() as u32);
        let node = &mut self.nodes[from as usize];
        let refused = if !node.is_up() {
            Some(Why::Broken)
        } else if node.uploads >= self.peer.upload_slots {
            Some(Why::Busy)
        } else if !node.offers() {
            Some(Why::Gone)
        } else {
            None
        };
        if let Some(why) = refused {
            self.queue.after(self.delay, Event::Failed(flow, why));
            self.parent_lets_go(flow);
            return;
        }
        node.uploads += 1;
        let opening = Opening { holders, whole: node.have.is_full() };
        let child = node.show.join(opening, now);
        node.children.push(Served { flow, child, grown: 0, show_at: None });
        if let Some(found) = self.flows.get_mut(flow) {
            found.served = true;
            found.child = child;
        }
        self.queue.after(self.delay, Event::Served(flow));
        self.show(flow);
    }

    /// `Want` reaches the parent.
    pub(super) fn wanted(&mut self, flow: FlowRef, run: Run) {
        let Some(found) = self.flows.get_mut(flow).filter(|flow| flow.parent_open) else { return };
        found.wants.push_back(run);
        let (from, child) = (found.from, found.child);
        let now = self.instant();
        self.nodes[from as usize].show.wanted(child, run, now);
        self.show(flow);
        self.take_turn(flow);
    }

    /// A node has one block more: its children may be shown it.
    pub(super) fn grew(&mut self, node: NodeIx) {
        let now = self.queue.now();
        for at in 0..self.nodes[node as usize].children.len() {
            let child = &mut self.nodes[node as usize].children[at];
            child.grown += 1;
            // Otherwise the timer that is set looks at it.
            if child.grown >= MUCH_GROWTH || child.show_at.is_none_or(|at| at <= now) {
                self.show_to(node, at);
            }
        }
    }

    /// What is lent to one child may be free for another.
    pub(super) fn show_all(&mut self, node: NodeIx) {
        for at in 0..self.nodes[node as usize].children.len() {
            self.show_to(node, at);
        }
    }

    /// Shows a child what is to be shown now, if its stream is still open.
    pub(super) fn show(&mut self, flow: FlowRef) {
        if let Some((node, at)) = self.served_at(flow) {
            self.show_to(node, at);
        }
    }

    /// It is the time that was planned to look after a child.
    pub(super) fn show_in_time(&mut self, flow: FlowRef) {
        let now = self.queue.now();
        let Some((node, at)) = self.served_at(flow) else { return };
        let child = &mut self.nodes[node as usize].children[at];
        if child.show_at == Some(now) {
            child.show_at = None;
            self.show_to(node, at);
        }
    }

    /// The parent, and the child's place among its children.
    fn served_at(&self, flow: FlowRef) -> Option<(NodeIx, usize)> {
        let node = self.flows.get(flow).filter(|flow| flow.parent_open && flow.served)?.from;
        let at = self.nodes.get(node as usize)?.children.iter().position(|child| child.flow == flow)?;
        Some((node, at))
    }

    /// Shows what is to be shown now to one child of a node, and plans the next look.
    fn show_to(&mut self, node: NodeIx, at: usize) {
        let (now, epoch) = (self.instant(), self.epoch);
        let node = &mut self.nodes[node as usize];
        let own = if node.show.lends_all() { &node.have } else { &node.first_hand };
        let first_hand = (!own.is_empty()).then_some(own);
        let Served { flow, child, grown, show_at } = &mut node.children[at];
        let runs = node.show.show(*child, &node.have, first_hand, now);
        if !runs.is_empty() {
            *grown = 0;
            self.queue.after(self.delay, Event::Have(*flow, runs.into_boxed_slice()));
        }
        if let Some(due) = node.show.due(*child).map(|due| since(epoch, due))
            && show_at.is_none_or(|at| at > due || at <= self.queue.now())
        {
            *show_at = Some(due);
            self.queue.at(due, Event::Show(*flow));
        }
    }

    /// The child has closed the stream.
    pub(super) fn closed(&mut self, flow: FlowRef) {
        self.parent_lets_go(flow);
    }

    /// The parent's half ends.
    pub(super) fn parent_lets_go(&mut self, flow: FlowRef) {
        let Some(found) = self.flows.get_mut(flow).filter(|flow| flow.parent_open) else { return };
        found.parent_open = false;
        found.wants.clear();
        let (from, child, served) = (found.from, found.child, std::mem::take(&mut found.served));
        let (broken, now) = (self.nodes[found.to as usize].down.is_some(), self.instant());
        if served && let Some(node) = self.nodes.get_mut(from as usize) {
            let more = node.show.leave(child, broken, now);
            node.uploads -= 1;
            node.children.retain(|other| other.flow != flow);
            if more && node.is_up() {
                self.show_all(from);
            }
        }
        self.flows.settle(flow);
    }

    /// Sends wants of the origin's reader: the runs that it lacks, in order.
    pub(super) fn request(&mut self, flow: FlowRef, first: BlockIndex, end: BlockIndex) {
        let node = self.flows.get(flow).map(|flow| flow.to as usize);
        let Some(have) = node.map(|node| &self.nodes[node].have) else { return };
        let mut runs: Vec<Run> = Vec::new();
        for block in (first..end).filter(|block| !have.contains(*block)) {
            match runs.last_mut() {
                Some(run) if run.first + run.count == block => run.count += 1,
                _ => runs.push(Run { first: block, count: 1 }),
            }
        }
        if let Some(found) = self.flows.get_mut(flow) {
            found.wants.extend(runs);
        }
    }

    /// All that a crashed node served ends; its children hear of it when `heard` says so, or find out by its silence.
    pub(super) fn drop_children(&mut self, node: NodeIx, heard: Option<Time>) {
        for Served { flow, .. } in std::mem::take(&mut self.nodes[node as usize].children) {
            if let Some(wait) = heard {
                self.queue.after(wait, Event::Failed(flow, Why::Broken));
            }
            self.parent_lets_go(flow);
        }
        debug_assert_eq!(self.nodes[node as usize].stage, Stage::Down);
    }
}
