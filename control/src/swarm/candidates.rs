//! Which parents a finder is told of: a pure choice among everybody who can serve.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use shoal_proto::NodeId;

use super::event::ParentSaid;

/// DESIGN section 4: up to sixteen. With eight neighbours the simulated swarm of 1,000 was 4 % slower (SWARM.md).
pub(super) const MOST: usize = 16;
/// One differing level of the location weighs as much as this many uploads.
const LEVEL: u32 = 4;
/// A location deeper than this counts as this deep.
const LEVELS: usize = 4;
/// What a node without a free upload slot costs more.
const FULL: u32 = 16;
/// What a node that is itself still fetching costs more.
const PARTIAL: u32 = 2;

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

    fn below(&mut self, bound: usize) -> usize {
        // The bias is bound / 2^64: nothing.
        (self.next() % bound as u64) as usize
    }
}

/// Somebody who can serve.
#[derive(Debug, Clone)]
pub(super) struct Candidate<'a> {
    pub(super) node: &'a NodeId,
    pub(super) addr: SocketAddr,
    pub(super) complete: bool,
    pub(super) uploads: u32,
    pub(super) slots: u32,
    pub(super) location: &'a [String],
    /// To how many finders it was named in this round: heartbeats tell of their uploads a second late.
    pub(super) named: u32,
}

/// Everybody who can serve one blob, looked at once for all of its finders.
#[derive(Debug, Default)]
pub(super) struct Pool<'a> {
    all: Vec<Candidate<'a>>,
    by_node: HashMap<&'a NodeId, usize>,
    everybody: Vec<usize>,
    complete: Vec<usize>,
}

impl<'a> Pool<'a> {
    pub(super) fn push(&mut self, candidate: Candidate<'a>) {
        if let Some(at) = self.by_node.get(candidate.node) {
            debug_assert!(!candidate.complete || self.all[*at].complete, "whole ones are pushed first");
            return;
        }
        let at = self.all.len();
        self.by_node.insert(candidate.node, at);
        self.everybody.push(at);
        if candidate.complete {
            self.complete.push(at);
        }
        self.all.push(candidate);
    }

    fn cost(&self, at: usize, location: &[String]) -> u32 {
        let candidate = &self.all[at];
        let shared = candidate.location.iter().zip(location).take_while(|(a, b)| a == b).count();
        let depth = location.len().min(LEVELS);
        let far = (depth - shared.min(depth)) as u32;
        let full = candidate.slots > 0 && candidate.uploads >= candidate.slots;
        candidate.uploads.min(1 << 16)
            + candidate.named
            + LEVEL * far
            + if full { FULL } else { 0 }
            + if candidate.complete { 0 } else { PARTIAL }
    }

    /// The candidates of one finder, best first: those it has and that still can serve, then the better of two drawn
    /// at random, until there are sixteen. Never the finder's own node, nor one that lied to it.
    pub(super) fn choose(
        &mut self,
        me: &NodeId,
        location: &[String],
        liars: &HashSet<NodeId>,
        current: &[ParentSaid],
        dice: &mut Dice,
    ) -> Vec<ParentSaid> {
        let usable = |node: &NodeId| node != me && !liars.contains(node);
        let mut chosen: Vec<usize> = if self.all.len() <= MOST + 1 {
            (0..self.all.len()).filter(|at| usable(self.all[*at].node)).collect()
        } else {
            current
                .iter()
                .filter_map(|p| self.by_node.get(&p.node).copied())
                .filter(|at| usable(self.all[*at].node))
                .collect()
        };
        if self.all.len() > MOST + 1 {
            self.fill(&mut chosen, &self.everybody, MOST, location, &usable, dice);
            if !chosen.iter().any(|at| self.all[*at].complete) {
                // A set of nodes that all still fetch can starve together: one that has everything belongs in it.
                chosen.truncate(MOST - 1);
                let room = chosen.len() + 1;
                self.fill(&mut chosen, &self.complete, room, location, &usable, dice);
            }
        }
        // Equals in random order: nodes connect to the first ones, and must not all connect to the same.
        chosen.sort_by_cached_key(|at| (self.cost(*at, location), dice.next()));
        chosen.truncate(MOST);
        for at in &chosen {
            self.all[*at].named += 1;
        }
        chosen
            .into_iter()
            .map(|at| {
                let candidate = &self.all[at];
                ParentSaid { node: candidate.node.clone(), addr: candidate.addr, complete: candidate.complete }
            })
            .collect()
    }

