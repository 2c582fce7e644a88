//! One copy on disk: what containerd stores and what we hold become one file; what containerd had before us is offered; what it
//! removes stays as cache, or goes; and what we hold can be lent to it.
use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{
    containerd::edition::Edition,
    disk::Disk,
    image::{Image, Plan},
    node::Node,
    registry,
    wait::eventually,
    world::{World, WorldPlan},
};

use crate::alone;

const REPOSITORY: &str = "lab/one-copy";
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);

async fn set(plan: WorldPlan, image: &Image) -> Result<World> {
    let mut world = World::start(plan).await?;
    world.registry.push(image, REPOSITORY, "1").await?;
    world.start_nodes().await?;
    Ok(world)
}

/// Where this node holds a blob.
fn ours(node: &mut Node, digest: &str) -> Result<PathBuf> {
    let hex = digest.trim_start_matches("sha256:");
    Ok(node.shoal()?.state.join("store/held").join(&hex[..2]).join(&hex[2..]))
}

fn theirs(node: &Node, digest: &str) -> PathBuf {
    node.containerd.content().join(digest.trim_start_matches("sha256:"))
}

/// Bytes that files take below these directories, each file once however many names it has.
fn on_disk(dirs: &[&Path]) -> Result<u64> {
    let mut files = HashMap::new();
    let mut left: Vec<PathBuf> = dirs.iter().map(|dir| dir.to_path_buf()).collect();
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                left.push(entry.path());
            } else {
                files.insert((meta.dev(), meta.ino()), meta.blocks() * 512);
            }
        }
    }
    Ok(files.into_values().sum())
}

/// 200 MiB for the newest containerd, a quarter of that for the others: the same happens, and CI waits for it.
fn image_for(edition: Edition) -> Result<Image> {
    let part = if edition == Edition::USUAL[0] { 20 * MIB } else { 5 * MIB };
    Image::obtain(&Plan::random(62_000, vec![6 * part, 3 * part, part]))
}

async fn again(node: &mut Node) -> Result<()> {
    ensure!(node.shoal()?.stop(SOON).await, "it did not end");
    node.shoal()?.start_again().await
}

