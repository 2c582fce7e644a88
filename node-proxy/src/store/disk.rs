//! The store on disk.
//!
//! ```text
//! <dir>/version                        shoal-store 1
//! <dir>/lock                           flock of the daemon that uses the store; its process id, for people
//! <dir>/index                          what the sidecars of held blobs say, so that a start need not read them
//! <dir>/held/ab/<62 hex>               bytes of a held blob; mtime is its last use, to the minute. Shared: a hard link to
//!                                      somebody else's file or, where there can be none, a symbolic one; mtime is theirs
//! <dir>/held/ab/<62 hex>.list          its sidecar: size, root, author, media type, hashes
//! <dir>/held/ab/<62 hex>.labels        labels that containerd gave it, if any
//! <dir>/held/ab/<62 hex>.theirs        of a symbolic link only: device, inode, size and time of change of the file whose
//!                                      bytes were read; another file at that path, or a changed one, is not the blob
//! <dir>/ingests/<64 hex>/              what containerd writes (`ingest.rs`)
//! <dir>/partial/<64 hex>               bytes of a partial blob, sparse, as long as the whole from the start on
//! <dir>/partial/<64 hex>.state         its record, synced when the durable mark moved
//! <dir>/partial/<64 hex>.recent        its record since then, not synced
//! <dir>/partial/<64 hex>.new, .list    about to be renamed to one of the above
//! ```
//!
//! **Held.** A blob is held if and only if its bytes are in `held/` with the length that a readable sidecar beside them
//! says. Commit goes: fdatasync the bytes; write and fsync the sidecar; rename the sidecar; rename the bytes; fsync
//! both directories; only then the ledger and the news. A kill before the second rename leaves a partial blob, after
//! it a held one. A power cut may undo the renames, but not what they name.
//!
//! **Start.** The directories say what is held, and nothing else does. A start reads all their names and looks at both
//! files of every blob: for the length and the last use of the one, and for the mark by which the index knows the
//! other again, so that it need not be opened. A commit adds its record to the index last, after the blob is held;
//! nothing depends on that record, and the index is never synced. Whatever becomes of it, through a kill, a power cut, a
//! full disk, an older version that does not know it or a copied directory, costs the reading of sidecars and can make
//! nothing held that is not, and nothing right wrong (`index.rs` says why). So the version of the store stays 1.
//!
//! **Partial.** Blocks are written in place as they come and go into the written mark once the write returned. A
//! checkpoint puts notes and marks into a record, atomically. Written blocks are in the page cache at least: they are
//! trusted as long as the machine's boot id is the one in the record. The durable mark is what was in the written mark
//! when an fdatasync began that succeeded: it is trusted always. A record with a new durable mark is synced and becomes
//! `.state`; the others become `.recent`, so that a power cut that tears them does not take the durable mark along.
//! After an fdatasync that failed nothing is trusted any more, since Linux drops the pages and says so only once: the
//! partial blob is broken and its records go.
//!
//! **Room.** A partial blob claims its whole size when it is opened, and what has to go for it (leftovers, then the
//! least recently used that is not open) is gone before its first byte is written. Sidecars, 1/8192 of a blob, are not
//! counted. Claims, evictions and removals run one at a time ([`Inner::room`]), so that no file is removed that has
//! been made anew.
//!
//! **Threads.** Everything that touches a file runs on tokio's blocking threads, but for the look whether it is in the page cache, which
//! never waits. Look-ups are in memory.

mod adopt;
mod content;
mod held;
mod ingest;
mod partial;
mod share;
#[cfg(test)]
mod tests;
mod turns;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::sendfile::sendfile64;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use rustix::io::ReadWriteFlags;
use shoal_proto::{Digest, Layout};
use tokio::sync::broadcast;

use super::buffers::Buffers;
use super::evict::{Candidate, Kind};
use super::files::{Files, failed};
use super::index::{self, Index, Known, Mark};
use super::ledger::Ledger;
use super::metrics::Metrics;
use super::places::{Places, RECENT, STATE};
pub use share::Sharing;

