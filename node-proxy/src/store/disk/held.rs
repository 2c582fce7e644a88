//! A held blob's file, open for reading.

use std::fs::{File, FileTimes, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use shoal_proto::{Digest, PieceList};

use super::{Inner, blocking, is_cached};
use crate::store::files::failed;
use crate::store::ledger::Opened;
use crate::store::{FileIdentity, Held, Info, StoreError, sidecar};

pub(super) struct HeldFile {
    inner: Arc<Inner>,
    digest: Digest,
    path: Arc<PathBuf>,
    file: Arc<File>,
    opened: Opened,
}

impl HeldFile {
    /// `None`, and not held any more: somebody removed, cut or replaced the file.
    pub(super) fn open(inner: Arc<Inner>, digest: Digest, opened: Opened) -> Result<Option<Self>, StoreError> {
        let mut looked = inner.look(&digest, &opened)?;
        if looked.is_err() {
            // Its name may just have been led to another file.
            let _room = inner.room.lock();
            looked = inner.look(&digest, &opened)?;
            if let Err(why) = &looked {
                tracing::warn!(path = %inner.places.held(&digest).display(), why, "held blob goes");
                inner.ledger.lost(&digest);
                inner.unlink_held(&digest)?;
            }
        }
        let Ok(file) = looked else { return Ok(None) };
        if opened.stamp {
            stamp(&file);
        }
        let path = Arc::new(inner.places.held(&digest));
        Ok(Some(Self { inner, digest, path, file: Arc::new(file), opened }))
    }

    /// A blob that was just committed: its file is open already.
    pub(super) fn committed(inner: Arc<Inner>, digest: Digest, file: Arc<File>, opened: Opened) -> Self {
        let path = Arc::new(inner.places.held(&digest));
        Self { inner, digest, path, file, opened }
    }
}

impl Inner {
    /// A held blob's file, if it is still the one whose bytes were checked.
    fn look(&self, digest: &Digest, opened: &Opened) -> Result<Result<File, &'static str>, StoreError> {
        let path = self.places.held(digest);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Err("its file vanished")),
            file => file.map_err(failed("open", &path, 0))?,
        };
        let there = file.metadata().map_err(failed("stat", &path, 0))?;
        if there.len() != opened.info.size {
            return Ok(Err("its file has another length"));
        }
        if opened.shared && is_symlink(&path) && !self.is_theirs(digest, &there) {
            return Ok(Err("another file is where its own was"));
        }
        Ok(Ok(file))
    }

    /// Whether a file that a held blob's name leads to is the one that it was led to.
    pub(super) fn is_theirs(&self, digest: &Digest, there: &Metadata) -> bool {
        FileIdentity::read(&self.places.held_theirs(digest)) == Some(FileIdentity::of(there))
    }
}

pub(super) fn is_symlink(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|name| name.is_symlink())
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
