//! Programs of an earlier revision beside today's: an old node at a new control and the reverse, both in one cluster, and control upgraded
//! in place and taken back. Nothing is lost, what the other does not know is said clearly and asked once, and sessions come back. Building
//! the old programs takes as long as building ours, so these scenes are run by `make upgrade-check`.
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    aftermath,
    image::{Image, Plan},
    process::{command, run},
    registry,
    tools::ShoalPrograms,
    wait::eventually,
    world::{Earlier, World, WorldPlan},
};
use serde_json::Value;

use crate::alone;

const REPOSITORY: &str = "lab/versions";
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
/// I4: after a restart control knows again what nodes hold.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);
/// A refusal that takes longer is a wait.
const REFUSED_WITHIN: Duration = Duration::from_secs(5);

fn plan(control: bool, nodes: &[&str]) -> WorldPlan {
    let nodes = nodes.iter().map(|name| (*name).to_owned()).collect();
    WorldPlan { earlier: Earlier { control, nodes }, ..WorldPlan::one_cluster(2) }
}

async fn set(plan: WorldPlan) -> Result<World> {
    let mut world = World::start(plan).await?;
    world.start_nodes().await?;
    Ok(world)
}

/// One that nobody has, pulled by the first and then by the second, which reads nothing of the registry.
async fn pulled_by_both(world: &World, seed: u64, [first, second]: [&str; 2]) -> Result<Image> {
    let (tag, image) = (seed.to_string(), Image::obtain(&Plan::random(seed, vec![6 * MIB, MIB]))?);
    world.registry.push(&image, REPOSITORY, &tag).await?;
    for (node, source, other) in [(first, "origin", "peer"), (second, "peer", "origin")] {
        let shoal = world.node_ref(node)?.shoal_ref()?;
        let before = shoal.bytes_by_source().await?;
        world.node_ref(node)?.pull(REPOSITORY, &tag, &image).await?;
        let after = shoal.bytes_by_source().await?;
        let got = |from: &str| after[from] - before[from];
        println!("{node} pulled {tag}: {} bytes from the {source}, {} from the {other}", got(source), got(other));
        ensure!(got(source) >= image.size() && got(other) == 0, "{node}: {before:?} became {after:?}");
    }
    Ok(image)
}

/// Whole blobs that control knows each node to hold, of nodes that are connected.
async fn holdings(world: &World) -> Result<BTreeMap<String, u64>> {
    let nodes = world.control_ref()?.nodes().await?;
    Ok(nodes.into_iter().filter(|node| node.connected).map(|node| (node.name, node.held_blobs)).collect())
}

/// Control is killed and comes back; so does all that it knew.
async fn known_again(world: &mut World) -> Result<()> {
    let before = holdings(world).await?;
    ensure!(before.values().all(|held| *held > 0), "{before:?}");
    world.control()?.restart().await?;
    comes_back(world, &before).await
}

/// Since control is up.
async fn comes_back(world: &World, wanted: &BTreeMap<String, u64>) -> Result<()> {
    let since = Instant::now();
    eventually(SOON, "what nodes hold to be known again", || async {
        let now = holdings(world).await?;
        ensure!(now == *wanted, "{now:?} instead of {wanted:?}");
        Ok(())
    })
    .await?;
    let took = since.elapsed();
    println!("{wanted:?} known again after {:.2} s", took.as_secs_f64());
    ensure!(took < KNOWN_WITHIN, "it took {took:?}");
    Ok(())
}

/// What today's `shoalctl` says that is refused, within the time for that.
async fn refused(world: &World, args: &[&str]) -> Result<String> {
    refused_of(world, &ShoalPrograms::locate()?, args).await
}

async fn refused_of(world: &World, programs: &ShoalPrograms, args: &[&str]) -> Result<String> {
    let since = Instant::now();
    let said = world.control_ref()?.ctl_of(programs, args).await.err();
    let said = format!("{:#}", said.with_context(|| format!("{} was done", args.join(" ")))?);
    println!("after {:.2} s: {said}", since.elapsed().as_secs_f64());
    ensure!(since.elapsed() < REFUSED_WITHIN, "after {:?}: {said}", since.elapsed());
    Ok(said)
}

fn image_name(tag: &str) -> String {
    format!("{}/{REPOSITORY}:{tag}", registry::HOST)
}

async fn control_counts(world: &World, metric: &str) -> Result<f64> {
    let text = world.control_ref()?.rest().get_text("/metrics").await?;
    let sample = text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    sample.with_context(|| format!("control counts no {metric}"))?.trim().parse().context("a count is a number")
}

