//! A partial blob's file and its records.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use shoal_proto::{BlockIndex, BlockSet, Digest, Layout};

use super::held::{HeldFile, stamp};
use super::{Inner, blocking, is_cached, now};
use crate::store::files::failed;
use crate::store::places::{RECENT, STATE};
use crate::store::sidecar::{self, Record};
use crate::store::{Held, Info, Notes, Partial, Resumed, StoreError};

/// What a record has at most: 8,192 hashes and three bitmaps of 1 KiB, and a head.
const LARGEST_RECORD: u64 = 512 << 10;

/// What the trait gives out. The state is behind an `Arc`, so that a write whose caller was dropped ends before the
/// blob has another writer.
pub(super) struct PartialFile {
    writing: Option<Arc<Writing>>,
}

struct Writing {
    inner: Arc<Inner>,
    digest: Digest,
    layout: Layout,
    path: PathBuf,
    file: Arc<File>,
    resumed: Option<Resumed>,
    left: Arc<AtomicU64>,
    marks: Mutex<Marks>,
    /// How often blocks were retracted; held while a block is written, so that none of before lands after.
    turn: RwLock<u64>,
    /// Held while a record is written, the blob committed or discarded: one at a time.
    record: Mutex<()>,
}

struct Marks {
    written: BlockSet,
    durable: BlockSet,
    /// Bytes written since the last fdatasync began.
    unsynced: u64,
    phase: Phase,
    recorded: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Committed, discarded, or about to be.
    Over,
    /// An fdatasync failed.
    Broken,
}

impl PartialFile {
    pub(super) fn open(inner: Arc<Inner>, digest: Digest, layout: Layout) -> Result<Self, StoreError> {
        let _room = inner.room.lock();
        let claim = inner.ledger.claim(&digest, layout.size(), now(), inner.free()?)?;
        inner.evict(claim.victims);
        let path = inner.places.partial(&digest);
        let opened = if claim.resumable { resume(&inner, &digest, &path, layout) } else { Ok(None) }.and_then(
            |found| match found {
                Some((file, resumed, durable)) => Ok((file, Some(resumed), durable)),
                None => Ok((start(&inner, &digest, &path, layout)?, None, BlockSet::empty(layout))),
            },
        );
        let (file, resumed, durable) = opened.inspect_err(|_| inner.ledger.forget_partial(&digest))?;
        let written = resumed.as_ref().map_or_else(|| BlockSet::empty(layout), |resumed| resumed.have.clone());
        let had: u64 = written.runs().iter().flat_map(|run| run.blocks()).map(|b| layout.block_len(b) as u64).sum();
        claim.left.store(layout.size() - had, Ordering::Relaxed);
        let marks = Marks { written, durable, unsynced: 0, phase: Phase::Open, recorded: resumed.is_some() };
        let writing = Writing {
            inner: Arc::clone(&inner),
            digest,
            layout,
            path,
            file: Arc::new(file),
            resumed,
            left: claim.left,
            marks: Mutex::new(marks),
            turn: RwLock::default(),
            record: Mutex::default(),
        };
        Ok(Self { writing: Some(Arc::new(writing)) })
    }

    fn writing(&self) -> &Arc<Writing> {
        self.writing.as_ref().expect("it is taken only when this is dropped")
    }
}

/// A new, empty file. Records of other bytes are gone for good before it is there.
fn start(inner: &Inner, digest: &Digest, path: &Path, layout: Layout) -> Result<File, StoreError> {
    let had_records = [STATE, RECENT].iter().any(|what| inner.places.beside_partial(digest, what).exists());
    if had_records {
        inner.unlink_partial(digest)?;
        inner.files.sync_dir(&inner.places.partial_dir())?;
    }
    inner.files.create_sparse(path, layout.size())
}

/// What an earlier flight left: the file, what can be trusted, and the durable mark.
#[allow(clippy::type_complexity)]
fn resume(
    inner: &Inner,
    digest: &Digest,
    path: &Path,
    layout: Layout,
) -> Result<Option<(File, Resumed, BlockSet)>, StoreError> {
    let file = match File::options().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", path, 0)(error)),
    };
    if file.metadata().map_err(failed("stat", path, 0))?.len() != layout.size() {
        return Ok(None);
    }
    let records: Vec<Record> = [RECENT, STATE]
        .into_iter()
        .filter_map(|what| read_record(&inner.places.beside_partial(digest, what)))
        .filter(|record| record.notes.list.layout() == layout)
        .collect();
    let mut have = BlockSet::empty(layout);
    let mut durable = BlockSet::empty(layout);
    for record in &records {
        record.durable.runs().into_iter().for_each(|run| durable.insert_run(run));
        if record.boot_id == inner.boot_id {
            record.written.runs().into_iter().for_each(|run| have.insert_run(run));
        }
    }
    durable.runs().into_iter().for_each(|run| have.insert_run(run));
    // The recent one, unless a kill came between the renaming of the other and its own removal.
    let newest = records.into_iter().rev().max_by_key(|record| record.notes.list.known());
    Ok(newest.map(|record| (file, Resumed { notes: record.notes, have }, durable)))
}