use super::{Change, Config, Held, Info, Partial, Store, StoreError, Usage, walk};

pub use adopt::Adopted;
pub use ingest::Ingest;

/// What a power cut may cost a partial blob at most, and what is synced at once: a second of a fast disk.
const SYNC_EVERY: u64 = 128 << 20;
/// One byte in so many is looked at to tell whether a part of a file is in the page cache. Less than a kernel reads ahead (128 KiB).
const SAMPLED: u64 = 64 << 10;

/// Blobs in a directory of this machine. See the module's description.
pub struct Disk {
    inner: Arc<Inner>,
}

struct Inner {
    places: Places,
    files: Files,
    ledger: Arc<Ledger>,
    metrics: Metrics,
    /// Bytes of the file system left to others.
    reserve: u64,
    /// Bytes of a partial blob that a checkpoint makes durable at once.
    sync_every: u64,
    boot_id: String,
    index: Mutex<Index>,
    ingests: ingest::Ingests,
    turns: turns::Turns,
    /// Held while labels change.
    labelling: Mutex<()>,
    /// Held while room is made: from the ledger's decision until the files are gone.
    room: Mutex<()>,
    probes: AtomicU64,
    buffers: Buffers,
    /// `/dev/null`.
    nowhere: File,
    /// The kernel frees it with the process.
    _lock: File,
}

impl Disk {
    /// Opens the store and finds what is held. One daemon at a time: the directory stays locked until everything that
    /// came out of the store is dropped.
    ///
    /// # Errors
    /// [`StoreError::Io`] when another daemon uses the directory, or it can't be read or written;
    /// [`StoreError::Damaged`] when it belongs to a newer version.
    pub async fn open(config: Config) -> Result<Arc<Self>, StoreError> {
        Self::open_with(config, Files::default(), SYNC_EVERY).await
    }

    async fn open_with(config: Config, files: Files, sync_every: u64) -> Result<Arc<Self>, StoreError> {
        let inner = blocking(move || Inner::open(config, files, sync_every)).await?;
        Ok(Arc::new(Self { inner: Arc::new(inner) }))
    }

    /// Adds the store's metrics.
    pub fn register(&self, registry: &mut Registry) {
        self.inner.metrics.register(registry);
    }
}

#[async_trait::async_trait]
impl Store for Disk {
    fn held(&self, digest: &Digest) -> Option<Info> {
        self.inner.ledger.held(digest)
    }

    fn list(&self) -> Vec<(Digest, Info)> {
        self.inner.ledger.list()
    }

    async fn open(&self, digest: &Digest) -> Result<Option<Arc<dyn Held>>, StoreError> {
        let Some(opened) = self.inner.ledger.open(digest, now()) else { return Ok(None) };
        let (inner, digest) = (Arc::clone(&self.inner), *digest);
        let opened = blocking(move || held::HeldFile::open(inner, digest, opened)).await?;
        Ok(opened.map(|held| Arc::new(held) as Arc<dyn Held>))
    }

    async fn partial(&self, digest: &Digest, layout: Layout) -> Result<Arc<dyn Partial>, StoreError> {
        let (inner, digest) = (Arc::clone(&self.inner), *digest);
        Ok(Arc::new(blocking(move || partial::PartialFile::open(inner, digest, layout)).await?))
    }

    fn partials(&self) -> Vec<(Digest, u64)> {
        self.inner.ledger.leftovers()
    }

    async fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        let (inner, digest) = (Arc::clone(&self.inner), *digest);
        blocking(move || {
            let _room = inner.room.lock();
            let removed = inner.ledger.remove(&digest)?;
            if removed {
                inner.unlink_held(&digest)?;
            }
            Ok(removed)
        })
        .await
    }

    fn usage(&self) -> Usage {
        self.inner.ledger.usage()
    }

    fn changes(&self) -> broadcast::Receiver<Change> {
        self.inner.ledger.changes()
    }

    async fn probe(&self) -> Result<(), StoreError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.probe()).await
    }
}

