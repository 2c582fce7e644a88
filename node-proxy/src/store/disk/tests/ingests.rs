//! What containerd writes and claims.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use shoal_proto::Layout;

use super::Machine;
use crate::store::suite::{BLOCK, Sample, eventually};
use crate::store::{Adopted, Change, Commit, Content, Disk, Ingest, IngestError, LabelUpdate, Store, StoreError};

pub(super) fn commit() -> Commit {
    Commit {
        total: 0,
        expected: None,
        author: "author".parse().unwrap(),
        media_type: "application/x".into(),
        labels: BTreeMap::new(),
    }
}

/// Appends from where it is to `end`, in parts that are no blocks.
pub(super) async fn append(ingest: &Ingest, sample: &Sample, end: u64) -> Result<(), IngestError> {
    let mut at = ingest.status()?.offset;
    while at < end {
        let next = (at + 100_000).min(end);
        ingest.write(at, sample.bytes[at as usize..next as usize].to_vec()).await?;
        at = next;
    }
    Ok(())
}

pub(super) async fn put(disk: &Disk, reference: &str, sample: &Sample) -> Result<(), IngestError> {
    let ingest = disk.ingest(reference, 0).await?;
    append(&ingest, sample, sample.layout.size()).await?;
    ingest.commit(commit()).await.map(drop)
}

fn machine(quota: u64) -> Machine {
    Machine { claims: true, ..Machine::new(quota) }
}

#[tokio::test]
async fn bytes_in_any_parts_become_a_held_blob_that_is_claimed() {
    let machine = machine(0);
    let disk = machine.open().await;
    for (seed, size, total) in [(1, 0, 0), (2, 1, 1), (3, 3 * BLOCK, 0), (4, 5 * BLOCK + 7, 5 * BLOCK + 7)] {
        let sample = Sample::new(seed, size);
        let mut changes = disk.changes();
        let ingest = disk.ingest("one", total).await.unwrap();
        append(&ingest, &sample, size).await.unwrap();
        assert_eq!(ingest.digest().await.unwrap(), sample.digest);
        assert_eq!(disk.claim(&sample.digest).map(|claimed| claimed.size), None, "before commit");
        let commit = Commit { total: size, expected: Some(sample.digest), ..commit() };
        assert_eq!(ingest.commit(commit).await.unwrap(), sample.digest);
        sample.assert_held(&*disk).await;
        assert_eq!(disk.claim(&sample.digest).unwrap().size, size);
        assert_eq!(changes.try_recv(), Ok(Change::Held(sample.digest)));
        assert!(matches!(ingest.write(0, vec![1]).await, Err(IngestError::Gone)));
        assert!(disk.ingests().is_empty() && disk.ingest_status("one").is_none());
        machine.assert_tidy(&disk);
    }
    assert_eq!((disk.usage().claimed_blobs, disk.usage().ingests), (4, 0));
}

#[tokio::test]
async fn what_is_not_as_expected_stays_and_can_be_committed_as_what_it_is() {
    let machine = machine(0);
    let disk = machine.open().await;
    let (sample, other) = (Sample::new(1, 2 * BLOCK), Sample::new(2, 1));
    let ingest = disk.ingest("one", 0).await.unwrap();
    append(&ingest, &sample, BLOCK).await.unwrap();
    let wrong = ingest.write(5, vec![0]).await;
    assert!(matches!(wrong, Err(IngestError::Offset { offset: BLOCK, asked: 5 })), "{wrong:?}");
    append(&ingest, &sample, 2 * BLOCK).await.unwrap();
    for wrong in [Commit { total: 7, ..commit() }, Commit { expected: Some(other.digest), ..commit() }] {
        assert!(matches!(ingest.commit(wrong).await, Err(IngestError::Unexpected { .. })));
    }
    assert_eq!(disk.ingest_status("one").unwrap().offset, 2 * BLOCK);
    ingest.commit(commit()).await.unwrap();
    sample.assert_held(&*disk).await;
}

#[tokio::test]
async fn a_reference_has_one_writer_and_is_free_when_that_one_is_gone() {
    let machine = machine(0);
    let disk = machine.open().await;
    let sample = Sample::new(1, BLOCK);
    let ingest = disk.ingest("one", 0).await.unwrap();
    assert!(matches!(disk.ingest("one", 0).await, Err(IngestError::Locked)));
    disk.ingest("two", 0).await.unwrap();
    let writing = tokio::spawn(async move { append(&ingest, &sample, BLOCK).await });
    tokio::task::yield_now().await;
    writing.abort();
    let again = disk.ingest("one", 0).await.unwrap();
    let status = again.status().unwrap();
    assert_eq!(status, disk.ingest_status("one").unwrap());
    append(&again, &Sample::new(1, BLOCK), BLOCK).await.unwrap();
    again.commit(commit()).await.unwrap();
    Sample::new(1, BLOCK).assert_held(&*disk).await;
}

