//! The simulated cluster: all nodes, all links, control and the origin, and the loop that lets time go by.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use node_proxy::peer::show::Show;
use node_proxy::swarm::Config;
use shoal_proto::frame::Run;
use shoal_proto::{BlockSet, Digest, Layout, NodeId};

use super::event::{Dice, Event, Fingerprint, FlowRef, NodeIx};
use super::hub::Hub;
use super::links::{Flows, Uplink, WINDOW};
use super::moment::Moment;
use super::node::{Node, Stage};
use super::plan::Plan;
use super::queue::{Queue, SECOND, Time};

/// What control and nodes call the blob.
const DIGEST: Digest = Digest::from_bytes([0x5a; 32]);
/// A run in which no node gets a block for so long is stuck: every timer of node and control is shorter.
const STUCK: Time = 120 * SECOND;
/// No run needs longer than this many times the bound, and a minute.
const MOST_TIMES_BOUND: f64 = 60.0;

/// Looks at the cluster in the time that the limit takes.
const MOMENTS: f64 = 20.0;

/// What a run adds up.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    pub(super) origin_bytes: u64,
    /// Of these, to seeds; and what seeds sent to others.
    pub(super) origin_to_seeds: u64,
    pub(super) seed_bytes: u64,
    pub(super) spare_bytes: u64,
    pub(super) blocks: u64,
    /// Blocks that were sent to a node that had crashed or closed the stream.
    pub(super) lost_bytes: u64,
    pub(super) outside_reads: u64,
    pub(super) dials: u64,
    pub(super) lost: u64,
    pub(super) useless: u64,
    pub(super) busy: u64,
    pub(super) lies: u64,
    pub(super) crashes: u64,
}

pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) layout: Layout,
    pub(super) config: Config,
    pub(super) peer: node_proxy::peer::Config,
    pub(super) delay: Time,
    pub(super) queue: Queue<Event>,
    pub(super) nodes: Vec<Node>,
    pub(super) origin: Uplink,
    pub(super) flows: Flows,
    pub(super) hub: Hub,
    pub(super) dice: Dice,
    pub(super) sums: Sums,
    /// What node code takes for the beginning of time.
    pub(super) epoch: Instant,
    /// The last time that any node got a block.
    pub(super) grew: Time,
    /// Nodes that are expected to be done and are not.
    pub(super) left: u32,
    pub(super) fingerprint: Fingerprint,
    /// Whether moments are taken.
    pub(super) watched: bool,
    pub(super) timeline: Vec<Moment>,
}

impl World {
    pub(super) fn new(plan: &Plan) -> Result<Self> {
        plan.check()?;
        let layout = Layout::of(plan.blob_bytes)?;
        let peer = node_proxy::peer::Config::default();
        let mut dice = Dice::new(plan.seed);
        let total = plan.nodes + plan.join;
        let nodes = (0..total)
            .map(|at| Node {
                id: id_of(at, 0),
                life: 0,
                stage: Stage::Down,
                down: None,
                slow: false,
                liar: false,
                seed: false,
                deaf: false,
                up: Uplink::new(plan.rate),
                down_rate: plan.rate,
                down_free: 0,
                have: BlockSet::empty(layout),
                first_hand: BlockSet::empty(layout),
                focus: 0,
                show: Show::new(layout, peer.have_every),
                children: Vec::new(),
                uploads: 0,
                flight: None,
                rested: Vec::new(),
                registered: false,
                ticks: 0,
                started: 0,
                done: None,
                crashes: 0,
            })
            .collect();
        let mut world = Self {
            layout,
            config: Config::default(),
            peer,
            delay: plan.delay(),
            queue: Queue::new(),
            nodes,
            origin: Uplink::new(plan.origin_rate),
            flows: Flows::default(),
            hub: Hub::new(DIGEST, layout, total),
            sums: Sums::default(),
            epoch: Instant::now(),
            grew: 0,
            left: total,
            fingerprint: Fingerprint::new(),
            watched: false,
            timeline: Vec::new(),
            dice: Dice::new(dice.next()),
            plan: plan.clone(),
        };
        world.cast();
        world.prepare();
        Ok(world)
    }

