//! What becomes of a flight when the origin fails it.

use super::*;

#[tokio::test]
async fn a_body_that_breaks_goes_on_where_the_blocks_end() {
    let lab = Lab::new();
    let one = lab.node("one");
    let bytes = content(10 * BLOCK, 4);
    let digest = lab.publish(&bytes);
    *lab.registry.cut.lock() = Some(4 * BLOCK + 100);
    let (got, _) = read(&one, digest).await.unwrap();
    assert_eq!(got, bytes);
    assert_eq!(lab.reads(), 2);
    assert_eq!(lab.registry.bytes.load(Ordering::SeqCst), 10 * BLOCK + 100);
}

#[tokio::test]
async fn bytes_of_another_size_than_the_manifest_names_are_not_taken() {
    let lab = Lab::new();
    let one = lab.node("one");
    for (len, seed) in [(2 * BLOCK, 1), (4 * BLOCK, 2)] {
        let digest = lab.publish(&content(len, seed));
        one.join(&want(digest), Some(3 * BLOCK as u64));
        let error = read(&one, digest).await.unwrap_err();
        let nonsense = matches!(&error, ReadError::Origin(_, why) if matches!(**why, OriginError::Nonsense { .. }));
        assert!(nonsense, "{error}");
    }
    assert_eq!(lab.registry.bytes.load(Ordering::SeqCst), 0);
    assert!(lab.cluster.mismatches.lock().is_empty(), "nobody lied");
}

#[tokio::test(start_paused = true)]
async fn after_a_flight_gave_up_on_a_registry_the_next_ones_try_it_once_until_it_gives_something() {
    let lab = Lab::new();
    let one = lab.node("one");
    let digests: Vec<Digest> = (0..4).map(|seed| lab.publish(&content(BLOCK, seed))).collect();
    lab.registry.failing.store(true, Ordering::SeqCst);
    for (digest, reads) in digests.iter().zip([3, 4, 5]) {
        let error = read(&one, *digest).await.unwrap_err();
        assert!(matches!(error, ReadError::Origin(..)), "{error}");
        assert_eq!(lab.reads(), reads);
    }
    tokio::time::advance(Duration::from_secs(31)).await;
    assert!(read(&one, digests[0]).await.is_err());
    assert_eq!(lab.reads(), 8, "as often as ever, half a minute later");
    lab.registry.failing.store(false, Ordering::SeqCst);
    assert!(read(&one, digests[1]).await.is_ok());
    lab.registry.failing.store(true, Ordering::SeqCst);
    assert!(read(&one, digests[2]).await.is_err());
    assert_eq!(lab.reads(), 12, "it gave something in between");
}

#[tokio::test]
async fn reads_the_origin_when_control_is_away() {
    let lab = Lab::new();
    lab.cluster.away.store(true, Ordering::SeqCst);
    let bytes = content(2 * BLOCK, 5);
    let digest = lab.publish(&bytes);
    assert_eq!(read(&lab.node("one"), digest).await.unwrap().0, bytes);
    assert_eq!(read(&lab.node("two"), digest).await.unwrap().0, bytes);
    assert_eq!(lab.reads(), 2);
}

#[tokio::test]
async fn what_is_not_at_the_origin_is_not_found() {
    let lab = Lab::new();
    let error = read(&lab.node("one"), digest_of(b"nothing")).await.unwrap_err();
    assert!(matches!(error, ReadError::NotFound(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn i8_a_silent_origin_gives_an_error_within_the_budget() {
    let lab = Lab::new();
    let one = lab.node("one");
    lab.registry.stuck.store(true, Ordering::SeqCst);
    let since = tokio::time::Instant::now();
    let error = one.open(want(digest_of(b"x")), tokio::time::Instant::now()).await.err().unwrap();
    assert!(matches!(error, ReadError::Slow { .. }), "{error}");
    assert!(since.elapsed() <= Duration::from_secs(21), "{:?}", since.elapsed());
}
