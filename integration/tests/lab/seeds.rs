//! Seeds: they read the registry for all, share by digest, are skipped when they are dead or slow, and are no hot spot of a crowd.
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    aftermath,
    image::{Image, Plan},
    node::labelled,
    registry::reads_by_digest,
    wait::eventually,
    world::{World, WorldPlan},
};
use nix::sys::signal::Signal;

use crate::alone;

const REPOSITORY: &str = "lab/seeds";
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
/// No seed is waited for longer, however many there are (issue 7).
const SKIPPED_WITHIN: f64 = 2.0;

/// `a1` to `aN`, of which the first are seeds.
fn with_seeds(seeds: usize, nodes: u8) -> WorldPlan {
    let mut plan = WorldPlan::one_cluster(nodes);
    for node in plan.nodes.iter_mut().take(seeds) {
        node.settings.insert("node.role".to_owned(), "\"seed\"".to_owned());
    }
    plan
}

async fn set(plan: WorldPlan) -> Result<World> {
    let mut world = World::start(plan).await?;
    world.start_nodes().await?;
    // I4: no permit, and no order, in the first two seconds of control.
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(world)
}

/// How long a pull takes, as a person waits for it.
async fn pull(world: &World, node: &str, tag: &str, image: &Image) -> Result<f64> {
    let since = Instant::now();
    world.node_ref(node)?.pull(REPOSITORY, tag, image).await.with_context(|| format!("pull {tag}"))?;
    Ok(since.elapsed().as_secs_f64())
}

async fn fresh(world: &World, seed: u64, tag: &str, layers: Vec<u64>) -> Result<Image> {
    let image = Image::obtain(&Plan::random(seed, layers))?;
    world.registry.push(&image, REPOSITORY, tag).await?;
    Ok(image)
}

/// Orders given, taken, and skipped by why.
async fn orders(world: &World) -> Result<(u64, u64, BTreeMap<String, u64>)> {
    let text = world.control_ref()?.rest().get_text("/metrics").await?;
    let of = |name: &str| {
        let sample = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok::<_, anyhow::Error>(
            sample.with_context(|| format!("control counts no {name}"))?.trim().parse::<f64>()? as u64
        )
    };
    let skipped = labelled(&text, "shoal_swarm_seed_orders_skipped_total", "why");
    Ok((of("shoal_swarm_seed_orders_total")?, of("shoal_swarm_seed_orders_taken_total")?, skipped))
}

/// Who read the blobs of an image from the registry: bytes by node. Fails when one was read twice.
fn readers(world: &World, image: &Image) -> Result<BTreeMap<String, u64>> {
    let reads = reads_by_digest(&world.registry.access_log()?, |address| world.name_of(address));
    let mut bytes: BTreeMap<String, u64> = BTreeMap::new();
    for blob in image.blobs() {
        let by_node = reads.get(&blob.digest).with_context(|| format!("nobody read {}", blob.digest))?;
        let read: u64 = by_node.values().map(|read| read.bytes).sum();
        ensure!(read == blob.size, "{} was read {by_node:?}", blob.digest);
        for (node, read) in by_node {
            *bytes.entry(node.clone()).or_default() += read.bytes;
        }
    }
    Ok(bytes)
}

#[test]
fn two_seeds_share_what_is_read_and_nobody_else_reads() {
    alone(async {
        let mut world = set(with_seeds(2, 4)).await?;
        let image = fresh(&world, 71_000, "1", vec![MIB; 14]).await?;
        let (first, second) = tokio::try_join!(pull(&world, "a3", "1", &image), pull(&world, "a4", "1", &image))?;
        let by_node = readers(&world, &image)?;
        let names: Vec<&str> = by_node.keys().map(String::as_str).collect();
        ensure!(names == ["a1", "a2"], "the registry was read by {by_node:?}");
        let (given, taken, skipped) = orders(&world).await?;
        ensure!(given >= image.blobs().count() as u64 && taken == given, "{given} orders, {taken} taken, {skipped:?}");
        println!("two pulls in {first:.2} and {second:.2} s; read by {by_node:?}; {given} orders, all taken");
        // A blob above the size from which several read: they do not while a seed does.
        let large = fresh(&world, 71_001, "large", vec![48 * MIB]).await?;
        tokio::try_join!(pull(&world, "a3", "large", &large), pull(&world, "a4", "large", &large))?;
        let by_node = readers(&world, &large)?;
        ensure!(by_node.keys().all(|node| ["a1", "a2"].contains(&node.as_str())), "{by_node:?}");
        aftermath::check(&mut world).await
    });
}

