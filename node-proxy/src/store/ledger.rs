//! What is there and how much room it takes: the store's only view of itself in memory.
//!
//! Owns which blobs are held, open, partial and being written, their sizes and last use, the sum of it all, and the
//! news about it. Touches no file: [`Disk`](super::Disk) and [`Memory`](super::Memory) do what the ledger decides.
//!
//! What always holds: a digest has at most one writer; what is open, being written or containerd's is never among the victims;
//! the sums are those of the entries. News are sent under the lock, so their order is the order of what happened.

mod claims;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use shoal_proto::{Digest, Hash};
use tokio::sync::broadcast;

use super::evict::{self, Candidate, Kind};
use super::ingest::{Key, Labelled};
use super::metrics::Metrics;
use super::walk::FoundHeld;
use super::{Change, Info, StoreError, Usage};

/// News that a receiver may lag behind before it has to list again: some seconds of a busy node, and under 100 KiB.
const NEWS: usize = 1024;
/// A blob's last use is written to disk at most this often: a restart then knows the order to the minute.
const STAMP_EVERY: u64 = 60 * 1_000_000_000;
/// Distinct media types that are kept once each, before those that nobody has are looked for.
const MEDIA_TYPES: usize = 256;

/// A held blob. Small on purpose: 100,000 of them stay in memory.
struct Entry {
    size: u64,
    root: Hash,
    media_type: Arc<str>,
    /// Nanoseconds since 1970, made unique.
    used: u64,
    /// What is on disk as its last use.
    stamped: u64,
    /// Its file is somebody else's too: it takes no room of ours, and its going would free none.
    shared: bool,
    /// When it became held, in nanoseconds since 1970.
    created: u64,
    /// When containerd claimed it last; 0: it is not containerd's.
    claimed: u64,
    labels: Option<Arc<Labelled>>,
}

/// A partial blob.
struct Started {
    size: u64,
    used: u64,
    writing: bool,
    /// There is a record, so a later flight can go on.
    recorded: bool,
    /// Bytes that are still to be written.
    left: Arc<AtomicU64>,
}

struct Books {
    held: HashMap<Digest, Entry>,
    /// How often each held blob is open. By itself, so that a handle outlives an entry that is forgotten.
    open: HashMap<Digest, u32>,
    started: HashMap<Digest, Started>,
    ingests: HashMap<Key, Room>,
    media_types: HashSet<Arc<str>>,
    usage: Usage,
    latest: u64,
    /// What is found at start is claimed.
    claims: bool,
}

/// The room of an ingest.
#[derive(Default)]
struct Room {
    /// Counted as taken.
    taken: u64,
    /// Of that, what is on disk.
    written: u64,
}

pub(super) struct Ledger {
    books: Mutex<Books>,
    changes: broadcast::Sender<Change>,
    metrics: Metrics,
}

/// The right to write a partial blob, and what has to go for it.
pub(super) struct Claim {
    /// No longer in the ledger; their files are to be removed.
    pub(super) victims: Vec<Candidate>,
    /// There is a record of an earlier flight of the same size.
    pub(super) resumable: bool,
    /// Bytes that are still to be written; whoever writes takes them off.
    pub(super) left: Arc<AtomicU64>,
}

/// Keeps a held blob from eviction.
pub(super) struct Opened {
    ledger: Arc<Ledger>,
    digest: Digest,
    /// What is known of the blob.
    pub(super) info: Info,
    /// Its last use on disk is older than a minute: write it.
    pub(super) stamp: bool,
    /// Its file is somebody else's too.
    pub(super) shared: bool,
}

impl Drop for Opened {
    fn drop(&mut self) {
        let mut books = self.ledger.books.lock();
        if let Some(open) = books.open.get_mut(&self.digest) {
            *open -= 1;
            if *open == 0 {
                books.open.remove(&self.digest);
            }
        }
    }
}

