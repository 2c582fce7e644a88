//! Two that meet at one digest: who makes it held, and who removes it or makes it held too.

use std::fs;
use std::time::Duration;

use super::ingests::{append, commit};
use super::*;
use crate::store::suite::{BLOCK, Sample};

/// Waits until a removal is held up.
async fn held_up(machine: &Machine) {
    eventually(async || machine.faults.stalls().then_some(())).await;
}

/// As long as it takes for what does not wait to end.
async fn a_while() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

/// I2: a blob goes to make room, is forgotten, and its files are about to go: whoever makes it held again meanwhile keeps its own.
#[tokio::test]
async fn i2_a_commit_that_was_answered_outlives_the_removal_of_the_same_blob() {
    let machine = Machine { claims: true, ..Machine::new(0) };
    let store = machine.open().await;
    let sample = Sample::new(1, 2 * BLOCK);
    let first = store.ingest("first", 0).await.unwrap();
    append(&first, &sample, 2 * BLOCK).await.unwrap();
    let second = store.ingest("second", 0).await.unwrap();
    append(&second, &sample, 2 * BLOCK).await.unwrap();
    first.commit(commit()).await.unwrap();
    assert!(store.unclaim(&sample.digest).await);
    machine.faults.stall(&store.inner.places.held(&sample.digest));
    let removing = tokio::spawn({
        let (store, digest) = (Arc::clone(&store), sample.digest);
        async move { store.remove(&digest).await }
    });
    held_up(&machine).await;
    assert!(store.held(&sample.digest).is_none());
    let committing = tokio::spawn(async move { second.commit(commit()).await });
    a_while().await;
    machine.faults.resume();
    assert!(removing.await.unwrap().unwrap());
    committing.await.unwrap().unwrap();
    assert_eq!(store.held(&sample.digest).expect("it was answered that it is held").size, 2 * BLOCK);
    let held = store.open(&sample.digest).await.unwrap().expect("its file is there");
    assert!(held.read_at(0, usize::MAX).await.unwrap() == sample.bytes);
    drop((held, first, store));
    assert!(machine.open().await.held(&sample.digest).is_some(), "a start finds it");
}

/// A flight keeps what it writes from being removed, so that the two never meet.
#[tokio::test]
async fn what_a_flight_is_about_to_replace_is_not_removed() {
    let machine = Machine { claims: true, ..Machine::new(0) };
    let store = machine.open().await;
    let sample = Sample::new(1, 2 * BLOCK);
    let flight = sample.begin(&*store).await.unwrap();
    let ingest = store.ingest("one", 0).await.unwrap();
    append(&ingest, &sample, 2 * BLOCK).await.unwrap();
    ingest.commit(commit()).await.unwrap();
    assert!(store.unclaim(&sample.digest).await);
    assert!(matches!(store.remove(&sample.digest).await, Err(StoreError::InUse(_))));
    sample.write(&*flight, 0..2).await.unwrap();
    flight.commit(&sample.notes).await.unwrap();
    assert!(store.remove(&sample.digest).await.unwrap());
}

/// A blob of containerd's is taken over while a flight fetches the same: containerd's file is never written into.
#[tokio::test]
async fn i2_a_flight_and_a_blob_of_containerds_of_one_digest_do_each_other_no_harm() {
    let elsewhere = [tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap()];
    for other in &elsewhere {
        let machine = Machine::new(0);
        let store = machine.open().await;
        let sample = Sample::new(1, 3 * BLOCK);
        let path = other.path().join("theirs");
        fs::write(&path, &sample.bytes).unwrap();
        let flight = sample.begin(&*store).await.unwrap();
        sample.write(&*flight, 0..2).await.unwrap();
        // Between the steps of the one, the other keeps a record of what it has.
        machine.faults.stall(&store.inner.places.beside_partial(&sample.digest, "led"));
        let taking = tokio::spawn({
            let (store, digest, notes) = (Arc::clone(&store), sample.digest, sample.notes.clone());
            let file = fs::File::open(&path).unwrap();
            let path = path.clone();
            async move { store.hold_theirs(&digest, file, path, notes).await }
        });
        held_up(&machine).await;
        flight.checkpoint(&sample.notes).await.unwrap();
        sample.write(&*flight, 2..3).await.unwrap();
        let notes = sample.notes.clone();
        let committing = tokio::spawn(async move { flight.commit(&notes).await.map(drop) });
        a_while().await;
        machine.faults.resume();
        taking.await.unwrap().unwrap();
        committing.await.unwrap().unwrap();
        assert!(fs::read(&path).unwrap() == sample.bytes, "containerd's file is what it was");
        sample.assert_held(&*store).await;
        assert_eq!((store.list().len(), store.usage().partial), (1, 0));
    }
}

/// What lies where a small file is to be written may lead to a file of somebody else's.
#[test]
fn a_name_that_leads_elsewhere_is_replaced_and_never_written_through() {
    let dir = tempfile::tempdir().unwrap();
    let (theirs, at, files) = (dir.path().join("theirs"), dir.path().join("new"), Files::default());
    for symbolic in [false, true] {
        fs::write(&theirs, "theirs").unwrap();
        _ = fs::remove_file(&at);
        let linked = if symbolic { std::os::unix::fs::symlink(&theirs, &at) } else { fs::hard_link(&theirs, &at) };
        linked.unwrap();
        files.write_new(&at, b"ours", false).unwrap();
        assert_eq!((fs::read(&theirs).unwrap(), fs::read(&at).unwrap()), (b"theirs".to_vec(), b"ours".to_vec()));
    }
}
