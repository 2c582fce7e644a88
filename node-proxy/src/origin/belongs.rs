//! Which content is in which repository: learnt from the registry's answers and from manifests that are in it.

use std::collections::HashSet;

use parking_lot::Mutex;
use shoal_proto::Digest;

use super::Target;

/// Facts in one generation. Two of them are some 2 MiB when full; a node pulls a few thousand blobs a day.
const MOST: usize = 32 << 10;

/// What is known, in two generations: when the young one is full, what nobody asked for since it was empty is forgotten.
#[derive(Default)]
pub(super) struct Belongs(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashSet<Fact>,
    old: HashSet<Fact>,
}

/// Of registry, repository and digest.
type Fact = [u8; 16];

fn fact(target: &Target, digest: &Digest) -> Fact {
    let mut hash = blake3::Hasher::new();
    for part in [target.registry.to_string(), target.repository.to_string()] {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.update(digest.as_bytes());
    let mut fact = Fact::default();
    fact.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    fact
}

impl Belongs {
    pub(super) fn learn(&self, target: &Target, digest: &Digest) {
        self.0.lock().insert(fact(target, digest));
    }

    pub(super) fn knows(&self, target: &Target, digest: &Digest) -> bool {
        let fact = fact(target, digest);
        let mut known = self.0.lock();
        if known.young.contains(&fact) {
            return true;
        }
        let old = known.old.contains(&fact);
        if old {
            known.insert(fact);
        }
        old
    }
}

impl Generations {
    fn insert(&mut self, fact: Fact) {
        if self.young.len() >= MOST && !self.young.contains(&fact) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(fact);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(registry: &str, repository: &str) -> Target {
        Target { registry: registry.parse().unwrap(), repository: repository.parse().unwrap() }
    }

    fn digest(n: u64) -> Digest {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        Digest::from_bytes(bytes)
    }

    #[test]
    fn a_fact_is_of_one_registry_one_repository_and_one_digest() {
        let known = Belongs::default();
        known.learn(&target("r.example", "a/b"), &digest(1));
        assert!(known.knows(&target("r.example", "a/b"), &digest(1)));
        for (registry, repository, n) in
            [("r.example", "a/b", 2), ("r.example", "a", 1), ("s.example", "a/b", 1), ("r.example", "a/b/c", 1)]
        {
            assert!(!known.knows(&target(registry, repository), &digest(n)), "{registry} {repository} {n}");
        }
    }

    #[test]
    fn what_is_asked_for_stays_and_memory_is_bounded() {
        let (known, here) = (Belongs::default(), target("r.example", "a"));
        known.learn(&here, &digest(0));
        for n in 1..4 * MOST as u64 {
            known.learn(&here, &digest(n));
            if n % 1000 == 0 {
                assert!(known.knows(&here, &digest(0)), "after {n}");
            }
        }
        assert!(!known.knows(&here, &digest(1)));
        let facts = known.0.lock();
        assert!(facts.young.len() <= MOST && facts.old.len() <= MOST);
    }
}
