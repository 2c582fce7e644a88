//! Limits on bytes per second: a pure token bucket, and a limiter that many tasks wait at in turn.
//!
//! What always holds: in any span of time no more passes than the rate allows for it and one [`burst`]; who comes first goes
//! first, so that users who all wait and take equal parts get equal shares; a changed rate holds at once, also for those who wait.
//! The bucket has no clock: time is passed in. Rate 0 means no limit.

mod bucket;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::Instant;

pub use bucket::Bucket;

/// The most that is taken at once. So a part of this size can pass at any rate, and one of it costs little to wait for.
pub const LARGEST_PART: u64 = 1 << 20;
/// The least that a limit may be, in bytes per second: at less, single blocks would take longer than peers have patience.
pub const LEAST_RATE: u64 = 128 << 10;

/// What may pass at once after a pause, at a rate in bytes per second: a tenth of a second's worth, since timers and threads
/// are not exact, and never less than [`LARGEST_PART`].
#[must_use]
pub const fn burst(rate: u64) -> u64 {
    let tenth = rate / 10;
    if tenth > LARGEST_PART { tenth } else { LARGEST_PART }
}

/// A limit that many tasks share. Clones share it.
#[derive(Debug, Clone)]
pub struct Limiter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    began: Instant,
    bucket: Mutex<Bucket>,
    /// Held by whoever is next; the others stand in line behind it.
    turn: tokio::sync::Mutex<()>,
    rate: watch::Sender<u64>,
    metrics: Metrics,
}

/// Of one limit; registered by [`Limiter::register`].
#[derive(Debug, Default)]
struct Metrics {
    rate: Gauge,
    held_back: Counter,
    waited: Counter<f64, std::sync::atomic::AtomicU64>,
}

impl Limiter {
    /// A limit of so many bytes per second; 0 for none.
    #[must_use]
    pub fn new(rate: u64) -> Self {
        let metrics = Metrics::default();
        metrics.rate.set(i64::try_from(rate).unwrap_or(i64::MAX));
        Self(Arc::new(Inner {
            began: Instant::now(),
            bucket: Mutex::new(Bucket::new(rate)),
            turn: tokio::sync::Mutex::default(),
            rate: watch::Sender::new(rate),
            metrics,
        }))
    }

    /// No limit.
    #[must_use]
    pub fn none() -> Self {
        Self::new(0)
    }

    /// Adds the limit's metrics, called by what is limited.
    pub fn register(&self, what: &str, registry: &mut Registry) {
        let metrics = &self.0.metrics;
        let (held_back, waited) = (metrics.held_back.clone(), metrics.waited.clone());
        registry.register(
            format!("{what}_rate_bytes"),
            "Bytes per second that may pass; 0: no limit",
            metrics.rate.clone(),
        );
        registry.register(format!("{what}_held_back_bytes"), "Bytes that had to wait for the limit", held_back);
        registry.register(
            format!("{what}_waited_seconds"),
            "Time that tasks waited for the limit, all together",
            waited,
        );
    }

    /// Bytes per second; 0 for no limit.
    #[must_use]
    pub fn rate(&self) -> u64 {
        *self.0.rate.borrow()
    }

    /// Changes the rate. Whoever waits goes on waiting by the new one.
    pub fn set(&self, rate: u64) {
        self.bucket().set(rate, self.0.began.elapsed());
        self.0.metrics.rate.set(i64::try_from(rate).unwrap_or(i64::MAX));
        self.0.rate.send_replace(rate);
    }

    /// Into how large parts a long run of bytes had better be cut, so that one of them is never waited for longer than half a
    /// second by somebody alone.
    #[must_use]
    pub fn part(&self) -> u64 {
        match self.rate() {
            0 => LARGEST_PART,
            rate => (rate / 2).clamp(64 << 10, LARGEST_PART),
        }
    }

    /// Waits until so many bytes may pass. More than [`LARGEST_PART`] is taken in parts, between which others have their turn.
    /// Cancel safe: a dropped call has lost its turn and at most the parts that it was given.
    pub async fn take(&self, bytes: u64) {
        let mut left = bytes;
        while left > 0 && self.rate() > 0 {
            let part = left.min(LARGEST_PART);
            self.take_part(part).await;
            left -= part;
        }
    }

    async fn take_part(&self, bytes: u64) {
        let came = Instant::now();
        let (_turn, mut waited) = match self.0.turn.try_lock() {
            Ok(turn) => (turn, false),
            Err(_) => (self.0.turn.lock().await, true),
        };
        let mut rate = self.0.rate.subscribe();
        loop {
            rate.borrow_and_update();
            let taken = self.bucket().take(bytes, self.0.began.elapsed());
            let Err(wait) = taken else { break };
            waited = true;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // The sender lives as long as this.
                _ = rate.changed() => {}
            }
        }
        if waited {
            self.0.metrics.held_back.inc_by(bytes);
            self.0.metrics.waited.inc_by(came.elapsed().as_secs_f64());
        }
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        // A panic in the bucket's arithmetic leaves numbers, and any numbers will do.
        self.0.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
