//! What a flight reads from: the origin and the peers, as the engine sees them. The real ones are one implementation
//! each; the tests have a second.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use shoal_proto::{Digest, Hash, Layout, PieceList};
use tokio::sync::{mpsc, watch};

use super::Want;
use crate::origin::OriginError;
use crate::swarm::{Event, Ground, ListError, Parent};

/// The start of a body from the origin.
pub struct Incoming {
    /// Bytes of the whole content, when the origin says it.
    pub size: Option<u64>,
    /// Content-Type as the origin gave it; empty when it gave none.
    pub media_type: String,
    /// The bytes that were asked for, in order; it ends with the range's end or an error.
    pub stream: BoxStream<'static, Result<Bytes, OriginError>>,
}

/// The registry, read with an anonymous token.
#[async_trait::async_trait]
pub trait Upstream: Send + Sync + 'static {
    /// Asks for content, whole or a range of it (half open). Returns when headers have come.
    ///
    /// # Errors
    /// [`OriginError`].
    async fn read(&self, want: &Want, range: Option<Range<u64>>) -> Result<Incoming, OriginError>;
}

/// Bytes from peers.
#[async_trait::async_trait]
pub trait Peers: Send + Sync + 'static {
    /// Fetches what the ground lacks, until it is whole or halts, or the call is dropped.
    async fn fetch(&self, ground: Arc<dyn Ground>, parents: watch::Receiver<Arc<[Parent]>>, events: mpsc::Sender<Event>);

    /// The body of a sealed list, checked against its root.
    ///
    /// # Errors
    /// [`ListError`] of the last parent that was asked.
    async fn fetch_list(
        &self,
        digest: Digest,
        layout: Layout,
        root: Hash,
        parents: Arc<[Parent]>,
    ) -> Result<PieceList, ListError>;
}
