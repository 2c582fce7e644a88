//! One blob read from origin, peer and disk: how fast, and with how much memory.
use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::Result;

use serde::Serialize;

use super::MIB;
use crate::{
    image::{Image, Plan},
    memory::peak_without_files,
    world::{World, WorldPlan},
};

/// One read.
#[derive(Debug, Clone, Serialize)]
pub struct Read {
    /// Which node read.
    pub node: String,
    /// Where the bytes were.
    pub from: &'static str,
    /// Bytes.
    pub size: u64,
    /// How long.
    pub seconds: f64,
    /// The most memory that the node's daemon had so far, file pages left out. Bytes.
    pub peak: u64,
}

/// Two nodes read a blob of `size` one after the other, each twice, over links that nothing shapes.
///
/// # Errors
/// When a part can't be started or a read fails.
pub async fn one_blob(size: u64) -> Result<Vec<Read>> {
    let mut world = World::start(WorldPlan { origin_rate: None, ..WorldPlan::two_clusters().only(2) }).await?;
    let image = tokio::task::spawn_blocking(move || Image::obtain(&Plan::random(1, vec![size]))).await??;
    world.registry.push(&image, "lab/one", "1").await?;
    world.start_nodes().await?;
    let blob = &image.layers[0];
    let mut reads = Vec::new();
    for (name, from) in [("a1", "origin"), ("a1", "disk"), ("a2", "peer"), ("a2", "disk")] {
        let reader = world.reader(name)?;
        let start = Instant::now();
        reader.read("lab/one", blob, Duration::ZERO).await?;
        let seconds = start.elapsed().as_secs_f64();
        let peak = peak_without_files(world.node(name)?.shoal()?.pid())?;
        reads.push(Read { node: name.into(), from, size: blob.size, seconds, peak });
    }
    Ok(reads)
}

/// The reads as a table.
pub fn table(reads: &[Read]) -> String {
    let mib = |bytes: u64| bytes as f64 / MIB;
    let mut out = String::from("node  from    MiB      seconds  MiB/s    peak memory, MiB\n");
    for read in reads {
        let (size, peak) = (mib(read.size), mib(read.peak));
        let speed = size / read.seconds;
        let _ = writeln!(
            out,
            "{:<4}  {:<6}  {size:<7.1}  {:<7.2}  {speed:<7.0}  {peak:.1}",
            read.node, read.from, read.seconds
        );
    }
    out
}
