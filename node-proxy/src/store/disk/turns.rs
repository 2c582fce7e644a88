//! One at a time makes a digest held: a flight and an ingest of the same blob may end together.

use std::collections::HashSet;

use parking_lot::{Condvar, Mutex};
use shoal_proto::Digest;

#[derive(Default)]
pub(super) struct Turns {
    taken: Mutex<HashSet<Digest>>,
    freed: Condvar,
}

/// Frees the digest when it is dropped.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    digest: Digest,
}

impl Turns {
    /// Waits until nobody else makes this digest held.
    pub(super) fn take(&self, digest: Digest) -> Turn<'_> {
        let mut taken = self.taken.lock();
        while !taken.insert(digest) {
            self.freed.wait(&mut taken);
        }
        Turn { turns: self, digest }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.taken.lock().remove(&self.digest);
        self.turns.freed.notify_all();
    }
}
