//! Limits on bytes per second, at both ends.

use std::time::{Duration, Instant};

use futures::SinkExt;
use node_proxy::{peer, swarm};
use shoal_base::limit::Limiter;
use shoal_proto::frame::{Frame, Run};

use crate::support::*;

const MIB: u64 = 1 << 20;

fn limited(rate: u64) -> peer::Config {
    peer::Config { upload: Limiter::new(rate), ..peer_config() }
}

#[tokio::test]
async fn children_together_get_what_the_upload_limit_allows_and_lose_no_parent() {
    let blob = Blob::of(5 * MIB);
    let (book, _file) = Book::in_file(&blob);
    for books in [[&Book::whole(&blob)], [&book]] {
        let parent = parent_with("p", limited(6 * MIB), Some(hello("a", "p")), &books).await;
        let (silence, patience) = (Duration::from_millis(400), Duration::from_secs(2));
        let began = Instant::now();
        let fetching: Vec<_> = (0..3)
            .map(|_| {
                let (swarm, me) = child_with(swarm::Config { silence, patience, ..swarm::Config::default() });
                let ground = Field::of(&blob);
                (fetch(&swarm, &ground, &[&parent.parent]), ground, me)
            })
            .collect();
        for (fetching, ground, _me) in fetching {
            let (end, events) = fetching.done().await;
            assert_eq!(end, Ok(()));
            assert!(events.iter().all(|event| matches!(event, swarm::Event::Serving { .. })), "{events:?}");
            assert!(ground.bytes() == blob.bytes);
        }
        // 15 MiB, of which one burst passes at once.
        let least = Duration::from_secs_f64(14.0 / 6.0);
        assert!(began.elapsed() >= least && began.elapsed() < least * 2, "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn i8_with_a_low_limit_few_children_are_served_and_the_others_told_to_go_elsewhere() {
    let blob = Blob::of(64 * BLOCK);
    let parent = parent_with("p", limited(MIB), Some(hello("a", "p")), &[&Book::whole(&blob)]).await;
    let mut served = Vec::new();
    let mut busy = 0;
    for _ in 0..64 {
        let mut wire = dial_in(parent.parent.addr.0).await;
        wire.send(Frame::Open { digest: blob.digest, traceparent: String::new(), holders: 1 }).await.unwrap();
        match next(&mut wire).await {
            Some(Ok(Frame::Blob { .. })) => served.push(wire),
            Some(Ok(Frame::Busy { .. })) => busy += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((served.len(), busy), (4, 60));
    for wire in &mut served {
        wire.send(Frame::Want(Run { first: 0, count: 64 })).await.unwrap();
    }
    // Each hears something at any time, and a block in much less time than it would wait for one.
    let heard = served.into_iter().map(|mut wire| async move {
        let (mut silence, mut last, mut blocks) = (Duration::ZERO, Instant::now(), 0);
        while blocks < 2 {
            let frame = next(&mut wire).await;
            silence = silence.max(last.elapsed());
            last = Instant::now();
            blocks += u32::from(matches!(frame, Some(Ok(Frame::Block { .. }))));
        }
        silence
    });
    for silence in futures::future::join_all(heard).await {
        assert!(silence < Duration::from_secs(1), "{silence:?}");
    }
}

#[tokio::test]
async fn a_changed_upload_limit_holds_for_who_is_being_served() {
    let blob = Blob::of(16 * MIB);
    let config = limited(128 << 10);
    let upload = config.upload.clone();
    let parent = parent_with("p", config, Some(hello("a", "p")), &[&Book::whole(&blob)]).await;
    let (swarm, _me) = child();
    let ground = Field::of(&blob);
    let fetching = fetch(&swarm, &ground, &[&parent.parent]);
    eventually("the burst has passed", || ground.len() >= 4).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(ground.len() < 8, "{} blocks", ground.len());
    upload.set(0);
    let began = Instant::now();
    assert_eq!(fetching.done().await.0, Ok(()));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(ground.bytes() == blob.bytes);
}

#[tokio::test]
async fn i8_a_child_that_holds_itself_back_does_not_take_its_parents_for_silent() {
    let blob = Blob::of(4 * MIB);
    let (one, two) = (parent("p", &[&Book::whole(&blob)]).await, parent("q", &[&Book::whole(&blob)]).await);
    // A block each quarter of a second, of two parents in turn: longer than the silence that is borne.
    let (download, silence) = (Limiter::new(MIB), Duration::from_millis(200));
    let (swarm, _me) = child_with(swarm::Config { download, silence, ..swarm::Config::default() });
    let ground = Field::of(&blob);
    let began = Instant::now();
    let (end, events) = fetch(&swarm, &ground, &[&one.parent, &two.parent]).done().await;
    assert_eq!(end, Ok(()));
    assert!(events.iter().all(|event| matches!(event, swarm::Event::Serving { .. })), "{events:?}");
    assert!(ground.bytes() == blob.bytes);
    // A burst, and the last block of each parent, are not waited for.
    assert!(began.elapsed() >= Duration::from_millis(2400), "{:?}", began.elapsed());
}
