use std::collections::BTreeMap;

use super::*;
use crate::{
    facts::{BlobFacts, ImageFacts, LinkFacts},
    net::{LinkRate, PairCount},
    otlp::BlobTrace,
    registry::Reads,
};

const LAYERS: [(&str, u64); 3] = [("sha256:l1", 1000), ("sha256:l2", 500), ("sha256:l3", 10)];
const SIZE: u64 = 1000 + 500 + 10 + 7;

fn blob(digest: &str, size: u64) -> BlobFacts {
    BlobFacts { digest: digest.into(), size }
}

fn pull(node: &str, seconds: f64, first: bool) -> PullFacts {
    let source = if first { "origin" } else { "peer" };
    PullFacts {
        node: node.into(),
        first_head: 100.0,
        last_commit: 100.0 + seconds,
        fetched_bytes: [(source.to_owned(), SIZE)].into(),
        origin_bytes: if first { SIZE } else { 0 },
    }
}

fn trace(node: &str, peer: Option<&str>, digest: &str) -> BlobTrace {
    let mut services: BTreeMap<_, _> = [("shoal-node".to_owned(), [node.to_owned()].into())].into();
    services.insert("shoal-control".to_owned(), ["control".to_owned()].into());
    BlobTrace {
        node: node.into(),
        url: format!("/v2/lab/demo/blobs/{digest}?ns=r"),
        services,
        origin_readers: if peer.is_none() { [node.to_owned()].into() } else { [].into() },
        serving_peers: peer.map(str::to_owned).into_iter().collect(),
        ..BlobTrace::default()
    }
}

fn good() -> Facts {
    let nodes = ["a1", "a2", "b1", "b2"];
    let digests: Vec<(&str, u64)> = LAYERS.into_iter().chain([("sha256:cfg", 7), ("sha256:man", 3)]).collect();
    let pairs = nodes.iter().flat_map(|from| nodes.iter().filter(move |to| *to != from).map(move |to| (*from, *to)));
    Facts {
        versions: Vec::new(),
        image: ImageFacts {
            reference: "r/lab/demo:1".into(),
            manifest: blob("sha256:man", 3),
            config: blob("sha256:cfg", 7),
            layers: LAYERS.map(|(digest, size)| blob(digest, size)).to_vec(),
        },
        clusters: ["a", "b"]
            .map(|name| ClusterFacts {
                name: name.into(),
                pulls: vec![pull(&format!("{name}1"), 24.0, true), pull(&format!("{name}2"), 2.0, false)],
            })
            .to_vec(),
        origin_reads: digests
            .iter()
            .map(|(digest, size)| {
                let reads = Reads { requests: 1, bytes: *size };
                ((*digest).to_owned(), [("a1".to_owned(), reads.clone()), ("b1".to_owned(), reads)].into())
            })
            .collect(),
        pairs: pairs
            .map(|(from, to)| {
                let same = from.starts_with(&to[..1]);
                let (packets, bytes) = if same { (90, 2 * SIZE) } else { (0, 0) };
                PairCount { from: from.into(), to: to.into(), packets, bytes }
            })
            .collect(),
        links: LinkFacts {
            shaped: vec![
                LinkRate { place: "registry".into(), down_bits: Some(ORIGIN_BITS), up_bits: Some(ORIGIN_BITS) },
                LinkRate { place: "a1".into(), down_bits: None, up_bits: None },
            ],
            origin_measured: 97_000_000,
            peers_measured: [("a".to_owned(), 20_000_000_000), ("b".to_owned(), 20_000_000_000)].into(),
        },
        traces: LAYERS
            .iter()
            .flat_map(|(digest, _)| {
                let one = |node, peer| trace(node, peer, digest);
                [one("a1", None), one("b1", None), one("a2", Some("a1")), one("b2", Some("b1"))]
            })
            .collect(),
    }
}

fn failed(facts: &Facts) -> Vec<String> {
    judge(facts).into_iter().filter(|verdict| !verdict.holds).map(|verdict| verdict.what).collect()
}

/// Exactly one check fails, the one whose text holds `words`.
fn assert_only(facts: &Facts, words: &str) {
    let failed = failed(facts);
    assert!(failed.len() == 1 && failed[0].contains(words), "{words:?}: {failed:?}");
}

#[test]
fn a_good_file_passes_every_check() {
    assert_eq!(failed(&good()), Vec::<String>::new());
    let text = serde_json::to_string(&good()).unwrap();
    assert!(failed(&serde_json::from_str(&text).unwrap()).is_empty());
}

