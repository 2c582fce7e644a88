//! What is containerd's: claims on held blobs, their labels, and the room of ingests.

use std::collections::HashSet;
use std::sync::Arc;

use shoal_proto::Digest;

use super::{Books, Entry, Ledger, Room};
use crate::store::evict::{self, Candidate};
use crate::store::ingest::{Key, Labelled};
use crate::store::{Change, Claimed, Info, Labels, StoreError};

impl Ledger {
    /// Claims a held blob; `None`: it is not held.
    pub(in crate::store) fn keep(&self, digest: &Digest, now: u64) -> Option<Claimed> {
        let mut books = self.books.lock();
        let moment = books.tick(now);
        let entry = books.held.get_mut(digest)?;
        let was = std::mem::replace(&mut entry.claimed, moment);
        let (size, claimed) = (entry.size, entry.shown(digest));
        if was == 0 {
            books.usage.claimed += size;
            books.usage.claimed_blobs += 1;
            self.metrics.show(books.usage);
        }
        Some(claimed)
    }

    /// Gives a claim up. False: there was none.
    pub(in crate::store) fn let_go(&self, digest: &Digest) -> bool {
        let mut books = self.books.lock();
        let gone = books.unclaim(digest);
        self.metrics.show(books.usage);
        gone
    }

    pub(in crate::store) fn kept(&self) -> Vec<Claimed> {
        let books = self.books.lock();
        books.held.iter().filter(|(_, entry)| entry.claimed != 0).map(|(digest, entry)| entry.shown(digest)).collect()
    }

    /// Later than every claim before, and earlier than every claim after.
    pub(in crate::store) fn moment(&self, now: u64) -> u64 {
        self.books.lock().tick(now)
    }

    /// Gives up what was claimed until a moment and is not among `known`. How many those were.
    pub(in crate::store) fn let_others_go(&self, known: &HashSet<Digest>, until: u64) -> usize {
        let mut books = self.books.lock();
        let old = |entry: &Entry| entry.claimed != 0 && entry.claimed <= until;
        let others: Vec<Digest> = books
            .held
            .iter()
            .filter(|(digest, entry)| old(entry) && !known.contains(digest))
            .map(|(d, _)| *d)
            .collect();
        for digest in &others {
            books.unclaim(digest);
        }
        self.metrics.show(books.usage);
        others.len()
    }

    /// The labels of a held blob, none if it has none; `None`: it is not held.
    pub(in crate::store) fn labels(&self, digest: &Digest) -> Option<Labels> {
        let books = self.books.lock();
        let entry = books.held.get(digest)?;
        Some(entry.labels.as_ref().map(|labelled| labelled.labels.clone()).unwrap_or_default())
    }

    /// `None`: it is not held any more.
    pub(in crate::store) fn label(&self, digest: &Digest, labels: Labelled) -> Option<Claimed> {
        let mut books = self.books.lock();
        let entry = books.held.get_mut(digest)?;
        entry.labels = Some(Arc::new(labels));
        Some(entry.shown(digest))
    }

    /// An ingest became held, and is claimed.
    pub(in crate::store) fn commit_ingest(
        &self,
        (key, digest): (&Key, &Digest),
        mut info: Info,
        labels: Option<Labelled>,
        now: u64,
    ) {
        let mut books = self.books.lock();
        books.forget_ingest(key);
        books.forget_held(digest);
        let claimed = books.tick(now);
        info.media_type = books.intern(&info.media_type);
        let labels = labels.map(Arc::new);
        books.insert(*digest, Entry { claimed, labels, ..Entry::new(info, claimed, now) });
        self.metrics.show(books.usage);
        _ = self.changes.send(Change::Held(*digest));
    }

    /// A file became held, and is claimed.
    pub(in crate::store) fn adopt(&self, digest: &Digest, mut info: Info, now: u64) {
        let mut books = self.books.lock();
        let claimed = books.tick(now);
        info.media_type = books.intern(&info.media_type);
        books.forget_held(digest);
        books.insert(*digest, Entry { claimed, ..Entry::new(info, claimed, now) });
        self.metrics.show(books.usage);
        _ = self.changes.send(Change::Held(*digest));
    }

    /// Makes room for an ingest of `size` bytes, of which `written` are on disk. Cache goes for it; when that does not suffice,
    /// it goes on above the quota, but not into the reserve. `room` is what the file system can still take.
    pub(in crate::store) fn grow_ingest(
        &self,
        key: &Key,
        (size, written): (u64, u64),
        room: Option<u64>,
    ) -> Result<Vec<Candidate>, StoreError> {
        let mut books = self.books.lock();
        let taken = books.ingests.get(key).map_or(0, |room| room.taken);
        let usage = books.usage;
        let more = size.saturating_sub(taken);
        let over_quota = if usage.quota == 0 { 0 } else { (usage.all() + more).saturating_sub(usage.quota) };
        let over_room = room.map_or(0, |room| (books.promised() + more).saturating_sub(room));
        let (victims, freed) = evict::as_many(books.candidates(), over_quota.max(over_room));
        if freed < over_room {
            return Err(StoreError::Full { need: size, why: "the file system has no more than its reserve" });
        }
        self.drop_all(&mut books, &victims);
        books.usage.ingests += more;
        books.ingests.insert(*key, Room { taken: taken.max(size), written });
        self.metrics.show(books.usage);
        Ok(victims)
    }

    /// So much of an ingest is on disk.
    pub(in crate::store) fn wrote_ingest(&self, key: &Key, written: u64) {
        if let Some(room) = self.books.lock().ingests.get_mut(key) {
            room.written = written.min(room.taken);
        }
    }

    /// An ingest is gone, or has come to nothing.
    pub(in crate::store) fn forget_ingest(&self, key: &Key) {
        let mut books = self.books.lock();
        books.forget_ingest(key);
        self.metrics.show(books.usage);
    }

    /// An ingest was found on disk at start.
    pub(in crate::store) fn found_ingest(&self, key: Key, size: u64) {
        let mut books = self.books.lock();
        books.usage.ingests += size;
        books.ingests.insert(key, Room { taken: size, written: size });
        self.metrics.show(books.usage);
    }
}

impl Books {
    fn unclaim(&mut self, digest: &Digest) -> bool {
        let Some(entry) = self.held.get_mut(digest).filter(|entry| entry.claimed != 0) else { return false };
        entry.claimed = 0;
        self.usage.claimed -= entry.size;
        self.usage.claimed_blobs -= 1;
        true
    }

    fn forget_ingest(&mut self, key: &Key) {
        if let Some(room) = self.ingests.remove(key) {
            self.usage.ingests -= room.taken;
        }
    }
}

impl Entry {
    fn shown(&self, digest: &Digest) -> Claimed {
        Claimed {
            digest: *digest,
            size: self.size,
            created: self.created,
            updated: self.labels.as_ref().map_or(self.created, |labelled| labelled.updated),
            labels: self.labels.as_ref().map(Arc::clone),
        }
    }
}