#[tokio::test]
async fn an_abort_takes_it_from_its_writer_and_the_reference_begins_anew() {
    let machine = machine(0);
    let disk = machine.open().await;
    let sample = Sample::new(1, BLOCK);
    assert!(!disk.abort("one").await.unwrap());
    let ingest = disk.ingest("one", 0).await.unwrap();
    append(&ingest, &sample, 1000).await.unwrap();
    assert!(disk.abort("one").await.unwrap());
    assert!(matches!(ingest.write(1000, vec![0]).await, Err(IngestError::Gone)));
    assert!(matches!(ingest.commit(commit()).await, Err(IngestError::Gone)));
    assert!(disk.ingests().is_empty());
    let again = disk.ingest("one", 0).await.unwrap();
    assert_eq!(again.status().unwrap().offset, 0);
    drop(ingest);
    append(&again, &sample, BLOCK).await.unwrap();
    again.commit(commit()).await.unwrap();
    machine.assert_tidy(&disk);
}

#[tokio::test]
async fn a_held_blob_is_not_taken_twice_and_is_claimed() {
    let machine = machine(0);
    let disk = machine.open().await;
    let sample = Sample::new(1, BLOCK);
    sample.put(&*disk).await.unwrap();
    assert_eq!(disk.usage().claimed_blobs, 0, "what a flight brought is cache");
    let ended = put(&disk, "one", &sample).await;
    assert!(matches!(ended, Err(IngestError::Exists(digest)) if digest == sample.digest), "{ended:?}");
    assert_eq!((disk.usage().claimed_blobs, disk.ingests().len()), (1, 0));
    sample.assert_held(&*disk).await;
    machine.assert_tidy(&disk);
}

#[tokio::test]
async fn a_flight_and_an_ingest_of_one_blob_may_end_together() {
    for round in 0..10 {
        let machine = machine(0);
        let disk = machine.open().await;
        let sample = Sample::new(round, 2 * BLOCK + u64::from(round));
        let partial = sample.begin(&*disk).await.unwrap();
        sample.write(&*partial, 0..sample.layout.blocks()).await.unwrap();
        let ingest = disk.ingest("one", 0).await.unwrap();
        append(&ingest, &sample, sample.layout.size()).await.unwrap();
        let (flight, ingested) = tokio::join!(partial.commit(&sample.notes), ingest.commit(commit()));
        flight.unwrap();
        assert!(matches!(ingested, Ok(_) | Err(IngestError::Exists(_))), "{ingested:?}");
        drop((partial, ingest));
        sample.assert_held(&*disk).await;
        assert_eq!(disk.usage().claimed_blobs, 1);
        machine.assert_tidy(&disk);
        drop(disk);
        sample.assert_held(&*machine.open().await).await;
    }
}

#[tokio::test]
async fn a_restart_goes_on_where_the_bytes_end() {
    let mut machine = machine(0);
    let sample = Sample::new(1, 3 * BLOCK);
    let disk = machine.open().await;
    let ingest = disk.ingest("k8s.io/1/layer", 3 * BLOCK).await.unwrap();
    append(&ingest, &sample, 300_000).await.unwrap();
    let before = ingest.status().unwrap();
    drop(ingest);
    machine.kill(Some(disk)).await;
    let disk = machine.open().await;
    let after = disk.ingest_status("k8s.io/1/layer").unwrap();
    assert_eq!((after.offset, after.total, after.started), (300_000, 3 * BLOCK, before.started));
    assert_eq!(disk.usage().ingests, 300_000);
    let ingest = disk.ingest("k8s.io/1/layer", 3 * BLOCK).await.unwrap();
    append(&ingest, &sample, 3 * BLOCK).await.unwrap();
    ingest.commit(Commit { expected: Some(sample.digest), ..commit() }).await.unwrap();
    sample.assert_held(&*disk).await;
    machine.assert_tidy(&disk);
}

