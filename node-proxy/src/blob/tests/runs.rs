//! A blob of which permits cover runs.

use super::*;

/// Ten blocks.
const LEN: usize = 10 * BLOCK;

#[tokio::test]
async fn i6_of_a_run_no_more_is_read_than_it_covers_and_every_byte_once() {
    let lab = Lab::new();
    lab.cluster.run.store(3, Ordering::SeqCst);
    let bytes = content(LEN, 1);
    let digest = lab.publish(&bytes);
    let (read, _) = read(&lab.node("a"), digest).await.unwrap();
    assert_eq!(read, bytes);
    // Its size is not known before the first answer, which is the whole; it is left at the end of the run.
    assert_eq!(lab.reads(), 4);
    let from_registry = lab.registry.bytes.load(Ordering::SeqCst);
    assert!((LEN..LEN + BLOCK).contains(&from_registry), "{from_registry} bytes from the registry");
    assert_eq!(*lab.cluster.take_runs.lock(), [true]);
}

#[tokio::test]
async fn a_registry_that_ignores_ranges_is_read_to_the_end_by_one_request() {
    let lab = Lab::new();
    lab.cluster.run.store(3, Ordering::SeqCst);
    lab.registry.ignores_ranges.store(true, Ordering::SeqCst);
    let node = lab.node("a");
    let bytes = content(LEN, 1);
    let digest = lab.publish(&bytes);
    let (got, _) = read(&node, digest).await.unwrap();
    assert_eq!(got, bytes);
    // The first run, the second that turns out to bring the first along, and the rest, which does so for the last time.
    assert_eq!(lab.reads(), 3);
    assert_eq!(*lab.cluster.take_runs.lock(), [true, false], "it gave its permit back, and asks for one to the end");
    let other = content(LEN, 2);
    let digest = lab.publish(&other);
    assert_eq!(read(&node, digest).await.unwrap().0, other);
    assert_eq!(lab.reads(), 4, "it is remembered");
    assert_eq!(*lab.cluster.take_runs.lock(), [true, false, false]);
}
