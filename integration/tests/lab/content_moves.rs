//! Blobs on their way between containerd's own store and shoal-node's: no image is lost, whichever way, however often.
use std::{
    collections::BTreeSet,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{
    containerd::{Kept, edition::Edition},
    image::{Image, Plan},
    node::Node,
    process::output,
    registry,
    world::{World, WorldPlan},
};

use crate::alone;

const REPOSITORY: &str = "lab/content-moves";
const MIB: u64 = 1 << 20;
const GRACE: Duration = Duration::from_secs(20);

fn name(tag: &str) -> String {
    format!("{}/{REPOSITORY}:{tag}", registry::HOST)
}

/// What `shoal-node content` is called with here.
fn content(node: &Node, what: &str) -> Result<Command> {
    let shoal = node.shoal_ref()?;
    let mut command = shoal.command(&["content", what, "--root"]);
    command.arg(node.containerd.root()).arg("--config").arg(shoal.config());
    Ok(command)
}

async fn ends(mut command: Command) -> Result<String> {
    let done = tokio::task::spawn_blocking(move || output(&mut command)).await??;
    let said = [done.stdout.as_slice(), &done.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(done.status.success(), "{said}");
    Ok(said)
}

/// Both daemons end, blobs are moved, one attempt is killed before its end, and both come up again.
async fn moves(node: &mut Node, what: &str, settings: &[(&str, &str)], kept: Kept) -> Result<()> {
    ensure!(node.containerd.stop(GRACE).await, "containerd did not end");
    ensure!(node.shoal()?.stop(GRACE).await, "shoal-node did not end");
    // Interrupted, at whatever it has come to.
    for wait in [3, 9, 27] {
        let mut moving = content(node, what)?;
        let mut moving = moving.stdout(Stdio::null()).spawn().context("start a move")?;
        tokio::time::sleep(Duration::from_millis(wait)).await;
        moving.kill().context("kill a move")?;
        moving.wait().context("wait for a move")?;
    }
    let whole = ends(content(node, what)?).await?;
    println!("{}", whole.lines().find(|line| line.contains(" blobs: ")).context("no word of what was done")?);
    let again = ends(content(node, what)?).await?;
    ensure!(again.contains(" 0 bytes linked, 0 copied"), "a second {what} did something: {again}");
    node.containerd.keep_in(kept)?;
    node.shoal()?.restart_with(settings).await?;
    node.containerd.restart().await
}

/// containerd has these images whole, and starts no fetch for them.
async fn has(node: &Node, tags: &[(&str, &Image)]) -> Result<()> {
    let ctr = node.containerd.ctr(node.containerd.socket());
    let said = ctr.text(&["images", "check"]).await?;
    let complete: BTreeSet<&str> = said
        .lines()
        .filter(|line| line.contains(" complete ") || line.contains("\tcomplete ") || line.contains("complete ("))
        .filter(|line| !line.contains("incomplete"))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    for (tag, image) in tags {
        ensure!(complete.contains(name(tag).as_str()), "{} is not whole:\n{said}", name(tag));
        for blob in image.blobs() {
            let got = ctr.run(&["content", "get", &blob.digest]).await?;
            ensure!(got == std::fs::read(&blob.file)?, "{} has other bytes", blob.digest);
        }
    }
    Ok(())
}

#[test]
fn images_move_into_our_store_and_back() {
    alone(async {
        for edition in Edition::from_env(&Edition::RELEASES)? {
            there_and_back(edition).await.with_context(|| format!("containerd {edition}"))?;
        }
        Ok(())
    });
}

async fn there_and_back(edition: Edition) -> Result<()> {
    let before = Image::obtain(&Plan::random(45_000, vec![20 * MIB, 5 * MIB, MIB]))?;
    let after = Image::obtain(&Plan::random(45_001, vec![4 * MIB, MIB]))?;
    let mut world = World::start(WorldPlan { edition, ..WorldPlan::one_cluster(1) }).await?;
    for (tag, image) in [("1", &before), ("2", &after)] {
        world.registry.push(image, REPOSITORY, tag).await?;
    }
    world.start_nodes().await?;
    let node = world.node("a1")?;
    // Before we came.
    ensure!(node.shoal()?.stop(GRACE).await, "shoal-node did not end");
    node.pull(REPOSITORY, "1", &before).await?;
    let plugin = node.by_plugin()?;
    moves(node, "adopt", &[("containerd.content", "\"plugin\"")], plugin).await.context("into our store")?;
    has(node, &[("1", &before)]).await.context("in our store")?;
    let fetched = node.shoal()?.bytes_by_source().await?;
    node.pull(REPOSITORY, "1", &before).await?;
    ensure!(node.shoal()?.bytes_by_source().await? == fetched, "something was fetched again");
    node.pull(REPOSITORY, "2", &after).await?;
    moves(node, "release", &[("containerd.content", "\"stock\"")], Kept::Stock).await.context("back")?;
    has(node, &[("1", &before), ("2", &after)]).await.context("back in containerd's store")?;
    for (tag, image) in [("1", &before), ("2", &after)] {
        node.pull(REPOSITORY, tag, image).await?;
    }
    println!("{edition}: there and back");
    Ok(())
}
