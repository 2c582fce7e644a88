//! Which callers a registry lets read a repository (I10): asked once with the caller's own credential, remembered for minutes
//! by a hash of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Credential, OriginError, Target};

/// Whoever loses the right to read may go on for so long.
const YES_LIFE: Duration = Duration::from_secs(5 * 60);
/// Whoever just got it should be let in soon.
const NO_LIFE: Duration = Duration::from_secs(30);
/// With the registry down, what it said within a day counts, if the config says so.
const OUTAGE_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Callers remembered before old ones are dropped.
const MOST: usize = 4096;

/// A hash of a credential, keyed with what this process alone knows: of no use to whoever reads our memory.
type Print = [u8; 32];

pub(super) struct Callers {
    key: [u8; 32],
    known: Mutex<HashMap<(Target, Print), Arc<Entry>>>,
}

#[derive(Default)]
pub(super) struct Entry {
    /// Held while the registry is asked, so that one question does for all.
    pub(super) asking: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    word: Option<(Result<(), OriginError>, Instant)>,
    /// When the registry let this caller read last, whatever it said since.
    read: Option<Instant>,
}

impl Default for Callers {
    fn default() -> Self {
        Self { key: rand::random(), known: Mutex::default() }
    }
}

impl Callers {
    pub(super) fn entry(&self, target: &Target, credential: &Credential) -> Arc<Entry> {
        let print = *blake3::keyed_hash(&self.key, credential.0.as_bytes()).as_bytes();
        let mut known = self.known.lock();
        let key = (target.clone(), print);
        if known.len() >= MOST && !known.contains_key(&key) {
            known.retain(|_, entry| Arc::strong_count(entry) > 1 || entry.fresh().is_some());
            if known.len() >= MOST {
                return Arc::default();
            }
        }
        Arc::clone(known.entry(key).or_default())
    }

    /// What the registry just said to this caller.
    pub(super) fn learn(&self, target: &Target, credential: &Credential, word: Result<(), OriginError>) {
        let entry = self.entry(target, credential);
        let mut state = entry.state.lock();
        state.read = match word {
            Ok(()) => Some(Instant::now()),
            // The registry itself took the right away: an outage does not give it back.
            Err(_) => None,
        };
        state.word = Some((word, Instant::now()));
    }
}

impl Entry {
    /// What the registry said a short while ago.
    pub(super) fn fresh(&self) -> Option<Result<(), OriginError>> {
        let state = self.state.lock();
        let (word, since) = state.word.as_ref()?;
        let life = if word.is_ok() { YES_LIFE } else { NO_LIFE };
        (since.elapsed() < life).then(|| word.clone())
    }

    /// Whether the registry's last word to this caller, within a day, was yes.
    pub(super) fn read_today(&self) -> bool {
        self.state.lock().read.is_some_and(|since| since.elapsed() < OUTAGE_LIFE)
    }
}
