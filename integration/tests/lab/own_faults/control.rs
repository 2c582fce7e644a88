//! Control goes away: before a pull, in the middle of one, for good; and comes back.
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{control::NodeEntry, faults::stage::Stage, wait::eventually};

use super::{MIB, SLACK, all_through_us, from_origin, from_peer, origin_read_at_most, whole};

const ALONE: &str = "shoal_blob_origin_reads_total{leave=\"NoControl\"} ";
const AWAY: &str = "control is away";

/// I4: what control must know again within this.
const RELEARNS: Duration = Duration::from_secs(5);
/// I4: control grants no permit for this long after its start.
const GRANTS_NONE: Duration = Duration::from_secs(2);

pub(super) async fn play(stage: &mut Stage) {
    before_a_pull(stage).await;
    under_a_reader_of_the_origin(stage).await;
    under_a_child(stage).await;
    for_good(stage).await;
    back(stage).await;
    no_permit_at_first(stage).await;
}

async fn before_a_pull(stage: &mut Stage) {
    let fault = "control killed before a pull";
    let play = async |stage: &mut Stage| {
        let image = stage.fresh("control-before").await?;
        let watch = stage.watch().await?;
        stage.world.control()?.kill();
        let seconds = whole(stage, "a1", &image).await?;
        all_through_us(stage, &watch)?;
        origin_read_at_most(stage, &watch, image.image.size() + SLACK)?;
        stage.row(fault, &watch, from_origin("a1", seconds, ("a1", AWAY), ("a1", ALONE))).await
    };
    stage.scene(fault, play).await;
}

async fn under_a_reader_of_the_origin(stage: &mut Stage) {
    let fault = "control killed in the middle of a pull from the origin";
    let play = async |stage: &mut Stage| {
        let image = stage.fresh("control-origin").await?;
        let watch = stage.watch().await?;
        let pulling = stage.pull("a1", &image)?;
        stage.fetched("a1", &watch, 2 * MIB, &pulling).await?;
        stage.world.control()?.kill();
        let seconds = pulling.end().await?;
        all_through_us(stage, &watch)?;
        // The read goes on: nothing is read twice.
        origin_read_at_most(stage, &watch, image.image.size() + SLACK)?;
        let metric = ("a1", "shoal_control_finds_failed_total ");
        stage.row(fault, &watch, from_origin("a1", seconds, ("a1", AWAY), metric)).await
    };
    stage.scene(fault, play).await;
}

async fn under_a_child(stage: &mut Stage) {
    let fault = "control killed in the middle of a pull from a peer";
    let play = async |stage: &mut Stage| {
        let image = stage.fresh("control-peer").await?;
        whole(stage, "a1", &image).await?;
        let watch = stage.watch().await?;
        let pulling = stage.pull("a2", &image)?;
        stage.fetched("a2", &watch, 2 * MIB, &pulling).await?;
        stage.world.control()?.kill();
        let seconds = pulling.end().await?;
        all_through_us(stage, &watch)?;
        // What flies keeps its parent; what was asked for later may come from the origin.
        origin_read_at_most(stage, &watch, MIB + SLACK)?;
        let metric = ("a2", "shoal_control_finds_failed_total ");
        stage.row(fault, &watch, from_peer("a2", seconds, ("a2", AWAY), metric)).await
    };
    stage.scene(fault, play).await;
}

async fn for_good(stage: &mut Stage) {
    let fault = "control away for good: two nodes pull two images";
    let play = async |stage: &mut Stage| {
        let images = [stage.fresh("control-gone").await?, stage.fresh("control-gone").await?];
        let watch = stage.watch().await?;
        stage.world.control()?.kill();
        let mut slowest = 0.0_f64;
        for image in &images {
            let pulls = [stage.pull("a1", image)?, stage.pull("a2", image)?];
            for pull in pulls {
                slowest = slowest.max(pull.end().await?);
            }
        }
        all_through_us(stage, &watch)?;
        // Each waits a random part of 2 s for the other: one of them has read the registry, and both may have.
        let readers = watch.origin_readers(&stage.world)?;
        let reader = readers.keys().next_back().context("nobody read the registry")?;
        stage.row(fault, &watch, from_origin(reader, slowest, (reader, AWAY), (reader, ALONE))).await
    };
    stage.scene(fault, play).await;
}

async fn back(stage: &mut Stage) {
    let fault = "control back after an outage in which a node pulled";
    let play = async |stage: &mut Stage| {
        let image = stage.fresh("control-back").await?;
        let blobs = image.image.blobs().count() as u64;
        let before = held(&stage.world.control()?.nodes().await?, "a1")?;
        stage.world.control()?.kill();
        // New to control, and long enough that nodes try again more and more rarely.
        whole(stage, "a1", &image).await?;
        let watch = stage.watch().await?;
        let since = Instant::now();
        stage.world.control()?.start_again().await?;
        let control = stage.world.control()?;
        let learned = eventually(RELEARNS.saturating_sub(since.elapsed()), "control to know again", || async {
            let now = held(&control.nodes().await?, "a1")?;
            ensure!(now >= before + blobs, "control knows {now} blobs of a1, which holds {before} and {blobs}");
            Ok(since.elapsed())
        });
        println!("    control knew again what a1 holds after {:.2?}", learned.await?);
        stage.world.all_connected().await?;
        let seconds = whole(stage, "a2", &image).await?;
        all_through_us(stage, &watch)?;
        origin_read_at_most(stage, &watch, 0)?;
        let metric = ("a1", "shoal_control_sessions_total ");
        stage.row(fault, &watch, from_peer("a2", seconds, ("a1", "assigned"), metric)).await
    };
    stage.scene(fault, play).await;
}

async fn no_permit_at_first(stage: &mut Stage) {
    let fault = "a pull right after control was restarted";
    let play = async |stage: &mut Stage| {
        let image = stage.fresh("control-new").await?;
        let watch = stage.watch().await?;
        let since = Instant::now();
        stage.world.control()?.restart().await?;
        stage.world.all_connected().await?;
        let pulling = stage.pull("a1", &image)?;
        let first = loop {
            let granted = granted(stage).await?;
            // Taken after the answer: a grant while it was on its way is no grant before.
            let asked = since.elapsed();
            ensure!(granted == 0 || asked >= GRANTS_NONE, "{granted} permits {asked:.2?} after the start");
            if granted > 0 {
                break asked;
            }
            ensure!(asked < Duration::from_secs(30), "no permit was ever granted");
        };
        println!("    first permit within {first:.2?} of the start");
        let seconds = pulling.end().await?;
        all_through_us(stage, &watch)?;
        let metric = ("a1", "shoal_blob_origin_reads_total{leave=\"Permit\"} ");
        stage.row(fault, &watch, from_origin("a1", seconds, ("control", "node registered"), metric)).await
    };
    stage.scene(fault, play).await;
}

fn held(nodes: &[NodeEntry], name: &str) -> Result<u64> {
    let node = nodes.iter().find(|node| node.name == name && node.connected);
    Ok(node.with_context(|| format!("control does not know {name}"))?.held_blobs)
}

/// Permits that control granted since it started.
async fn granted(stage: &mut Stage) -> Result<u64> {
    let text = stage.world.control()?.rest().get_text("/metrics").await?;
    let sample = text.lines().find_map(|line| line.strip_prefix("shoal_swarm_permits_granted_total "));
    Ok(sample.context("control counts no permits")?.trim().parse::<f64>()? as u64)
}
