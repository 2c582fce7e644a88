//! Faults of the origin, made by a proxy before the real registry: in the first requests that match, or in ours alone.
//!
//! A pull may fail only where containerd by itself would have failed: when the fault hit a request of its own, or when the
//! origin's bytes are wrong for everybody.
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    containerd::edition::{Edition, Version},
    fault_proxy::{Fault, Injection, What, Who},
    faults::{
        Row,
        stage::{Fresh, Pulled, Stage, Usually, on_editions},
    },
    http::Client,
    process::{command, run},
    registry::Front,
    world::WorldPlan,
};

use crate::alone;

const V2_3: Edition = Edition { version: Version::V2_3, local: false, buffer: false };

/// A fault, how a pull goes through it, and what an operator sees of it on the node that pulled.
struct Case {
    what: &'static str,
    fault: Fault,
    /// Of the node's log, when the first requests are hit.
    log: &'static str,
    metric: &'static str,
    /// The same when all requests of ours are hit.
    log_ours: &'static str,
    metric_ours: &'static str,
    /// The most seconds that may be lost: to the first that are hit, and to a fault that hits us alone.
    most: (f64, f64),
    /// The first hit costs time whatever we do: played with the long scenes.
    long: bool,
}

const READ: &str = "read origin";
const PAST_US: &str = "containerd asks the registry itself";
const CUT: &str = "shoal_origin_bodies_broken_total{how=\"Cut\"}";
const SILENT_BODY: &str = "shoal_origin_bodies_broken_total{how=\"Silent\"}";
const UNREACHABLE: &str = "shoal_blob_origin_failures_total{why=\"Unreachable\"}";
const BUSY: &str = "shoal_blob_origin_failures_total{why=\"Busy\"}";
const DENIED: &str = "shoal_blob_origin_failures_total{why=\"Denied\"}";
const NONSENSE: &str = "shoal_blob_origin_failures_total{why=\"Nonsense\"}";
const TOKENS: &str = "shoal_origin_requests_total{kind=\"Token\",outcome=\"Ok\"}";
const NO_TLS: &str = "shoal_origin_requests_total{kind=\"Manifest\",outcome=\"Unreachable\"}";
const MISMATCHED: &str = "shoal_blob_flights_ended_total{outcome=\"Mismatched\"}";
/// Containerd collects a tenth of a second after its start.
const COLLECTION: Duration = Duration::from_secs(15);
const MINUTE: Duration = Duration::from_secs(60);

const fn case(what: &'static str, fault: Fault, metric: &'static str, most: (f64, f64)) -> Case {
    Case { what, fault, log: READ, metric, log_ours: READ, metric_ours: metric, most, long: false }
}

fn cases() -> Vec<Case> {
    vec![
        case("FIN in the middle of a body", Fault::Fin, CUT, (4.0, 12.0)),
        case("RST in the middle of a body", Fault::Rst, CUT, (4.0, 12.0)),
        case("200 and no byte", Fault::NoByte, CUT, (4.0, 8.0)),
        case("503", Fault::Unavailable, UNREACHABLE, (4.0, 8.0)),
        case("429 with Retry-After", Fault::TooMany(1), BUSY, (5.0, 8.0)),
        Case {
            log: "takes this token no more",
            metric: TOKENS,
            ..case("401 in the middle of a pull", Fault::Unauthorized, DENIED, (4.0, 4.0))
        },
        case("a redirect to a dead host", Fault::DeadRedirect, UNREACHABLE, (8.0, 25.0)),
        Case { long: true, ..case("no headers for 60 s", Fault::Silent(MINUTE), UNREACHABLE, (24.0, 26.0)) },
        case("a body that stops for 60 s", Fault::Stalled(MINUTE), SILENT_BODY, (9.0, 30.0)),
        case("too few bytes", Fault::TooFewBytes, NONSENSE, (4.0, 8.0)),
        case("too many bytes", Fault::TooManyBytes, NONSENSE, (4.0, 8.0)),
        Case {
            log: PAST_US,
            log_ours: PAST_US,
            ..case("a certificate of another host", Fault::WrongName, NO_TLS, (4.0, 4.0))
        },
        Case {
            log: PAST_US,
            log_ours: PAST_US,
            ..case("a certificate of a stranger", Fault::Stranger, NO_TLS, (4.0, 4.0))
        },
    ]
}

fn plan(edition: Edition) -> WorldPlan {
    WorldPlan { edition, origin: Front::Proxy, ..WorldPlan::one_cluster(2) }
}

