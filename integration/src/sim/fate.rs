//! Crashes: who goes down, what of it is seen by others, and who comes back with what.

use control::swarm::Event as Said;
use node_proxy::peer::show::Show;
use shoal_proto::{BlockSet, NodeId};

use super::event::{Event, NodeIx};
use super::node::{Down, Stage};
use super::queue::{MILLISECOND, SECOND, Time};
use super::world::{World, id_of};

/// How often it is seen who crashes.
pub(super) const EVERY: Time = 100 * MILLISECOND;
/// A crashed node is back after this long, at least and at most.
const BACK: (Time, Time) = (SECOND, 5 * SECOND);
/// Control forgets a node of which it has heard nothing for so long.
const LEASE: Time = 3500 * MILLISECOND;
/// A parent that can't send to a dead machine gives up after this long.
const WRITE_TIMEOUT: Time = 10 * SECOND;

impl World {
    /// Some nodes crash, until all that never crashed are done.
    pub(super) fn fate(&mut self) {
        if self.nodes.iter().all(|node| node.crashes > 0 || node.done.is_some()) {
            return;
        }
        self.queue.after(EVERY, Event::Fate);
        let expected = self.nodes.len() as f64 * self.plan.crash * EVERY as f64 / SECOND as f64;
        let number = expected as u64 + u64::from(self.dice.unit() < expected.fract());
        for _ in 0..number {
            let at = self.dice.below(self.nodes.len() as u64) as NodeIx;
            if self.nodes[at as usize].is_up() {
                self.crash(at);
            }
        }
    }

    fn crash(&mut self, at: NodeIx) {
        self.sums.crashes += 1;
        let process = self.dice.below(2) == 0;
        let renewed = self.dice.below(2) == 0;
        let back = BACK.0 + self.dice.below(BACK.1 - BACK.0);
        let heard = process.then_some(self.delay);
        let kept = if renewed { BlockSet::empty(self.layout) } else { self.kept(at) };
        self.queue.after(back, Event::Return(at));
        if let Some(flight) = self.nodes[at as usize].flight.take() {
            let told = heard.unwrap_or(WRITE_TIMEOUT);
            self.drop_parents(
                at,
                flight.parents.into_iter().map(|(flow, _)| flow).chain(flight.reads.into_values()).collect(),
                told,
            );
            if let (Some(finder), true) = (flight.finder, process) {
                self.tell_control(Said::Ended { finder, clean: false });
            }
        }
        let node = &mut self.nodes[at as usize];
        node.life += 1;
        node.stage = Stage::Down;
        node.down = Some(if process { Down::Process } else { Down::Machine });
        node.have = kept;
        node.rested.clear();
        node.registered = false;
        node.crashes += 1;
        let lease = Event::Lease(at, Box::new(node.id.clone()));
        if renewed && node.done.take().is_some() {
            self.left += 1;
        }
        self.queue.after(LEASE, lease);
        self.drop_children(at, heard);
    }

    /// A crashed node is back: with what its disk has, or as a new one.
    pub(super) fn comes_back(&mut self, at: NodeIx) {
        let (layout, every, now) = (self.layout, self.peer.have_every, self.queue.now());
        let node = &mut self.nodes[at as usize];
        node.down = None;
        node.show = Show::new(layout, every);
        node.first_hand = BlockSet::empty(layout);
        if node.have.is_empty() {
            node.id = id_of(at, node.crashes);
        }
        if node.have.is_full() {
            node.stage = Stage::Held;
            // It may have gone down while it hashed the whole.
            if node.done.is_none() {
                node.done = Some(now);
                self.left -= 1;
            }
            let life = node.life;
            self.hub_registers(at);
            self.queue.after(SECOND, Event::Tick(at, life));
        } else {
            self.hub_registers(at);
            self.start(at);
        }
    }

    /// Control has not heard of a node for long, unless it is back by the same name.
    pub(super) fn lease_ends(&mut self, at: NodeIx, id: NodeId) {
        let node = &self.nodes[at as usize];
        if node.id != id || node.down.is_some() {
            self.hub_hears(Said::Left { node: id });
        }
    }
}
