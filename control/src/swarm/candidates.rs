//! Who can serve one blob, and which of them a finder is told of: a pure choice.
//!
//! Everybody who can serve stands here once, with the finders that were told of it, so that a change of one node looks only at
//! those it concerns. Who fetches the blob and has nothing yet stands here too: nodes are told of each other from the start, so that
//! they are connected and well mixed before there is much to pass on, and do not all hang on the few who have something
//! first. What always holds of the sets that are chosen together: they are drawn at random, so that finders
//! and servers form one well mixed graph; nobody is named much more often than the others; a source of the blob (a seed, a
//! reader of the origin) is named to a few, and to those who have too few others; who has much less than most is exchanged in the
//! sets of those who have more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use shoal_proto::NodeId;

use super::event::{FinderId, ParentSaid};

#[cfg(test)]
mod tests;

/// DESIGN section 4: up to sixteen. With eight neighbours the simulated swarm of 1,000 was 4 % slower (SWARM.md).
pub(super) const MOST: usize = 16;
/// Who can be told of fewer others than this is told of the sources too.
pub(super) const ENOUGH: usize = 4;
/// So many finders are told of one source although they have enough others: enough to take all that it can send, a piece to
/// each, and to keep the swarm connected to it when some of them leave.
pub(super) const SOURCE_QUOTA: usize = 32;
/// Somebody named more often than the average by more than one in so many is taken out of some sets. What a node can send is
/// shared by all that are told of it: those that hang on the popular ones fall behind, and nobody asks them for anything.
const SURPLUS: usize = 8;
/// One differing level of the location weighs as much as a quarter of all that a node can serve.
const LEVEL: u32 = 4;
/// A location deeper than this counts as this deep.
const LEVELS: usize = 4;
/// What a node without a free upload slot costs more.
const FULL: u32 = 16;
/// What a node that is itself still fetching costs more.
const PARTIAL: u32 = 2;
/// A node that has less than one in so many of what a fetching node has on average lags: whoever has more gets nothing from it.
const LAGS: u32 = 2;
/// With less than so many blocks on average nobody lags: they all have just begun.
const BEGUN: u32 = 16;
/// So many laggards may be in the set of one who does not lag.
const DRAG: usize = 2;

/// Random numbers from a seed that the caller passes in (SplitMix64, Steele, Lea and Flood 2014).
#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        // The bias is bound / 2^64: nothing.
        (self.next() % bound as u64) as usize
    }
}

/// What changes of a node while it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) addr: SocketAddr,
    pub(super) uploads: u32,
    pub(super) slots: u32,
    pub(super) location: Arc<[String]>,
}

/// How much of the blob a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Has {
    /// Nothing yet. It knows how large the blob is and fetches it, so that it will have something soon.
    Nothing,
    Part,
    Whole,
}

/// Somebody who can serve.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) node: NodeId,
    pub(super) facts: Facts,
    pub(super) has: Has,
    /// A seed, or a reader of the origin: what it has others should spread.
    pub(super) source: bool,
    /// It has much less than most who fetch.
    lags: bool,
    /// Who was told of it.
    pub(super) namers: BTreeSet<FinderId>,
}

type Slot = usize;

/// Everybody who can serve one blob.
#[derive(Debug, Default)]
pub(super) struct Servers {
    slots: Vec<Option<Server>>,
    free: Vec<Slot>,
    by_node: HashMap<NodeId, Slot>,
    /// No source, and has something.
    ordinary: Listed,
    sources: Listed,
    /// No source, whatever they have.
    crowd: Listed,
    /// Those of the ordinary that hold the blob whole.
    whole: Listed,
    /// How many of the crowd lagged at the last look.
    laggards: usize,
}

/// Slots to draw from at random. One goes as fast as it comes.
#[derive(Debug, Default)]
struct Listed {
    slots: Vec<Slot>,
    places: HashMap<Slot, usize>,
}

impl Listed {
    fn add(&mut self, slot: Slot) {
        self.places.insert(slot, self.slots.len());
        self.slots.push(slot);
    }

    fn remove(&mut self, slot: Slot) {
        let Some(place) = self.places.remove(&slot) else { return };
        self.slots.swap_remove(place);
        if let Some(moved) = self.slots.get(place) {
            self.places.insert(*moved, place);
        }
    }
}

