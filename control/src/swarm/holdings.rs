//! What a node holds whole.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use shoal_proto::Digest;

use super::event::Fact;

/// Facts by their digests. Ten thousand nodes may hold some hundreds of blobs each: of a blob there is a pointer here, and no more.
#[derive(Debug, Default)]
pub(super) struct Holdings(HashSet<Held>);

/// It is looked for by its digest, and there is one of each.
#[derive(Debug)]
struct Held(Arc<Fact>);

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.0.digest == other.0.digest
    }
}

impl Eq for Held {}

impl Hash for Held {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.digest.hash(state);
    }
}

impl Borrow<Digest> for Held {
    fn borrow(&self) -> &Digest {
        &self.0.digest
    }
}

impl Holdings {
    /// How many.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn digests(&self) -> impl Iterator<Item = Digest> {
        self.0.iter().map(|held| held.0.digest)
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<&Arc<Fact>> {
        self.0.get(digest).map(|held| &held.0)
    }

    #[cfg(test)]
    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.0.contains(digest)
    }

    /// In place of what was known of that blob. True: it was not held before.
    pub(super) fn insert(&mut self, fact: Arc<Fact>) -> bool {
        self.0.replace(Held(fact)).is_none()
    }

    /// Whether it was held.
    pub(super) fn remove(&mut self, digest: &Digest) -> bool {
        self.0.remove(digest)
    }

    pub(super) fn into_facts(self) -> impl Iterator<Item = Arc<Fact>> {
        self.0.into_iter().map(|held| held.0)
    }
}
