//! Files of somebody else become held blobs, and held blobs are given away as files.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;

use shoal_proto::{Digest, Layout, NodeId};

use super::held::is_symlink;
use super::{Disk, Inner, blocking, now};
use crate::store::files::failed;
use crate::store::ingest::Sums;
use crate::store::{Info, Notes, StoreError};

/// Read at once.
const CHUNK: usize = 1 << 20;
/// About to become held. A start removes what is left of it.
const ADOPTED: &str = "adopted";
/// About to be given away. The next release writes it anew.
const RELEASED: &str = ".shoal";

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopted {
    /// It is there, and was before.
    Already,
    /// The same file has one more name: it takes no room of its own.
    Linked(u64),
    /// Its bytes were copied.
    Copied(u64),
    /// Its bytes have another SHA-256 than its name says: it was left alone.
    Wrong,
}

impl Disk {
    /// Makes a file held, and claimed, when its SHA-256 is what it should be: as a second name of it, or as a copy where that can't be. What is
    /// hashed is what is kept. `media_type` says what a small blob is, from its bytes.
    ///
    /// # Errors
    /// [`StoreError`]; the blob is not held then.
    pub async fn adopt(
        &self,
        digest: &Digest,
        from: &Path,
        author: &NodeId,
        media_type: fn(&[u8]) -> String,
    ) -> Result<Adopted, StoreError> {
        let (inner, digest, from, author) = (Arc::clone(&self.inner), *digest, from.to_owned(), author.clone());
        blocking(move || inner.adopt(&digest, &from, author, media_type)).await
    }

    /// Gives a held blob away as the file `to`, synced, with its directory: as a second name, or as a copy where that can't be. A file
    /// that is there with the same bytes stays as it is, another goes. What is not finished lies in `aside`, on the same file system.
    /// `None`: it is not held.
    ///
    /// # Errors
    /// [`StoreError::Io`]; there is no file then, or the one that was there.
    pub async fn release(&self, digest: &Digest, to: &Path, aside: &Path) -> Result<Option<Adopted>, StoreError> {
        let (inner, digest, to, aside) = (Arc::clone(&self.inner), *digest, to.to_owned(), aside.to_owned());
        blocking(move || inner.release(&digest, &to, &aside)).await
    }
}

impl Inner {
    fn adopt(
        &self,
        digest: &Digest,
        from: &Path,
        author: NodeId,
        media_type: fn(&[u8]) -> String,
    ) -> Result<Adopted, StoreError> {
        let _turn = self.turns.take(*digest);
        // A name that leads to a file of somebody else's is not ours: it goes with that file.
        let theirs = is_symlink(&self.places.held(digest));
        if !theirs && self.ledger.keep(digest, now()).is_some() {
            return Ok(Adopted::Already);
        }
        let size = std::fs::metadata(from).map_err(failed("stat", from, 0))?.len();
        let layout = Layout::of(size).map_err(|error| StoreError::refused(digest, error.to_string()))?;
        let new = self.places.beside_partial(digest, ADOPTED);
        self.files.unlink(&new)?;
        let linked = link_or_copy(from, &new, size)?;
        let (sums, small) = hash(&new, size)?;
        let Some(list) = sums.list(layout).filter(|_| sums.digest() == *digest) else {
            self.files.unlink(&new)?;
            if theirs {
                let _room = self.room.lock();
                self.ledger.lost(digest);
                self.unlink_held(digest)?;
            }
            return Ok(Adopted::Wrong);
        };
        let media_type: Arc<str> = media_type(&small).into();
        let info = Info { size, root: list.root().unwrap_or_default(), media_type: Arc::clone(&media_type) };
        if let Err(error) = self.put_held(digest, &new, &Notes { list, author, media_type }) {
            self.take_back(digest, &new)?;
            return Err(error);
        }
        if theirs {
            self.files.unlink(&self.places.held_theirs(digest))?;
        }
        self.ledger.adopt(digest, info.clone(), now());
        self.remember(digest, &info);
        Ok(if linked { Adopted::Linked(size) } else { Adopted::Copied(size) })
    }

    fn release(&self, digest: &Digest, to: &Path, aside: &Path) -> Result<Option<Adopted>, StoreError> {
        let Some(info) = self.ledger.held(digest) else { return Ok(None) };
        let held = self.places.held(digest);
        // Not the name alone, where that leads to another file.
        let from = std::fs::canonicalize(&held).map_err(failed("open", &held, 0))?;
        let here = std::fs::metadata(&from).map_err(failed("stat", &from, 0))?;
        if here.len() != info.size {
            let (from, len) = (from.display(), here.len());
            return Err(StoreError::Damaged(format!("{from} has {len} bytes instead of {}", info.size)));
        }
        if let Ok(file) = File::open(to) {
            let there = file.metadata().map_err(failed("stat", to, 0))?;
            let same = (there.dev(), there.ino()) == (here.dev(), here.ino());
            if same || (there.is_file() && there.len() == info.size && self.has(&file, to, digest)?) {
                return Ok(Some(Adopted::Already));
            }
        }
        // So that the name is there with all bytes or not at all; and not beside it, where containerd would take it for a blob.
        let new = aside.join(format!("{}{RELEASED}", digest.hex()));
        self.files.unlink(&new)?;
        let linked = link_or_copy(&from, &new, info.size)?;
        self.files.rename(&new, to)?;
        self.files.sync_dir(to.parent().unwrap_or(to))?;
        Ok(Some(if linked { Adopted::Linked(info.size) } else { Adopted::Copied(info.size) }))
    }
}

/// True: linked. What is copied is synced. Bytes that somebody else wrote are synced too: nobody says whether they were.
fn link_or_copy(from: &Path, to: &Path, size: u64) -> Result<bool, StoreError> {
    let linked = match std::fs::hard_link(from, to) {
        Ok(()) => true,
        // Another file system, or another mount of it; one without links, or too many of them; a rule against it.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::CrossesDevices
                    | io::ErrorKind::Unsupported
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::TooManyLinks
            ) =>
        {
            let copied = std::fs::copy(from, to).map_err(failed("copy", from, size));
            if copied.is_err() {
                _ = std::fs::remove_file(to);
            }
            copied?;
            false
        }
        Err(error) => return Err(failed("link", from, 0)(error)),
    };
    let file = File::open(to).map_err(failed("open", to, 0))?;
    file.sync_all().map_err(failed("sync", to, 0))?;
    Ok(linked)
}

/// The hashes of a file, and its bytes if they are few.
fn hash(path: &Path, size: u64) -> Result<(Sums, Vec<u8>), StoreError> {
    let file = File::open(path).map_err(failed("open", path, 0))?;
    let mut sums = Sums::new(size);
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut buffer, at).map_err(failed("read", path, 0))?;
        if read == 0 {
            break;
        }
        sums.update(&buffer[..read]);
        at += read as u64;
    }
    let small = if size <= CHUNK as u64 { buffer[..at.min(CHUNK as u64) as usize].to_vec() } else { Vec::new() };
    Ok((sums, small))
}
