//! A node that holds very many blobs starts as quickly as one that holds few, and control learns of all of them.
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    memory::own_now,
    node::ShoalNode,
    wait::eventually,
    world::{World, WorldPlan},
};
use sha2::{Digest as _, Sha256};
use shoal_proto::{Layout, PieceList};

use crate::alone;

const BLOBS: u64 = 100_000;

#[test]
fn a_hundred_thousand_held_blobs_are_ready_from_the_index_and_known_to_control() {
    alone(async {
        let mut world = World::start(WorldPlan { origin_rate: None, ..WorldPlan::two_clusters().only(1) }).await?;
        world.start_nodes().await?;
        let shoal = world.node("a1")?.shoal()?;
        shoal.stop(Duration::from_secs(40)).await;
        let began = Instant::now();
        fill(&shoal.state.join("store"))?;
        println!("{BLOBS} blobs were laid down in {:.1} s", began.elapsed().as_secs_f64());
        println!(
            "start                   ready after  processor time  sidecars read  store opened in  control knows all after     memory"
        );
        let mut ready = Vec::new();
        for start in ["without an index", "after kill -9", "after SIGTERM"] {
            let shoal = world.node("a1")?.shoal()?;
            if start == "after SIGTERM" {
                ensure!(shoal.stop(Duration::from_secs(40)).await, "it did not end by itself");
            } else {
                shoal.kill();
            }
            let lines = fs::read_to_string(shoal.log())?.lines().count();
            let began = Instant::now();
            shoal.start_again().await?;
            let (wall, processor) = (began.elapsed(), processor_time(shoal.pid())?);
            let read = sidecars_read(shoal).await?;
            let opened = opened_in(shoal.log(), lines)?;
            let control = world.control()?;
            eventually(Duration::from_secs(30), "control to know every blob", || async {
                let nodes = control.nodes().await?;
                let held = nodes.iter().find(|node| node.connected).map_or(0, |node| node.held_blobs);
                ensure!(held == BLOBS, "control knows of {held}");
                Ok(())
            })
            .await?;
            println!(
                "{start:22}  {:9.2} s  {:12.2} s  {read:13}  {opened:13.2} s  {:21.2} s  {:5} MiB",
                wall.as_secs_f64(),
                processor.as_secs_f64(),
                began.elapsed().as_secs_f64(),
                own_now(world.node("a1")?.shoal()?.pid())? >> 20
            );
            ready.push((read, processor));
        }
        let [(all, cold), warm @ ..] = ready.as_slice() else { unreachable!("three starts") };
        ensure!(*all == BLOBS, "without an index {all} sidecars were read");
        for (read, processor) in warm {
            ensure!(*read == 0, "{read} sidecars were read although the index knows them");
            // How long a second is differs by machine: what the same machine takes without an index is the measure.
            ensure!(
                *processor < cold.mul_f64(0.75),
                "{processor:?} of processors until ready, {cold:?} without an index"
            );
        }
        Ok(())
    });
}

/// Lays blobs down as a node would have left them: small ones, each with its right digest and its sidecar.
fn fill(store: &Path) -> Result<()> {
    for number in 0..BLOBS {
        let bytes = number.to_le_bytes();
        let name = hex::encode(Sha256::digest(bytes));
        let mut list = PieceList::new(Layout::of(bytes.len() as u64)?);
        list.set(0, PieceList::hash(&bytes))?;
        let root = list.root().context("the list is complete")?;
        // The format: node-proxy/src/store/sidecar.rs.
        let mut sidecar = b"shoal-h1".to_vec();
        sidecar.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        sidecar.extend_from_slice(&root);
        sidecar.extend_from_slice(b"\x03lab");
        let media_type = b"application/vnd.oci.image.layer.v1.tar+gzip";
        sidecar.extend_from_slice(&(media_type.len() as u16).to_le_bytes());
        sidecar.extend_from_slice(media_type);
        let sum = PieceList::hash(&sidecar);
        sidecar.extend_from_slice(&sum);
        sidecar.extend_from_slice(list.get(0).context("one hash")?);
        let path = store.join("held").join(&name[..2]).join(&name[2..]);
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
        fs::write(path.with_extension("list"), sidecar)?;
    }
    Ok(())
}

async fn sidecars_read(shoal: &ShoalNode) -> Result<u64> {
    let text = shoal.admin().get_text("/metrics").await?;
    let line = text.lines().find_map(|line| line.strip_prefix("shoal_store_sidecars_read_total "));
    line.and_then(|value| value.trim().parse().ok()).context("shoal_store_sidecars_read_total is not in /metrics")
}

/// What the daemon itself says of its last start, in seconds.
fn opened_in(log: &Path, after: usize) -> Result<f64> {
    let text = fs::read_to_string(log)?;
    let line =
        text.lines().skip(after).find(|line| line.contains("store is open")).context("the store never opened")?;
    let said: serde_json::Value = serde_json::from_str(line).context("the log is JSON")?;
    let seconds = said.pointer("/fields/seconds").or_else(|| said.get("seconds"));
    seconds.and_then(serde_json::Value::as_f64).with_context(|| format!("no seconds in {line}"))
}

/// Time of all processors that the process took so far.
fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("read the process's times")?;
    // The name may hold anything but ends at the last parenthesis; times are the 14th and 15th field of all.
    let (_, rest) = stat.rsplit_once(") ").context("a name in parentheses")?;
    let ticks: Vec<u64> = rest.split(' ').skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("ticks per second")?;
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 1000 / per_second.unsigned_abs()))
}
