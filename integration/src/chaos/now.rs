//! What is wrong at the moment, as far as it decides what a client may be given.
//!
//! With a full disk a node streams what it can't keep from the registry to its reader (I11), unhashed: (a) of I1. A registry that
//! gives other bytes then reaches the reader through us, as it would without us. At any other time a whole body of a mirror has
//! the right bytes.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// Shared by who breaks and who pulls. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Now(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    registry_lies: Lasting,
    small_disks: BTreeMap<String, Lasting>,
}

/// Something that holds for a while, again and again.
#[derive(Debug, Default)]
struct Lasting {
    holds: bool,
    ended: Option<Instant>,
}

impl Lasting {
    fn set(&mut self, holds: bool) {
        if self.holds && !holds {
            self.ended = Some(Instant::now());
        }
        self.holds = holds;
    }

    /// Whether it held at some time since then.
    fn since(&self, since: Instant) -> bool {
        self.holds || self.ended.is_some_and(|ended| ended >= since)
    }
}

impl Now {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn registry_lies(&self, lies: bool) {
        self.state().registry_lies.set(lies);
    }

    pub(super) fn small_disk(&self, node: &str, small: bool) {
        self.state().small_disks.entry(node.to_owned()).or_default().set(small);
    }

    /// Whether what a node gave since then may be the registry's lie, passed on.
    pub(super) fn may_pass_on_a_lie(&self, node: &str, since: Instant) -> bool {
        let state = self.state();
        state.registry_lies.since(since) && state.small_disks.get(node).is_some_and(|small| small.since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lie_is_passed_on_only_by_a_full_disk_and_while_the_registry_lies() {
        let (now, begin) = (Now::default(), Instant::now());
        now.small_disk("a1", true);
        assert!(!now.may_pass_on_a_lie("a1", begin));
        now.registry_lies(true);
        assert!(now.may_pass_on_a_lie("a1", begin) && !now.may_pass_on_a_lie("a2", begin));
        now.small_disk("a1", false);
        now.registry_lies(false);
        assert!(now.may_pass_on_a_lie("a1", begin), "it began before both were over");
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(!now.may_pass_on_a_lie("a1", Instant::now()));
    }
}
