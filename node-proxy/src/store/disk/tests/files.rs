//! Files that others take bytes from, while the store goes on.

use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering;

use super::Machine;
use crate::store::suite::{BLOCK, Sample};
use crate::store::{Store, StoreError};

#[tokio::test]
async fn a_file_that_somebody_has_open_keeps_its_bytes_whatever_becomes_of_the_blob() {
    let machine = Machine::new(0);
    let disk = machine.open().await;
    let sample = Sample::new(1, 3 * BLOCK);
    let partial = sample.begin(&*disk).await.unwrap();
    sample.write(&*partial, 0..3).await.unwrap();
    let thrown_away = partial.file().unwrap();
    partial.discard().await.unwrap();
    drop(partial);
    // The next flight begins with nothing, in a file of its own.
    let partial = sample.begin(&*disk).await.unwrap();
    let mut bytes = vec![0; sample.bytes.len()];
    thrown_away.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == sample.bytes);

    sample.write(&*partial, 0..3).await.unwrap();
    let growing = partial.file().unwrap();
    let held = partial.commit(&sample.notes).await.unwrap();
    drop((partial, held));
    assert!(disk.remove(&sample.digest).await.unwrap());
    growing.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == sample.bytes);
}

#[tokio::test]
async fn a_partial_blob_whose_records_were_lost_gets_a_new_file() {
    let mut machine = Machine::new(0);
    let disk = machine.open().await;
    let sample = Sample::new(1, 3 * BLOCK);
    let partial = sample.begin(&*disk).await.unwrap();
    sample.write(&*partial, 0..2).await.unwrap();
    partial.checkpoint(&sample.notes).await.unwrap();
    let before = partial.file().unwrap();
    machine.faults.sync_fails.store(true, Ordering::SeqCst);
    assert!(partial.commit(&sample.notes).await.is_err());
    machine.faults.sync_fails.store(false, Ordering::SeqCst);
    drop(partial);
    drop(disk);
    machine.kill(None).await;
    let disk = machine.open().await;
    let _partial = sample.begin(&*disk).await.unwrap();
    let mut bytes = vec![0; 2 * BLOCK as usize];
    before.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == sample.bytes[..2 * BLOCK as usize]);
}

#[tokio::test]
async fn warming_reads_what_is_there_and_finds_a_file_that_was_cut() {
    let machine = Machine::new(0);
    let disk = machine.open().await;
    let sample = Sample::new(1, 3 * BLOCK - 7);
    let held = sample.put(&*disk).await.unwrap();
    held.warm(0, 3 * BLOCK - 7).await.unwrap();
    held.warm(BLOCK + 1, 100).await.unwrap();
    held.warm(5, 0).await.unwrap();
    let whole = held.file().unwrap();
    assert!(!super::super::is_cached(&whole, 3 * BLOCK - 8, 2), "the last byte is behind the end");
    let file = std::fs::File::options().write(true).open(disk.inner.places.held(&sample.digest)).unwrap();
    file.set_len(2 * BLOCK).unwrap();
    held.warm(0, 2 * BLOCK).await.unwrap();
    let cut = held.warm(2 * BLOCK - 1, 2).await.unwrap_err();
    assert!(matches!(cut, StoreError::Io { action: "read", .. }), "{cut}");
}
