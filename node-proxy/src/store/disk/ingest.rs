//! What containerd writes: bytes at the end of a file, the hashes that run along, and the file's way to being held.
//!
//! ```text
//! <dir>/ingests/<SHA-256 of the reference>/data    the bytes so far
//! <dir>/ingests/<SHA-256 of the reference>/state   reference, total, start, durable mark, boot; replaced by `new`
//! ```
//!
//! **Trust.** While the machine runs, the file ends where the ingest ends: a write that fails is cut off again. After another boot
//! only what was synced counts, and the state says how much that is. The hashes are in memory alone; after a restart they are
//! read from the bytes, once, when somebody goes on. A sync that failed leaves nothing to trust: the ingest begins anew.
//!
//! **Sync.** It runs beside the writing, each time enough has come, and when the last byte of a known total has: little is left for
//! commit, which containerd waits for with its database locked.
//!
//! **Locks.** One writer at a time has the permit of a slot. `syncing`, then `work`, then those of room and ledger. An abort takes
//! the work from a writer, who then finds that it is gone.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use shoal_proto::{Digest, Layout, PieceList};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Inner, now};
use crate::store::content::{Commit, IngestError, IngestStatus};
use crate::store::files::failed;
use crate::store::ingest::{Cut, DATA, Key, Labelled, NEW, STATE, State, Sums, key_of};
use crate::store::walk::FoundIngest;
use crate::store::{Info, Notes, StoreError, sidecar};

/// A client that went is gone a moment later; then whoever asks for the same reference goes on (CONTAINERD 31).
const PATIENCE: Duration = Duration::from_millis(100);
/// Bytes that come between two syncs: what a commit may have to wait for.
const SYNC_EVERY: u64 = 32 << 20;
/// Room is asked for in such steps where the total is not known.
const ROOM_STEP: u64 = 1 << 20;
/// Read at once to find the hash again.
const CHUNK: usize = 1 << 20;

/// All ingests.
#[derive(Default)]
pub(super) struct Ingests {
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
}

/// One ingest.
pub(super) struct Slot {
    key: Key,
    dir: PathBuf,
    writer: Arc<Semaphore>,
    /// What is shown of it; `None`: it is not on disk yet.
    status: Mutex<Option<IngestStatus>>,
    syncing: Mutex<()>,
    /// A sync is on its way.
    asked: AtomicBool,
    work: Mutex<Work>,
}

struct Work {
    phase: Phase,
    file: Option<Arc<File>>,
    /// `None`: they are to be read from the bytes.
    sums: Option<Sums>,
    state: State,
    offset: u64,
    /// Counted as taken in the ledger.
    room: u64,
    /// Grows when bytes are thrown away: what a sync that began before says of them is nothing.
    turn: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// There is nothing on disk.
    New,
    Open,
    /// A sync failed.
    Broken,
    /// Aborted or held.
    Over,
}

/// An ingest that one writer has. Dropping it lets the next one write; the bytes stay.
#[derive(Clone)]
pub struct Ingest {
    inner: Arc<Inner>,
    slot: Arc<Slot>,
    _permit: Arc<OwnedSemaphorePermit>,
}

impl std::fmt::Debug for Ingest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ingest({:?})", self.slot.status.lock())
    }
}

/// Runs where it may block; to its end when the caller is dropped.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, IngestError> + Send + 'static,
) -> Result<T, IngestError> {
    super::blocking(move || Ok(work())).await?
}

impl Ingests {
    /// Those that an earlier daemon left.
    pub(super) fn found(&self, found: Vec<FoundIngest>) -> Vec<(Key, u64)> {
        let mut slots = self.slots.lock();
        found
            .into_iter()
            .map(|FoundIngest { state, dir, offset, updated }| {
                let key = key_of(&state.reference);
                let slot = Slot::new(key, dir, state, offset);
                slot.work.lock().phase = Phase::Open;
                slot.show(&slot.work.lock(), updated);
                slots.insert(key, Arc::new(slot));
                (key, offset)
            })
            .collect()
    }

    pub(super) fn list(&self) -> Vec<IngestStatus> {
        let slots: Vec<Arc<Slot>> = self.slots.lock().values().cloned().collect();
        slots.iter().filter_map(|slot| slot.status.lock().clone()).collect()
    }

    pub(super) fn status(&self, reference: &str) -> Option<IngestStatus> {
        let slot = self.slots.lock().get(&key_of(reference)).cloned()?;
        slot.status.lock().clone()
    }