async fn become_one(node: &mut Node, image: &Image) -> Result<()> {
    for blob in image.blobs() {
        let (ours, theirs) = (ours(node, &blob.digest)?, theirs(node, &blob.digest));
        eventually(SOON, "two copies to become one", || async {
            let (one, other) = (fs::metadata(&ours)?, fs::metadata(&theirs)?);
            ensure!((one.dev(), one.ino()) == (other.dev(), other.ino()), "{} is there twice", theirs.display());
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// What lies on disk is no more than the image, and little beside.
async fn lies_there_once(node: &mut Node, image: &Image) -> Result<f64> {
    become_one(node, image).await?;
    let whole = image.size() + image.manifest.len() as u64;
    let store = node.shoal()?.state.join("store");
    let content = node.containerd.content().ancestors().nth(2).context("the content store has a directory")?;
    let ratio = on_disk(&[&store, content])? as f64 / whole as f64;
    ensure!(ratio <= 1.02, "{ratio:.4} of the image lie on the disk");
    Ok(ratio)
}

#[test]
fn after_a_pull_an_image_lies_on_disk_once() {
    alone(async {
        for edition in Edition::from_env(&Edition::RELEASES)? {
            let image = image_for(edition)?;
            let mut world = set(WorldPlan { edition, ..WorldPlan::one_cluster(2) }, &image).await?;
            for node in ["a1", "a2"] {
                let node = world.node(node)?;
                node.pull(REPOSITORY, "1", &image).await?;
                let ratio = lies_there_once(node, &image).await?;
                println!("{edition}: {ratio:.4} of the image on the disk of {}", node.ns.name);
                let held = node.shoal()?.metric("shoal_store_held_bytes").await?;
                ensure!(held == 0.0, "{held} bytes count against the quota");
            }
            // What is shared is served, and outlives a restart of ours.
            let node = world.node("a1")?;
            again(node).await?;
            lies_there_once(node, &image).await?;
            removed_and_pulled_again(&mut world, &image).await.with_context(|| format!("containerd {edition}"))?;
        }
        Ok(())
    });
}

#[test]
fn after_a_pull_into_our_content_store_an_image_lies_on_disk_once() {
    alone(async {
        for edition in Edition::from_env(&Edition::RELEASES)? {
            let image = image_for(edition)?;
            let plan = WorldPlan { edition, ..WorldPlan::one_cluster(1) };
            let mut world = set(plan.with_setting("containerd.content", "\"plugin\""), &image).await?;
            let node = world.node("a1")?;
            node.pull(REPOSITORY, "1", &image).await?;
            let whole = image.size() + image.manifest.len() as u64;
            let (store, root) = (node.shoal()?.state.join("store"), node.containerd.certs().with_file_name("root"));
            let stock = root.join("io.containerd.content.v1.content");
            let dirs: Vec<&Path> = [store.as_path(), &stock].into_iter().filter(|dir| dir.is_dir()).collect();
            let ratio = on_disk(&dirs)? as f64 / whole as f64;
            println!("{edition}: {ratio:.4} of the image on the disk");
            ensure!(ratio <= 1.02, "{ratio:.4} of the image lie on the disk");
        }
        Ok(())
    });
}

/// What containerd removes stays as cache, and comes back from there.
async fn removed_and_pulled_again(world: &mut World, image: &Image) -> Result<()> {
    let whole = (image.size() + image.manifest.len() as u64) as f64;
    let reference = format!("{}/{REPOSITORY}:1", registry::HOST);
    let node = world.node("a1")?;
    node.containerd.puller().remove(&reference).await?;
    eventually(SOON, "what containerd removed to be ours alone", || async {
        let held = node.shoal_ref()?.metric("shoal_store_held_bytes").await?;
        ensure!(held == whole, "{held} of {whole} bytes");
        Ok(())
    })
    .await?;
    ensure!(!theirs(node, &image.layers[0].digest).exists(), "containerd has collected it");
    let before = node.shoal()?.bytes_by_source().await?;
    node.pull(REPOSITORY, "1", image).await?;
    let after = node.shoal()?.bytes_by_source().await?;
    ensure!(before == after, "it was there, and {before:?} became {after:?}");
    lies_there_once(node, image).await.map(drop)
}

/// Our state and containerd's are two file systems: nothing can be linked, and our own copy goes.
#[test]
fn on_two_file_systems_containerds_file_is_what_is_served_as_long_as_it_is_the_one_that_was_checked() {
    alone(async {
        let image = Image::obtain(&Plan::random(62_004, vec![9 * MIB, 2 * MIB, MIB]))?;
        let mut world = set(WorldPlan::one_cluster(2), &image).await?;
        let node = world.node("a1")?;
        node.shoal()?.move_to(|at| Disk::in_memory(at, 64 * MIB)).await?;
        node.pull(REPOSITORY, "1", &image).await?;
        for blob in image.blobs() {
            let (ours, theirs) = (ours(node, &blob.digest)?, theirs(node, &blob.digest));
            eventually(SOON, "a name that leads to containerd's file", || async {
                ensure!(fs::read_link(&ours)? == theirs, "{} leads elsewhere", ours.display());
                Ok(())
            })
            .await?;
        }
        let store = node.shoal()?.state.join("store");
        let content = node.containerd.content().ancestors().nth(2).context("the content store has a directory")?;
        let ratio = on_disk(&[&store, content])? as f64 / image.size() as f64;
        println!("{ratio:.4} of the image on two disks");
        ensure!(ratio <= 1.02, "{ratio:.4} of the image lie on two disks");
        again(node).await?;
        // Another file comes to the place of one of them, as long as it was.
        let (replaced, others) = image.layers.split_first().context("an image has layers")?;
        let path = theirs(node, &replaced.digest);
        let mut bytes = fs::read(&path)?;
        bytes[4 * MIB as usize] ^= 1;
        fs::remove_file(&path)?;
        fs::write(&path, bytes)?;
        // What is left is served to a peer; the other comes from the registry again, right to the byte.
        for blob in image.blobs() {
            world.reader("a2")?.read(REPOSITORY, blob, Duration::ZERO).await?;
        }
        let bytes = world.node("a2")?.shoal()?.bytes_by_source().await?;
        let kept: u64 = others.iter().map(|layer| layer.size).sum();
        ensure!(bytes["peer"] >= kept, "{bytes:?}, and the peer has {kept}");
        ensure!(bytes["origin"] == replaced.size, "{bytes:?} instead of {} from the registry", replaced.size);
        let log = fs::read_to_string(world.node("a1")?.shoal()?.log())?;
        ensure!(log.contains("another file is where its own was"), "the log says nothing of it");
        // What containerd removes is gone here too.
        let node = world.node("a1")?;
        node.containerd.puller().remove(&format!("{}/{REPOSITORY}:1", registry::HOST)).await?;
        eventually(SOON, "what containerd removed to be held no more", || async {
            let held = node.shoal_ref()?.metric("shoal_store_shared_bytes").await?;
            ensure!(held == 0.0, "{held} bytes");
            Ok(())
        })
        .await
    });
}

#[test]
fn what_containerd_had_before_us_is_offered_and_what_is_wrong_is_not() {
    alone(async {
        for edition in Edition::from_env(&Edition::RELEASES)? {
            had_before(edition).await.with_context(|| format!("containerd {edition}"))?;
        }
        Ok(())
    });
}

async fn had_before(edition: Edition) -> Result<()> {
    let image = Image::obtain(&Plan::random(62_001, vec![9 * MIB, 2 * MIB, MIB]))?;
    let mut world = set(WorldPlan { edition, ..WorldPlan::one_cluster(2) }, &image).await?;
    let node = world.node("a1")?;
    ensure!(node.shoal()?.stop(SOON).await, "it did not end");
    node.pull(REPOSITORY, "1", &image).await.context("a pull without us")?;
    // One of its files rots.
    let wrong = image.layers[2].digest.clone();
    let path = theirs(node, &wrong);
    let mut bytes = fs::read(&path)?;
    bytes[1000] ^= 1;
    fs::remove_file(&path)?;
    fs::write(&path, bytes)?;
    node.shoal()?.start_again().await?;
    let right: Vec<_> = image.blobs().filter(|blob| blob.digest != wrong).collect();
    // The manifest too.
    let adoptable = right.len() + 1;
    eventually(SOON, "containerd's blobs to be held", || async {
        let adopted = node.shoal_ref()?.metric("shoal_stock_adopted_blobs_total").await?;
        ensure!(adopted as usize == adoptable, "{adopted} of {adoptable}");
        let wrong = node.shoal_ref()?.metric("shoal_stock_wrong_blobs_total").await?;
        ensure!(wrong == 1.0, "{wrong} wrong ones");
        Ok(())
    })
    .await?;
    ensure!(!ours(node, &wrong)?.exists(), "what is wrong is held");
    let log = fs::read_to_string(node.shoal()?.log())?;
    ensure!(log.contains("has other bytes than the blob") && log.contains(&wrong), "the log does not name {wrong}");
    // The peer gets what a1 has, without a read of the registry.
    let before = world.registry.access_log()?.iter().filter(|line| line.is_read()).count();
    for blob in &right {
        world.reader("a2")?.read(REPOSITORY, blob, Duration::ZERO).await?;
    }
    let bytes = world.node("a2")?.shoal()?.bytes_by_source().await?;
    let whole: u64 = right.iter().map(|blob| blob.size).sum();
    ensure!(bytes["peer"] == whole, "{bytes:?} of {whole}");
    let after = world.registry.access_log()?.iter().filter(|line| line.is_read()).count();
    ensure!(after == before, "the registry was read {} times", after - before);
    // A wrong file is not read again by the next start.
    let node = world.node("a1")?;
    again(node).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let hashed = node.shoal()?.metric("shoal_stock_hashed_bytes_total").await?;
    ensure!(hashed == 0.0, "{hashed} bytes were hashed again");
    Ok(())
}

#[test]
fn what_containerd_removes_goes_at_once_when_it_is_to() {
    alone(async {
        let image = Image::obtain(&Plan::random(62_002, vec![3 * MIB, MIB]))?;
        let edition = "2.3".parse()?;
        let plan =
            WorldPlan { edition, ..WorldPlan::one_cluster(1) }.with_setting("containerd.removed", "\"withdraw\"");
        let mut world = set(plan, &image).await?;
        let node = world.node("a1")?;
        node.pull(REPOSITORY, "1", &image).await?;
        become_one(node, &image).await?;
        let reference = format!("{}/{REPOSITORY}:1", registry::HOST);
        node.containerd.puller().remove(&reference).await?;
        eventually(SOON, "what containerd removed to go", || async {
            let blobs = node.shoal_ref()?.metric("shoal_store_held_blobs").await?;
            ensure!(blobs == 0.0, "{blobs} are held");
            Ok(())
        })
        .await?;
        node.pull(REPOSITORY, "1", &image).await?;
        Ok(())
    });
}

#[test]
fn what_is_held_is_lent_to_containerd_which_takes_it_without_a_fetch() {
    alone(async {
        for edition in Edition::from_env(&Edition::RELEASES)? {
            lent(edition).await.with_context(|| format!("containerd {edition}"))?;
        }
        Ok(())
    });
}

async fn lent(edition: Edition) -> Result<()> {
    let image = Image::obtain(&Plan::random(62_003, vec![5 * MIB, MIB]))?;
    let plan = WorldPlan { edition, ..WorldPlan::one_cluster(1) }.with_setting("containerd.content_link", "true");
    let mut world = set(plan, &image).await?;
    for blob in image.blobs() {
        world.reader("a1")?.read(REPOSITORY, blob, Duration::ZERO).await?;
    }
    let node = world.node("a1")?;
    let blobs = image.layers.len() + 1;
    eventually(SOON, "blobs to be lent", || async {
        let lent = node.shoal_ref()?.metric("shoal_stock_lent_blobs_total").await?;
        ensure!(lent as usize == blobs, "{lent} of {blobs}");
        Ok(())
    })
    .await?;
    let given = async |node: &mut Node| node.shoal()?.metric("shoal_mirror_bytes_total{source=\"local\"}").await;
    let before = given(node).await?;
    node.pull(REPOSITORY, "1", &image).await?;
    let asked = given(node).await? - before;
    ensure!(asked <= image.manifest.len() as f64, "containerd fetched {asked} bytes of what was there");
    Ok(())
}