impl Ledger {
    pub(super) fn new(quota: u64, claims: bool, metrics: Metrics) -> Self {
        let usage = Usage { quota, ..Usage::default() };
        metrics.show(usage);
        let books = Books {
            held: HashMap::new(),
            open: HashMap::new(),
            started: HashMap::new(),
            ingests: HashMap::new(),
            media_types: HashSet::new(),
            usage,
            latest: 0,
            claims,
        };
        Self { books: Mutex::new(books), changes: broadcast::Sender::new(NEWS), metrics }
    }

    pub(super) fn held(&self, digest: &Digest) -> Option<Info> {
        self.books.lock().held.get(digest).map(Entry::info)
    }

    pub(super) fn list(&self) -> Vec<(Digest, Info)> {
        self.books.lock().held.iter().map(|(digest, entry)| (*digest, entry.info())).collect()
    }

    /// Partial blobs that a later flight can go on with and nobody writes.
    pub(super) fn leftovers(&self) -> Vec<(Digest, u64)> {
        let books = self.books.lock();
        let idle = books.started.iter().filter(|(_, started)| started.recorded && !started.writing);
        idle.map(|(digest, started)| (*digest, started.size)).collect()
    }

    pub(super) fn usage(&self) -> Usage {
        self.books.lock().usage
    }

    pub(super) fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Opens a held blob; `None` when it is not held.
    pub(super) fn open(self: &Arc<Self>, digest: &Digest, now: u64) -> Option<Opened> {
        let mut books = self.books.lock();
        let used = books.tick(now);
        let entry = books.held.get_mut(digest)?;
        entry.used = used;
        let stamp = used.saturating_sub(entry.stamped) >= STAMP_EVERY && !entry.shared;
        if stamp {
            entry.stamped = used;
        }
        let (info, shared) = (entry.info(), entry.shared);
        *books.open.entry(*digest).or_default() += 1;
        Some(Opened { ledger: Arc::clone(self), digest: *digest, info, stamp, shared })
    }

    /// Makes room for the whole of a partial blob and makes the caller its only writer. `room` is what the file system
    /// can still take, `None` when that does not matter. Nothing goes when it would not suffice.
    pub(super) fn claim(&self, digest: &Digest, size: u64, now: u64, room: Option<u64>) -> Result<Claim, StoreError> {
        let mut books = self.books.lock();
        let used = books.tick(now);
        let usage = books.usage;
        let old = books.started.get(digest);
        if old.is_some_and(|old| old.writing) {
            return Err(StoreError::Busy(*digest));
        }
        let same = old.filter(|old| old.size == size && old.recorded);
        let resumable = same.is_some();
        let left = same.map_or_else(|| Arc::new(AtomicU64::new(size)), |same| Arc::clone(&same.left));
        // What is there of this blob counts once.
        let others = usage.all() - old.map_or(0, |old| old.size);

        if usage.quota > 0 && size > usage.quota {
            return Err(StoreError::Full { need: size, why: "the blob is larger than the quota" });
        }
        let over_quota = if usage.quota == 0 { 0 } else { (others + size).saturating_sub(usage.quota) };
        let over_room = room.map_or(0, |room| (books.promised() + left.load(Ordering::Relaxed)).saturating_sub(room));
        let why = match over_quota >= over_room {
            true => "the quota is taken by what is in use",
            false => "the file system has no more than its reserve",
        };
        let candidates = books.candidates().filter(|candidate| candidate.digest != *digest);
        let victims =
            evict::victims(candidates, over_quota.max(over_room)).ok_or(StoreError::Full { need: size, why })?;
        self.drop_all(&mut books, &victims);

        books.forget_started(digest);
        let started = Started { size, used, writing: true, recorded: resumable, left: Arc::clone(&left) };
        books.started.insert(*digest, started);
        books.usage.partial += size;
        self.metrics.show(books.usage);
        Ok(Claim { victims, resumable, left })
    }

    /// Whether more is held than the quota.
    pub(super) fn is_above(&self) -> bool {
        let usage = self.books.lock().usage;
        usage.quota != 0 && usage.all() > usage.quota
    }

    /// Drops what is above the quota, for a quota that was lowered, or what was let go. What can't go stays.
    pub(super) fn shrink(&self) -> Vec<Candidate> {
        let mut books = self.books.lock();
        let (taken, quota) = (books.usage.all(), books.usage.quota);
        if quota == 0 || taken <= quota {
            return Vec::new();
        }
        let (victims, _) = evict::as_many(books.candidates(), taken - quota);
        self.drop_all(&mut books, &victims);
        self.metrics.show(books.usage);
        victims
    }

