//! What every store must do, whatever it is made of. [`suite!`] makes a module of tests for one implementation.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use shoal_proto::{BlockSet, Digest, Layout, PieceList};
use tokio::sync::broadcast::error::TryRecvError;

use super::{Change, Held, Notes, Partial, Store, StoreError};

pub(super) const BLOCK: u64 = 256 << 10;

/// A store and what has to outlive it.
pub(super) struct Fixture {
    pub(super) store: Arc<dyn Store>,
    pub(super) _dir: Option<tempfile::TempDir>,
}

/// A blob with its right digest and list. Blobs of other seeds or sizes are other blobs.
#[derive(Clone)]
pub(super) struct Sample {
    pub(super) digest: Digest,
    pub(super) layout: Layout,
    pub(super) bytes: Bytes,
    pub(super) notes: Notes,
}

impl Sample {
    pub(super) fn new(seed: u8, size: u64) -> Self {
        let mut bytes = vec![0; size as usize];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[seed]);
        hasher.finalize_xof().fill(&mut bytes);
        Self::of(bytes, "application/x")
    }

    pub(super) fn of(bytes: Vec<u8>, media_type: &str) -> Self {
        let layout = Layout::of(bytes.len() as u64).unwrap();
        let mut list = PieceList::new(layout);
        for (block, bytes) in bytes.chunks(layout.block_size() as usize).enumerate() {
            list.set(block as u32, PieceList::hash(bytes)).unwrap();
        }
        let notes = Notes { list, author: "author".parse().unwrap(), media_type: media_type.into() };
        Self { digest: Digest::from_bytes(Sha256::digest(&bytes).into()), layout, bytes: bytes.into(), notes }
    }

    pub(super) fn block(&self, block: u32) -> Bytes {
        let range = self.layout.block_range(block);
        self.bytes.slice(range.start as usize..range.end as usize)
    }

    /// The notes with only the hashes of some blocks.
    pub(super) fn notes_of(&self, blocks: &BlockSet) -> Notes {
        let mut list = PieceList::new(self.layout);
        for block in (0..self.layout.blocks()).filter(|block| blocks.contains(*block)) {
            list.set(block, *self.notes.list.get(block).unwrap()).unwrap();
        }
        Notes { list, ..self.notes.clone() }
    }

    pub(super) async fn begin(&self, store: &dyn Store) -> Result<Arc<dyn Partial>, StoreError> {
        store.partial(&self.digest, self.layout).await
    }

    pub(super) async fn write(&self, partial: &dyn Partial, blocks: std::ops::Range<u32>) -> Result<(), StoreError> {
        for block in blocks {
            partial.write(block, self.block(block)).await?;
        }
        Ok(())
    }

    /// From nothing to held.
    pub(super) async fn put(&self, store: &dyn Store) -> Result<Arc<dyn Held>, StoreError> {
        let partial = self.begin(store).await?;
        self.write(&*partial, 0..self.layout.blocks()).await?;
        partial.commit(&self.notes).await
    }

    /// Asserts that the store holds it, right to the byte.
    pub(super) async fn assert_held(&self, store: &dyn Store) {
        let info = store.held(&self.digest).expect("not held");
        assert_eq!((info.size, info.root), (self.layout.size(), self.notes.list.root().unwrap()));
        assert_eq!(info.media_type, self.notes.media_type);
        let held = store.open(&self.digest).await.unwrap().expect("can't be opened");
        assert_eq!(held.info(), &info);
        assert_eq!(held.list().await.unwrap(), self.notes.list);
        assert!(held.read_at(0, usize::MAX).await.unwrap() == self.bytes, "wrong bytes");
    }

    /// Asserts that what was resumed is there and right, and finishes the blob.
    pub(super) async fn finish(&self, store: &dyn Store) {
        let partial = eventually(async || self.begin(store).await.ok()).await;
        let have = partial.resumed().map_or_else(|| BlockSet::empty(self.layout), |resumed| resumed.have.clone());
        for block in 0..self.layout.blocks() {
            let range = self.layout.block_range(block);
            if have.contains(block) {
                let bytes = partial.read_at(range.start, self.layout.block_len(block)).await.unwrap();
                assert!(bytes == self.block(block), "block {block} was claimed and is wrong");
            } else {
                partial.write(block, self.block(block)).await.unwrap();
            }
        }
        partial.commit(&self.notes).await.unwrap();
    }
}

