//! How fast a node reads the origin, as measured from what it says (DESIGN I6, case (c)). Pure.

use std::collections::{BTreeMap, HashMap, VecDeque};

use shoal_proto::{ClusterId, NodeId};

use super::event::At;

/// A rate is of this last time: long enough that single blocks and ticks do not show, short enough to see a change.
const WINDOW: At = At::from_secs(2);
/// A rate of less time than this is none.
pub(super) const LEAST: At = At::from_millis(500);
/// Readers are compared over this time at least.
const COMPARED: At = At::from_millis(750);
/// Who says nothing for longer than this is silent: that time counts. Shorter ones are words that are on their way.
const UNHEARD: At = At::from_millis(500);
/// Who reads nothing for longer than this begins anew.
const GAP: At = At::from_secs(2);
/// Words that come closer together than this are one sample.
const STEP: At = At::from_millis(50);
/// Rates that are older than this say nothing of the network now.
const FRESH: At = At::from_secs(120);
/// Rates kept of one registry in one cluster.
const MOST: usize = 256;

/// One reader's bytes over time, from its first word after the headers on. What it does between two permits does not count.
#[derive(Debug, Default)]
pub(super) struct Meter {
    samples: VecDeque<(At, u64)>,
    /// Since when it reads nothing.
    paused: Option<At>,
}

impl Meter {
    /// So many bytes in all until now.
    pub(super) fn note(&mut self, now: At, total: u64) {
        if self.is_cold(now) {
            self.samples.clear();
        }
        if let Some(since) = self.paused.take() {
            // The next run came late: as if it had come at once.
            self.samples.iter_mut().for_each(|(at, _)| *at += now - since);
        }
        match self.samples.back() {
            Some((at, last)) if now < *at + STEP || total < *last => return,
            _ => self.samples.push_back((now, total)),
        }
        while self.samples.get(1).is_some_and(|(at, _)| *at + WINDOW <= now) {
            self.samples.pop_front();
        }
    }

    /// Bytes a second over the last time until now, a silence until now included. `None`: too short to tell.
    pub(super) fn rate(&self, now: At) -> Option<u64> {
        let ((from, first), (_, last)) = (self.samples.front()?, self.samples.back()?);
        let span = now.checked_sub(*from).filter(|span| *span >= LEAST)?;
        Some(((last - first) as f64 / span.as_secs_f64()) as u64)
    }

    /// What several measured over one and the same span, bytes a second: words of one come earlier than those of another, and what
    /// each shows alone over a short time must not be compared. `None`: they have not been read side by side for long enough.
    pub(super) fn together(meters: &[&Self], now: At) -> Option<Vec<u64>> {
        let mut from = now.saturating_sub(WINDOW);
        let mut until = now;
        for meter in meters {
            from = from.max(meter.samples.front()?.0);
            until = until.min(meter.samples.back()?.0);
        }
        until = until.max(now.saturating_sub(UNHEARD));
        let span = until.checked_sub(from).filter(|span| *span >= COMPARED)?;
        Some(meters.iter().map(|meter| ((meter.at(until) - meter.at(from)) / span.as_secs_f64()) as u64).collect())
    }

    /// Its bytes at a moment, as if they came evenly between two words.
    fn at(&self, moment: At) -> f64 {
        let after = self.samples.partition_point(|(at, _)| *at <= moment);
        let (Some((from, first)), next) =
            (after.checked_sub(1).and_then(|at| self.samples.get(at)), self.samples.get(after))
        else {
            return self.samples.front().map_or(0.0, |(_, total)| *total as f64);
        };
        let Some((until, last)) = next else { return *first as f64 };
        let part = (moment - *from).as_secs_f64() / (*until - *from).as_secs_f64();
        (*last - *first) as f64 * part + *first as f64
    }

    /// Others read beside it from now on, or no more: what was before says nothing of what comes.
    pub(super) fn restart(&mut self) {
        self.samples.drain(..self.samples.len().saturating_sub(1));
    }

    /// It has read nothing yet, or not for long.
    pub(super) fn is_cold(&self, now: At) -> bool {
        self.samples.is_empty() || self.paused.is_some_and(|since| since + GAP <= now)
    }

    /// It reads nothing now: the time until it does again is no part of any rate.
    pub(super) fn pause(&mut self, now: At) {
        self.paused.get_or_insert(now);
    }
}

/// What nodes measured last of a registry, over all blobs of a cluster.
#[derive(Debug, Default)]
pub(super) struct Rates(HashMap<(ClusterId, String), BTreeMap<NodeId, (At, u64)>>);

impl Rates {
    /// A node reads that registry at this rate now.
    pub(super) fn note(&mut self, cluster: &ClusterId, registry: &str, node: &NodeId, rate: u64, now: At) {
        let key = (cluster.clone(), registry.to_owned());
        if self.0.len() >= MOST && !self.0.contains_key(&key) {
            self.sweep(now);
        }
        let rates = self.0.entry(key).or_default();
        if rates.len() >= MOST && !rates.contains_key(node) {
            rates.retain(|_, (at, _)| now < *at + FRESH);
            if rates.len() >= MOST {
                return;
            }
        }
        rates.insert(node.clone(), (now, rate));
    }

