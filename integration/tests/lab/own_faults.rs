//! Faults of ours: whatever breaks of Shoal, pulls that run then end well, with right bytes.
use anyhow::{Result, ensure};
use lab::{
    containerd::edition::Edition,
    faults::stage::{Fresh, Pulled, Stage, Usually, Watch, on_editions},
    world::WorldPlan,
};

use crate::alone;

#[path = "own_faults/clocks.rs"]
mod clocks;
#[path = "own_faults/control.rs"]
mod control;
#[path = "own_faults/disks.rs"]
mod disks;
#[path = "own_faults/parents.rs"]
mod parents;
#[path = "own_faults/power.rs"]
mod power;
#[path = "own_faults/restarts.rs"]
mod restarts;

const MIB: u64 = 1 << 20;

/// What a manifest and a config take beside layers, and more.
const SLACK: u64 = 64 << 10;

/// Nodes on links of 40 Mbit/s: an image takes two to three seconds, long enough to be hit in the middle.
fn plan(edition: Edition) -> WorldPlan {
    let plan = WorldPlan { edition, node_rate: Some(40_000_000), ..WorldPlan::one_cluster(3) };
    // Disks of some scenes are smaller than the usual reserve.
    plan.with_setting("store.reserve", "\"1MiB\"")
}

#[test]
fn pulls_end_well_whatever_of_ours_breaks() {
    alone(on_editions(&Edition::USUAL, plan, 0xb000, async |stage| {
        control::play(stage).await;
        parents::play(stage).await;
        restarts::play(stage).await;
        power::play(stage).await;
        disks::play(stage).await;
        clocks::play(stage).await;
        Ok(())
    }));
}

/// Pulls an image on a node, undisturbed.
async fn whole(stage: &mut Stage, node: &str, image: &Fresh) -> Result<f64> {
    stage.pull(node, image)?.end().await
}

/// A row of a pull that usually comes from the origin.
fn from_origin<'a>(node: &'a str, seconds: f64, log: (&'a str, &'a str), metric: (&'a str, &'a str)) -> Pulled<'a> {
    Pulled { node, seconds, usually: Usually::Origin, log, metric }
}

/// A row of a pull that usually comes from a peer.
fn from_peer<'a>(node: &'a str, seconds: f64, log: (&'a str, &'a str), metric: (&'a str, &'a str)) -> Pulled<'a> {
    Pulled { usually: Usually::Peer, ..from_origin(node, seconds, log, metric) }
}

/// Fails when containerd went past us to the registry.
fn all_through_us(stage: &Stage, watch: &Watch) -> Result<()> {
    let past = watch.past_us(&stage.world)?;
    let why = ["a1", "a2"].map(|node| watch.line((node, "containerd asks the registry itself")).unwrap_or_default());
    ensure!(past == 0, "containerd read {past} bytes from the registry past us; {why:?}");
    Ok(())
}

/// Fails when nodes read more of the origin than `most` bytes.
fn origin_read_at_most(stage: &Stage, watch: &Watch, most: u64) -> Result<()> {
    let read = watch.origin_bytes(&stage.world)?;
    ensure!(read <= most, "nodes read {read} bytes of the origin instead of at most {most}");
    Ok(())
}
