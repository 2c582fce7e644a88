//! Daemons are asked to end while pulls run: listeners end, what runs ends well within the grace, then come FINs.
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use http::StatusCode;
use lab::{
    conditions::Conditions,
    containerd::edition::Edition,
    faults::{
        Row,
        stage::{Pulled, Stage, Usually, on_editions},
    },
    image::{Image, Plan},
    wait::eventually,
    world::WorldPlan,
};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::alone;

const MIB: u64 = 1 << 20;
const MIRROR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5080);
/// A restarted daemon counts from 0: this moved.
const SESSIONS: &str = "shoal_control_sessions_total ";
const ASKED: &str = "asked to end";

/// Ending with nothing to wait for; spans that are left are sent within 3 s.
const AT_ONCE: Duration = Duration::from_secs(4);

fn plan(edition: Edition) -> WorldPlan {
    WorldPlan { edition, node_rate: Some(40_000_000), ..WorldPlan::one_cluster(3) }
}

#[test]
fn pulls_end_well_while_daemons_are_asked_to_end() {
    alone(on_editions(&Edition::USUAL, plan, 0xd000, async |stage| {
        let fault = "shoal-node asked to end in the middle of a pull that it serves";
        stage.scene(fault, async |stage: &mut Stage| within_the_grace(stage, fault).await).await;
        let fault = "shoal-node asked to end, and its grace is too short for the pull";
        stage.scene(fault, async |stage: &mut Stage| beyond_the_grace(stage, fault).await).await;
        let fault = "parent asked to end in the middle of a blob";
        stage.scene(fault, async |stage: &mut Stage| parent_ends(stage, fault).await).await;
        let fault = "rolling restart of all nodes in the middle of a pull";
        stage.scene(fault, async |stage: &mut Stage| rolling(stage, fault).await).await;
        let fault = "control asked to end in the middle of a pull";
        stage.scene(fault, async |stage: &mut Stage| control_ends(stage, fault).await).await;
        let fault = "shoal-node asked to end with idle connections";
        stage.scene(fault, async |stage: &mut Stage| idle(stage, fault).await).await;
        let fault = "shoal-node asked to end twice";
        stage.scene(fault, async |stage: &mut Stage| twice(stage, fault).await).await;
        Ok(())
    }));
}

fn pulled<'a>(node: &'a str, seconds: f64, usually: Usually, log: &'a str, metric: &'a str) -> Pulled<'a> {
    Pulled { node, seconds, usually, log: (node, log), metric: (node, metric) }
}

/// Waits until a node that was asked to end says so: not ready, and nobody listens for containerd.
async fn drains(stage: &mut Stage, name: &str) -> Result<()> {
    let ns = stage.world.net.namespace(name)?;
    let shoal = stage.world.node(name)?.shoal()?;
    eventually(Duration::from_secs(2), "the node to say that it ends", || async {
        let answer = shoal.admin().get("/readyz").await?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        ensure!(answer.status == StatusCode::SERVICE_UNAVAILABLE, "/readyz says {}: {text}", answer.status);
        ensure!(text.contains(ASKED), "/readyz gives no reason: {text}");
        ensure!(ns.connect(MIRROR).await.is_err(), "the mirror still takes connections");
        Ok(())
    })
    .await
}

async fn within_the_grace(stage: &mut Stage, fault: &str) -> Result<Row> {
    let image = stage.fresh("drain").await?;
    let watch = stage.watch().await?;
    let pulling = stage.pull("a1", &image)?;
    stage.fetched("a1", &watch, 3 * MIB, &pulling).await?;
    stage.world.node("a1")?.shoal()?.signal(Signal::SIGTERM)?;
    drains(stage, "a1").await?;
    ensure!(!pulling.is_over(), "the pull was over before the node had ended");
    stage.world.node("a1")?.shoal()?.ended(Duration::from_secs(32)).await?;
    let seconds = pulling.end().await?;
    if let Ok(line) = watch.line(("a1", "cut a body short")) {
        bail!("an answer was broken off within the grace: {line}");
    }
    watch.line(("a1", "\"ended\"")).context("it was killed instead of ending")?;
    stage.world.node("a1")?.shoal()?.start_again().await?;
    stage.row(fault, &watch, pulled("a1", seconds, Usually::Origin, ASKED, SESSIONS)).await
}