/// A record that can't be read is as good as none: its blocks come again.
fn read_record(path: &Path) -> Option<Record> {
    let read = std::fs::metadata(path).and_then(|metadata| match metadata.len() {
        0..=LARGEST_RECORD => std::fs::read(path),
        _ => Err(std::io::ErrorKind::FileTooLarge.into()),
    });
    match read {
        Ok(bytes) => sidecar::decode_record(&bytes)
            .inspect_err(|torn| tracing::info!(path = %path.display(), %torn, "record of a partial blob is not used"))
            .ok(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "record of a partial blob can't be read");
            None
        }
    }
}

#[async_trait::async_trait]
impl Partial for PartialFile {
    fn resumed(&self) -> Option<&Resumed> {
        self.writing().resumed.as_ref()
    }

    async fn write(&self, block: BlockIndex, bytes: Bytes) -> Result<(), StoreError> {
        let writing = Arc::clone(self.writing());
        let turn = *writing.turn.read();
        blocking(move || writing.write(block, &bytes, turn)).await
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        let writing = Arc::clone(self.writing());
        let read = move || writing.inner.read_at(&writing.file, &writing.path, offset, len, writing.layout.size());
        blocking(read).await
    }

    async fn warm(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        let writing = Arc::clone(self.writing());
        if is_cached(&writing.file, offset, len) {
            return Ok(());
        }
        blocking(move || writing.inner.warm(&writing.file, &writing.path, offset, len)).await
    }

    fn file(&self) -> Option<Arc<File>> {
        Some(Arc::clone(&self.writing().file))
    }

    async fn checkpoint(&self, notes: &Notes) -> Result<(), StoreError> {
        let (writing, notes) = (Arc::clone(self.writing()), notes.clone());
        blocking(move || writing.checkpoint(&notes)).await
    }

    async fn retract(&self, blocks: &[BlockIndex]) -> Result<(), StoreError> {
        let (writing, blocks) = (Arc::clone(self.writing()), blocks.to_vec());
        blocking(move || {
            writing.retract(&blocks);
            Ok(())
        })
        .await
    }

    async fn commit(&self, notes: &Notes) -> Result<Arc<dyn Held>, StoreError> {
        let (writing, notes) = (Arc::clone(self.writing()), notes.clone());
        Ok(Arc::new(blocking(move || writing.commit(&notes)).await?))
    }

    async fn discard(&self) -> Result<(), StoreError> {
        let writing = Arc::clone(self.writing());
        blocking(move || writing.discard()).await
    }
}

