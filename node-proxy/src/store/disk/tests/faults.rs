//! Disks that are full, failing, or changed behind the store's back.

use std::sync::atomic::Ordering;

use super::Machine;
use crate::store::suite::{BLOCK, Sample, eventually, set};
use crate::store::{Change, Store, StoreError};

#[tokio::test]
async fn a_full_disk_is_told_apart_and_harms_nothing() {
    let machine = Machine::new(0);
    let disk = machine.open().await;
    let (old, sample) = (Sample::new(1, BLOCK), Sample::new(2, 3 * BLOCK));
    old.put(&*disk).await.unwrap();
    let partial = sample.begin(&*disk).await.unwrap();
    sample.write(&*partial, 0..2).await.unwrap();
    partial.checkpoint(&sample.notes_of(&set(sample.layout, 0..2))).await.unwrap();

    machine.faults.full.store(true, Ordering::SeqCst);
    let full = partial.write(2, sample.block(2)).await;
    assert!(matches!(full, Err(StoreError::Full { need: BLOCK, .. })), "{full:?}");
    assert!(matches!(partial.checkpoint(&sample.notes).await, Err(StoreError::Full { .. })));
    assert!(matches!(disk.probe().await, Err(StoreError::Full { .. })));
    assert!(partial.read_at(0, 2 * BLOCK as usize).await.unwrap() == sample.bytes.slice(..2 * BLOCK as usize));
    old.assert_held(&*disk).await;
    drop(partial);
    let partial = sample.begin(&*disk).await.unwrap();
    assert_eq!(partial.resumed().unwrap().have, set(sample.layout, 0..2), "the earlier record stays");

    machine.faults.full.store(false, Ordering::SeqCst);
    sample.write(&*partial, 2..3).await.unwrap();
    machine.faults.full.store(true, Ordering::SeqCst);
    assert!(matches!(partial.commit(&sample.notes).await, Err(StoreError::Full { .. })), "no room for the sidecar");
    assert_eq!(disk.held(&sample.digest), None);
    machine.faults.full.store(false, Ordering::SeqCst);
    partial.commit(&sample.notes).await.unwrap();
    sample.assert_held(&*disk).await;
    machine.assert_tidy(&disk);
    disk.probe().await.unwrap();
}

#[tokio::test]
async fn trusts_nothing_of_a_blob_after_a_sync_that_failed() {
    for in_commit in [true, false] {
        let mut machine = Machine::new(0);
        machine.sync_every = 2 * BLOCK;
        let disk = machine.open().await;
        let sample = Sample::new(1, 3 * BLOCK);
        let partial = sample.begin(&*disk).await.unwrap();
        sample.write(&*partial, 0..1).await.unwrap();
        partial.checkpoint(&sample.notes).await.unwrap();
        sample.write(&*partial, 1..3).await.unwrap();
        machine.faults.sync_fails.store(true, Ordering::SeqCst);
        match in_commit {
            true => assert!(matches!(partial.commit(&sample.notes).await, Err(StoreError::Io { .. }))),
            false => assert!(matches!(partial.checkpoint(&sample.notes).await, Err(StoreError::Io { .. }))),
        }
        machine.faults.sync_fails.store(false, Ordering::SeqCst);
        // Linux would say now that all is well.
        assert!(partial.commit(&sample.notes).await.is_err());
        assert!(partial.checkpoint(&sample.notes).await.is_err());
        assert!(partial.write(0, sample.block(0)).await.is_err());
        assert_eq!(disk.held(&sample.digest), None);
        drop(partial);
        let partial = eventually(async || sample.begin(&*disk).await.ok()).await;
        assert!(partial.resumed().is_none());
        drop(partial);
        sample.finish(&*disk).await;
        sample.assert_held(&*disk).await;
        machine.assert_tidy(&disk);
    }
}

