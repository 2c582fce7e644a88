//! How much a node asks for at once, when its own link is what is slow. Pure: the time is passed in.
//!
//! Sixteen parents that are asked for a block each take turns on the child's link: at 10 Mbit/s each needs three seconds for
//! 256 KiB, and none has answered in the two that a parent may be silent. So when a parent is late, no more is asked for at once
//! than came in the last second. On a link that is fast enough for what is asked that is no bound at all.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What came in so long says how fast the link is: as long as a parent may be silent.
const LOOK_BACK: Duration = Duration::from_secs(2);
/// So much may be on its way at once, by that.
const AHEAD: Duration = Duration::from_secs(1);
/// But always so many blocks: one comes while the next is asked for.
const LEAST: u32 = 2;
/// With no parent late for so long there is no bound any more.
const REMEMBERED: Duration = Duration::from_secs(10);

/// What came to one fetch, and how much it may ask for.
#[derive(Debug, Default)]
pub struct Intake {
    landed: VecDeque<Instant>,
    late_at: Option<Instant>,
}

impl Intake {
    /// A block came.
    pub fn landed(&mut self, now: Instant) {
        self.forget(now);
        self.landed.push_back(now);
    }

    /// A parent is late with a block.
    pub fn late(&mut self, now: Instant) {
        self.late_at = Some(now);
    }

    /// How many blocks may be on their way at once; `None`: any number.
    pub fn most(&mut self, now: Instant) -> Option<u32> {
        if now >= self.late_at? + REMEMBERED {
            self.late_at = None;
            return None;
        }
        self.forget(now);
        let came = self.landed.len() as f64 * AHEAD.as_secs_f64() / LOOK_BACK.as_secs_f64();
        Some((came.ceil() as u32).max(LEAST))
    }

    fn forget(&mut self, now: Instant) {
        while self.landed.front().is_some_and(|at| *at + LOOK_BACK <= now) {
            self.landed.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_bounded_until_a_parent_is_late_nor_long_after() {
        let mut now = Instant::now();
        let mut intake = Intake::default();
        (0..5).for_each(|_| intake.landed(now));
        assert_eq!(intake.most(now), None);
        intake.late(now);
        assert_eq!(intake.most(now), Some(3));
        now += REMEMBERED;
        assert_eq!(intake.most(now), None);
    }

    #[test]
    fn the_bound_is_what_came_in_a_second_and_never_less_than_two() {
        let begin = Instant::now();
        let mut intake = Intake::default();
        intake.late(begin);
        assert_eq!(intake.most(begin), Some(2));
        // Ten a second, then nothing.
        for tenth in 0..40 {
            intake.landed(begin + Duration::from_millis(100 * tenth));
        }
        let end = begin + Duration::from_millis(3_900);
        assert_eq!(intake.most(end), Some(10));
        assert_eq!(intake.most(end + LOOK_BACK), Some(2));
    }
}
