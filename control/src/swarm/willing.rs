//! Who of a blob's finders would read the origin, in the order in which they are asked to. An index: what it holds is
//! what the blob says of each finder, so that nobody has to walk all of them at every event.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::event::{At, FinderId};

/// The order: who failed least, then who was not found to be slow, then who has most, then who came first.
pub(super) type Rank = (u32, bool, Reverse<u32>, FinderId);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Ready(Arc<str>, Rank),
    Paused(At),
}

/// The finders that would read. Those of one registry stand together: a registry that wants to be left alone is skipped as one.
#[derive(Debug, Default)]
pub(super) struct Willing {
    ready: BTreeMap<Arc<str>, BTreeSet<Rank>>,
    /// Not before that moment.
    paused: BTreeSet<(At, FinderId)>,
    places: HashMap<FinderId, Place>,
}

impl Willing {
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// All of them, by number.
    pub(super) fn ids(&self) -> BTreeSet<FinderId> {
        self.places.keys().copied().collect()
    }

    /// It would read, from `not_before` on.
    pub(super) fn put(&mut self, registry: &Arc<str>, rank: Rank, not_before: At, now: At) {
        let id = rank.3;
        let place = if not_before > now { Place::Paused(not_before) } else { Place::Ready(Arc::clone(registry), rank) };
        if self.places.get(&id) == Some(&place) {
            return;
        }
        self.remove(id);
        match &place {
            Place::Ready(registry, rank) => {
                self.ready.entry(Arc::clone(registry)).or_default().insert(*rank);
            }
            Place::Paused(at) => {
                self.paused.insert((*at, id));
            }
        }
        self.places.insert(id, place);
    }

    /// It has more blocks than before, if it is one of them.
    pub(super) fn grew(&mut self, id: FinderId, blocks: u32) {
        let Some(Place::Ready(registry, rank)) = self.places.get_mut(&id) else { return };
        let Some(ranks) = self.ready.get_mut(registry) else { return };
        ranks.remove(rank);
        rank.2 = Reverse(blocks);
        ranks.insert(*rank);
    }

    pub(super) fn remove(&mut self, id: FinderId) {
        match self.places.remove(&id) {
            Some(Place::Ready(registry, rank)) => {
                if let Some(ranks) = self.ready.get_mut(&registry) {
                    ranks.remove(&rank);
                    if ranks.is_empty() {
                        self.ready.remove(&registry);
                    }
                }
            }
            Some(Place::Paused(at)) => {
                self.paused.remove(&(at, id));
            }
            None => {}
        }
    }

    /// Those whose pause is over; the blob puts them again.
    pub(super) fn woken(&mut self, now: At) -> Vec<FinderId> {
        let due: Vec<FinderId> = self.paused.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect();
        due.iter().for_each(|id| self.remove(*id));
        due
    }

    /// The first that `fits`, among those whose registry may be asked.
    pub(super) fn first(&self, may: impl Fn(&str) -> bool, fits: impl Fn(FinderId) -> bool) -> Option<Rank> {
        let open = self.ready.iter().filter(|(registry, _)| may(registry));
        open.filter_map(|(_, ranks)| ranks.iter().find(|rank| fits(rank.3))).min().copied()
    }

    /// When the next may be asked who may not now: its pause ends, or its registry may be asked again. `not` does not count.
    pub(super) fn retry(&self, now: At, busy: impl Fn(&str) -> At, not: impl Fn(FinderId) -> bool) -> Option<At> {
        let paused = self.paused.iter().find(|(_, id)| !not(*id)).map(|(at, _)| *at);
        let closed = self.ready.iter().filter_map(|(registry, ranks)| {
            let until = busy(registry);
            (until > now && ranks.iter().any(|rank| !not(rank.3))).then_some(until)
        });
        closed.chain(paused).filter(|at| *at > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_failed_least_and_has_most_is_first_and_a_closed_registry_is_skipped() {
        let mut willing = Willing::default();
        let (hub, other): (Arc<str>, Arc<str>) = ("hub".into(), "other".into());
        let id = |number| FinderId(number);
        let now = At::from_secs(10);
        willing.put(&hub, (0, false, Reverse(1), id(1)), At::ZERO, now);
        willing.put(&hub, (0, false, Reverse(5), id(2)), At::ZERO, now);
        willing.put(&other, (1, false, Reverse(9), id(3)), At::ZERO, now);
        willing.put(&hub, (0, true, Reverse(9), id(4)), At::ZERO, now);
        willing.put(&hub, (0, false, Reverse(9), id(5)), now + At::from_secs(1), now);
        let first = |willing: &Willing| willing.first(|_| true, |_| true).map(|rank| rank.3.0);
        assert_eq!(first(&willing), Some(2));
        willing.grew(id(1), 6);
        assert_eq!(first(&willing), Some(1));
        assert_eq!(willing.first(|registry| registry != "hub", |_| true).map(|rank| rank.3.0), Some(3));
        assert_eq!(willing.retry(now, |_| At::ZERO, |_| false), Some(now + At::from_secs(1)));
        assert_eq!(willing.woken(now + At::from_secs(1)), [id(5)]);
        for number in 1..=4 {
            assert!(willing.ids().contains(&id(number)));
            willing.remove(id(number));
        }
        assert!(willing.is_empty() && first(&willing).is_none());
    }
}
