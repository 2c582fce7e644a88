//! What TLS costs: one stream of blocks from a parent to a child that drops them, and one blob from node to node until it is held,
//! with certificates and without, in turns.
use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use shoal_proto::{Digest, frame::Hello};

use super::{
    GIB, MIB, Spread, cpu,
    drain::{Child, connect, http},
    floors,
};
use crate::{
    image::{Image, ImageBlob, Plan as ImagePlan},
    liar::Liar,
    registry,
    world::{World, WorldPlan},
};

const REPOSITORY: &str = "lab/tls";
const GUEST: &str = "drain";
const PEER_PORT: u16 = 5081;
const MIRROR_PORT: u16 = 5080;
/// As in the other measurement of a child.
const FIRST_BYTE: &str = "\"29s\"";

/// One way of speaking, over all repetitions.
#[derive(Debug, Clone, Serialize)]
struct Way {
    /// A parent to a child that drops what it gets.
    stream_mib_per_second: Spread,
    stream_cpu_seconds_per_gib: Spread,
    /// A node takes the blob from its peer onto its disk, until it is held.
    held_mib_per_second: Spread,
    /// Of both nodes.
    held_cpu_seconds_per_gib: Spread,
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Price {
    blob_bytes: u64,
    repetitions: u32,
    without: Way,
    with: Way,
    /// What is lost of the throughput of a single stream, of 1.
    stream_price: f64,
    /// What is lost of the throughput from node to node, of 1.
    held_price: f64,
}

/// One repetition.
#[derive(Debug, Clone, Copy)]
struct Run {
    stream_seconds: f64,
    stream_cpu: f64,
    held_seconds: f64,
    held_cpu: f64,
}

/// Measures.
///
/// # Errors
/// When a part can't be started, or a transfer fails.
pub(super) async fn measure(size: u64, repetitions: u32) -> Result<Price> {
    // A little less: what packs it must not push it over a bound of the layout.
    let plan = ImagePlan::random(1, vec![size - size / 1024]);
    let image = tokio::task::spawn_blocking(move || Image::obtain(&plan)).await??;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..repetitions {
        for (tls, runs) in [(false, &mut without), (true, &mut with)] {
            let run = once(&image, tls).await?;
            tracing::info!(round, tls, ?run, "measured");
            runs.push(run);
        }
    }
    let size = image.layers[0].size;
    let (without, with) = (Way::of(size, &without), Way::of(size, &with));
    let price = |of: fn(&Way) -> Spread| 1.0 - of(&with).median / of(&without).median;
    Ok(Price {
        blob_bytes: size,
        repetitions,
        stream_price: price(|way| way.stream_mib_per_second),
        held_price: price(|way| way.held_mib_per_second),
        without,
        with,
    })
}

async fn once(image: &Image, tls: bool) -> Result<Run> {
    let plan = WorldPlan { origin_rate: None, tls, ..WorldPlan::one_cluster(2) }
        .with_guest(GUEST, [10, 77, 9, 1].into())
        .with_setting("mirror.first_byte_budget", FIRST_BYTE)
        .with_setting("mirror.origin_byte_budget", FIRST_BYTE);
    let mut world = World::start(plan).await?;
    world.registry.push(image, REPOSITORY, "1").await?;
    world.start_nodes().await?;
    let blob = image.layers[0].clone();
    world.reader("a1")?.read(REPOSITORY, &blob, Duration::ZERO).await?;
    floors::settle(&world.dirs.state)?;
    let (stream_seconds, stream_cpu) = stream(&mut world, &blob, tls).await?;
    let (held_seconds, held_cpu) = held(&mut world, &blob).await?;
    Ok(Run { stream_seconds, stream_cpu, held_seconds, held_cpu })
}

/// The parent to a child that parses frames and drops bytes; the second time, when all buffers are there.
async fn stream(world: &mut World, blob: &ImageBlob, tls: bool) -> Result<(f64, f64)> {
    let digest: Digest = blob.digest.parse().context("parse the blob's digest")?;
    let (guest, token) = (world.net.namespace(GUEST)?, world.token()?);
    let onlooker = Liar::join(&guest, world.grpc(), "drain", token.as_deref()).await?;
    let hello: Hello = onlooker.hello();
    let client = onlooker.papers().map(|papers| shoal_base::tls::client(&papers.keeper, None, &[]));
    ensure!(client.is_some() == tls, "the child has papers where none are needed, or none where they are");
    let at = SocketAddr::new(world.net.namespace("a1")?.address.into(), PEER_PORT);
    let pid = world.node("a1")?.shoal()?.pid();
    let mut last = (0.0, 0.0);
    for _ in 0..2 {
        let (guest, hello, client) = (guest.clone(), hello.clone(), client.clone());
        let before = cpu::spent(pid)?;
        let took = tokio::task::spawn_blocking(move || -> Result<Duration> {
            let mut child = Child::dial(&guest, at, hello, client)?;
            child.take(digest)?.context("the parent does not hold the blob")
        })
        .await??;
        last = (took.as_secs_f64(), (cpu::spent(pid)? - before).as_secs_f64());
    }
    onlooker.leave().await?;
    Ok(last)
}

/// The second node takes the blob from the first.
async fn held(world: &mut World, blob: &ImageBlob) -> Result<(f64, f64)> {
    let pids = [world.node("a1")?.shoal()?.pid(), world.node("a2")?.shoal()?.pid()];
    let spent = || -> Result<f64> { pids.iter().map(|pid| Ok(cpu::spent(*pid)?.as_secs_f64())).sum() };
    let token = world.registry.signer().token(REPOSITORY, &["pull"])?;
    let (digest, host, last) = (&blob.digest, registry::HOST, blob.size - 1);
    // The last byte is given when the whole is held, and not before.
    let request = format!(
        "GET /v2/{REPOSITORY}/blobs/{digest}?ns={host} HTTP/1.1\r\nHost: mirror\r\nAuthorization: Bearer {token}\r\n\
         Range: bytes={last}-\r\n\r\n"
    );
    let (ns, at) = (world.net.namespace("a2")?, SocketAddr::from(([127, 0, 0, 1], MIRROR_PORT)));
    let before = spent()?;
    let took = tokio::task::spawn_blocking(move || http(&mut connect(&ns, at)?, &request, 1)).await??;
    let cost = spent()? - before;
    let from = world.node("a2")?.shoal()?.bytes_by_source().await?;
    ensure!(from.get("peer") == Some(&blob.size), "all should have come from the peer: {from:?}");
    Ok((took.as_secs_f64(), cost))
}

impl Way {
    fn of(size: u64, runs: &[Run]) -> Self {
        let (mib, gib) = (size as f64 / MIB, size as f64 / GIB);
        let spread = |of: &dyn Fn(&Run) -> f64| Spread::of(runs.iter().map(of));
        Self {
            stream_mib_per_second: spread(&|run| mib / run.stream_seconds),
            stream_cpu_seconds_per_gib: spread(&|run| run.stream_cpu / gib),
            held_mib_per_second: spread(&|run| mib / run.held_seconds),
            held_cpu_seconds_per_gib: spread(&|run| run.held_cpu / gib),
        }
    }
}

impl Price {
    /// As a table.
    pub(super) fn table(&self) -> String {
        let mut out = format!(
            "{:.1} MiB, median (least to most) of {}\n{:<9}{:<26}{:<26}{:<26}{}\n",
            self.blob_bytes as f64 / MIB,
            self.repetitions,
            "TLS",
            "stream MiB/s",
            "CPU s/GiB",
            "node to node MiB/s",
            "CPU s/GiB of both"
        );
        for (name, way) in [("without", &self.without), ("with", &self.with)] {
            let _ = writeln!(
                out,
                "{name:<9}{:<26}{:<26}{:<26}{}",
                way.stream_mib_per_second.to_string(),
                way.stream_cpu_seconds_per_gib.to_string(),
                way.held_mib_per_second.to_string(),
                way.held_cpu_seconds_per_gib
            );
        }
        let _ = writeln!(
            out,
            "price of TLS: {:.0} % of a single stream (aim: at most 25 %), {:.0} % from node to node",
            self.stream_price * 100.0,
            self.held_price * 100.0
        );
        out
    }
}
