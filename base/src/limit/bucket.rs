//! The arithmetic of a limit, without a clock.

use std::time::Duration;

use super::burst;

/// Bytes are counted in billionths, so that a nanosecond's worth of any rate is a whole number and nothing is lost by rounding.
const SCALE: u128 = 1_000_000_000;

/// What may pass now, by what passed before. Times are since any one moment, and one that lies before an earlier one counts
/// as that one.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// Bytes per second; 0: no limit.
    rate: u64,
    /// Billionths of a byte that may pass at `at`.
    level: u128,
    at: Duration,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub const fn new(rate: u64) -> Self {
        Self { rate, level: burst(rate) as u128 * SCALE, at: Duration::ZERO }
    }

    /// Bytes per second; 0: no limit.
    #[must_use]
    pub const fn rate(&self) -> u64 {
        self.rate
    }

    /// Changes the rate. What was saved up stays, up to what may be saved up at the new one.
    pub fn set(&mut self, rate: u64, now: Duration) {
        self.advance(now);
        let unlimited = self.rate == 0;
        self.rate = rate;
        let full = u128::from(burst(rate)) * SCALE;
        self.level = if unlimited { full } else { self.level.min(full) };
    }

    /// Takes so many bytes, which must be no more than the burst.
    ///
    /// # Errors
    /// Not yet: how long to wait until it can be, if nobody takes anything before. The bucket is as it was.
    pub fn take(&mut self, bytes: u64, now: Duration) -> Result<(), Duration> {
        self.advance(now);
        if self.rate == 0 {
            return Ok(());
        }
        let wanted = u128::from(bytes.min(burst(self.rate))) * SCALE;
        if self.level >= wanted {
            self.level -= wanted;
            return Ok(());
        }
        let nanos = (wanted - self.level).div_ceil(u128::from(self.rate));
        Err(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        let full = u128::from(burst(self.rate)) * SCALE;
        self.level = (self.level + u128::from(self.rate) * passed.as_nanos()).min(full);
    }
}