/// Tries until there is an answer; what is waited for are threads that run, not a time.
pub(super) async fn eventually<T>(mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(answer) = attempt().await {
            return answer;
        }
        assert!(start.elapsed().as_secs() < 20, "waited for 20 s");
        tokio::task::yield_now().await;
    }
}

pub(super) fn set(layout: Layout, blocks: impl IntoIterator<Item = u32>) -> BlockSet {
    let mut set = BlockSet::empty(layout);
    for block in blocks {
        set.insert(block);
    }
    set
}

/// Makes a test of every function of the suite; `$make` is an async function from a quota to a [`Fixture`].
macro_rules! suite {
    ($make:path) => {
        crate::store::suite::suite!($make:
            holds_what_was_committed,
            holds_an_empty_blob,
            shows_nothing_before_commit,
            takes_blocks_in_any_order_and_again,
            refuses_blocks_that_do_not_fit,
            refuses_a_commit_that_is_not_whole,
            cuts_reads_at_the_end,
            has_one_writer,
            resumes_what_the_last_checkpoint_recorded,
            i1_a_retracted_block_is_not_resumed_and_may_be_written_again,
            keeps_nothing_without_a_checkpoint,
            resumes_only_the_same_layout,
            discards,
            is_used_up_after_commit,
            removes_what_is_not_open,
            never_evicts_what_is_open,
            never_evicts_what_is_being_written,
            evicts_what_was_used_least_recently,
            evicts_leftovers_before_held_blobs,
            evicts_nothing_when_it_would_not_suffice,
            counts_a_resumed_blob_once,
            stays_within_the_quota_under_many_writers,
            tells_what_changed,
            a_late_second_flight_finds_the_blob_held,
            is_usable,
        );
    };
    ($make:path: $($name:ident),* $(,)?) => {
        $(#[tokio::test]
        async fn $name() {
            crate::store::suite::$name($make).await;
        })*
    };
}
pub(super) use suite;

pub(super) async fn holds_what_was_committed(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(0).await;
    let store = &*fixture.store;
    for size in [1, BLOCK - 1, BLOCK, 3 * BLOCK + 7] {
        let sample = Sample::new(1, size);
        let held = sample.put(store).await.unwrap();
        assert_eq!(held.list().await.unwrap(), sample.notes.list);
        assert!(held.read_at(0, usize::MAX).await.unwrap() == sample.bytes);
        drop(held);
        sample.assert_held(store).await;
    }
    assert_eq!(store.list().len(), 4);
    let usage = store.usage();
    assert_eq!((usage.held, usage.held_blobs, usage.partial), (5 * BLOCK + 7, 4, 0));
}

pub(super) async fn holds_an_empty_blob(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(1).await;
    let empty = Sample::new(1, 0);
    empty.put(&*fixture.store).await.unwrap();
    empty.assert_held(&*fixture.store).await;
}

pub(super) async fn shows_nothing_before_commit(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(0).await;
    let (store, sample) = (&*fixture.store, Sample::new(1, 2 * BLOCK));
    let partial = sample.begin(store).await.unwrap();
    assert!(partial.resumed().is_none());
    sample.write(&*partial, 0..2).await.unwrap();
    assert!(partial.read_at(BLOCK, BLOCK as usize).await.unwrap() == sample.block(1));
    partial.checkpoint(&sample.notes).await.unwrap();
    assert_eq!(store.held(&sample.digest), None);
    assert!(store.open(&sample.digest).await.unwrap().is_none());
    assert!(store.list().is_empty() && store.partials().is_empty());
    assert_eq!((store.usage().held, store.usage().partial), (0, 2 * BLOCK));
}

pub(super) async fn takes_blocks_in_any_order_and_again(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(0).await;
    let sample = Sample::new(1, 4 * BLOCK + 1);
    let partial = sample.begin(&*fixture.store).await.unwrap();
    for block in [4, 2, 2, 0, 3, 4, 1] {
        partial.write(block, sample.block(block)).await.unwrap();
    }
    partial.commit(&sample.notes).await.unwrap();
    sample.assert_held(&*fixture.store).await;
}

