//! Bytes by source over the last hour, by cluster: what nodes say in heartbeats, summed up in steps of ten seconds. Pure.
//!
//! Soft: after a start of control nothing is known, and it fills up again.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use shoal_proto::ClusterId;

use super::Load;

/// How long one step lasts.
pub const STEP: Duration = Duration::from_secs(10);
/// How many steps are kept: an hour.
pub const STEPS: u64 = 360;

/// Bytes that nodes gave their clients or fetched, by where they came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Read from the origin.
    pub origin: u64,
    /// Read from peers.
    pub peers: u64,
    /// Served from the node's own disk.
    pub local: u64,
}

impl Bytes {
    /// What came since a node said `before`.
    pub(super) fn between(before: &Load, now: &Load) -> Self {
        let since = |before: u64, now: u64| now.saturating_sub(before);
        Self {
            origin: since(before.bytes_from_origin, now.bytes_from_origin),
            peers: since(before.bytes_from_peers, now.bytes_from_peers),
            local: since(before.bytes_local, now.bytes_local),
        }
    }

    fn add(&mut self, other: Self) {
        self.origin = self.origin.saturating_add(other.origin);
        self.peers = self.peers.saturating_add(other.peers);
        self.local = self.local.saturating_add(other.local);
    }
}

/// Steps by their number, the oldest first; those in which nothing came are not there.
type Ring = VecDeque<(u64, Bytes)>;

/// All clusters' traffic; `None` is that of nodes that run alone.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    rings: HashMap<Option<ClusterId>, Ring>,
}

impl Traffic {
    /// Notes bytes in the step of that number, which is not before any that was noted.
    pub(super) fn add(&mut self, cluster: Option<&ClusterId>, step: u64, bytes: Bytes) {
        if bytes == Bytes::default() {
            return;
        }
        let ring = self.rings.entry(cluster.cloned()).or_default();
        match ring.back_mut().filter(|(last, _)| *last >= step) {
            Some((_, last)) => last.add(bytes),
            None => ring.push_back((step, bytes)),
        }
        while ring.front().is_some_and(|(first, _)| first + STEPS <= step) {
            ring.pop_front();
        }
    }

    /// The last `steps` steps up to that of number `now`, the oldest first, of the clusters that `keep` takes together.
    pub(super) fn last(&mut self, now: u64, steps: u64, keep: impl Fn(Option<&ClusterId>) -> bool) -> Vec<Bytes> {
        // Those of clusters that are gone.
        self.rings.retain(|_, ring| ring.back().is_some_and(|(last, _)| last + STEPS > now));
        let steps = steps.clamp(1, STEPS);
        let first = (now + 1).saturating_sub(steps);
        let mut all = vec![Bytes::default(); usize::try_from(now + 1 - first).unwrap_or_default()];
        for (_, ring) in self.rings.iter().filter(|(cluster, _)| keep(cluster.as_ref())) {
            for (step, bytes) in ring.iter().filter(|(step, _)| (first..=now).contains(step)) {
                all[usize::try_from(step - first).unwrap_or_default()].add(*bytes);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn origin(bytes: u64) -> Bytes {
        Bytes { origin: bytes, ..Bytes::default() }
    }

    fn cluster(name: &str) -> Option<ClusterId> {
        Some(name.parse().unwrap())
    }

    #[test]
    fn steps_are_summed_up_by_cluster_and_an_hour_is_kept() {
        let (mut traffic, a, b) = (Traffic::default(), cluster("a"), cluster("b"));
        traffic.add(a.as_ref(), 1, origin(1));
        traffic.add(a.as_ref(), 1, Bytes { peers: 5, local: 7, ..origin(2) });
        traffic.add(b.as_ref(), 2, origin(10));
        traffic.add(None, 3, origin(100));
        let origins = |all: Vec<Bytes>| all.iter().map(|bytes| bytes.origin).collect::<Vec<_>>();
        assert_eq!(origins(traffic.last(3, 3, |_| true)), [3, 10, 100]);
        assert_eq!(traffic.last(1, 1, |_| true), [Bytes { origin: 3, peers: 5, local: 7 }]);
        assert_eq!(origins(traffic.last(3, 4, |of| of == a.as_ref())), [0, 3, 0, 0]);
        assert_eq!(origins(traffic.last(3, 9, |of| of.is_none())), [0, 0, 0, 100], "there were no earlier ones");
        traffic.add(a.as_ref(), STEPS + 1, origin(4));
        assert_eq!(traffic.rings[&a].len(), 1, "the first is an hour old");
        assert_eq!(origins(traffic.last(STEPS + 1, 1, |_| true)), [4]);
        traffic.last(3 * STEPS, 1, |_| true);
        assert!(traffic.rings.is_empty(), "what is over is not kept");
    }

    #[test]
    fn totals_that_fall_are_no_bytes() {
        let load = |bytes| Load { bytes_from_origin: bytes, bytes_local: 2 * bytes, ..Load::default() };
        let came = Bytes::between(&load(5), &load(7));
        assert_eq!(came, Bytes { origin: 2, peers: 0, local: 4 });
        assert_eq!(Bytes::between(&load(7), &load(5)), Bytes::default());
    }

    proptest! {
        #[test]
        fn nothing_is_lost_within_the_hour(adds in proptest::collection::vec((0u64..40, 0u64..100, 0usize..3), 0..60)) {
            let mut adds = adds;
            adds.sort_unstable();
            let clusters = [cluster("a"), cluster("b"), None];
            let mut traffic = Traffic::default();
            for (step, bytes, of) in &adds {
                traffic.add(clusters[*of].as_ref(), *step, origin(*bytes));
            }
            let all = traffic.last(39, STEPS, |_| true);
            prop_assert_eq!(all.len(), 40);
            for (step, bytes) in (0u64..).zip(all) {
                let want: u64 = adds.iter().filter(|add| add.0 == step).map(|add| add.1).sum();
                prop_assert_eq!(bytes, origin(want));
            }
        }
    }
}
