//! The power is cut at random points of pulls: what was held is held, nothing wrong is, and pulls end well.
use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result, ensure};
use lab::{
    aftermath,
    disk::Disk,
    faults::{Row, stage::Stage},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{MIB, from_origin, whole};

/// Room for every image of a scene.
const DISK: u64 = 192 * MIB;
const CUTS: u32 = 5;
const CUTS_LONG: u32 = 25;

pub(super) async fn play(stage: &mut Stage) {
    let fault = "power cut in the middle of pulls";
    stage.scene(fault, async |stage: &mut Stage| cuts(stage, fault).await).await;
}

async fn cuts(stage: &mut Stage, fault: &str) -> Result<Row> {
    let seed = match std::env::var("SHOAL_SEED") {
        Ok(seed) => seed.parse().context("SHOAL_SEED")?,
        Err(_) => rand::random(),
    };
    println!("    cuts of SHOAL_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let file = stage.world.dirs.state.join("a1/disk.img");
    stage.world.node("a1")?.shoal()?.move_to(|at| Disk::ext4(at, &file, DISK)).await?;
    let before = stage.fresh("power-before").await?;
    whole(stage, "a1", &before).await?;
    let most = before.image.size() - MIB;
    let mut last = None;
    for _ in 0..if Stage::long_scenes() { CUTS_LONG } else { CUTS } {
        let image = stage.fresh("power").await?;
        let watch = stage.watch().await?;
        let pulling = stage.pull("a1", &image)?;
        let at = random.random_range(64 << 10..most);
        stage.fetched("a1", &watch, at, &pulling).await?;
        let shoal = stage.world.node("a1")?.shoal()?;
        let held = shoal.held()?;
        // What nobody synced is lost, or this cut cuts nothing.
        let lost = shoal.state.join("never-synced");
        fs::write(&lost, "in memory only")?;
        shoal.cut_power().await.with_context(|| format!("after {at} bytes"))?;
        ensure!(fs::read(&lost).unwrap_or_default().is_empty(), "a file that nobody synced outlived the power cut");
        let now = stage.world.node("a1")?.shoal()?.held()?;
        let gone: BTreeSet<_> = held.difference(&now).collect();
        ensure!(gone.is_empty(), "cut after {at} bytes: held before and lost: {gone:?}");
        let seconds = pulling.end().await.with_context(|| format!("the pull that was cut after {at} bytes"))?;
        aftermath::check(&mut stage.world).await.with_context(|| format!("cut after {at} bytes"))?;
        println!("    cut after {:.1} MiB: {} held, the pull took {seconds:.1} s", at as f64 / MIB as f64, now.len());
        last = Some((watch, seconds, image));
    }
    let (watch, seconds, image) = last.context("no cut was made")?;
    // What the last cut left is completed, and right.
    let reader = stage.world.reader("a1")?;
    for layer in &image.image.layers {
        reader.read(&image.repository, layer, std::time::Duration::ZERO).await.context("read a layer after the cut")?;
    }
    let metric = ("a1", "shoal_control_sessions_total ");
    stage.row(fault, &watch, from_origin("a1", seconds, ("a1", "store is open"), metric)).await
}