pub(super) async fn refuses_blocks_that_do_not_fit(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(0).await;
    let sample = Sample::new(1, 2 * BLOCK + 5);
    let partial = sample.begin(&*fixture.store).await.unwrap();
    for (block, bytes) in [(2, sample.block(0)), (0, sample.block(2)), (3, sample.block(2)), (3, Bytes::new())] {
        assert!(partial.write(block, bytes).await.is_err(), "block {block}");
    }
    partial.checkpoint(&sample.notes).await.unwrap();
    drop(partial);
    let partial = sample.begin(&*fixture.store).await.unwrap();
    assert!(partial.resumed().unwrap().have.is_empty());
}

pub(super) async fn refuses_a_commit_that_is_not_whole(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(0).await;
    let (store, sample) = (&*fixture.store, Sample::new(1, 3 * BLOCK));
    let partial = sample.begin(store).await.unwrap();
    sample.write(&*partial, 0..2).await.unwrap();
    assert!(partial.commit(&sample.notes).await.is_err(), "a block is missing");
    partial.write(2, sample.block(2)).await.unwrap();
    assert!(partial.commit(&sample.notes_of(&set(sample.layout, 0..2))).await.is_err(), "a hash is missing");
    assert!(partial.commit(&Sample::new(1, BLOCK).notes).await.is_err(), "another layout");
    assert_eq!(store.held(&sample.digest), None);
    partial.commit(&sample.notes).await.unwrap();
    sample.assert_held(store).await;
}

pub(super) async fn cuts_reads_at_the_end(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(0).await;
    let sample = Sample::new(1, BLOCK + 10);
    let partial = sample.begin(&*fixture.store).await.unwrap();
    sample.write(&*partial, 0..2).await.unwrap();
    let held = partial.commit(&sample.notes).await.unwrap();
    for (offset, len) in [(0, 0), (5, 10), (BLOCK - 1, 2), (BLOCK, 100), (BLOCK + 10, 1), (u64::MAX, 1)] {
        let start = offset.min(BLOCK + 10) as usize;
        let want = sample.bytes.slice(start..(start + len).min(sample.bytes.len()));
        assert_eq!(held.read_at(offset, len).await.unwrap(), want, "{offset}+{len}");
        assert_eq!(
            partial.read_at(offset, len).await.unwrap(),
            want,
            "{offset}+{len} of a reader that was there before"
        );
    }
}

pub(super) async fn has_one_writer(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(0).await;
    let (store, sample) = (&*fixture.store, Sample::new(1, BLOCK));
    let partial = sample.begin(store).await.unwrap();
    assert!(matches!(sample.begin(store).await, Err(StoreError::Busy(digest)) if digest == sample.digest));
    drop(partial);
    eventually(async || sample.begin(store).await.ok()).await;
}

pub(super) async fn i1_a_retracted_block_is_not_resumed_and_may_be_written_again(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(0).await;
    let (store, sample) = (&*fixture.store, Sample::new(3, 4 * BLOCK));
    let partial = sample.begin(store).await.unwrap();
    sample.write(&*partial, 0..3).await.unwrap();
    let wrong = Sample::new(4, 4 * BLOCK);
    partial.write(1, wrong.block(1)).await.unwrap();
    partial.checkpoint(&sample.notes).await.unwrap();
    partial.retract(&[1]).await.unwrap();
    assert!(partial.commit(&sample.notes).await.is_err(), "a block is missing");
    partial.checkpoint(&sample.notes).await.unwrap();
    drop(partial);
    let partial = eventually(async || sample.begin(store).await.ok()).await;
    assert_eq!(partial.resumed().unwrap().have, set(sample.layout, [0, 2]));
    drop(partial);
    sample.finish(store).await;
    sample.assert_held(store).await;
}

