//! A parent goes away in the middle of a blob: dead or silent, with another one there or with the origin alone.
use anyhow::{Result, ensure};
use lab::faults::{Row, stage::Stage};
use nix::sys::signal::Signal;

use super::{MIB, SLACK, all_through_us, from_peer, origin_read_at_most, whole};

const LOST: &str = "shoal_swarm_lost_parents_total{reason=\"Connection\"} ";
const SILENT: &str = "shoal_swarm_lost_parents_total{reason=\"Silent\"} ";
const LEFT: (&str, &str) = ("control", "node left");

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
    let metric = match (silent, second) {
        // The other parent brings all that is left before the silence is long enough to be counted.
        (true, true) => "shoal_blob_from_peers_bytes_total ",
        (true, false) => SILENT,
        (false, _) => LOST,
    };
    let row = stage.row(fault, &watch, from_peer("a2", seconds, LEFT, ("a2", metric))).await?;
    ensure!(
        !second || row.lost_seconds < RE_ASKED,
        "{:.1} s were lost although another parent was there",
        row.lost_seconds
    );
    Ok(row)
}
