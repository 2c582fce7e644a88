//! What was found out of registries lately, so that the next flight need not find out again.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::origin::Registry;

/// Reads failed for good: the next flight does not try as often again before it gives up. A pull's next blobs come within this
/// time, and whoever pulls later finds out anew.
const FAILS: Duration = Duration::from_secs(30);
/// It answers a range with the whole: it is not read in runs, each of which would bring along all before it.
const IGNORES_RANGES: Duration = Duration::from_secs(3600);

/// Registries of which something holds for some time.
pub(super) struct Lately {
    life: Duration,
    since: Mutex<HashMap<Registry, Instant>>,
}

impl Lately {
    /// Those whose reads failed.
    pub(super) fn fails() -> Self {
        Self { life: FAILS, since: Mutex::default() }
    }

    /// Those that ignore ranges.
    pub(super) fn ignores_ranges() -> Self {
        Self { life: IGNORES_RANGES, since: Mutex::default() }
    }

    /// It was seen now.
    pub(super) fn note(&self, registry: &Registry) {
        let mut all = self.since.lock();
        all.retain(|_, since| since.elapsed() < self.life);
        all.insert(registry.clone(), Instant::now());
    }

    /// The opposite was seen.
    pub(super) fn clear(&self, registry: &Registry) {
        self.since.lock().remove(registry);
    }

    pub(super) fn is(&self, registry: &Registry) -> bool {
        self.since.lock().get(registry).is_some_and(|since| since.elapsed() < self.life)
    }
}