/// What one finder is chosen for.
pub(super) struct Wish<'a> {
    pub(super) node: &'a NodeId,
    pub(super) location: &'a [String],
    /// Who must not be named to it.
    pub(super) avoid: &'a dyn Fn(&NodeId) -> bool,
    /// What it was told before.
    pub(super) current: &'a [ParentSaid],
    /// Those that are named too often may be exchanged.
    pub(super) mix: bool,
    /// How many finders there are.
    pub(super) finders: usize,
    /// It lags itself.
    pub(super) lags: bool,
}

impl Servers {
    pub(super) fn get(&self, node: &NodeId) -> Option<&Server> {
        self.slots[*self.by_node.get(node)?].as_ref()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Server> {
        self.slots.iter().flatten()
    }

    /// Somebody can serve from now on, or as another than before. True: it is new, or is the first time that it has something.
    pub(super) fn put(&mut self, node: &NodeId, facts: Facts, has: Has, source: bool) -> bool {
        if let Some(slot) = self.by_node.get(node).copied() {
            let server = self.slots[slot].as_mut().expect("a slot that is named is taken");
            let before = (server.has, server.source);
            (server.facts, server.has, server.source) = (facts, has, source);
            if before != (has, source) {
                self.unlist(slot);
                self.list(slot, has, source);
            }
            return before.0 == Has::Nothing && has != Has::Nothing;
        }
        let server = Server { node: node.clone(), facts, has, source, lags: false, namers: BTreeSet::new() };
        let slot = self.free.pop().unwrap_or(self.slots.len());
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[slot] = Some(server);
        self.by_node.insert(node.clone(), slot);
        self.list(slot, has, source);
        true
    }

    fn list(&mut self, slot: Slot, has: Has, source: bool) {
        match has {
            _ if source => return self.sources.add(slot),
            Has::Nothing => {}
            Has::Part => self.ordinary.add(slot),
            Has::Whole => {
                self.ordinary.add(slot);
                self.whole.add(slot);
            }
        }
        self.crowd.add(slot);
    }

    fn unlist(&mut self, slot: Slot) {
        for list in [&mut self.ordinary, &mut self.sources, &mut self.crowd, &mut self.whole] {
            list.remove(slot);
        }
    }

    /// Somebody serves no more. Answers who was told of it.
    pub(super) fn remove(&mut self, node: &NodeId) -> BTreeSet<FinderId> {
        let Some(slot) = self.by_node.remove(node) else { return BTreeSet::new() };
        self.unlist(slot);
        self.free.push(slot);
        self.slots[slot].take().map(|server| server.namers).unwrap_or_default()
    }

    /// How busy it is, and where it is now.
    pub(super) fn refresh(&mut self, facts: impl Fn(&NodeId) -> Option<Facts>) {
        for server in self.slots.iter_mut().flatten() {
            if let Some(facts) = facts(&server.node) {
                server.facts = facts;
            }
        }
    }

    /// Who lags now, by how many blocks each has that fetches.
    pub(super) fn weigh(&mut self, blocks: impl Fn(&NodeId) -> Option<u32>) {
        let fetching =
            |server: &Server| if server.has == Has::Whole || server.source { None } else { blocks(&server.node) };
        let (count, sum) =
            self.iter().filter_map(fetching).fold((0, 0), |(count, sum), blocks| (count + 1, sum + u64::from(blocks)));
        let mean = sum.checked_div(count).unwrap_or(0) as u32;
        self.laggards = 0;
        for server in self.slots.iter_mut().flatten() {
            server.lags = mean >= BEGUN && fetching(server).is_some_and(|blocks| blocks < mean / LAGS);
            self.laggards += usize::from(server.lags);
        }
    }

    /// Whether a node lagged at the last look.
    pub(super) fn lags(&self, node: &NodeId) -> bool {
        self.get(node).is_some_and(|server| server.lags)
    }

    /// A finder was told of these and no others, after those before.
    pub(super) fn told(&mut self, id: FinderId, before: &[ParentSaid], now: &[ParentSaid]) {
        for (list, named) in [(before, false), (now, true)] {
            for parent in list {
                let Some(slot) = self.by_node.get(&parent.node) else { continue };
                let Some(server) = &mut self.slots[*slot] else { continue };
                if named {
                    server.namers.insert(id);
                } else {
                    server.namers.remove(&id);
                }
            }
        }
    }

    /// How many finders may be told of one node before it counts as named too often.
    fn bound(&self, source: bool, finders: usize) -> usize {
        if source {
            SOURCE_QUOTA
        } else {
            let fair = (MOST * finders / self.crowd()).max(MOST);
            fair + fair / SURPLUS
        }
    }

    /// Finders whose sets should be chosen anew because somebody in them is named too often, or because too many in them lag and
    /// they do not (`lags` says so of a finder). Somewhere in the middle first, so that it is not always the same.
    pub(super) fn surplus(
        &self,
        finders: usize,
        lags: impl Fn(FinderId) -> bool,
        dice: &mut Dice,
    ) -> BTreeSet<FinderId> {
        let mut out = BTreeSet::new();
        if self.is_small() {
            return out;
        }
        // With fewer than a set of others there is nobody to exchange laggards for.
        let exchanged = |server: &&Server| server.lags && self.crowd() > MOST;
        let mut dragged: BTreeMap<FinderId, usize> = BTreeMap::new();
        for namer in self.iter().filter(exchanged).flat_map(|server| &server.namers) {
            *dragged.entry(*namer).or_default() += 1;
        }
        out.extend(dragged.into_iter().filter(|(id, many)| *many > DRAG && !lags(*id)).map(|(id, _)| id));
        for server in self.iter() {
            let over = server.namers.len().saturating_sub(self.bound(server.source, finders));
            if over > 0 {
                let from = dice.below(server.namers.len());
                out.extend(server.namers.iter().cycle().skip(from).take(over));
            }
        }
        out
    }

    /// Everybody can be told of everybody.
    fn is_small(&self) -> bool {
        self.crowd.slots.len() + self.sources.slots.len() <= MOST + 1
    }

    /// Those that share the finders among them: laggards are named to few.
    fn crowd(&self) -> usize {
        self.crowd.slots.len().saturating_sub(self.laggards).max(1)
    }

    fn at(&self, slot: Slot) -> &Server {
        self.slots[slot].as_ref().expect("a listed slot is taken")
    }

    fn cost(&self, slot: Slot, location: &[String], finders: usize) -> u32 {
        let server = self.at(slot);
        let Facts { uploads, slots, location: theirs, .. } = &server.facts;
        let shared = theirs.iter().zip(location).take_while(|(a, b)| a == b).count();
        let depth = location.len().min(LEVELS);
        let far = (depth - shared.min(depth)) as u32;
        // Sixteen for all slots, and sixteen for being named as often as the average.
        let busy = if *slots > 0 { uploads.saturating_mul(16) / slots } else { *uploads };
        let average = (MOST * finders / self.crowd()).max(MOST);
        let named = (MOST * server.namers.len() / average) as u32;
        let full = *slots > 0 && uploads >= slots;
        busy.min(1 << 16)
            + named
            + LEVEL * far
            + if full { FULL } else { 0 }
            + if server.has == Has::Whole { 0 } else { PARTIAL }
    }

    /// Whether a server is of no use to a finder that is far ahead of it.
    fn drags(&self, slot: Slot, wish: &Wish<'_>) -> bool {
        self.at(slot).lags && !wish.lags
    }

    /// The candidates of one finder, best first: those it has and that still can serve, then the better of two drawn
    /// at random, until there are sixteen. Never the finder's own node, nor one to be avoided.
    pub(super) fn choose(&self, wish: &Wish<'_>, dice: &mut Dice) -> Vec<ParentSaid> {
        let usable = |slot: &Slot| {
            let node = &self.at(*slot).node;
            node != wish.node && !(wish.avoid)(node)
        };
        let mut chosen: Vec<Slot> = Vec::with_capacity(MOST);
        let known = || wish.current.iter().filter_map(|p| self.by_node.get(&p.node).copied()).filter(usable);
        let has_some = |slot: &Slot| self.at(*slot).has != Has::Nothing;
        if self.is_small() {
            chosen.extend(self.crowd.slots.iter().copied().filter(usable));
        } else {
            chosen.extend(known().filter(|slot| !self.at(*slot).source && self.keeps(*slot, wish)));
            self.fill(&mut chosen, &self.crowd.slots, MOST, wish, &usable, dice);
            if !chosen.iter().any(|slot| self.at(*slot).has == Has::Whole) {
                // A set of nodes that all still fetch can starve together: one that has everything belongs in it, as long as
                // it is not asked by all.
                let mut one = Vec::new();
                self.fill(&mut one, &self.whole.slots, 1, wish, &usable, dice);
                let bound = self.bound(false, wish.finders);
                one.retain(|slot| self.at(*slot).namers.len() < bound && !chosen.contains(slot));
                chosen.truncate(MOST - one.len());
                chosen.extend(one);
            }
        }
        self.add_sources(&mut chosen, known(), wish, &usable, dice);
        if !chosen.iter().any(has_some) {
            // Whoever has something may be known to enough already, who pass it on; but somebody must be known to somebody.
            let mut one = Vec::new();
            self.fill(&mut one, &self.ordinary.slots, 1, wish, &usable, dice);
            let alone = chosen.len() < ENOUGH || self.ordinary.slots.is_empty() && self.sources.slots.is_empty();
            let bound = self.bound(false, wish.finders);
            one.retain(|slot| alone || self.at(*slot).namers.len() < bound);
            if alone && one.is_empty() {
                return Vec::new();
            }
            chosen.truncate(MOST - one.len());
            chosen.extend(one);
        }
        // Equals in random order: finders open streams to the first of their sets first, and those must not be the same for all.
        chosen.sort_by_cached_key(|slot| (self.cost(*slot, wish.location, wish.finders), dice.next()));
        chosen.truncate(MOST);
        let said = |slot: Slot| {
            let server = self.at(slot);
            ParentSaid { node: server.node.clone(), addr: server.facts.addr, complete: server.has == Has::Whole }
        };
        chosen.into_iter().map(said).collect()
    }

    /// Whether somebody stays in a set.
    fn keeps(&self, slot: Slot, wish: &Wish<'_>) -> bool {
        let server = self.at(slot);
        !wish.mix || server.namers.len() <= self.bound(server.source, wish.finders) && !self.drags(slot, wish)
    }

    fn add_sources(
        &self,
        chosen: &mut Vec<Slot>,
        known: impl Iterator<Item = Slot>,
        wish: &Wish<'_>,
        usable: &dyn Fn(&Slot) -> bool,
        dice: &mut Dice,
    ) {
        let mut sources: Vec<Slot> = Vec::new();
        if chosen.len() < ENOUGH {
            if self.sources.slots.len() <= MOST {
                sources.extend(self.sources.slots.iter().copied().filter(usable));
            } else {
                sources.extend(known.filter(|slot| self.at(*slot).source));
                self.fill(&mut sources, &self.sources.slots, MOST - chosen.len(), wish, usable, dice);
            }
        } else {
            let kept = |slot: &Slot| self.at(*slot).source && self.keeps(*slot, wish);
            sources.extend(known.filter(kept).take(ENOUGH));
            let kept = sources.len();
            self.fill(&mut sources, &self.sources.slots, ENOUGH, wish, usable, dice);
            let more = sources.split_off(kept);
            sources.extend(more.into_iter().filter(|slot| self.at(*slot).namers.len() < SOURCE_QUOTA));
        }
        if chosen.len() + sources.len() > MOST {
            chosen.truncate(MOST - sources.len());
        }
        chosen.extend(sources);
    }

    fn fill(
        &self,
        chosen: &mut Vec<Slot>,
        from: &[Slot],
        want: usize,
        wish: &Wish<'_>,
        usable: &dyn Fn(&Slot) -> bool,
        dice: &mut Dice,
    ) {
        if from.is_empty() {
            return;
        }
        // Bounded: with few usable ones left, most draws miss.
        for _ in 0..want * 4 {
            if chosen.len() >= want {
                break;
            }
            let draw = [from[dice.below(from.len())], from[dice.below(from.len())]];
            let better = draw
                .into_iter()
                .filter(|slot| !chosen.contains(slot) && usable(slot))
                .min_by_key(|slot| (self.drags(*slot, wish), self.cost(*slot, wish.location, wish.finders)));
            chosen.extend(better);
        }
    }
}
