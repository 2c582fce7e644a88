//! What this node gives to peers of a digest: a held blob, or a running flight's verified blocks.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use shoal_proto::{BlockIndex, BlockSet, Digest, Layout, PieceList};
use tokio::sync::watch;

use super::flight::{End, Flight};
use super::{ReadError, store_failed};
use crate::store::Held;

/// What can be had here of a digest. Cheap to clone; keeps the blob from eviction, and its flight going.
#[derive(Clone)]
pub struct Offer(Arc<From>);

enum From {
    Held { held: Arc<dyn Held>, layout: Layout, first_hand: bool, still: watch::Sender<u64> },
    Flight { digest: Digest, flight: Arc<Flight>, layout: Layout, media_type: Arc<str> },
}

impl Offer {
    /// `first_hand`: this node read most of it from the origin itself, in the life of this process.
    pub(super) fn held(held: Arc<dyn Held>, first_hand: bool) -> Option<Self> {
        let layout = Layout::of(held.info().size).ok()?;
        Some(Self(Arc::new(From::Held { held, layout, first_hand, still: watch::Sender::new(0) })))
    }

    /// `None` while the size is not known, or when the flight failed.
    pub(super) fn flight(digest: Digest, flight: Arc<Flight>) -> Option<Self> {
        match flight.end() {
            Some(End::Held(held)) => return Self::held(held, flight.is_first_hand()),
            Some(End::Failed(_)) => return None,
            None => {}
        }
        let (layout, media_type) = flight.body(|body| (body.layout, Arc::clone(&body.media_type)))?;
        flight.offer_comes();
        Some(Self(Arc::new(From::Flight { digest, flight, layout, media_type })))
    }

    /// How the blob is cut.
    pub fn layout(&self) -> Layout {
        match &*self.0 {
            From::Held { layout, .. } | From::Flight { layout, .. } => *layout,
        }
    }

    /// Content-Type as the origin gave it; empty when it gave none.
    pub fn media_type(&self) -> &str {
        match &*self.0 {
            From::Held { held, .. } => &held.info().media_type,
            From::Flight { media_type, .. } => media_type,
        }
    }

    /// Whether the blob is held, its SHA-256 checked.
    pub fn is_whole(&self) -> bool {
        match &*self.0 {
            From::Held { .. } => true,
            From::Flight { flight, .. } => matches!(flight.end(), Some(End::Held(_))),
        }
    }

    /// Whether the flight failed and nothing can be read any more.
    pub fn is_over(&self) -> bool {
        match &*self.0 {
            From::Held { .. } => false,
            From::Flight { flight, .. } => matches!(flight.end(), Some(End::Failed(_))),
        }
    }

    /// The hashes known now; all of them when whole.
    ///
    /// # Errors
    /// When the sidecar can't be read.
    pub async fn list(&self) -> Result<PieceList, ReadError> {
        match &*self.0 {
            From::Held { held, .. } => {
                held.list().await.map_err(|error| ReadError::Failed(Digest::from_bytes([0; 32]), error.to_string()))
            }
            From::Flight { digest, flight, .. } => flight
                .body(|body| body.list.clone())
                .ok_or_else(|| ReadError::Failed(*digest, "its list is not known yet".into())),
        }
    }

    /// Blocks that can be read now.
    pub fn have(&self) -> BlockSet {
        match &*self.0 {
            From::Held { layout, .. } => BlockSet::full(*layout),
            From::Flight { flight, layout, .. } => {
                flight.body(|body| body.have.clone()).unwrap_or_else(|| BlockSet::empty(*layout))
            }
        }
    }

    /// Blocks that this node read from the origin in this flight, or in the one that brought the held blob. `None`: none of them.
    pub fn first_hand(&self) -> Option<BlockSet> {
        match &*self.0 {
            From::Held { layout, first_hand, .. } => first_hand.then(|| BlockSet::full(*layout)),
            From::Flight { flight, .. } => flight.body(|body| body.first_hand().clone()).filter(|own| !own.is_empty()),
        }
    }

    /// Changes when [`Offer::have`] grows or the offer is over.
    pub fn changed(&self) -> watch::Receiver<u64> {
        match &*self.0 {
            From::Held { still, .. } => still.subscribe(),
            From::Flight { flight, .. } => flight.subscribe(),
        }
    }

    /// The file that has the bytes of the blocks that [`Offer::have`] names, at their offsets. They stay what they are as long
    /// as somebody has it open. `None`: the store is not of files, or the flight failed.
    pub fn file(&self) -> Option<Arc<File>> {
        match &*self.0 {
            From::Held { held, .. } => held.file(),
            From::Flight { flight, .. } => match flight.end() {
                Some(End::Held(held)) => held.file(),
                Some(End::Failed(_)) => None,
                None => flight.partial()?.file(),
            },
        }
    }

    /// All bytes of a block that [`Offer::have`] names.
    ///
    /// # Errors
    /// When the disk fails, or the flight failed in the meantime.
    pub async fn read_block(&self, block: BlockIndex) -> Result<Bytes, ReadError> {
        let layout = self.layout();
        let (offset, len) = (layout.block_range(block).start, layout.block_len(block));
        match &*self.0 {
            From::Held { held, .. } => {
                let digest = Digest::from_bytes([0; 32]);
                held.read_at(offset, len).await.map_err(|error| store_failed(digest, &error))
            }
            From::Flight { digest, flight, .. } => {
                if let Some(partial) = flight.partial().filter(|_| !flight.is_over()) {
                    match partial.read_at(offset, len).await {
                        Ok(bytes) => return Ok(bytes),
                        Err(error) if !flight.is_over() => return Err(store_failed(*digest, &error)),
                        Err(_) => {}
                    }
                }
                match flight.end() {
                    Some(End::Held(held)) => {
                        held.read_at(offset, len).await.map_err(|error| store_failed(*digest, &error))
                    }
                    Some(End::Failed(error)) => Err(error),
                    None => Err(ReadError::Failed(*digest, "its bytes vanished".into())),
                }
            }
        }
    }
}

impl Drop for From {
    fn drop(&mut self) {
        if let Self::Flight { flight, .. } = self {
            flight.offer_goes();
        }
    }
}