    fn fill(
        &self,
        chosen: &mut Vec<usize>,
        from: &[usize],
        want: usize,
        location: &[String],
        usable: &dyn Fn(&NodeId) -> bool,
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
                .filter(|at| !chosen.contains(at) && usable(self.all[*at].node))
                .min_by_key(|at| self.cost(*at, location));
            chosen.extend(better);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: usize) -> NodeId {
        format!("n{number}").parse().unwrap()
    }

    fn path(text: &str) -> Vec<String> {
        text.split('|').map(str::to_owned).collect()
    }

    fn addr() -> SocketAddr {
        "10.0.0.1:5081".parse().unwrap()
    }

    fn candidate<'a>(node: &'a NodeId, complete: bool, uploads: u32, location: &'a [String]) -> Candidate<'a> {
        Candidate { node, addr: addr(), complete, uploads, slots: 0, location, named: 0 }
    }

    #[test]
    fn names_the_near_and_idle_first() {
        let (here, there) = (path("a|b"), path("a|c"));
        let nodes: Vec<NodeId> = (0..4).map(node).collect();
        let mut pool = Pool::default();
        pool.push(candidate(&nodes[0], true, 0, &there));
        pool.push(candidate(&nodes[1], true, 3, &here));
        pool.push(candidate(&nodes[2], false, 0, &here));
        pool.push(candidate(&nodes[3], true, 0, &here));
        let chosen = pool.choose(&node(9), &here, &HashSet::new(), &[], &mut Dice::new(1));
        let order: Vec<&str> = chosen.iter().map(|p| p.node.as_str()).collect();
        assert_eq!(order, ["n3", "n2", "n1", "n0"]);
    }

    #[test]
    fn never_names_the_asker_or_a_liar() {
        let nodes: Vec<NodeId> = (0..40).map(node).collect();
        for seed in 0..50 {
            let mut pool = Pool::default();
            for node in &nodes {
                pool.push(candidate(node, false, 0, &[]));
            }
            let liars: HashSet<NodeId> = nodes[..20].iter().cloned().collect();
            let chosen = pool.choose(&nodes[30], &[], &liars, &[], &mut Dice::new(seed));
            assert!(chosen.len() >= 10 && chosen.len() <= MOST, "{}", chosen.len());
            assert!(chosen.iter().all(|p| p.node != nodes[30] && !liars.contains(&p.node)));
            let distinct: HashSet<&NodeId> = chosen.iter().map(|p| &p.node).collect();
            assert_eq!(distinct.len(), chosen.len());
        }
    }

    #[test]
    fn keeps_who_was_named_and_adds_one_that_has_everything() {
        let nodes: Vec<NodeId> = (0..100).map(node).collect();
        let mut pool = Pool::default();
        pool.push(candidate(&nodes[0], true, 200, &[]));
        for node in &nodes[1..] {
            pool.push(candidate(node, false, 0, &[]));
        }
        let first = pool.choose(&node(200), &[], &HashSet::new(), &[], &mut Dice::new(1));
        assert_eq!(first.len(), MOST);
        assert!(first.iter().any(|p| p.complete));
        let second = pool.choose(&node(200), &[], &HashSet::new(), &first, &mut Dice::new(2));
        let set = |list: &[ParentSaid]| list.iter().map(|p| p.node.clone()).collect::<HashSet<_>>();
        assert_eq!(set(&first), set(&second));
    }

    #[test]
    fn spreads_finders_over_the_holders() {
        let nodes: Vec<NodeId> = (0..100).map(node).collect();
        let mut pool = Pool::default();
        for node in &nodes {
            pool.push(candidate(node, true, 0, &[]));
        }
        let mut dice = Dice::new(7);
        let mut named: HashMap<NodeId, u32> = HashMap::new();
        for finder in 0..100 {
            for parent in pool.choose(&node(1000 + finder), &[], &HashSet::new(), &[], &mut dice) {
                *named.entry(parent.node).or_default() += 1;
            }
        }
        let most = named.values().max().unwrap();
        assert!(*most <= 24 && named.len() == 100, "16 on average, but one was named {most} times");
    }
}
