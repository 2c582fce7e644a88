//! Waiting for something with a bound, never for a fixed time.
use std::{future::Future, time::Duration};

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep};

/// Asks `probe` until it succeeds, at most for `bound`.
///
/// # Errors
/// When the bound is reached: `what`, and the last error of the probe.
pub async fn eventually<T, F, P>(bound: Duration, what: &str, mut probe: P) -> Result<T>
where
    P: FnMut() -> F,
    F: Future<Output = Result<T>>,
{
    let end = Instant::now() + bound;
    loop {
        match probe().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => {
                return Err(error).with_context(|| format!("waited {bound:?} for {what}"));
            }
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}