impl Inner {
    fn open(config: Config, files: Files, sync_every: u64) -> Result<Self, StoreError> {
        let started = Instant::now();
        let (places, lock) = Places::open(&config.dir, &files)?;
        let metrics = Metrics::new();
        let ledger = Ledger::new(config.quota, config.claims, metrics.clone());
        let boot_id = config.boot_id.unwrap_or_else(boot_id);
        let now = now();
        let known = Known::read(&places.index());
        let mut index = Index::open(places.index(), &known, &files);
        let news = Mutex::new((Vec::new(), 0));
        walk::held(&places, &files, &known, |found| {
            let mut news = news.lock();
            news.0.extend_from_slice(&found.records);
            news.1 += found.read;
            ledger.found_held(found.held, now);
        })?;
        drop(known);
        let (records, read) = news.into_inner();
        if read > 0 {
            index.append(&files, &records, read);
        }
        metrics.sidecars_read.inc_by(read);
        index.compact(&files, ledger.usage().held_blobs, |digest| ledger.held(digest).is_some());
        for partial in walk::partial(&places, &files, |digest| ledger.held(digest).is_some())? {
            ledger.found_partial(partial.digest, partial.size, partial.left, partial.used, now);
        }
        let ingests = ingest::Ingests::default();
        for (key, size) in ingests.found(walk::ingests(&places, &files, &boot_id)?) {
            ledger.found_ingest(key, size);
        }
        let nowhere = Path::new("/dev/null");
        let nowhere = File::options().write(true).open(nowhere).map_err(failed("open", nowhere, 0))?;
        let inner = Self {
            places,
            files,
            ledger: Arc::new(ledger),
            metrics,
            reserve: config.reserve,
            sync_every,
            boot_id,
            index: Mutex::new(index),
            ingests,
            turns: turns::Turns::default(),
            labelling: Mutex::default(),
            room: Mutex::default(),
            probes: AtomicU64::default(),
            buffers: Buffers::default(),
            nowhere,
            _lock: lock,
        };
        inner.evict(inner.ledger.shrink());
        let Usage { held, held_blobs, shared, partial, ingests, quota, .. } = inner.ledger.usage();
        let (dir, seconds) = (inner.places.dir().display(), started.elapsed().as_secs_f64());
        tracing::info!(%dir, held_blobs, held, shared, partial, ingests, quota, sidecars_read = read, seconds, "store is open");
        Ok(inner)
    }

    /// Removes the files of what the ledger let go. A file that can't be removed is told and forgotten: the next start
    /// finds it again.
    fn evict(&self, victims: Vec<Candidate>) {
        for Candidate { kind, digest, size, .. } in victims {
            let gone = match kind {
                Kind::Held => self.unlink_held(&digest),
                Kind::Leftover => self.unlink_partial(&digest),
            };
            match gone {
                Ok(()) => tracing::debug!(%digest, size, ?kind, "blob went to make room"),
                Err(error) => tracing::error!(%digest, size, %error, "blob was to make room and can't be removed"),
            }
        }
    }

    /// Spares the next start the sidecar of a blob that just became held.
    fn remember(&self, digest: &Digest, info: &Info) {
        let list = self.places.held_list(digest);
        let Ok(metadata) = std::fs::metadata(&list) else { return };
        let record = index::encode(digest, info, Mark::of(&metadata));
        let mut index = self.index.lock();
        index.append(&self.files, &record, 1);
        index.compact(&self.files, self.ledger.usage().held_blobs, |digest| self.ledger.held(digest).is_some());
    }

    fn unlink_held(&self, digest: &Digest) -> Result<(), StoreError> {
        self.files.unlink(&self.places.held(digest))?;
        for beside in [self.places.held_labels(digest), self.places.held_theirs(digest)] {
            if beside.exists() {
                self.files.unlink(&beside)?;
            }
        }
        self.files.unlink(&self.places.held_list(digest))
    }