#[tokio::test]
async fn a_probe_finds_a_disk_that_fails_and_leaves_nothing() {
    let machine = Machine::new(0);
    let disk = machine.open().await;
    let names = || {
        let entries = std::fs::read_dir(machine.path("")).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<std::collections::BTreeSet<_>>()
    };
    let before = names();
    machine.faults.sync_fails.store(true, Ordering::SeqCst);
    let failed = disk.probe().await.unwrap_err();
    assert!(matches!(failed, StoreError::Io { action: "sync", .. }), "{failed}");
    machine.faults.sync_fails.store(false, Ordering::SeqCst);
    disk.probe().await.unwrap();
    assert_eq!(names(), before);
}

#[tokio::test]
async fn leaves_the_reserve_to_others() {
    let mut machine = Machine::new(0);
    machine.reserve = u64::MAX / 2;
    let disk = machine.open().await;
    let refused = Sample::new(1, BLOCK).begin(&*disk).await.err();
    assert!(matches!(refused, Some(StoreError::Full { need: BLOCK, why }) if why.contains("reserve")), "{refused:?}");
    drop(disk);
    machine.reserve = 1;
    Sample::new(1, BLOCK).put(&*machine.open().await).await.unwrap();
}

#[tokio::test]
async fn a_file_that_vanished_or_was_cut_is_not_held() {
    let machine = Machine::new(0);
    let disk = machine.open().await;
    let (gone, cut) = (Sample::new(1, BLOCK), Sample::new(2, BLOCK));
    for sample in [&gone, &cut] {
        sample.put(&*disk).await.unwrap();
    }
    let mut changes = disk.changes();
    std::fs::remove_file(disk.inner.places.held(&gone.digest)).unwrap();
    let file = std::fs::File::options().write(true).open(disk.inner.places.held(&cut.digest)).unwrap();
    file.set_len(BLOCK - 1).unwrap();
    for sample in [&gone, &cut] {
        assert!(disk.open(&sample.digest).await.unwrap().is_none());
        assert_eq!(disk.held(&sample.digest), None);
        assert_eq!(changes.try_recv(), Ok(Change::Dropped(sample.digest)));
        sample.put(&*disk).await.unwrap();
        assert_eq!(changes.try_recv(), Ok(Change::Held(sample.digest)));
        sample.assert_held(&*disk).await;
    }
    machine.assert_tidy(&disk);
}

#[tokio::test]
async fn a_damaged_sidecar_costs_only_its_blob() {
    let machine = Machine::new(0);
    let disk = machine.open().await;
    let samples: Vec<Sample> = (0..5).map(|seed| Sample::new(seed, 2 * BLOCK)).collect();
    for sample in &samples {
        sample.put(&*disk).await.unwrap();
    }
    let list = |at: usize| disk.inner.places.held_list(&samples[at].digest);
    let whole = std::fs::read(list(0)).unwrap();
    std::fs::write(list(0), &whole[..20]).unwrap();
    std::fs::write(list(1), []).unwrap();
    // That of another blob, which is whole in itself: only the length tells.
    std::fs::write(list(2), std::fs::read(list(3)).unwrap()).unwrap();
    std::fs::write(disk.inner.places.held(&samples[2].digest), b"short").unwrap();
    // The hashes are read late.
    let mut flipped = std::fs::read(list(3)).unwrap();
    *flipped.last_mut().unwrap() ^= 1;
    std::fs::write(list(3), flipped).unwrap();
    drop(disk);

    let disk = machine.open().await;
    let held: Vec<bool> = samples.iter().map(|sample| disk.held(&sample.digest).is_some()).collect();
    assert_eq!(held, [false, false, false, true, true]);
    machine.assert_tidy(&disk);
    let open = disk.open(&samples[3].digest).await.unwrap().unwrap();
    let damaged = open.list().await.unwrap_err();
    let path = disk.inner.places.held_list(&samples[3].digest);
    assert!(matches!(&damaged, StoreError::Damaged(why) if why.contains(path.to_str().unwrap())), "{damaged}");
    drop(open);
    for sample in &samples {
        disk.remove(&sample.digest).await.unwrap();
        sample.put(&*disk).await.unwrap();
        sample.assert_held(&*disk).await;
    }
}