impl Writing {
    fn write(&self, block: BlockIndex, bytes: &[u8], asked_in: u64) -> Result<(), StoreError> {
        let range = self.layout.block_range(block);
        if range.is_empty() || bytes.len() as u64 != range.end - range.start {
            return Err(StoreError::refused(&self.digest, format!("block {block} has not {} bytes", bytes.len())));
        }
        let turn = self.turn.read();
        if *turn != asked_in {
            return Err(StoreError::Stale(self.digest));
        }
        self.marks.lock().writable(&self.digest)?;
        let started = Instant::now();
        self.inner.files.write_at(&self.file, &self.path, bytes, range.start)?;
        self.inner.metrics.write_seconds.observe(started.elapsed().as_secs_f64());
        let mut marks = self.marks.lock();
        marks.unsynced += bytes.len() as u64;
        if marks.written.insert(block) {
            self.left.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn retract(&self, blocks: &[BlockIndex]) {
        *self.turn.write() += 1;
        let mut marks = self.marks.lock();
        for block in blocks {
            if marks.written.remove(*block) {
                self.left.fetch_add(self.layout.block_len(*block) as u64, Ordering::Relaxed);
            }
            marks.durable.remove(*block);
        }
        // The record on disk may name them: the next one has to replace it for good.
        marks.unsynced = marks.unsynced.max(self.inner.sync_every);
    }

    fn checkpoint(&self, notes: &Notes) -> Result<(), StoreError> {
        if notes.list.layout() != self.layout {
            return Err(StoreError::refused(&self.digest, "the list is of another layout"));
        }
        let _record = self.record.lock();
        let (written, sync) = {
            let mut marks = self.marks.lock();
            marks.writable(&self.digest)?;
            let sync = marks.unsynced >= self.inner.sync_every;
            if sync {
                marks.unsynced = 0;
            }
            (marks.written.clone(), sync)
        };
        if sync {
            self.sync()?;
            self.marks.lock().durable = written.clone();
        }
        let durable = self.marks.lock().durable.clone();
        let bytes = sidecar::encode_record(&self.inner.boot_id, notes, &written, &durable);
        let (files, new) = (&self.inner.files, self.beside("new"));
        files.write_new(&new, &bytes, sync)?;
        if sync {
            files.rename(&new, &self.beside(STATE))?;
            files.sync_dir(&self.inner.places.partial_dir())?;
            files.unlink(&self.beside(RECENT))?;
        } else {
            files.rename(&new, &self.beside(RECENT))?;
        }
        self.marks.lock().recorded = true;
        Ok(())
    }

    fn commit(&self, notes: &Notes) -> Result<HeldFile, StoreError> {
        if !notes.list.is_complete() || notes.list.layout() != self.layout {
            return Err(StoreError::refused(&self.digest, "the list is not complete"));
        }
        let _record = self.record.lock();
        {
            let mut marks = self.marks.lock();
            marks.writable(&self.digest)?;
            if !marks.written.is_full() {
                return Err(StoreError::refused(&self.digest, format!("only {:?} are written", marks.written)));
            }
            marks.phase = Phase::Over;
        }
        let Inner { ledger, files, .. } = &*self.inner;
        let _turn = self.inner.turns.take(self.digest);
        // An earlier flight, or containerd, made it held: there is nothing to put in its place.
        if let Some(opened) = ledger.open(&self.digest, now())
            && let Some(held) = HeldFile::open(Arc::clone(&self.inner), self.digest, opened)?
        {
            self.gone();
            return Ok(held);
        }
        let info = Info {
            size: self.layout.size(),
            root: notes.list.root().unwrap_or_default(),
            media_type: sidecar::kept_media_type(&notes.media_type),
        };
        if let Err(error) = self.make_held(notes) {
            let undone = self.inner.take_back(&self.digest, &self.path);
            let mut marks = self.marks.lock();
            if marks.phase == Phase::Over {
                marks.phase = if undone.is_ok() { Phase::Open } else { Phase::Broken };
            }
            return Err(error);
        }
        for what in [RECENT, STATE] {
            if let Err(error) = files.unlink(&self.beside(what)) {
                tracing::debug!(digest = %self.digest, %error, "record stays until the next start");
            }
        }
        let opened = ledger.commit(&self.digest, info.clone(), now());
        self.inner.remember(&self.digest, &info);
        Ok(HeldFile::committed(Arc::clone(&self.inner), self.digest, Arc::clone(&self.file), opened))
    }

    fn make_held(&self, notes: &Notes) -> Result<(), StoreError> {
        stamp(&self.file);
        self.sync()?;
        self.inner.put_held(&self.digest, &self.path, notes)
    }

    fn discard(&self) -> Result<(), StoreError> {
        let _record = self.record.lock();
        {
            let mut marks = self.marks.lock();
            if marks.phase == Phase::Over {
                return Err(StoreError::refused(&self.digest, "it was committed or discarded"));
            }
            marks.phase = Phase::Over;
        }
        let gone = self.inner.unlink_partial(&self.digest);
        self.inner.ledger.forget_partial(&self.digest);
        gone
    }

    /// fdatasync. After a failure nothing of this file can be trusted, whatever later calls say.
    fn sync(&self) -> Result<(), StoreError> {
        let started = Instant::now();
        let synced = self.inner.files.sync_data(&self.file, &self.path);
        self.inner.metrics.sync_seconds.observe(started.elapsed().as_secs_f64());
        if synced.is_err() {
            let mut marks = self.marks.lock();
            marks.phase = Phase::Broken;
            marks.recorded = false;
            drop(marks);
            if let Err(error) = self.inner.unlink_records(&self.digest) {
                tracing::error!(digest = %self.digest, %error, "record of lost bytes can't be removed");
            }
        }
        synced
    }

    fn beside(&self, what: &str) -> PathBuf {
        self.inner.places.beside_partial(&self.digest, what)
    }

    /// Removes everything of it.
    fn gone(&self) {
        if let Err(error) = self.inner.unlink_partial(&self.digest) {
            tracing::warn!(digest = %self.digest, %error, "partial blob can't be removed");
        }
        self.inner.ledger.forget_partial(&self.digest);
    }
}

impl Marks {
    fn writable(&self, digest: &Digest) -> Result<(), StoreError> {
        match self.phase {
            Phase::Open => Ok(()),
            Phase::Over => Err(StoreError::refused(digest, "it was committed or discarded")),
            Phase::Broken => Err(StoreError::Damaged(format!("{digest}: the disk lost bytes of it; start it anew"))),
        }
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        let writing = self.writing.take();
        // The last thing that happens to the blob may remove its file, and so runs where it may block.
        if writing.as_ref().is_some_and(|writing| writing.ends_in_removal())
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn_blocking(move || drop(writing));
        }
    }
}

impl Writing {
    fn ends_in_removal(&self) -> bool {
        let marks = self.marks.lock();
        marks.phase != Phase::Over && !marks.recorded
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if self.marks.lock().phase == Phase::Over {
            return;
        }
        if self.ends_in_removal() {
            self.gone();
        } else {
            self.inner.ledger.release(&self.digest, true, now());
        }
    }
}
