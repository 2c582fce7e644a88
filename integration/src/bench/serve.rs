//! How fast a node gives a held blob, and at what cost, beside nginx with sendfile giving the very same file; and how fast
//! one takes a blob from a parent, beside what the hash of the whole and the disk take alone.
//!
//! All clients are alike: one thread in a namespace of its own behind a veth, which drops what it reads.
use std::{fmt::Write as _, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;
use shoal_proto::{Digest, frame::Hello};

use super::{
    GIB, MIB, Spread, cpu,
    drain::{self, Child},
    floors,
    nginx::{self, Nginx},
};
use crate::{
    image::{Image, ImageBlob, Plan as ImagePlan},
    net::Netns,
    registry, tools,
    world::{World, WorldPlan},
};

const REPOSITORY: &str = "lab/one";
const GUEST: &str = "drain";
const MIRROR_PORT: u16 = 5080;
const PEER_PORT: u16 = 5081;
/// The last byte of a blob comes when the blob is held; within this, or the run fails. The most that settings allow.
const FIRST_BYTE: &str = "\"29s\"";

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Bytes of the blob, about.
    pub(super) size: u64,
    pub(super) repetitions: u32,
    pub(super) child: bool,
}

/// One server, over all repetitions.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Server {
    mib_per_second: Spread,
    cpu_seconds_per_gib: Spread,
    runs: Vec<Run>,
}

/// One repetition of a server.
#[derive(Debug, Clone, Copy, Serialize)]
struct Run {
    seconds: f64,
    cpu_seconds: f64,
}

/// One repetition of the child.
#[derive(Debug, Clone, Copy, Serialize)]
struct Taken {
    seconds: f64,
    sha256_seconds: f64,
    disk_seconds: f64,
    cpu_seconds: f64,
}

impl Taken {
    fn ratio(&self) -> f64 {
        self.seconds / self.sha256_seconds.max(self.disk_seconds)
    }
}

/// A child that checks and stores, over all repetitions.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Storing {
    mib_per_second: Spread,
    cpu_seconds_per_gib: Spread,
    /// Its time over the larger of the two floors of the same repetition.
    ratio: Spread,
    runs: Vec<Taken>,
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Served {
    blob_bytes: u64,
    repetitions: u32,
    /// The worse of mirror and parent, the middle of all repetitions.
    throughput_ratio: f64,
    /// The worse of mirror and parent, the middle of all repetitions.
    cpu_ratio: f64,
    /// Over the floor; without a child, null.
    child_ratio: Option<f64>,
    mirror_throughput_ratio: Spread,
    mirror_cpu_ratio: Spread,
    parent_throughput_ratio: Spread,
    parent_cpu_ratio: Spread,
    nginx: Server,
    mirror: Server,
    parent: Server,
    child: Option<Storing>,
}

/// A node that holds the blob, nginx beside it, and what their clients need.
struct Stage {
    world: World,
    blob: ImageBlob,
    digest: Digest,
    nginx: Nginx,
    guest: Netns,
    hello: Hello,
}

/// Measures.
///
/// # Errors
/// When a part can't be started, or a transfer fails.
pub(super) async fn measure(plan: &Plan) -> Result<Served> {
    let mut stage = Stage::set(plan.size).await?;
    let (mut nginx, mut mirror, mut parent) = (Vec::new(), Vec::new(), Vec::new());
    // The first round is not counted: it fills caches and grows buffers.
    for round in 0..=plan.repetitions {
        let runs = (stage.nginx().await?, stage.mirror().await?, stage.parent().await?);
        tracing::info!(round, ?runs, "served");
        if round > 0 {
            nginx.push(runs.0);
            mirror.push(runs.1);
            parent.push(runs.2);
        }
    }
    let mut taken = Vec::new();
    if plan.child {
        for round in 0..plan.repetitions {
            let run = stage.child().await?;
            tracing::info!(round, ?run, "stored");
            taken.push(run);
        }
    }
    Ok(Served::of(stage.blob.size, plan.repetitions, [nginx, mirror, parent], taken))
}

impl Stage {
    async fn set(size: u64) -> Result<Self> {
        let plan = WorldPlan { origin_rate: None, ..WorldPlan::one_cluster(2).without_tls() }
            .with_guest(GUEST, [10, 77, 9, 1].into())
            .with_setting("mirror.listen", &format!("\"0.0.0.0:{MIRROR_PORT}\""))
            .with_setting("mirror.first_byte_budget", FIRST_BYTE)
            .with_setting("mirror.origin_byte_budget", FIRST_BYTE);
        let mut world = World::start(plan).await?;
        // A little less: what packs it must not push it over a bound of the layout.
        let image_plan = ImagePlan::random(1, vec![size - size / 1024]);
        let image = tokio::task::spawn_blocking(move || Image::obtain(&image_plan)).await??;
        world.registry.push(&image, REPOSITORY, "1").await?;
        world.start_nodes().await?;
        let blob = image.layers[0].clone();
        world.reader("a1")?.read(REPOSITORY, &blob, Duration::ZERO).await?;
        let digest: Digest = blob.digest.parse().context("parse the blob's digest")?;
        let held = world.node("a1")?.shoal()?.state.join("store/held");
        let (ns, dir) = (world.net.namespace("a1")?, world.dirs.state.join("nginx"));
        let nginx = Nginx::start(&tools::nginx()?, &ns, &dir, &held).await?;
        let debug = world.node("a1")?.shoal()?.admin().get_text("/debug").await?;
        let debug: serde_json::Value = serde_json::from_str(&debug).context("parse /debug")?;
        let cluster = debug["cluster"]["id"].as_str().context("a1 has no cluster")?;
        let hello = Hello { cluster: cluster.parse()?, node: "drain".parse()?, epoch: 1 };
        let guest = world.net.namespace(GUEST)?;
        floors::settle(&world.dirs.state)?;
        Ok(Self { world, blob, digest, nginx, guest, hello })
    }

