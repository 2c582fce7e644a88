//! Images brought to nodes before anybody pulls them: the pull that follows reads nothing of the registry; a job outlives control and
//! nodes, can be taken back and tried again; a registry's password stays in memory.
use std::{fs, io::Write as _, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{
    aftermath,
    image::{Image, Plan},
    registry::{self, AccessLine, Login},
    wait::eventually,
    world::{World, WorldPlan},
};
use serde_json::Value;

use crate::alone;

const REPOSITORY: &str = "lab/preheat";
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
/// A flight that is not wanted ends in about a second.
const LET_GO: Duration = Duration::from_secs(5);

fn name(tag: &str) -> String {
    format!("{}/{REPOSITORY}:{tag}", registry::HOST)
}

async fn set(plan: WorldPlan, image: &Image) -> Result<World> {
    let mut world = World::start(plan).await?;
    world.registry.push(image, REPOSITORY, "1").await?;
    world.start_nodes().await?;
    world.all_connected().await?;
    Ok(world)
}

async fn preheat(world: &World, args: &[&str]) -> Result<Value> {
    world.control_ref()?.ctl_json(&[&["preheat"], args].concat()).await
}

fn id_of(job: &Value) -> Result<String> {
    Ok(job["id"].as_str().with_context(|| format!("a preheat has an id: {job}"))?.to_owned())
}

async fn becomes(world: &World, id: &str, state: &str) -> Result<Value> {
    eventually(SOON, &format!("preheat {id} to be {state}"), || async {
        let job = preheat(world, &["show", id]).await?;
        ensure!(job["state"] == state, "{job}");
        Ok(job)
    })
    .await
}

/// Bytes that nodes have, by their names.
fn bytes(job: &Value, node: &str) -> u64 {
    let nodes = job["nodes"].as_array().into_iter().flatten();
    nodes.filter(|one| one["name"] == node).filter_map(|one| one["bytes"].as_u64()).sum()
}

/// Bytes that each node fetched, wherever from.
async fn fetched(world: &World) -> Result<Vec<(&'static str, u64)>> {
    let mut all = Vec::new();
    for node in ["a1", "a2"] {
        let sources = world.node_ref(node)?.shoal_ref()?.bytes_by_source().await?;
        all.push((node, sources.values().sum()));
    }
    Ok(all)
}

#[test]
fn what_was_preheated_is_pulled_without_a_byte_of_the_registry() {
    alone(async {
        let image = Image::obtain(&Plan::random(46_000, vec![12 * MIB, 3 * MIB, MIB]))?;
        let mut world = World::start(WorldPlan::two_clusters()).await?;
        world.control()?.ctl(&["cluster", "create", "b", "--idc", "cluster-2"]).await?;
        world.registry.push(&image, REPOSITORY, "1").await?;
        world.start_nodes().await?;
        world.all_connected().await?;
        let whole = image.size() + image.manifest.len() as u64;
        let job = preheat(&world, &["create", &name("1"), "--cluster", "default", "--wait"]).await?;
        ensure!(job["state"] == "done", "{job}");
        let log = world.registry.access_log()?;
        let mut reads: Vec<&str> = log.iter().filter(|line| line.is_read()).filter_map(AccessLine::digest).collect();
        let all = reads.len();
        reads.sort_unstable();
        reads.dedup();
        ensure!(all == reads.len() && all > 0, "the registry gave something twice: {log:#?}");
        for node in ["a1", "a2"] {
            ensure!(bytes(&job, node) == image.size(), "{node}: {job}");
            let before = world.node(node)?.shoal()?.bytes_by_source().await?;
            world.node(node)?.pull(REPOSITORY, "1", &image).await?;
            let after = world.node(node)?.shoal()?.bytes_by_source().await?;
            ensure!(before == after, "{node} fetched again: {before:?} became {after:?}");
        }
        let fetched: u64 = world.node("a1")?.shoal()?.bytes_by_source().await?["origin"]
            + world.node("a2")?.shoal()?.bytes_by_source().await?["origin"];
        ensure!(fetched == whole, "{fetched} bytes of {whole} came from the registry");
        // The other cluster has none of it.
        for node in ["b1", "b2"] {
            ensure!(world.node(node)?.shoal()?.held()?.is_empty(), "{node} was not asked for");
        }
        // A name picks nodes; what is held is done at once.
        let again = preheat(&world, &["create", &name("1"), "--cluster", "default", "--node", "a1", "--wait"]).await?;
        ensure!(again["nodes"].as_array().is_some_and(|nodes| nodes.len() == 1), "{again}");
        let listed = preheat(&world, &["list"]).await?;
        ensure!(listed.as_array().is_some_and(|items| items.len() == 2), "{listed}");
        ensure!(listed[1]["nodes"] == serde_json::json!({"all": 2, "done": 2, "failed": 0}), "{listed}");
        // A tag that there is not: one node is told so, and no other is asked.
        let before = world.registry.access_log()?.len();
        let wrong = preheat(&world, &["create", &name("nothing"), "--cluster", "default", "--wait"]).await;
        let wrong = format!("{:#}", wrong.err().context("a tag that there is not")?);
        ensure!(wrong.contains("404") && wrong.contains("not asked"), "{wrong}");
        let asked = world.registry.access_log()?.split_off(before);
        let asked = asked.iter().filter(|line| format!("{line:?}").contains("manifests/nothing")).count();
        ensure!(asked <= 2, "the registry was asked {asked} times for a tag that there is not");
        // An image that is for another platform.
        let other = ["create", &name("1"), "--cluster", "default", "--platform", "plan9/mips", "--wait"];
        let other = format!("{:#}", preheat(&world, &other).await.err().context("another platform")?);
        ensure!(other.contains("not for plan9/mips"), "{other}");
        aftermath::check(&mut world).await
    });
}

#[test]
fn a_preheat_outlives_control_and_a_node_and_is_tried_again() {
    alone(async {
        let image = Image::obtain(&Plan::random(46_001, vec![24 * MIB, 6 * MIB, MIB]))?;
        let plan = WorldPlan { origin_rate: Some(40_000_000), ..WorldPlan::one_cluster(2) };
        let mut world = set(plan, &image).await?;
        let job = preheat(&world, &["create", &name("1"), "--cluster", "default"]).await?;
        let id = id_of(&job)?;
        eventually(SOON, "bytes to come", || async {
            let job = preheat(&world, &["show", &id]).await?;
            ensure!(bytes(&job, "a1") + bytes(&job, "a2") > MIB, "{job}");
            Ok(())
        })
        .await?;
        world.control()?.kill();
        world.control()?.start_again().await?;
        becomes(&world, &id, "done").await?;
        // Taken back in the middle, and tried again.
        let other = Image::obtain(&Plan::random(46_002, vec![24 * MIB, MIB]))?;
        world.registry.push(&other, REPOSITORY, "2").await?;
        let before = fetched(&world).await?;
        let id = id_of(&preheat(&world, &["create", &name("2"), "--cluster", "default"]).await?)?;
        eventually(SOON, "both nodes to have some", || async {
            let job = preheat(&world, &["show", &id]).await?;
            ensure!(job["state"] == "running" && bytes(&job, "a1") > MIB && bytes(&job, "a2") > MIB, "{job}");
            Ok(())
        })
        .await?;
        preheat(&world, &["cancel", &id]).await?;
        becomes(&world, &id, "cancelled").await?;
        // Each gives to the other, and yet neither keeps the other at it.
        eventually(LET_GO, "nodes to let go", || async {
            for node in ["a1", "a2"] {
                let flights = world.node_ref(node)?.shoal_ref()?.metric("shoal_blob_flights").await?;
                ensure!(flights == 0.0, "{node} has {flights} flights");
            }
            Ok(())
        })
        .await?;
        for ((node, before), (_, after)) in before.iter().zip(fetched(&world).await?) {
            let came = after - before;
            ensure!(came < 25 * MIB, "{node} fetched {came} bytes: all of an image that nobody waited for");
        }
        preheat(&world, &["retry", &id]).await?;
        // A node dies meanwhile, and comes back.
        eventually(SOON, "a node to run", || async {
            let job = preheat(&world, &["show", &id]).await?;
            ensure!(bytes(&job, "a1") + bytes(&job, "a2") > 0, "{job}");
            Ok(())
        })
        .await?;
        world.node("a2")?.shoal()?.kill();
        world.node("a2")?.shoal()?.start_again().await?;
        becomes(&world, &id, "done").await?;
        for node in ["a1", "a2"] {
            world.node(node)?.pull(REPOSITORY, "2", &other).await?;
        }
        aftermath::check(&mut world).await
    });
}

#[test]
fn i9_a_private_image_is_preheated_by_a_login_that_nobody_keeps() {
    alone(async {
        let image = Image::obtain(&Plan::random(46_003, vec![4 * MIB, MIB]))?;
        let mut world = World::start(WorldPlan::one_cluster(2).with_login(Login::Bearer)).await?;
        let user = world.registry.admit("ann", &[REPOSITORY])?;
        world.registry.push(&image, REPOSITORY, "1").await?;
        world.registry.rights().close(REPOSITORY);
        world.start_nodes().await?;
        world.all_connected().await?;
        let args = ["create", &name("1"), "--cluster", "default", "--wait"];
        // Nodes have nothing of their own to show.
        let refused = preheat(&world, &args).await.err().context("a private image without a login")?;
        ensure!(format!("{refused:#}").contains("401"), "{refused:#}");
        let file = world.dirs.state.join("docker-config.json");
        let auths =
            serde_json::json!({ "auths": { registry::HOST: { "username": user.name, "password": user.password } } });
        fs::File::create(&file)?.write_all(auths.to_string().as_bytes())?;
        let file = file.to_str().context("the lab's path is no text")?;
        let job = preheat(&world, &[&args[..], &["--docker-config", file]].concat()).await?;
        ensure!(job["state"] == "done", "{job}");
        for node in ["a1", "a2"] {
            let before = world.node(node)?.shoal()?.bytes_by_source().await?;
            world.node(node)?.pull_as(&user, REPOSITORY, "1", &image).await?;
            let after = world.node(node)?.shoal()?.bytes_by_source().await?;
            ensure!(before == after, "{node} fetched again: {before:?} became {after:?}");
        }
        let control = world.control_ref()?.log().parent().context("a log is in a directory")?.to_owned();
        let mut kept = Vec::new();
        for dir in [control.join("state"), control] {
            for entry in fs::read_dir(&dir)?.flatten().filter(|entry| entry.path().is_file()) {
                kept.extend(fs::read(entry.path())?);
            }
        }
        let found = memchr::memmem::find(&kept, user.password.as_bytes());
        ensure!(found.is_none() && !kept.is_empty(), "the password is among what control keeps");
        Ok(())
    });
}
