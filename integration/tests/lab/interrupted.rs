//! Pulls that are broken off on containerd's side, and repeated: they end well, and what was here is not read again.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{
    faults::{
        Row,
        stage::{Fresh, Pulled, Stage, Usually, Watch},
    },
    registry::reads_by_digest,
    wait::eventually,
};

use crate::answers::is_later_part;

const MIB: u64 = 1 << 20;
/// More than the second largest layer has: whoever wrote so much is in the middle of the largest.
const MOST_OF_A_LAYER: u64 = 3 * MIB + MIB / 4;
const KILLED: &str = "containerd killed in the middle of a pull, and the pull repeated";
const STOPPED: &str = "containerd stopped in the middle of a pull, and the pull repeated";
const INTERRUPTED: &str = "crictl interrupted in the middle of a pull, and the pull repeated";
const LEFT: &str = "crictl interrupted, and the pull repeated when its flights had been given up";

/// How long flights go on that nobody waits for.
const LINGER: Duration = Duration::from_secs(30);

/// All scenes, on `a2`, whose shaped link lets a pull be hit in its middle.
pub(crate) async fn play(stage: &mut Stage) {
    stage.scene(KILLED, async |stage| broken_off(stage, KILLED, Breaking::Kill).await).await;
    stage.scene(STOPPED, async |stage| broken_off(stage, STOPPED, Breaking::Stop).await).await;
    stage.scene(INTERRUPTED, async |stage| broken_off(stage, INTERRUPTED, Breaking::Interrupt).await).await;
    stage.long_scene(LEFT, given_up).await;
}

/// What breaks the pull.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Breaking {
    Kill,
    Stop,
    Interrupt,
}

async fn broken_off(stage: &mut Stage, fault: &str, breaking: Breaking) -> Result<Row> {
    let image = stage.fresh("broken-off").await?;
    let watch = stage.watch().await?;
    begin_and_break(stage, &image, (&watch, MOST_OF_A_LAYER), breaking).await?;
    let seconds = stage.pull("a2", &image)?.end().await?;
    read_once_and_by_us(stage, &image, &watch)?;
    let asked = watch.exchanges("a2")?;
    let at_us = asked.iter().filter(|one| one.at_us() && one.answer.is_some());
    for one in at_us.clone() {
        let status = if is_later_part(one) { 206 } else { 200 };
        ensure!(one.status() == Some(status), "{one:?}");
    }
    if breaking == Breaking::Kill {
        // What containerd kept of a layer it does not ask for again: the rest comes by Range, from us; with a buffer in chunks,
        // each an open range of which the start is read (CONTAINERD 18).
        let chunks = at_us.filter(|one| is_later_part(one)).count();
        let wanted = if stage.world.plan().edition.buffer { 2 } else { 1 };
        ensure!(chunks >= wanted, "containerd did not go on where it was: {asked:?}");
    }
    no_flights(stage, Duration::from_secs(5)).await?;
    stage.row(fault, &watch, pulled(seconds)).await
}

fn pulled(seconds: f64) -> Pulled<'static> {
    let metric = ("a2", "shoal_blob_from_origin_bytes_total ");
    Pulled { node: "a2", seconds, usually: Usually::Origin, log: ("a2", ""), metric }
}

/// Starts a pull with `crictl` and breaks it when containerd has written so much of a blob.
async fn begin_and_break(
    stage: &mut Stage,
    image: &Fresh,
    (watch, written): (&Watch, u64),
    breaking: Breaking,
) -> Result<()> {
    let log = stage.world.dirs.state.join("crictl.log");
    let node = stage.world.node("a2")?;
    let mut crictl = node.containerd.puller().start(&image.name(), &log)?;
    stage.moved("a2", watch, written).await?;
    let containerd = &stage.world.node("a2")?.containerd;
    let writes = eventually(Duration::from_secs(20), "containerd to write", || async {
        let bytes = containerd.ingesting();
        ensure!(bytes >= written, "{bytes} bytes so far");
        Ok(())
    });
    writes.await?;
    ensure!(crictl.is_running(), "the pull was over before it was broken");
    let containerd = &mut stage.world.node("a2")?.containerd;
    match breaking {
        Breaking::Kill => containerd.kill(),
        Breaking::Stop => ensure!(containerd.stop(Duration::from_secs(10)).await, "containerd did not end by itself"),
        Breaking::Interrupt => crictl.interrupt()?,
    }
    crictl.ended().await?;
    containerd.revive().await
}

/// Every blob was read from the origin by one node of ours, each byte once, and nothing went past us.
fn read_once_and_by_us(stage: &Stage, image: &Fresh, watch: &Watch) -> Result<()> {
    let past = watch.past_us(&stage.world)?;
    ensure!(past == 0, "{past} bytes came from the registry past us");
    let log = stage.world.registry.access_log()?;
    let reads = reads_by_digest(&log, |address| stage.world.name_of(address));
    for blob in image.image.blobs() {
        let by_node = reads.get(&blob.digest).with_context(|| format!("nobody read {}", blob.digest))?;
        let read: u64 = by_node.values().map(|reads| reads.bytes).sum();
        ensure!(by_node.len() == 1 && read == blob.size, "{} bytes of {} were read: {by_node:?}", read, blob.size);
    }
    Ok(())
}

async fn no_flights(stage: &mut Stage, within: Duration) -> Result<()> {
    let admin = stage.world.node("a2")?.shoal()?.admin().clone();
    eventually(within, "flights to end", || async {
        let metrics = admin.get_text("/metrics").await?;
        let flights = metrics.lines().find_map(|line| line.strip_prefix("shoal_blob_flights "));
        ensure!(flights.map(str::trim) == Some("0"), "{flights:?} flights");
        Ok(())
    })
    .await
}

/// The origin is so slow that the flights of the pull that was broken off are given up before they have everything.
async fn given_up(stage: &mut Stage) -> Result<Row> {
    let rate = stage.world.plan().origin_rate.context("the origin's link is not shaped")?;
    let image = stage.fresh("given-up").await?;
    let watch = stage.watch().await?;
    stage.world.net.reshape("registry", 1_600_000)?;
    // As the node counts: of a body that was given up the registry also counts what never left its socket.
    let before = fetched(stage).await?;
    begin_and_break(stage, &image, (&watch, MIB / 4), Breaking::Interrupt).await?;
    no_flights(stage, LINGER + Duration::from_secs(10)).await?;
    let read = fetched(stage).await? - before;
    stage.world.net.reshape("registry", rate)?;
    ensure!(read < image.image.size(), "everything was here before it was given up: {read} bytes");
    let seconds = stage.pull("a2", &image)?.end().await?;
    let twice = (fetched(stage).await? - before).saturating_sub(image.image.size() + image.image.manifest.len() as u64);
    // A block that had begun is begun again, for each of the blobs.
    let allowed = (image.image.layers.len() as u64 + 1) * (256 << 10);
    println!("    {read} bytes were here when it was given up; {twice} were read twice");
    ensure!(twice <= allowed, "{twice} bytes were read twice");
    stage.row(LEFT, &watch, pulled(seconds)).await
}

/// Bytes that the node has read so far, from wherever.
async fn fetched(stage: &mut Stage) -> Result<u64> {
    Ok(stage.world.node("a2")?.shoal()?.bytes_by_source().await?.values().sum())
}