/// Lets them go on when control has given them up, so that they have new sessions.
async fn comes_back(world: &mut World, seeds: &[&str]) -> Result<()> {
    eventually(SOON, "control to give up the seeds that say nothing", || async {
        let live = world.control_ref()?.nodes().await?;
        ensure!(!live.iter().any(|node| node.connected && seeds.contains(&node.name.as_str())), "{live:?}");
        Ok(())
    })
    .await?;
    for seed in seeds {
        world.node(seed)?.shoal()?.signal(Signal::SIGCONT)?;
    }
    world.all_connected().await
}

/// Kills both seeds once one of them has read a part, and gives how long the pull took all the same.
async fn die_in_the_middle(world: &World, large: &Image) -> Result<f64> {
    let mut pulling = std::pin::pin!(pull(world, "a3", "large", large));
    let before = [read_by(world, "a1").await?, read_by(world, "a2").await?];
    let some = eventually(SOON, "a seed to read some", || async {
        let now = [read_by(world, "a1").await?, read_by(world, "a2").await?];
        ensure!(now[0] - before[0] > 4 * MIB || now[1] - before[1] > 4 * MIB, "{before:?} became {now:?}");
        Ok(())
    });
    tokio::select! {
        done = &mut pulling => anyhow::bail!("the pull was over before a seed could die: {done:?}"),
        some = some => some?,
    }
    for seed in ["a1", "a2"] {
        world.node_ref(seed)?.shoal_ref()?.signal(Signal::SIGKILL)?;
    }
    pulling.await
}

async fn read_by(world: &World, node: &str) -> Result<u64> {
    Ok(world.node_ref(node)?.shoal_ref()?.bytes_by_source().await?["origin"])
}

#[test]
fn a_dead_seed_is_skipped_and_what_it_read_goes_on_elsewhere() {
    alone(async {
        let mut world = set(with_seeds(2, 4)).await?;
        let image = fresh(&world, 71_010, "usual", vec![MIB; 6]).await?;
        let usual = pull(&world, "a3", "usual", &image).await?;
        // Before anybody knows that it is dead.
        let image = fresh(&world, 71_011, "dead", vec![MIB; 6]).await?;
        world.node("a1")?.shoal()?.kill();
        let dead = pull(&world, "a3", "dead", &image).await?;
        let by_node = readers(&world, &image)?;
        println!(
            "a pull takes {usual:.2} s, with a dead seed {dead:.2} s; read by {by_node:?}; {:?}",
            orders(&world).await?
        );
        ensure!(dead < usual + SKIPPED_WITHIN, "{dead:.2} s, without a dead seed {usual:.2} s");
        ensure!(by_node.keys().eq(["a2"]), "the other seed reads all: {by_node:?}");
        // In the middle of a read: both seeds die, and a node goes on where the blocks end.
        world.node("a1")?.shoal()?.start_again().await?;
        world.all_connected().await?;
        let large = fresh(&world, 71_012, "large", vec![40 * MIB]).await?;
        let seconds = die_in_the_middle(&world, &large).await?;
        println!("both seeds died in the middle of 40 MiB: the pull took {seconds:.2} s");
        for seed in ["a1", "a2"] {
            world.node(seed)?.shoal()?.start_again().await?;
        }
        world.all_connected().await?;
        aftermath::check(&mut world).await
    });
}