    fn slot(&self, inner: &Inner, reference: &str) -> Arc<Slot> {
        let key = key_of(reference);
        let mut slots = self.slots.lock();
        let slot = slots.entry(key).or_insert_with(|| {
            let dir = inner.places.ingests_dir().join(hex::encode(key));
            let state = State {
                reference: reference.to_owned(),
                total: 0,
                started: 0,
                durable: 0,
                boot_id: inner.boot_id.clone(),
            };
            Arc::new(Slot::new(key, dir, state, 0))
        });
        Arc::clone(slot)
    }

    fn forget(&self, slot: &Arc<Slot>) {
        let mut slots = self.slots.lock();
        if slots.get(&slot.key).is_some_and(|there| Arc::ptr_eq(there, slot)) {
            slots.remove(&slot.key);
        }
    }
}

impl Ingest {
    /// As [`Content::ingest`](crate::store::Content::ingest).
    pub(super) async fn open(inner: &Arc<Inner>, reference: &str, total: u64) -> Result<Self, IngestError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let slot = inner.ingests.slot(inner, reference);
            let writer = Arc::clone(&slot.writer).acquire_owned();
            let permit = match tokio::time::timeout_at(deadline, writer).await {
                Ok(permit) => Arc::new(permit.map_err(|_| IngestError::Gone)?),
                Err(_) => return Err(IngestError::Locked),
            };
            let ingest = Self { inner: Arc::clone(inner), slot, _permit: permit };
            let opened = ingest.clone();
            match blocking(move || opened.begin(total)).await {
                Ok(()) => return Ok(ingest),
                // It ended while it was waited for; the next one is another.
                Err(IngestError::Gone) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn begin(&self, total: u64) -> Result<(), IngestError> {
        let (inner, slot) = (&*self.inner, &self.slot);
        let mut work = slot.work.lock();
        let other = total > 0 && work.state.total > 0 && total != work.state.total;
        match work.phase {
            Phase::Over => return Err(IngestError::Gone),
            Phase::Open if !other => {}
            Phase::New | Phase::Broken | Phase::Open => {
                slot.start(inner, &mut work, total).inspect_err(|_| {
                    work.phase = Phase::Over;
                    inner.ledger.forget_ingest(&slot.key);
                    inner.ingests.forget(slot);
                    _ = slot.remove(inner);
                })?;
            }
        }
        if work.state.boot_id != inner.boot_id {
            // What a boot before left was cut to what is certain; what comes now is trusted as long as the machine runs.
            work.state.boot_id.clone_from(&inner.boot_id);
            slot.write_state(inner, &work.state, false)?;
        }
        slot.find_sums(&mut work)?;
        Ok(())
    }

    /// How far it is.
    ///
    /// # Errors
    /// [`IngestError::Gone`].
    pub fn status(&self) -> Result<IngestStatus, IngestError> {
        self.slot.status.lock().clone().ok_or(IngestError::Gone)
    }

    /// The digest of what came so far.
    ///
    /// # Errors
    /// [`IngestError::Gone`].
    pub async fn digest(&self) -> Result<Digest, IngestError> {
        let ingest = self.clone();
        blocking(move || {
            let mut work = ingest.slot.work.lock();
            work.writable()?;
            ingest.slot.find_sums(&mut work).map(|sums| sums.digest())
        })
        .await
    }

    /// Throws all bytes away, if there are any.
    ///
    /// # Errors
    /// [`IngestError::Gone`], [`IngestError::Store`].
    pub async fn truncate(&self) -> Result<(), IngestError> {
        let ingest = self.clone();
        blocking(move || ingest.cut()).await
    }

    /// Appends bytes at `offset`, which must be the end. The answer is the digest of all that came so far.
    /// Cancel safe: the write goes on to its end, and nobody else has the ingest before.
    ///
    /// # Errors
    /// [`IngestError::Offset`]; [`StoreError::Full`] when the disk is; the ingest is as it was then.
    pub async fn write(&self, offset: u64, bytes: Vec<u8>) -> Result<Digest, IngestError> {
        let ingest = self.clone();
        blocking(move || ingest.append(offset, &bytes)).await
    }

    /// The bytes, when there are no more than `most`.
    ///
    /// # Errors
    /// [`IngestError::Gone`], [`IngestError::Store`].
    pub async fn small(&self, most: u64) -> Result<Option<Vec<u8>>, IngestError> {
        let ingest = self.clone();
        blocking(move || {
            let work = ingest.slot.work.lock();
            let file = work.writable()?;
            if work.offset > most {
                return Ok(None);
            }
            let mut bytes = vec![0; usize::try_from(work.offset).unwrap_or_default()];
            let path = ingest.slot.dir.join(DATA);
            file.read_exact_at(&mut bytes, 0).map_err(failed("read", &path, 0))?;
            Ok(Some(bytes))
        })
        .await
    }

    /// Makes it a held blob that is claimed; the answer is its digest. It is used up then.
    ///
    /// # Errors
    /// [`IngestError::Unexpected`] when it has another size or digest, and it stays; [`IngestError::Exists`].
    pub async fn commit(&self, commit: Commit) -> Result<Digest, IngestError> {
        let ingest = self.clone();
        blocking(move || ingest.make_held(&commit)).await
    }

    /// Throws it away.
    ///
    /// # Errors
    /// [`IngestError::Store`].
    pub async fn discard(&self) -> Result<(), IngestError> {
        let ingest = self.clone();
        blocking(move || Ok(ingest.inner.end_ingest(&ingest.slot)?)).await
    }

    fn cut(&self) -> Result<(), IngestError> {
        let (inner, slot) = (&*self.inner, &self.slot);
        let mut work = slot.work.lock();
        let file = Arc::clone(work.writable()?);
        if work.offset == 0 {
            return Ok(());
        }
        // The mark on disk must not speak for bytes that are to come.
        if work.state.durable > 0 {
            work.state.durable = 0;
            slot.write_state(inner, &work.state, true)?;
        }
        inner.files.truncate(&file, &slot.dir.join(DATA), 0)?;
        work.turn += 1;
        work.offset = 0;
        work.sums = Some(Sums::new(work.state.total));
        inner.ledger.wrote_ingest(&slot.key, 0);
        slot.show(&work, now());
        Ok(())
    }

    fn append(&self, offset: u64, bytes: &[u8]) -> Result<Digest, IngestError> {
        let (inner, slot) = (&*self.inner, &self.slot);
        let mut work = slot.work.lock();
        let file = Arc::clone(work.writable()?);
        if offset != work.offset {
            return Err(IngestError::Offset { offset: work.offset, asked: offset });
        }
        let end = offset + bytes.len() as u64;
        slot.take_room(inner, &mut work, end)?;
        let path = slot.dir.join(DATA);
        if let Err(error) = inner.files.write_at(&file, &path, bytes, offset) {
            // What was written of it must not be taken for the ingest's after a restart.
            _ = inner.files.truncate(&file, &path, offset);
            return Err(error.into());
        }
        let sums = slot.find_sums(&mut work)?;
        sums.update(bytes);
        let digest = sums.digest();
        work.offset = end;
        slot.cut_anew(&mut work)?;
        inner.ledger.wrote_ingest(&slot.key, end);
        slot.show(&work, now());
        let due = end - work.state.durable >= SYNC_EVERY || end == work.state.total;
        drop(work);
        if due && !slot.asked.swap(true, Ordering::AcqRel) {
            self.sync_aside();
        }
        Ok(digest)
    }

    fn sync_aside(&self) {
        let (inner, slot) = (Arc::clone(&self.inner), Arc::clone(&self.slot));
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn_blocking(move || {
            slot.asked.store(false, Ordering::Release);
            match slot.sync(&inner) {
                // A commit or an abort came first.
                Ok(()) | Err(IngestError::Gone) => {}
                Err(error) => {
                    tracing::error!(path = %slot.dir.display(), %error, "bytes of an ingest are lost; it begins anew");
                }
            }
        });
    }

    fn make_held(&self, commit: &Commit) -> Result<Digest, IngestError> {
        let (inner, slot) = (&*self.inner, &self.slot);
        let digest = {
            let mut work = slot.work.lock();
            work.writable()?;
            if commit.total > 0 && commit.total != work.offset {
                let (have, want) = (format!("{} bytes", work.offset), format!("{} bytes", commit.total));
                return Err(IngestError::Unexpected { have, want });
            }
            slot.find_sums(&mut work)?.digest()
        };
        if let Some(want) = commit.expected.filter(|want| *want != digest) {
            return Err(IngestError::Unexpected { have: digest.to_string(), want: want.to_string() });
        }
        let _turn = inner.turns.take(digest);
        if inner.ledger.keep(&digest, now()).is_some() {
            inner.end_ingest(slot)?;
            return Err(IngestError::Exists(digest));
        }
        slot.sync(inner)?;
        let mut work = slot.work.lock();
        let file = Arc::clone(work.writable()?);
        let list = slot.find_list(&mut work)?;
        let info = Info {
            size: work.offset,
            root: list.root().unwrap_or_default(),
            media_type: sidecar::kept_media_type(&commit.media_type),
        };
        let notes = Notes { list, author: commit.author.clone(), media_type: Arc::clone(&commit.media_type) };
        let labels = (!commit.labels.is_empty()).then(|| Labelled { updated: now(), labels: commit.labels.clone() });
        // Files of a blob of this digest that has to go go before, or not at all.
        let room = inner.room.lock();
        if let Some(labels) = &labels {
            inner.write_labels(&digest, labels)?;
        }
        let path = slot.dir.join(DATA);
        super::held::stamp(&file);
        if let Err(error) = inner.put_held(&digest, &path, &notes) {
            if let Err(worse) = inner.take_back(&digest, &path) {
                tracing::error!(%digest, error = %worse, "ingest can't be taken back");
                work.phase = Phase::Broken;
            }
            return Err(error.into());
        }
        inner.ledger.commit_ingest((&slot.key, &digest), info.clone(), labels, now());
        drop(room);
        inner.remember(&digest, &info);
        work.phase = Phase::Over;
        slot.status.lock().take();
        if let Err(error) = slot.remove(inner) {
            tracing::debug!(%digest, %error, "directory of an ingest stays until the next start");
        }
        drop(work);
        inner.ingests.forget(slot);
        Ok(digest)
    }
}

impl Inner {
    /// Throws an ingest away. False: there is none.
    pub(super) fn abort_ingest(&self, reference: &str) -> Result<bool, StoreError> {
        let slot = self.ingests.slots.lock().get(&key_of(reference)).cloned();
        match slot {
            Some(slot) if slot.status.lock().is_some() => self.end_ingest(&slot).map(|()| true),
            _ => Ok(false),
        }
    }

