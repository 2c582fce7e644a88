//! A parent goes away in the middle of a blob: dead or silent, with another one there or with the origin alone.
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{
    faults::{Row, stage::Stage},
    wait::eventually,
};
use nix::sys::signal::Signal;

use super::{MIB, SLACK, all_through_us, from_peer, origin_read_at_most, whole};

const LOST: &str = "shoal_swarm_lost_parents_total{reason=\"Connection\"} ";
const SILENT: &str = "shoal_swarm_lost_parents_total{reason=\"Silent\"} ";
const PEER_PORT: u16 = 5081;
const LOG: (&str, &str) = ("a2", "parent lost in the middle");

/// I8: a silent parent's pieces are asked of another after 2 s; what was read meanwhile is no loss, and a machine that is
/// busy with other things may add to it.
const RE_ASKED: f64 = 4.0;

pub(super) async fn play(stage: &mut Stage) {
    let faults: [(&str, bool, bool); 4] = [
        ("parent killed in the middle of a blob, the origin is left", false, false),
        ("parent killed in the middle of a blob, another parent is left", false, true),
        ("parent silent in the middle of a blob, the origin is left", true, false),
        ("parent silent in the middle of a blob, another parent is left", true, true),
    ];
    for (fault, silent, second) in faults {
        stage.scene(fault, async |stage: &mut Stage| parent_goes(stage, fault, silent, second).await).await;
    }
    let fault = "parent cut off from its child in the middle of a blob, but not from control";
    stage.scene(fault, async |stage: &mut Stage| unreachable(stage, fault).await).await;
}

/// Control sees the parent, its child does not: nobody but the child can tell.
async fn unreachable(stage: &mut Stage, fault: &str) -> Result<Row> {
    let image = stage.fresh("parent-closed").await?;
    whole(stage, "a1", &image).await?;
    let watch = stage.watch().await?;
    let pulling = stage.pull("a2", &image)?;
    stage.fetched("a2", &watch, 3 * MIB, &pulling).await?;
    let closed = stage.world.net.namespace("a1")?.close_port(PEER_PORT)?;
    let seconds = pulling.end().await?;
    drop(closed);
    all_through_us(stage, &watch)?;
    origin_read_at_most(stage, &watch, image.image.size() - 2 * MIB + SLACK)?;
    let metric = ("a2", "shoal_blob_origin_reads_total{leave=\"Permit\"} ");
    let row = stage.row(fault, &watch, from_peer("a2", seconds, LOG, metric)).await?;
    ensure!(row.lost_seconds < RE_ASKED, "{:.1} s were lost", row.lost_seconds);
    Ok(row)
}

async fn parent_goes(stage: &mut Stage, fault: &str, silent: bool, second: bool) -> Result<Row> {
    let image = stage.fresh("parent").await?;
    whole(stage, "a1", &image).await?;
    if second {
        whole(stage, "a3", &image).await?;
    }
    let watch = stage.watch().await?;
    let pulling = stage.pull("a2", &image)?;
    stage.fetched("a2", &watch, 3 * MIB, &pulling).await?;
    let parent = stage.world.node("a1")?.shoal()?;
    if silent {
        parent.signal(Signal::SIGSTOP)?
    } else {
        parent.kill()
    }
    let seconds = pulling.end().await?;
    all_through_us(stage, &watch)?;
    // What came before is not fetched again.
    let most = if second { 0 } else { image.image.size() - 2 * MIB + SLACK };
    origin_read_at_most(stage, &watch, most)?;
    let (log, metric) = match (silent, second) {
        // The other parent brings all that is left before the silence is long enough to be counted.
        (true, true) => (("control", "node left"), "shoal_blob_from_peers_bytes_total "),
        (true, false) => (LOG, SILENT),
        (false, _) => (LOG, LOST),
    };
    if silent {
        // Silent until it was noticed; but a row asks every daemon for its metrics.
        eventually(Duration::from_secs(10), "the silence to be noticed", || async { watch.line(log) }).await?;
        stage.world.node("a1")?.shoal()?.signal(Signal::SIGCONT)?;
    }
    let row = stage.row(fault, &watch, from_peer("a2", seconds, log, ("a2", metric))).await?;
    ensure!(
        !second || row.lost_seconds < RE_ASKED,
        "{:.1} s were lost although another parent was there",
        row.lost_seconds
    );
    Ok(row)
}