#[test]
fn a_second_read_of_a_blob_by_the_same_cluster_fails() {
    let mut facts = good();
    facts.origin_reads.get_mut("sha256:l2").unwrap().get_mut("a1").unwrap().requests = 2;
    assert_only(&facts, "a: each byte");
}

#[test]
fn a_large_blob_may_be_read_in_runs_but_no_byte_of_it_twice() {
    let mut facts = good();
    let large = 100 << 20;
    facts.image.layers.iter_mut().filter(|blob| blob.digest == "sha256:l2").for_each(|blob| blob.size = large);
    let reads = facts.origin_reads.get_mut("sha256:l2").unwrap();
    for node in ["a1", "b1"] {
        *reads.get_mut(node).unwrap() = Reads { requests: 3, bytes: large };
    }
    let once =
        |facts: &Facts| judge(facts).into_iter().find(|verdict| verdict.what.starts_with("a: each byte")).unwrap();
    assert!(once(&facts).holds, "{:?}", once(&facts));
    for (requests, bytes) in [(9, large), (0, large), (3, large + 1), (3, large - 1)] {
        *facts.origin_reads.get_mut("sha256:l2").unwrap().get_mut("a1").unwrap() = Reads { requests, bytes };
        assert!(!once(&facts).holds, "{requests} requests, {bytes} bytes");
    }
}

#[test]
fn a_blob_that_nobody_read_or_that_was_cut_fails() {
    let mut facts = good();
    facts.origin_reads.get_mut("sha256:man").unwrap().remove("b1");
    assert_only(&facts, "b: each byte");
    let mut facts = good();
    facts.origin_reads.get_mut("sha256:l1").unwrap().get_mut("b1").unwrap().bytes -= 1;
    assert_only(&facts, "b: each byte");
}

#[test]
fn a_byte_of_the_origin_on_the_second_node_fails() {
    let mut facts = good();
    facts.clusters[1].pulls[1].origin_bytes = 1;
    assert_only(&facts, "b: the second node");
    let mut facts = good();
    facts.clusters[0].pulls[1].fetched_bytes.insert("peer".into(), SIZE - 1);
    assert_only(&facts, "a: the second node");
}

#[test]
fn one_packet_between_clusters_fails_and_so_does_a_pair_that_was_not_counted() {
    let mut facts = good();
    facts.pairs.iter_mut().find(|pair| pair.from == "a2" && pair.to == "b1").unwrap().packets = 1;
    assert_only(&facts, "no packet crossed");
    let mut facts = good();
    facts.pairs.retain(|pair| !(pair.from == "b2" && pair.to == "a2"));
    assert_only(&facts, "no packet crossed");
}

#[test]
fn counters_that_saw_nothing_at_all_fail() {
    let mut facts = good();
    facts.pairs.iter_mut().for_each(|pair| pair.bytes = 0);
    assert_eq!(failed(&facts).len(), 2);
}

#[test]
fn a_second_pull_that_is_too_slow_or_took_no_time_fails() {
    for seconds in [3.01, 0.0, -1.0] {
        let mut facts = good();
        facts.clusters[0].pulls[1].last_commit = 100.0 + seconds;
        assert_only(&facts, "a: the second pull");
    }
}

#[test]
fn a_link_of_another_rate_fails() {
    let mut facts = good();
    facts.links.shaped[0].up_bits = Some(90_000_000);
    assert_only(&facts, "origin's link");
    let mut facts = good();
    facts.links.origin_measured = 200_000_000;
    assert_only(&facts, "origin's link");
    let mut facts = good();
    facts.links.peers_measured.insert("b".into(), 2_400_000_000);
    assert_only(&facts, "links between peers");
    let mut facts = good();
    facts.links.shaped[1].down_bits = Some(1_000_000_000);
    assert_only(&facts, "links between peers");
}

#[test]
fn a_trace_without_origin_control_or_peer_fails() {
    let mut facts = good();
    facts.traces.iter_mut().find(|trace| trace.node == "a1").unwrap().origin_readers.clear();
    assert_only(&facts, "a: the first node's trace");
    let mut facts = good();
    facts.traces.iter_mut().find(|trace| trace.node == "b2").unwrap().services.remove("shoal-control");
    assert_only(&facts, "b: the second node's trace");
    let mut facts = good();
    facts.traces.iter_mut().find(|trace| trace.node == "b2").unwrap().serving_peers = ["a1".to_owned()].into();
    assert_only(&facts, "b: the second node's trace");
}

#[test]
fn an_empty_file_fails() {
    let mut facts = good();
    facts.clusters.clear();
    assert!(failed(&facts).iter().any(|what| what.contains("two clusters")));
}
