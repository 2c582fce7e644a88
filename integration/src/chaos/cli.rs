//! `lab chaos`.
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{minutes, plan, plan_of, run};
use crate::aftermath::Ground;

/// Options of `lab chaos`.
#[derive(Debug, Clone, clap::Args)]
pub struct ChaosArgs {
    /// What breaks and what is pulled follows from it; a number of its own when it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults go on.
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Print what would break and when, and break nothing.
    #[arg(long)]
    plan: bool,
    /// Write what was found here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl ChaosArgs {
    /// Plays the plan, and looks for what is left over afterwards.
    ///
    /// # Errors
    /// As [`run`]; what is left over; or when the file can't be written.
    pub async fn run(self) -> Result<()> {
        let seed = self.seed.unwrap_or_else(rand::random::<u64>) & 0xffff_ffff;
        let time = minutes(self.minutes)?;
        if self.plan {
            print!("{}", plan::text(&plan_of(seed, time)));
            return Ok(());
        }
        eprintln!("chaos, seed {seed}, {} minutes", self.minutes);
        let ground = Ground::take()?;
        let found = run(seed, time).await?;
        ground.is_restored().await.with_context(|| format!("after chaos with the seed {seed}"))?;
        print!("{}", found.text());
        if let Some(file) = &self.json {
            let text = serde_json::to_string_pretty(&found)?;
            std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
        }
        Ok(())
    }
}
