//! The store in memory: for tests of other rooms, and for a node whose disk is not to be used.
//!
//! Passes the suite that [`Disk`](super::Disk) passes. What is partial outlives its flight, not the process.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use shoal_proto::{BlockIndex, BlockSet, Digest, Layout, PieceList};
use tokio::sync::broadcast;

use super::evict::{Candidate, Kind};
use super::ledger::{Ledger, Opened};
use super::metrics::Metrics;
use super::{Change, Held, Info, Notes, Partial, Resumed, Store, StoreError, Usage, sidecar};

/// Blobs in memory.
pub struct Memory {
    inner: Arc<Inner>,
}

struct Inner {
    ledger: Arc<Ledger>,
    held: Mutex<HashMap<Digest, Kept>>,
    leftovers: Mutex<HashMap<Digest, Leftover>>,
    /// The ledger makes uses unique; a clock is not needed.
    uses: AtomicU64,
}

#[derive(Clone)]
struct Kept {
    bytes: Bytes,
    list: PieceList,
}

/// What a flight left behind: its last checkpoint.
struct Leftover {
    bytes: Vec<u8>,
    notes: Notes,
    have: BlockSet,
}

impl Memory {
    /// An empty store with room for `quota` bytes; 0 for no bound.
    pub fn new(quota: u64) -> Arc<Self> {
        let inner = Inner {
            ledger: Arc::new(Ledger::new(quota, false, Metrics::new())),
            held: Mutex::default(),
            leftovers: Mutex::default(),
            uses: AtomicU64::default(),
        };
        Arc::new(Self { inner: Arc::new(inner) })
    }
}

#[async_trait::async_trait]
impl Store for Memory {
    fn held(&self, digest: &Digest) -> Option<Info> {
        self.inner.ledger.held(digest)
    }

    fn list(&self) -> Vec<(Digest, Info)> {
        self.inner.ledger.list()
    }

    async fn open(&self, digest: &Digest) -> Result<Option<Arc<dyn Held>>, StoreError> {
        let Some(opened) = self.inner.ledger.open(digest, self.inner.now()) else { return Ok(None) };
        let kept = self.inner.held.lock().get(digest).cloned();
        Ok(kept.map(|kept| Arc::new(HeldBytes { kept, opened }) as Arc<dyn Held>))
    }

    async fn partial(&self, digest: &Digest, layout: Layout) -> Result<Arc<dyn Partial>, StoreError> {
        let inner = Arc::clone(&self.inner);
        let claim = inner.ledger.claim(digest, layout.size(), inner.now(), None)?;
        inner.evict(&claim.victims);
        let found = inner.leftovers.lock().remove(digest).filter(|found| found.notes.list.layout() == layout);
        let (bytes, resumed) = match found {
            Some(Leftover { bytes, notes, have }) => (bytes, Some(Resumed { notes, have })),
            None => (vec![0; size(layout)], None),
        };
        let written = resumed.as_ref().map_or_else(|| BlockSet::empty(layout), |resumed| resumed.have.clone());
        let record = resumed.as_ref().map(|resumed| (resumed.notes.clone(), resumed.have.clone()));
        let state = Mutex::new(State { bytes: bytes.into(), written, record, over: false });
        Ok(Arc::new(PartialBytes { inner, digest: *digest, layout, resumed, state }))
    }

    fn partials(&self) -> Vec<(Digest, u64)> {
        self.inner.ledger.leftovers()
    }

    async fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        let removed = self.inner.ledger.remove(digest)?;
        if removed {
            self.inner.held.lock().remove(digest);
        }
        Ok(removed)
    }

    fn usage(&self) -> Usage {
        self.inner.ledger.usage()
    }

    fn changes(&self) -> broadcast::Receiver<Change> {
        self.inner.ledger.changes()
    }

    async fn probe(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl Inner {
    fn now(&self) -> u64 {
        self.uses.fetch_add(1, Ordering::Relaxed)
    }

    fn evict(&self, victims: &[Candidate]) {
        for victim in victims {
            match victim.kind {
                Kind::Held => drop(self.held.lock().remove(&victim.digest)),
                Kind::Leftover => drop(self.leftovers.lock().remove(&victim.digest)),
            }
        }
    }
}

struct HeldBytes {
    kept: Kept,
    opened: Opened,
}

#[async_trait::async_trait]
impl Held for HeldBytes {
    fn info(&self) -> &Info {
        &self.opened.info
    }

    async fn list(&self) -> Result<PieceList, StoreError> {
        Ok(self.kept.list.clone())
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        let range = within(offset, len, self.kept.bytes.len());
        Ok(self.kept.bytes.slice(range))
    }
}

struct PartialBytes {
    inner: Arc<Inner>,
    digest: Digest,
    layout: Layout,
    resumed: Option<Resumed>,
    state: Mutex<State>,
}

struct State {
    bytes: Buffer,
    written: BlockSet,
    record: Option<(Notes, BlockSet)>,
    over: bool,
}

/// Written while partial; shared once held, so that readers of the partial blob can go on.
enum Buffer {
    Open(Vec<u8>),
    Held(Bytes),
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Open(bytes)
    }
}

