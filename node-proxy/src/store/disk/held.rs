//! A held blob's file, open for reading.

use std::fs::{File, FileTimes};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use shoal_proto::{Digest, PieceList};

use super::{Inner, blocking, is_cached};
use crate::store::files::failed;
use crate::store::ledger::Opened;
use crate::store::{Held, Info, StoreError, sidecar};

pub(super) struct HeldFile {
    inner: Arc<Inner>,
    digest: Digest,
    path: Arc<PathBuf>,
    file: Arc<File>,
    opened: Opened,
}

impl HeldFile {
    /// `None`, and not held any more: somebody removed or cut the file.
    pub(super) fn open(inner: Arc<Inner>, digest: Digest, opened: Opened) -> Result<Option<Self>, StoreError> {
        let path = inner.places.held(&digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), "held blob vanished");
                inner.ledger.lost(&digest);
                return Ok(None);
            }
            Err(error) => return Err(failed("open", &path, 0)(error)),
        };
        let len = file.metadata().map_err(failed("stat", &path, 0))?.len();
        if len != opened.info.size {
            tracing::warn!(path = %path.display(), len, size = opened.info.size, "held blob has another length and goes");
            let _room = inner.room.lock();
            inner.ledger.lost(&digest);
            inner.unlink_held(&digest)?;
            return Ok(None);
        }
        if opened.stamp {
            stamp(&file);
        }
        Ok(Some(Self { inner, digest, path: Arc::new(path), file: Arc::new(file), opened }))
    }

    /// A blob that was just committed: its file is open already.
    pub(super) fn committed(inner: Arc<Inner>, digest: Digest, file: Arc<File>, opened: Opened) -> Self {
        let path = Arc::new(inner.places.held(&digest));
        Self { inner, digest, path, file, opened }
    }
}

/// Writes the time of use as mtime, so that the order of eviction survives a restart. A disk that can't keep it loses
/// the order, nothing else.
pub(super) fn stamp(file: &File) {
    if let Err(error) = file.set_times(FileTimes::new().set_modified(SystemTime::now())) {
        tracing::debug!(%error, "last use was not kept");
    }
}

#[async_trait::async_trait]
impl Held for HeldFile {
    fn info(&self) -> &Info {
        &self.opened.info
    }

    async fn list(&self) -> Result<PieceList, StoreError> {
        let (path, root) = (self.inner.places.held_list(&self.digest), self.opened.info.root);
        blocking(move || {
            let bytes = std::fs::read(&path).map_err(failed("read", &path, 0))?;
            match sidecar::decode_held(&bytes) {
                Ok((head, list)) if head.root == root => Ok(list),
                Ok(_) => Err(StoreError::Damaged(format!("{} is of another blob", path.display()))),
                Err(torn) => Err(StoreError::Damaged(format!("{} {torn}", path.display()))),
            }
        })
        .await
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        let (inner, file, path) = (Arc::clone(&self.inner), Arc::clone(&self.file), Arc::clone(&self.path));
        let size = self.opened.info.size;
        blocking(move || inner.read_at(&file, &path, offset, len, size)).await
    }

    async fn warm(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        if is_cached(&self.file, offset, len) {
            return Ok(());
        }
        let (inner, file, path) = (Arc::clone(&self.inner), Arc::clone(&self.file), Arc::clone(&self.path));
        blocking(move || inner.warm(&file, &path, offset, len)).await
    }

    fn file(&self) -> Option<Arc<File>> {
        Some(Arc::clone(&self.file))
    }
}