    /// Who is slow, who lies, and who is a seed. The rest of the dice does not depend on it.
    fn cast(&mut self) {
        let mut dice = Dice::new(self.plan.seed ^ 0x51_0e);
        let mut order: Vec<usize> = (0..self.plan.nodes as usize).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, dice.below(at as u64 + 1) as usize);
        }
        let slow = self.plan.slow_nodes() as usize;
        for at in &order[..slow] {
            let node = &mut self.nodes[*at];
            node.slow = true;
            node.up.rate = self.plan.rate_of_slow();
            node.down_rate = self.plan.rate_of_slow();
        }
        for at in order[slow..].iter().take(self.plan.liars as usize) {
            self.nodes[*at].liar = true;
        }
        let seeds = (self.plan.nodes - self.plan.seeds..self.plan.nodes).enumerate();
        for (number, at) in seeds {
            let node = &mut self.nodes[at as usize];
            (node.seed, node.deaf) = (true, number < self.plan.deaf_seeds as usize);
        }
    }

    /// Plans the starts, and what goes wrong later.
    fn prepare(&mut self) {
        for at in 0..self.plan.holders {
            let node = &mut self.nodes[at as usize];
            node.stage = Stage::Held;
            node.have = BlockSet::full(self.layout);
            node.focus = self.layout.blocks();
            node.done = Some(0);
            self.left -= 1;
            self.hub_registers(at);
        }
        for at in self.plan.holders..self.plan.nodes {
            self.hub_registers(at);
            if self.nodes[at as usize].seed {
                // It begins when it is told to.
                self.left -= 1;
                continue;
            }
            // Nobody presses a button in the same nanosecond on every machine.
            let start = self.dice.below(self.delay.max(1));
            self.queue.at(start, Event::Start(at, 0));
        }
        let half = (self.plan.bound_s() / 2.0 * SECOND as f64) as Time;
        for at in self.plan.nodes..self.plan.nodes + self.plan.join {
            self.hub_registers(at);
            self.queue.at(half, Event::Start(at, 0));
        }
        if let Some(at) = self.plan.control_restart_s {
            self.queue.at((at * SECOND as f64) as Time, Event::ControlAway(true));
        }
        if self.plan.crash > 0.0 {
            self.queue.at(super::fate::EVERY, Event::Fate);
        }
    }

    /// Lets time go by until every node is done.
    ///
    /// # Errors
    /// When one never is: names it and its state.
    pub(super) fn run(&mut self) -> Result<()> {
        let most = ((self.plan.bound_s() * MOST_TIMES_BOUND + 60.0) * SECOND as f64) as Time;
        while self.left > 0 {
            let Some(event) = self.queue.next() else { bail!("nothing more happens: {}", self.who_is_left()) };
            let now = self.queue.now();
            self.fingerprint.take(now, &event);
            if self.watched && seconds(now) >= self.plan.bound_s() * self.timeline.len() as f64 / MOMENTS {
                self.timeline.push(Moment::of(self));
            }
            if now > most || now > self.grew + STUCK {
                bail!("stuck after {:.1} s: {}", seconds(now), self.who_is_left());
            }
            self.happen(event);
        }
        Ok(())
    }

    fn who_is_left(&self) -> String {
        let mut left = self.nodes.iter().filter(|node| node.done.is_none());
        let first = left.next().map(|node| node.describe(self.layout)).unwrap_or_default();
        format!("{} nodes are not done; {first}", left.count() + 1)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Start(node, life) if self.lives(node, life) => self.start(node),
            Event::Tick(node, life) if self.lives(node, life) => self.tick(node),
            Event::Crew(node, life) if self.lives(node, life) => {
                if let Some(flight) = &mut self.nodes[node as usize].flight {
                    flight.crew_at = None;
                    self.fill(node);
                }
            }
            Event::Ask(node, life) if self.lives(node, life) => self.ask_control(node),
            Event::List(node, life) if self.lives(node, life) => self.list_came(node),
            Event::Close(node, life) if self.lives(node, life) => self.closed_whole(node),
            Event::Opened(flow) => self.opened(flow),
            Event::Served(flow) => self.served(flow),
            Event::Failed(flow, why) => self.failed(flow, why),
            Event::Want(flow, run) => self.wanted(flow, run),
            Event::Have(flow, runs) => self.shown(flow, &runs),
            Event::Show(flow) => self.show_in_time(flow),
            Event::UpFree(sender) => {
                self.uplink(sender).busy = false;
                self.send_next(sender);
            }
            Event::Landing(flow, block) => self.landing(flow, block),
            Event::Arrive(flow, block) => self.arrive(flow, block),
            Event::Check(flow) => self.check(flow),
            Event::Closed(flow) => self.closed(flow),
            Event::ToControl(said) => self.hub_hears(*said),
            Event::FromControl(words) => self.hub_says(words),
            Event::ControlTick => self.hub_ticks(),
            Event::ControlAway(true) => self.hub_goes(),
            Event::ControlAway(false) => self.hub_returns(),
            Event::Fate => self.fate(),
            Event::Return(node) => self.comes_back(node),
            Event::Lease(node, id) => self.lease_ends(node, *id),
            Event::Session(node, life) if self.lives(node, life) => self.hub_registers(node),
            Event::Ordered(node, number) => self.ordered(node, number),
            Event::Start(..)
            | Event::Tick(..)
            | Event::Crew(..)
            | Event::Ask(..)
            | Event::List(..)
            | Event::Close(..)
            | Event::Session(..) => {}
        }
    }

    fn lives(&self, node: NodeIx, life: u16) -> bool {
        self.nodes[node as usize].life == life
    }

    /// The moment as node code wants it.
    pub(super) fn instant(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.queue.now())
    }

    /// A moment of node code as the queue wants it.
    pub(super) fn time(&self, at: Instant) -> Time {
        since(self.epoch, at)
    }

    pub(super) fn uplink(&mut self, sender: u32) -> &mut Uplink {
        match self.nodes.get_mut(sender as usize) {
            Some(node) => &mut node.up,
            None => &mut self.origin,
        }
    }

    /// The number of the origin among senders.
    pub(super) fn origin_ix(&self) -> u32 {
        self.nodes.len() as u32
    }

    /// A stream has something to send: it takes its turn.
    pub(super) fn take_turn(&mut self, flow: FlowRef) {
        let Some(found) = self.flows.get_mut(flow) else { return };
        if found.queued || !found.parent_open || found.wants.is_empty() || found.flying >= WINDOW {
            return;
        }
        found.queued = true;
        let from = found.from;
        let up = self.uplink(from);
        up.turns.push_back(flow);
        if !up.busy {
            self.send_next(from);
        }
    }

    /// One block of the stream whose turn it is.
    pub(super) fn send_next(&mut self, sender: u32) {
        loop {
            let Some(flow) = self.uplink(sender).turns.pop_front() else { return };
            let Some(found) = self.flows.get_mut(flow) else { continue };
            found.queued = false;
            let Some(run) = found.wants.front_mut() else { continue };
            let block = run.first;
            *run = Run { first: run.first + 1, count: run.count - 1 };
            if run.count == 0 {
                found.wants.pop_front();
            }
            found.flying += 1;
            found.next = block + 1;
            let child = found.child;
            let takes = self.uplink(sender).rate.takes(self.layout.block_len(block) as u64);
            self.uplink(sender).busy = true;
            if self.nodes.get(sender as usize).is_some_and(|node| node.seed) {
                self.sums.seed_bytes += self.layout.block_len(block) as u64;
            }
            self.queue.after(takes, Event::UpFree(sender));
            self.queue.after(takes + self.delay, Event::Landing(flow, block));
            self.take_turn(flow);
            if sender != self.origin_ix() {
                let now = self.instant();
                if self.nodes[sender as usize].show.gave(child, block, now) {
                    self.show_all(sender);
                } else {
                    self.show(flow);
                }
            }
            return;
        }
    }

    /// The last byte of a block is at its receiver, whose downlink may have others to pass first.
    fn landing(&mut self, flow: FlowRef, block: u32) {
        let Some(found) = self.flows.get(flow) else { return };
        let (from, to) = (found.from, found.to);
        let len = self.layout.block_len(block) as u64;
        let sent = self.uplink(from).rate.takes(len);
        let now = self.queue.now();
        let node = &mut self.nodes[to as usize];
        let passed = node.down_free.max(now.saturating_sub(sent)) + node.down_rate.takes(len);
        node.down_free = passed;
        if passed > now {
            self.queue.at(passed, Event::Arrive(flow, block));
        } else {
            self.arrive(flow, block);
        }
    }
}

/// A moment of node code, of which time began at `epoch`, as the queue wants it.
pub(super) fn since(epoch: Instant, at: Instant) -> Time {
    at.saturating_duration_since(epoch).as_nanos() as Time
}

pub(super) fn seconds(time: Time) -> f64 {
    time as f64 / SECOND as f64
}

/// What a node is called. One that comes back as a new node has another name.
pub(super) fn id_of(node: NodeIx, renewed: u32) -> NodeId {
    let text = if renewed == 0 { format!("n{node}") } else { format!("n{node}-{renewed}") };
    text.parse().expect("a short text without spaces")
}

/// Where a node is reached: its number is in the address.
pub(super) fn addr_of(node: NodeIx) -> SocketAddr {
    let [_, b, c, d] = node.to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(10, b, c, d), 5081))
}

/// The node behind an address.
pub(super) fn node_at(addr: SocketAddr) -> NodeIx {
    let SocketAddr::V4(addr) = addr else { return NodeIx::MAX };
    u32::from(*addr.ip()) & 0x00ff_ffff
}
