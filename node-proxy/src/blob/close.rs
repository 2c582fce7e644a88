//! The SHA-256 of the whole: it follows the verified blocks in order, so that it closes soon after the last one.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use shoal_proto::Digest;

use super::flight::Flight;
use super::{ReadError, store_failed};

/// Read and hashed at once: long enough to be worth a thread hop, short enough to bound memory.
const STRIDE: u64 = 1 << 20;

/// Reads the blob behind its blocks and hashes it. Returns when every byte was hashed; the caller compares.
/// Bytes come back from the page cache, where they were just written, so that blocks may arrive in any order.
pub(super) async fn follow(flight: Arc<Flight>) -> Result<Digest, ReadError> {
    let digest = flight.digest();
    let mut changed = flight.subscribe();
    let Some((layout, partial)) = flight.body(|body| (body.layout, Arc::clone(&body.partial))) else {
        return Err(ReadError::Failed(digest, "hashed before its size was known".into()));
    };
    let mut hasher = Sha256::new();
    let mut at = 0;
    while at < layout.size() {
        changed.borrow_and_update();
        let missing = flight.body(|body| body.have.first_missing(layout.block_at(at))).unwrap_or(0);
        let end = layout.block_range(missing).start.max(at);
        if end == at {
            let gone = |_| ReadError::Failed(digest, "its flight vanished".into());
            changed.changed().await.map_err(gone)?;
            continue;
        }
        let len = (end - at).min(STRIDE);
        let bytes = partial.read_at(at, len as usize).await.map_err(|error| store_failed(digest, &error))?;
        if bytes.is_empty() {
            return Err(ReadError::Failed(digest, format!("its file ends at {at}")));
        }
        at += bytes.len() as u64;
        let hashed = tokio::task::spawn_blocking(move || {
            hasher.update(&bytes);
            hasher
        });
        hasher = hashed.await.map_err(|error| ReadError::Failed(digest, error.to_string()))?;
    }
    Ok(Digest::from_bytes(hasher.finalize().into()))
}
