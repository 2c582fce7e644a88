//! What containerd knows, so that what it does not know may go.
//!
//! After a start everything that is held is claimed. When containerd answers, its namespaces are listed twice, some time apart: it
//! writes a blob's name into its database a moment after we were asked for it, and what it was told before our restart would
//! else be missing. What neither list has is cache from then on. What was claimed since stays in any case.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1 as wire;
use hyper_util::rt::TokioIo;
use rand::RngExt as _;
use shoal_base::backoff::Backoff;
use shoal_proto::Digest;
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use wire::content_client::ContentClient;
use wire::introspection_client::IntrospectionClient;
use wire::namespaces_client::NamespacesClient;

use super::Metrics;
use crate::containerd::Config;
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
    let mut known = list(channel.clone()).await?;
    tokio::time::sleep(apart).await;
    known.extend(list(channel).await?);
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

async fn connect(address: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = address.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
    });
    // The address is not used.
    Endpoint::from_static("http://containerd").connect_with_connector(connector).await
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

async fn list(channel: Channel) -> Result<HashSet<Digest>, Unknown> {
    let namespaces = NamespacesClient::new(channel.clone()).list(wire::ListNamespacesRequest::default()).await?;
    let mut known = HashSet::new();
    for namespace in namespaces.into_inner().namespaces {
        let mut request = Request::new(wire::ListContentRequest::default());
        let name =
            MetadataValue::try_from(&namespace.name).map_err(|error| tonic::Status::internal(error.to_string()))?;
        request.metadata_mut().insert("containerd-namespace", name);
        let mut infos = ContentClient::new(channel.clone()).list(request).await?.into_inner();
        while let Some(part) = infos.message().await? {
            // Digests of other algorithms are not ours.
            known.extend(part.info.iter().filter_map(|info| info.digest.parse::<Digest>().ok()));
        }
    }
    Ok(known)
}
