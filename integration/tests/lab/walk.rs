//! The walk-through of the demo on a smaller image.
use std::{fs, time::Duration};

use anyhow::{Context, ensure};
use lab::{
    aftermath, check, demo,
    image::{Image, Plan},
    progress::Progress,
    report,
    wait::eventually,
    world::{World, WorldPlan},
};

use crate::alone;

/// The demo measures how much faster a peer is; here the image is too small for that, and everything else must hold.
const MEASURED_BY_THE_DEMO: &str = "times as fast";

#[test]
fn each_cluster_reads_the_origin_once_and_nothing_crosses() {
    alone(async {
        let facts = demo::walk_through(&Plan::small(), WorldPlan::two_clusters(), &Progress::silent()).await?;
        println!("{}", report::text(&facts));
        let verdicts = check::judge(&facts);
        let failed: Vec<_> = verdicts
            .into_iter()
            .filter(|verdict| !verdict.holds && !verdict.what.contains(MEASURED_BY_THE_DEMO))
            .collect();
        ensure!(failed.is_empty(), "\n{}", report::verdicts(&failed));
        Ok(())
    });
}

/// The same as `shoalctl` shows it, and nothing else: an operator without a browser.
#[test]
fn the_walk_is_made_and_seen_by_shoalctl_alone() {
    alone(async {
        const REPOSITORY: &str = "lab/walk-by-command";
        let image = Image::obtain(&Plan::random(49_000, vec![8 << 20, 2 << 20]))?;
        let mut world = World::start(WorldPlan::two_clusters()).await?;
        world.registry.push(&image, REPOSITORY, "1").await?;
        world.control()?.ctl(&["cluster", "create", "b", "--idc", "cluster-2"]).await?;
        world.start_nodes().await?;
        world.all_connected().await?;
        for node in ["a1", "a2", "b1", "b2"] {
            world.node(node)?.pull(REPOSITORY, "1", &image).await?;
        }
        let whole = image.size() + image.manifest.len() as u64;
        let control = world.control_ref()?;
        // Heartbeats tell, one a second.
        eventually(Duration::from_secs(10), "where bytes came from", || async {
            let nodes = control.ctl_json(&["node", "list"]).await?;
            for (name, first) in [("a1", true), ("a2", false), ("b1", true), ("b2", false)] {
                let node =
                    nodes.as_array().and_then(|all| all.iter().find(|node| node["name"] == name)).context(name)?;
                let (origin, peers) = (&node["bytes_from_origin"], &node["bytes_from_peers"]);
                ensure!(
                    (origin == whole && peers == 0) == first,
                    "{name}: {origin} from the origin, {peers} from peers"
                );
                ensure!(
                    first || (origin == 0 && peers == whole),
                    "{name}: {origin} from the origin, {peers} from peers"
                );
            }
            let traffic = control.ctl_json(&["traffic", "--minutes", "60"]).await?;
            let steps = traffic["steps"].as_array().context("there are steps")?;
            let sum = |of: &str| steps.iter().filter_map(|step| step[of].as_u64()).sum::<u64>();
            let sums = (sum("bytes_from_origin"), sum("bytes_from_peers"));
            ensure!(sums == (2 * whole, 2 * whole), "{sums:?} of {whole}");
            Ok(())
        })
        .await?;
        let manifest = world.dirs.state.join("manifest.json");
        fs::write(&manifest, &image.manifest)?;
        let share = ["image", "share", "--manifest", manifest.to_str().context("a path")?];
        let shares = control.ctl_json(&share).await?;
        let nodes = shares["nodes"].as_array().context("there are nodes")?;
        ensure!(nodes.len() == 4 && nodes.iter().all(|node| node["share"] == 1.0), "{shares}");
        println!("{}", control.ctl(&share).await?);
        println!("{}", control.ctl(&["traffic"]).await?);
        aftermath::check(&mut world).await
    });
}
