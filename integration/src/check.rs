//! Judges the facts of a walk-through. Pure: the same file gives the same verdicts anywhere.
use crate::facts::{ClusterFacts, Facts, PullFacts};

/// The second pull of a cluster must be this many times as fast as the first.
pub const SPEED_UP: f64 = 8.0;
/// The origin's link, bits per second, at which the figures are taken.
pub const ORIGIN_BITS: u64 = 100_000_000;
/// The least that a stream between peers must get, bits per second.
pub const PEER_BITS: u64 = 2_500_000_000;

/// One check and how it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it holds.
    pub holds: bool,
    /// What was checked.
    pub what: String,
    /// The figures.
    pub figures: String,
}

fn verdict(holds: bool, what: impl Into<String>, figures: impl Into<String>) -> Verdict {
    Verdict { holds, what: what.into(), figures: figures.into() }
}

/// Judges everything.
pub fn judge(facts: &Facts) -> Vec<Verdict> {
    let mut verdicts = vec![shape(facts)];
    for cluster in &facts.clusters {
        verdicts.push(read_once(facts, cluster));
        verdicts.push(second_from_peer(facts, cluster));
        verdicts.push(speed_up(cluster));
        verdicts.push(peers_spoke(facts, cluster));
        verdicts.push(first_trace(facts, cluster));
        verdicts.push(second_trace(facts, cluster));
    }
    verdicts.push(nothing_crossed(facts));
    verdicts.push(origin_link(facts));
    verdicts.push(peer_links(facts));
    verdicts
}

/// Whether the facts are of the walk-through at all: empty lists would make every other check hold.
fn shape(facts: &Facts) -> Verdict {
    let pulls: Vec<usize> = facts.clusters.iter().map(|cluster| cluster.pulls.len()).collect();
    let holds = pulls == [2, 2] && facts.image.layers.len() >= 3;
    let figures = format!("pulls {pulls:?}, {} layers, {} bytes", facts.image.layers.len(), facts.image.size());
    verdict(holds, "two clusters of two nodes pulled an image of several layers", figures)
}

fn nodes(cluster: &ClusterFacts) -> impl Iterator<Item = &str> {
    cluster.pulls.iter().map(|pull| pull.node.as_str())
}

/// A blob above this is read in runs: a request for each at most (decision 006).
const RUNS_ABOVE: u64 = 16 << 20;
/// A run is 32 of the 256 pieces of a blob; the first request is for the whole, and is left at the end of the first run.
const MOST_RUNS: u64 = 8;

fn read_once(facts: &Facts, cluster: &ClusterFacts) -> Verdict {
    let mut wrong = Vec::new();
    for blob in facts.image.blobs().chain([&facts.image.manifest]) {
        let by_node = facts.origin_reads.get(&blob.digest);
        let reads = nodes(cluster).filter_map(|node| by_node?.get(node));
        let (requests, bytes) = reads.fold((0, 0), |sum, reads| (sum.0 + reads.requests, sum.1 + reads.bytes));
        let most = if blob.size > RUNS_ABOVE { MOST_RUNS } else { 1 };
        if !(1..=most).contains(&requests) || bytes != blob.size {
            wrong.push(format!("{}: {requests} reads, {bytes} of {} bytes", short(&blob.digest), blob.size));
        }
    }
    let what =
        format!("{}: each byte of each blob and of the manifest was read from the origin exactly once", cluster.name);
    let figures = if wrong.is_empty() { format!("{} blobs", facts.image.layers.len() + 2) } else { wrong.join("; ") };
    verdict(wrong.is_empty(), what, figures)
}

fn second_from_peer(facts: &Facts, cluster: &ClusterFacts) -> Verdict {
    let what = format!("{}: the second node read no blob byte from the origin, all from its peer", cluster.name);
    let Some(second) = cluster.pulls.get(1) else { return verdict(false, what, "no second pull") };
    let reads: u64 = facts
        .image
        .blobs()
        .filter_map(|blob| facts.origin_reads.get(&blob.digest)?.get(&second.node))
        .map(|reads| reads.requests)
        .sum();
    let holds = reads == 0
        && second.origin_bytes == 0
        && second.from("origin") == 0
        && second.from("peer") >= facts.image.size();
    let figures = format!(
        "{}: {reads} reads and {} bytes in the origin's log, {} bytes from peers of {}",
        second.node,
        second.origin_bytes,
        second.from("peer"),
        facts.image.size()
    );
    verdict(holds, what, figures)
}

fn speed_up(cluster: &ClusterFacts) -> Verdict {
    let what = format!("{}: the second pull is at least {SPEED_UP} times as fast as the first", cluster.name);
    let Some(ratio) = ratio(cluster) else { return verdict(false, what, "two pulls with a length are needed") };
    let seconds: Vec<String> = cluster.pulls.iter().map(|pull| format!("{:.2} s", pull.seconds())).collect();
    verdict(ratio >= SPEED_UP, what, format!("{}: {ratio:.1} times", seconds.join(" and ")))
}

/// How many times as fast the second pull of a cluster was; `None` when a pull is missing or took no time.
pub fn ratio(cluster: &ClusterFacts) -> Option<f64> {
    let [first, second] = cluster.pulls.as_slice() else { return None };
    let took = |pull: &PullFacts| Some(pull.seconds()).filter(|seconds| *seconds > 0.0);
    Some(took(first)? / took(second)?)
}

