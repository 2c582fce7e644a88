//! Several nodes against each other in simulated time: the pure parts of child and parent as they are, and a small model of
//! what is between them. One node reads the origin; all others want the blob.
//!
//! Links: a node's uplink sends one block at a time, in turn to every child that waits for one; a block is received when the
//! receiver's downlink has taken it; every message takes `delay`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use node_proxy::peer::show::{Child, Opening, Show};
use node_proxy::swarm::crew::{Crew, How};
use node_proxy::swarm::pick::{Board, Seat};
use node_proxy::swarm::score::Score;
use node_proxy::swarm::{Parent, ParentAddr};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_proto::frame::Run;
use shoal_proto::{BlockIndex, BlockSet, Layout};

use crate::support::node;

mod world;

pub(crate) use world::World;

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// When the last of the nodes that are not slow was done, over the time in which one link sends the blob.
    pub(crate) factor: f64,
    /// Blocks that came a second time, over all that came.
    pub(crate) spare: f64,
    /// Blocks that node 0 sent, over the blob.
    pub(crate) copies: f64,
    pub(crate) events: u64,
    /// When half of the nodes, and nine of ten, were done, in the same measure.
    pub(crate) half: f64,
    pub(crate) most: f64,
}

#[derive(Debug)]
enum Event {
    Join(usize),
    Origin(BlockIndex),
    Known(usize, BlockIndex),
    Open(usize),
    Have(usize, Vec<Run>),
    Want(usize, Run),
    Uplink(usize),
    Block(usize, BlockIndex),
    Closed(usize),
    Show(usize),
    Review(usize),
    Crash,
    Break,
}

/// A connection, from `Open` to its end.
#[derive(Debug)]
struct Link {
    child: usize,
    parent: usize,
    seat: Seat,
    /// The child's record of it, and its place in the parent's crowd.
    score: Score,
    place: Option<Child>,
    /// At the parent: blocks asked and not sent.
    wants: VecDeque<BlockIndex>,
    show_at: Option<Instant>,
    /// At the child: what it was shown, what is to come, how much of it of each want, and since when the next is owed.
    shown: BlockSet,
    owed: VecDeque<BlockIndex>,
    queue: VecDeque<u32>,
    owing: Instant,
    useful: Instant,
    open: bool,
}

#[derive(Debug)]
struct Node {
    up: f64,
    down: f64,
    board: Board,
    crew: Crew,
    show: Show,
    have: BlockSet,
    first_hand: Option<BlockSet>,
    named: Vec<Parent>,
    /// Links where it is the child, by seat; links where it is the parent, in turn.
    seats: HashMap<Seat, usize>,
    children: VecDeque<usize>,
    sending: bool,
    down_free: Instant,
    review_at: Option<Instant>,
    joined: bool,
    done: Option<Instant>,
}

pub(crate) struct Model {
    world: World,
    layout: Layout,
    begin: Instant,
    now: Instant,
    events: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    bodies: HashMap<usize, Event>,
    next: u64,
    nodes: Vec<Node>,
    links: Vec<Link>,
    known: BlockSet,
    /// The hashes that each node knows.
    heard_of: Vec<BlockSet>,
    random: StdRng,
    came: u64,
    spare: u64,
    sent_by_first: u64,
    origin_next: BlockIndex,
    origin_free: Instant,
}

const BLOCK: u64 = 256 << 10;
const WINDOW: u32 = 32;

