//! What is simulated: how many nodes, their links, what goes wrong; and the limit that a run is measured by.

use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use shoal_proto::Layout;

use super::queue::{SECOND, Time};

/// Payload bytes per second of a link. Text: a number and `Mbit` or `Gbit`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Rate(f64);

impl Rate {
    /// So many million bits per second.
    pub const fn mbit(mbit: f64) -> Self {
        Self(mbit * 1e6 / 8.0)
    }

    /// Bytes per second.
    pub const fn bytes(self) -> f64 {
        self.0
    }

    /// How long so many bytes take.
    pub(super) fn takes(self, bytes: u64) -> Time {
        (bytes as f64 / self.0 * SECOND as f64).round() as Time
    }

    fn times(self, share: f64) -> Self {
        Self(self.0 * share)
    }
}

impl FromStr for Rate {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (number, unit) = match (text.strip_suffix("Mbit"), text.strip_suffix("Gbit")) {
            (Some(number), _) => (number, 1.0),
            (None, Some(number)) => (number, 1000.0),
            (None, None) => anyhow::bail!("`{text}` is no rate such as 200Mbit or 1Gbit"),
        };
        let number: f64 = number.trim().parse().with_context(|| format!("`{text}` is no rate such as 200Mbit"))?;
        ensure!(number.is_finite() && number > 0.0, "a rate is above 0");
        Ok(Self::mbit(number * unit))
    }
}

/// One run. The same plan gives the same events, byte for byte.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Nodes that start at once.
    pub nodes: u32,
    /// Bytes of the blob.
    pub blob_bytes: u64,
    /// Up and down, of each node that is not slow.
    pub rate: Rate,
    /// What the origin sends at most, all readers together.
    pub origin_rate: Rate,
    /// One way, between any two, in seconds.
    pub delay_s: f64,
    /// Share of slow nodes, 0 to 1.
    pub slow: f64,
    /// Their links, as a share of `rate`.
    pub slow_rate: f64,
    /// Share of nodes that crash per second.
    pub crash: f64,
    /// Further nodes that start when half of the limit's time is over.
    pub join: u32,
    /// Nodes among them that hold the blob when the others start.
    pub holders: u32,
    /// Nodes that send a wrong block now and then.
    pub liars: u32,
    /// The last of them are seeds: they fetch what control orders, and nothing by themselves.
    pub seeds: u32,
    /// So many of these say nothing to an order.
    pub deaf_seeds: u32,
    /// When control stops, in seconds; it is back one second later.
    pub control_restart_s: Option<f64>,
    /// How many of the candidates that control names a node looks at; 0: all.
    pub neighbours: usize,
    /// Of all that is random.
    pub seed: u64,
}

impl Plan {
    /// Equal links at 200 Mbit/s with a delay of a quarter of a piece's time, and nothing that goes wrong.
    ///
    /// # Errors
    /// When the blob is too large to be cut into blocks.
    pub fn equal(nodes: u32, blob_bytes: u64) -> Result<Self> {
        let rate = Rate::mbit(200.0);
        Ok(Self {
            nodes,
            blob_bytes,
            rate,
            origin_rate: rate,
            delay_s: quarter_piece(blob_bytes, rate)?,
            slow: 0.0,
            slow_rate: 0.25,
            crash: 0.0,
            join: 0,
            holders: 0,
            liars: 0,
            seeds: 0,
            deaf_seeds: 0,
            control_restart_s: None,
            neighbours: 0,
            seed: 1,
        })
    }

    /// # Errors
    /// What can't be simulated, in words.
    pub fn check(&self) -> Result<()> {
        ensure!((1..=100_000).contains(&self.nodes), "from 1 to 100,000 nodes");
        ensure!(self.blob_bytes > 0, "an empty blob is there at once");
        ensure!((0.0..=10.0).contains(&self.delay_s), "a delay is at most 10 s");
        ensure!((0.0..1.0).contains(&self.slow), "the share of slow nodes is below 1");
        ensure!(self.slow_rate > 0.0 && self.slow_rate <= 1.0, "a slow node's rate is above 0 and at most 1");
        ensure!((0.0..=0.5).contains(&self.crash), "at most half of the nodes crash per second");
        ensure!(self.liars < self.nodes, "one node at least is honest");
        ensure!(self.seeds + self.holders < self.nodes, "one node at least is no seed, and does not hold the blob");
        ensure!(self.deaf_seeds <= self.seeds, "no more seeds are deaf than there are");
        ensure!(self.holders < self.nodes, "one node at least does not hold the blob");
        Layout::of(self.blob_bytes)?;
        Ok(())
    }

    pub(super) fn delay(&self) -> Time {
        (self.delay_s * SECOND as f64).round() as Time
    }

    /// How many of those that start at once are slow.
    pub(super) fn slow_nodes(&self) -> u32 {
        (f64::from(self.nodes) * self.slow).round() as u32
    }

    pub(super) fn rate_of_slow(&self) -> Rate {
        self.rate.times(self.slow_rate)
    }

    /// The least time that the nodes which are not slow could need, in seconds: max(F/U, F/d, N·F/(U + Σu)) with equal
    /// links. Where some are slow, F/u of the others, as if the slow ones were not there.
    pub fn bound_s(&self) -> f64 {
        let (file, up, origin) = (self.blob_bytes as f64, self.rate.bytes(), self.origin_rate.bytes());
        let fast = f64::from(self.nodes - self.slow_nodes());
        (file / origin).max(file / up).max(fast * file / (origin + fast * up))
    }
}

/// A quarter of the time that a piece takes, in seconds.
///
/// # Errors
/// When the blob is too large to be cut into blocks.
pub fn quarter_piece(blob_bytes: u64, rate: Rate) -> Result<f64> {
    let layout = Layout::of(blob_bytes)?;
    Ok(layout.piece_size() as f64 / rate.bytes() / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_people_write_them() {
        assert_eq!("200Mbit".parse::<Rate>().unwrap().bytes(), 25e6);
        assert_eq!("1Gbit".parse::<Rate>().unwrap().bytes(), 125e6);
        for wrong in ["200", "Mbit", "-1Mbit", "0Mbit", "200MB"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_bound_is_the_tightest_of_the_three() {
        let plan = Plan::equal(1000, 512 << 20).unwrap();
        let alone = (512 << 20) as f64 / 25e6;
        assert!((plan.bound_s() - alone).abs() < 1e-9, "equal links: F/u");
        let slow_origin = Plan { origin_rate: Rate::mbit(100.0), ..plan.clone() };
        assert!((slow_origin.bound_s() - 2.0 * alone).abs() < 1e-9, "F/U");
        assert!((Plan { slow: 0.3, ..plan }.bound_s() - alone).abs() < 1e-9, "F/u of the fast");
    }

    #[test]
    fn the_delay_is_a_quarter_of_a_piece() {
        let plan = Plan::equal(10, 512 << 20).unwrap();
        assert!((plan.delay_s - (2 << 20) as f64 / 25e6 / 4.0).abs() < 1e-12);
    }
}
