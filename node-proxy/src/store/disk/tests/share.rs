//! Blobs whose bytes are somebody else's file too.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use super::*;
use crate::store::Usage;
use crate::store::disk::Sharing;
use crate::store::suite::{BLOCK, Sample};

fn inode(path: &Path) -> (u64, u64) {
    let there = fs::metadata(path).unwrap();
    (there.dev(), there.ino())
}

/// Somebody else's file with these bytes.
fn theirs(dir: &Path, bytes: &[u8]) -> PathBuf {
    let path = dir.join("theirs");
    fs::write(&path, bytes).unwrap();
    path
}

fn usage(store: &Disk) -> (u64, u64) {
    let Usage { held, shared, .. } = store.usage();
    (held, shared)
}

#[tokio::test]
async fn a_held_blob_and_another_file_of_the_same_bytes_become_one_which_counts_against_nothing() {
    let (machine, other) = (Machine::new(4 * BLOCK), tempfile::tempdir().unwrap());
    let store = machine.open().await;
    let sample = Sample::new(1, 3 * BLOCK + 5);
    let reader = sample.put(&*store).await.unwrap();
    let path = theirs(other.path(), &sample.bytes);
    assert_eq!(store.share(&sample.digest, path.clone()).await.unwrap(), Sharing::One);
    let held = store.inner.places.held(&sample.digest);
    assert_eq!(inode(&held), inode(&path));
    assert_eq!(usage(&store), (0, sample.layout.size()));
    assert!(reader.read_at(0, usize::MAX).await.unwrap() == sample.bytes, "who read before reads on");
    sample.assert_held(&*store).await;
    assert_eq!(store.share(&sample.digest, path.clone()).await.unwrap(), Sharing::One, "once more");
    drop(reader);
    // It makes no room, and none has to be made for it.
    let other = Sample::new(2, 4 * BLOCK);
    other.put(&*store).await.unwrap();
    sample.assert_held(&*store).await;
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    drop(store);
    let store = machine.open().await;
    sample.assert_held(&*store).await;
    assert_eq!(usage(&store), (4 * BLOCK, sample.layout.size()), "a start finds which are shared");
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), modified, "their time is theirs");
}

#[tokio::test]
async fn what_has_other_bytes_is_not_shared_and_ours_stays() {
    let (machine, other) = (Machine::new(0), tempfile::tempdir().unwrap());
    let store = machine.open().await;
    let sample = Sample::new(1, 2 * BLOCK);
    sample.put(&*store).await.unwrap();
    let mut wrong = sample.bytes.to_vec();
    wrong[2 * BLOCK as usize - 1] ^= 1;
    for bytes in [&wrong[..], &wrong[1..], &[]] {
        let path = theirs(other.path(), bytes);
        assert_eq!(store.share(&sample.digest, path).await.unwrap(), Sharing::Differs);
        sample.assert_held(&*store).await;
    }
    assert_eq!(usage(&store), (2 * BLOCK, 0));
    assert_eq!(store.share(&sample.digest, other.path().join("none")).await.unwrap(), Sharing::Gone);
    let nowhere = Sample::new(2, BLOCK);
    let path = theirs(other.path(), &nowhere.bytes);
    assert_eq!(store.share(&nowhere.digest, path).await.unwrap(), Sharing::Gone, "not held");
}

#[tokio::test]
async fn what_its_owner_removes_is_ours_alone_and_within_the_quota_again() {
    let (machine, other) = (Machine::new(4 * BLOCK), tempfile::tempdir().unwrap());
    let store = machine.open().await;
    let (one, two) = (Sample::new(1, 3 * BLOCK), Sample::new(2, 3 * BLOCK));
    one.put(&*store).await.unwrap();
    let path = theirs(other.path(), &one.bytes);
    store.share(&one.digest, path.clone()).await.unwrap();
    assert_eq!(store.left_alone().await.unwrap(), []);
    fs::remove_file(&path).unwrap();
    assert_eq!(store.left_alone().await.unwrap(), [one.digest]);
    assert_eq!(usage(&store), (3 * BLOCK, 0));
    one.assert_held(&*store).await;
    // The same while the quota is taken: what was used least recently goes.
    let path = theirs(other.path(), &one.bytes);
    store.share(&one.digest, path.clone()).await.unwrap();
    two.put(&*store).await.unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(store.left_alone().await.unwrap(), [one.digest]);
    assert_eq!(usage(&store), (3 * BLOCK, 0));
    assert!(store.held(&one.digest).is_none(), "it was used least recently");
    two.assert_held(&*store).await;
}