async fn beyond_the_grace(stage: &mut Stage, fault: &str) -> Result<Row> {
    let image = stage.fresh("drain-short").await?;
    let conditions = Conditions { settings: vec!["grace=500ms".to_owned()], ..Conditions::default() };
    stage.world.node("a1")?.shoal()?.restart_under(conditions).await?;
    stage.world.all_connected().await?;
    let watch = stage.watch().await?;
    let pulling = stage.pull("a1", &image)?;
    stage.fetched("a1", &watch, 2 * MIB, &pulling).await?;
    let shoal = stage.world.node("a1")?.shoal()?;
    shoal.signal(Signal::SIGTERM)?;
    shoal.ended(Duration::from_millis(1500) + AT_ONCE).await?;
    ensure!(!pulling.is_over(), "the pull was over before the grace was");
    shoal.start_again().await?;
    // A FIN, not a reset: containerd goes on with a Range. With a reset its pull would fail.
    let seconds = pulling.end().await?;
    let log = "requests still ran at the end of the grace";
    stage.row(fault, &watch, pulled("a1", seconds, Usually::Origin, log, SESSIONS)).await
}

/// Its child is sent elsewhere before it ends, and loses nothing by it.
async fn parent_ends(stage: &mut Stage, fault: &str) -> Result<Row> {
    let image = stage.fresh("drain-parent").await?;
    stage.pull("a1", &image)?.end().await?;
    let watch = stage.watch().await?;
    let pulling = stage.pull("a2", &image)?;
    stage.fetched("a2", &watch, 3 * MIB, &pulling).await?;
    let since = Instant::now();
    let shoal = stage.world.node("a1")?.shoal()?;
    shoal.signal(Signal::SIGTERM)?;
    // Its child is told of others at once, and leaves.
    shoal.ended(AT_ONCE).await?;
    println!("    the parent had ended after {:.2?}", since.elapsed());
    let seconds = pulling.end().await?;
    ensure!(watch.past_us(&stage.world)? == 0, "containerd went past us");
    let read = watch.origin_bytes(&stage.world)?;
    ensure!(read < image.image.size() - 2 * MIB, "{read} bytes were read again");
    stage.world.node("a1")?.shoal()?.start_again().await?;
    let log = ("a1", ASKED);
    let metric = ("a2", "shoal_blob_origin_reads_total{leave=\"Permit\"} ");
    stage.row(fault, &watch, Pulled { node: "a2", seconds, usually: Usually::Peer, log, metric }).await
}

async fn rolling(stage: &mut Stage, fault: &str) -> Result<Row> {
    let image = stage.fresh("drain-rolling").await?;
    stage.pull("a1", &image)?.end().await?;
    let watch = stage.watch().await?;
    let pulling = stage.pull("a2", &image)?;
    stage.fetched("a2", &watch, MIB, &pulling).await?;
    for name in ["a1", "a2", "a3"] {
        let shoal = stage.world.node(name)?.shoal()?;
        ensure!(shoal.stop(Duration::from_secs(36)).await, "{name} had to be killed");
        shoal.start_again().await?;
    }
    let seconds = pulling.end().await?;
    stage.world.all_connected().await?;
    stage.row(fault, &watch, pulled("a2", seconds, Usually::Peer, ASKED, SESSIONS)).await
}

