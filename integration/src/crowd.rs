//! The crowd: eight nodes that want one blob at once, all links of one rate, beside what the wire allows and beside the same
//! crowd without Shoal.
//!
//! Readers read through each node's mirror, without containerd, so that what is measured is Shoal and not unpacking: the manifest first,
//! as containerd does, then the blob, from whose first request on time counts. Stores lie
//! in memory, a small file system each: nodes have a disk each in the field, and here they would share one. Every run begins
//! with empty stores and a new control. Every reader checks the digest of what it got.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::{SeedableRng, rngs::SmallRng, seq::SliceRandom};
use serde::{Deserialize, Serialize};

use crate::{
    image::{Image, Plan},
    net::measure_rate,
};

pub mod bound;
pub mod cli;
mod cpu;
mod read;
pub mod report;
mod site;
mod stage;

use bound::payload_rate;
use report::{Machine, Report, SizeReport};
use site::Site;

/// Nodes, as the aims say.
pub const NODES: u8 = 8;
/// Bits per second of every link, headers included.
pub const LINK: u64 = 200_000_000;
/// How many times slower slow nodes are.
pub const SLOWER: u64 = 4;
/// How long the link is measured.
const PROBE: Duration = Duration::from_secs(2);

/// What is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrowdPlan {
    /// Sizes of the blobs, in MiB.
    pub mebibytes: Vec<u64>,
    /// Runs of each size.
    pub runs: u32,
    /// Runs of each size without Shoal.
    pub direct_runs: u32,
    /// Nodes whose links have a quarter of the rate.
    pub slow: u8,
    /// Nodes that begin at half time.
    pub join: u8,
    /// Nodes that hold the blob before the others begin.
    #[serde(default)]
    pub holders: u8,
    /// Chooses bytes, and which nodes are slow or late.
    pub seed: u64,
    /// Whether daemons show certificates. Runs from before there was a choice had none.
    #[serde(default)]
    pub tls: bool,
}

impl CrowdPlan {
    /// Fails when there are fewer nodes than the plan speaks of.
    fn check(&self) -> Result<()> {
        ensure!(
            u16::from(self.slow) + u16::from(self.join) + u16::from(self.holders) < u16::from(NODES),
            "of {NODES} nodes one at least must be neither slow nor late nor a holder"
        );
        ensure!(self.runs > 0 && !self.mebibytes.is_empty(), "nothing to run");
        Ok(())
    }

    /// Who is what in a run: the same for the same seed and run.
    pub fn cast(&self, run: u32) -> Cast {
        let mut random = SmallRng::seed_from_u64(self.seed ^ (u64::from(run) << 32));
        let mut all: Vec<usize> = (0..usize::from(NODES)).collect();
        all.shuffle(&mut random);
        let mut rest = all.into_iter();
        let mut take = |count: u8| -> Vec<usize> {
            let mut some: Vec<usize> = rest.by_ref().take(usize::from(count)).collect();
            some.sort_unstable();
            some
        };
        Cast { slow: take(self.slow), late: take(self.join), holders: take(self.holders) }
    }
}

/// Which nodes are slow, and which begin at half time; indexes of nodes, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cast {
    /// A quarter of the rate, both ways.
    pub slow: Vec<usize>,
    /// They begin when half of the bound is over.
    pub late: Vec<usize>,
    /// They hold the blob before the others begin.
    #[serde(default)]
    pub holders: Vec<usize>,
}

/// Runs everything; `done` hears of each run as it ends.
///
/// # Errors
/// When a part can't be started, or a read without Shoal fails. A read through Shoal that fails, or gives other bytes, is in
/// the report: see [`Report::failed`].
pub async fn bench(plan: &CrowdPlan, mut done: impl FnMut(&str)) -> Result<Report> {
    plan.check()?;
    let mut report = Report {
        machine: Machine::here(),
        plan: plan.clone(),
        nodes: NODES,
        link_bits: LINK,
        payload_bits: payload_rate(LINK),
        payload_is: "computed: 1448 of every 1514 bytes on the wire".to_owned(),
        measured_payload_bits: 0,
        sizes: Vec::new(),
    };
    for mebibytes in &plan.mebibytes {
        let size = mebibytes << 20;
        let image = {
            let plan = Plan::random(plan.seed, vec![size]);
            tokio::task::spawn_blocking(move || Image::obtain(&plan)).await??
        };
        let blob = &image.layers[0];
        let mut site = Site::build(blob.size, plan.tls).await?;
        site.push(&image).await?;
        if report.measured_payload_bits == 0 {
            let (from, to) = (site.namespace(0)?, site.namespace(1)?);
            report.measured_payload_bits = measure_rate(&from, &to, PROBE).await.context("measure a link")?;
        }
        let mut of_size = SizeReport::new(blob.size, plan);
        for run in 0..plan.runs {
            let cast = plan.cast(run);
            match stage::through_shoal(&mut site, &image, &cast).await {
                Ok(found) => {
                    done(&format!("{mebibytes} MiB, run {}: {}", run + 1, found.line()));
                    of_size.runs.push(found);
                }
                // The other runs tell something all the same.
                Err(error) => {
                    done(&format!("{mebibytes} MiB, run {} failed: {error:#}", run + 1));
                    of_size.failed.push(format!("run {}, seed {}: {error:#}", run + 1, plan.seed));
                }
            }
        }
        site.stop_daemons()?;
        for run in 0..plan.direct_runs {
            let found = stage::direct(&site, &image, &plan.cast(run)).await.context("without Shoal")?;
            done(&format!("{mebibytes} MiB, without Shoal, run {}: {}", run + 1, found.line()));
            of_size.direct_runs.push(found);
        }
        of_size.sum_up();
        report.sizes.push(of_size);
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(slow: u8, join: u8) -> CrowdPlan {
        CrowdPlan { mebibytes: vec![4], runs: 3, direct_runs: 1, slow, join, holders: 1, seed: 7, tls: true }
    }

    #[test]
    fn the_cast_of_a_seed_is_the_same_twice_and_nobody_plays_two_parts() {
        for run in 0..50 {
            let cast = plan(2, 4).cast(run);
            assert_eq!(cast, plan(2, 4).cast(run));
            assert_eq!((cast.slow.len(), cast.late.len()), (2, 4));
            let all = [&cast.slow, &cast.late, &cast.holders].into_iter().flatten();
            assert_eq!(all.collect::<std::collections::BTreeSet<_>>().len(), 7, "{cast:?}");
        }
        assert!((0..50).any(|run| plan(2, 4).cast(run) != plan(2, 4).cast(0)));
    }

    #[test]
    fn a_plan_without_an_ordinary_node_is_refused() {
        assert!(plan(2, 4).check().is_ok());
        assert!(plan(4, 3).check().is_err());
    }
}
