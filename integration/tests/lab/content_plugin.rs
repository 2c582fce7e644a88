//! shoal-node as containerd's content store: pulls, what is collected, kills in the middle of a pull, containerd's own suite, and
//! the way of blobs between the two stores.
use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{
    containerd::{RunningPull, edition::Edition, requests::exchanges},
    image::{Image, Plan},
    node::Node,
    process::run,
    registry, tools,
    wait::eventually,
    world::{World, WorldPlan},
};

use crate::alone;

const REPOSITORY: &str = "lab/content-plugin";
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

async fn set(edition: Edition, image: &Image, more: &[(&str, &str)]) -> Result<World> {
    let mut plan = WorldPlan { edition, ..WorldPlan::one_cluster(1) }.with_setting("containerd.content", "\"plugin\"");
    for (key, value) in more {
        plan = plan.with_setting(key, value);
    }
    let mut world = World::start(plan).await?;
    world.registry.push(image, REPOSITORY, "1").await?;
    world.start_nodes().await?;
    Ok(world)
}

fn name() -> String {
    format!("{}/{REPOSITORY}:1", registry::HOST)
}

/// Waits until a metric is what it should be.
async fn becomes(node: &Node, metric: &str, wanted: f64) -> Result<()> {
    eventually(SOON, metric, || async {
        let is = node.shoal_ref()?.metric(metric).await?;
        ensure!((is - wanted).abs() < 0.5, "{metric} is {is} instead of {wanted}");
        Ok(())
    })
    .await
}

/// How many blobs containerd has asked anybody for, by HTTP.
fn asked_for(node: &Node, image: &Image) -> Result<usize> {
    let log = fs::read_to_string(node.containerd.log())?;
    let is_blob = |path: &str| image.blobs().any(|blob| path.ends_with(&format!("/blobs/{}", blob.digest)));
    Ok(exchanges(&log).iter().filter(|exchange| is_blob(exchange.path())).count())
}

fn every_blob_is_there(node: &Node, image: &Image) -> Result<()> {
    for blob in image.blobs() {
        let file = node.containerd.blob(&blob.digest);
        ensure!(fs::metadata(&file).is_ok_and(|there| there.len() == blob.size), "{} is missing", file.display());
    }
    ensure!(node.containerd.held().is_empty(), "containerd keeps blobs by itself");
    Ok(())
}

#[test]
fn each_containerd_keeps_its_content_here() {
    alone(async {
        for edition in Edition::from_env(&Edition::RELEASES)? {
            pulls_collects_and_pulls_again(edition).await.with_context(|| edition.to_string())?;
        }
        Ok(())
    });
}

async fn pulls_collects_and_pulls_again(edition: Edition) -> Result<()> {
    let image = Image::obtain(&Plan::random(43_000, vec![8 * MIB, 3 * MIB, MIB]))?;
    let mut world = set(edition, &image, &[]).await?;
    let node = world.node("a1")?;
    node.pull(REPOSITORY, "1", &image).await?;
    every_blob_is_there(node, &image)?;
    // The manifest too.
    let blobs = (image.blobs().count() + 1) as f64;
    becomes(node, "shoal_content_compared", 1.0).await?;
    becomes(node, "shoal_store_claimed_blobs", blobs).await?;
    becomes(node, "shoal_content_missing_blobs", 0.0).await?;
    let first = asked_for(node, &image)?;
    ensure!(first > 0, "the first pull asked for no blob: the log is read wrongly");
    // It goes, by containerd's own GC, and stays here as cache.
    node.containerd.puller().remove(&name()).await?;
    becomes(node, "shoal_store_claimed_blobs", 0.0).await?;
    every_blob_is_there(node, &image)?;
    // A pull of what is held asks nobody for a blob.
    node.pull(REPOSITORY, "1", &image).await?;
    becomes(node, "shoal_store_claimed_blobs", blobs).await?;
    let again = asked_for(node, &image)? - first;
    ensure!(again == 0, "{again} blobs were asked for that are held");
    println!("{edition}: {first} requests for blobs at first, {again} when they were held");
    Ok(())
}

#[test]
fn a_kill_in_the_middle_of_a_pull_ends_in_a_finished_pull() {
    alone(async {
        let image = Image::obtain(&Plan::random(43_100, vec![48 * MIB, 16 * MIB]))?;
        let mut world = set(Edition::USUAL[0], &image, &[]).await?;
        let node = world.node("a1")?;
        for kill in 1..=3 {
            let pull = eventually(SOON, "a pull that writes", || writing(node, kill)).await?;
            node.shoal()?.kill();
            node.shoal()?.start_again().await?;
            drop(pull);
        }
        // As kubelet does: the same pull again.
        eventually(SOON, "the image to be pulled", || async { node.pull(REPOSITORY, "1", &image).await }).await?;
        every_blob_is_there(node, &image)?;
        becomes(node, "shoal_content_missing_blobs", 0.0).await
    });
}

