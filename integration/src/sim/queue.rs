//! What happens next: events in the order of their moment, and among equals in the order in which they were planned.
//!
//! A wheel of short buckets holds what is near, a heap what is far: ten thousand nodes plan some hundred million events, and
//! a heap alone would cost most of the run.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// A moment of simulated time, in nanoseconds since the run began.
pub(super) type Time = u64;

/// One second.
pub(super) const SECOND: Time = 1_000_000_000;
/// One millisecond.
pub(super) const MILLISECOND: Time = 1_000_000;

/// A bucket is 131 µs wide: at ten thousand busy nodes some hundred events.
const SHIFT: u32 = 17;
/// About a second of buckets.
const BUCKETS: usize = 8192;

#[derive(Debug)]
struct Entry<E> {
    at: Time,
    number: u64,
    event: E,
}

impl<E> Entry<E> {
    const fn key(&self) -> (Time, u64) {
        (self.at, self.number)
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// Planned events. Time never goes back.
#[derive(Debug)]
pub(super) struct Queue<E> {
    now: Time,
    planned: u64,
    /// Number of the bucket that is being emptied, counted from time zero.
    current: u64,
    /// The current bucket, the next event last.
    open: Vec<Entry<E>>,
    wheel: Vec<Vec<Entry<E>>>,
    /// How many entries are on the wheel.
    near: usize,
    far: BinaryHeap<Reverse<Entry<E>>>,
}

impl<E> Queue<E> {
    pub(super) fn new() -> Self {
        let wheel = (0..BUCKETS).map(|_| Vec::new()).collect();
        Self { now: 0, planned: 0, current: 0, open: Vec::new(), wheel, near: 0, far: BinaryHeap::new() }
    }

    /// The moment of the event that was taken last.
    pub(super) const fn now(&self) -> Time {
        self.now
    }

    /// Plans an event; a moment that is past counts as now.
    pub(super) fn at(&mut self, at: Time, event: E) {
        let at = at.max(self.now);
        let entry = Entry { at, number: self.planned, event };
        self.planned += 1;
        let bucket = at >> SHIFT;
        if bucket <= self.current {
            let place = self.open.partition_point(|other| other.key() > entry.key());
            self.open.insert(place, entry);
        } else if bucket < self.current + BUCKETS as u64 {
            self.wheel[bucket as usize % BUCKETS].push(entry);
            self.near += 1;
        } else {
            self.far.push(Reverse(entry));
        }
    }

    /// Plans an event so long from now.
    pub(super) fn after(&mut self, wait: Time, event: E) {
        self.at(self.now + wait, event);
    }

    /// Takes the next event. `None`: nothing is planned.
    pub(super) fn next(&mut self) -> Option<E> {
        loop {
            if let Some(entry) = self.open.pop() {
                self.now = entry.at;
                return Some(entry.event);
            }
            if self.near > 0 {
                self.current += 1;
            } else {
                // Nothing is near: go to the first of those that are far.
                self.current = self.far.peek()?.0.at >> SHIFT;
            }
            let bucket = &mut self.wheel[self.current as usize % BUCKETS];
            self.near -= bucket.len();
            std::mem::swap(&mut self.open, bucket);
            while self.far.peek().is_some_and(|entry| entry.0.at >> SHIFT <= self.current) {
                self.open.extend(self.far.pop().map(|entry| entry.0));
            }
            self.open.sort_unstable_by_key(|entry| Reverse(entry.key()));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn gives_events_in_order_of_time_and_then_of_planning(
            first in proptest::collection::vec(0..5 * SECOND, 1..200),
            later in proptest::collection::vec(0..3 * SECOND, 200),
        ) {
            let mut queue = Queue::new();
            let mut planned: Vec<(Time, usize)> = Vec::new();
            for at in first {
                queue.at(at, planned.len());
                planned.push((at, planned.len()));
            }
            let mut seen = Vec::new();
            let mut later = later.into_iter();
            while let Some(event) = queue.next() {
                seen.push((queue.now(), event));
                // Half of the events plan another.
                if event % 2 == 0 && let Some(wait) = later.next() {
                    planned.push((queue.now() + wait, planned.len()));
                    queue.after(wait, planned.len() - 1);
                }
            }
            planned.sort_unstable();
            prop_assert_eq!(seen, planned);
        }
    }
}
