//! shoal-node as containerd's content store when something dies or is full: nothing that was answered is lost, no reference stays
//! locked, and every refusal has its code. The store is asked as containerd asks it.
use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{
    containerd::content::{ContentStore, Writer},
    disk::Disk,
    image::{Image, Plan},
    node::Node,
    registry,
    wait::eventually,
    world::{World, WorldPlan},
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use sha2::{Digest as _, Sha256};
use tonic::Code;

use crate::alone;

const REPOSITORY: &str = "lab/content-faults";
const MIB: usize = 1 << 20;
const CHUNK: usize = 256 << 10;
const SOON: Duration = Duration::from_secs(20);

async fn set(image: Option<&Image>) -> Result<World> {
    let plan = WorldPlan::one_cluster(1).with_setting("containerd.content", "\"plugin\"");
    // As on a disk of a usual size, beside one of 48 MiB.
    let plan = plan.with_setting("store.reserve", "\"1MiB\"");
    // Slow enough to be in the middle of a pull.
    let mut world = World::start(WorldPlan { origin_rate: Some(128_000_000), ..plan }).await?;
    if let Some(image) = image {
        world.registry.push(image, REPOSITORY, "1").await?;
    }
    world.start_nodes().await?;
    Ok(world)
}

fn name(tag: &str) -> String {
    format!("{}/{REPOSITORY}:{tag}", registry::HOST)
}

/// Bytes that nobody else writes, and their digest.
fn bytes(seed: u64, len: usize) -> (Vec<u8>, String) {
    let mut bytes = vec![0; len];
    SmallRng::seed_from_u64(seed).fill(&mut bytes[..]);
    let digest = digest_of(&bytes);
    (bytes, digest)
}

fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

async fn writes(writer: &mut Writer, bytes: &[u8], from: usize, to: usize) -> Result<()> {
    for at in (from..to).step_by(CHUNK) {
        let end = (at + CHUNK).min(to);
        let said = writer.write(at, &bytes[at..end]).await?;
        ensure!(said.offset == end as i64, "{} of {end} bytes", said.offset);
    }
    Ok(())
}

/// The writer of a reference, as soon as it can be had.
async fn writer_of(node: &Node, reference: &str, total: usize) -> Result<(Writer, usize)> {
    eventually(SOON, "to write on", || async {
        let mut store = ContentStore::connect(&node.content_socket()).await?;
        let mut writer = store.writer().await?;
        let said = writer.stat(reference, total as i64).await?;
        Ok((writer, usize::try_from(said.offset)?))
    })
    .await
}

async fn is_there(node: &Node, digest: &str, bytes: &[u8]) -> Result<()> {
    let mut store = ContentStore::connect(&node.content_socket()).await?;
    let info = store.info(digest).await?;
    ensure!(info.size == bytes.len() as i64, "{info:?}");
    ensure!(store.read(digest, 0, 0).await? == bytes, "other bytes than were written");
    Ok(())
}

/// As many as come in some 20 s; the delays of the kills are spread over what a write or a commit takes.
const KILLS: u64 = 12;

#[test]
fn a_kill_while_a_blob_is_written_loses_nothing_that_was_answered() {
    alone(async {
        let mut world = set(None).await?;
        let node = world.node("a1")?;
        for kill in 0..KILLS {
            let (bytes, digest) = bytes(kill, 3 * MIB + 17);
            let reference = format!("default/1/layer-{digest}");
            let answered = CHUNK * usize::try_from(kill)?;
            let (mut writer, offset) = writer_of(node, &reference, bytes.len()).await?;
            ensure!(offset == 0, "a new reference begins at {offset}");
            writes(&mut writer, &bytes, 0, answered).await?;
            // The next one is on its way.
            let next = bytes[answered..answered + CHUNK].to_vec();
            let going = tokio::spawn(async move { writer.write(answered, &next).await });
            tokio::time::sleep(Duration::from_micros(kill * 150)).await;
            node.shoal()?.kill();
            let last = going.await?;
            node.shoal()?.start_again().await?;
            let (mut writer, offset) = writer_of(node, &reference, bytes.len()).await?;
            let least = if last.is_ok() { answered + CHUNK } else { answered };
            ensure!((least..=answered + CHUNK).contains(&offset), "{offset} bytes after a kill, {least} were answered");
            let said = writer.stat(&reference, 0).await?;
            ensure!(said.digest == digest_of(&bytes[..offset]), "other bytes are there than were written");
            writes(&mut writer, &bytes, offset, bytes.len()).await?;
            let said = writer.say(Writer::commit_of(&digest, bytes.len() as i64)).await?;
            ensure!(said.digest == digest, "{said:?}");
            is_there(node, &digest, &bytes).await?;
        }
        Ok(())
    });
}

#[test]
fn a_kill_in_a_commit_leaves_the_blob_or_all_that_was_written_of_it() {
    alone(async {
        let mut world = set(None).await?;
        let node = world.node("a1")?;
        let (mut answered, mut held, mut open) = (0, 0, 0);
        for kill in 0..KILLS {
            let (bytes, digest) = bytes(100 + kill, 2 * MIB + 5);
            let reference = format!("default/1/layer-{digest}");
            let (mut writer, _) = writer_of(node, &reference, bytes.len()).await?;
            writes(&mut writer, &bytes, 0, bytes.len()).await?;
            let commit = Writer::commit_of(&digest, bytes.len() as i64);
            let going = tokio::spawn(async move { writer.say(commit).await });
            tokio::time::sleep(Duration::from_micros(kill * 250)).await;
            node.shoal()?.kill();
            let said = going.await?;
            node.shoal()?.start_again().await?;
            let there = ContentStore::connect(&node.content_socket()).await?.info(&digest).await;
            match (said, there) {
                (Ok(_), there) => {
                    there.context("a commit that was answered is lost")?;
                    answered += 1;
                }
                (Err(_), Ok(_)) => held += 1,
                (Err(_), Err(refused)) => {
                    ensure!(refused.code() == Code::NotFound, "{refused:?}");
                    let (mut writer, offset) = writer_of(node, &reference, bytes.len()).await?;
                    ensure!(offset == bytes.len(), "{offset} bytes of what was to be committed");
                    writer.say(Writer::commit_of(&digest, bytes.len() as i64)).await?;
                    open += 1;
                }
            }
            is_there(node, &digest, &bytes).await?;
            let left = ContentStore::connect(&node.content_socket()).await?.status(&reference).await;
            ensure!(left.is_err_and(|refused| refused.code() == Code::NotFound), "an ingest of what is held is left");
        }
        println!("{KILLS} kills: {answered} after the answer, {held} when it was held, {open} before");
        ensure!(held + open > 0, "no kill hit a commit");
        Ok(())
    });
}

#[test]
fn a_kill_while_containerd_collects_ends_in_what_it_knows() {
    alone(async {
        let layers = |len: usize| vec![40_000; len];
        let (goes, stays) = (Image::obtain(&Plan::random(44_000, layers(40)))?, Image::obtain(&Plan::small())?);
        let mut world = set(Some(&goes)).await?;
        world.registry.push(&stays, REPOSITORY, "2").await?;
        let node = world.node("a1")?;
        node.pull(REPOSITORY, "2", &stays).await?;
        // The manifest too.
        let known = (stays.blobs().count() + 1) as f64;
        let mut in_the_middle = 0;
        for kill in 0..4 {
            node.pull(REPOSITORY, "1", &goes).await?;
            let all = node.shoal()?.metric("shoal_store_claimed_blobs").await?;
            node.containerd.puller().remove(&name("1")).await?;
            eventually(SOON, "containerd to collect", || async {
                let left = node.shoal_ref()?.metric("shoal_store_claimed_blobs").await?;
                ensure!(left < all - f64::from(kill * 6), "{left} of {all}");
                Ok(())
            })
            .await?;
            node.shoal()?.kill();
            node.shoal()?.start_again().await?;
            let left = node.shoal()?.metric("shoal_store_claimed_blobs").await?;
            in_the_middle += u32::from(left > known);
        }
        // What it had not told us before it died is told when it compares, or collects again.
        node.shoal()?.restart(true).await?;
        eventually(Duration::from_secs(60), "what containerd knows to be what is claimed", || async {
            let claimed = node.shoal_ref()?.metric("shoal_store_claimed_blobs").await?;
            ensure!((claimed - known).abs() < 0.5, "{claimed} are claimed, {known} are known");
            Ok(())
        })
        .await?;
        println!("{in_the_middle} of 4 kills came in the middle");
        let missing = node.shoal()?.metric("shoal_content_missing_blobs").await?;
        ensure!(missing == 0.0, "{missing} are missing");
        // Both can still be had.
        for (tag, image) in [("2", &stays), ("1", &goes)] {
            node.pull(REPOSITORY, tag, image).await?;
        }
        let said = node.containerd.ctr(node.containerd.socket()).text(&["images", "check"]).await?;
        ensure!(!said.contains("incomplete"), "{said}");
        Ok(())
    });
}

#[test]
fn a_full_disk_refuses_a_write_and_loses_nothing_of_what_was_written() {
    alone(async {
        let image = Image::obtain(&Plan::random(44_001, vec![9 * MIB as u64]))?;
        let mut world = set(Some(&image)).await?;
        let node = world.node("a1")?;
        node.shoal()?.move_to(|at| Disk::in_memory(at, 48 << 20)).await?;
        let (bytes, digest) = bytes(200, 6 * MIB);
        let (mut writer, _) = writer_of(node, "default/1/full", bytes.len()).await?;
        writes(&mut writer, &bytes, 0, 2 * MIB).await?;
        node.shoal()?.disk()?.fill()?;
        let refused = write_until_refused(&mut writer, &bytes, 2 * MIB).await.context("a full disk takes bytes")?;
        ensure!(refused.1.code() == Code::ResourceExhausted, "{:?}", refused.1);
        let (mut writer, offset) = writer_of(node, "default/1/full", bytes.len()).await?;
        ensure!(offset == refused.0, "{offset} of {} bytes", refused.0);
        // containerd hears it too.
        let failed = node.containerd.puller().pull(&name("1")).await.err().context("a pull onto a full disk")?;
        let said = format!("{failed:#}");
        ensure!(said.contains("no space") || said.contains("full") || said.contains("exhausted"), "{said}");
        node.shoal()?.disk()?.relieve()?;
        writes(&mut writer, &bytes, offset, bytes.len()).await?;
        writer.say(Writer::commit_of(&digest, bytes.len() as i64)).await?;
        is_there(node, &digest, &bytes).await?;
        node.pull(REPOSITORY, "1", &image).await.map(drop)
    });
}

async fn write_until_refused(writer: &mut Writer, bytes: &[u8], from: usize) -> Option<(usize, tonic::Status)> {
    for at in (from..bytes.len()).step_by(CHUNK) {
        if let Err(refused) = writer.write(at, &bytes[at..at + CHUNK]).await {
            return Some((at, refused));
        }
    }
    None
}

#[test]
fn a_reference_has_one_writer_and_whoever_goes_leaves_it() {
    alone(async {
        let mut world = set(None).await?;
        let node = world.node("a1")?;
        let (bytes, digest) = bytes(300, 4 * MIB);
        let reference = "default/1/two";
        let (mut first, _) = writer_of(node, reference, bytes.len()).await?;
        writes(&mut first, &bytes, 0, MIB).await?;
        let mut store = ContentStore::connect(&node.content_socket()).await?;
        let mut second = store.writer().await?;
        let asked = tokio::time::Instant::now();
        let refused = second.stat(reference, 0).await.err().context("two write at once")?;
        // What containerd takes for a lock, and soon enough (CONTAINERD 28, 31).
        ensure!(refused.code() == Code::Unavailable, "{refused:?}");
        ensure!(asked.elapsed() < Duration::from_secs(2), "it took {:?} to say so", asked.elapsed());
        // The first goes in the middle of a message, with its connection.
        let piece = bytes[MIB..2 * MIB].to_vec();
        let request = containerd_client::services::v1::WriteContentRequest {
            action: containerd_client::services::v1::WriteAction::Write as i32,
            offset: MIB as i64,
            data: piece,
            ..Default::default()
        };
        first.send(request).await?;
        drop(first);
        let (mut third, offset) = writer_of(node, reference, bytes.len()).await?;
        ensure!(offset == MIB || offset == 2 * MIB, "{offset} bytes after the client went");
        writes(&mut third, &bytes, offset, bytes.len()).await?;
        third.say(Writer::commit_of(&digest, bytes.len() as i64)).await?;
        is_there(node, &digest, &bytes).await
    });
}

#[test]
fn containerd_may_be_restarted_in_the_middle_of_a_pull() {
    alone(async {
        let image = Image::obtain(&Plan::random(44_002, vec![48 << 20, 2 << 20]))?;
        let mut world = set(Some(&image)).await?;
        let node = world.node("a1")?;
        for round in 0..2 {
            let log = node.containerd.log().with_file_name(format!("pull-{round}.log"));
            let mut pull = node.containerd.puller().start(&name("1"), &log)?;
            eventually(SOON, "a pull to be in the middle", || async {
                let written = node.shoal_ref()?.metric("shoal_store_ingest_bytes").await?;
                ensure!(written > 1e6, "{written} bytes are written");
                Ok(())
            })
            .await?;
            ensure!(pull.is_running(), "{}", fs::read_to_string(&log)?);
            node.containerd.restart().await?;
            pull.ended().await?;
        }
        node.pull(REPOSITORY, "1", &image).await?;
        let said = node.containerd.ctr(node.containerd.socket()).text(&["images", "check"]).await?;
        ensure!(said.contains("complete") && !said.contains("incomplete"), "{said}");
        let writers = node.shoal()?.metric("shoal_content_writers").await?;
        ensure!(writers == 0.0, "{writers} writers are left");
        Ok(())
    });
}
