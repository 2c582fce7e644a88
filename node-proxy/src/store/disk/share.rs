//! Blobs whose bytes are a file of somebody else's: one copy on disk instead of two.
//!
//! A held blob's name becomes a hard link to that file or, where there can be none, since it lies on another file system or behind
//! another mount, a symbolic one. Either way the bytes were compared with the piece list, or hashed, before, through the very
//! handle whose file the name then leads to. Whoever owns the file never changes it, as containerd does not: it makes a blob's
//! file once, and removes it.
//!
//! What always holds: the name in `held/` leads to right bytes at every moment, or to nothing once the owner has removed a file
//! that was only linked to by name, or to a file that is not the one that was looked at, when the owner has put another in its place.
//! Whoever opens it finds which is the case, and so do a start and a look at all that is shared.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use shoal_proto::{Digest, PieceList};

use super::held::is_symlink;
use super::{Disk, Inner, blocking, now};
use crate::store::files::failed;
use crate::store::places::{LIST, THEIRS};
use crate::store::{FileIdentity, Info, Notes, StoreError, sidecar};

/// A name that is about to lead to somebody else's file. Nobody else uses it: a flight writes beside its bytes.
const LED: &str = "led";

/// What became of a blob whose bytes are in somebody else's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// They are one file now, or were before.
    One,
    /// The other file is what is read from now on; ours is gone. There can be no link between them.
    Theirs,
    /// The other file's bytes are not the blob's. Ours stays.
    Differs,
    /// The blob is not held, or the other file is gone.
    Gone,
}

impl Disk {
    /// Lets a held blob's own file go in favour of another with the same bytes, which are read and compared first.
    ///
    /// # Errors
    /// [`StoreError::Io`]; the blob stays as it was.
    pub async fn share(&self, digest: &Digest, with: PathBuf) -> Result<Sharing, StoreError> {
        let (inner, digest) = (Arc::clone(&self.inner), *digest);
        blocking(move || inner.share(&digest, &with)).await
    }

    /// Makes a blob held whose bytes are in somebody else's file: `theirs`, open, whose SHA-256 was checked by reading it, at
    /// `path`. The notes' list is complete. [`Sharing::Gone`]: the file at the path is another one.
    ///
    /// # Errors
    /// [`StoreError`]; the blob is not held then.
    pub async fn hold_theirs(
        &self,
        digest: &Digest,
        theirs: File,
        path: PathBuf,
        notes: Notes,
    ) -> Result<Sharing, StoreError> {
        let (inner, digest) = (Arc::clone(&self.inner), *digest);
        blocking(move || inner.hold_theirs(&digest, &theirs, &path, &notes)).await
    }

    /// Held blobs whose file is the store's alone.
    pub fn alone(&self) -> Vec<Digest> {
        self.inner.ledger.by_sharing(false)
    }

    /// Looks at every shared blob, and gives those whose owner removed its file: what was one file is the store's alone from
    /// now on, and counts against the quota; what was only theirs is not held any more.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub async fn left_alone(&self) -> Result<Vec<Digest>, StoreError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.left_alone()).await
    }

    /// Gives a held blob's file another name, at which nothing is yet, for somebody who takes it from there. False: something is
    /// there, or the blob is not held, or there can be no link.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub async fn lend(&self, digest: &Digest, to: PathBuf) -> Result<bool, StoreError> {
        let (inner, digest) = (Arc::clone(&self.inner), *digest);
        blocking(move || inner.lend(&digest, &to)).await
    }
}

impl Inner {
    fn share(&self, digest: &Digest, with: &Path) -> Result<Sharing, StoreError> {
        // First: nearly all that is asked about is not there, and is not used by being asked about.
        let Some((theirs, there)) = open(with)? else { return Ok(Sharing::Gone) };
        // Keeps it from eviction.
        let Some(opened) = self.ledger.open(digest, now()) else { return Ok(Sharing::Gone) };
        let held = self.places.held(digest);
        let here = std::fs::metadata(&held).map_err(failed("stat", &held, 0))?;
        if is_same(&here, &there) {
            self.ledger.share(digest, true);
            return Ok(Sharing::One);
        }
        if there.len() != opened.info.size || !self.has(&theirs, with, digest)? {
            return Ok(Sharing::Differs);
        }
        let room = self.room.lock();
        let sharing = self.lead(digest, &there, with)?;
        drop(room);
        if sharing != Sharing::Gone {
            self.ledger.share(digest, true);
        }
        Ok(sharing)
    }

