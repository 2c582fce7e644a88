//! What a node has resident: at rest, and while a blob goes through it.
//!
//! The node reads the blob from the registry and four children take it from the node as it comes, dropping what they get.
//! Memory is what the process has for itself: pages of files that the kernel keeps for it are not counted.
use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;
use shoal_proto::Digest;

use super::{MIB, Spread, drain::Child};
use crate::{
    image::{Image, Plan},
    liar::Liar,
    memory::{own_now, peak_without_files},
    world::{World, WorldPlan},
};

const CHILDREN: u8 = 4;
/// How long the node is left alone before it counts as resting.
const REST: Duration = Duration::from_secs(5);
/// A child that comes before the node knows of the blob asks again after so long, and so often.
const AGAIN: (Duration, u32) = (Duration::from_millis(20), 500);

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Memory {
    blob_bytes: u64,
    children: u8,
    /// Whether daemons and children showed certificates.
    tls: bool,
    /// After the start, when nothing was asked of it yet: the median.
    idle_mib: f64,
    /// The most, until the last child had its last byte and the blob was held: the median.
    peak_mib: f64,
    idle: Spread,
    peak: Spread,
    /// When all that was over.
    after: Spread,
    /// From the first request to the last child's last byte.
    seconds: Spread,
}

/// One time, in bytes.
struct Once {
    blob_bytes: u64,
    idle: u64,
    peak: u64,
    after: u64,
    seconds: f64,
}

/// Measures so often, each time with a new world.
///
/// # Errors
/// When a part can't be started, or a transfer fails.
pub(super) async fn measure(size: u64, repetitions: u32, tls: bool) -> Result<Memory> {
    let mut all = Vec::new();
    for _ in 0..repetitions {
        all.push(once(size, tls).await?);
    }
    let spread = |figure: fn(&Once) -> f64| Spread::of(all.iter().map(figure));
    let (idle, peak) = (spread(|once| once.idle as f64 / MIB), spread(|once| once.peak as f64 / MIB));
    Ok(Memory {
        blob_bytes: all.first().map_or(0, |once| once.blob_bytes),
        children: CHILDREN,
        tls,
        idle_mib: idle.median,
        peak_mib: peak.median,
        idle,
        peak,
        after: spread(|once| once.after as f64 / MIB),
        seconds: spread(|once| once.seconds),
    })
}

async fn once(size: u64, tls: bool) -> Result<Once> {
    let mut plan = WorldPlan { origin_rate: None, tls, ..WorldPlan::one_cluster(1) };
    for child in 1..=CHILDREN {
        plan = plan.with_guest(&format!("c{child}"), [10, 77, 9, child].into());
    }
    let mut world = World::start(plan).await?;
    let image_plan = Plan::random(1, vec![size - size / 1024]);
    let image = tokio::task::spawn_blocking(move || Image::obtain(&image_plan)).await??;
    world.registry.push(&image, "lab/one", "1").await?;
    world.start_nodes().await?;
    let blob = image.layers[0].clone();
    let digest: Digest = blob.digest.parse().context("parse the blob's digest")?;
    // Members of its cluster, that hold nothing and take what they want by hand.
    let (mut members, token) = (Vec::new(), world.token()?);
    for child in 1..=CHILDREN {
        let (name, grpc) = (format!("c{child}"), world.grpc());
        members.push(Liar::join(&world.net.namespace(&name)?, grpc, &name, token.as_deref()).await?);
    }
    tokio::time::sleep(REST).await;
    let shoal = world.node("a1")?.shoal()?;
    let pid = shoal.pid();
    let idle = own_now(pid)?;
    let at = SocketAddr::new(world.net.namespace("a1")?.address.into(), 5081);
    let start = std::time::Instant::now();
    let reader = world.reader("a1")?;
    let held = blob.clone();
    let reading = tokio::spawn(async move { reader.read("lab/one", &held, Duration::ZERO).await });
    let mut children = Vec::new();
    for member in &members {
        let (ns, hello) = (world.net.namespace(member.node().as_str())?, member.hello());
        let client = member.papers().map(|papers| shoal_base::tls::client(&papers.keeper, None, &[]));
        children.push(tokio::task::spawn_blocking(move || -> Result<()> {
            let mut child = Child::dial(&ns, at, hello, client)?;
            for _ in 0..AGAIN.1 {
                if child.take(digest)?.is_some() {
                    return Ok(());
                }
                std::thread::sleep(AGAIN.0);
            }
            anyhow::bail!("the node never had anything of the blob")
        }));
    }
    for child in children {
        child.await?.context("take the blob as a child")?;
    }
    reading.await?.context("read the blob at the mirror")?;
    let seconds = start.elapsed().as_secs_f64();
    let peak = peak_without_files(pid)?;
    tokio::time::sleep(REST).await;
    Ok(Once { blob_bytes: blob.size, idle, peak, after: own_now(pid)?, seconds })
}

impl Memory {
    /// As a table.
    pub(super) fn table(&self) -> String {
        format!(
            "{:.1} MiB from the registry through a node to {} children and a reader, {} TLS, {} s\n\
             idle_mib {} (aim: below 24), peak_mib {} (aim: below 96), 5 s after it {}\n",
            self.blob_bytes as f64 / MIB,
            self.children,
            if self.tls { "with" } else { "without" },
            self.seconds,
            self.idle,
            self.peak,
            self.after
        )
    }
}