#[tokio::test]
async fn another_total_or_a_truncation_begins_anew() {
    let machine = machine(0);
    let disk = machine.open().await;
    let sample = Sample::new(1, BLOCK);
    let ingest = disk.ingest("one", 500).await.unwrap();
    append(&ingest, &Sample::new(2, 500), 500).await.unwrap();
    drop(ingest);
    let ingest = disk.ingest("one", BLOCK).await.unwrap();
    assert_eq!(ingest.status().unwrap().offset, 0);
    append(&ingest, &Sample::new(3, BLOCK), BLOCK).await.unwrap();
    ingest.truncate().await.unwrap();
    append(&ingest, &sample, BLOCK).await.unwrap();
    assert_eq!(ingest.commit(commit()).await.unwrap(), sample.digest);
    sample.assert_held(&*disk).await;
}

#[tokio::test]
async fn i11_what_is_claimed_never_goes_and_cache_goes_first() {
    let machine = machine(4 * BLOCK);
    let disk = machine.open().await;
    let (mine, cache) = (Sample::new(1, 2 * BLOCK), Sample::new(2, 2 * BLOCK));
    put(&disk, "mine", &mine).await.unwrap();
    cache.put(&*disk).await.unwrap();
    // It takes the room of the cache, then goes beyond the quota.
    for seed in 3..6 {
        put(&disk, "more", &Sample::new(seed, 2 * BLOCK)).await.unwrap();
        mine.assert_held(&*disk).await;
    }
    assert_eq!(disk.held(&cache.digest), None);
    assert_eq!(disk.usage().held, 8 * BLOCK);
    let refused = Sample::new(7, BLOCK).begin(&*disk).await.err();
    assert!(matches!(refused, Some(StoreError::Full { .. })), "cache keeps to the quota: {refused:?}");
    assert!(matches!(disk.remove(&mine.digest).await, Err(StoreError::InUse(_))));
    assert!(disk.unclaim(&mine.digest).await && !disk.unclaim(&mine.digest).await);
    assert_eq!(disk.held(&mine.digest), None, "I11: what was let go is cache, and keeps to the quota");
    assert_eq!(disk.usage().held, 6 * BLOCK);
    machine.assert_tidy(&disk);
}

#[tokio::test]
async fn after_a_start_nothing_goes_before_a_comparison() {
    let mut machine = machine(0);
    let disk = machine.open().await;
    let samples: Vec<Sample> = (0..4).map(|seed| Sample::new(seed, BLOCK)).collect();
    for sample in &samples {
        sample.put(&*disk).await.unwrap();
    }
    drop(disk);
    machine.quota = 2 * BLOCK;
    let disk = machine.open().await;
    assert_eq!((disk.usage().held_blobs, disk.usage().claimed_blobs), (4, 4));
    let began = disk.moment();
    // Asked for while containerd was listing.
    disk.claim(&samples[1].digest).unwrap();
    let gone = disk.unclaim_others(HashSet::from([samples[0].digest]), began).await;
    assert_eq!((gone, disk.usage().claimed_blobs), (2, 2));
    assert_eq!(disk.usage().held_blobs, 2, "the rest keeps to the quota");
    for sample in &samples[..2] {
        sample.assert_held(&*disk).await;
    }
    machine.assert_tidy(&disk);
}

#[tokio::test]
async fn a_full_disk_leaves_an_ingest_that_goes_on_later() {
    let mut machine = machine(0);
    let sample = Sample::new(1, 2 * BLOCK);
    let disk = machine.open().await;
    let ingest = disk.ingest("one", 0).await.unwrap();
    append(&ingest, &sample, BLOCK).await.unwrap();
    machine.faults.full.store(true, Ordering::SeqCst);
    let full = append(&ingest, &sample, 2 * BLOCK).await;
    assert!(matches!(full, Err(IngestError::Store(StoreError::Full { .. }))), "{full:?}");
    assert!(matches!(ingest.commit(commit()).await, Err(IngestError::Store(StoreError::Full { .. }))));
    assert_eq!(ingest.status().unwrap().offset, BLOCK);
    machine.faults.full.store(false, Ordering::SeqCst);
    drop(ingest);
    machine.kill(Some(disk)).await;
    machine.reserve = u64::MAX / 2;
    let disk = machine.open().await;
    let ingest = disk.ingest("one", 0).await.unwrap();
    let full = ingest.write(BLOCK, vec![0; 2 << 20]).await;
    assert!(matches!(full, Err(IngestError::Store(StoreError::Full { .. }))), "the reserve is others': {full:?}");
    drop((ingest, disk));
    machine.reserve = 0;
    let disk = machine.open().await;
    let ingest = disk.ingest("one", 0).await.unwrap();
    append(&ingest, &sample, 2 * BLOCK).await.unwrap();
    ingest.commit(commit()).await.unwrap();
    sample.assert_held(&*disk).await;
    machine.assert_tidy(&disk);
}

