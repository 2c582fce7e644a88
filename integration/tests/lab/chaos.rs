//! Two minutes of chaos. Another seed, or longer: `lab chaos --seed N --minutes M`.
use std::time::Duration;

use anyhow::{Context, Result};
use lab::chaos;

use crate::alone;

/// The usual one; a failure of any other is played again by its own.
const SEED: u64 = 4;

#[test]
fn nothing_that_breaks_for_two_minutes_costs_a_pull_or_a_byte() {
    alone(async {
        let found = chaos::run(seed()?, Duration::from_secs(120)).await?;
        println!("{}", found.text());
        Ok(())
    });
}

/// `SHOAL_CHAOS_SEED`, or the usual one.
fn seed() -> Result<u64> {
    match std::env::var("SHOAL_CHAOS_SEED") {
        Ok(text) => text.parse().with_context(|| format!("SHOAL_CHAOS_SEED is {text:?}")),
        Err(_) => Ok(SEED),
    }
}
