//! A disk is full, or fills in the middle of a blob: on the reading node, and on the one that others read from.
use anyhow::{Context, Result, bail, ensure};
use lab::{
    disk::Disk,
    faults::{Row, stage::Stage},
};

use super::{MIB, all_through_us, from_origin, from_peer, whole};

const PASSED: &str = "shoal_mirror_passed_through_total{why=\"NotKept\"} ";

pub(super) async fn play(stage: &mut Stage) {
    let fault = "disk of the reading node too small for a blob";
    stage.scene(fault, async |stage: &mut Stage| too_small(stage, fault).await).await;
    let fault = "disk of the reading node fills in the middle of a blob";
    stage.scene(fault, async |stage: &mut Stage| fills_under_the_reader(stage, fault).await).await;
    let fault = "disk of the serving node fills in the middle of a blob";
    stage.scene(fault, async |stage: &mut Stage| fills_under_a_parent(stage, fault).await).await;
}

/// I11: bytes still go to the reader; nothing is kept or offered.
async fn too_small(stage: &mut Stage, fault: &str) -> Result<Row> {
    let image = stage.fresh("disk-small").await?;
    let largest = image.image.layers.iter().max_by_key(|layer| layer.size).context("an image has layers")?;
    stage.world.node("a1")?.shoal()?.move_to(|at| Disk::in_memory(at, 6 * MIB)).await?;
    let watch = stage.watch().await?;
    let seconds = whole(stage, "a1", &image).await?;
    all_through_us(stage, &watch)?;
    let held = stage.world.node("a1")?.shoal()?.held()?;
    ensure!(!held.contains(&largest.digest), "a disk of 6 MiB holds a blob of {} bytes", largest.size);
    let log = ("a1", "pass through from the origin");
    let row = stage.row(fault, &watch, from_origin("a1", seconds, log, ("a1", PASSED))).await?;
    // Nobody is told that it could be had there.
    let watch = stage.watch().await?;
    whole(stage, "a2", &image).await?;
    all_through_us(stage, &watch)?;
    let origin = watch.origin_bytes(&stage.world)?;
    ensure!(origin >= largest.size, "only {origin} bytes came from the origin, and nobody else has the largest layer");
    Ok(row)
}

async fn fills_under_the_reader(stage: &mut Stage, fault: &str) -> Result<Row> {
    let image = stage.fresh("disk-fills").await?;
    stage.world.node("a1")?.shoal()?.move_to(|at| Disk::in_memory(at, 32 * MIB)).await?;
    let watch = stage.watch().await?;
    let pulling = stage.pull("a1", &image)?;
    stage.fetched("a1", &watch, 3 * MIB, &pulling).await?;
    stage.world.node("a1")?.shoal()?.disk()?.fill()?;
    let seconds = pulling.end().await?;
    all_through_us(stage, &watch)?;
    let log = ("a1", "pass through from the origin");
    stage.row(fault, &watch, from_origin("a1", seconds, log, ("a1", PASSED))).await
}

/// The parent reads the origin for itself and passes on what it has; then it can't go on, and its child does. On a busy machine the
/// child may come so late that the parent has everything by then: once more.
async fn fills_under_a_parent(stage: &mut Stage, fault: &str) -> Result<Row> {
    for _ in 0..3 {
        let image = stage.fresh("disk-parent").await?;
        let size: u64 = image.image.layers.iter().map(|layer| layer.size).sum();
        stage.world.node("a1")?.shoal()?.move_to(|at| Disk::in_memory(at, 32 * MIB)).await?;
        let watch = stage.watch().await?;
        let parent = stage.pull("a1", &image)?;
        stage.fetched("a1", &watch, MIB, &parent).await?;
        let child = stage.pull("a2", &image)?;
        stage.moved("a2", &watch, 2 * MIB).await?;
        let had: u64 = stage.world.node("a1")?.shoal()?.bytes_by_source().await?.values().sum();
        stage.world.node("a1")?.shoal()?.disk()?.fill()?;
        let late = child.is_over() || had - watch.fetched("a1") + MIB > size;
        let seconds = child.end().await?;
        parent.end().await.context("the pull on the parent")?;
        if late {
            println!("    the parent had nearly everything when its disk was full: once more");
            continue;
        }
        all_through_us(stage, &watch)?;
        let metric = ("a2", "shoal_blob_origin_reads_total{leave=\"Permit\"} ");
        return stage.row(fault, &watch, from_peer("a2", seconds, ("control", "took the permit back"), metric)).await;
    }
    bail!("the parent had nearly everything each time that its disk was filled")
}