#[tokio::test]
async fn a_sync_that_failed_leaves_nothing_to_trust() {
    let machine = machine(0);
    let disk = machine.open().await;
    let sample = Sample::new(1, BLOCK);
    let ingest = disk.ingest("one", 0).await.unwrap();
    append(&ingest, &sample, BLOCK).await.unwrap();
    machine.faults.sync_fails.store(true, Ordering::SeqCst);
    assert!(ingest.commit(commit()).await.is_err());
    machine.faults.sync_fails.store(false, Ordering::SeqCst);
    assert!(ingest.commit(commit()).await.is_err(), "Linux would say now that all is well");
    drop(ingest);
    let ingest = disk.ingest("one", 0).await.unwrap();
    assert_eq!(ingest.status().unwrap().offset, 0);
    append(&ingest, &sample, BLOCK).await.unwrap();
    ingest.commit(commit()).await.unwrap();
    sample.assert_held(&*disk).await;
}

#[tokio::test]
async fn labels_outlive_a_restart_and_go_with_their_blob() {
    let machine = machine(0);
    let disk = machine.open().await;
    let sample = Sample::new(1, BLOCK);
    let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let ingest = disk.ingest("one", 0).await.unwrap();
    append(&ingest, &sample, BLOCK).await.unwrap();
    ingest.commit(Commit { labels: map(&[("a", "1"), ("b", "2")]), ..commit() }).await.unwrap();
    let created = disk.claim(&sample.digest).unwrap().created;
    let update = LabelUpdate::Some(map(&[("b", ""), ("c", "3")]));
    let labelled = disk.label(&sample.digest, update).await.unwrap().unwrap();
    assert!(labelled.created == created && labelled.updated > created);
    drop((ingest, disk));
    let disk = machine.open().await;
    let claimed = disk.claim(&sample.digest).unwrap();
    assert_eq!(claimed.labels().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(), ["a=1", "c=3"]);
    assert_eq!((claimed.label("a"), claimed.label("b"), claimed.updated), (Some("1"), None, labelled.updated));
    machine.assert_tidy(&disk);
    assert!(disk.label(&Sample::new(2, 1).digest, LabelUpdate::All(map(&[]))).await.unwrap().is_none());
    disk.unclaim(&sample.digest).await;
    assert!(disk.remove(&sample.digest).await.unwrap());
    assert!(machine.files("held").is_empty());
}

#[tokio::test]
async fn a_name_that_leads_to_a_file_of_somebody_else_becomes_a_file_of_ours_when_it_is_adopted() {
    let machine = machine(0);
    let other = tempfile::tempdir_in(&machine.dir).unwrap();
    let disk = machine.open().await;
    let author = "author".parse().unwrap();
    let kind = |_: &[u8]| "application/x".to_owned();
    for (seed, rots) in [(5, false), (6, true)] {
        let sample = Sample::new(seed, 3 * BLOCK);
        let theirs = other.path().join(sample.digest.hex());
        std::fs::write(&theirs, &sample.bytes).unwrap();
        disk.adopt(&sample.digest, &theirs, &author, kind).await.unwrap();
        // As it is left where there can be no hard link.
        let held = disk.inner.places.held(&sample.digest);
        std::fs::remove_file(&held).unwrap();
        std::os::unix::fs::symlink(&theirs, &held).unwrap();
        // What is given back is the file, and not the name that leads to it.
        let to = other.path().join("given");
        disk.release(&sample.digest, &to, &machine.dir).await.unwrap();
        assert!(!std::fs::symlink_metadata(&to).unwrap().is_symlink());
        std::fs::remove_file(&to).unwrap();
        if rots {
            std::fs::write(&theirs, vec![0; sample.bytes.len()]).unwrap();
            let adopted = disk.adopt(&sample.digest, &theirs, &author, kind).await.unwrap();
            assert_eq!((adopted, disk.held(&sample.digest)), (Adopted::Wrong, None));
            continue;
        }
        let adopted = disk.adopt(&sample.digest, &theirs, &author, kind).await.unwrap();
        assert_eq!(adopted, Adopted::Linked(sample.bytes.len() as u64));
        std::fs::remove_file(&theirs).unwrap();
        sample.assert_held(&*disk).await;
    }
    assert_eq!(disk.usage().claimed_blobs, 1);
}

