//! Authors that lie.

use super::*;

#[tokio::test]
async fn i1_what_came_by_the_lists_of_a_lying_author_is_thrown_away_and_nothing_more_is_taken_of_it() {
    let lab = Lab::new();
    let two = lab.node("two");
    // Nothing comes of the origin: the blocks are the liar's alone.
    lab.registry.stuck.store(true, Ordering::SeqCst);
    let blobs: Vec<(Digest, Bytes)> = (0..3)
        .map(|seed| {
            let bytes = content(3 * BLOCK, seed);
            (lab.publish(&bytes), bytes)
        })
        .collect();
    let lie = |bytes: &Bytes| content(bytes.len(), 99);
    let hashes: Vec<u8> = lie(&blobs[0].1).chunks(BLOCK).flat_map(PieceList::hash).collect();
    *lab.cluster.false_list.lock() = Some(("liar".parse().unwrap(), 3 * BLOCK as u64, hashes));
    // Two flights follow the liar's lists; one gets all of its blocks.
    let first = two.open(want(blobs[0].0), tokio::time::Instant::now()).await.unwrap();
    let second = two.open(want(blobs[1].0), tokio::time::Instant::now()).await.unwrap();
    let flight = two.0.flights.lock().get(&blobs[0].0).cloned().unwrap();
    let wrong = lie(&blobs[0].1);
    for block in 0..3 {
        let part = wrong.slice(block as usize * BLOCK..(block as usize + 1) * BLOCK);
        flight.put(block, part, flight::From::Peer).await.unwrap();
    }
    for opened in [first, second] {
        let (_, error) = read_to_error(&opened).await;
        assert!(matches!(error, ReadError::Mismatched(_)), "{error}");
    }
    // What it says of a third blob is not even listened to.
    let error = two.open(want(blobs[2].0), tokio::time::Instant::now()).await.err().unwrap();
    assert!(matches!(error, ReadError::Mismatched(_)), "{error}");
    assert_eq!(
        *lab.cluster.mismatches.lock(),
        ["liar".parse().unwrap()],
        "one blob proves it; of the others nothing is known"
    );
    assert!(blobs.iter().all(|(digest, _)| two.0.store.held(digest).is_none()));
}

#[tokio::test]
async fn i1_an_author_of_another_size_than_the_manifests_gives_no_byte_when_the_origin_says_so_too() {
    for (manifest, lies) in [(3 * BLOCK as u64, true), (4 * BLOCK as u64, false)] {
        let lab = Lab::new();
        let two = lab.node("two");
        let bytes = content(3 * BLOCK, 7);
        let digest = lab.publish(&bytes);
        // Either the author says more than there is, or the manifest does.
        let said = if lies { 3 * BLOCK as u64 + 1000 } else { 3 * BLOCK as u64 };
        let hashes = vec![7; 32 * 3];
        *lab.cluster.false_list.lock() = Some(("author".parse().unwrap(), said, hashes));
        two.join(&want(digest), Some(manifest));
        let error = two.open(want(digest), tokio::time::Instant::now()).await.err().unwrap();
        if lies {
            assert!(matches!(error, ReadError::Mismatched(_)), "{error}");
            assert_eq!(*lab.cluster.mismatches.lock(), ["author".parse().unwrap()]);
        } else {
            assert!(matches!(error, ReadError::NotKept(..)), "passed through: {error}");
            assert!(lab.cluster.mismatches.lock().is_empty(), "a manifest makes nobody a liar");
        }
        assert!(lab.registry.bytes.load(Ordering::SeqCst) <= 1);
    }
}

#[tokio::test]
async fn an_author_whom_only_the_origin_contradicts_is_named_and_believed_about_other_blobs() {
    let lab = Lab::new();
    let two = lab.node("two");
    let (bytes, other) = (content(3 * BLOCK, 7), content(3 * BLOCK, 8));
    let digest = lab.publish(&bytes);
    let hashes: Vec<u8> = other.chunks(BLOCK).flat_map(PieceList::hash).collect();
    // This node gets the permit, and reads what does not match the list that another began.
    *lab.cluster.false_list.lock() = Some(("author".parse().unwrap(), bytes.len() as u64, hashes));
    let error = match two.open(want(digest), tokio::time::Instant::now()).await {
        Err(error) => error,
        Ok(opened) => opened.read(0..u64::MAX).next().await.unwrap().unwrap_err(),
    };
    assert!(matches!(error, ReadError::Mismatched(_)), "{error}");
    let author = "author".parse().unwrap();
    assert_eq!(*lab.cluster.mismatches.lock(), [NodeId::clone(&author)]);
    assert!(!two.0.liars.is_author(&author, Duration::from_secs(60)));
}
