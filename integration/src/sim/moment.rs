//! How far the cluster is at one moment: where the time of a run went.

use serde::Serialize;

use super::node::Stage;
use super::world::{World, seconds};

/// A look at all nodes. Shares are from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Moment {
    /// When, in simulated seconds.
    pub at_s: f64,
    /// Bytes that the origin has sent, over the blob's size.
    pub origin: f64,
    /// Blocks that some node has, over all blocks: what there is to pass on.
    pub out: f64,
    /// Blocks that a node has, over all blocks, on average.
    pub mean: f64,
    /// The same of the node that has least.
    pub least: f64,
    /// Nodes that are sending a block, over all nodes.
    pub sending: f64,
    /// Nodes that have not all blocks and wait for none, over those that have not all.
    pub starving: f64,
    /// Streams that a node has on average, those that send and those that wait.
    pub streams: f64,
}

impl Moment {
    pub(super) fn of(world: &World) -> Self {
        let blocks = f64::from(world.layout.blocks());
        let count = world.nodes.len() as f64;
        let mean = world.nodes.iter().map(|node| f64::from(node.have.len())).sum::<f64>() / blocks / count;
        let least = world.nodes.iter().map(|node| node.have.len()).min().unwrap_or(0);
        let out = (0..world.layout.blocks()).filter(|block| world.nodes.iter().any(|node| node.have.contains(*block)));
        let fetching: Vec<_> = world.nodes.iter().filter(|node| node.stage == Stage::Fetching).collect();
        let mut starving = 0;
        let mut streams = 0;
        for flight in fetching.iter().filter_map(|node| node.flight.as_ref()) {
            let owed =
                flight.parents.iter().filter_map(|(flow, _)| world.flows.get(*flow)).any(|flow| !flow.owed.is_empty());
            starving += usize::from(!owed && flight.reads.is_empty());
            streams += flight.parents.len();
        }
        let of_fetching = |sum: usize| sum as f64 / fetching.len().max(1) as f64;
        Self {
            at_s: seconds(world.queue.now()),
            origin: world.sums.origin_bytes as f64 / world.plan.blob_bytes as f64,
            out: out.count() as f64 / blocks,
            mean,
            least: f64::from(least) / blocks,
            sending: world.nodes.iter().filter(|node| node.up.busy).count() as f64 / count,
            starving: of_fetching(starving),
            streams: of_fetching(streams),
        }
    }

    pub(super) fn head() -> String {
        format!(
            "{:>8} {:>7} {:>7} {:>7} {:>7} {:>8} {:>9} {:>8}",
            "second", "origin", "out", "mean", "least", "sending", "starving", "streams"
        )
    }

    pub(super) fn line(&self) -> String {
        format!(
            "{:>8.2} {:>7.3} {:>7.3} {:>7.3} {:>7.3} {:>8.2} {:>9.2} {:>8.1}",
            self.at_s, self.origin, self.out, self.mean, self.least, self.sending, self.starving, self.streams
        )
    }
}
