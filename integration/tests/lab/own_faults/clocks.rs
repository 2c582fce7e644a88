//! Clocks are set by an hour, forward and back, in the middle of pulls and between them.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use lab::{
    clock::Clock,
    conditions::Conditions,
    faults::{Row, stage::Stage},
    wait::eventually,
};

use super::{MIB, all_through_us, from_origin, from_peer, origin_read_at_most, whole};

const HOUR: i64 = 3600;
const PEERS: &str = "shoal_blob_from_peers_bytes_total ";

pub(super) async fn play(stage: &mut Stage) {
    let fault = "every clock set an hour forward in the middle of a pull";
    stage.scene(fault, async |stage: &mut Stage| all_step(stage, fault, HOUR).await).await;
    let fault = "every clock set an hour back in the middle of a pull";
    stage.scene(fault, async |stage: &mut Stage| all_step(stage, fault, -HOUR).await).await;
    let fault = "clock set an hour back, and the node restarted while control is away";
    stage.scene(fault, async |stage: &mut Stage| back_and_restarted(stage, fault).await).await;
}

/// Starts control, a1 and a2 anew, each with a clock of its own.
async fn with_clocks(stage: &mut Stage) -> Result<[Clock; 3]> {
    let clocks = [stage.world.clock("control")?, stage.world.clock("a1")?, stage.world.clock("a2")?];
    let [control, nodes @ ..] = &clocks;
    let conditions = Conditions { clock: Some(control.clone()), ..Conditions::default() };
    stage.world.control()?.restart_under(conditions).await?;
    for (name, clock) in ["a1", "a2"].into_iter().zip(nodes) {
        // Every step of a pull says something then, with the time.
        let settings = vec!["telemetry.log=debug".to_owned()];
        let conditions = Conditions { clock: Some(clock.clone()), settings, ..Conditions::default() };
        stage.world.node(name)?.shoal()?.restart_under(conditions).await?;
    }
    stage.world.all_connected().await?;
    Ok(clocks)
}

fn set(clocks: &[Clock], ahead: i64) -> Result<()> {
    clocks.iter().try_for_each(|clock| clock.set(ahead))
}

/// Fails unless a node's log tells a time so far ahead of the machine's.
async fn tells(stage: &mut Stage, name: &str, ahead: i64) -> Result<()> {
    let shoal = stage.world.node(name)?.shoal()?;
    eventually(Duration::from_secs(5), "the log to tell the time that was set", || async {
        let off = shoal.said_last()? - SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        ensure!((off - ahead as f64).abs() < 60.0, "the log of {name} is {off:.0} s off instead of {ahead}");
        Ok(())
    })
    .await
}

/// The step comes while a1 reads the origin, and is taken back while a2 reads from a1.
async fn all_step(stage: &mut Stage, fault: &str, ahead: i64) -> Result<Row> {
    let clocks = with_clocks(stage).await?;
    let image = stage.fresh("clock").await?;
    let watch = stage.watch().await?;
    let pulling = stage.pull("a1", &image)?;
    stage.fetched("a1", &watch, 2 * MIB, &pulling).await?;
    set(&clocks, ahead)?;
    pulling.end().await.context("the pull from the origin")?;
    tells(stage, "a1", ahead).await?;
    all_through_us(stage, &watch)?;
    let watch = stage.watch().await?;
    let pulling = stage.pull("a2", &image)?;
    stage.fetched("a2", &watch, 2 * MIB, &pulling).await?;
    set(&clocks, 0)?;
    let seconds = pulling.end().await.context("the pull from a peer")?;
    tells(stage, "a2", 0).await?;
    all_through_us(stage, &watch)?;
    origin_read_at_most(stage, &watch, 0)?;
    stage.row(fault, &watch, from_peer("a2", seconds, ("a2", "parent serves"), ("a2", PEERS))).await
}

/// I4: the assignment on disk comes from the future, and is good all the same.
async fn back_and_restarted(stage: &mut Stage, fault: &str) -> Result<Row> {
    let clocks = with_clocks(stage).await?;
    set(&clocks, HOUR)?;
    // Assigned anew, so that what is on disk was written by the clock that is ahead.
    stage.world.node("a2")?.shoal()?.restart(true).await?;
    stage.world.all_connected().await?;
    tells(stage, "a2", HOUR).await?;
    let image = stage.fresh("clock-back").await?;
    stage.world.control()?.kill();
    set(&clocks, 0)?;
    let watch = stage.watch().await?;
    stage.world.node("a2")?.shoal()?.restart(true).await?;
    let debug = stage.world.node("a2")?.shoal()?.admin().get_text("/debug").await?;
    let debug: serde_json::Value = serde_json::from_str(&debug)?;
    ensure!(!debug["cluster"].is_null(), "a2 forgot its cluster: {debug}");
    let seconds = whole(stage, "a2", &image).await?;
    tells(stage, "a2", 0).await?;
    all_through_us(stage, &watch)?;
    let metric = ("a2", "shoal_blob_origin_reads_total{leave=\"NoControl\"} ");
    stage.row(fault, &watch, from_origin("a2", seconds, ("a2", "start from the last assignment"), metric)).await
}