#[test]
fn a_pull_comes_through_what_hits_the_first_requests() {
    alone(on_editions(&[Edition::OWN, V2_3], plan, 7000, async |stage| {
        for case in cases() {
            for count in [1, 3] {
                let fault = format!("origin: {}, the first {count}", case.what);
                let play = async |stage: &mut Stage| first(stage, &fault, &case, count).await;
                if count > 1 || case.long {
                    stage.long_scene(&fault, play).await;
                } else {
                    stage.scene(&fault, play).await;
                }
            }
        }
        Ok(())
    }));
}

#[test]
fn a_pull_comes_through_what_hits_our_requests_alone() {
    alone(on_editions(&[Edition::OWN, V2_3], plan, 7200, async |stage| {
        for case in cases() {
            let fault = format!("origin: {}, to us alone", case.what);
            let play = async |stage: &mut Stage| ours(stage, &fault, &case).await;
            if case.long {
                stage.long_scene(&fault, play).await;
            } else {
                stage.scene(&fault, play).await;
            }
        }
        Ok(())
    }));
}

#[test]
fn what_the_origin_gives_wrong_or_late_or_not_at_all() {
    alone(on_editions(&[Edition::OWN, V2_3], plan, 7400, async |stage| {
        let fault = "origin: 3 s to the first byte of everything";
        stage.scene(fault, async |stage| slow(stage, fault).await).await;
        for case in manifest_cases() {
            let fault = format!("origin: {} of the manifest, the first 1", case.what);
            stage.scene(&fault, async |stage| manifest(stage, &fault, &case).await).await;
        }
        let fault = "origin: wrong bytes of a blob of one block";
        stage.scene(fault, async |stage| wrong_block(stage, fault).await).await;
        let fault = "origin: wrong bytes of a layer";
        stage.scene(fault, async |stage| wrong_layer(stage, fault).await).await;
        let fault = "origin: gone";
        stage.scene(fault, async |stage| gone(stage, fault).await).await;
        let fault = "origin: its address is down";
        stage.scene(fault, async |stage| down(stage, fault).await).await;
        Ok(())
    }));
}

/// Pools, tokens and what a node learnt of the registry are those of a node that just came up.
async fn anew(stage: &mut Stage, name: &str) -> Result<Fresh> {
    for node in ["a1", "a2"] {
        stage.world.node(node)?.shoal()?.restart(false).await?;
    }
    stage.world.all_connected().await?;
    stage.fresh(name).await
}

fn layers(image: &Fresh) -> What {
    What::Blobs(image.image.layers.iter().map(|layer| layer.digest.clone()).collect())
}

fn blobs(image: &Fresh) -> What {
    What::Blobs(image.image.blobs().map(|blob| blob.digest.clone()).collect())
}

/// The first requests are hit, whoever sends them.
async fn first(stage: &mut Stage, fault: &str, case: &Case, count: usize) -> Result<Row> {
    let image = anew(stage, "first").await?;
    stage.world.registry.proxy()?.inject(Injection { fault: case.fault, who: Who::First(count), what: layers(&image) });
    let watch = stage.watch().await?;
    let since = Instant::now();
    let mut failures = 0;
    while let Err(error) = stage.pull("a1", &image)?.end().await {
        failures += 1;
        let hits = stage.world.registry.proxy()?.hits();
        println!("    the pull failed, {hits:?}: {error:#}");
        ensure!(failures <= hits.others, "the pull failed, and containerd itself was not hit: {error:#}");
    }
    let seconds = since.elapsed().as_secs_f64();
    let hits = stage.world.registry.proxy()?.hits();
    ensure!(hits.all() == count, "{hits:?}, not {count}");
    ensure!(hits.ours > 0, "we were never hit");
    if count == 1 && !matches!(case.fault, Fault::Silent(_) | Fault::WrongName | Fault::Stranger) {
        let past = watch.past_us(&stage.world)?;
        ensure!(past == 0, "{past} bytes came past us");
    }
    let pulled =
        Pulled { node: "a1", seconds, usually: Usually::Origin, log: ("a1", case.log), metric: ("a1", case.metric) };
    // Each further hit is waited out once more.
    finish(stage, fault, &watch, pulled, case.most.0 + 2.0 * (count - 1) as f64).await
}

/// 2.1 with a buffer reads several parts of a layer at once. When one of ours ends early, it cancels the others, and now and then
/// takes that for the end of the pull (2.3 does not).
fn cancels_itself(edition: Edition) -> bool {
    edition.version == Version::V2_1 && edition.buffer
}