    /// A partial blob became held; the answer keeps it open.
    pub(super) fn commit(self: &Arc<Self>, digest: &Digest, mut info: Info, now: u64) -> Opened {
        let mut books = self.books.lock();
        books.forget_started(digest);
        let used = books.tick(now);
        info.media_type = books.intern(&info.media_type);
        let claimed = books.held.get(digest).map_or(0, |before| before.claimed);
        books.forget_held(digest);
        books.insert(*digest, Entry { claimed, ..Entry::new(info.clone(), used, now) });
        *books.open.entry(*digest).or_default() += 1;
        self.metrics.show(books.usage);
        _ = self.changes.send(Change::Held(*digest));
        drop(books);
        Opened { ledger: Arc::clone(self), digest: *digest, info, stamp: false, shared: false }
    }

    /// A blob is held whose file is somebody else's.
    pub(super) fn found(&self, digest: &Digest, mut info: Info, now: u64) {
        let mut books = self.books.lock();
        books.forget_held(digest);
        let used = books.tick(now);
        info.media_type = books.intern(&info.media_type);
        books.insert(*digest, Entry { shared: true, ..Entry::new(info, used, now) });
        self.metrics.show(books.usage);
        _ = self.changes.send(Change::Held(*digest));
    }

    /// Whether a held blob's file is somebody else's too from now on.
    pub(super) fn share(&self, digest: &Digest, shared: bool) {
        let mut books = self.books.lock();
        if let Some(entry) = books.take(digest) {
            books.insert(*digest, Entry { shared, ..entry });
            self.metrics.show(books.usage);
        }
    }

    /// The held blobs whose file is somebody else's too, or those of which it is not.
    pub(super) fn by_sharing(&self, shared: bool) -> Vec<Digest> {
        let books = self.books.lock();
        books.held.iter().filter(|(_, entry)| entry.shared == shared).map(|(digest, _)| *digest).collect()
    }

    /// The writer of a partial blob left.
    pub(super) fn release(&self, digest: &Digest, recorded: bool, now: u64) {
        let mut books = self.books.lock();
        let used = books.tick(now);
        if let Some(started) = books.started.get_mut(digest) {
            started.writing = false;
            started.recorded = recorded;
            started.used = used;
        }
    }

    /// A partial blob is gone.
    pub(super) fn forget_partial(&self, digest: &Digest) {
        let mut books = self.books.lock();
        books.forget_started(digest);
        self.metrics.show(books.usage);
    }

    /// A held blob is to go. False: it was not held.
    pub(super) fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        let mut books = self.books.lock();
        if !books.held.contains_key(digest) {
            return Ok(false);
        }
        if books.in_use(digest) || books.held[digest].claimed != 0 {
            return Err(StoreError::InUse(*digest));
        }
        self.drop_held(&mut books, digest);
        Ok(true)
    }

    /// A held blob turned out to be gone.
    pub(super) fn lost(&self, digest: &Digest) {
        self.drop_held(&mut self.books.lock(), digest);
    }

    /// Blobs were found on disk at start. A use in the future is taken for now.
    pub(super) fn found_held(&self, found: Vec<FoundHeld>, now: u64) {
        let mut books = self.books.lock();
        let claimed = u64::from(books.claims);
        for FoundHeld { digest, mut info, used, created, labels, shared, .. } in found {
            info.media_type = books.intern(&info.media_type);
            let labels = labels.map(Arc::new);
            books.insert(digest, Entry { shared, claimed, labels, ..Entry::new(info, used.min(now), created) });
        }
        self.metrics.show(books.usage);
    }

    /// A partial blob was found on disk at start.
    pub(super) fn found_partial(&self, digest: Digest, size: u64, left: u64, used: u64, now: u64) {
        let mut books = self.books.lock();
        let left = Arc::new(AtomicU64::new(left));
        let started = Started { size, used: used.min(now), writing: false, recorded: true, left };
        books.started.insert(digest, started);
        books.usage.partial += size;
        self.metrics.show(books.usage);
    }

    fn drop_all(&self, books: &mut Books, victims: &[Candidate]) {
        for victim in victims {
            match victim.kind {
                Kind::Leftover => books.forget_started(&victim.digest),
                Kind::Held => self.drop_held(books, &victim.digest),
            }
            self.metrics.evictions.inc();
            self.metrics.evicted_bytes.inc_by(victim.size);
        }
    }

    fn drop_held(&self, books: &mut Books, digest: &Digest) {
        if books.forget_held(digest) {
            self.metrics.show(books.usage);
            // Nobody listening is fine.
            _ = self.changes.send(Change::Dropped(*digest));
        }
    }
}