/// A pull in the middle of writing a blob. containerd asks for its content store again about a second after it was gone; a pull
/// that came before ends with an error, and is begun again, as by kubelet.
async fn writing(node: &Node, kill: usize) -> Result<RunningPull> {
    let log = node.containerd.log().with_file_name(format!("pull-{kill}.log"));
    let mut pull = node.containerd.puller().start(&name(), &log)?;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let ingests = node.shoal_ref()?.state.join("store/ingests");
    let entries = fs::read_dir(&ingests).with_context(|| format!("read {}", ingests.display()))?;
    let files = entries.flatten().filter_map(|entry| fs::metadata(entry.path().join("data")).ok());
    let largest = files.map(|file| file.len()).max().unwrap_or(0);
    ensure!(pull.is_running() && largest > 0, "the largest ingest has {largest} bytes");
    println!("kill {kill}: {largest} bytes of the largest blob were written");
    Ok(pull)
}

#[test]
fn a_full_quota_never_breaks_an_image_that_containerd_knows() {
    alone(async {
        let image = Image::obtain(&Plan::random(43_200, vec![12 * MIB, 6 * MIB]))?;
        let mut world = set(Edition::USUAL[0], &image, &[("store.quota", "\"9MiB\"")]).await?;
        let others: Vec<Image> = (0..3)
            .map(|seed| Image::obtain(&Plan::random(43_201 + seed, vec![5 * MIB, 3 * MIB])))
            .collect::<Result<_>>()?;
        for (tag, other) in (2..).zip(&others) {
            world.registry.push(other, REPOSITORY, &tag.to_string()).await?;
        }
        let node = world.node("a1")?;
        node.pull(REPOSITORY, "1", &image).await?;
        let of = async |node: &mut Node, metric: &str| node.shoal()?.metric(metric).await;
        ensure!(of(node, "shoal_store_held_bytes").await? as u64 >= image.size(), "it goes beyond the quota");
        // Two more images that it knows, and one that goes and is cache: that one makes room, and no other does.
        for tag in 2..4 {
            node.pull(REPOSITORY, &tag.to_string(), &others[tag - 2]).await?;
        }
        node.containerd.puller().remove(&format!("{}/{REPOSITORY}:3", registry::HOST)).await?;
        let known = [&image, &others[0]];
        let blobs = known.iter().map(|image| image.blobs().count() + 1).sum::<usize>();
        becomes(node, "shoal_store_claimed_blobs", blobs as f64).await?;
        // What is read and not kept finds no room, and is given all the same.
        for blob in others[2].blobs() {
            world.reader("a1")?.read(REPOSITORY, blob, Duration::ZERO).await?;
        }
        let node = world.node("a1")?;
        known.iter().try_for_each(|image| every_blob_is_there(node, image))?;
        let gone = others[1].layers.iter().filter(|layer| !node.containerd.blob(&layer.digest).exists()).count();
        ensure!(gone == 2, "{gone} of 2 layers of an image that went made room");
        node.shoal()?.restart(true).await?;
        becomes(node, "shoal_content_compared", 1.0).await?;
        known.iter().try_for_each(|image| every_blob_is_there(node, image))?;
        let asked = asked_for(node, &image)? + asked_for(node, &others[0])?;
        for (tag, image) in ["1", "2"].into_iter().zip(known) {
            node.pull(REPOSITORY, tag, image).await?;
        }
        let again = asked_for(node, &image)? + asked_for(node, &others[0])? - asked;
        ensure!(again == 0, "{again} blobs of images that it knows were asked for again");
        Ok(())
    });
}

#[test]
fn containerds_own_suite_holds() {
    alone(async {
        let image = Image::obtain(&Plan::small())?;
        let mut world = set(Edition::USUAL[0], &image, &[]).await?;
        let node = world.node("a1")?;
        let suite = tools::content_suite()?;
        let said = run(Command::new(suite).arg("-test.v").env("SHOAL_CONTENT_SOCKET", node.content_socket()))?;
        let passed = said.lines().filter(|line| line.trim_start().starts_with("--- PASS: TestContent/")).count();
        ensure!(passed == 12, "{passed} of 12 cases passed:\n{said}");
        println!("{passed} cases of containerd's suite passed");
        Ok(())
    });
}