/// Every request of ours is hit; containerd would have had no trouble, so it must have none.
async fn ours(stage: &mut Stage, fault: &str, case: &Case) -> Result<Row> {
    let image = anew(stage, "ours").await?;
    stage.world.registry.proxy()?.inject(Injection { fault: case.fault, who: Who::Ours, what: blobs(&image) });
    let watch = stage.watch().await?;
    let (since, mut tries) = (Instant::now(), 1.0);
    if let Err(error) = stage.pull("a1", &image)?.end().await {
        let text = format!("{error:#}");
        if !(cancels_itself(stage.world.plan().edition) && text.contains("context canceled")) {
            watch.exchanges("a1")?.iter().for_each(|one| println!("    {one:?}"));
            return Err(error);
        }
        println!("    this containerd canceled the pull at the end of a part of ours, and tries again");
        tries += 1.0;
        stage.pull("a1", &image)?.end().await.context("the second try")?;
    }
    let seconds = since.elapsed().as_secs_f64();
    let hits = stage.world.registry.proxy()?.hits();
    ensure!(hits.ours > 0 && hits.others == 0, "{hits:?}");
    let pulled = Pulled {
        node: "a1",
        seconds,
        usually: Usually::Origin,
        log: ("a1", case.log_ours),
        metric: ("a1", case.metric_ours),
    };
    finish(stage, fault, &watch, pulled, case.most.1 * tries).await
}

async fn finish(
    stage: &mut Stage,
    fault: &str,
    watch: &lab::faults::stage::Watch,
    pulled: Pulled<'_>,
    most: f64,
) -> Result<Row> {
    stage.world.registry.proxy()?.clear();
    let row = stage.row(fault, watch, pulled).await?;
    ensure!(row.lost_seconds <= most, "{:.1} s lost, {most} s at most: {row:?}", row.lost_seconds);
    Ok(row)
}

/// Decision 003: the questions have 5 s, so containerd asks for the tag itself; the blobs come through the node.
async fn slow(stage: &mut Stage, fault: &str) -> Result<Row> {
    let image = anew(stage, "slow").await?;
    let slow = Fault::Silent(Duration::from_secs(3));
    stage.world.registry.proxy()?.inject(Injection { fault: slow, who: Who::All, what: What::Requests });
    let watch = stage.watch().await?;
    let seconds = stage.pull("a1", &image)?.end().await?;
    let through_us = watch.origin_bytes(&stage.world)?;
    ensure!(through_us >= image.image.size(), "only {through_us} bytes came through the node");
    let pulled = Pulled {
        node: "a1",
        seconds,
        usually: Usually::Origin,
        log: ("a1", PAST_US),
        metric: ("a1", "shoal_mirror_requests_total{kind=\"manifest\",status=\"503\"}"),
    };
    finish(stage, fault, &watch, pulled, 25.0).await
}

fn manifest_cases() -> Vec<Case> {
    let wrong = case("wrong bytes", Fault::WrongByte, MISMATCHED, (4.0, 4.0));
    vec![
        case("FIN in the middle", Fault::Fin, CUT, (4.0, 4.0)),
        case("503 instead", Fault::Unavailable, UNREACHABLE, (4.0, 4.0)),
        Case { log: "threw a blob away", ..wrong },
    ]
}

/// The manifest's bytes come by digest, as a blob of one block: begun again, or left to containerd by a clear error.
async fn manifest(stage: &mut Stage, fault: &str, case: &Case) -> Result<Row> {
    let image = anew(stage, "manifest").await?;
    let what = What::Manifest(image.image.digest.clone());
    stage.world.registry.proxy()?.inject(Injection { fault: case.fault, who: Who::First(1), what });
    let watch = stage.watch().await?;
    let seconds = stage.pull("a1", &image)?.end().await?;
    let hits = stage.world.registry.proxy()?.hits();
    ensure!((hits.ours, hits.others) == (1, 0), "{hits:?}");
    let pulled =
        Pulled { node: "a1", seconds, usually: Usually::Origin, log: ("a1", case.log), metric: ("a1", case.metric) };
    finish(stage, fault, &watch, pulled, case.most.0).await
}

/// Nothing of a blob of one block is given before its SHA-256 closed: containerd sees a 404 and asks the registry.
async fn wrong_block(stage: &mut Stage, fault: &str) -> Result<Row> {
    let image = anew(stage, "wrong-block").await?;
    let what = What::Blobs(vec![image.image.config.digest.clone()]);
    stage.world.registry.proxy()?.inject(Injection { fault: Fault::WrongByte, who: Who::Ours, what });
    let watch = stage.watch().await?;
    let seconds = stage.pull("a1", &image)?.end().await?;
    let pulled = Pulled {
        node: "a1",
        seconds,
        usually: Usually::Origin,
        log: ("a1", "threw a blob away"),
        metric: ("a1", MISMATCHED),
    };
    finish(stage, fault, &watch, pulled, 4.0).await
}