impl Books {
    /// A time later than any before.
    fn tick(&mut self, now: u64) -> u64 {
        self.latest = now.max(self.latest + 1);
        self.latest
    }

    fn in_use(&self, digest: &Digest) -> bool {
        // A partial blob of what is held is about to take its place, or to find that it need not.
        self.open.contains_key(digest) || self.started.get(digest).is_some_and(|started| started.writing)
    }

    /// Bytes that writers were promised and have not written yet.
    fn promised(&self) -> u64 {
        let started: u64 = self.started.values().filter(|other| other.writing).map(Started::left).sum();
        started + self.ingests.values().map(|room| room.taken - room.written).sum::<u64>()
    }

    fn candidates(&self) -> impl Iterator<Item = Candidate> {
        let own = self.held.iter().filter(|(_, entry)| !entry.shared);
        let held = own.map(|(digest, entry)| Candidate {
            kind: Kind::Held,
            digest: *digest,
            size: entry.size,
            used: entry.used,
            in_use: entry.claimed != 0 || self.in_use(digest),
        });
        let started = self.started.iter().map(|(digest, started)| Candidate {
            kind: Kind::Leftover,
            digest: *digest,
            size: started.size,
            used: started.used,
            in_use: started.writing,
        });
        held.chain(started)
    }

    fn insert(&mut self, digest: Digest, entry: Entry) {
        if entry.shared {
            self.usage.shared += entry.size;
            self.usage.shared_blobs += 1;
        } else {
            self.usage.held += entry.size;
        }
        self.usage.held_blobs += 1;
        if entry.claimed != 0 {
            self.usage.claimed += entry.size;
            self.usage.claimed_blobs += 1;
        }
        self.held.insert(digest, entry);
    }

    fn take(&mut self, digest: &Digest) -> Option<Entry> {
        let entry = self.held.remove(digest)?;
        if entry.shared {
            self.usage.shared -= entry.size;
            self.usage.shared_blobs -= 1;
        } else {
            self.usage.held -= entry.size;
        }
        self.usage.held_blobs -= 1;
        if entry.claimed != 0 {
            self.usage.claimed -= entry.size;
            self.usage.claimed_blobs -= 1;
        }
        Some(entry)
    }

    fn forget_held(&mut self, digest: &Digest) -> bool {
        self.take(digest).is_some()
    }

    fn forget_started(&mut self, digest: &Digest) {
        if let Some(started) = self.started.remove(digest) {
            self.usage.partial -= started.size;
        }
    }

    fn intern(&mut self, media_type: &Arc<str>) -> Arc<str> {
        if let Some(known) = self.media_types.get(media_type) {
            return Arc::clone(known);
        }
        if self.media_types.len() >= MEDIA_TYPES {
            self.media_types.retain(|known| Arc::strong_count(known) > 1);
        }
        self.media_types.insert(Arc::clone(media_type));
        Arc::clone(media_type)
    }
}

impl Entry {
    /// One that nobody claimed.
    fn new(info: Info, used: u64, created: u64) -> Self {
        let Info { size, root, media_type } = info;
        Self { size, root, media_type, used, stamped: used, created, claimed: 0, labels: None, shared: false }
    }

    fn info(&self) -> Info {
        Info { size: self.size, root: self.root, media_type: Arc::clone(&self.media_type) }
    }
}

impl Started {
    fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }
}
