//! What a person types on a node: `shoal-node pull`, and `shoal-node status` while it goes on.
use std::{fs, process::Output, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    image::{Image, Plan},
    process::output,
    registry::{self, Login},
    rights::User,
    wait::eventually,
    world::{World, WorldPlan},
};
use serde_json::Value;

use crate::alone;

const REPOSITORY: &str = "lab/commands";
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(20);

async fn node_runs(world: &mut World, node: &str, args: &[&str]) -> Result<Output> {
    let mut command = world.node(node)?.shoal()?.command(args);
    tokio::task::spawn_blocking(move || output(&mut command)).await?
}

/// What it printed.
async fn says(world: &mut World, node: &str, args: &[&str]) -> Result<String> {
    let done = node_runs(world, node, args).await?;
    if !done.status.success() {
        bail!("shoal-node {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr));
    }
    Ok(String::from_utf8(done.stdout)?)
}

/// What it said when it refused.
async fn refuses(world: &mut World, node: &str, args: &[&str]) -> Result<String> {
    let done = node_runs(world, node, args).await?;
    ensure!(!done.status.success(), "shoal-node {} worked", args.join(" "));
    Ok(String::from_utf8(done.stderr)?)
}

#[test]
fn an_image_is_pulled_into_the_reach_of_the_cluster_and_seen_on_its_way() {
    alone(async {
        let image = Image::obtain(&Plan::random(63_000, vec![24 * MIB, 4 * MIB]))?;
        let mut world = World::start(WorldPlan { origin_rate: Some(64_000_000), ..WorldPlan::one_cluster(2) }).await?;
        world.registry.push(&image, REPOSITORY, "1").await?;
        world.start_nodes().await?;
        let reference = format!("{}/{REPOSITORY}:1", registry::HOST);
        let config = world.node("a1")?.shoal()?.config().display().to_string();
        let args = ["pull", "--config", &config, "--plain", &reference];
        let mut pulling = world.node("a1")?.shoal()?.command(&args);
        let pulling = tokio::task::spawn_blocking(move || output(&mut pulling));
        seen_on_its_way(&mut world, &image).await?;
        let done = pulling.await??;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let said = String::from_utf8(done.stdout)?;
        let whole = image.blobs().all(|blob| said.contains(&blob.digest)) && said.contains(&image.digest);
        ensure!(whole, "it said {said}");
        let held = world.node("a1")?.containerd.held();
        ensure!(held.is_empty(), "containerd got {held:?}");
        // All of the cluster has it now.
        let all = image.size() + image.manifest.len() as u64;
        world.node("a2")?.pull(REPOSITORY, "1", &image).await?;
        let bytes = world.node("a2")?.shoal()?.bytes_by_source().await?;
        ensure!(bytes["peer"] == all && bytes["origin"] == 0, "{bytes:?} of {all}");
        let status = says(&mut world, "a1", &["status"]).await?;
        for words in ["keeps its own content", "4 blobs", "flights           0"] {
            ensure!(status.contains(words), "{words:?} is not in\n{status}");
        }
        Ok(())
    });
}

/// The largest layer, while the registry gives it slowly.
async fn seen_on_its_way(world: &mut World, image: &Image) -> Result<()> {
    let layer = &image.layers[0];
    let end = tokio::time::Instant::now() + SOON;
    loop {
        let status: Value = serde_json::from_str(&says(world, "a1", &["status", "--json"]).await?)?;
        let flight =
            status["flying"].as_array().context("no flights")?.iter().find(|one| one["digest"] == *layer.digest);
        if let Some(here) = flight.and_then(|one| one["here"].as_u64()).filter(|here| (1..layer.size).contains(here)) {
            let flight = flight.context("it flies")?;
            ensure!(flight["size"] == layer.size && flight["from_origin"] == here, "{flight}");
            break;
        }
        ensure!(tokio::time::Instant::now() < end, "{} was not seen on its way: {status}", layer.digest);
    }
    let text = says(world, "a1", &["status"]).await?;
    ensure!(text.contains(&layer.digest[..19]) && text.contains("from registry"), "no bar of it in\n{text}");
    Ok(())
}

#[test]
fn a_private_image_is_pulled_with_a_docker_config_by_bearer() {
    alone(private(Login::Bearer));
}

#[test]
fn a_private_image_is_pulled_with_a_docker_config_by_basic() {
    alone(private(Login::Basic));
}

async fn private(login: Login) -> Result<()> {
    let image = Image::obtain(&Plan::random(63_001, vec![2 * MIB]))?;
    let mut world = World::start(WorldPlan::one_cluster(1).with_login(login)).await?;
    world.registry.push(&image, REPOSITORY, "1").await?;
    world.registry.rights().close(REPOSITORY);
    let user = world.registry.admit("ann", &[REPOSITORY])?;
    world.start_nodes().await?;
    let reference = format!("{}/{REPOSITORY}:1", registry::HOST);
    let config = world.node("a1")?.shoal()?.config().display().to_string();
    let refused = refuses(&mut world, "a1", &["pull", "--config", &config, &reference]).await?;
    ensure!(refused.contains("401"), "{refused}");
    let docker = |user: &User| -> Result<String> {
        let path = world.dirs.state.join(format!("docker-{}.json", user.name));
        let auth = serde_json::json!({"auths": {registry::HOST: {"username": user.name, "password": user.password}}});
        fs::write(&path, auth.to_string())?;
        Ok(path.display().to_string())
    };
    let (right, wrong) = (docker(&user)?, docker(&User::new("mallory"))?);
    let with = |docker: &str| -> Vec<String> {
        ["pull", "--config", &config, "--docker-config", docker, &reference].map(str::to_owned).to_vec()
    };
    let args = with(&wrong);
    let refused = refuses(&mut world, "a1", &args.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    ensure!(!refused.contains(&User::new("mallory").password), "the password is in {refused}");
    let args = with(&right);
    let said = says(&mut world, "a1", &args.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    ensure!(said.contains(&image.digest), "{said}");
    eventually(SOON, "all of it to be held", || async {
        let held = world.node_ref("a1")?.shoal_ref()?.metric("shoal_store_held_blobs").await?;
        ensure!(held == 3.0, "{held} blobs");
        Ok(())
    })
    .await
}

#[test]
fn a_daemon_that_is_not_there_and_an_image_that_is_none_are_named() {
    alone(async {
        let mut world = World::start(WorldPlan::one_cluster(1)).await?;
        world.start_nodes().await?;
        let config = world.node("a1")?.shoal()?.config().display().to_string();
        for (args, says) in [
            (vec!["status", "--admin", "127.0.0.1:9"], "connect to shoal-node at 127.0.0.1:9"),
            (vec!["pull", "--config", &config, "UPPER/case"], "the repository of"),
            (vec!["pull", "--config", &config, "--platform", "linux", "a/b"], "--platform"),
            (vec!["pull", "--config", &config, &format!("{}/lab/none:1", registry::HOST)], "manifests 1: 40"),
        ] {
            let refused = refuses(&mut world, "a1", &args).await?;
            ensure!(refused.contains(says), "{args:?} says {refused}");
        }
        Ok(())
    });
}
