//! What befalls control: a database that can't be written, or is damaged; a clock that is set an hour forward and back. Nothing that it
//! acknowledged is lost, it says clearly what is wrong, and sessions come back. (Kills in the middle of writes: `control/tests/kills.rs`.)
use std::{fs, os::unix::fs::FileExt as _, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{
    aftermath,
    conditions::Conditions,
    disk::Disk,
    image::{Image, Plan},
    process::{command, run},
    registry,
    wait::eventually,
    world::{World, WorldPlan},
};
use serde_json::Value;

use crate::alone;

const REPOSITORY: &str = "lab/control-faults";
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const HOUR: i64 = 3600;

async fn set(plan: WorldPlan) -> Result<World> {
    let mut world = World::start(plan).await?;
    world.start_nodes().await?;
    Ok(world)
}

async fn fresh(world: &World, seed: u64, tag: &str, layers: Vec<u64>) -> Result<Image> {
    let image = Image::obtain(&Plan::random(seed, layers))?;
    world.registry.push(&image, REPOSITORY, tag).await?;
    Ok(image)
}

async fn clusters(world: &World) -> Result<Vec<String>> {
    let list = world.control_ref()?.ctl_json(&["cluster", "list"]).await?;
    let names = list.as_array().into_iter().flatten().filter_map(|cluster| cluster["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// It is as it was: what was acknowledged is there, and every node has a session.
async fn is_back(world: &World, wanted: &[&str]) -> Result<()> {
    let there = clusters(world).await?;
    ensure!(wanted.iter().all(|name| there.iter().any(|cluster| cluster == name)), "{wanted:?} of {there:?}");
    world.all_connected().await
}

/// A mount over a directory that is taken away again.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Err(error) = run(command("umount", [] as [&str; 0]).arg(self.0)) {
            eprintln!("{error:#}");
        }
    }
}

#[test]
fn a_database_that_is_read_only_or_damaged_is_refused_at_the_start_with_what_to_do() {
    alone(async {
        let mut world = set(WorldPlan::one_cluster(1)).await?;
        world.control_ref()?.ctl(&["cluster", "create", "kept"]).await?;
        let state = world.control_ref()?.state()?;
        let database = state.join("control.db");
        ensure!(world.control()?.stop(SOON).await, "control did not end");

        // The whole directory, as a file system that had an error is mounted again.
        run(command("mount", ["--bind"]).arg(&state).arg(&state))?;
        let mounted = Mounted(&state);
        run(command("mount", ["-o", "remount,bind,ro"]).arg(&state))?;
        let said = world.control()?.refuses_to_start().await?;
        println!("read-only: {said}");
        ensure!(said.to_lowercase().contains("read-only") && said.contains(state.to_str().unwrap_or("?")), "{said}");
        drop(mounted);
        world.control()?.start_again().await?;
        is_back(&world, &["default", "kept"]).await?;

        // A page in the middle, and then the head.
        ensure!(world.control()?.stop(SOON).await, "control did not end");
        let whole = fs::read(&database).context("read the database")?;
        for (what, at) in [("a page", 4096), ("the head", 0)] {
            let file = fs::File::options().write(true).open(&database)?;
            file.write_all_at(&[0xa5; 600], at)?;
            let damaged = fs::read(&database)?;
            let said = world.control()?.refuses_to_start().await?;
            println!("{what} damaged: {said}");
            ensure!(said.contains("damaged") && said.contains(database.to_str().unwrap_or("?")), "{said}");
            ensure!(fs::read(&database)? == damaged, "what is damaged is evidence, and was written to");
            fs::write(&database, &whole)?;
        }
        world.control()?.start_again().await?;
        is_back(&world, &["default", "kept"]).await
    });
}

#[test]
fn a_full_disk_refuses_writes_clearly_and_pulls_go_on() {
    alone(async {
        let mut world = set(WorldPlan::one_cluster(2)).await?;
        world.control_ref()?.ctl(&["cluster", "create", "kept"]).await?;
        let state = world.control_ref()?.state()?;
        ensure!(world.control()?.stop(SOON).await, "control did not end");
        // On a small disk of its own, with all that it had.
        let aside = state.with_extension("aside");
        run(command("cp", ["-a"]).arg(&state).arg(&aside))?;
        let disk = Disk::in_memory(&state, 16 * MIB)?;
        run(command("cp", ["-a"]).arg(aside.join(".")).arg(&state))?;
        world.control()?.start_again().await?;
        is_back(&world, &["default", "kept"]).await?;

        let image = fresh(&world, 72_000, "full", vec![4 * MIB]).await?;
        disk.fill()?;
        let refused = world.control_ref()?.ctl(&["cluster", "create", "lost"]).await.err();
        let refused = format!("{:#}", refused.context("a full disk took a cluster")?);
        println!("full: {refused}");
        ensure!(refused.contains("nothing was changed") && refused.contains("full"), "{refused}");
        let ready = world.control_ref()?.rest().get("/readyz").await?;
        ensure!(!ready.status.is_success(), "/readyz says {} with a full disk", ready.status);
        // Who holds what is in memory.
        for node in ["a1", "a2"] {
            world.node(node)?.pull(REPOSITORY, "full", &image).await?;
        }
        let from_peer = world.node("a2")?.shoal()?.bytes_by_source().await?["peer"];
        ensure!(from_peer >= image.size(), "a2 has {from_peer} bytes from its peer");
        is_back(&world, &["default", "kept"]).await?;

        disk.relieve()?;
        eventually(SOON, "control to be ready again", || async {
            let ready = world.control_ref()?.rest().get("/readyz").await?;
            ensure!(ready.status.is_success(), "/readyz says {}", ready.status);
            Ok(())
        })
        .await?;
        world.control_ref()?.ctl(&["cluster", "create", "later"]).await?;
        world.control()?.restart().await?;
        is_back(&world, &["default", "kept", "later"]).await?;
        ensure!(!clusters(&world).await?.contains(&"lost".to_owned()), "what was refused is there");
        aftermath::check(&mut world).await?;
        // Before its directory goes with the world.
        world.control()?.kill();
        drop(disk);
        Ok(())
    });
}

fn bytes(job: &Value) -> u64 {
    job["nodes"].as_array().into_iter().flatten().filter_map(|one| one["bytes"].as_u64()).sum()
}

/// Begins a preheat, steps the clock in the middle of it, and waits for its end.
async fn preheat_over(world: &World, tag: &str, step: impl FnOnce() -> Result<()>) -> Result<()> {
    let image = format!("{}/{REPOSITORY}:{tag}", registry::HOST);
    let control = world.control_ref()?;
    let job = control.ctl_json(&["preheat", "create", &image, "--cluster", "default"]).await?;
    let id = job["id"].as_str().context("a preheat has an id")?;
    eventually(SOON, "bytes to come", || async {
        let job = control.ctl_json(&["preheat", "show", id]).await?;
        ensure!(bytes(&job) > MIB && job["state"] == "running", "{job}");
        Ok(())
    })
    .await?;
    step()?;
    eventually(SOON, "the preheat to end", || async {
        let job = control.ctl_json(&["preheat", "show", id]).await?;
        ensure!(job["state"] == "done", "{job}");
        Ok(())
    })
    .await
}

/// No session ends, and no lease: for longer than a lease lasts every node is connected at every look.
async fn stays_connected(world: &World, nodes: usize) -> Result<()> {
    for _ in 0..25 {
        let connected = world.control_ref()?.nodes().await?.iter().filter(|node| node.connected).count();
        ensure!(connected == nodes, "{connected} of {nodes} nodes have a session");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

#[test]
fn a_clock_that_is_set_an_hour_forward_and_back_ends_no_session_lease_or_preheat() {
    alone(async {
        let plan = WorldPlan { origin_rate: Some(40_000_000), ..WorldPlan::one_cluster(2) };
        let mut world = set(plan).await?;
        let clock = world.clock("control")?;
        let conditions = Conditions { clock: Some(clock.clone()), ..Conditions::default() };
        world.control()?.restart_under(conditions).await?;
        world.all_connected().await?;
        let sessions = sessions(&world).await?;
        for (turn, ahead) in [(0, HOUR), (1, 0)] {
            let tag = format!("clock-{turn}");
            fresh(&world, 72_010 + turn, &tag, vec![16 * MIB]).await?;
            preheat_over(&world, &tag, || clock.set(ahead)).await.with_context(|| format!("{ahead} s ahead"))?;
            stays_connected(&world, 2).await.with_context(|| format!("{ahead} s ahead"))?;
            world.control_ref()?.ctl(&["cluster", "create", &tag]).await?;
        }
        let later = self::sessions(&world).await?;
        ensure!(later == sessions, "nodes began {later} sessions instead of {sessions}");
        // Back again by what it was ahead: certificates of the future are known, and those of the present count all the same.
        let both = ["--cidr", "10.77.1.0/24"];
        world.control_ref()?.ctl(&[&["cluster", "create", "moved"][..], &both].concat()).await?;
        eventually(SOON, "both nodes to move", || async {
            let nodes = world.control_ref()?.nodes().await?;
            let moved = |node: &lab::control::NodeEntry| node.connected && node.cluster.as_deref() == Some("moved");
            ensure!(nodes.len() == 2 && nodes.iter().all(moved), "{nodes:?}");
            Ok(())
        })
        .await?;
        let image = fresh(&world, 72_020, "moved", vec![2 * MIB]).await?;
        let before = world.node("a2")?.shoal()?.bytes_by_source().await?;
        world.node("a1")?.pull(REPOSITORY, "moved", &image).await?;
        world.node("a2")?.pull(REPOSITORY, "moved", &image).await?;
        let after = world.node("a2")?.shoal()?.bytes_by_source().await?;
        ensure!(after["peer"] >= before["peer"] + image.size(), "from its peer: {before:?} became {after:?}");
        world.control()?.restart().await?;
        is_back(&world, &["default", "clock-0", "clock-1", "moved"]).await?;
        aftermath::check(&mut world).await
    });
}

/// Sessions that nodes began, counted by control since its start.
async fn sessions(world: &World) -> Result<u64> {
    let text = world.control_ref()?.rest().get_text("/metrics").await?;
    let sample = text.lines().find_map(|line| line.strip_prefix("shoal_nodes_registrations_total "));
    Ok(sample.context("control counts no registrations")?.trim().parse::<f64>()? as u64)
}