#[tokio::test]
async fn where_there_can_be_no_link_theirs_is_read_and_held_as_long_as_it_is_there() {
    // Another file system than that of temporary files.
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let machine = Machine::new(4 * BLOCK);
    let (store, sample) = (machine.open().await, Sample::new(1, 3 * BLOCK));
    assert_ne!(inode(elsewhere.path()).0, inode(&machine.dir).0, "the test needs two file systems");
    sample.put(&*store).await.unwrap();
    let path = theirs(elsewhere.path(), &sample.bytes);
    assert_eq!(store.share(&sample.digest, path.clone()).await.unwrap(), Sharing::Theirs);
    let held = store.inner.places.held(&sample.digest);
    assert!(fs::symlink_metadata(&held).unwrap().is_symlink());
    assert_eq!(usage(&store), (0, 3 * BLOCK));
    sample.assert_held(&*store).await;
    drop(store);
    let store = machine.open().await;
    assert_eq!(usage(&store), (0, 3 * BLOCK));
    sample.assert_held(&*store).await;
    assert_eq!(store.left_alone().await.unwrap(), []);
    fs::remove_file(&path).unwrap();
    assert_eq!(store.left_alone().await.unwrap(), [sample.digest]);
    assert!(store.held(&sample.digest).is_none() && fs::symlink_metadata(&held).is_err());
    assert_eq!(usage(&store), (0, 0));
    // A start finds it out too.
    sample.put(&*store).await.unwrap();
    let path = theirs(elsewhere.path(), &sample.bytes);
    store.share(&sample.digest, path.clone()).await.unwrap();
    drop(store);
    fs::remove_file(&path).unwrap();
    let store = machine.open().await;
    assert!(store.held(&sample.digest).is_none());
    sample.put(&*store).await.unwrap();
}