    fn address(&self, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.world.net.namespace("a1")?.address.into(), port))
    }

    async fn nginx(&mut self) -> Result<Run> {
        let path = nginx::held_path(&self.blob.digest)?;
        let request = format!("GET /{} HTTP/1.1\r\nHost: nginx\r\n\r\n", path.display());
        let (ns, at, size) = (self.guest.clone(), self.nginx.at, self.blob.size);
        timed(self.nginx.pid(), move || drain::http(&mut drain::connect(&ns, at)?, &request, size)).await
    }

    async fn mirror(&mut self) -> Result<Run> {
        let (ns, at, size) = (self.guest.clone(), self.address(MIRROR_PORT)?, self.blob.size);
        let (first, whole) = (self.request("Range: bytes=0-0\r\n")?, self.request("")?);
        let pid = self.world.node("a1")?.shoal()?.pid();
        // Whether the caller may see the blob is the registry's answer, and it is remembered: not what is measured.
        let mut stream = tokio::task::spawn_blocking(move || -> Result<_> {
            let mut stream = drain::connect(&ns, at)?;
            drain::http(&mut stream, &first, 1)?;
            Ok(stream)
        })
        .await??;
        timed(pid, move || drain::http(&mut stream, &whole, size)).await
    }

    async fn parent(&mut self) -> Result<Run> {
        let (ns, at, digest, hello) = (self.guest.clone(), self.address(PEER_PORT)?, self.digest, self.hello.clone());
        let pid = self.world.node("a1")?.shoal()?.pid();
        let mut child = tokio::task::spawn_blocking(move || Child::dial(&ns, at, hello, None)).await??;
        timed(pid, move || child.take(digest)?.context("the parent does not hold the blob")).await
    }

    /// The second node takes the blob from the first onto an empty disk, until it is held there.
    async fn child(&mut self) -> Result<Taken> {
        let size = self.blob.size;
        let shoal = self.world.node("a2")?.shoal()?;
        let store: PathBuf = shoal.state.join("store");
        shoal.kill();
        if store.exists() {
            std::fs::remove_dir_all(&store).with_context(|| format!("remove {}", store.display()))?;
        }
        shoal.start_again().await?;
        let pid = shoal.pid();
        self.world.all_connected().await?;
        let dir = self.world.dirs.state.clone();
        let (sha256, disk) = tokio::task::spawn_blocking(move || -> Result<_> {
            floors::settle(&dir)?;
            let floors = (floors::sha256(size), floors::disk(&dir, size)?);
            floors::settle(&dir)?;
            Ok(floors)
        })
        .await??;
        let ns = self.world.net.namespace("a2")?;
        // The last byte is given when the whole is held, and not before.
        let request = self.request(&format!("Range: bytes={}-\r\n", size - 1))?;
        let at = SocketAddr::from(([127, 0, 0, 1], MIRROR_PORT));
        let run = timed(pid, move || drain::http(&mut drain::connect(&ns, at)?, &request, 1)).await?;
        let from = self.world.node("a2")?.shoal()?.bytes_by_source().await?;
        anyhow::ensure!(from.get("peer") == Some(&size), "{size} bytes should have come from the parent: {from:?}");
        Ok(Taken {
            seconds: run.seconds,
            sha256_seconds: sha256.as_secs_f64(),
            disk_seconds: disk.as_secs_f64(),
            cpu_seconds: run.cpu_seconds,
        })
    }

    /// A request for the blob at a mirror.
    fn request(&self, more: &str) -> Result<String> {
        let token = self.world.registry.signer().token(REPOSITORY, &["pull"])?;
        let (digest, host) = (&self.blob.digest, registry::HOST);
        Ok(format!(
            "GET /v2/{REPOSITORY}/blobs/{digest}?ns={host} HTTP/1.1\r\nHost: mirror\r\nAuthorization: Bearer {token}\r\n{more}\r\n"
        ))
    }
}

