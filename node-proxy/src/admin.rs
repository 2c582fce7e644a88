//! What operators and probes ask the daemon: is it alive, is it ready, what does it count, what is it doing.
//!
//! Owns the routes and how often the probe behind `/readyz` really runs. Does not know the store or the swarm: what
//! ready means, and what `/debug` shows, are closures that the composition root gives. What they return is shown to
//! anybody who reaches the port, so it names no credential (I9).
//!
//! Source of truth for the meanings: Kubernetes' probes. `/livez` fails only when a restart would help; `/readyz` fails
//! while this node can't do its work.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::future::BoxFuture;
use serde::Serialize;
use shoal_base::drain::Drain;
use shoal_base::metrics::{self, Registry};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Says whether the daemon can do its work, or every reason why not.
pub type Ready = Arc<dyn Fn() -> BoxFuture<'static, Result<(), Vec<String>>> + Send + Sync>;

/// Says what the daemon is doing now, for people and bug reports.
pub type Debug = Arc<dyn Fn() -> BoxFuture<'static, serde_json::Value> + Send + Sync>;

/// How the admin pages behave.
#[derive(Debug, Clone)]
pub struct Config {
    /// How long the probe behind `/readyz` may take; after that the node is not ready. Below the prober's own timeout.
    pub probe_timeout: Duration,
    /// For how long an answer of the probe is given again. The probe writes to the disk, so whoever asks in a loop
    /// must not make it write in a loop. 0: every request probes.
    pub probe_every: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { probe_timeout: Duration::from_secs(3), probe_every: Duration::from_secs(1) }
    }
}

/// The pages `/livez`, `/readyz`, `/metrics` and `/debug`. Once `drain` is signalled, `/readyz` says no at once.
pub fn router(config: Config, metrics: Arc<Registry>, ready: Ready, debug: Debug, drain: Drain) -> Router {
    let pages = Arc::new(Pages { config, metrics, ready, debug, drain, last: Mutex::new(None) });
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(counted))
        .route("/debug", get(doing))
        .with_state(pages)
}

struct Pages {
    config: Config,
    metrics: Arc<Registry>,
    ready: Ready,
    debug: Debug,
    drain: Drain,
    /// When the probe last answered, and what.
    last: Mutex<Option<(Instant, Readiness)>>,
}

#[derive(Debug, Clone, Serialize)]
struct Readiness {
    ready: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
}

impl Pages {
    /// One probe at a time; who comes meanwhile gets its answer. Cancel safe: a dropped call leaves the older answer.
    async fn readiness(&self) -> Readiness {
        if self.drain.is_signalled() {
            return Readiness { ready: false, reasons: vec!["asked to end".to_owned()] };
        }
        let mut last = self.last.lock().await;
        if let Some((when, answer)) = &*last
            && when.elapsed() < self.config.probe_every
        {
            return answer.clone();
        }
        let reasons = match tokio::time::timeout(self.config.probe_timeout, (self.ready)()).await {
            Ok(Ok(())) => Vec::new(),
            // Not ready is not ready, also without a reason.
            Ok(Err(reasons)) if reasons.is_empty() => vec!["no reason was given".to_owned()],
            Ok(Err(reasons)) => reasons,
            Err(_) => vec![format!("the probe took longer than {:?}", self.config.probe_timeout)],
        };
        let answer = Readiness { ready: reasons.is_empty(), reasons };
        let before = last.as_ref().map(|(_, answer)| answer.ready);
        if before != Some(answer.ready) {
            match answer.ready {
                true => tracing::info!("ready"),
                false => tracing::warn!(reasons = ?answer.reasons, "not ready"),
            }
        }
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}

/// The runtime answers, so it lives.
async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(pages): State<Arc<Pages>>) -> Response {
    let answer = pages.readiness().await;
    let status = if answer.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(answer)).into_response()
}

async fn counted(State(pages): State<Arc<Pages>>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], pages.metrics.encode()).into_response()
}

async fn doing(State(pages): State<Arc<Pages>>) -> Response {
    Json((pages.debug)().await).into_response()
}