    /// The records first: bytes without a record are nothing, a record must never meet other bytes.
    fn unlink_partial(&self, digest: &Digest) -> Result<(), StoreError> {
        self.unlink_records(digest)?;
        self.files.unlink(&self.places.partial(digest))
    }

    fn unlink_records(&self, digest: &Digest) -> Result<(), StoreError> {
        self.files.unlink(&self.places.beside_partial(digest, RECENT))?;
        self.files.unlink(&self.places.beside_partial(digest, STATE))
    }

    /// Bytes that the file system can take before it touches the reserve; `None` when there is none.
    fn free(&self) -> Result<Option<u64>, StoreError> {
        if self.reserve == 0 {
            return Ok(None);
        }
        let dir = self.places.dir();
        let stat = nix::sys::statvfs::statvfs(dir).map_err(|errno| failed("stat", dir, 0)(errno.into()))?;
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        Ok(Some(free.saturating_sub(self.reserve)))
    }

    fn probe(&self) -> Result<(), StoreError> {
        let probe = self.probes.fetch_add(1, Ordering::Relaxed);
        let path = self.places.dir().join(format!("probe.{}", probe % 16));
        let wrote = format!("{} {probe}\n", std::process::id()).into_bytes();
        let read = self
            .files
            .write_new(&path, &wrote, true)
            .and_then(|()| std::fs::read(&path).map_err(failed("read", &path, 0)));
        let removed = self.files.unlink(&path);
        if read? != wrote {
            return Err(StoreError::Damaged(format!("{} reads other than it was written", path.display())));
        }
        removed
    }
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn boot_id() -> String {
    let path = "/proc/sys/kernel/random/boot_id";
    match std::fs::read_to_string(path) {
        Ok(id) => id.trim().chars().filter(char::is_ascii).take(64).collect(),
        Err(error) => {
            tracing::warn!(path, %error, "the boot can't be told; only durable blocks are resumed");
            uuid::Uuid::new_v4().to_string()
        }
    }
}

/// Runs file operations where they may block. The work goes on to its end when the caller is dropped.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(StoreError::Damaged("the daemon is ending".into())),
        },
    }
}

/// Whether a part of a file is in the page cache, as far as one byte in [`SAMPLED`] tells: the kernel reads ahead, and throws out,
/// more than that at a time. Never waits for the disk. False too where the file system can't tell, and behind the end of the file.
fn is_cached(file: &File, offset: u64, len: u64) -> bool {
    let Some(last) = len.checked_sub(1).and_then(|last| offset.checked_add(last)) else { return true };
    let in_cache = |at: u64| {
        let mut byte = [0];
        let read = rustix::io::preadv2(file, &mut [io::IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT);
        matches!(read, Ok(1))
    };
    (offset..last).step_by(SAMPLED as usize).chain([last]).all(in_cache)
}

impl Inner {
    /// Reads `offset..offset + len`, cut at `size`.
    fn read_at(&self, file: &File, path: &Path, offset: u64, len: usize, size: u64) -> Result<Bytes, StoreError> {
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let read = self.buffers.filled(len.min(left), |buffer| file.read_exact_at(buffer, offset));
        read.map_err(failed("read", path, 0))
    }

    /// Has the kernel read a part of a file for somebody who takes none of it: into the page cache, and no further.
    fn warm(&self, file: &File, path: &Path, offset: u64, len: u64) -> Result<(), StoreError> {
        let failed = |error: io::Error| failed("read", path, 0)(error);
        let mut at = i64::try_from(offset).map_err(|error| failed(io::Error::other(error)))?;
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        while left > 0 {
            match sendfile64(&self.nowhere, file, Some(&mut at), left) {
                Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => left -= read.min(left),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        Ok(())
    }
}
