//! Scenarios on real parts. Each needs root and the lab's tools, and fails (it never skips) without them: the message tells the
//! command. One at a time: they measure.
#![allow(missing_docs, reason = "tests")]

use std::{future::Future, path::PathBuf};

use anyhow::{Context, Result, ensure};
use lab::{
    image::{Image, Plan},
    run::lab_dir,
    world::{World, WorldPlan},
};
use nix::fcntl::{Flock, FlockArg};

/// Runs a scenario alone on this machine.
fn alone(scenario: impl Future<Output = Result<()>>) {
    let file: PathBuf = lab_dir().join("lock");
    std::fs::create_dir_all(lab_dir()).unwrap();
    let file = std::fs::File::create(file).unwrap();
    let _lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if let Err(error) = runtime.block_on(scenario) {
        panic!("{error:#}");
    }
}

/// The ground under all other scenarios: the parts work together when Shoal is not there.
#[test]
fn containerd_alone_pulls_from_the_origin_with_an_anonymous_token() {
    alone(async {
        let mut world = World::start(WorldPlan { shoal: false, ..WorldPlan::two_clusters().only(2) }).await?;
        let image = Image::obtain(&Plan::small())?;
        world.registry.push(&image, "lab/small", "1").await?;
        world.start_nodes().await?;
        for node in ["a1", "a2"] {
            let timing = world.node(node)?.pull("lab/small", "1", &image).await?;
            let seconds = timing.seconds();
            // 24 MiB through 100 Mbit/s: the link is shaped, and the clock is right.
            let fastest = image.size() as f64 * 8.0 / 105e6;
            ensure!(seconds > fastest && seconds < fastest * 4.0, "{node}: {seconds} s, the link allows {fastest} s");
        }
        let log = world.registry.access_log()?;
        let reads = lab::registry::reads_by_digest(&log, |address| world.name_of(address));
        for blob in image.blobs() {
            let by_node = reads.get(&blob.digest).with_context(|| format!("nobody read {}", blob.digest))?;
            ensure!(by_node.len() == 2 && by_node.values().all(|reads| reads.bytes == blob.size), "{by_node:?}");
        }
        ensure!(log.iter().any(|line| line.status == 401), "the origin never challenged");
        ensure!(world.net.pair_counts()?.iter().all(|pair| pair.packets == 0), "nodes spoke to each other");
        Ok(())
    });
}
