//! A scope that changes moves live nodes.
use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    image::{Image, Plan},
    net::Netns,
    registry::reads_by_digest,
    wait::eventually,
    world::{World, WorldPlan},
};

use crate::alone;

#[test]
fn a_changed_scope_moves_a_live_node_within_a_second_and_it_drops_its_old_parents() {
    alone(async {
        let mut world = World::start(WorldPlan { origin_rate: None, ..WorldPlan::two_clusters().only(3) }).await?;
        let [shared, later] = [51, 52].map(|seed| Plan::random(seed, vec![8 << 20, 2 << 20]));
        let (shared, later) = (Image::obtain(&shared)?, Image::obtain(&later)?);
        world.registry.push(&shared, "lab/shared", "1").await?;
        world.registry.push(&later, "lab/later", "1").await?;
        world.control()?.ctl(&["cluster", "create", "b", "--idc", "cluster-2"]).await?;
        world.start_nodes().await?;

        // a1 and a2 are of one cluster: a2 takes the first image from a1 and so has a connection to it.
        for (node, repository, image) in
            [("a1", "lab/shared", &shared), ("a2", "lab/shared", &shared), ("a1", "lab/later", &later)]
        {
            world.node(node)?.pull(repository, "1", image).await?;
        }
        ensure!(origin_bytes(&world, &shared, "a2")? == 0, "a2 did not use its peer");
        let before = sent(&world, "a1", "a2")?;
        ensure!(before.1 > shared.size(), "the kernel saw only {before:?} from a1 to a2");

        // A network outranks everything: a2 alone now belongs to b.
        let asked = Instant::now();
        world.control()?.ctl(&["cluster", "update", "b", "--cidr", "10.77.1.2/32"]).await?;
        let control = world.control()?;
        eventually(Duration::from_secs(1), "a2 in cluster b", || async {
            let nodes = control.nodes().await?;
            let cluster = nodes.into_iter().find(|node| node.name == "a2").and_then(|node| node.cluster);
            if cluster.as_deref() != Some("b") {
                bail!("a2 is in {cluster:?}");
            }
            Ok(())
        })
        .await?;
        let a2 = world.net.namespace("a2")?;
        eventually(Duration::from_secs(1).saturating_sub(asked.elapsed()), "a2 to leave a1", || async {
            let open = connections(&a2, "10.77.1.1")?;
            if !open.is_empty() {
                bail!("a2 is still connected to a1:\n{open}");
            }
            Ok(())
        })
        .await?;
        println!("a2 moved and left a1 within {:?}", asked.elapsed());

        // Only the old cluster holds the second image: it comes from the origin, and a1 hears nothing of it.
        let before = [sent(&world, "a1", "a2")?, sent(&world, "a2", "a1")?];
        world.node("a2")?.pull("lab/later", "1", &later).await?;
        ensure!(origin_bytes(&world, &later, "a2")? == later.size(), "a2 did not read the origin");
        let after = [sent(&world, "a1", "a2")?, sent(&world, "a2", "a1")?];
        ensure!(before == after, "packets between a1 and a2 after the move: {before:?}, then {after:?}");
        Ok(())
    });
}

fn origin_bytes(world: &World, image: &Image, node: &str) -> Result<u64> {
    let reads = reads_by_digest(&world.registry.access_log()?, |address| world.name_of(address));
    Ok(image.blobs().filter_map(|blob| reads.get(&blob.digest)?.get(node)).map(|reads| reads.bytes).sum())
}

/// Packets and bytes.
fn sent(world: &World, from: &str, to: &str) -> Result<(u64, u64)> {
    let counts = world.net.pair_counts()?;
    let pair = counts.iter().find(|pair| pair.from == from && pair.to == to).context("no such pair")?;
    Ok((pair.packets, pair.bytes))
}

/// TCP connections of the namespace to an address, as the kernel lists them; ended ones that only wait left out.
fn connections(ns: &Netns, address: &str) -> Result<String> {
    let mut list = Command::new("ip");
    list.args([
        "netns",
        "exec",
        &ns.full_name,
        "ss",
        "-Htn",
        "state",
        "connected",
        "exclude",
        "time-wait",
        "dst",
        address,
    ]);
    Ok(String::from_utf8(list.output()?.stdout)?)
}
