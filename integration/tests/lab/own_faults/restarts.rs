//! `shoal-node` is killed in the middle of a pull and started again at once: where containerd reads, and where a child reads.
use anyhow::{Context, ensure};
use lab::{faults::stage::Stage, registry::AccessLine};
use std::time::Duration;

use super::{MIB, SLACK, from_origin, from_peer, origin_read_at_most, whole};

const SESSIONS: &str = "shoal_control_sessions_total ";

pub(super) async fn play(stage: &mut Stage) {
    reading_side(stage).await;
    serving_side(stage).await;
}

async fn reading_side(stage: &mut Stage) {
    let fault = "shoal-node killed in the middle of a pull that it serves, and started again at once";
    let play = async |stage: &mut Stage| {
        let image = stage.fresh("restart-reading").await?;
        let watch = stage.watch().await?;
        let pulling = stage.pull("a1", &image)?;
        stage.fetched("a1", &watch, 8 * MIB, &pulling).await?;
        let killed = stage.world.registry.access_log()?.len();
        stage.world.node("a1")?.shoal()?.restart(false).await?;
        let seconds = pulling.end().await?;
        // containerd may have read the rest past us; whoever asks now gets what is here and what is missing.
        let reader = stage.world.reader("a1")?;
        for layer in &image.image.layers {
            reader.read(&image.repository, layer, Duration::ZERO).await.context("read a layer after the restart")?;
        }
        let largest = image.image.layers.iter().max_by_key(|layer| layer.size).context("an image has layers")?;
        let log = stage.world.registry.access_log()?;
        let ours = |line: &&AccessLine| {
            line.is_read() && line.agent.starts_with("shoal-node/") && line.digest() == Some(&largest.digest)
        };
        // The read that the kill broke off ends in the log after it, and it is the one that asked for the whole.
        let again: u64 =
            log.iter().skip(killed).filter(ours).filter(|line| line.status == 206).map(|line| line.bytes).sum();
        let wholes = log.iter().filter(ours).filter(|line| line.status == 200).count();
        ensure!(wholes == 1, "the largest layer was read whole {wholes} times");
        ensure!(again <= largest.size - MIB, "{again} of {} bytes were read again", largest.size);
        println!("    {again} of {} bytes of the largest layer were read after the restart", largest.size);
        stage.row(fault, &watch, from_origin("a1", seconds, ("a1", "store is open"), ("a1", SESSIONS))).await
    };
    stage.scene(fault, play).await;
}

async fn serving_side(stage: &mut Stage) {
    let fault = "parent killed in the middle of a blob, and started again at once";
    let play = async |stage: &mut Stage| {
        let image = stage.fresh("restart-serving").await?;
        whole(stage, "a1", &image).await?;
        let watch = stage.watch().await?;
        let pulling = stage.pull("a2", &image)?;
        stage.fetched("a2", &watch, 3 * MIB, &pulling).await?;
        stage.world.node("a1")?.shoal()?.restart(false).await?;
        let seconds = pulling.end().await?;
        super::all_through_us(stage, &watch)?;
        origin_read_at_most(stage, &watch, image.image.size() - 2 * MIB + SLACK)?;
        stage.row(fault, &watch, from_peer("a2", seconds, ("a1", "store is open"), ("a1", SESSIONS))).await
    };
    stage.scene(fault, play).await;
}