pub(super) async fn resumes_what_the_last_checkpoint_recorded(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(0).await;
    let (store, sample) = (&*fixture.store, Sample::new(1, 5 * BLOCK + 1));
    let partial = sample.begin(store).await.unwrap();
    sample.write(&*partial, 1..3).await.unwrap();
    let notes = sample.notes_of(&set(sample.layout, 0..4));
    partial.checkpoint(&notes).await.unwrap();
    partial.write(5, sample.block(5)).await.unwrap();
    drop(partial);

    assert_eq!(store.partials(), [(sample.digest, 5 * BLOCK + 1)]);
    let partial = sample.begin(store).await.unwrap();
    let resumed = partial.resumed().unwrap();
    assert_eq!(resumed.have, set(sample.layout, 1..3));
    assert_eq!(resumed.notes.list, notes.list);
    assert_eq!((&resumed.notes.author, &resumed.notes.media_type), (&notes.author, &notes.media_type));
    assert!(store.partials().is_empty(), "somebody writes it");
    drop(partial);
    sample.finish(store).await;
    sample.assert_held(store).await;
    assert_eq!((store.usage().partial, store.partials().len()), (0, 0));
}

pub(super) async fn keeps_nothing_without_a_checkpoint(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(0).await;
    let (store, sample) = (&*fixture.store, Sample::new(1, 2 * BLOCK));
    let partial = sample.begin(store).await.unwrap();
    sample.write(&*partial, 0..1).await.unwrap();
    drop(partial);
    eventually(async || (store.usage().partial == 0).then_some(())).await;
    assert!(store.partials().is_empty());
    assert!(sample.begin(store).await.unwrap().resumed().is_none());
}

pub(super) async fn resumes_only_the_same_layout(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(0).await;
    let (store, sample) = (&*fixture.store, Sample::new(1, 2 * BLOCK));
    let partial = sample.begin(store).await.unwrap();
    sample.write(&*partial, 0..2).await.unwrap();
    partial.checkpoint(&sample.notes).await.unwrap();
    drop(partial);
    // Somebody lied about the size.
    let other = store.partial(&sample.digest, Layout::of(3 * BLOCK).unwrap()).await.unwrap();
    assert!(other.resumed().is_none());
    assert_eq!(store.usage().partial, 3 * BLOCK);
    drop(other);
    let partial = eventually(async || sample.begin(store).await.ok()).await;
    assert!(partial.resumed().is_none(), "the bytes of the first are gone");
}

pub(super) async fn discards(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(0).await;
    let (store, sample) = (&*fixture.store, Sample::new(1, 2 * BLOCK));
    let partial = sample.begin(store).await.unwrap();
    sample.write(&*partial, 0..2).await.unwrap();
    partial.checkpoint(&sample.notes).await.unwrap();
    partial.discard().await.unwrap();
    assert_eq!((store.usage().partial, store.partials().len()), (0, 0));
    // The old handle may linger, and can do nothing to the new one.
    let again = sample.begin(store).await.unwrap();
    assert!(again.resumed().is_none());
    assert!(partial.write(0, sample.block(0)).await.is_err());
    assert!(partial.checkpoint(&sample.notes).await.is_err());
    assert!(partial.commit(&sample.notes).await.is_err());
    assert!(partial.discard().await.is_err());
    drop(partial);
    sample.write(&*again, 0..2).await.unwrap();
    again.commit(&sample.notes).await.unwrap();
    sample.assert_held(store).await;
}

pub(super) async fn is_used_up_after_commit(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(0).await;
    let (store, sample) = (&*fixture.store, Sample::new(1, BLOCK));
    let partial = sample.begin(store).await.unwrap();
    sample.write(&*partial, 0..1).await.unwrap();
    partial.commit(&sample.notes).await.unwrap();
    assert!(partial.write(0, sample.block(0)).await.is_err());
    assert!(partial.checkpoint(&sample.notes).await.is_err());
    assert!(partial.commit(&sample.notes).await.is_err());
    assert!(partial.discard().await.is_err());
    drop(partial);
    sample.assert_held(store).await;
}

