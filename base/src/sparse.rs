//! A bound on log lines that others cause: who is refused a thousand times a second must not fill the log. What is left out is
//! counted by whoever has a counter, and told with the next line.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lines a second and kind: enough to see who it is, and 40 MB a day at most.
const PER_SECOND: u32 = 5;
const SECOND: Duration = Duration::from_secs(1);

/// Says which lines may be written. `K`: kinds of line, a few; a flood of one does not hide another.
#[derive(Debug)]
pub struct Sparse<K>(Mutex<HashMap<K, State>>);

impl<K> Default for Sparse<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

#[derive(Debug, Default)]
struct State {
    began: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl<K: Eq + Hash> Sparse<K> {
    /// Whether a line of this kind may be written now: then how many were left out since the last one. `None`: it is left out.
    pub fn next(&self, kind: K) -> Option<u64> {
        // Numbers that a panic left are as good as any.
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = states.entry(kind).or_default();
        if state.began.is_none_or(|began| began.elapsed() >= SECOND) {
            (state.began, state.written) = (Some(Instant::now()), 0);
        }
        if state.written >= PER_SECOND {
            state.left_out += 1;
            return None;
        }
        state.written += 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_writes_a_few_lines_a_second_and_tells_how_many_it_did_not() {
        let sparse = Sparse::default();
        let flood = || (0..1000).filter_map(|_| sparse.next("flood")).collect::<Vec<_>>();
        assert_eq!(flood(), [0; PER_SECOND as usize]);
        tokio::time::advance(SECOND / 2).await;
        assert!(flood().is_empty());
        tokio::time::advance(SECOND / 2).await;
        let told = flood();
        assert_eq!((told.len(), told[0], told[1]), (PER_SECOND as usize, 1995, 0));
        assert_eq!(sparse.next("another"), Some(0), "a flood of one kind does not hide another");
    }
}
