//! shoal-node as containerd's content store beside containerd's own: one gzip layer unpacked by containerd out of either, in turns;
//! then what containerd asks of a store that holds many blobs.
use std::{fmt::Write as _, time::Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{MIB, Spread, floors};
use crate::{
    containerd::{
        content::{ContentStore, Writer},
        edition::Edition,
    },
    image::{Image, Plan, Source},
    node::Node,
    world::{World, WorldPlan},
};

const REPOSITORY: &str = "lab/content";
/// The node whose containerd keeps its own content, and the one whose content is ours.
const STOCK: &str = "a1";
const PLUGIN: &str = "a2";
/// Blobs that are listed.
const BLOBS: usize = 10_000;
/// Written side by side.
const WRITERS: usize = 16;
/// Calls of `Info`.
const INFOS: usize = 1000;
/// As containerd's unpacker reads (CONTAINERD 30).
const READ: i64 = 32 << 10;
/// The aims: of the stock store's speed, and for a list of all.
const AIM: f64 = 0.8;
const LIST_AIM_MS: f64 = 100.0;

/// One containerd.
#[derive(Debug, Clone, Serialize)]
struct Unpacked {
    containerd: String,
    /// `ctr snapshots unpack`, seconds.
    stock_seconds: Spread,
    plugin_seconds: Spread,
    /// Speed through us over that of the stock store, of each round.
    ratio: Spread,
}

/// What a store of many blobs answers.
#[derive(Debug, Clone, Serialize)]
struct Asked {
    blobs: usize,
    list_ms: Spread,
    info_ms_per_1000: Spread,
    read_mib_per_second: Spread,
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Content {
    layer_bytes: u64,
    repetitions: u32,
    unpacked: Vec<Unpacked>,
    asked: Asked,
}

/// Measures.
///
/// # Errors
/// When a part can't be started, or a call fails.
pub(super) async fn measure(size: u64, repetitions: u32) -> Result<Content> {
    let plan = Plan { name: format!("content-{size}"), source: Source::Machine, layers: vec![size] };
    let image = tokio::task::spawn_blocking(move || Image::obtain(&plan)).await??;
    let (mut unpacked, mut asked) = (Vec::new(), None);
    for edition in Edition::from_env(&Edition::RELEASES)? {
        let mut world = start(edition, &image).await?;
        unpacked.push(unpack(&mut world, &image, edition, repetitions).await?);
        if asked.is_none() {
            asked = Some(ask(world.node(PLUGIN)?, &image, repetitions).await?);
        }
    }
    let asked = asked.context("no containerd was measured")?;
    Ok(Content { layer_bytes: image.layers[0].size, repetitions, unpacked, asked })
}

async fn start(edition: Edition, image: &Image) -> Result<World> {
    let mut plan = WorldPlan { edition, origin_rate: None, ..WorldPlan::one_cluster(2) };
    for node in plan.nodes.iter_mut().filter(|node| node.name == PLUGIN) {
        node.settings.insert("containerd.content".into(), "\"plugin\"".into());
    }
    let mut world = World::start(plan).await?;
    world.registry.push(image, REPOSITORY, "1").await?;
    world.start_nodes().await?;
    for node in [STOCK, PLUGIN] {
        world.node(node)?.pull(REPOSITORY, "1", image).await?;
    }
    ensure!(world.node(PLUGIN)?.containerd.held().is_empty(), "containerd keeps blobs by itself");
    Ok(world)
}

async fn unpack(world: &mut World, image: &Image, edition: Edition, repetitions: u32) -> Result<Unpacked> {
    let manifest = format!("sha256:{}", hex::encode(Sha256::digest(&image.manifest)));
    let (mut stock, mut plugin) = (Vec::new(), Vec::new());
    // The first round fills what is filled once, and does not count.
    for round in 0..=repetitions {
        for (node, times) in [(STOCK, &mut stock), (PLUGIN, &mut plugin)] {
            remove_snapshots(world.node(node)?).await?;
            floors::settle(&world.dirs.state)?;
            let containerd = &world.node_ref(node)?.containerd;
            let ctr = containerd.ctr(containerd.socket());
            let begun = Instant::now();
            ctr.run(&["snapshots", "unpack", &manifest]).await?;
            let took = begun.elapsed().as_secs_f64();
            tracing::info!(%edition, round, node, took, "unpacked");
            if round > 0 {
                times.push(took);
            }
        }
    }
    Ok(Unpacked {
        containerd: edition.to_string(),
        ratio: Spread::of(stock.iter().zip(&plugin).map(|(stock, plugin)| stock / plugin)),
        stock_seconds: Spread::of(stock),
        plugin_seconds: Spread::of(plugin),
    })
}

async fn remove_snapshots(node: &Node) -> Result<()> {
    let ctr = node.containerd.ctr(node.containerd.socket());
    let listed = ctr.text(&["snapshots", "ls"]).await?;
    for line in listed.lines().skip(1) {
        let key = line.split_whitespace().next().context("a snapshot has a key")?;
        ctr.run(&["snapshots", "rm", key]).await?;
    }
    Ok(())
}

async fn ask(node: &Node, image: &Image, repetitions: u32) -> Result<Asked> {
    let socket = node.content_socket();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let mut store = ContentStore::connect(&socket).await?;
        writers.spawn(async move {
            for blob in (writer..BLOBS).step_by(WRITERS) {
                put(&mut store, format!("blob {blob} of many").as_bytes()).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = writers.join_next().await {
        done??;
    }
    let mut store = ContentStore::connect(&socket).await?;
    let layer = &image.layers[0];
    let (mut lists, mut infos, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..repetitions {
        let begun = Instant::now();
        let listed = store.count().await?;
        lists.push(begun.elapsed().as_secs_f64() * 1000.0);
        ensure!(listed >= BLOBS, "{listed} of {BLOBS} blobs are listed");
        let begun = Instant::now();
        for _ in 0..INFOS {
            store.info(&layer.digest).await?;
        }
        infos.push(begun.elapsed().as_secs_f64() * 1000.0);
        let begun = Instant::now();
        let mut at = 0;
        while at < layer.size.cast_signed() {
            let bytes = store.read(&layer.digest, at, READ.min(layer.size.cast_signed() - at)).await?;
            ensure!(!bytes.is_empty(), "a read at {at} gave nothing");
            at += bytes.len() as i64;
        }
        reads.push(layer.size as f64 / MIB / begun.elapsed().as_secs_f64());
    }
    Ok(Asked {
        blobs: BLOBS,
        list_ms: Spread::of(lists),
        info_ms_per_1000: Spread::of(infos),
        read_mib_per_second: Spread::of(reads),
    })
}

async fn put(store: &mut ContentStore, bytes: &[u8]) -> Result<()> {
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(bytes)));
    let mut writer = store.writer().await?;
    writer.stat(&digest, bytes.len() as i64).await?;
    writer.write(0, bytes).await?;
    writer.say(Writer::commit_of(&digest, bytes.len() as i64)).await?;
    Ok(())
}

impl Content {
    /// As tables.
    pub(super) fn table(&self) -> String {
        let mib = self.layer_bytes as f64 / MIB;
        let mut out = format!(
            "unpacking a gzip layer of {mib:.1} MiB, median (least to most) of {}\n{:<12}{:<26}{:<26}{}\n",
            self.repetitions, "containerd", "own store, s", "ours, s", "speed, ours over its own"
        );
        for one in &self.unpacked {
            let aim = if one.ratio.median >= AIM { "" } else { "  MISSED" };
            let _ = writeln!(
                out,
                "{:<12}{:<26}{:<26}{} (aim: at least {AIM}){aim}",
                one.containerd,
                one.stock_seconds.to_string(),
                one.plugin_seconds.to_string(),
                one.ratio
            );
        }
        let Asked { blobs, list_ms, info_ms_per_1000, read_mib_per_second } = &self.asked;
        let aim = if list_ms.median < LIST_AIM_MS { "" } else { "  MISSED" };
        let _ = writeln!(out, "{blobs} blobs listed: {list_ms} ms (aim: under {LIST_AIM_MS}){aim}");
        let _ = writeln!(out, "1000 calls of Info: {info_ms_per_1000} ms");
        let _ = writeln!(out, "read in calls of 32 KiB: {read_mib_per_second} MiB/s");
        out
    }
}