/// The wrong byte has reached containerd before the whole is known to be wrong, as it would have without us: that pull fails,
/// nobody holds the blob, and the next pull asks the registry for it.
async fn wrong_layer(stage: &mut Stage, fault: &str) -> Result<Row> {
    let image = anew(stage, "wrong-layer").await?;
    let layer = image.image.layers[0].digest.clone();
    let what = What::Blobs(vec![layer.clone()]);
    stage.world.registry.proxy()?.inject(Injection { fault: Fault::WrongByte, who: Who::Ours, what });
    let watch = stage.watch().await?;
    let error = match stage.pull("a1", &image)?.end().await {
        Ok(_) => bail!("the pull ended well with a wrong byte"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(error.contains("unexpected commit digest"), "another error: {error}");
    let held = stage.world.node("a1")?.containerd.held();
    ensure!(!held.contains(&layer), "containerd holds the blob");
    // What containerd has written stays until its garbage collection, and fails every pull until then. It collects when it starts.
    stage.world.node("a1")?.containerd.restart().await?;
    let seconds = once_collected(stage, &image).await.context("the next pull")?;
    let past = watch.past_us(&stage.world)?;
    ensure!(past >= image.image.layers[0].size, "only {past} bytes came past us");
    let pulled = Pulled {
        node: "a1",
        seconds,
        usually: Usually::Origin,
        log: ("a1", "threw a blob away"),
        metric: ("a1", MISMATCHED),
    };
    finish(stage, fault, &watch, pulled, 4.0).await
}

/// Seconds of the pull that ends once containerd has forgotten what it wrote. Its directory says nothing of that: a containerd that
/// was killed between the two halves of a collection has forgotten the ingest and keeps the file until the next one.
async fn once_collected(stage: &mut Stage, image: &Fresh) -> Result<f64> {
    let begun = Instant::now();
    loop {
        match stage.pull("a1", image)?.end().await {
            Err(error) if format!("{error:#}").contains("unexpected commit digest") && begun.elapsed() < COLLECTION => {
            }
            ended => return ended,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Registry and token server end: connections are refused.
async fn gone(stage: &mut Stage, fault: &str) -> Result<Row> {
    let image = held_by_a1(stage).await?;
    stage.world.registry.go_away().await;
    without_origin(stage, fault, &image).await
}

/// Nothing answers at the registry's address, not even ARP.
async fn down(stage: &mut Stage, fault: &str) -> Result<Row> {
    let image = held_by_a1(stage).await?;
    let ns = stage.world.net.namespace("registry")?.full_name;
    let link = |state: &str| run(&mut command("ip", ["-n", &ns, "link", "set", "eth0", state]));
    link("down")?;
    let row = without_origin(stage, fault, &image).await;
    link("up")?;
    row
}

async fn held_by_a1(stage: &mut Stage) -> Result<Fresh> {
    let image = anew(stage, "gone").await?;
    stage.pull("a1", &image)?.end().await?;
    Ok(image)
}

/// I5: by digest from the other node; by tag a clear error, soon.
async fn without_origin(stage: &mut Stage, fault: &str, image: &Fresh) -> Result<Row> {
    let watch = stage.watch().await?;
    let seconds = stage.pull_by_digest("a2", image)?.end().await.context("by digest")?;
    let since = Instant::now();
    let error = match stage.pull("a2", image)?.end().await {
        Ok(_) => bail!("a tag was resolved without the registry"),
        Err(error) => format!("{error:#}"),
    };
    let failed_after = since.elapsed().as_secs_f64();
    println!("    by tag, after {failed_after:.1} s: {error}");
    // Which of its two hosts' errors containerd shows differs by version.
    let clear = ["503 Service Unavailable", "connection refused", "no route to host", "i/o timeout"];
    ensure!(clear.iter().any(|why| error.contains(why)), "the error does not say why: {error}");
    // What containerd needs for its own try is its own affair; ours is bounded (I8).
    let (ns, since) = (stage.world.net.namespace("a2")?, Instant::now());
    let mirror = Client::plain(&ns, SocketAddr::from((Ipv4Addr::LOCALHOST, 5080)));
    let path = format!("/v2/{}/manifests/1?ns={}", image.repository, lab::registry::HOST);
    let (status, waited) = (mirror.get(&path).await?.status, since.elapsed());
    ensure!(status == 503 && waited < Duration::from_secs(6), "{status} after {waited:?}");
    let pulled = Pulled {
        node: "a2",
        seconds,
        usually: Usually::Peer,
        log: ("a2", "the registry is down; the repository was public within a day"),
        metric: ("a2", "shoal_blob_from_peers_bytes_total"),
    };
    let row = stage.row(fault, &watch, pulled).await?;
    ensure!(row.lost_seconds < 10.0, "{:.1} s lost: {row:?}", row.lost_seconds);
    Ok(row)
}