    /// The fastest of the others, within the last minutes.
    pub(super) fn best_other(&self, cluster: &ClusterId, registry: &str, node: &NodeId, now: At) -> Option<u64> {
        let rates = self.0.get(&(cluster.clone(), registry.to_owned()))?;
        let others = rates.iter().filter(|(other, (at, _))| *other != node && now < *at + FRESH);
        others.map(|(_, (_, rate))| *rate).max()
    }

    /// What this one measured, within the last minutes.
    pub(super) fn of(&self, cluster: &ClusterId, registry: &str, node: &NodeId, now: At) -> Option<u64> {
        let (at, rate) = self.0.get(&(cluster.clone(), registry.to_owned()))?.get(node)?;
        (now < *at + FRESH).then_some(*rate)
    }

    /// Forgets what is old, so that registries that nobody reads any more cost nothing.
    fn sweep(&mut self, now: At) {
        self.0.retain(|_, rates| {
            rates.retain(|_, (at, _)| now < *at + FRESH);
            !rates.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> At {
        At::from_millis(millis)
    }

    #[test]
    fn a_rate_needs_half_a_second_and_forgets_what_is_older_than_two() {
        let mut meter = Meter::default();
        meter.note(ms(0), 1_000_000);
        meter.note(ms(250), 1_250_000);
        assert_eq!(meter.rate(ms(400)), None);
        meter.note(ms(500), 1_500_000);
        assert_eq!(meter.rate(ms(500)), Some(1_000_000));
        assert_eq!(meter.rate(ms(1000)), Some(500_000), "silence counts");
        for at in 3..30 {
            meter.note(ms(at * 250), 1_500_000 + at * 25_000);
        }
        let rate = meter.rate(ms(29 * 250)).unwrap();
        assert!((99_000..=101_000).contains(&rate), "{rate}");
        meter.pause(ms(7300));
        meter.note(ms(7800), 2_230_000);
        meter.note(ms(8050), 2_255_000);
        let rate = meter.rate(ms(8050)).unwrap();
        assert!((90_000..=110_000).contains(&rate), "between two runs no time passes: {rate}");
        meter.pause(ms(8050));
        meter.note(ms(60_000), 9_000_000);
        assert_eq!(meter.rate(ms(60_100)), None, "the pause is no part of it");
    }

    #[test]
    fn readers_are_compared_over_one_span_whoever_speaks_first() {
        let (mut early, mut late) = (Meter::default(), Meter::default());
        // The one was alone before, and faster.
        (0..4).for_each(|at| early.note(ms(at * 250), at * 500_000));
        early.restart();
        for at in 0..3 {
            late.note(ms(800 + at * 250), at * 250_000);
            early.note(ms(1000 + at * 250), 1_750_000 + at * 250_000);
            let now = ms(1000 + at * 250);
            assert_eq!(Meter::together(&[&early, &late], now), None, "too short");
        }
        late.note(ms(1550), 750_000);
        late.note(ms(1800), 1_000_000);
        early.note(ms(1750), 2_500_000);
        let rates = Meter::together(&[&early, &late], ms(1800)).unwrap();
        assert!(rates.iter().all(|rate| (950_000..=1_050_000).contains(rate)), "{rates:?}");
        // A silence counts when it is long.
        (8..12).for_each(|at| early.note(ms(at * 250), 2_250_000 + (at - 6) * 250_000));
        let rates = Meter::together(&[&early, &late], ms(2800)).unwrap();
        assert!(rates[1] * 10 < rates[0] * 8, "{rates:?}");
    }

    #[test]
    fn the_rates_of_a_registry_are_bounded_and_get_old() {
        let mut rates = Rates::default();
        let east: ClusterId = "east".parse().unwrap();
        let node = |number: usize| format!("n{number}").parse::<NodeId>().unwrap();
        for number in 0..MOST + 9 {
            rates.note(&east, "hub", &node(number), number as u64, At::ZERO);
        }
        let best = MOST as u64 - 1;
        assert_eq!(rates.best_other(&east, "hub", &node(0), ms(1)), Some(best));
        assert_eq!(rates.best_other(&east, "hub", &node(MOST - 1), ms(1)), Some(best - 1));
        assert_eq!(rates.best_other(&east, "other", &node(0), ms(1)), None);
        assert_eq!(rates.of(&east, "hub", &node(7), ms(1)), Some(7));
        assert_eq!(rates.best_other(&east, "hub", &node(0), FRESH), None);
        rates.note(&east, "hub", &node(MOST + 1), 5, FRESH);
        assert_eq!(rates.best_other(&east, "hub", &node(0), FRESH), Some(5));
        rates.sweep(FRESH * 2);
        assert!(rates.0.is_empty());
    }
}
