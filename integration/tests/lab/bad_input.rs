//! Bytes that nobody meant, on every listener of both daemons: clear ends, no growth, no descriptor left.
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    flood::{HalfOpen, random_bytes},
    image::{Image, Plan},
    memory::{own_now, peak_without_files},
    net::Netns,
    wait::eventually,
    world::{World, WorldPlan},
};

use crate::alone;

#[path = "bad_input/control.rs"]
mod control;
#[path = "bad_input/peers.rs"]
mod peers;
#[path = "bad_input/requests.rs"]
mod requests;

const MIB: u64 = 1 << 20;
const SEED: u64 = 0x5eed;

/// A listener, and how something that it knows begins.
struct Target {
    what: &'static str,
    from: Netns,
    to: SocketAddr,
    like: &'static [u8],
    /// A request that is left in the middle.
    half: &'static [u8],
    pid: u32,
}

fn targets(world: &mut World) -> Result<Vec<Target>> {
    let node = world.node("a1")?;
    let (inside, node_pid) = (node.ns.clone(), node.shoal()?.pid());
    let peer = world.net.namespace("a2")?;
    let control = world.control()?;
    let control_pid = control.pid();
    let control_inside = world.net.namespace("control")?;
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let http: (&[u8], &[u8]) = (b"GET /v2/ HTTP/1.1\r\nhost: ", b"GET /v2/ HTTP/1.1\r\nho");
    let grpc: (&[u8], &[u8]) = (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"PRI * HTT");
    let target = |what, from: &Netns, to, (like, half), pid| Target { what, from: from.clone(), to, like, half, pid };
    Ok(vec![
        target("node mirror", &inside, loopback(5080), http, node_pid),
        target("node peer", &peer, SocketAddr::from((Ipv4Addr::new(10, 77, 1, 1), 5081)), (b"SHOL", b"SH"), node_pid),
        target("node admin", &inside, loopback(5082), http, node_pid),
        target("control grpc", &control_inside, loopback(6080), grpc, control_pid),
        target("control rest", &control_inside, SocketAddr::from((control_inside.address, 6081)), http, control_pid),
    ])
}

fn descriptors(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd")).context("read descriptors")?.count())
}

#[test]
fn random_bytes_and_half_requests_leave_no_growth_and_no_descriptor() {
    alone(async {
        let mut world = World::start(WorldPlan { origin_rate: None, ..WorldPlan::two_clusters().only(2) }).await?;
        let image = Image::obtain(&Plan::small())?;
        world.registry.push(&image, "lab/before", "1").await?;
        world.registry.push(&image, "lab/after", "1").await?;
        world.start_nodes().await?;
        world.node("a1")?.pull("lab/before", "1", &image).await?;
        println!(
            "listener       connections  answered  closed  half open  ended by it  descriptors   memory of its own"
        );
        for target in targets(&mut world)? {
            // The first connections make buffers that stay; growth is what comes after them.
            random_bytes(&target.from, target.to, 200, SEED, target.like).await?;
            let (files, memory) = (descriptors(target.pid)?, own_now(target.pid)?);
            let poured = random_bytes(&target.from, target.to, 10_000, SEED + 1, target.like).await?;
            ensure!(poured.hung == 0, "{}: {poured:?}", target.what);
            let half = HalfOpen::open(&target.from, target.to, 1000, target.half).await?;
            let held = descriptors(target.pid)?;
            // Whoever asks properly meanwhile is served.
            let since = Instant::now();
            answers(&mut world).await.with_context(|| format!("{} with 1,000 half connections", target.what))?;
            let answered = since.elapsed();
            let left = half.left_after(Duration::from_secs(40)).await?;
            ensure!(left == 0, "{}: {left} half connections were never ended", target.what);
            let now = eventually(Duration::from_secs(20), "descriptors to come back", || async {
                let now = descriptors(target.pid)?;
                ensure!(now <= files + 4, "{}: {files} descriptors before, {now} after", target.what);
                Ok(now)
            })
            .await?;
            let after = own_now(target.pid)?;
            println!(
                "{:<13}  {:>11}  {:>8}  {:>6}  {:>9}  {:>11}  {files} > {held} > {now}  {:.1} > {:.1} MiB; others answered in {answered:?}",
                target.what,
                10_000,
                poured.answered,
                poured.closed,
                1000,
                1000 - left,
                memory as f64 / MIB as f64,
                after as f64 / MIB as f64,
            );
            ensure!(after < memory + 24 * MIB, "{}: {memory} bytes before, {after} after", target.what);
        }
        world.node("a2")?.pull("lab/after", "1", &image).await?;
        for node in ["a1", "a2"] {
            let peak = peak_without_files(world.node(node)?.shoal()?.pid())?;
            ensure!(peak < 96 * MIB, "{node}: {peak} bytes at most");
        }
        lab::aftermath::nobody_panicked(&mut world)
    });
}

/// Health of both daemons, the node's mirror, and control's list of nodes.
async fn answers(world: &mut World) -> Result<()> {
    let admin = world.node("a1")?.shoal()?.admin().clone();
    let asking = async {
        ensure!(admin.get("/readyz").await?.status == 200, "the node is not ready");
        let mirror =
            lab::http::Client::plain(&world.net.namespace("a1")?, SocketAddr::from((Ipv4Addr::LOCALHOST, 5080)));
        ensure!(mirror.get("/v2/").await?.status == 200, "the mirror does not answer");
        let nodes = world.control()?.nodes().await?;
        ensure!(nodes.iter().filter(|node| node.connected).count() == 2, "control lost a node: {nodes:?}");
        Ok(())
    };
    tokio::time::timeout(Duration::from_secs(10), asking).await.context("no answer within 10 s")?
}
