//! The walk-through of the demo on a smaller image.
use anyhow::ensure;
use lab::{check, demo, image::Plan, progress::Progress, report, world::WorldPlan};

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
