//! `lab bench crowd`.
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{CrowdPlan, bench, report};

/// Options of `lab bench crowd`.
#[derive(Debug, Clone, clap::Args)]
pub struct CrowdArgs {
    /// Sizes of the blobs in MiB.
    #[arg(long, value_delimiter = ',', default_values_t = [4, 64, 512])]
    mib: Vec<u64>,
    /// Runs of each size.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Runs of each size without Shoal; as many as with it when it is not given.
    #[arg(long)]
    direct_runs: Option<u32>,
    /// So many of the eight nodes have links of a quarter of the rate.
    #[arg(long, default_value_t = 0)]
    slow: u8,
    /// So many of the eight nodes begin at half time.
    #[arg(long, default_value_t = 0)]
    join: u8,
    /// So many of the eight nodes hold the blob before the others begin.
    #[arg(long, default_value_t = 0)]
    holders: u8,
    /// Chooses bytes, and which nodes are slow or late.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Daemons show no certificates and encrypt nothing.
    #[arg(long)]
    without_tls: bool,
    /// Write every run here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl CrowdArgs {
    /// Runs it and prints the table.
    ///
    /// # Errors
    /// As [`bench()`], when a run failed, or when the file can't be written.
    pub async fn run(self) -> Result<()> {
        let plan = CrowdPlan {
            mebibytes: self.mib,
            runs: self.runs,
            direct_runs: self.direct_runs.unwrap_or(self.runs),
            slow: self.slow,
            join: self.join,
            holders: self.holders,
            seed: self.seed,
            tls: !self.without_tls,
        };
        let report = bench(&plan, |line| eprintln!("{line}")).await?;
        if let Some(file) = &self.json {
            let text = serde_json::to_string_pretty(&report)?;
            std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
        }
        print!("{}", report::table(&report));
        let failed = report.failed();
        ensure!(failed.is_empty(), "{} runs failed:\n{}", failed.len(), failed.join("\n"));
        Ok(())
    }
}