#[async_trait::async_trait]
impl Partial for PartialBytes {
    fn resumed(&self) -> Option<&Resumed> {
        self.resumed.as_ref()
    }

    async fn write(&self, block: BlockIndex, bytes: Bytes) -> Result<(), StoreError> {
        let range = self.layout.block_range(block);
        if range.is_empty() || bytes.len() as u64 != range.end - range.start {
            return Err(self.refused(format!("block {block} has not {} bytes", bytes.len())));
        }
        let mut state = self.state.lock();
        let state = &mut *state;
        match &mut state.bytes {
            Buffer::Open(all) if !state.over => {
                let place = within(range.start, bytes.len(), all.len());
                all[place].copy_from_slice(&bytes);
            }
            _ => return Err(self.refused("it was committed or discarded")),
        }
        state.written.insert(block);
        Ok(())
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        Ok(match &self.state.lock().bytes {
            Buffer::Open(all) => Bytes::copy_from_slice(&all[within(offset, len, all.len())]),
            Buffer::Held(all) => all.slice(within(offset, len, all.len())),
        })
    }

    async fn checkpoint(&self, notes: &Notes) -> Result<(), StoreError> {
        if notes.list.layout() != self.layout {
            return Err(self.refused("the list is of another layout"));
        }
        let mut state = self.state.lock();
        if state.over {
            return Err(self.refused("it was committed or discarded"));
        }
        state.record = Some((notes.clone(), state.written.clone()));
        Ok(())
    }

    async fn retract(&self, blocks: &[BlockIndex]) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        for block in blocks {
            state.written.remove(*block);
        }
        Ok(())
    }

    async fn commit(&self, notes: &Notes) -> Result<Arc<dyn Held>, StoreError> {
        let Some(root) = notes.list.root().filter(|_| notes.list.layout() == self.layout) else {
            return Err(self.refused("the list is not complete"));
        };
        let mut state = self.state.lock();
        if state.over {
            return Err(self.refused("it was committed or discarded"));
        }
        if !state.written.is_full() {
            return Err(self.refused(format!("only {:?} are written", state.written)));
        }
        state.over = true;
        let bytes = match &mut state.bytes {
            Buffer::Open(all) => Bytes::from(std::mem::take(all)),
            Buffer::Held(all) => all.clone(),
        };
        state.bytes = Buffer::Held(bytes.clone());
        let kept = Kept { bytes, list: notes.list.clone() };
        let media_type = sidecar::kept_media_type(&notes.media_type);
        self.inner.held.lock().insert(self.digest, kept.clone());
        let info = Info { size: self.layout.size(), root, media_type };
        let opened = self.inner.ledger.commit(&self.digest, info, self.inner.now());
        Ok(Arc::new(HeldBytes { kept, opened }))
    }

    async fn discard(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.over, true) {
            return Err(self.refused("it was committed or discarded"));
        }
        self.inner.ledger.forget_partial(&self.digest);
        Ok(())
    }
}

impl PartialBytes {
    fn refused(&self, why: impl Into<String>) -> StoreError {
        StoreError::refused(&self.digest, why)
    }
}

impl Drop for PartialBytes {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if state.over {
            return;
        }
        match (state.record.take(), &mut state.bytes) {
            (Some((notes, have)), Buffer::Open(bytes)) => {
                let left = Leftover { bytes: std::mem::take(bytes), notes, have };
                self.inner.leftovers.lock().insert(self.digest, left);
                self.inner.ledger.release(&self.digest, true, self.inner.now());
            }
            _ => self.inner.ledger.forget_partial(&self.digest),
        }
    }
}

fn size(layout: Layout) -> usize {
    usize::try_from(layout.size()).unwrap_or(usize::MAX)
}

/// `offset..offset + len`, cut at the end.
fn within(offset: u64, len: usize, end: usize) -> std::ops::Range<usize> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(end);
    start..start.saturating_add(len).min(end)
}
