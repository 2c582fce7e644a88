//! The disk: blobs that are held, blobs that are held in part, quota and eviction.
//!
//! Owns the files below `<state_dir>/store` and the words held and partial. Does not know where bytes come from, and
//! checks no hash: whoever writes a block has checked it, whoever commits has checked the SHA-256 of the whole.
//!
//! What always holds:
//! - A blob is held only after fsync of its bytes, rename, and fsync of the directory (I2). `kill -9` at any instant
//!   leaves each blob either held and right, or partial with marks that claim no more than the disk has.
//! - What is open is never evicted; bytes on disk stay within the quota plus what is in flight (I11). What is containerd's
//!   ([`Content`]) is never evicted either, and may go beyond the quota, not into the reserve.
//!
//! The interface is here; [`Disk`] and [`Memory`] implement it and pass the same suite.

mod buffers;
mod content;
mod disk;
mod evict;
mod files;
mod index;
mod ingest;
mod ledger;
mod memory;
mod metrics;
mod places;
mod sidecar;
#[cfg(test)]
mod suite;
mod theirs;
mod walk;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use shoal_proto::{BlockIndex, BlockSet, Digest, Hash, Layout, NodeId, PieceList};
use tokio::sync::broadcast;

pub use content::{Claimed, Commit, Content, IngestError, IngestStatus, LabelUpdate, Labels};
pub use disk::{Adopted, Disk, Ingest, Sharing};
pub use memory::Memory;
pub use theirs::FileIdentity;

/// Where the store is and how much it may take.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory, made when it is not there. Nothing else may live in it.
    pub dir: PathBuf,
    /// Bytes that held and partial blobs may take together; 0 for no bound.
    pub quota: u64,
    /// Bytes of the file system that are left free for others; 0 for none.
    pub reserve: u64,
    /// What the machine's boot is recognised by; `None` reads `/proc/sys/kernel/random/boot_id`. Tests give another
    /// one to stand behind a power cut.
    pub boot_id: Option<String>,
    /// This is containerd's content store: what is found at start is claimed, and stays, until somebody says otherwise.
    pub claims: bool,
}

/// What [`Store::changes`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The blob is held from now on.
    Held(Digest),
    /// The blob was held, and is not any more: evicted, removed or lost.
    Dropped(Digest),
}

/// What is known of a held blob without touching its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Bytes.
    pub size: u64,
    /// Root of its piece list.
    pub root: Hash,
    /// Content-Type as the origin gave it; empty when it gave none.
    pub media_type: Arc<str>,
}

/// What the sidecar of a partial blob remembers beside the marks.
#[derive(Debug, Clone)]
pub struct Notes {
    /// As much of the piece list as is known.
    pub list: PieceList,
    /// Who vouches for the list.
    pub author: NodeId,
    /// Content-Type as the origin gave it; empty when it gave none.
    pub media_type: Arc<str>,
}

/// What an earlier flight left of a partial blob: only blocks that can be trusted after whatever ended that flight.
#[derive(Debug, Clone)]
pub struct Resumed {
    /// The sidecar's notes.
    pub notes: Notes,
    /// Blocks whose bytes are on disk and were checked then.
    pub have: BlockSet,
}

/// Bytes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Held blobs whose bytes are this store's alone.
    pub held: u64,
    /// Held blobs whose bytes are somebody else's file too, or only: they count against nothing.
    pub shared: u64,
    /// How many blobs are shared.
    pub shared_blobs: u64,
    /// How many blobs are held.
    pub held_blobs: u64,
    /// Sizes of the partial blobs, counted whole from their start on.
    pub partial: u64,
    /// What containerd is writing, or left unfinished.
    pub ingests: u64,
    /// Of the held blobs those that are containerd's.
    pub claimed: u64,
    /// How many of them there are.
    pub claimed_blobs: u64,
    /// The bound on the sum of held, partial and ingests; 0 for none. What is containerd's may go beyond it.
    pub quota: u64,
}

impl Usage {
    /// What counts towards the quota.
    pub(crate) fn all(&self) -> u64 {
        self.held + self.partial + self.ingests
    }
}

/// What went wrong on the disk, by what the caller can do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No room: quota or disk. Serve the reader from elsewhere and keep nothing.
    #[error("no room for {need} bytes: {why}")]
    Full {
        /// Bytes asked for.
        need: u64,
        /// Quota or disk.
        why: &'static str,
    },
    /// The digest is being written already, in this process. Join that flight.
    #[error("{0} is being written already")]
    Busy(Digest),
    /// Blocks were retracted while this one was being written: it is not, and may be written again.
    #[error("blocks of {0} were retracted in the meantime")]
    Stale(Digest),
    /// The blob is open, so it can't be removed now.
    #[error("{0} is being read")]
    InUse(Digest),
    /// The disk failed. The path says where.
    #[error("{action} {path}: {source}")]
    Io {
        /// Verb, for people.
        action: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something on disk is not what it should be; it was left alone. The text names the file.
    #[error("{0}")]
    Damaged(String),
}

impl StoreError {
    /// A call that the partial blob can't follow: the caller's fault.
    fn refused(digest: &Digest, why: impl Into<String>) -> Self {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, why.into());
        Self::Io { action: "write the partial blob", path: digest.hex().into(), source }
    }
}