/// Lines of a log that a person is to look at, from there on.
fn warnings(log: &Path, from: usize) -> Result<Vec<String>> {
    let text = fs::read(log).with_context(|| format!("read {}", log.display()))?;
    let text = String::from_utf8_lossy(&text[from.min(text.len())..]).into_owned();
    let loud = |line: &&str| line.contains(r#""level":"WARN""#) || line.contains(r#""level":"ERROR""#);
    // The lab's own network, over which nobody but the lab reads.
    let ours = |line: &&str| line.contains("rest.tls is off beyond loopback");
    Ok(text.lines().filter(|line| loud(line) && !ours(line)).map(str::to_owned).collect())
}

/// For some seconds nobody registers again and nobody complains: what one side does not know is no loop.
async fn is_quiet(world: &mut World) -> Result<()> {
    let mut logs = vec![world.control_ref()?.log().to_owned()];
    for node in ["a1", "a2"] {
        logs.push(world.node_ref(node)?.shoal_ref()?.log().to_owned());
    }
    let ends: Vec<usize> = logs.iter().map(|log| fs::read(log).map_or(0, |text| text.len())).collect();
    let before = control_counts(world, "shoal_nodes_registrations_total").await?;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let after = control_counts(world, "shoal_nodes_registrations_total").await?;
    ensure!(before == after, "nodes registered {} times meanwhile", after - before);
    for (log, end) in logs.iter().zip(ends) {
        let said = warnings(log, end)?;
        ensure!(said.is_empty(), "{}: {said:#?}", log.display());
    }
    Ok(())
}

#[test]
#[ignore = "needs programs of an earlier revision: make upgrade-check"]
fn old_nodes_pull_under_a_new_control_and_take_no_orders() {
    alone(async {
        let mut plan = plan(false, &["a1", "a2"]);
        plan.nodes[0].settings.insert("node.role".to_owned(), "\"seed\"".to_owned());
        let mut world = set(plan).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let image = pulled_by_both(&world, 74_000, ["a1", "a2"]).await?;
        known_again(&mut world).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        // The other is a seed of a version without orders: this one reads, and does not wait for it.
        pulled_by_both(&world, 74_001, ["a2", "a1"]).await?;
        let (seeds, orders) = ("shoal_swarm_seeds", "shoal_swarm_seed_orders_total");
        let (seeds, orders) = (control_counts(&world, seeds).await?, control_counts(&world, orders).await?);
        ensure!(seeds == 0.0 && orders == 0.0, "{seeds} seeds that take orders, {orders} orders");
        let control = warnings(world.control_ref()?.log(), 0)?;
        println!("control: {control:#?}");
        let of_seeds = control.iter().filter(|line| line.contains("takes no orders")).count();
        ensure!(of_seeds == 2 && control.len() == 2, "a line each time that the seed registers: {control:#?}");

        for nodes in [&["--seeds"][..], &["--node", "a2"], &["--percent", "100"]] {
            let create = ["preheat", "create", &image_name("74000"), "--cluster", "default", "--wait"];
            let said = refused(&world, &[&create[..], nodes].concat()).await?;
            ensure!(said.contains("takes no orders") && said.contains("version 0."), "{said}");
        }
        let jobs = preheats(&world).await?;
        ensure!(jobs.len() == 3 && jobs.iter().all(|job| job["state"] == "failed"), "{jobs:?}");
        is_quiet(&mut world).await?;

        // One of them is upgraded, and does what it could not.
        let today = ShoalPrograms::locate()?;
        let of_a2 = jobs.iter().find(|job| {
            let nodes = job["nodes"].as_array().map_or(&[][..], Vec::as_slice);
            nodes.len() == 1 && nodes[0]["name"] == "a2"
        });
        let id = of_a2.and_then(|job| job["id"].as_str()).context("the preheat of a2 alone")?;
        let held = world.node_ref("a2")?.shoal_ref()?.held()?;
        world.node("a2")?.shoal()?.replace(&today.node).await?;
        world.all_connected().await?;
        ensure!(world.node_ref("a2")?.shoal_ref()?.held()? == held, "a2 lost what it held");
        let job = world.control_ref()?.ctl_json(&["preheat", "retry", id, "--wait"]).await?;
        ensure!(job["state"] == "done" && job["bytes"] == image.size(), "{job}");
        aftermath::check(&mut world).await
    });
}

#[test]
#[ignore = "needs programs of an earlier revision: make upgrade-check"]
fn new_nodes_pull_under_an_old_control() {
    alone(async {
        let mut plan = plan(true, &[]);
        plan.nodes[0].settings.insert("node.role".to_owned(), "\"seed\"".to_owned());
        let mut world = set(plan).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        pulled_by_both(&world, 74_010, ["a1", "a2"]).await?;
        is_quiet(&mut world).await?;
        known_again(&mut world).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        pulled_by_both(&world, 74_011, ["a2", "a1"]).await?;
        // What today's shoalctl can ask and this server can't answer.
        let create = ["preheat", "create", &image_name("74010"), "--cluster", "default", "--wait"];
        for args in [&create[..], &["traffic"]] {
            let said = refused(&world, args).await?;
            ensure!(said.contains("an older one"), "{said}");
        }
        let said = refused(&world, &["node", "list"]).await?;
        ensure!(said.contains("of one release"), "{said}");
        is_quiet(&mut world).await?;
        for node in ["a1", "a2"] {
            let said = warnings(world.node_ref(node)?.shoal_ref()?.log(), 0)?;
            println!("{node}: {said:#?}");
            // The one that control was away, by a kill.
            ensure!(said.len() == 1 && said[0].contains("control is away"), "{node}: {said:#?}");
        }
        aftermath::check(&mut world).await
    });
}

#[test]
#[ignore = "needs programs of an earlier revision: make upgrade-check"]
fn an_old_node_and_a_new_one_give_each_other_blobs() {
    alone(async {
        let mut world = set(plan(false, &["a1"])).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        pulled_by_both(&world, 74_020, ["a1", "a2"]).await?;
        let image = pulled_by_both(&world, 74_021, ["a2", "a1"]).await?;
        // An order reaches the one that takes it, whatever becomes of the other.
        let create = ["preheat", "create", &image_name("74021"), "--cluster", "default", "--percent", "100", "--wait"];
        let said = refused(&world, &create).await?;
        ensure!(said.contains("takes no orders"), "{said}");
        let jobs = preheats(&world).await?;
        let of = |name: &str| {
            let nodes = jobs[0]["nodes"].as_array().into_iter().flatten();
            nodes.filter(|node| node["name"] == name).map(|node| node["state"].clone()).collect::<Vec<_>>()
        };
        ensure!(of("a1") == ["failed"] && of("a2") == ["done"] && jobs[0]["bytes"] == image.size(), "{jobs:?}");
        known_again(&mut world).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        pulled_by_both(&world, 74_022, ["a1", "a2"]).await?;
        is_quiet(&mut world).await?;
        aftermath::check(&mut world).await
    });
}

/// All preheats, node by node.
async fn preheats(world: &World) -> Result<Vec<Value>> {
    let control = world.control_ref()?;
    let mut all = Vec::new();
    for job in control.ctl_json(&["preheat", "list"]).await?.as_array().into_iter().flatten() {
        let id = job["id"].as_str().context("a preheat has an id")?;
        all.push(control.ctl_json(&["preheat", "show", id]).await?);
    }
    Ok(all)
}

type Kept = BTreeMap<&'static str, Vec<Value>>;

/// All that control keeps and people can ask for, but the audit, which grows by itself.
async fn kept(world: &World) -> Result<Kept> {
    let mut all = BTreeMap::new();
    for what in ["cluster", "join-token", "api-token", "member"] {
        let mut list = rows(world.control_ref()?.ctl_json(&[what, "list"]).await?);
        list.sort_by_key(|one| one["id"].as_str().or(one["node"].as_str()).unwrap_or_default().to_owned());
        all.insert(what, list);
    }
    Ok(all)
}

/// Earlier revisions have a list as the one thing of an object.
fn rows(list: Value) -> Vec<Value> {
    match list {
        Value::Array(rows) => rows,
        Value::Object(fields) => {
            fields.into_iter().find_map(|(_, value)| value.as_array().cloned()).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

/// Everything that was said before is said now, and nothing is there that was not; later revisions say more of each.
fn is_kept(before: &Kept, now: &Kept) -> Result<()> {
    for (what, list) in before {
        let later = &now[what];
        ensure!(list.len() == later.len() && !list.is_empty(), "{what}: {list:#?} became {later:#?}");
        for (one, later) in list.iter().zip(later) {
            let fields = one.as_object().with_context(|| format!("{what}: {one}"))?;
            let lost = fields.iter().find(|(key, value)| later[key.as_str()] != **value);
            ensure!(lost.is_none(), "{what}: {lost:?} of {one} became {later}");
        }
    }
    Ok(())
}

async fn audited(world: &World) -> Result<usize> {
    Ok(rows(world.control_ref()?.ctl_json(&["audit"]).await?).len())
}

#[test]
#[ignore = "needs programs of an earlier revision: make upgrade-check"]
fn control_is_upgraded_in_place_loses_nothing_and_can_be_taken_back() {
    alone(async {
        let mut world = set(plan(true, &["a1", "a2"])).await?;
        let today = ShoalPrograms::locate()?;
        let older = ShoalPrograms::of_earlier_revision()?;
        for args in [
            &["cluster", "create", "west", "--idc", "w1|w2", "--cidr", "10.99.0.0/16"][..],
            &["api-token", "create", "watcher", "--role", "viewer"],
            &["join-token", "create", "--uses", "3", "--ttl", "24h"],
        ] {
            world.control_ref()?.ctl(args).await?;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        pulled_by_both(&world, 74_030, ["a1", "a2"]).await?;
        let (before, audit, held) = (kept(&world).await?, audited(&world).await?, holdings(&world).await?);
        println!("kept by the old one: {before:#?}, {audit} lines of audit, {held:?}");

        // With a copy of the stopped one's state, as the page on upgrades says.
        let state = world.control_ref()?.state()?;
        let (database, aside) = (state.join("control.db"), state.with_extension("before"));
        ensure!(world.control()?.stop(SOON).await, "control did not end");
        run(command("cp", ["-a"]).arg(&state).arg(&aside))?;
        world.control()?.replace(&today).await?;
        comes_back(&world, &held).await?;
        is_kept(&before, &kept(&world).await?)?;
        let said = refused_of(&world, &older, &["node", "list"]).await?;
        ensure!(said.contains("release"), "{said}");
        ensure!(audited(&world).await? == audit, "lines of audit were lost, or nodes joined again");
        tokio::time::sleep(Duration::from_secs(2)).await;
        pulled_by_both(&world, 74_031, ["a2", "a1"]).await?;

        // Then nodes, one by one, on the state that they have. The first is ordered something.
        for node in ["a1", "a2"] {
            world.node(node)?.shoal()?.replace(&today.node).await?;
        }
        let held = holdings_of(&world, 2).await?;
        let create = ["preheat", "create", &image_name("74031"), "--cluster", "default", "--wait"];
        ensure!(world.control_ref()?.ctl_json(&create).await?["state"] == "done", "a preheat after the upgrade");
        is_kept(&before, &kept(&world).await?)?;
        pulled_by_both(&world, 74_032, ["a1", "a2"]).await?;
        ensure!(held.values().all(|held| *held > 0), "{held:?}");

        // The old one does not touch what it does not know.
        ensure!(world.control()?.stop(SOON).await, "control did not end");
        let whole = fs::read(&database).context("read the database")?;
        let said = world.control()?.refused_of(&older).await?;
        println!("the old one on the new state: {said}");
        ensure!(said.contains("schema") && said.contains("later"), "{said}");
        ensure!(fs::read(&database)? == whole, "it wrote to what it refused");
        world.control()?.start_again().await?;
        let held = holdings_of(&world, 2).await?;
        is_kept(&before, &kept(&world).await?)?;

        // Back, on the copy: nodes of today stay, with all that they hold, and what they remember of orders troubles nobody.
        ensure!(world.control()?.stop(SOON).await, "control did not end");
        fs::remove_dir_all(&state)?;
        run(command("cp", ["-a"]).arg(&aside).arg(&state))?;
        world.control()?.replace(&older).await?;
        comes_back(&world, &held).await?;
        is_kept(&before, &kept(&world).await?)?;
        is_quiet(&mut world).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        pulled_by_both(&world, 74_033, ["a2", "a1"]).await?;
        // And the nodes, too.
        for node in ["a1", "a2"] {
            let held = world.node_ref(node)?.shoal_ref()?.held()?;
            world.node(node)?.shoal()?.replace(&older.node).await?;
            ensure!(world.node_ref(node)?.shoal_ref()?.held()? == held, "{node} lost what it held");
        }
        holdings_of(&world, 2).await?;
        pulled_by_both(&world, 74_034, ["a1", "a2"]).await?;
        aftermath::check(&mut world).await
    });
}

/// Once so many nodes are connected and have announced something.
async fn holdings_of(world: &World, nodes: usize) -> Result<BTreeMap<String, u64>> {
    eventually(SOON, "nodes to have said what they hold", || async {
        let held = holdings(world).await?;
        ensure!(held.len() == nodes && held.values().all(|held| *held > 0), "{held:?}");
        Ok(held)
    })
    .await
}