async fn control_ends(stage: &mut Stage, fault: &str) -> Result<Row> {
    let image = stage.fresh("drain-control").await?;
    let watch = stage.watch().await?;
    let pulling = stage.pull("a1", &image)?;
    stage.fetched("a1", &watch, 2 * MIB, &pulling).await?;
    let since = Instant::now();
    ensure!(stage.world.control()?.stop(Duration::from_secs(10)).await, "control had to be killed");
    println!("    control had ended after {:.2?}", since.elapsed());
    ensure!(since.elapsed() < AT_ONCE, "control took {:?} to end", since.elapsed());
    let seconds = pulling.end().await?;
    ensure!(watch.past_us(&stage.world)? == 0, "containerd went past us");
    let read = watch.origin_bytes(&stage.world)?;
    ensure!(read < image.image.size() + MIB, "{read} bytes were read of the origin");
    let metric = ("a1", "shoal_control_finds_failed_total ");
    let log = ("control", ASKED);
    stage.row(fault, &watch, Pulled { node: "a1", seconds, usually: Usually::Origin, log, metric }).await
}

/// A request on a connection that is then kept: the answer's first bytes.
async fn keep_alive(stage: &mut Stage, name: &str) -> Result<tokio::net::TcpStream> {
    let mut stream = stage.world.net.namespace(name)?.connect(MIRROR).await?;
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nhost: mirror\r\n\r\n").await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    ensure!(&answer == b"HTTP/1.1 200", "the mirror answered {:?}", String::from_utf8_lossy(&answer));
    Ok(stream)
}

async fn idle(stage: &mut Stage, fault: &str) -> Result<Row> {
    // a2 keeps its connections to a1, containerd and another client theirs to the mirror of a1.
    let image = stage.fresh("drain-idle").await?;
    stage.pull("a1", &image)?.end().await?;
    stage.pull("a2", &image)?.end().await?;
    let mut kept = keep_alive(stage, "a1").await?;
    let watch = stage.watch().await?;
    let since = Instant::now();
    let shoal = stage.world.node("a1")?.shoal()?;
    shoal.signal(Signal::SIGTERM)?;
    shoal.ended(AT_ONCE).await?;
    let took = since.elapsed();
    let mut rest = Vec::new();
    kept.read_to_end(&mut rest).await.context("the idle connection was reset")?;
    stage.world.node("a1")?.shoal()?.start_again().await?;
    let next = stage.fresh("drain-idle").await?;
    let seconds = stage.pull("a1", &next)?.end().await?;
    let row = stage.row(fault, &watch, pulled("a1", seconds, Usually::Origin, ASKED, SESSIONS)).await?;
    println!("    the node had ended after {took:.2?}");
    Ok(row)
}

/// Larger than what the kernel's buffers take of an answer that nobody reads.
const UNREAD: u64 = 32 * MIB;

async fn twice(stage: &mut Stage, fault: &str) -> Result<Row> {
    let large = Image::obtain(&Plan::random(0xd100, vec![UNREAD]))?;
    stage.world.registry.push(&large, "lab/drain-twice", "1").await?;
    let watch = stage.watch().await?;
    let reader = stage.world.reader("a1")?;
    let layer = large.layers[0].clone();
    // So slow that it outlasts any patience.
    let slow = tokio::spawn(async move { reader.read("lab/drain-twice", &layer, Duration::from_secs(1)).await });
    stage.moved("a1", &watch, MIB).await?;
    stage.world.node("a1")?.shoal()?.signal(Signal::SIGTERM)?;
    drains(stage, "a1").await?;
    let shoal = stage.world.node("a1")?.shoal()?;
    let since = Instant::now();
    shoal.signal(Signal::SIGTERM)?;
    shoal.ended(AT_ONCE).await?;
    println!("    ended {:.2?} after it was asked again", since.elapsed());
    ensure!(slow.await?.is_err(), "the slow reader got everything: it was no reason to wait");
    shoal.start_again().await?;
    let next = stage.fresh("drain-twice").await?;
    let seconds = stage.pull("a1", &next)?.end().await?;
    stage.row(fault, &watch, pulled("a1", seconds, Usually::Origin, "asked again", SESSIONS)).await
}