/// Blobs on this node. All methods may be called from many tasks.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    /// A look-up in memory. Does not count as use for eviction.
    fn held(&self, digest: &Digest) -> Option<Info>;

    /// Every held blob, in no order. A copy: 100,000 of them are a few MiB.
    fn list(&self) -> Vec<(Digest, Info)>;

    /// Opens a held blob for reading, and keeps it from eviction until the last clone of the answer is dropped.
    /// `None`: not held. Counts as use.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the file can't be opened; a file that vanished makes the blob not held.
    async fn open(&self, digest: &Digest) -> Result<Option<Arc<dyn Held>>, StoreError>;

    /// Opens the partial blob of a digest, and makes it, with room for the whole reserved by evicting what was used
    /// least recently. What an earlier flight left is found in [`Partial::resumed`], if the layout is the same.
    /// One at a time: until the answer is dropped, committed or discarded, a second call is [`StoreError::Busy`].
    ///
    /// # Errors
    /// [`StoreError::Full`] when everything else is in use or the blob is larger than the quota.
    async fn partial(&self, digest: &Digest, layout: Layout) -> Result<Arc<dyn Partial>, StoreError>;

    /// What is left of partial blobs of earlier flights, so that they can be announced or finished: digest and size.
    fn partials(&self) -> Vec<(Digest, u64)>;

    /// Removes a held blob. False: it was not held.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when it is open.
    async fn remove(&self, digest: &Digest) -> Result<bool, StoreError>;

    /// Bytes on disk now.
    fn usage(&self) -> Usage;

    /// What becomes held and what stops being held from now on, in order. Subscribe before [`Store::list`], so that
    /// nothing is missed; a receiver that lagged lists again.
    fn changes(&self) -> broadcast::Receiver<Change>;

    /// Whether a byte can be written, fsynced and read back now: the truth behind `/readyz`.
    ///
    /// # Errors
    /// What failed.
    async fn probe(&self) -> Result<(), StoreError>;
}

/// A held blob, open for reading.
#[async_trait::async_trait]
pub trait Held: Send + Sync {
    /// What is known of it.
    fn info(&self) -> &Info;

    /// Its piece list, complete, read from the sidecar.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when the sidecar does not match the root.
    async fn list(&self) -> Result<PieceList, StoreError>;

    /// The bytes `offset..offset + len`, cut at the end of the blob.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, StoreError>;

    /// The file that has the bytes at their offsets, for whoever lets the kernel read them. They do not change while somebody
    /// has it open, whatever becomes of the blob. `None`: the store is not of files.
    fn file(&self) -> Option<Arc<File>> {
        None
    }

    /// Returns when `offset..offset + len`, which lies in the blob, is in the page cache, so that whoever takes it from the file
    /// next does not wait for the disk.
    ///
    /// # Errors
    /// [`StoreError::Io`], also when the file has become shorter.
    async fn warm(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        let _ = (offset, len);
        Ok(())
    }
}

/// A blob that is being written. Dropping it keeps what the last checkpoint recorded.
#[async_trait::async_trait]
pub trait Partial: Send + Sync {
    /// What an earlier flight left, read once at opening.
    fn resumed(&self) -> Option<&Resumed>;

    /// Writes one whole block that was checked. Blocks may come in any order; the same block may come again.
    /// Cancel safe: a dropped call has written the block or not.
    ///
    /// # Errors
    /// [`StoreError::Full`] when the disk has no room; what was written before stays readable. [`StoreError::Stale`].
    async fn write(&self, block: BlockIndex, bytes: Bytes) -> Result<(), StoreError>;

    /// Reads bytes of blocks that were written: `offset..offset + len`, cut at the end of the blob.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, StoreError>;

    /// As [`Held::file`], for the blocks that were written. Where none was, there are zeros.
    fn file(&self) -> Option<Arc<File>> {
        None
    }

    /// As [`Held::warm`].
    ///
    /// # Errors
    /// [`StoreError::Io`].
    async fn warm(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        let _ = (offset, len);
        Ok(())
    }

    /// Records the notes and which blocks are written, so that a later flight can go on. The durable mark moves only
    /// after fdatasync of the data it speaks for, which happens here when enough was written since the last time.
    ///
    /// # Errors
    /// [`StoreError`]; the earlier record stays.
    async fn checkpoint(&self, notes: &Notes) -> Result<(), StoreError>;

    /// Forgets that these blocks are written: their bytes are not what the list says. A write of any block that began before
    /// and is not over yet is refused ([`StoreError::Stale`]); the next checkpoint is on disk when it returns.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the thread that does it ended.
    async fn retract(&self, blocks: &[BlockIndex]) -> Result<(), StoreError>;

    /// Makes the blob held: the caller has checked the SHA-256 of the whole, and `notes.list` is complete.
    /// Afterwards this partial is used up; calls on it fail.
    ///
    /// # Errors
    /// [`StoreError`]; the blob is not held then.
    async fn commit(&self, notes: &Notes) -> Result<Arc<dyn Held>, StoreError>;

    /// Throws the bytes and the record away.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    async fn discard(&self) -> Result<(), StoreError>;
}
