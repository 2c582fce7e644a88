//! What a run of the model is like.

use std::time::Duration;

/// What a run is about.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) nodes: usize,
    pub(crate) blocks: u32,
    /// Bytes per second of every link, and of the origin.
    pub(crate) rate: f64,
    pub(crate) delay: Duration,
    /// Share of nodes at a quarter of the rate.
    pub(crate) slow: f64,
    /// Candidates of each node.
    pub(crate) neighbours: usize,
    /// Nodes that crash and come back empty, per second, for the first ten seconds.
    pub(crate) crashes: f64,
    /// Connections that break, per second and node, for the first ten seconds.
    pub(crate) breaks: f64,
    /// All nodes join within this.
    pub(crate) join: Duration,
    /// Until a hash that the reader of the origin knows is known to a node, at most.
    pub(crate) gossip: Duration,
    /// Node 0 holds the blob whole instead of reading it.
    pub(crate) seeded: bool,
    /// Parents in use at once.
    pub(crate) streams: usize,
    pub(crate) seed: u64,
}

impl Default for World {
    fn default() -> Self {
        Self {
            nodes: 8,
            blocks: 256,
            rate: 25e6,
            delay: Duration::from_millis(2),
            slow: 0.0,
            neighbours: 16,
            crashes: 0.0,
            breaks: 0.0,
            join: Duration::ZERO,
            gossip: Duration::from_millis(5),
            seeded: false,
            streams: 4,
            seed: 1,
        }
    }
}
