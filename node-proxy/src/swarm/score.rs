//! How a parent has done in this fetch, and which one to try next. Pure: the time is passed in.

use std::time::{Duration, Instant};

/// Back-off after the first loss; doubled by each further one without a block in between.
const FIRST_REST: Duration = Duration::from_secs(1);
/// A parent that control still names is tried at least this often.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// Bounds on what a busy parent may ask for: not a busy loop, and not a parent lost for good.
const BUSY_REST: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));
/// Weight of the newest measurement of the rate.
const NEWEST: f64 = 0.3;

/// The record of one parent.
#[derive(Debug, Clone, Default)]
pub struct Score {
    rate: f64,
    losses: u32,
    rest_until: Option<Instant>,
    shunned: bool,
}

impl Score {
    /// A block came.
    pub fn served(&mut self, bytes: usize, took: Duration) {
        let rate = bytes as f64 / took.as_secs_f64().max(1e-6);
        self.rate = if self.rate == 0.0 { rate } else { self.rate * (1.0 - NEWEST) + rate * NEWEST };
        self.losses = 0;
    }

    /// The connection was lost: rest 1 s, 2 s, 4 s, ...
    pub fn lost(&mut self, now: Instant) {
        let rest = FIRST_REST.saturating_mul(1 << self.losses.min(5)).min(LONGEST_REST);
        self.losses += 1;
        self.rest_until = Some(now + rest);
    }

    /// The parent asks to come back later.
    pub fn busy(&mut self, now: Instant, after: Duration) {
        self.rest_until = Some(now + after.clamp(BUSY_REST.0, BUSY_REST.1));
    }

    /// Nothing wrong, but others may have more: rest a little.
    pub fn idle(&mut self, now: Instant) {
        self.rest_until = Some(now + FIRST_REST);
    }

    /// It lied: never again in this fetch.
    pub fn shun(&mut self) {
        self.shunned = true;
    }

    /// Whether it lied in this fetch.
    pub fn is_shunned(&self) -> bool {
        self.shunned
    }

    /// Bytes per second, smoothed; 0 until measured.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// When it may be asked, `None` for never.
    pub fn ready_at(&self, now: Instant) -> Option<Instant> {
        (!self.shunned).then(|| self.rest_until.map_or(now, |until| until.max(now)))
    }
}

/// Which of the candidates, in control's order, to connect to now: one that is ready, with the fewest losses; of those one that was
/// never left, or was left before the others, so that with few streams everybody gets a turn.
pub fn choose<'a>(candidates: impl Iterator<Item = &'a Score>, now: Instant) -> Option<usize> {
    candidates
        .enumerate()
        .filter(|(_, score)| score.ready_at(now).is_some_and(|at| at <= now))
        .min_by_key(|(at, score)| (score.losses, score.rest_until, *at))
        .map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_longer_after_each_loss_and_forgets_them_when_served() {
        let now = Instant::now();
        let mut score = Score::default();
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            score.lost(now);
            assert_eq!(score.ready_at(now), Some(now + Duration::from_secs(seconds)));
        }
        score.served(1, Duration::from_millis(1));
        score.lost(now);
        assert_eq!(score.ready_at(now), Some(now + Duration::from_secs(1)));
    }

    #[test]
    fn a_busy_parent_cannot_ask_for_an_hour_nor_for_a_busy_loop() {
        let now = Instant::now();
        let mut score = Score::default();
        score.busy(now, Duration::from_secs(3600));
        assert_eq!(score.ready_at(now), Some(now + BUSY_REST.1));
        score.busy(now, Duration::ZERO);
        assert_eq!(score.ready_at(now), Some(now + BUSY_REST.0));
    }

    #[test]
    fn chooses_by_losses_then_by_the_order_of_control() {
        let now = Instant::now();
        let mut scores = vec![Score::default(); 4];
        scores[0].lost(now);
        scores[1].shun();
        let later = now + Duration::from_secs(2);
        assert_eq!(choose(scores.iter(), now), Some(2));
        assert_eq!(choose(scores[..2].iter(), now), None);
        assert_eq!(choose(scores[..2].iter(), later), Some(0));
        assert_eq!(choose(scores.iter(), later), Some(2));
    }

    #[test]
    fn with_one_stream_every_candidate_gets_a_turn() {
        let mut now = Instant::now();
        let mut scores = vec![Score::default(); 4];
        let mut tried = Vec::new();
        for _ in 0..8 {
            let chosen = choose(scores.iter(), now).unwrap();
            tried.push(chosen);
            now += FIRST_REST;
            scores[chosen].idle(now);
        }
        assert_eq!(tried, [0, 1, 2, 3, 0, 1, 2, 3]);
    }

    #[test]
    fn the_rate_follows_what_is_measured() {
        let mut score = Score::default();
        score.served(1_000, Duration::from_millis(10));
        assert!((score.rate() - 100_000.0).abs() < 1.0);
        for _ in 0..30 {
            score.served(1_000, Duration::from_millis(100));
        }
        assert!((score.rate() - 10_000.0).abs() < 100.0);
    }
}
