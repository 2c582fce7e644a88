//! How long to wait before trying again. Pure: the random number comes from the caller.

use std::time::Duration;

/// Exponential back-off with jitter over the whole range, so that a thousand nodes that lost the same peer do not come
/// back in step.
///
/// The n-th wait is uniform in `min ..= min(max, min * 2^n)`, n counted from 1.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// Waits never fall below `min` nor rise above `max`; a `max` below `min` counts as `min`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max: max.max(min), ceiling: min }
    }

    /// The next wait. `random01` is uniform in 0..1; what lies outside is clamped.
    pub fn next(&mut self, random01: f64) -> Duration {
        self.ceiling = self.ceiling.saturating_mul(2).min(self.max);
        let share = if random01.is_nan() { 0.0 } else { random01.clamp(0.0, 1.0) };
        self.min + self.ceiling.saturating_sub(self.min).mul_f64(share)
    }

    /// The next wait is a first one again. To be called when something worked.
    pub fn reset(&mut self) {
        self.ceiling = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_range_doubles_until_the_maximum_and_starts_again_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(700));
        let ceilings: Vec<u128> = (0..4).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(ceilings, [200, 400, 700, 700]);
        assert_eq!(backoff.next(0.0), Duration::from_millis(100));
        backoff.reset();
        assert_eq!(backoff.next(1.0), Duration::from_millis(200));
    }

    proptest! {
        #[test]
        fn every_wait_lies_between_the_bounds(min in 0u64..10_000, max in 0u64..100_000, randoms: Vec<f64>) {
            let (min, max) = (Duration::from_millis(min), Duration::from_millis(max));
            let mut backoff = Backoff::new(min, max);
            for random in randoms {
                let wait = backoff.next(random);
                prop_assert!(wait >= min && wait <= max.max(min));
            }
        }
    }
}