    fn end_ingest(&self, slot: &Arc<Slot>) -> Result<(), StoreError> {
        let mut work = slot.work.lock();
        if work.phase == Phase::Over {
            return Ok(());
        }
        // A failure leaves it as it is: it can be aborted again.
        slot.remove(self)?;
        work.phase = Phase::Over;
        work.file = None;
        slot.status.lock().take();
        drop(work);
        self.ledger.forget_ingest(&slot.key);
        self.ingests.forget(slot);
        Ok(())
    }
}

impl Slot {
    fn new(key: Key, dir: PathBuf, state: State, offset: u64) -> Self {
        let work = Work { phase: Phase::New, file: None, sums: None, state, offset, room: offset, turn: 0 };
        Self {
            key,
            dir,
            writer: Arc::new(Semaphore::new(1)),
            status: Mutex::default(),
            syncing: Mutex::default(),
            asked: AtomicBool::new(false),
            work: Mutex::new(work),
        }
    }

    /// Puts it on disk with no bytes in it. Nothing is synced: what a power cut takes is an ingest that had just begun.
    fn start(&self, inner: &Inner, work: &mut Work, total: u64) -> Result<(), StoreError> {
        work.turn += 1;
        work.state = State { total, started: now(), durable: 0, boot_id: inner.boot_id.clone(), ..work.state.clone() };
        inner.files.create_dir(&self.dir)?;
        // A mark that is on disk speaks for the bytes before.
        inner.files.unlink(&self.dir.join(STATE))?;
        let file = inner.files.create_sparse(&self.dir.join(DATA), 0)?;
        self.write_state(inner, &work.state, false)?;
        inner.ledger.forget_ingest(&self.key);
        inner.ledger.found_ingest(self.key, 0);
        work.file = Some(Arc::new(file));
        (work.offset, work.room, work.sums, work.phase) = (0, 0, Some(Sums::new(total)), Phase::Open);
        self.show(work, work.state.started);
        Ok(())
    }

