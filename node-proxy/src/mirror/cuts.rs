//! Bodies that were cut short, so that a blob whose origin fails us again and again is left to containerd itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shoal_proto::Digest;
use tokio::time::Instant;

/// A cut is remembered for so long.
const LIFE: Duration = Duration::from_secs(60);
/// After so many cuts of one blob, its rest is not begun again here. Before each of them the flight has tried the origin more than
/// once by itself.
const MOST: u32 = 2;
/// Blobs remembered before old ones are dropped.
const MOST_KNOWN: usize = 1024;

/// Which bodies were cut lately. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Cuts(Arc<Mutex<HashMap<Digest, (u32, Instant)>>>);

/// Where the end of one body is noted.
pub(super) struct Note {
    cuts: Cuts,
    digest: Digest,
}

impl Cuts {
    pub(super) fn of(&self, digest: Digest) -> Note {
        Note { cuts: self.clone(), digest }
    }

    /// Whether the rest of a blob is better asked for elsewhere: the origin can't be read from here (I7).
    pub(super) fn are_enough(&self, digest: &Digest) -> bool {
        self.0.lock().get(digest).is_some_and(|(count, last)| *count >= MOST && last.elapsed() < LIFE)
    }
}

impl Note {
    pub(super) fn cut(&self) {
        let mut cuts = self.cuts.0.lock();
        if cuts.len() >= MOST_KNOWN {
            cuts.retain(|_, (_, last)| last.elapsed() < LIFE);
        }
        if cuts.len() >= MOST_KNOWN {
            return;
        }
        let (count, last) = cuts.entry(self.digest).or_insert((0, Instant::now()));
        *count = if last.elapsed() < LIFE { *count + 1 } else { 1 };
        *last = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_cuts_within_a_minute_are_enough_and_are_forgotten() {
        let (cuts, digest) = (Cuts::default(), Digest::from_bytes([7; 32]));
        assert!(!cuts.are_enough(&digest));
        cuts.of(digest).cut();
        assert!(!cuts.are_enough(&digest));
        cuts.of(digest).cut();
        assert!(cuts.are_enough(&digest) && !cuts.are_enough(&Digest::from_bytes([8; 32])));
        tokio::time::advance(LIFE).await;
        assert!(!cuts.are_enough(&digest));
        cuts.of(digest).cut();
        assert!(!cuts.are_enough(&digest), "the old ones do not count");
    }
}
