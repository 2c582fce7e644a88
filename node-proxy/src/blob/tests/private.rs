//! Flights of what only some callers may read (I10): on whose behalf the origin is read.

use super::*;

fn wanted_by(digest: Digest, token: &str) -> Want {
    Want { who: caller(token), ..want(digest) }
}

async fn whole(engine: &Engine, want: Want) -> Result<Bytes, ReadError> {
    let opened = engine.open(want, tokio::time::Instant::now()).await?;
    let mut reading = opened.read(0..opened.size());
    let mut all = Vec::new();
    while let Some(part) = reading.next().await {
        all.extend_from_slice(&part?);
    }
    Ok(all.into())
}

fn lab_for(only: &[&'static str]) -> (Lab, Bytes, Digest) {
    let lab = Lab::new();
    let bytes = content(3 * BLOCK, 1);
    let digest = lab.publish(&bytes);
    *lab.registry.only.lock() = Some(only.to_vec());
    (lab, bytes, digest)
}

#[tokio::test]
async fn i10_the_origin_is_read_on_behalf_of_who_wants_it() {
    let (lab, bytes, digest) = lab_for(&["mine"]);
    assert_eq!(whole(&lab.node("one"), wanted_by(digest, "mine")).await.unwrap(), bytes);
}

#[tokio::test]
async fn i10_a_refused_reader_hears_it_and_not_that_the_blob_is_missing() {
    let (lab, _, digest) = lab_for(&["another's"]);
    for (away, who) in [(true, caller("mine")), (false, caller("mine")), (false, origin::Who::Anybody)] {
        lab.cluster.away.store(away, Ordering::SeqCst);
        let error = whole(&lab.node("one"), Want { who, ..want(digest) }).await.unwrap_err();
        match &error {
            ReadError::Origin(_, why) if matches!(**why, OriginError::Unauthorized { .. }) => {}
            // Nobody else came who may read it.
            ReadError::Slow { .. } if !away => {}
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn i10_a_flight_that_the_origin_refuses_goes_on_with_the_credential_of_another_reader() {
    for away in [false, true] {
        let (lab, bytes, digest) = lab_for(&["good"]);
        lab.cluster.away.store(away, Ordering::SeqCst);
        let one = lab.node("one");
        let (over, good) = tokio::join!(whole(&one, wanted_by(digest, "over")), whole(&one, wanted_by(digest, "good")));
        assert_eq!(good.unwrap(), bytes);
        assert_eq!(over.unwrap(), bytes, "it is one flight");
        assert_eq!(lab.reads(), 2);
    }
}

#[tokio::test]
async fn i10_a_reader_with_a_credential_that_counts_may_come_after_the_refusal() {
    let (lab, bytes, digest) = lab_for(&["good"]);
    let one = lab.node("one");
    let over = tokio::spawn({
        let one = one.clone();
        async move { whole(&one, wanted_by(digest, "over")).await }
    });
    tokio::time::timeout(Duration::from_secs(5), async {
        while lab.reads() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(whole(&one, wanted_by(digest, "good")).await.unwrap(), bytes);
    // It was let wait: the flight that refused it may have gone on for the other.
    if let Ok(got) = over.await.unwrap() {
        assert_eq!(got, bytes);
    }
}

#[tokio::test]
async fn i10_a_node_whose_reader_was_refused_leaves_the_permit_to_one_that_may() {
    let (lab, bytes, digest) = lab_for(&["good"]);
    let (one, two) = (lab.node("one"), lab.node("two"));
    let (over, good) = tokio::join!(whole(&one, wanted_by(digest, "over")), whole(&two, wanted_by(digest, "good")));
    assert_eq!(good.unwrap(), bytes);
    assert_eq!(over.unwrap(), bytes, "from its peer: its own registry said that it may, before it asked here");
    assert_eq!(lab.registry.bytes.load(Ordering::SeqCst), 3 * BLOCK);
}