/// The counters count: what went from the first node to the second was seen by the kernel.
fn peers_spoke(facts: &Facts, cluster: &ClusterFacts) -> Verdict {
    let what = format!("{}: the kernel saw the image pass from the first node to the second", cluster.name);
    let names: Vec<&str> = nodes(cluster).collect();
    let [first, second] = names.as_slice() else { return verdict(false, what, "two nodes are needed") };
    let bytes = facts.pairs.iter().find(|pair| pair.from == *first && pair.to == *second).map_or(0, |pair| pair.bytes);
    verdict(bytes >= facts.image.size(), what, format!("{bytes} bytes of {}", facts.image.size()))
}

fn first_trace(facts: &Facts, cluster: &ClusterFacts) -> Verdict {
    let what = format!("{}: the first node's trace of each layer shows the read of the origin", cluster.name);
    let Some(first) = cluster.pulls.first() else { return verdict(false, what, "no first pull") };
    let without = layers_without(facts, &first.node, |trace| trace.origin_readers.contains(&first.node));
    verdict(without.is_empty(), what, without_text(&without, facts))
}

fn second_trace(facts: &Facts, cluster: &ClusterFacts) -> Verdict {
    let what =
        format!("{}: the second node's trace of each layer spans mirror, control and the serving peer", cluster.name);
    let [first, second] = cluster.pulls.as_slice() else { return verdict(false, what, "two pulls are needed") };
    let without = layers_without(facts, &second.node, |trace| {
        trace.services.contains_key("shoal-control")
            && trace.serving_peers.contains(&first.node)
            && trace.serving_peers.len() == 1
            && trace.origin_readers.is_empty()
    });
    verdict(without.is_empty(), what, without_text(&without, facts))
}

fn layers_without(facts: &Facts, node: &str, holds: impl Fn(&crate::otlp::BlobTrace) -> bool) -> Vec<String> {
    let shown = |digest: &str| {
        facts.traces.iter().any(|trace| trace.node == node && trace.url.contains(digest) && holds(trace))
    };
    facts.image.layers.iter().filter(|blob| !shown(&blob.digest)).map(|blob| short(&blob.digest).to_owned()).collect()
}

fn without_text(without: &[String], facts: &Facts) -> String {
    if without.is_empty() {
        return format!("{} layers", facts.image.layers.len());
    }
    format!("not for {}", without.join(", "))
}

fn nothing_crossed(facts: &Facts) -> Verdict {
    let cluster_of = |node: &str| facts.clusters.iter().position(|cluster| nodes(cluster).any(|name| name == node));
    let crossing: Vec<_> = facts.pairs.iter().filter(|pair| cluster_of(&pair.from) != cluster_of(&pair.to)).collect();
    let members: Vec<usize> = facts.clusters.iter().map(|cluster| cluster.pulls.len()).collect();
    let all = members.iter().sum::<usize>();
    let wanted = all * all - members.iter().map(|count| count * count).sum::<usize>();
    let packets: u64 = crossing.iter().map(|pair| pair.packets).sum();
    let holds = packets == 0 && crossing.len() == wanted && wanted > 0;
    let loud: Vec<String> = crossing
        .iter()
        .filter(|pair| pair.packets > 0)
        .map(|pair| format!("{} to {}: {} packets", pair.from, pair.to, pair.packets))
        .collect();
    let mut figures = format!("{packets} packets over {} of {wanted} pairs", crossing.len());
    if !loud.is_empty() {
        figures = format!("{figures}; {}", loud.join(", "));
    }
    verdict(holds, "no packet crossed between the clusters", figures)
}

fn origin_link(facts: &Facts) -> Verdict {
    let link = facts.links.shaped.iter().find(|link| link.place == "registry");
    let shaped = link.is_some_and(|link| link.down_bits == Some(ORIGIN_BITS) && link.up_bits == Some(ORIGIN_BITS));
    let measured = facts.links.origin_measured;
    // A stream can't be faster than its link; much slower, and the first pulls were slowed by something else.
    let holds = shaped && (ORIGIN_BITS / 2..=ORIGIN_BITS / 100 * 103).contains(&measured);
    verdict(
        holds,
        "the origin's link runs at 100 Mbit/s",
        format!("{link:?}, measured {:.1} Mbit/s", measured as f64 / 1e6),
    )
}

fn peer_links(facts: &Facts) -> Verdict {
    let unshaped = facts
        .links
        .shaped
        .iter()
        .filter(|link| facts.clusters.iter().any(|cluster| nodes(cluster).any(|node| node == link.place)))
        .all(|link| [link.down_bits, link.up_bits].iter().all(|bits| bits.is_none_or(|bits| bits >= PEER_BITS)));
    let measured = &facts.links.peers_measured;
    let fast = facts.clusters.iter().all(|cluster| measured.get(&cluster.name).is_some_and(|bits| *bits >= PEER_BITS));
    let figures: Vec<String> =
        measured.iter().map(|(name, bits)| format!("{name}: {:.1} Gbit/s", *bits as f64 / 1e9)).collect();
    verdict(unshaped && fast, "links between peers run at 2.5 Gbit/s or more", figures.join(", "))
}

/// The first twelve digits of a digest.
pub(crate) fn short(digest: &str) -> &str {
    let hex = digest.trim_start_matches("sha256:");
    hex.get(..12).unwrap_or(hex)
}

#[cfg(test)]
mod tests;
