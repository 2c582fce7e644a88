//! Registries that leave requests without a word: whoever asks next does not wait as long again (decision 004).

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{OriginError, Registry};

/// For so long after a silence nobody asks; after it, one request at a time finds out. Short, for a registry that is back
/// should be read through us again; longer than containerd needs to get the next blobs of a pull by itself.
const REST: Duration = Duration::from_secs(10);
/// A connection that failed after this long was waited for, as headers are: a refused one fails at once.
const WAITED: Duration = Duration::from_secs(2);
/// Registries remembered before those that are not silent are dropped.
const MOST_KNOWN: usize = 1024;

#[derive(Default)]
pub(super) struct Silence(Mutex<HashMap<Registry, State>>);

#[derive(Default)]
struct State {
    /// When it last said anything.
    word: Option<Instant>,
    /// When a request was last given up without a word.
    silent: Option<Instant>,
    /// A request is out to find out.
    probing: bool,
}

/// Leave to ask a registry. Says what came of it, or drops it: then nothing was learnt.
pub(super) struct Leave<'a> {
    silence: &'a Silence,
    registry: &'a Registry,
    since: Instant,
    probe: bool,
}

impl Silence {
    /// # Errors
    /// [`OriginError::Silent`] while the registry is left alone.
    pub(super) fn ask<'a>(&'a self, registry: &'a Registry) -> Result<Leave<'a>, OriginError> {
        let mut known = self.0.lock();
        let mut probe = false;
        if let Some(state) = known.get_mut(registry)
            && let Some(since) = state.silent
        {
            if state.probing || since.elapsed() < REST {
                return Err(OriginError::Silent { registry: registry.to_string(), since: since.elapsed() });
            }
            state.probing = true;
            probe = true;
        }
        Ok(Leave { silence: self, registry, since: Instant::now(), probe })
    }
}

impl Leave<'_> {
    /// What came of it; `spoke`: headers came, whatever they said; `limit` is how long headers are waited for. True when the
    /// registry is silent from now on, and was not before.
    pub(super) fn learn<T>(&self, result: &Result<T, OriginError>, spoke: bool, limit: Duration) -> bool {
        let mut known = self.silence.0.lock();
        if known.len() >= MOST_KNOWN && !known.contains_key(self.registry) {
            known.retain(|_, state| state.silent.is_some());
            if known.len() >= MOST_KNOWN {
                return false;
            }
        }
        let state = known.entry(self.registry.clone()).or_default();
        match result {
            Err(OriginError::Silent { .. } | OriginError::Refused { .. }) => false,
            Err(OriginError::Unreachable { .. }) if !spoke => {
                // Refused at once, or others were answered meanwhile: it was this one request.
                let waited = self.since.elapsed() >= WAITED.min(limit);
                let alone = state.word.is_some_and(|word| word > self.since);
                waited && !alone && state.silent.replace(Instant::now()).is_none()
            }
            // A gateway that says late that it can't is not silent.
            _ => {
                state.word = Some(Instant::now());
                state.silent = None;
                false
            }
        }
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if self.probe
            && let Some(state) = self.silence.0.lock().get_mut(self.registry)
        {
            state.probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing() -> Result<(), OriginError> {
        Err(OriginError::Unreachable { registry: "r".into(), why: "no headers".into() })
    }

    const LIMIT: Duration = Duration::from_secs(20);

    async fn wait(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_silence_nobody_asks_for_a_while_and_then_one_at_a_time() {
        let (silence, registry) = (Silence::default(), "r.example".parse().unwrap());
        let first = silence.ask(&registry).unwrap();
        wait(20).await;
        assert!(first.learn(&nothing(), false, LIMIT));
        drop(first);
        assert!(matches!(silence.ask(&registry), Err(OriginError::Silent { .. })));
        wait(9).await;
        assert!(silence.ask(&registry).is_err());
        wait(1).await;
        let probe = silence.ask(&registry).unwrap();
        assert!(silence.ask(&registry).is_err(), "one is out already");
        wait(20).await;
        assert!(!probe.learn(&nothing(), false, LIMIT), "no news");
        drop(probe);
        assert!(silence.ask(&registry).is_err());
        wait(10).await;
        let probe = silence.ask(&registry).unwrap();
        probe.learn(&Ok(()), true, LIMIT);
        assert!(silence.ask(&registry).is_ok(), "it speaks again");
        assert!(silence.ask(&"other.example".parse().unwrap()).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_that_was_said_is_a_word_however_late_it_came() {
        let (silence, registry) = (Silence::default(), "r.example".parse().unwrap());
        let asked = silence.ask(&registry).unwrap();
        wait(15).await;
        let late = Err::<(), _>(OriginError::Unreachable { registry: "r".into(), why: "it says 504".into() });
        assert!(!asked.learn(&late, true, LIMIT));
        assert!(silence.ask(&registry).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_was_given_up_lets_the_next_one_out() {
        let (silence, registry) = (Silence::default(), "r.example".parse().unwrap());
        let first = silence.ask(&registry).unwrap();
        wait(20).await;
        first.learn(&nothing(), false, LIMIT);
        drop(first);
        wait(10).await;
        drop(silence.ask(&registry).unwrap());
        assert!(silence.ask(&registry).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_without_an_answer_among_others_is_no_silence() {
        let (silence, registry) = (Silence::default(), "r.example".parse().unwrap());
        let (slow, quick) = (silence.ask(&registry).unwrap(), silence.ask(&registry).unwrap());
        wait(1).await;
        quick.learn(&Ok(()), true, LIMIT);
        wait(19).await;
        assert!(!slow.learn(&nothing(), false, LIMIT));
        assert!(silence.ask(&registry).is_ok());
        let refused = silence.ask(&registry).unwrap();
        assert!(!refused.learn(&nothing(), false, LIMIT), "it was refused at once");
        assert!(silence.ask(&registry).is_ok());
    }
}
