//! Who said that whom lied, and for how long that counts. Pure.
//!
//! Control can't tell who is right: a complaint may itself be a lie, or come from a bad disk. So a complaint binds whoever
//! makes it, who is told of the accused no more; only when several nodes were lied to is nobody. The author of a list that did not
//! match is not believed about that blob by anybody (I1): the worst that a false complaint costs there is one more read of the
//! origin.

use std::collections::{BTreeMap, HashMap};

use shoal_proto::NodeId;

use super::event::{At, Key};

/// As long as a node refuses a digest that did not match (I1).
pub(super) const FOR: At = At::from_secs(600);
/// So many different nodes must complain before a node is told to nobody: one alone may be the liar.
const WITNESSES: usize = 2;
/// So many nodes at most does one node accuse at a time: beyond that it is more likely to be wrong itself, and every complaint is
/// looked at whenever candidates are named.
const MOST_BY_ONE: usize = 64;
/// Accused nodes, and blobs that were lied about, that are remembered; more are not noted until some are forgotten.
const MOST: usize = 4096;

/// By name, when.
type Times = BTreeMap<NodeId, At>;

#[derive(Debug, Default)]
pub(super) struct Distrust {
    /// The accused, and who complained.
    complaints: HashMap<NodeId, Times>,
    /// The same the other way round: who complained, and of whom.
    reporters: HashMap<NodeId, Times>,
    /// Blobs, and whose word about them turned out to be false.
    blamed: HashMap<Key, Times>,
}

impl Distrust {
    /// A node says that another lied to it.
    pub(super) fn complain(&mut self, accused: &NodeId, reporter: &NodeId, now: At) {
        let known = self.reporters.get(reporter);
        let others = known.into_iter().flatten().filter(|(other, at)| *other != accused && counts(**at, now));
        if others.count() >= MOST_BY_ONE {
            return;
        }
        if !self.complaints.contains_key(accused) && self.complaints.len() >= MOST {
            for times in [&mut self.complaints, &mut self.reporters] {
                forget(times, now);
            }
            if self.complaints.len() >= MOST {
                return;
            }
        }
        self.complaints.entry(accused.clone()).or_default().insert(reporter.clone(), now);
        self.reporters.entry(reporter.clone()).or_default().insert(accused.clone(), now);
    }

    /// Whether a node has complained of anybody, and it is remembered.
    pub(super) fn has_complained(&self, reporter: &NodeId) -> bool {
        self.reporters.contains_key(reporter)
    }

    /// What a node said of a blob did not match the blob's digest.
    pub(super) fn blame(&mut self, key: &Key, author: &NodeId, now: At) {
        if let Some(times) = slot(&mut self.blamed, key, now) {
            times.insert(author.clone(), now);
        }
    }

    /// Whether what the node says of this blob counts for nothing.
    pub(super) fn is_blamed(&self, key: &Key, node: &NodeId, now: At) -> bool {
        self.blamed.get(key).and_then(|times| times.get(node)).is_some_and(|at| counts(*at, now))
    }

    /// Whether `whom` may not be named to `asker`.
    pub(super) fn shuns(&self, asker: &NodeId, whom: &NodeId, now: At) -> bool {
        let Some(times) = self.complaints.get(whom) else { return false };
        times.get(asker).is_some_and(|at| counts(*at, now)) || self.is_outcast(whom, now)
    }

    /// Whether the node may be named to nobody.
    pub(super) fn is_outcast(&self, whom: &NodeId, now: At) -> bool {
        let complaints =
            self.complaints.get(whom).map_or(0, |times| times.values().filter(|at| counts(**at, now)).count());
        complaints >= WITNESSES
    }
}

fn counts(at: At, now: At) -> bool {
    now < at + FOR
}

/// Forgets what counts no more.
fn forget<K: Eq + std::hash::Hash>(all: &mut HashMap<K, Times>, now: At) {
    all.retain(|_, times| {
        times.retain(|_, at| counts(*at, now));
        !times.is_empty()
    });
}

/// Where to note something under a key; `None` when too much is remembered already.
fn slot<'a, K: Clone + Eq + std::hash::Hash>(
    all: &'a mut HashMap<K, Times>,
    key: &K,
    now: At,
) -> Option<&'a mut Times> {
    if !all.contains_key(key) && all.len() >= MOST {
        forget(all, now);
        if all.len() >= MOST {
            return None;
        }
    }
    Some(all.entry(key.clone()).or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    #[test]
    fn a_complaint_binds_whoever_makes_it_and_two_bind_all() {
        let mut distrust = Distrust::default();
        let (liar, one, two, three) = (node("liar"), node("one"), node("two"), node("three"));
        distrust.complain(&liar, &one, At::ZERO);
        distrust.complain(&liar, &one, At::from_secs(1));
        assert!(distrust.shuns(&one, &liar, At::from_secs(2)) && !distrust.shuns(&two, &liar, At::from_secs(2)));
        distrust.complain(&liar, &two, At::from_secs(3));
        assert!(distrust.shuns(&three, &liar, At::from_secs(4)));
        assert!(distrust.has_complained(&one) && !distrust.has_complained(&three));
        // The first is forgotten ten minutes after it was said last, and then one is left.
        let later = At::from_secs(1) + FOR;
        assert!(!distrust.shuns(&one, &liar, later) && distrust.shuns(&two, &liar, later));
        assert!(!distrust.is_outcast(&liar, later));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_makes_room_when_it_is_old() {
        let mut distrust = Distrust::default();
        for number in 0..2 * MOST_BY_ONE {
            distrust.complain(&node(&format!("n{number}")), &node("one"), At::ZERO);
        }
        assert_eq!(distrust.complaints.len(), MOST_BY_ONE, "one accuses so many at most");
        distrust.complain(&node("n0"), &node("one"), At::ZERO);
        for number in 0..MOST + 50 {
            distrust.complain(&node(&format!("n{number}")), &node(&format!("r{}", number / 10)), At::ZERO);
        }
        assert_eq!(distrust.complaints.len(), MOST);
        distrust.complain(&node("late"), &node("one"), FOR);
        assert!(distrust.shuns(&node("one"), &node("late"), FOR));
        assert_eq!(distrust.complaints.len(), 1);
    }
}
