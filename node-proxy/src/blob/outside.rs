//! What a flight reads from: the origin and the peers, as the engine sees them. The real ones are one implementation
//! each; the tests have a second.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use http::HeaderValue;
use shoal_proto::{Digest, Hash, Kind, Layout, PieceList};
use tokio::sync::{mpsc, watch};

use super::Want;
use crate::origin::OriginError;
use crate::origin::{ByteRange, Origin, Who};
use crate::swarm::{Event, Ground, ListError, Parent, Sighting, Swarm};

/// What a registry may answer a manifest's digest with. Without them some answer with a converted schema 1.
const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// The start of a body from the origin.
pub struct Incoming {
    /// Bytes of the whole content, when the origin says it.
    pub size: Option<u64>,
    /// Content-Type as the origin gave it; empty when it gave none.
    pub media_type: String,
    /// It gives the whole whatever range is asked for: what is before the first byte came over the wire as well.
    pub ignores_ranges: bool,
    /// The bytes that were asked for, in order; it ends with the range's end or an error.
    pub stream: BoxStream<'static, Result<Bytes, OriginError>>,
}

/// The registry.
#[async_trait::async_trait]
pub trait Upstream: Send + Sync + 'static {
    /// Asks for content on behalf of who wants it, whole or a range of it (half open). Returns when headers have come.
    ///
    /// # Errors
    /// [`OriginError`].
    async fn read(&self, want: &Want, range: Option<Range<u64>>) -> Result<Incoming, OriginError>;
}

/// Bytes from peers.
#[async_trait::async_trait]
pub trait Peers: Send + Sync + 'static {
    /// Fetches what the ground lacks, until it is whole or halts, or the call is dropped.
    async fn fetch(
        &self,
        ground: Arc<dyn Ground>,
        parents: watch::Receiver<Arc<[Parent]>>,
        events: mpsc::Sender<Event>,
    );

    /// The body of a sealed list, checked against its root; `events` hears of parents that sent another.
    ///
    /// # Errors
    /// [`ListError`] of the last parent that was asked.
    async fn fetch_list(
        &self,
        digest: Digest,
        layout: Layout,
        root: Hash,
        parents: Arc<[Parent]>,
        events: mpsc::Sender<Event>,
    ) -> Result<PieceList, ListError>;

    /// Asks parents that may know nothing of the blob; what the first says that holds it whole.
    async fn locate(&self, digest: Digest, parents: Vec<Parent>) -> Sighting;
}

#[async_trait::async_trait]
impl Upstream for Origin {
    async fn read(&self, want: &Want, range: Option<Range<u64>>) -> Result<Incoming, OriginError> {
        let asked = range.as_ref().and_then(ByteRange::of);
        let accept = match want.kind {
            Kind::Blob => Vec::new(),
            Kind::Manifest => MANIFESTS.iter().copied().map(HeaderValue::from_static).collect(),
        };
        let get = |who| self.get(&want.target, want.kind, &want.digest, asked, &accept, who);
        let body = match get(&want.who).await {
            // The caller's token may be over before the bytes are; its right to them was checked when it asked.
            Err(refused @ (OriginError::Unauthorized { .. } | OriginError::Denied { .. }))
                if matches!(want.who, Who::Caller(_)) && self.has_own() =>
            {
                get(&Who::Own).await.map_err(|error| {
                    if !matches!(error, OriginError::Unauthorized { .. }) {
                        tracing::warn!(registry = %want.target.registry, %error, "read with this node's own credentials");
                    }
                    // The caller is to answer the registry's own challenge.
                    refused
                })?
            }
            answer => answer?,
        };
        let registry = || want.target.registry.to_string();
        if range.as_ref().is_some_and(|range| range.start != body.start || !body.partial) {
            return Err(OriginError::Nonsense { registry: registry(), why: "another range than was asked for".into() });
        }
        let (size, media_type) = (body.size, body.media_type.clone());
        Ok(Incoming { size, media_type, ignores_ranges: body.ignores_ranges(), stream: body.into_stream() })
    }
}

#[async_trait::async_trait]
impl Peers for Arc<Swarm> {
    async fn fetch(
        &self,
        ground: Arc<dyn Ground>,
        parents: watch::Receiver<Arc<[Parent]>>,
        events: mpsc::Sender<Event>,
    ) {
        // A halt was the ground's own word.
        let _ = Swarm::fetch(self, ground, parents, events).await;
    }

    async fn fetch_list(
        &self,
        digest: Digest,
        layout: Layout,
        root: Hash,
        parents: Arc<[Parent]>,
        events: mpsc::Sender<Event>,
    ) -> Result<PieceList, ListError> {
        Swarm::fetch_list(self, digest, layout, root, &parents, events).await
    }

    async fn locate(&self, digest: Digest, parents: Vec<Parent>) -> Sighting {
        Swarm::locate(self, digest, &parents).await
    }
}
