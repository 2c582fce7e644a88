//! The disk as containerd's content store.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use shoal_proto::Digest;

use super::ingest::Ingest;
use super::{Disk, Inner, blocking, now};
use crate::store::ingest::Labelled;
use crate::store::places::LABELS;
use crate::store::{Claimed, Content, IngestError, IngestStatus, LabelUpdate, Notes, StoreError, sidecar};

#[async_trait::async_trait]
impl Content for Disk {
    fn claim(&self, digest: &Digest) -> Option<Claimed> {
        self.inner.ledger.keep(digest, now())
    }

    async fn unclaim(&self, digest: &Digest) -> bool {
        let was = self.inner.ledger.let_go(digest);
        if was && self.inner.ledger.is_above() {
            let inner = Arc::clone(&self.inner);
            let shrunk = blocking(move || {
                let _room = inner.room.lock();
                inner.evict(inner.ledger.shrink());
                Ok(())
            });
            // A daemon that ends: the next start does it.
            _ = shrunk.await;
        }
        was
    }

    fn claimed(&self) -> Vec<Claimed> {
        self.inner.ledger.kept()
    }

    fn moment(&self) -> u64 {
        self.inner.ledger.moment(now())
    }

    async fn unclaim_others(&self, known: HashSet<Digest>, until: u64) -> usize {
        let inner = Arc::clone(&self.inner);
        let shrunk = blocking(move || {
            let _room = inner.room.lock();
            let gone = inner.ledger.let_others_go(&known, until);
            inner.evict(inner.ledger.shrink());
            Ok(gone)
        });
        shrunk.await.unwrap_or_default()
    }

    async fn label(&self, digest: &Digest, update: LabelUpdate) -> Result<Option<Claimed>, StoreError> {
        let (inner, digest) = (Arc::clone(&self.inner), *digest);
        blocking(move || inner.label(&digest, update)).await
    }

    async fn ingest(&self, reference: &str, total: u64) -> Result<Ingest, IngestError> {
        Ingest::open(&self.inner, reference, total).await
    }

    fn ingests(&self) -> Vec<IngestStatus> {
        self.inner.ingests.list()
    }

    fn ingest_status(&self, reference: &str) -> Option<IngestStatus> {
        self.inner.ingests.status(reference)
    }

    async fn abort(&self, reference: &str) -> Result<bool, StoreError> {
        let (inner, reference) = (Arc::clone(&self.inner), reference.to_owned());
        blocking(move || inner.abort_ingest(&reference)).await
    }
}

impl Inner {
    fn label(&self, digest: &Digest, update: LabelUpdate) -> Result<Option<Claimed>, StoreError> {
        let _labelling = self.labelling.lock();
        let Some(mut labels) = self.ledger.labels(digest) else { return Ok(None) };
        match update {
            LabelUpdate::All(all) => labels = all,
            LabelUpdate::Some(some) => {
                labels.extend(some);
                labels.retain(|_, value| !value.is_empty());
            }
        }
        let labelled = Labelled { updated: now(), labels };
        self.write_labels(digest, &labelled)?;
        self.files.sync_dir(self.places.held(digest).parent().unwrap_or(self.places.dir()))?;
        Ok(self.ledger.label(digest, labelled))
    }

    /// Puts labels beside a held blob, or one that is about to be. The directory is not synced.
    pub(super) fn write_labels(&self, digest: &Digest, labels: &Labelled) -> Result<(), StoreError> {
        let new = self.places.beside_partial(digest, LABELS);
        self.files.write_new(&new, &labels.encode(), true)?;
        self.files.rename(&new, &self.places.held_labels(digest))
    }

    /// Makes a file with checked and synced bytes held, but for the ledger: the steps of a commit, in their order.
    pub(super) fn put_held(&self, digest: &Digest, bytes: &Path, notes: &Notes) -> Result<(), StoreError> {
        let list =
            sidecar::encode_held(notes).ok_or_else(|| StoreError::refused(digest, "the list is not complete"))?;
        let (held, held_list) = (self.places.held(digest), self.places.held_list(digest));
        let new_list = self.places.beside_partial(digest, crate::store::places::LIST);
        self.files.write_new(&new_list, &list, true)?;
        self.files.rename(&new_list, &held_list)?;
        self.files.rename(bytes, &held)?;
        self.files.sync_dir(held.parent().unwrap_or(self.places.dir()))?;
        self.files.sync_dir(bytes.parent().unwrap_or(self.places.dir()))
    }

    /// After [`Inner::put_held`] failed: whatever was moved goes back or away, so that the next start does not find it held.
    pub(super) fn take_back(&self, digest: &Digest, bytes: &Path) -> Result<(), StoreError> {
        self.files.unlink(&self.places.held_list(digest))?;
        if bytes.exists() { Ok(()) } else { self.files.rename(&self.places.held(digest), bytes) }
    }
}