pub(super) async fn removes_what_is_not_open(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(0).await;
    let (store, sample) = (&*fixture.store, Sample::new(1, BLOCK));
    assert!(!store.remove(&sample.digest).await.unwrap());
    let held = sample.put(store).await.unwrap();
    let clone = Arc::clone(&held);
    drop(held);
    assert!(matches!(store.remove(&sample.digest).await, Err(StoreError::InUse(digest)) if digest == sample.digest));
    drop(clone);
    assert!(store.remove(&sample.digest).await.unwrap());
    assert_eq!((store.held(&sample.digest), store.usage().held), (None, 0));
    assert!(store.open(&sample.digest).await.unwrap().is_none());
    sample.put(store).await.unwrap();
    sample.assert_held(store).await;
}

pub(super) async fn never_evicts_what_is_open(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(3 * BLOCK).await;
    let store = &*fixture.store;
    let (old, new, big) = (Sample::new(1, BLOCK), Sample::new(2, BLOCK), Sample::new(3, 2 * BLOCK));
    old.put(store).await.unwrap();
    let open = store.open(&old.digest).await.unwrap().unwrap();
    new.put(store).await.unwrap();
    // `old` is older, and open.
    big.put(store).await.unwrap();
    old.assert_held(store).await;
    assert_eq!(store.held(&new.digest), None);
    let too_much = Sample::new(4, 3 * BLOCK);
    assert!(matches!(too_much.begin(store).await, Err(StoreError::Full { .. })));
    assert!(open.read_at(0, usize::MAX).await.unwrap() == old.bytes);
    drop(open);
    too_much.put(store).await.unwrap();
    assert_eq!(store.list().len(), 1);
}

pub(super) async fn never_evicts_what_is_being_written(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(2 * BLOCK).await;
    let (store, one, other) = (&*fixture.store, Sample::new(1, BLOCK), Sample::new(2, 2 * BLOCK));
    let partial = one.begin(store).await.unwrap();
    one.write(&*partial, 0..1).await.unwrap();
    partial.checkpoint(&one.notes).await.unwrap();
    assert!(matches!(other.begin(store).await, Err(StoreError::Full { need, .. }) if need == 2 * BLOCK));
    partial.commit(&one.notes).await.unwrap();
    one.assert_held(store).await;
}

pub(super) async fn evicts_what_was_used_least_recently(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(3 * BLOCK).await;
    let store = &*fixture.store;
    let samples: Vec<Sample> = (0..4).map(|seed| Sample::new(seed, BLOCK)).collect();
    for sample in &samples[..3] {
        sample.put(store).await.unwrap();
    }
    drop(store.open(&samples[0].digest).await.unwrap().unwrap());
    // A look-up is no use.
    store.held(&samples[1].digest).unwrap();
    samples[3].put(store).await.unwrap();
    let held: Vec<bool> = samples.iter().map(|sample| store.held(&sample.digest).is_some()).collect();
    assert_eq!(held, [true, false, true, true]);
}

pub(super) async fn evicts_leftovers_before_held_blobs(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(4 * BLOCK).await;
    let store = &*fixture.store;
    let (held, left, new) = (Sample::new(1, 2 * BLOCK), Sample::new(2, 2 * BLOCK), Sample::new(3, BLOCK));
    held.put(store).await.unwrap();
    let partial = left.begin(store).await.unwrap();
    left.write(&*partial, 0..1).await.unwrap();
    partial.checkpoint(&left.notes).await.unwrap();
    drop(partial);
    new.put(store).await.unwrap();
    held.assert_held(store).await;
    new.assert_held(store).await;
    assert!(store.partials().is_empty());
    assert_eq!(store.usage().partial, 0);
}

pub(super) async fn evicts_nothing_when_it_would_not_suffice(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(3 * BLOCK).await;
    let store = &*fixture.store;
    let (idle, open) = (Sample::new(1, BLOCK), Sample::new(2, 2 * BLOCK));
    idle.put(store).await.unwrap();
    let reader = open.put(store).await.unwrap();
    for size in [2 * BLOCK, 4 * BLOCK] {
        let new = Sample::new(3, size);
        assert!(matches!(new.begin(store).await, Err(StoreError::Full { need, .. }) if need == size));
    }
    idle.assert_held(store).await;
    drop(reader);
    Sample::new(3, 2 * BLOCK).put(store).await.unwrap();
}