    /// Whether a file has the bytes of a held blob, by its piece list.
    pub(super) fn has(&self, file: &File, path: &Path, digest: &Digest) -> Result<bool, StoreError> {
        let list = self.places.held_list(digest);
        let bytes = std::fs::read(&list).map_err(failed("read", &list, 0))?;
        let (_, list) =
            sidecar::decode_held(&bytes).map_err(|torn| StoreError::Damaged(format!("{} {torn}", list.display())))?;
        let layout = list.layout();
        for block in 0..layout.blocks() {
            let (offset, len) = (layout.block_range(block).start, layout.block_len(block));
            let read = self.buffers.filled(len, |buffer| file.read_exact_at(buffer, offset));
            let bytes = read.map_err(failed("read", path, 0))?;
            if list.get(block) != Some(&PieceList::hash(&bytes)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn hold_theirs(&self, digest: &Digest, theirs: &File, path: &Path, notes: &Notes) -> Result<Sharing, StoreError> {
        let there = theirs.metadata().map_err(failed("stat", path, 0))?;
        let layout = notes.list.layout();
        let Some(list) = sidecar::encode_held(notes).filter(|_| layout.size() == there.len()) else {
            return Err(StoreError::refused(digest, "the list is not complete"));
        };
        // Nobody else makes it held meanwhile, and nobody removes files of a blob that was here before.
        let _turn = self.turns.take(*digest);
        if self.ledger.held(digest).is_some() {
            return self.share(digest, path);
        }
        let _room = self.room.lock();
        let (held_list, new) = (self.places.held_list(digest), self.places.beside_partial(digest, LIST));
        self.files.write_new(&new, &list, true)?;
        self.files.rename(&new, &held_list)?;
        let sharing = self.lead(digest, &there, path);
        if !matches!(sharing, Ok(Sharing::One | Sharing::Theirs)) {
            self.files.unlink(&held_list)?;
            return sharing;
        }
        let info = Info {
            size: layout.size(),
            root: notes.list.root().unwrap_or_default(),
            media_type: sidecar::kept_media_type(&notes.media_type),
        };
        self.ledger.found(digest, info.clone(), now());
        self.remember(digest, &info);
        sharing
    }

    /// Makes the name of a held blob lead to the file at a path, if it is the one that was looked at. Under [`Inner::room`], for
    /// whoever opens the blob between the steps.
    fn lead(&self, digest: &Digest, there: &Metadata, path: &Path) -> Result<Sharing, StoreError> {
        let held = self.places.held(digest);
        let new = self.places.beside_partial(digest, LED);
        // What a kill left.
        self.files.unlink(&new)?;
        let sharing = match self.files.link(path, &new) {
            Ok(()) => Sharing::One,
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(Sharing::Gone),
            Err(StoreError::Io { source, .. }) if cannot_be_linked(&source) => {
                self.files.symlink(path, &new)?;
                Sharing::Theirs
            }
            Err(error) => return Err(error),
        };
        let leads_to = std::fs::metadata(&new);
        if !leads_to.is_ok_and(|leads_to| is_same(&leads_to, there)) {
            self.files.unlink(&new)?;
            return Ok(Sharing::Gone);
        }
        let known = self.places.held_theirs(digest);
        if sharing == Sharing::Theirs {
            let beside = self.places.beside_partial(digest, THEIRS);
            self.files.write_new(&beside, format!("{}\n", FileIdentity::of(there)).as_bytes(), true)?;
            self.files.rename(&beside, &known)?;
        }
        self.files.rename(&new, &held)?;
        if sharing == Sharing::One && known.exists() {
            self.files.unlink(&known)?;
        }
        self.files.sync_dir(held.parent().unwrap_or(self.places.dir()))?;
        Ok(sharing)
    }

    fn left_alone(&self) -> Result<Vec<Digest>, StoreError> {
        let mut left = Vec::new();
        for digest in self.ledger.by_sharing(true) {
            let held = self.places.held(&digest);
            let links = match std::fs::metadata(&held) {
                Ok(there) if is_symlink(&held) => {
                    // Nothing of it is left if it was removed, and nothing that is known to be right if it is another.
                    if self.is_theirs(&digest, &there) {
                        continue;
                    }
                    0
                }
                Ok(there) => there.nlink(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                Err(error) => return Err(failed("stat", &held, 0)(error)),
            };
            match links {
                0 => {
                    let _room = self.room.lock();
                    self.ledger.lost(&digest);
                    self.unlink_held(&digest)?;
                }
                1 => self.ledger.share(&digest, false),
                _ => continue,
            }
            left.push(digest);
        }
        if !left.is_empty() {
            let _room = self.room.lock();
            self.evict(self.ledger.shrink());
        }
        Ok(left)
    }

    fn lend(&self, digest: &Digest, to: &Path) -> Result<bool, StoreError> {
        let Some(_opened) = self.ledger.open(digest, now()) else { return Ok(false) };
        match self.files.link(&self.places.held(digest), to) {
            Ok(()) => {
                self.ledger.share(digest, true);
                Ok(true)
            }
            Err(StoreError::Io { source, .. })
                if source.kind() == io::ErrorKind::AlreadyExists || cannot_be_linked(&source) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// `None`: it is not there.
fn open(path: &Path) -> Result<Option<(File, Metadata)>, StoreError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed("open", path, 0))?,
    };
    let metadata = file.metadata().map_err(failed("stat", path, 0))?;
    Ok(Some((file, metadata)))
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Another file system or mount, one that knows no links, one that has too many of them, or that does not let us.
fn cannot_be_linked(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EXDEV | Errno::EPERM | Errno::EMLINK | Errno::EOPNOTSUPP | Errno::EROFS))
}