/// Runs a client on a thread of its own, and says how long it took and what the server's processes cost meanwhile.
async fn timed(server: u32, client: impl FnOnce() -> Result<Duration> + Send + 'static) -> Result<Run> {
    let before = cpu::spent(server)?;
    let seconds = tokio::task::spawn_blocking(client).await??.as_secs_f64();
    Ok(Run { seconds, cpu_seconds: (cpu::spent(server)? - before).as_secs_f64() })
}

impl Server {
    fn of(size: u64, runs: Vec<Run>) -> Self {
        Self {
            mib_per_second: Spread::of(runs.iter().map(|run| size as f64 / MIB / run.seconds)),
            cpu_seconds_per_gib: Spread::of(runs.iter().map(|run| run.cpu_seconds / (size as f64 / GIB))),
            runs,
        }
    }

    /// Throughput and CPU time in parts of the other's, repetition by repetition.
    fn beside(&self, other: &Self) -> (Spread, Spread) {
        let pairs = || self.runs.iter().zip(&other.runs);
        (
            Spread::of(pairs().map(|(this, other)| other.seconds / this.seconds)),
            Spread::of(pairs().map(|(this, other)| this.cpu_seconds / other.cpu_seconds)),
        )
    }
}

impl Served {
    fn of(size: u64, repetitions: u32, runs: [Vec<Run>; 3], taken: Vec<Taken>) -> Self {
        let [nginx, mirror, parent] = runs.map(|runs| Server::of(size, runs));
        let (mirror_throughput_ratio, mirror_cpu_ratio) = mirror.beside(&nginx);
        let (parent_throughput_ratio, parent_cpu_ratio) = parent.beside(&nginx);
        let child = (!taken.is_empty()).then(|| Storing {
            mib_per_second: Spread::of(taken.iter().map(|run| size as f64 / MIB / run.seconds)),
            cpu_seconds_per_gib: Spread::of(taken.iter().map(|run| run.cpu_seconds / (size as f64 / GIB))),
            ratio: Spread::of(taken.iter().map(Taken::ratio)),
            runs: taken,
        });
        Self {
            blob_bytes: size,
            repetitions,
            throughput_ratio: mirror_throughput_ratio.median.min(parent_throughput_ratio.median),
            cpu_ratio: mirror_cpu_ratio.median.max(parent_cpu_ratio.median),
            child_ratio: child.as_ref().map(|child| child.ratio.median),
            mirror_throughput_ratio,
            mirror_cpu_ratio,
            parent_throughput_ratio,
            parent_cpu_ratio,
            nginx,
            mirror,
            parent,
            child,
        }
    }

    /// As a table.
    pub(super) fn table(&self) -> String {
        let mut out = format!(
            "{:.1} MiB, median (least to most) of {}\n{:<8}{:<26}{:<26}{:<26}{}\n",
            self.blob_bytes as f64 / MIB,
            self.repetitions,
            "server",
            "MiB/s",
            "of nginx",
            "CPU s/GiB",
            "of nginx"
        );
        let none = || String::from("1");
        for (name, server, (throughput, cpu)) in [
            ("nginx", &self.nginx, (none(), none())),
            ("mirror", &self.mirror, (self.mirror_throughput_ratio.to_string(), self.mirror_cpu_ratio.to_string())),
            ("parent", &self.parent, (self.parent_throughput_ratio.to_string(), self.parent_cpu_ratio.to_string())),
        ] {
            let _ = writeln!(
                out,
                "{name:<8}{:<26}{throughput:<26}{:<26}{cpu}",
                server.mib_per_second.to_string(),
                server.cpu_seconds_per_gib.to_string(),
            );
        }
        let _ = writeln!(
            out,
            "throughput_ratio {:.3} (aim: at least 0.8), cpu_ratio {:.3} (aim: at most 1.5)",
            self.throughput_ratio, self.cpu_ratio
        );
        if let Some(child) = &self.child {
            let floor = |of: fn(&Taken) -> f64| Spread::of(child.runs.iter().map(of));
            let _ = writeln!(
                out,
                "child: {} MiB/s, {} CPU s/GiB, {} s; SHA-256 alone {} s, disk alone {} s\n\
                 child over the larger floor: {} (aim: at most 1.3)",
                child.mib_per_second,
                child.cpu_seconds_per_gib,
                floor(|run| run.seconds),
                floor(|run| run.sha256_seconds),
                floor(|run| run.disk_seconds),
                child.ratio
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_those_of_the_worse_server_and_of_the_larger_floor() {
        let run = |seconds, cpu_seconds| vec![Run { seconds, cpu_seconds }];
        let runs = [run(1.0, 0.5), run(1.25, 0.5), run(1.0, 1.0)];
        let taken = Taken { seconds: 3.0, sha256_seconds: 1.0, disk_seconds: 2.0, cpu_seconds: 1.0 };
        let served = Served::of(1 << 30, 1, runs, vec![taken]);
        assert_eq!((served.throughput_ratio, served.cpu_ratio, served.child_ratio), (0.8, 2.0, Some(1.5)));
        assert_eq!(served.nginx.mib_per_second.median, 1024.0);
    }
}