impl Model {
    pub(crate) fn new(world: World) -> Self {
        let layout = Layout::of(u64::from(world.blocks) * BLOCK).unwrap();
        let mut random = StdRng::seed_from_u64(world.seed);
        let begin = Instant::now();
        let mut nodes: Vec<Node> = (0..world.nodes)
            .map(|at| {
                let slow = at > 0 && random.random_bool(world.slow);
                let rate = if slow { world.rate / 4.0 } else { world.rate };
                Self::node(layout, world.streams, rate, random.random(), begin)
            })
            .collect();
        for at in 0..world.nodes {
            let mut others: Vec<usize> = (0..world.nodes).filter(|other| *other != at).collect();
            for i in 0..others.len() {
                let j = random.random_range(i..others.len());
                others.swap(i, j);
            }
            others.truncate(world.neighbours);
            nodes[at].named = others.iter().map(|other| named(*other)).collect();
        }
        let mut this = Self {
            layout,
            begin,
            now: begin,
            events: BinaryHeap::new(),
            bodies: HashMap::new(),
            next: 0,
            nodes,
            links: Vec::new(),
            known: BlockSet::empty(layout),
            heard_of: vec![BlockSet::empty(layout); world.nodes],
            random,
            came: 0,
            spare: 0,
            sent_by_first: 0,
            origin_next: 0,
            origin_free: begin,
            world,
        };
        this.reach_from_the_first();
        this
    }

    fn node(layout: Layout, streams: usize, rate: f64, salt: u64, now: Instant) -> Node {
        Node {
            up: rate,
            down: rate,
            board: Board::new(layout, WINDOW, salt),
            crew: Crew::new(streams),
            show: Show::new(layout, Duration::from_millis(50)),
            have: BlockSet::empty(layout),
            first_hand: None,
            named: Vec::new(),
            seats: HashMap::new(),
            children: VecDeque::new(),
            sending: false,
            down_free: now,
            review_at: None,
            joined: false,
            done: None,
        }
    }

    /// The bytes must be reachable by everybody, or nothing can be asserted: whoever can't reach the first node is told of it.
    fn reach_from_the_first(&mut self) {
        let mut reached = vec![false; self.nodes.len()];
        let mut todo = vec![0];
        while let Some(from) = todo.pop() {
            if !std::mem::replace(&mut reached[from], true) {
                let it = &named(from).node;
                todo.extend((0..self.nodes.len()).filter(|at| self.nodes[*at].named.iter().any(|p| p.node == *it)));
            }
        }
        for (node, _) in self.nodes.iter_mut().zip(reached).filter(|(_, reached)| !reached) {
            node.named.push(named(0));
        }
    }

    fn at(&mut self, when: Instant, event: Event) {
        let key = self.next as usize;
        self.next += 1;
        self.bodies.insert(key, event);
        self.events.push(Reverse((when, self.next, key)));
    }

    fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now + wait, event);
    }

    fn seconds(bytes: u64, rate: f64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / rate)
    }

    /// Runs until every node is done.
    pub(crate) fn run(mut self) -> Outcome {
        let world = self.world.clone();
        self.nodes[0].joined = true;
        self.nodes[0].first_hand = Some(BlockSet::empty(self.layout));
        if world.seeded {
            (0..world.blocks).for_each(|block| self.origin_brings(block));
        } else {
            self.origin_reads(0);
        }
        for at in 1..world.nodes {
            let wait = world.join.mul_f64(self.random.random());
            self.after(wait, Event::Join(at));
        }
        if world.crashes > 0.0 {
            self.after(Duration::from_secs_f64(1.0 / world.crashes), Event::Crash);
        }
        if world.breaks > 0.0 {
            self.after(Duration::from_secs_f64(1.0 / (world.breaks * world.nodes as f64)), Event::Break);
        }
        let mut events = 0u64;
        while let Some(Reverse((when, _, key))) = self.events.pop() {
            self.now = when;
            events += 1;
            let event = self.bodies.remove(&key).unwrap();
            self.on(event);
            if self.nodes.iter().all(|node| node.done.is_some()) {
                break;
            }
            let limit = Duration::from_secs(600);
            assert!(self.now < self.begin + limit, "no end in sight: {}", self.stuck());
        }
        assert!(self.nodes.iter().all(|node| node.done.is_some()), "nothing happens any more: {}", self.stuck());
        let fast = self.nodes.iter().filter(|node| node.up >= world.rate);
        let last = fast.filter_map(|node| node.done).max().unwrap().duration_since(self.begin).as_secs_f64();
        let mut all: Vec<Instant> = self.nodes.iter().filter_map(|node| node.done).collect();
        all.sort();
        let share = |part: f64| {
            let at = all[(all.len() as f64 * part) as usize].duration_since(self.begin).as_secs_f64();
            at / (self.layout.size() as f64 / world.rate)
        };
        Outcome {
            half: share(0.5),
            most: share(0.9),
            factor: last / (self.layout.size() as f64 / world.rate),
            spare: self.spare as f64 / self.came.max(1) as f64,
            copies: self.sent_by_first as f64 / f64::from(self.layout.blocks()),
            events,
        }
    }

    fn stuck(&self) -> String {
        let stuck = self.nodes.iter().enumerate().filter(|(_, node)| node.done.is_none());
        let of = |(at, node): (usize, &Node)| {
            let seats: Vec<String> = node
                .seats
                .iter()
                .map(|(seat, link)| {
                    format!("{}→{} owes {}", seat, self.links[*link].parent, node.board.outstanding(*seat))
                })
                .collect();
            format!("node {at} has {} of {}, seats {seats:?}", node.have.len(), self.layout.blocks())
        };
        stuck.take(3).map(of).collect::<Vec<_>>().join("; ")
    }

    /// The origin sends the blob in order, at its rate.
    fn origin_reads(&mut self, block: BlockIndex) {
        self.origin_next = block;
        if block < self.layout.blocks() {
            let took = Self::seconds(self.layout.block_len(block) as u64, self.world.rate);
            self.origin_free = self.origin_free.max(self.now) + took;
            self.at(self.origin_free, Event::Origin(block));
        }
    }

    fn origin_brings(&mut self, block: BlockIndex) {
        let first = &mut self.nodes[0];
        first.board.set_known(block, true);
        first.board.set_done(block);
        first.have.insert(block);
        if let Some(own) = &mut first.first_hand {
            own.insert(block);
        }
        if first.have.is_full() {
            first.done = Some(self.now);
        }
        self.known.insert(block);
        for at in 1..self.nodes.len() {
            let wait = self.world.gossip.mul_f64(self.random.random());
            self.after(wait, Event::Known(at, block));
        }
        self.grown(0);
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Join(at) => {
                self.nodes[at].joined = true;
                let names = self.nodes[at].named.clone();
                self.nodes[at].crew.rename(&names);
                self.fill(at);
            }
            Event::Origin(block) => {
                self.origin_brings(block);
                self.origin_reads(block + 1);
            }
            Event::Known(at, block) => {
                self.nodes[at].board.set_known(block, true);
                self.heard_of[at].insert(block);
                self.ask_all(at);
            }
            Event::Open(link) => self.open(link),
            Event::Have(link, runs) => {
                if self.links[link].open {
                    let (child, seat) = (self.links[link].child, self.links[link].seat);
                    self.nodes[child].board.show(seat, &runs);
                    let told = runs.iter().flat_map(Run::blocks);
                    told.for_each(|block| assert!(self.links[link].shown.insert(block), "{block} was shown twice"));
                    self.ask(link);
                    self.nobody_starves(child);
                }
            }
            Event::Want(link, run) => {
                if self.links[link].open {
                    let parent = self.links[link].parent;
                    self.links[link].wants.extend(run.blocks());
                    let place = self.links[link].place.unwrap();
                    self.nodes[parent].show.wanted(place, run, self.now);
                    self.send(parent);
                    self.show(link);
                }
            }
            Event::Uplink(at) => {
                self.nodes[at].sending = false;
                self.send(at);
            }
            Event::Block(link, block) => self.land(link, block),
            Event::Closed(link) => self.close(link, How::Lost),
            Event::Show(link) => {
                if self.links[link].show_at.is_some_and(|at| at <= self.now) {
                    self.links[link].show_at = None;
                    self.show(link);
                }
            }
            Event::Review(at) => {
                if self.nodes[at].review_at.is_some_and(|when| when <= self.now) {
                    self.nodes[at].review_at = None;
                    self.fill(at);
                }
            }
            Event::Crash => self.crash(),
            Event::Break => {
                let open: Vec<usize> = (0..self.links.len()).filter(|link| self.links[*link].open).collect();
                if !open.is_empty() {
                    let link = open[self.random.random_range(0..open.len())];
                    self.close(link, How::Lost);
                }
                let next = self.now + Duration::from_secs_f64(1.0 / (self.world.breaks * self.nodes.len() as f64));
                if next < self.begin + Duration::from_secs(10) {
                    self.at(next, Event::Break);
                }
            }
        }
    }

    /// A node other than the first loses all and joins again.
    fn crash(&mut self) {
        let at = self.random.random_range(1..self.nodes.len());
        let ends: Vec<usize> = (0..self.links.len())
            .filter(|link| self.links[*link].open && (self.links[*link].child == at || self.links[*link].parent == at))
            .collect();
        // First, so that it opens nothing new meanwhile.
        self.nodes[at].joined = false;
        for link in ends {
            self.close(link, How::Lost);
        }
        let (rate, names) = (self.nodes[at].up, self.nodes[at].named.clone());
        let salt = self.random.random();
        self.nodes[at] = Node { named: names, ..Self::node(self.layout, self.world.streams, rate, salt, self.now) };
        for block in self.known.runs().iter().flat_map(Run::blocks).collect::<Vec<_>>() {
            self.nodes[at].board.set_known(block, true);
            self.heard_of[at].insert(block);
        }
        self.after(Duration::from_millis(500), Event::Join(at));
        let next = self.now + Duration::from_secs_f64(1.0 / self.world.crashes);
        if next < self.begin + Duration::from_secs(10) {
            self.at(next, Event::Crash);
        }
    }

    /// What the node's fetch does after every event: new streams, retired ones, and when to look again.
    fn fill(&mut self, at: usize) {
        if self.nodes[at].done.is_some() || !self.nodes[at].joined {
            return;
        }
        let now = self.now;
        loop {
            let node = &mut self.nodes[at];
            let Some(start) = node.crew.start(now, &node.board) else { break };
            let parent: usize = start.parent.node.as_str()[1..].parse().unwrap();
            let link = self.links.len();
            self.links.push(Link {
                child: at,
                parent,
                seat: start.seat,
                score: start.score,
                place: None,
                wants: VecDeque::new(),
                show_at: None,
                shown: BlockSet::empty(self.layout),
                owed: VecDeque::new(),
                queue: VecDeque::new(),
                owing: now,
                useful: now,
                open: true,
            });
            self.nodes[at].seats.insert(start.seat, link);
            self.after(self.world.delay, Event::Open(link));
        }
        let spare = self.nodes[at].crew.has_spare(now);
        let idle: Vec<usize> = self.nodes[at].seats.values().copied().collect();
        let mut due = self.nodes[at].crew.due(now);
        for link in idle {
            let one = &self.links[link];
            let useless = one.place.is_some() && one.queue.is_empty() && spare;
            let gone = self.nodes[at].board.is_retired(one.seat) && one.place.is_some() && one.queue.is_empty();
            let until = one.useful + Duration::from_secs(1);
            if gone {
                self.close(link, How::Left);
            } else if useless && until <= now {
                self.close(link, How::Useless);
            } else if useless {
                due = Some(due.map_or(until, |due| due.min(until)));
            }
        }
        if let Some(due) = due.filter(|due| self.nodes[at].review_at.is_none_or(|at| *due < at)) {
            self.nodes[at].review_at = Some(due);
            self.at(due, Event::Review(at));
        }
    }

    /// `Open` reaches the parent.
    fn open(&mut self, link: usize) {
        let (child, parent) = (self.links[link].child, self.links[link].parent);
        if !self.links[link].open {
            return;
        }
        if !self.nodes[parent].joined {
            self.after(self.world.delay, Event::Closed(link));
            return;
        }
        let place = self.nodes[parent].show.join(Opening::default(), self.now);
        self.links[link].place = Some(place);
        // From now on the child counts for how long it has nothing for it.
        let when = self.now + self.world.delay;
        if self.nodes[child].review_at.is_none_or(|at| when < at) {
            self.nodes[child].review_at = Some(when);
            self.at(when, Event::Review(child));
        }
        self.nodes[parent].children.push_back(link);
        self.nodes[child].board.join(self.links[link].seat);
        self.show(link);
    }

    /// Shows the child what it may be shown now.
    fn show(&mut self, link: usize) {
        let parent = self.links[link].parent;
        let Some(place) = self.links[link].place.filter(|_| self.links[link].open) else { return };
        let node = &mut self.nodes[parent];
        let runs = node.show.show(place, &node.have, node.first_hand.as_ref(), self.now);
        let due = node.show.due(place);
        if !runs.is_empty() {
            self.after(self.world.delay, Event::Have(link, runs));
        }
        if let Some(due) = due.filter(|due| self.links[link].show_at.is_none_or(|at| *due < at)) {
            self.links[link].show_at = Some(due);
            self.at(due.max(self.now), Event::Show(link));
        }
    }

    /// The node has more than before.
    fn grown(&mut self, at: usize) {
        let children: Vec<usize> = self.nodes[at].children.iter().copied().collect();
        children.into_iter().for_each(|link| self.show(link));
    }

    fn ask_all(&mut self, at: usize) {
        let mut links: Vec<usize> = self.nodes[at].seats.values().copied().collect();
        links.sort_unstable();
        links.into_iter().for_each(|link| self.ask(link));
        self.nobody_starves(at);
    }

    /// Keeps two wants queued.
    fn ask(&mut self, link: usize) {
        let (child, seat) = (self.links[link].child, self.links[link].seat);
        if self.links[link].place.is_none() || !self.links[link].open {
            return;
        }
        while self.links[link].queue.len() < 2 {
            let Some(run) = self.checked_ask(child, seat) else { break };
            if self.links[link].queue.is_empty() {
                self.links[link].owing = self.now;
            }
            self.links[link].queue.push_back(run.count);
            self.after(self.world.delay, Event::Want(link, run));
        }
        if !self.links[link].queue.is_empty() {
            self.links[link].useful = self.now;
        } else if self.nodes[child].review_at.is_none() {
            self.fill(child);
        }
    }

    /// Asks the board, and holds it to its word: only what was shown and is missing, and nothing twice outside the end game.
    fn checked_ask(&mut self, child: usize, seat: Seat) -> Option<Run> {
        let node = &mut self.nodes[child];
        let run = node.board.ask(seat)?;
        let link = node.seats[&seat];
        for block in run.blocks() {
            assert!(!node.have.contains(block), "block {block} is here already");
            assert!(self.links[link].shown.contains(block), "block {block} was not shown");
        }
        let owed =
            |block: BlockIndex| node.seats.values().filter(|other| self.links[**other].owed.contains(&block)).count();
        let again = run.blocks().map(owed).max().unwrap_or(0);
        if again > 0 {
            assert!(again == 1, "asked at three");
            assert!(node.board.missing().all(|block| owed(block) > 0), "asked twice before the end game");
        }
        self.links[link].owed.extend(run.blocks());
        Some(run)
    }

    /// What the reader waits for is asked as soon as somebody shows it who has room.
    fn nobody_starves(&self, child: usize) {
        let node = &self.nodes[child];
        let Some(focus) = node.board.missing().next().filter(|block| self.heard_of[child].contains(*block)) else {
            return;
        };
        let links: Vec<&Link> = node.seats.values().map(|link| &self.links[*link]).collect();
        let showing: Vec<&&Link> = links.iter().filter(|link| link.shown.contains(focus)).collect();
        let piece = self.layout.piece_of(focus);
        let asked = links.iter().any(|link| link.owed.iter().any(|block| self.layout.piece_of(*block) == piece));
        let room = !showing.is_empty() && showing.iter().all(|link| link.queue.len() < 2);
        assert!(asked || !room, "nobody is asked for {focus}, which the reader of {child} waits for");
    }

    /// Sends the next block on the uplink, to the children in turn.
    fn send(&mut self, at: usize) {
        if self.nodes[at].sending {
            return;
        }
        for _ in 0..self.nodes[at].children.len() {
            let Some(link) = self.nodes[at].children.pop_front() else { break };
            self.nodes[at].children.push_back(link);
            let Some(block) = self.links[link].wants.front().copied() else { continue };
            assert!(self.nodes[at].have.contains(block), "{block} was asked and is not here");
            self.links[link].wants.pop_front();
            let len = self.layout.block_len(block) as u64;
            let up_end = self.now + Self::seconds(len, self.nodes[at].up);
            let child = self.links[link].child;
            let (start, end) = (self.now + self.world.delay, up_end + self.world.delay);
            let taken = self.nodes[child].down_free.max(start) + Self::seconds(len, self.nodes[child].down);
            let end = end.max(taken);
            self.nodes[child].down_free = end;
            self.nodes[at].sending = true;
            self.sent_by_first += u64::from(at == 0);
            if let Some(place) = self.links[link].place {
                self.nodes[at].show.gave(place, block, self.now);
            }
            self.at(end, Event::Block(link, block));
            self.at(up_end, Event::Uplink(at));
            self.grown(at);
            return;
        }
    }

    fn land(&mut self, link: usize, block: BlockIndex) {
        let (child, seat) = (self.links[link].child, self.links[link].seat);
        if !self.links[link].open {
            return;
        }
        assert_eq!(self.nodes[child].board.awaited(seat), Some(block));
        let node = &mut self.nodes[child];
        let fresh = node.board.land(seat);
        self.came += 1;
        self.spare += u64::from(!fresh);
        let one = &mut self.links[link];
        one.score.served(self.layout.block_len(block), self.now - one.owing);
        one.owing = self.now;
        one.owed.pop_front();
        if let Some(left) = one.queue.front_mut() {
            *left -= 1;
            if *left == 0 {
                one.queue.pop_front();
            }
        }
        node.board.set_rate(seat, one.score.rate());
        node.board.settle(seat, fresh);
        if fresh {
            node.have.insert(block);
        }
        let focus = node.board.missing().next();
        if let Some(focus) = focus {
            node.board.set_focuses(&[focus]);
        }
        if node.board.is_done() {
            node.done = Some(self.now);
            let links: Vec<usize> = node.seats.values().copied().collect();
            links.into_iter().for_each(|link| self.close(link, How::Left));
        }
        if fresh {
            self.grown(child);
        }
        self.ask_all(child);
    }

    fn close(&mut self, link: usize, how: How) {
        let one = &mut self.links[link];
        if !std::mem::replace(&mut one.open, false) {
            return;
        }
        let (child, parent, seat, score) = (one.child, one.parent, one.seat, one.score.clone());
        one.wants.clear();
        if let Some(place) = one.place {
            self.nodes[parent].show.leave(place, how == How::Lost, self.now);
            self.nodes[parent].children.retain(|other| *other != link);
        }
        let node = &mut self.nodes[child];
        node.board.leave(seat);
        node.seats.remove(&seat);
        node.crew.ended(seat, score, how, self.now);
        self.grown(parent);
        self.ask_all(child);
        self.fill(child);
    }
}

fn named(at: usize) -> Parent {
    Parent {
        node: node(&format!("n{at}")),
        addr: ParentAddr(([10, 0, (at >> 8) as u8, at as u8], 5081).into()),
        complete: false,
    }
}
