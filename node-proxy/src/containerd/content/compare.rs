//! What containerd knows, so that what it does not know may go.
//!
//! After a start everything that is held is claimed. When containerd answers, its namespaces are listed twice, some time apart: it
//! writes a blob's name into its database a moment after we were asked for it, and what it was told before our restart would
//! else be missing. What neither list has is cache from then on. What was claimed since stays in any case.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1 as wire;
use rand::RngExt as _;
use shoal_base::backoff::Backoff;
use tonic::transport::Channel;
use wire::introspection_client::IntrospectionClient;

use super::Metrics;
use crate::containerd::Config;
use crate::containerd::client::{connect, known_blobs};
use crate::store::Content;

/// Between the two lists: longer than containerd takes from asking for a blob to knowing it.
const SECOND_LOOK: Duration = Duration::from_secs(20);
/// Between two attempts. containerd starts after us.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Why containerd's list is not to be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unknown {
    /// It does not answer, or not with that.
    #[error("ask containerd: {0}")]
    Call(#[from] tonic::Status),
    /// Nobody is there.
    #[error("connect to containerd: {0}")]
    Connect(#[from] tonic::transport::Error),
    /// Whoever answers keeps its content elsewhere. What it knows says nothing of ours.
    #[error("the containerd at {0} does not use this content store")]
    Another(String),
}

/// Compares until it worked once.
pub(super) async fn run(store: Arc<dyn Content>, config: &Config, metrics: &Metrics) {
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    let mut told = false;
    loop {
        match compare(&*store, config, metrics, SECOND_LOOK).await {
            Ok(()) => return,
            Err(error @ Unknown::Another(_)) if !told => {
                tracing::warn!(%error, "everything that is held is kept");
                told = true;
            }
            Err(error) => tracing::debug!(%error, "everything that is held is kept until containerd answers"),
        }
        let pause = backoff.next(rand::rng().random());
        tokio::time::sleep(pause).await;
    }
}

pub(super) async fn compare(
    store: &dyn Content,
    config: &Config,
    metrics: &Metrics,
    apart: Duration,
) -> Result<(), Unknown> {
    let began = store.moment();
    let channel = connect(&config.address).await?;
    uses_us(channel.clone(), config).await?;
    let mut known = known_blobs(&channel).await?;
    tokio::time::sleep(apart).await;
    known.extend(known_blobs(&channel).await?);
    let mut missing = known.iter().filter(|digest| store.held(digest).is_none());
    let example = missing.next();
    let lacking = missing.count() + usize::from(example.is_some());
    if let Some(digest) = example {
        tracing::error!(blobs = lacking, example = %digest, "containerd knows blobs that are not held; images that need them are broken");
    }
    metrics.compared(lacking);
    let blobs = known.len();
    let given_up = store.unclaim_others(known, began).await;
    tracing::info!(blobs, given_up, "compared with containerd: what it does not know is cache");
    Ok(())
}

/// Whether containerd has us as a plugin: another containerd's list would be taken for leave to throw away what ours needs.
async fn uses_us(channel: Channel, config: &Config) -> Result<(), Unknown> {
    let request = wire::PluginsRequest { filters: vec!["type==io.containerd.content.v1".into()] };
    let plugins = IntrospectionClient::new(channel).plugins(request).await?.into_inner().plugins;
    let ours = config.content_listen.as_deref();
    let uses = plugins.iter().filter(|plugin| plugin.init_err.is_none()).any(|plugin| {
        let address = plugin.exports.get("address").map(|address| address.trim_start_matches("unix://"));
        address.map(Path::new) == ours
    });
    if uses { Ok(()) } else { Err(Unknown::Another(config.address.display().to_string())) }
}
