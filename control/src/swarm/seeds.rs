//! Which seed is asked to fetch a blob before all others, and which are left alone for a while.
//!
//! Seeds of a cluster share by digest: each digest goes to the one that a hash of both ranks first (rendezvous hashing), so that one more
//! or one less moves only its own share. What always holds: a seed that let somebody wait is asked again only after a pause, and then
//! for one blob; as soon as it begins one, or has a new session, that is forgotten.

use std::collections::{BTreeSet, HashMap};

use shoal_proto::{ClusterId, Digest, NodeId};

use super::event::{At, Key};

/// Nobody who waits for a blob is held back for the sake of seeds for longer than this, however many there are.
pub(super) const PATIENCE: At = At::from_secs(2);
/// A seed that lives says within this that it begins: a hundred times what a word there and back takes.
pub(super) const ACK: At = At::from_millis(500);
/// A seed that let others wait is left alone for so long, doubled each time.
const PAUSE: At = At::from_secs(15);
const LONGEST_PAUSE: At = At::from_secs(300);
/// What a registry refused a seed is not asked of that seed for so long.
const CLOSED: At = At::from_secs(300);
/// Repositories that are closed to seeds and remembered.
const MOST_CLOSED: usize = 4096;

/// A seed that let others wait.
#[derive(Debug, Clone)]
struct Pause {
    until: At,
    times: u32,
}

/// The seeds of all clusters.
#[derive(Debug, Clone, Default)]
pub(super) struct Seeds {
    live: HashMap<ClusterId, BTreeSet<NodeId>>,
    pauses: HashMap<NodeId, Pause>,
    closed: HashMap<(NodeId, String), At>,
    /// Blobs that a seed was asked for and has not come for yet.
    asked: HashMap<NodeId, BTreeSet<Key>>,
}

impl Seeds {
    /// A node is a seed of this cluster from now on, or of none. Answers for what it was asked in vain.
    pub(super) fn is_in(&mut self, node: &NodeId, cluster: Option<&ClusterId>) -> BTreeSet<Key> {
        self.live.retain(|_, seeds| {
            seeds.remove(node);
            !seeds.is_empty()
        });
        self.pauses.remove(node);
        self.closed.retain(|(seed, _), _| seed != node);
        if let Some(cluster) = cluster {
            self.live.entry(cluster.clone()).or_default().insert(node.clone());
        }
        self.asked.remove(node).unwrap_or_default()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.live.values().map(BTreeSet::len).sum()
    }

    /// The seed that is first for a digest, of those that are not paused, may read there, and `fit`.
    pub(super) fn first(
        &self,
        (cluster, digest): (&ClusterId, &Digest),
        place: &str,
        now: At,
        fit: impl Fn(&NodeId) -> bool,
    ) -> Option<NodeId> {
        let open = |seed: &&NodeId| {
            self.pauses.get(*seed).is_none_or(|pause| pause.until <= now)
                && (self.closed.is_empty()
                    || self.closed.get(&((*seed).clone(), place.to_owned())).is_none_or(|until| *until <= now))
        };
        let seeds = self.live.get(cluster)?.iter().filter(open).filter(|seed| fit(seed));
        seeds.max_by_key(|seed| rank(digest, seed)).cloned()
    }

    /// A seed is asked for a blob. One that was paused is tried with this one alone.
    pub(super) fn asks(&mut self, seed: &NodeId, key: Key, now: At) {
        if let Some(pause) = self.pauses.get_mut(seed) {
            pause.until = now + PATIENCE;
        }
        self.asked.entry(seed.clone()).or_default().insert(key);
    }

    /// It is awaited no more.
    pub(super) fn settles(&mut self, seed: &NodeId, key: &Key) {
        if let Some(keys) = self.asked.get_mut(seed) {
            keys.remove(key);
            if keys.is_empty() {
                self.asked.remove(seed);
            }
        }
    }

    /// It did what it was asked.
    pub(super) fn works(&mut self, seed: &NodeId) {
        self.pauses.remove(seed);
    }

    /// It let others wait.
    pub(super) fn pause(&mut self, seed: &NodeId, now: At) {
        let pause = self.pauses.entry(seed.clone()).or_insert(Pause { until: now, times: 0 });
        // What was asked of it at the same time fails at the same time, and that counts once.
        if pause.until <= now + PATIENCE {
            pause.until = now + PAUSE.saturating_mul(1 << pause.times.min(8)).min(LONGEST_PAUSE);
            pause.times += 1;
        }
    }

