//! Which blobs go when room is needed. Pure: the ledger gives what is there, and carries the answer out.

use shoal_proto::Digest;

/// What a candidate is; the order is the order in which they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A partial blob that nobody writes. It goes first: nobody can be served the whole of it.
    Leftover,
    /// A held blob.
    Held,
}

/// Something that takes room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Leftover or held.
    pub(super) kind: Kind,
    /// The blob.
    pub(super) digest: Digest,
    /// Bytes that its going frees.
    pub(super) size: u64,
    /// When it was used last; larger is later.
    pub(super) used: u64,
    /// Open or being written: it stays.
    pub(super) in_use: bool,
}

/// The fewest candidates, in the order of leftovers before held blobs and least recently used first, that free `need`
/// bytes. `None`, and nothing should go, when all that is not in use is less than that.
pub(super) fn victims(candidates: impl Iterator<Item = Candidate>, need: u64) -> Option<Vec<Candidate>> {
    let (victims, freed) = as_many(candidates, need);
    (freed >= need).then_some(victims)
}

/// The same, but all that can go when that is less than `need`. The second value is what they free.
pub(super) fn as_many(candidates: impl Iterator<Item = Candidate>, need: u64) -> (Vec<Candidate>, u64) {
    if need == 0 {
        return (Vec::new(), 0);
    }
    // A heap, not a sort: of 100,000 candidates usually a handful goes.
    let mut heap: std::collections::BinaryHeap<_> = candidates
        .filter(|candidate| !candidate.in_use && candidate.size > 0)
        .map(|c| std::cmp::Reverse((c.kind, c.used, c.digest, c.size)))
        .collect();
    let mut victims = Vec::new();
    let mut freed = 0;
    while freed < need {
        let Some(std::cmp::Reverse((kind, used, digest, size))) = heap.pop() else { break };
        freed += size;
        victims.push(Candidate { kind, digest, size, used, in_use: false });
    }
    (victims, freed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (any::<bool>(), 0u64..1000, 0u64..20, any::<bool>());
        proptest::collection::vec(one, 0..40).prop_map(|all| {
            all.into_iter()
                .enumerate()
                .map(|(at, (held, size, used, in_use))| Candidate {
                    kind: if held { Kind::Held } else { Kind::Leftover },
                    digest: Digest::from_bytes([at as u8; 32]),
                    size,
                    used,
                    in_use,
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn takes_the_oldest_that_suffice_and_never_what_is_in_use(all in candidates(), need in 0u64..12_000) {
            let evictable: u64 = all.iter().filter(|c| !c.in_use).map(|c| c.size).sum();
            prop_assert_eq!(as_many(all.iter().copied(), need).1 >= need, evictable >= need);
            let Some(victims) = victims(all.iter().copied(), need) else {
                prop_assert!(evictable < need);
                return Ok(());
            };
            prop_assert!(evictable >= need);
            let freed: u64 = victims.iter().map(|c| c.size).sum();
            prop_assert!(freed >= need);
            // Not one more than needed.
            prop_assert!(victims.last().is_none_or(|last| freed - last.size < need));
            for victim in &victims {
                prop_assert!(all.contains(victim), "in use, or made up: {:?}", victim);
            }
            prop_assert!(victims.windows(2).all(|w| (w[0].kind, w[0].used) <= (w[1].kind, w[1].used)));
            // Whatever stays and could have gone is no older than what went.
            for stays in all.iter().filter(|c| !c.in_use && c.size > 0 && !victims.contains(c)) {
                prop_assert!(victims.iter().all(|v| (v.kind, v.used) <= (stays.kind, stays.used)));
            }
        }
    }
}
