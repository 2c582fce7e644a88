//! Limits of a node: disk and memory.
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use lab::{
    bench,
    image::{Image, Plan},
    memory::peak_without_files,
    wait::eventually,
    world::{World, WorldPlan},
};

use crate::alone;

const MIB: u64 = 1 << 20;

#[test]
fn a_store_stays_within_its_quota_while_readers_read() {
    alone(async {
        let plan = WorldPlan { origin_rate: None, ..WorldPlan::two_clusters().only(1) };
        // What containerd has too would be outside the quota: here it is not seen.
        let plan = plan.with_setting("containerd.root", "\"/nowhere\"");
        let mut world = World::start(plan.with_setting("store.quota", "\"300MiB\"")).await?;
        let images: Vec<Image> = (0..10)
            .map(|seed| Image::obtain(&Plan::random(100 + seed, vec![40 * MIB, 40 * MIB, 23 * MIB])))
            .collect::<Result<_>>()?;
        for (index, image) in images.iter().enumerate() {
            world.registry.push(image, &format!("lab/full-{index}"), "1").await?;
        }
        world.start_nodes().await?;
        let state = world.node("a1")?.shoal()?.state.clone();
        let done = Arc::new(AtomicBool::new(false));
        let peak = sample(&state, &done);

        // Two readers go over the first image again and again, slowly, while nine more images pass.
        let reader = world.reader("a1")?;
        let readers = [0, 1].map(|which| {
            let (reader, image, done) = (reader.clone(), images[0].clone(), done.clone());
            tokio::spawn(async move {
                let mut whole = 0;
                while !done.load(Ordering::Relaxed) {
                    reader.read("lab/full-0", &image.layers[which], Duration::from_millis(2)).await?;
                    whole += 1;
                }
                anyhow::Ok(whole)
            })
        });
        for (index, image) in images.iter().enumerate() {
            world.node("a1")?.pull(&format!("lab/full-{index}"), "1", image).await?;
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            let whole: u64 = reader.await?.context("a reader was disturbed")?;
            ensure!(whole > 0, "a reader never came to an end");
            println!("a reader read its blob {whole} times");
        }
        let (peak, total) = (peak.await?, images.iter().map(Image::size).sum::<u64>());
        println!("{} MiB of images passed; on disk at most {:.1} MiB", total / MIB, peak as f64 / MIB as f64);
        ensure!(total >= 1000 * MIB, "only {total} bytes were pulled");
        // In flight at once: at most the blobs of one image, and the readers'.
        let in_flight = images[0].size();
        ensure!(peak <= 300 * MIB + in_flight, "{peak} bytes on disk");
        ensure!(peak >= 200 * MIB, "only {peak} bytes were ever kept: the store is not used");
        Ok(())
    });
}

/// The most bytes that files below a directory took on disk, looked at every 20 ms until it is done.
fn sample(dir: &Path, done: &Arc<AtomicBool>) -> tokio::task::JoinHandle<u64> {
    let (dir, done) = (dir.to_owned(), done.clone());
    tokio::task::spawn_blocking(move || {
        let most = AtomicU64::new(0);
        while !done.load(Ordering::Relaxed) {
            most.fetch_max(bytes_below(&dir), Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
        }
        most.into_inner()
    })
}

fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
            Ok(meta) => meta.blocks() * 512,
            // Evicted in between.
            Err(_) => 0,
        })
        .sum()
}

#[test]
fn an_idle_node_with_a_thousand_blobs_takes_less_than_32_mib() {
    alone(async {
        let mut world = World::start(WorldPlan { origin_rate: None, ..WorldPlan::two_clusters().only(1) }).await?;
        let image = Image::obtain(&Plan::random(7, vec![4096; 1000]))?;
        world.registry.push(&image, "lab/many", "1").await?;
        world.start_nodes().await?;
        let reader = world.reader("a1")?;
        stream::iter(&image.layers)
            .map(|blob| reader.read("lab/many", blob, Duration::ZERO))
            .buffer_unordered(8)
            .try_collect::<Vec<()>>()
            .await?;
        let busy = peak_without_files(world.node("a1")?.shoal()?.pid())?;
        // Started again, it finds what it holds, says so to control, and has nothing to do.
        world.node("a1")?.shoal()?.restart(true).await?;
        let control = world.control()?;
        eventually(Duration::from_secs(10), "control to know a thousand blobs", || async {
            let nodes = control.nodes().await?;
            let held = nodes.iter().find(|node| node.connected).map_or(0, |node| node.held_blobs);
            ensure!(held >= 1000, "control knows of {held}");
            Ok(())
        })
        .await?;
        let idle = peak_without_files(world.node("a1")?.shoal()?.pid())?;
        println!(
            "peak memory with 1,000 held blobs: idle {} KiB, while it fetched them {} KiB",
            idle / 1024,
            busy / 1024
        );
        ensure!(idle < 32 * MIB, "idle: {idle} bytes");
        Ok(())
    });
}

#[test]
fn a_blob_of_a_gibibyte_passes_with_less_than_96_mib() {
    alone(async {
        let reads = bench::one::one_blob(1 << 30).await?;
        println!("{}", bench::one::table(&reads));
        for read in reads {
            ensure!(read.peak < 96 * MIB, "{} from {}: {} bytes of memory", read.node, read.from, read.peak);
        }
        Ok(())
    });
}
