//! `lab sim` on the command line.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use shoal_base::units::ByteSize;

use super::moment::Moment;
use super::outcome::{Outcome, head, line};
use super::plan::{Plan, Rate, quarter_piece};
use super::play;

/// The blob of a run of ten thousand nodes, unless one is asked for: it takes a minute or two, and 512 MiB take a quarter of an hour.
const BLOB_OF_TEN_THOUSAND: u64 = 32 << 20;
/// The blob of every smaller run.
const BLOB: u64 = 512 << 20;

/// How to simulate.
#[derive(Debug, Args)]
pub struct Options {
    /// Nodes that start at once.
    #[arg(long, default_value_t = 1000)]
    pub nodes: u32,
    /// Size of the blob [default: 512MiB, above 5,000 nodes 32MiB].
    #[arg(long)]
    pub blob: Option<String>,
    /// Up and down, of each node.
    #[arg(long, default_value = "200Mbit")]
    pub rate: Rate,
    /// What the origin sends at most [default: as a node].
    #[arg(long)]
    pub origin_rate: Option<Rate>,
    /// One way, in milliseconds [default: a quarter of a piece's time].
    #[arg(long, value_name = "MS")]
    pub delay: Option<f64>,
    /// Share of slow nodes, 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub slow: f64,
    /// Links of slow nodes, as a share of the others'.
    #[arg(long, value_name = "SHARE", default_value_t = 0.25)]
    pub slow_rate: f64,
    /// Share of nodes that crash per second.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub crash: f64,
    /// Further nodes that start at half of the limit's time.
    #[arg(long, default_value_t = 0)]
    pub join: u32,
    /// Nodes among them that hold the blob when the others start.
    #[arg(long, default_value_t = 0)]
    pub holders: u32,
    /// Nodes that send a wrong block now and then.
    #[arg(long, default_value_t = 0)]
    pub liars: u32,
    /// Seeds among them: they fetch what control orders.
    #[arg(long = "seed-nodes", default_value_t = 0)]
    pub seed_nodes: u32,
    /// Seeds that say nothing to an order.
    #[arg(long, default_value_t = 0)]
    pub deaf_seeds: u32,
    /// Control restarts at this second.
    #[arg(long, value_name = "SECONDS")]
    pub control_restart: Option<f64>,
    /// Candidates that a node looks at, of those that control names; 0: all.
    #[arg(long, default_value_t = 0)]
    pub neighbours: usize,
    /// Of all that is random; the first one with `--seeds`.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How many runs, each with the next seed [default: 1, with --matrix 3].
    #[arg(long)]
    pub seeds: Option<u64>,
    /// The whole table: 10, 100, 1,000 and 10,000 nodes with equal links, 10 % and 30 % slow, 1 % crashing per second.
    #[arg(long)]
    pub matrix: bool,
    /// Also print how far the cluster is, twenty times in the time of the limit.
    #[arg(long)]
    pub timeline: bool,
    /// Write the outcomes here.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// What `--json` writes.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// The worst of the factors, per group of runs that differ in the seed only.
    table: Vec<Row>,
    runs: &'a [Outcome],
}

#[derive(Debug, Serialize)]
struct Row {
    nodes: u32,
    blob_bytes: u64,
    slow: f64,
    crash: f64,
    factors: Vec<f64>,
    worst: f64,
}

/// Simulates, prints the table, and says whether every run ended.
///
/// # Errors
/// A plan that can't be simulated, or a run in which a node was stuck.
pub fn simulate(options: &Options) -> Result<()> {
    let plans = plans(options)?;
    let mut outcomes: Vec<Outcome> = Vec::new();
    println!("{}", head());
    for plan in &plans {
        let outcome =
            play(plan, options.timeline).with_context(|| format!("{} nodes, seed {}", plan.nodes, plan.seed))?;
        println!("{}", line(&outcome));
        if options.timeline {
            println!("{}", Moment::head());
            outcome.timeline.iter().for_each(|moment| println!("{}", moment.line()));
        }
        outcomes.push(outcome);
    }
    let table = table(&outcomes);
    if outcomes.len() > table.len() {
        println!("\nworst factor of {} runs each:", outcomes.len() / table.len().max(1));
        for row in &table {
            println!(
                "{:>6} nodes, {:>4} MiB, slow {:.0} %, crash {:.0} %/s: {:.3}",
                row.nodes,
                row.blob_bytes >> 20,
                row.slow * 100.0,
                row.crash * 100.0,
                row.worst
            );
        }
    }
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&Report { table, runs: &outcomes })?;
        std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

fn table(outcomes: &[Outcome]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for outcome in outcomes {
        let plan = &outcome.plan;
        let same = |row: &&mut Row| {
            (row.nodes, row.blob_bytes, row.slow, row.crash) == (plan.nodes, plan.blob_bytes, plan.slow, plan.crash)
        };
        if let Some(row) = rows.iter_mut().find(same) {
            row.factors.push(outcome.factor);
            row.worst = row.worst.max(outcome.factor);
        } else {
            rows.push(Row {
                nodes: plan.nodes,
                blob_bytes: plan.blob_bytes,
                slow: plan.slow,
                crash: plan.crash,
                factors: vec![outcome.factor],
                worst: outcome.factor,
            });
        }
    }
    rows
}

fn plans(options: &Options) -> Result<Vec<Plan>> {
    let seeds = options.seeds.unwrap_or(if options.matrix { 3 } else { 1 });
    ensure!(seeds > 0, "one seed at least");
    let one = |nodes: u32, slow: f64, crash: f64, seed: u64| -> Result<Plan> {
        let blob_bytes = match &options.blob {
            Some(text) => text.parse::<ByteSize>()?.as_u64(),
            None if nodes > 5000 => BLOB_OF_TEN_THOUSAND,
            None => BLOB,
        };
        let delay_s = match options.delay {
            Some(delay) => delay / 1000.0,
            None => quarter_piece(blob_bytes, options.rate)?,
        };
        let plan = Plan {
            nodes,
            blob_bytes,
            rate: options.rate,
            origin_rate: options.origin_rate.unwrap_or(options.rate),
            delay_s,
            slow,
            slow_rate: options.slow_rate,
            crash,
            join: options.join,
            holders: options.holders,
            liars: options.liars,
            seeds: options.seed_nodes,
            deaf_seeds: options.deaf_seeds,
            control_restart_s: options.control_restart,
            neighbours: options.neighbours,
            seed,
        };
        plan.check()?;
        Ok(plan)
    };
    let mut plans = Vec::new();
    let conditions: &[(f64, f64)] = if options.matrix {
        &[(0.0, 0.0), (0.1, 0.0), (0.3, 0.0), (0.0, 0.01)]
    } else {
        &[(options.slow, options.crash)]
    };
    let sizes: &[u32] = if options.matrix { &[10, 100, 1000, 10_000] } else { &[options.nodes] };
    for nodes in sizes {
        for (slow, crash) in conditions {
            for seed in options.seed..options.seed + seeds {
                plans.push(one(*nodes, *slow, *crash, seed)?);
            }
        }
    }
    Ok(plans)
}
