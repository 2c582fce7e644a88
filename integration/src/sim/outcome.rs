//! What a run came to, as numbers and as text.

use std::fmt::Write as _;

use serde::Serialize;

use super::moment::Moment;
use super::plan::Plan;
use super::world::{World, seconds};

/// The figures of one run. Bytes are payload; times are simulated but for `wall_s`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// What was simulated.
    pub plan: Plan,
    /// `last_s` over `bound_s`.
    pub factor: f64,
    /// The least time that would do.
    pub bound_s: f64,
    /// From its start to its end, the longest of the nodes that count: neither slow nor crashed.
    pub last_s: f64,
    /// The same, of the node in the middle.
    pub median_s: f64,
    /// The longest of the slow nodes; 0 without any.
    pub last_slow_s: f64,
    /// Of the nodes that join later, from their start; 0 without any.
    pub last_joined_s: f64,
    /// When the last node of all was done, crashed ones included.
    pub all_s: f64,
    /// Bytes read from the origin over the blob's size.
    pub origin_ratio: f64,
    /// Of these, what seeds read.
    pub seed_origin_ratio: f64,
    /// Bytes that seeds sent to others over the blob's size: copies.
    pub seed_copies: f64,
    /// Bytes that a node got although it had them, over all bytes that nodes needed.
    pub spare_ratio: f64,
    /// Bytes that were sent and not taken (crashes, closed streams), over the same.
    pub lost_ratio: f64,
    /// Reads of the origin that no permit covered.
    pub outside_reads: u64,
    /// Permits granted, and taken away before the blob closed.
    pub permits: u64,
    /// Permits taken away.
    pub permits_moved: u64,
    /// Streams opened.
    pub streams: u64,
    /// Streams lost (silent, refused, crashed).
    pub streams_lost: u64,
    /// Streams left because another candidate might have more.
    pub streams_useless: u64,
    /// Streams refused for want of a slot.
    pub streams_busy: u64,
    /// Wrong blocks that were found out.
    pub lies: u64,
    /// Crashes.
    pub crashes: u64,
    /// Events that happened.
    pub events: u64,
    /// Hash of all events: the same plan gives the same.
    pub fingerprint: String,
    /// Real time that the run took.
    pub wall_s: f64,
    /// Looks at the cluster, twenty in the time of the limit; empty unless asked for.
    pub timeline: Vec<Moment>,
}

impl Outcome {
    pub(super) fn of(world: World, wall_s: f64) -> Self {
        let plan = world.plan.clone();
        let took = |node: &super::node::Node| node.done.map(|done| seconds(done.saturating_sub(node.started)));
        let (first, joined) = world.nodes.split_at(plan.nodes as usize);
        let mut judged: Vec<f64> =
            first.iter().filter(|node| !node.slow && !node.seed && node.crashes == 0).filter_map(took).collect();
        judged.sort_by(f64::total_cmp);
        let longest = |times: &mut dyn Iterator<Item = f64>| times.fold(0.0, f64::max);
        let all = world.nodes.iter().filter_map(|node| node.done).max().unwrap_or(0);
        let sums = world.sums;
        let bytes = plan.blob_bytes as f64;
        let needed = sums.blocks as f64 * world.layout.block_size() as f64;
        let last_s = judged.last().copied().unwrap_or(f64::NAN);
        Self {
            factor: last_s / plan.bound_s(),
            bound_s: plan.bound_s(),
            last_s,
            median_s: judged.get(judged.len() / 2).copied().unwrap_or(f64::NAN),
            last_slow_s: longest(&mut first.iter().filter(|node| node.slow && node.crashes == 0).filter_map(took)),
            last_joined_s: longest(&mut joined.iter().filter_map(took)),
            all_s: seconds(all),
            origin_ratio: sums.origin_bytes as f64 / bytes,
            seed_origin_ratio: sums.origin_to_seeds as f64 / bytes,
            seed_copies: sums.seed_bytes as f64 / bytes,
            spare_ratio: sums.spare_bytes as f64 / needed,
            lost_ratio: sums.lost_bytes as f64 / needed,
            outside_reads: sums.outside_reads,
            permits: world.hub.granted,
            permits_moved: world.hub.moved,
            streams: sums.dials,
            streams_lost: sums.lost,
            streams_useless: sums.useless,
            streams_busy: sums.busy,
            lies: sums.lies,
            crashes: sums.crashes,
            events: world.fingerprint.events(),
            fingerprint: world.fingerprint.finish(),
            wall_s,
            timeline: world.timeline,
            plan,
        }
    }
}

/// A line of the table for one run.
pub(super) fn line(outcome: &Outcome) -> String {
    let plan = &outcome.plan;
    let mut what = String::new();
    if plan.slow > 0.0 {
        let _ = write!(what, "{:.0} % at {:.2} u ", plan.slow * 100.0, plan.slow_rate);
    }
    if plan.crash > 0.0 {
        let _ = write!(what, "{:.1} %/s crash ", plan.crash * 100.0);
    }
    if plan.join > 0 {
        let _ = write!(what, "{} join ", plan.join);
    }
    if plan.liars > 0 {
        let _ = write!(what, "{} liars ", plan.liars);
    }
    if plan.seeds > 0 {
        let _ = write!(what, "{} seeds sent {:.1} ", plan.seeds, outcome.seed_copies);
    }
    if let Some(at) = plan.control_restart_s {
        let _ = write!(what, "control away at {at} s ");
    }
    if what.is_empty() {
        what.push_str("equal links");
    }
    let blob = format!("{}MiB", plan.blob_bytes >> 20);
    format!(
        "{:>6} {:>8} {:<22} {:>5} {:>7.3} {:>8.2} {:>8.2} {:>8.2} {:>7.3} {:>7.2} {:>9} {:>7.1} {}",
        plan.nodes,
        blob,
        what.trim_end(),
        plan.seed,
        outcome.factor,
        outcome.bound_s,
        outcome.median_s,
        outcome.last_s,
        outcome.origin_ratio,
        outcome.spare_ratio * 100.0,
        outcome.events,
        outcome.wall_s,
        &outcome.fingerprint[..12],
    )
}

/// The head of the table.
pub(super) fn head() -> String {
    format!(
        "{:>6} {:>8} {:<22} {:>5} {:>7} {:>8} {:>8} {:>8} {:>7} {:>7} {:>9} {:>7} {}",
        "nodes",
        "blob",
        "what",
        "seed",
        "factor",
        "bound s",
        "median s",
        "last s",
        "origin",
        "spare %",
        "events",
        "wall s",
        "fingerprint"
    )
}