    fn show(&self, work: &Work, updated: u64) {
        *self.status.lock() = Some(IngestStatus {
            reference: work.state.reference.clone(),
            offset: work.offset,
            total: work.state.total,
            started: work.state.started,
            updated,
        });
    }

    fn take_room(&self, inner: &Inner, work: &mut Work, end: u64) -> Result<(), StoreError> {
        if end <= work.room {
            return Ok(());
        }
        let room = if end <= work.state.total { work.state.total } else { end.next_multiple_of(ROOM_STEP) };
        let _room = inner.room.lock();
        let victims = inner.ledger.grow_ingest(&self.key, (room, work.offset), inner.free()?)?;
        inner.evict(victims);
        work.room = room;
        Ok(())
    }

    /// The hashes of what came so far; after a restart it is read for them.
    fn find_sums<'a>(&self, work: &'a mut Work) -> Result<&'a mut Sums, IngestError> {
        let path = self.dir.join(DATA);
        if work.file.is_none() {
            let file = File::options().read(true).write(true).open(&path).map_err(failed("open", &path, 0))?;
            work.file = Some(Arc::new(file));
        }
        if let Some(file) = work.file.as_ref().filter(|_| work.sums.is_none()) {
            let mut sums = Sums::new(work.state.total.max(work.offset));
            read_all(file, &path, work.offset, |bytes| sums.update(bytes))?;
            work.sums = Some(sums);
        }
        work.sums.as_mut().ok_or(IngestError::Gone)
    }

    /// An ingest whose size nobody said may outgrow the blocks it was cut into: it is read again for those of the next size, here and
    /// not in its commit, which containerd asks for with its database locked. All in all that is one reading more.
    fn cut_anew(&self, work: &mut Work) -> Result<(), IngestError> {
        let grown = work.state.total == 0 && work.sums.as_ref().is_some_and(|sums| sums.outgrown(work.offset));
        if grown {
            let cut = self.cut(work)?;
            if let Some(sums) = &mut work.sums {
                sums.cut_anew(cut);
            }
        }
        Ok(())
    }

    /// The blocks of what came, read again.
    fn cut(&self, work: &Work) -> Result<Cut, IngestError> {
        let mut cut = Cut::new(work.offset);
        read_all(work.writable()?, &self.dir.join(DATA), work.offset, |bytes| cut.update(bytes))?;
        Ok(cut)
    }

    /// The piece list of what came, which is all. It is read again when it was cut into blocks of another size.
    fn find_list(&self, work: &mut Work) -> Result<PieceList, IngestError> {
        let layout = Layout::of(work.offset).map_err(|error| IngestError::Unexpected {
            have: error.to_string(),
            want: "a blob within the limit".into(),
        })?;
        if let Some(list) = self.find_sums(work)?.list(layout) {
            return Ok(list);
        }
        let list = self.cut(work)?.list(layout);
        Ok(list.ok_or_else(|| StoreError::Damaged("an ingest has no piece list".into()))?)
    }

    /// Brings what was written to the disk, and says so there.
    fn sync(&self, inner: &Inner) -> Result<(), IngestError> {
        let _syncing = self.syncing.lock();
        let (file, offset, turn) = {
            let work = self.work.lock();
            if work.phase == Phase::Over {
                return Err(IngestError::Gone);
            }
            (Arc::clone(work.writable()?), work.offset, work.turn)
        };
        if self.work.lock().state.durable == offset && offset > 0 {
            return Ok(());
        }
        let started = std::time::Instant::now();
        let synced = inner.files.sync_data(&file, &self.dir.join(DATA));
        inner.metrics.sync_seconds.observe(started.elapsed().as_secs_f64());
        let mut work = self.work.lock();
        if work.turn != turn || work.phase != Phase::Open {
            return if work.phase == Phase::Over { Err(IngestError::Gone) } else { Ok(synced?) };
        }
        if let Err(error) = synced {
            work.phase = Phase::Broken;
            _ = inner.files.unlink(&self.dir.join(STATE));
            return Err(error.into());
        }
        work.state.durable = offset;
        self.write_state(inner, &work.state, true)?;
        Ok(())
    }

    fn write_state(&self, inner: &Inner, state: &State, sync: bool) -> Result<(), StoreError> {
        let new = self.dir.join(NEW);
        inner.files.write_new(&new, &state.encode(), sync)?;
        inner.files.rename(&new, &self.dir.join(STATE))
    }

    fn remove(&self, inner: &Inner) -> Result<(), StoreError> {
        for file in [STATE, NEW, DATA] {
            inner.files.unlink(&self.dir.join(file))?;
        }
        inner.files.remove_dir(&self.dir)
    }
}

impl Work {
    fn writable(&self) -> Result<&Arc<File>, IngestError> {
        match (self.phase, &self.file) {
            (Phase::Open, Some(file)) => Ok(file),
            (Phase::Broken, _) => {
                Err(StoreError::Damaged("the disk lost bytes of the ingest; it begins anew".into()).into())
            }
            _ => Err(IngestError::Gone),
        }
    }
}

/// Gives the first `len` bytes of a file, part by part.
fn read_all(file: &File, path: &std::path::Path, len: u64, mut give: impl FnMut(&[u8])) -> Result<(), StoreError> {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < len {
        let part = usize::try_from(len - at).unwrap_or(CHUNK).min(CHUNK);
        file.read_exact_at(&mut buffer[..part], at).map_err(failed("read", path, 0))?;
        give(&buffer[..part]);
        at += part as u64;
    }
    Ok(())
}