#[test]
fn a_seed_that_says_nothing_is_skipped_within_two_seconds_and_then_left_alone() {
    alone(async {
        let mut world = set(with_seeds(2, 4)).await?;
        let image = fresh(&world, 71_020, "usual", vec![MIB; 6]).await?;
        let usual = pull(&world, "a3", "usual", &image).await?;
        let image = fresh(&world, 71_021, "one", vec![MIB; 6]).await?;
        world.node("a1")?.shoal()?.signal(Signal::SIGSTOP)?;
        let one = pull(&world, "a3", "one", &image).await?;
        let by_node = readers(&world, &image)?;
        ensure!(by_node.keys().eq(["a2"]), "the other seed reads all: {by_node:?}");
        // Both: nobody is left but the nodes.
        comes_back(&mut world, &["a1"]).await?;
        let image = fresh(&world, 71_022, "both", vec![MIB; 6]).await?;
        for seed in ["a1", "a2"] {
            world.node(seed)?.shoal()?.signal(Signal::SIGSTOP)?;
        }
        let both = pull(&world, "a4", "both", &image).await?;
        let by_node = readers(&world, &image)?;
        ensure!(by_node.keys().eq(["a4"]), "the node reads itself: {by_node:?}");
        let (given, taken, skipped) = orders(&world).await?;
        println!(
            "a pull takes {usual:.2} s, with one seed stopped {one:.2} s, with both {both:.2} s; {given} orders, {taken} taken, skipped {skipped:?}"
        );
        ensure!(skipped.get("silent").is_some_and(|count| *count > 0), "{skipped:?}");
        for (what, seconds) in [("one", one), ("both", both)] {
            ensure!(seconds < usual + SKIPPED_WITHIN + 0.5, "with {what} stopped {seconds:.2} s, usually {usual:.2} s");
        }
        comes_back(&mut world, &["a1", "a2"]).await?;
        // They are seeds again.
        let image = fresh(&world, 71_023, "again", vec![MIB; 4]).await?;
        pull(&world, "a4", "again", &image).await?;
        let by_node = readers(&world, &image)?;
        ensure!(by_node.keys().all(|node| ["a1", "a2"].contains(&node.as_str())), "{by_node:?}");
        aftermath::check(&mut world).await
    });
}

/// Of the bytes that a crowd of five gets, its seed sends two copies at most: a hot spot would send five.
#[test]
fn a_seed_is_not_the_hot_spot_of_a_crowd() {
    const CROWD: [&str; 5] = ["a2", "a3", "a4", "a5", "a6"];
    alone(async {
        let plan = WorldPlan { node_rate: Some(200_000_000), ..with_seeds(1, 6) };
        let mut world = set(plan).await?;
        for (tag, first) in [("fresh", true), ("held", false)] {
            let image = fresh(&world, if first { 71_030 } else { 71_031 }, tag, vec![32 * MIB]).await?;
            let layer = image.layers[0].clone();
            if !first {
                // The seed has all of it before the crowd comes.
                world.reader("a1")?.read(REPOSITORY, &layer, Duration::ZERO).await?;
            }
            let before = world.node_ref("a1")?.shoal_ref()?.metric("shoal_peer_served_bytes_total").await?;
            let since = Instant::now();
            let reading = CROWD.map(|node| {
                let (reader, layer) = (world.reader(node), layer.clone());
                async move { reader?.read(REPOSITORY, &layer, Duration::ZERO).await }
            });
            futures::future::try_join_all(reading).await?;
            let seconds = since.elapsed().as_secs_f64();
            let sent = world.node_ref("a1")?.shoal_ref()?.metric("shoal_peer_served_bytes_total").await? - before;
            let copies = sent / layer.size as f64;
            println!("{tag}: the seed sent {copies:.2} copies to {} nodes, {seconds:.2} s", CROWD.len());
            ensure!((0.9..=2.0).contains(&copies), "{tag}: the seed sent {copies:.2} copies");
            let reads = reads_by_digest(&world.registry.access_log()?, |address| world.name_of(address));
            let by_node = reads.get(&layer.digest).context("nobody read the layer")?;
            ensure!(by_node.keys().eq(["a1"]), "{tag}: read by {by_node:?}");
        }
        aftermath::check(&mut world).await
    });
}
