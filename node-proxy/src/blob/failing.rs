//! Registries whose reads failed for good lately: the next flight does not try as often again before it gives up.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::origin::Registry;

/// A failure is remembered for so long: a pull's next blobs come within it, and whoever pulls later finds out anew.
const LIFE: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Failing(Mutex<HashMap<Registry, Instant>>);

impl Failing {
    /// A flight gave up on it.
    pub(super) fn note(&self, registry: &Registry) {
        let mut failing = self.0.lock();
        failing.retain(|_, since| since.elapsed() < LIFE);
        failing.insert(registry.clone(), Instant::now());
    }

    /// A flight read from it all that was missing.
    pub(super) fn clear(&self, registry: &Registry) {
        self.0.lock().remove(registry);
    }

    pub(super) fn is(&self, registry: &Registry) -> bool {
        self.0.lock().get(registry).is_some_and(|since| since.elapsed() < LIFE)
    }
}