/// Whoever owns a file may put another in its place; its length tells nothing.
#[tokio::test]
async fn another_file_at_the_place_that_a_name_leads_to_is_never_read_as_the_blob() {
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let machine = Machine::new(0);
    let sample = Sample::new(1, 3 * BLOCK);
    let mut wrong = sample.bytes.to_vec();
    wrong[BLOCK as usize] ^= 1;
    let path = elsewhere.path().join("theirs");
    // By another file, by other bytes in the same one, and with the same time of modification.
    let replace = |how: usize| {
        // Two changes within a tick of the kernel's clock can't be told apart.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        if how == 0 {
            fs::remove_file(&path).unwrap();
        }
        fs::write(&path, &wrong).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    };
    for how in 0..2 {
        for found_by in 0..3 {
            let store = machine.open().await;
            let path = theirs(elsewhere.path(), &sample.bytes);
            sample.put(&*store).await.unwrap();
            assert_eq!(store.share(&sample.digest, path.clone()).await.unwrap(), Sharing::Theirs);
            sample.assert_held(&*store).await;
            replace(how);
            let store = match found_by {
                0 => {
                    assert!(store.open(&sample.digest).await.unwrap().is_none());
                    store
                }
                1 => {
                    assert_eq!(store.left_alone().await.unwrap(), [sample.digest]);
                    store
                }
                _ => {
                    drop(store);
                    machine.open().await
                }
            };
            assert!(store.held(&sample.digest).is_none(), "{how} {found_by}");
            let places = &store.inner.places;
            for name in [places.held(&sample.digest), places.held_theirs(&sample.digest)] {
                assert!(fs::symlink_metadata(&name).is_err(), "{}", name.display());
            }
            // Ours again, and not theirs.
            sample.put(&*store).await.unwrap();
            sample.assert_held(&*store).await;
            store.remove(&sample.digest).await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_is_known_of_a_file_goes_with_the_name_that_led_to_it() {
    let (elsewhere, near) = (tempfile::tempdir_in("/dev/shm").unwrap(), tempfile::tempdir().unwrap());
    let machine = Machine::new(0);
    let (store, sample) = (machine.open().await, Sample::new(1, 3 * BLOCK));
    sample.put(&*store).await.unwrap();
    let far = theirs(elsewhere.path(), &sample.bytes);
    assert_eq!(store.share(&sample.digest, far).await.unwrap(), Sharing::Theirs);
    let known = store.inner.places.held_theirs(&sample.digest);
    assert!(known.exists());
    let near = theirs(near.path(), &sample.bytes);
    assert_eq!(store.share(&sample.digest, near).await.unwrap(), Sharing::One);
    assert!(!known.exists());
    sample.assert_held(&*store).await;
    // A start clears away what a kill left.
    fs::write(&known, "1 2 3 4\n").unwrap();
    drop(store);
    let store = machine.open().await;
    sample.assert_held(&*store).await;
    assert!(!known.exists());
}

#[tokio::test]
async fn what_somebody_else_has_is_held_without_a_copy_and_told() {
    let (machine, other) = (Machine::new(BLOCK), tempfile::tempdir().unwrap());
    let store = machine.open().await;
    let sample = Sample::new(1, 3 * BLOCK);
    let path = theirs(other.path(), &sample.bytes);
    let mut changes = store.changes();
    let file = || fs::File::open(&path).unwrap();
    let adopted = store.hold_theirs(&sample.digest, file(), path.clone(), sample.notes.clone()).await.unwrap();
    assert_eq!(adopted, Sharing::One);
    sample.assert_held(&*store).await;
    assert_eq!(changes.try_recv().unwrap(), crate::store::Change::Held(sample.digest));
    assert_eq!(inode(&store.inner.places.held(&sample.digest)), inode(&path));
    let again = store.hold_theirs(&sample.digest, file(), path.clone(), sample.notes.clone()).await.unwrap();
    assert_eq!(again, Sharing::One, "once more");
    // Between the hashing and now another file came to the path.
    let late = Sample::new(2, BLOCK);
    let third = tempfile::tempdir().unwrap();
    let hashed = theirs(third.path(), &late.bytes);
    let opened = fs::File::open(&hashed).unwrap();
    fs::remove_file(&hashed).unwrap();
    let wrong = store.hold_theirs(&late.digest, opened, path.clone(), late.notes.clone()).await.unwrap();
    assert_eq!(wrong, Sharing::Gone);
    assert!(store.held(&late.digest).is_none());
    drop(store);
    let store = machine.open().await;
    sample.assert_held(&*store).await;
    assert!(store.held(&late.digest).is_none());
}

#[tokio::test]
async fn a_blob_is_lent_where_nothing_is_yet() {
    let (machine, other) = (Machine::new(0), tempfile::tempdir().unwrap());
    let store = machine.open().await;
    let sample = Sample::new(1, 2 * BLOCK);
    sample.put(&*store).await.unwrap();
    let taken = theirs(other.path(), b"taken");
    assert!(!store.lend(&sample.digest, taken.clone()).await.unwrap());
    assert_eq!(fs::read(&taken).unwrap(), b"taken");
    let free = other.path().join("free");
    assert!(store.lend(&sample.digest, free.clone()).await.unwrap());
    assert!(fs::read(&free).unwrap() == sample.bytes);
    assert_eq!(usage(&store), (0, 2 * BLOCK));
    assert!(!store.lend(&Sample::new(2, BLOCK).digest, other.path().join("none")).await.unwrap());
}

#[tokio::test]
async fn i2_a_kill_while_two_files_become_one_leaves_right_bytes() {
    let other = tempfile::tempdir().unwrap();
    let sample = Sample::new(1, 3 * BLOCK);
    let path = theirs(other.path(), &sample.bytes);
    killed_anywhere(&sample, &path).await;
    // Where there can be no link.
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    killed_anywhere(&sample, &theirs(other.path(), &sample.bytes)).await;
}

async fn killed_anywhere(sample: &Sample, path: &Path) {
    for steps in 0.. {
        let mut machine = Machine::new(0);
        let store = machine.open().await;
        sample.put(&*store).await.unwrap();
        machine.faults.kill_after(steps);
        let shared = store.share(&sample.digest, path.to_owned()).await;
        machine.kill(Some(store)).await;
        let store = machine.open().await;
        sample.assert_held(&*store).await;
        if shared.is_ok() {
            assert!(steps > 3, "there were steps to be killed at");
            return;
        }
    }
}

#[tokio::test]
async fn i2_a_kill_while_a_blob_is_adopted_leaves_it_held_and_right_or_not_held() {
    let other = tempfile::tempdir().unwrap();
    let sample = Sample::new(1, 3 * BLOCK);
    let path = theirs(other.path(), &sample.bytes);
    for steps in 0.. {
        let mut machine = Machine::new(0);
        let store = machine.open().await;
        machine.faults.kill_after(steps);
        let file = fs::File::open(&path).unwrap();
        let adopted = store.hold_theirs(&sample.digest, file, path.clone(), sample.notes.clone()).await;
        machine.kill(Some(store)).await;
        let store = machine.open().await;
        if store.held(&sample.digest).is_some() {
            sample.assert_held(&*store).await;
        }
        sample.put(&*store).await.unwrap();
        sample.assert_held(&*store).await;
        if adopted.is_ok() {
            assert!(steps > 4, "there were steps to be killed at");
            return;
        }
    }
}

#[tokio::test]
async fn to_be_asked_about_what_nobody_else_has_is_no_use() {
    let (machine, other) = (Machine::new(4 * BLOCK), tempfile::tempdir().unwrap());
    let store = machine.open().await;
    let (old, young, new) = (Sample::new(1, BLOCK), Sample::new(2, BLOCK), Sample::new(3, 3 * BLOCK));
    old.put(&*store).await.unwrap();
    young.put(&*store).await.unwrap();
    assert_eq!(store.share(&old.digest, other.path().join("none")).await.unwrap(), Sharing::Gone);
    new.put(&*store).await.unwrap();
    assert!(store.held(&old.digest).is_none(), "it was used least recently");
    young.assert_held(&*store).await;
}
