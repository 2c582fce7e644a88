//! Measurements: what moving a blob costs, beside the limit of the machine or beside what people use today, in the same run.
//!
//! Absolute figures are the machine's; ratios of one run are what is worth comparing. Whatever is compared takes turns, so
//! that a machine that slows down slows all of it. `--json FILE` writes what was measured, every repetition included.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Subcommand;
use serde::Serialize;

use crate::crowd::cli::CrowdArgs;

mod content;
mod control;
mod cpu;
mod drain;
mod floors;
mod memory;
mod nginx;
pub mod one;
mod serve;
mod spread;
mod tls;

pub use spread::Spread;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// One blob from origin, peer and disk: how fast, with how much memory.
    One {
        /// Size of the blob in MiB.
        #[arg(long, default_value_t = 1024)]
        mebibytes: u64,
        /// Write what was measured here.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Mirror and parent beside nginx with sendfile; a child beside SHA-256 and the disk.
    Serve {
        /// Size of the blob in MiB.
        #[arg(long, default_value_t = 2048)]
        mebibytes: u64,
        /// How often each is measured.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        repetitions: u32,
        /// Leave the child out, which needs a fresh store each time.
        #[arg(long)]
        no_child: bool,
        /// Write what was measured here.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Eight nodes read one blob at once: how close to what the wire allows, and how it is without Shoal.
    Crowd(CrowdArgs),
    /// Memory of a node at rest, and while a blob goes through it to four children.
    Memory {
        /// Size of the blob in MiB.
        #[arg(long, default_value_t = 4096)]
        mebibytes: u64,
        /// How often it is measured, each time with new daemons.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        repetitions: u32,
        /// Daemons and children show no certificates and encrypt nothing.
        #[arg(long)]
        without_tls: bool,
        /// Write what was measured here.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// shoal-node as containerd's content store, beside containerd's own: a layer unpacked, and blobs listed and read.
    Content {
        /// Size of the layer in MiB, compressed.
        #[arg(long, default_value_t = 96)]
        mebibytes: u64,
        /// How often each is measured.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        repetitions: u32,
        /// Write what was measured here.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Control with ten thousand simulated nodes: sessions with heartbeats, `Find`, and a scope that changes.
    Control {
        /// Nodes.
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(64..=10_000))]
        sessions: u32,
        /// Blobs.
        #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
        digests: u32,
        /// Nodes that hold each.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=32))]
        holders: u32,
        /// Clusters.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=20_000))]
        clusters: u32,
        /// `Find` by the second.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
        finds: u32,
        /// For so many seconds.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=600))]
        seconds: u32,
        /// Write what was measured here.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// What TLS costs: a stream of blocks, and a blob from node to node, with certificates and without.
    Tls {
        /// Size of the blob in MiB.
        #[arg(long, default_value_t = 2048)]
        mebibytes: u64,
        /// How often each is measured, each time with new daemons.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        repetitions: u32,
        /// Write what was measured here.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

/// Measures, prints a table, and writes the JSON that was asked for.
///
/// # Errors
/// When a part can't be started, or what is measured fails.
pub async fn run(bench: Bench) -> Result<()> {
    match bench {
        Bench::One { mebibytes, json } => {
            let reads = one::one_blob(mebibytes << 20).await?;
            print!("{}", one::table(&reads));
            write(json.as_deref(), &reads)
        }
        Bench::Serve { mebibytes, repetitions, no_child, json } => {
            let plan = serve::Plan { size: mebibytes << 20, repetitions, child: !no_child };
            let served = serve::measure(&plan).await?;
            print!("{}", served.table());
            write(json.as_deref(), &served)
        }
        Bench::Crowd(crowd) => crowd.run().await,
        Bench::Memory { mebibytes, repetitions, without_tls, json } => {
            let memory = memory::measure(mebibytes << 20, repetitions, !without_tls).await?;
            print!("{}", memory.table());
            write(json.as_deref(), &memory)
        }
        Bench::Content { mebibytes, repetitions, json } => {
            let content = content::measure(mebibytes << 20, repetitions).await?;
            print!("{}", content.table());
            write(json.as_deref(), &content)
        }
        Bench::Control { sessions, digests, holders, clusters, finds, seconds, json } => {
            let plan = control::Plan {
                sessions: sessions as usize,
                digests: digests as usize,
                holders: holders as usize,
                clusters: clusters as usize,
                finds: u64::from(finds),
                seconds: u64::from(seconds),
            };
            let measured = control::measure(plan).await?;
            print!("{}", measured.table());
            write(json.as_deref(), &measured)
        }
        Bench::Tls { mebibytes, repetitions, json } => {
            let price = tls::measure(mebibytes << 20, repetitions).await?;
            print!("{}", price.table());
            write(json.as_deref(), &price)
        }
    }
}

fn write(file: Option<&Path>, measured: &impl Serialize) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let text = serde_json::to_string_pretty(measured)?;
    std::fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))
}

const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1_073_741_824.0;
