use std::sync::Arc;

use bytes::Bytes;
use shoal_proto::{BlockIndex, BlockSet, Digest, Layout, PieceList};
use tokio::sync::watch;

use crate::blob::{self, Engine, ReadError};

/// What this node can serve. The engine implements it; a test's is in memory.
#[async_trait::async_trait]
pub trait Offers: Send + Sync + 'static {
    /// What there is of a digest, whole or growing. `None`: nothing. Keeps the blob from eviction while it lives.
    async fn offer(&self, digest: &Digest) -> Option<Arc<dyn Offer>>;
}

/// A blob that this node holds, or is fetching.
#[async_trait::async_trait]
pub trait Offer: Send + Sync {
    /// How it is cut.
    fn layout(&self) -> Layout;

    /// Content-Type as the origin gave it; empty when it gave none.
    fn media_type(&self) -> &str;

    /// Whether the SHA-256 of the whole was checked.
    fn is_whole(&self) -> bool;

    /// The hashes known now; complete if the blob is whole.
    ///
    /// # Errors
    /// [`ReadError`]: the list can't be read.
    async fn list(&self) -> Result<PieceList, ReadError>;

    /// The blocks that can be read now.
    fn have(&self) -> BlockSet;

    /// What of `have` this node has first hand, so that a crowd's bytes come from here: blocks that it read from the origin.
    /// `None` for a blob that came from peers, which is the rule.
    fn first_hand(&self) -> Option<BlockSet> {
        None
    }

    /// Changes when `have` grows or the offer ends.
    fn changed(&self) -> watch::Receiver<u64>;

    /// Whether the flight failed, so that nothing can be read any more.
    fn is_over(&self) -> bool;

    /// All bytes of a block that `have` names.
    ///
    /// # Errors
    /// [`ReadError`]: it can't be read any more.
    async fn read_block(&self, block: BlockIndex) -> Result<Bytes, ReadError>;
}

#[async_trait::async_trait]
impl Offers for Engine {
    async fn offer(&self, digest: &Digest) -> Option<Arc<dyn Offer>> {
        Self::offer(self, digest).await.map(|offer| Arc::new(offer) as Arc<dyn Offer>)
    }
}

#[async_trait::async_trait]
impl Offer for blob::Offer {
    fn layout(&self) -> Layout {
        Self::layout(self)
    }

    fn media_type(&self) -> &str {
        Self::media_type(self)
    }

    fn is_whole(&self) -> bool {
        Self::is_whole(self)
    }

    async fn list(&self) -> Result<PieceList, ReadError> {
        Self::list(self).await
    }

    fn have(&self) -> BlockSet {
        Self::have(self)
    }

    fn first_hand(&self) -> Option<BlockSet> {
        Self::first_hand(self)
    }

    fn changed(&self) -> watch::Receiver<u64> {
        Self::changed(self)
    }

    fn is_over(&self) -> bool {
        Self::is_over(self)
    }

    async fn read_block(&self, block: BlockIndex) -> Result<Bytes, ReadError> {
        Self::read_block(self, block).await
    }
}