pub(super) async fn counts_a_resumed_blob_once(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(2 * BLOCK).await;
    let (store, sample) = (&*fixture.store, Sample::new(1, 2 * BLOCK));
    for _ in 0..3 {
        let partial = sample.begin(store).await.unwrap();
        partial.write(0, sample.block(0)).await.unwrap();
        partial.checkpoint(&sample.notes).await.unwrap();
        assert_eq!(store.usage().partial, 2 * BLOCK);
    }
    sample.finish(store).await;
    assert_eq!((store.usage().partial, store.usage().held), (0, 2 * BLOCK));
}

pub(super) async fn stays_within_the_quota_under_many_writers(make: impl AsyncFn(u64) -> Fixture) {
    let quota = 8 * BLOCK;
    let fixture = make(quota).await;
    let within = |store: &dyn Store| assert!(store.usage().held + store.usage().partial <= quota);
    let mut writers = tokio::task::JoinSet::new();
    for seed in 0..40 {
        let store = Arc::clone(&fixture.store);
        writers.spawn(async move {
            let sample = Sample::new(seed, (u64::from(seed) % 3 + 1) * BLOCK - 9);
            loop {
                match sample.put(&*store).await {
                    Ok(held) => break assert!(held.read_at(0, usize::MAX).await.unwrap() == sample.bytes),
                    Err(StoreError::Full { .. }) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
        within(&*fixture.store);
    }
    let listed: u64 = fixture.store.list().iter().map(|(_, info)| info.size).sum();
    assert_eq!((fixture.store.usage().held, fixture.store.usage().partial), (listed, 0));
    assert!(listed > 0);
}

pub(super) async fn tells_what_changed(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(2 * BLOCK).await;
    let store = &*fixture.store;
    let mut changes = store.changes();
    let (one, two) = (Sample::new(1, BLOCK), Sample::new(2, 2 * BLOCK));
    let partial = one.begin(store).await.unwrap();
    one.write(&*partial, 0..1).await.unwrap();
    partial.checkpoint(&one.notes).await.unwrap();
    assert_eq!(changes.try_recv(), Err(TryRecvError::Empty));
    partial.commit(&one.notes).await.unwrap();
    assert_eq!(changes.try_recv(), Ok(Change::Held(one.digest)));
    two.put(store).await.unwrap();
    assert_eq!(changes.try_recv(), Ok(Change::Dropped(one.digest)));
    assert_eq!(changes.try_recv(), Ok(Change::Held(two.digest)));
    store.remove(&two.digest).await.unwrap();
    assert_eq!(changes.try_recv(), Ok(Change::Dropped(two.digest)));
    assert_eq!(changes.try_recv(), Err(TryRecvError::Empty));
}

pub(super) async fn a_late_second_flight_finds_the_blob_held(make: impl AsyncFn(u64) -> Fixture) {
    let fixture = make(0).await;
    let (store, sample) = (&*fixture.store, Sample::new(1, 2 * BLOCK));
    let reader = sample.put(store).await.unwrap();
    let second = sample.put(store).await.unwrap();
    assert!(second.read_at(0, usize::MAX).await.unwrap() == sample.bytes);
    assert_eq!((store.usage().held, store.usage().held_blobs, store.usage().partial), (2 * BLOCK, 1, 0));
    drop(second);
    assert!(matches!(store.remove(&sample.digest).await, Err(StoreError::InUse(_))));
    drop(reader);
    assert!(store.remove(&sample.digest).await.unwrap());
}

pub(super) async fn is_usable(make: impl AsyncFn(u64) -> Fixture) {
    make(0).await.store.probe().await.unwrap();
}

mod memory {
    use super::Fixture;
    use crate::store::Memory;

    async fn make(quota: u64) -> Fixture {
        Fixture { store: Memory::new(quota), _dir: None }
    }

    super::suite!(make);
}

mod disk {
    use super::Fixture;
    use crate::store::{Config, Disk};

    async fn make(quota: u64) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { dir: dir.path().join("store"), quota, reserve: 0, boot_id: None, claims: false };
        Fixture { store: Disk::open(config).await.unwrap(), _dir: Some(dir) }
    }

    super::suite!(make);
}