#[tokio::test]
async fn files_of_another_store_are_adopted_by_their_hash_and_given_back() {
    let machine = machine(0);
    let other = tempfile::tempdir_in(&machine.dir).unwrap();
    let disk = machine.open().await;
    let (right, wrong) = (Sample::of(b"{}".to_vec(), "made of {}"), Sample::new(2, 3 * BLOCK));
    let path = |sample: &Sample| other.path().join(sample.digest.hex());
    std::fs::write(path(&right), &right.bytes).unwrap();
    std::fs::write(path(&wrong), &right.bytes).unwrap();
    let author = "author".parse().unwrap();
    let kind = |bytes: &[u8]| format!("made of {}", String::from_utf8_lossy(bytes));
    let adopt = async |sample: &Sample| disk.adopt(&sample.digest, &path(sample), &author, kind).await.unwrap();
    assert_eq!(adopt(&right).await, Adopted::Linked(2));
    assert_eq!(adopt(&right).await, Adopted::Already);
    assert_eq!(adopt(&wrong).await, Adopted::Wrong);
    right.assert_held(&*disk).await;
    assert_eq!(disk.usage().claimed_blobs, 1);
    machine.assert_tidy(&disk);

    std::fs::remove_file(path(&right)).unwrap();
    let (to, aside) = (path(&right), &*machine.dir);
    assert_eq!(disk.release(&right.digest, &to, aside).await.unwrap(), Some(Adopted::Linked(2)));
    assert_eq!(disk.release(&right.digest, &to, aside).await.unwrap(), Some(Adopted::Already));
    assert_eq!(disk.release(&wrong.digest, &to, aside).await.unwrap(), None);
    assert_eq!(std::fs::read(&to).unwrap(), right.bytes);
    // What is there with other bytes is not the blob, whatever its size.
    std::fs::remove_file(&to).unwrap();
    std::fs::write(&to, "[]").unwrap();
    assert_eq!(disk.release(&right.digest, &to, aside).await.unwrap(), Some(Adopted::Linked(2)));
    assert_eq!(std::fs::read(&to).unwrap(), right.bytes);
    // A file of its own with the same bytes is.
    std::fs::remove_file(&to).unwrap();
    std::fs::write(&to, &right.bytes).unwrap();
    assert_eq!(disk.release(&right.digest, &to, aside).await.unwrap(), Some(Adopted::Already));
    // Another file system takes a copy.
    let Ok(far) = tempfile::tempdir_in("/dev/shm") else { return };
    let (to, aside) = (far.path().join("blob"), far.path());
    assert_eq!(disk.release(&right.digest, &to, aside).await.unwrap(), Some(Adopted::Copied(2)));
    let from = machine.open_beside().await;
    assert_eq!(from.adopt(&right.digest, &to, &author, kind).await.unwrap(), Adopted::Copied(2));
    right.assert_held(&*from).await;
}

#[tokio::test]
async fn sixteen_writers_of_sixteen_references_do_not_meet() {
    let machine = machine(0);
    let disk = machine.open().await;
    let writers = (0..16).map(|seed| {
        let disk = Arc::clone(&disk);
        tokio::spawn(async move {
            let sample = Sample::new(seed, u64::from(seed) * 100_000);
            put(&disk, &format!("ref {seed}"), &sample).await.unwrap();
            sample
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap().assert_held(&*disk).await;
    }
    eventually(async || disk.ingests().is_empty().then_some(())).await;
    machine.assert_tidy(&disk);
}

/// `ctr content ingest` without a size, of more than 2 GiB. What containerd asks for with its database locked must not read it all.
#[tokio::test]
async fn what_outgrows_its_blocks_is_cut_anew_before_its_commit() {
    const PART: usize = 64 << 20;
    let machine = machine(0);
    let disk = machine.open().await;
    let ingest = disk.ingest("large", 0).await.unwrap();
    let (part, parts, mut cut) = (vec![9; PART], 33, crate::store::ingest::Cut::new(33 * PART as u64));
    for at in 0..parts {
        ingest.write((at * PART) as u64, part.clone()).await.unwrap();
        cut.update(&part);
    }
    // Read again now, it would be others' bytes.
    let path = disk.inner.places.ingests_dir().join(hex::encode(crate::store::ingest::key_of("large"))).join("data");
    let data = std::fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&data, &[0; 4096], 0).unwrap();
    let digest = ingest.commit(commit()).await.unwrap();
    let list = disk.open(&digest).await.unwrap().unwrap().list().await.unwrap();
    let layout = Layout::of((parts * PART) as u64).unwrap();
    assert_eq!(layout.block_size(), 512 << 10);
    assert!(list == cut.list(layout).unwrap());
}