    /// The registry refused it what is there.
    pub(super) fn closes(&mut self, seed: &NodeId, place: String, now: At) {
        if self.closed.len() >= MOST_CLOSED {
            self.closed.retain(|_, until| *until > now);
        }
        if self.closed.len() < MOST_CLOSED {
            self.closed.insert((seed.clone(), place), now + CLOSED);
        }
    }

    #[cfg(test)]
    pub(super) fn asked(&self) -> BTreeSet<(NodeId, Key)> {
        self.asked.iter().flat_map(|(seed, keys)| keys.iter().map(|key| (seed.clone(), key.clone()))).collect()
    }
}

/// A repository, as what is closed is remembered.
pub(super) fn place(registry: &str, repository: &str) -> String {
    format!("{registry}/{repository}")
}

/// How near a seed is to a digest. FNV-1a over both, then mixed as SplitMix64 does: the first alone differs too little between names that
/// end alike.
fn rank(digest: &Digest, seed: &NodeId) -> u64 {
    let bytes = digest.as_bytes().iter().chain(seed.as_str().as_bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    super::candidates::Dice::new(hash).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: usize) -> NodeId {
        format!("node-{number}").parse().unwrap()
    }

    fn digest(number: u64) -> Digest {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        Digest::from_bytes(bytes)
    }

    fn east() -> ClusterId {
        "east".parse().unwrap()
    }

    fn first(seeds: &Seeds, number: u64, now: At) -> Option<NodeId> {
        seeds.first((&east(), &digest(number)), "hub/a", now, |_| true)
    }

    #[test]
    fn digests_are_shared_evenly_and_one_seed_less_moves_its_own_alone() {
        let mut seeds = Seeds::default();
        (0..5).for_each(|number| assert!(seeds.is_in(&node(number), Some(&east())).is_empty()));
        let before: Vec<NodeId> = (0..5000).map(|number| first(&seeds, number, At::ZERO).unwrap()).collect();
        for number in 0..5 {
            let share = before.iter().filter(|seed| **seed == node(number)).count();
            assert!((850..1150).contains(&share), "{share} of 5000 go to the {number}th of five");
        }
        seeds.is_in(&node(3), None);
        for (number, seed) in (0..).zip(&before).filter(|(_, seed)| **seed != node(3)) {
            assert_eq!(first(&seeds, number, At::ZERO).as_ref(), Some(seed));
        }
        assert_eq!(seeds.count(), 4);
        assert_eq!(seeds.first((&"west".parse().unwrap(), &digest(1)), "hub/a", At::ZERO, |_| true), None);
    }

    #[test]
    fn a_seed_that_let_others_wait_is_tried_again_with_one_blob_and_then_trusted_again() {
        let mut seeds = Seeds::default();
        seeds.is_in(&node(1), Some(&east()));
        let key = |number| (east(), digest(number));
        let at = At::from_secs;
        seeds.asks(&node(1), key(1), at(10));
        seeds.asks(&node(1), key(2), at(10));
        seeds.pause(&node(1), at(12));
        seeds.pause(&node(1), at(12));
        assert_eq!(first(&seeds, 1, at(26)), None);
        assert_eq!(first(&seeds, 1, at(27)), Some(node(1)), "the two at once count once");
        seeds.asks(&node(1), key(3), at(27));
        assert_eq!(first(&seeds, 4, at(28)), None, "one is tried");
        seeds.pause(&node(1), at(29));
        assert_eq!(first(&seeds, 4, at(58)), None);
        seeds.asks(&node(1), key(4), at(59));
        seeds.works(&node(1));
        assert_eq!(first(&seeds, 5, at(59)), Some(node(1)));
        seeds.closes(&node(1), "hub/a".into(), at(60));
        assert_eq!(first(&seeds, 5, at(61)), None);
        assert_eq!(seeds.first((&east(), &digest(5)), "hub/b", at(61), |_| true), Some(node(1)));
        seeds.settles(&node(1), &key(4));
        // Another session.
        assert_eq!(seeds.is_in(&node(1), Some(&east())), [key(1), key(2), key(3)].into());
        assert_eq!(first(&seeds, 5, at(61)), Some(node(1)));
    }
}
