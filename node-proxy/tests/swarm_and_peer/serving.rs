//! What a parent does for a child, frame by frame.

use std::time::Duration;

use futures::{FutureExt, SinkExt};
use node_proxy::peer;
use shoal_proto::Digest;
use shoal_proto::frame::{Frame, Refusal, Run};

use crate::support::*;

async fn open(wire: &mut Wire, blob: &Blob) {
    wire.send(Frame::Open { digest: blob.digest, traceparent: String::new(), holders: 1 }).await.unwrap();
}

async fn frame(wire: &mut Wire) -> Frame {
    next(wire).await.expect("the connection is open").unwrap()
}

fn run(first: u32, count: u32) -> Run {
    Run { first, count }
}

#[tokio::test]
async fn the_frames_of_a_blob_come_in_the_order_of_the_protocol() {
    let blob = Blob::of(3 * BLOCK + 5);
    let parent = parent("p", &[&Book::whole(&blob)]).await;
    let mut wire = dial_in(parent.parent.addr.0).await;
    for _ in 0..2 {
        open(&mut wire, &blob).await;
        let Frame::Blob { size, media_type, whole: true } = frame(&mut wire).await else { panic!("no whole blob") };
        assert_eq!((size, media_type.as_str()), (3 * BLOCK + 5, "application/vnd.oci.image.layer.v1.tar+gzip"));
        assert_eq!(frame(&mut wire).await, Frame::Have(vec![run(0, 4)]));
        wire.send(Frame::Want(run(3, 1))).await.unwrap();
        wire.send(Frame::Want(run(0, 2))).await.unwrap();
        for expected in [3, 0, 1] {
            let Frame::Block { block, bytes } = frame(&mut wire).await else { panic!("no block") };
            assert_eq!(block, expected);
            assert_eq!(bytes.len(), blob.layout.block_len(block));
        }
        wire.send(Frame::WantList).await.unwrap();
        let Frame::List { first: 0, hashes } = frame(&mut wire).await else { panic!("no list") };
        assert_eq!(hashes.len(), 4 * 32);
        assert_eq!(frame(&mut wire).await, Frame::List { first: 0, hashes: bytes::Bytes::new() });
        wire.send(Frame::Close).await.unwrap();
        assert_eq!(frame(&mut wire).await, Frame::Closed);
    }
    assert_eq!(parent.peer.load().uploads, 0);
}

#[tokio::test]
async fn wait_is_said_until_the_wanted_block_is_there() {
    let blob = Blob::of(4 * BLOCK);
    let book = Book::empty(&blob);
    let parent = parent("p", &[&book]).await;
    let mut wire = dial_in(parent.parent.addr.0).await;
    open(&mut wire, &blob).await;
    assert!(matches!(frame(&mut wire).await, Frame::Blob { whole: false, .. }));
    assert_eq!(frame(&mut wire).await, Frame::Have(vec![]));
    wire.send(Frame::Want(run(2, 1))).await.unwrap();
    for _ in 0..3 {
        assert_eq!(frame(&mut wire).await, Frame::Wait);
    }
    book.grow(2);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        match frame(&mut wire).await {
            Frame::Wait => {}
            Frame::Have(runs) => seen.extend(runs.iter().map(|run| run.first)),
            Frame::Block { block, .. } => seen.push(block),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, [2, 2]);
}

#[tokio::test]
async fn wait_is_said_while_the_disk_is_slow() {
    let blob = Blob::of(4 * BLOCK);
    let book = Book::stuck(&blob, 0);
    let parent = parent("p", &[&book]).await;
    let mut wire = dial_in(parent.parent.addr.0).await;
    open(&mut wire, &blob).await;
    wire.send(Frame::Want(run(0, 1))).await.unwrap();
    assert!(matches!(frame(&mut wire).await, Frame::Blob { .. }));
    assert!(matches!(frame(&mut wire).await, Frame::Have(_)));
    assert_eq!(frame(&mut wire).await, Frame::Wait);
    book.unstick();
    while frame(&mut wire).await == Frame::Wait {}
}

#[tokio::test]
async fn growth_is_told_in_batches() {
    let blob = Blob::of(100 * BLOCK);
    let book = Book::empty(&blob);
    let config = peer::Config { have_every: Duration::from_secs(3600), ..peer_config() };
    let parent = parent_with("p", config, Some(hello("a", "p")), &[&book]).await;
    let mut wire = dial_in(parent.parent.addr.0).await;
    open(&mut wire, &blob).await;
    assert!(matches!(frame(&mut wire).await, Frame::Blob { .. }));
    assert_eq!(frame(&mut wire).await, Frame::Have(vec![]));
    (0..16).for_each(|block| book.grow(block));
    assert_eq!(frame(&mut wire).await, Frame::Have(vec![run(0, 16)]));
    (16..31).for_each(|block| book.grow(block));
    // The answer shows that the parent has seen the growth by now, and kept it to itself.
    wire.send(Frame::WantList).await.unwrap();
    while !matches!(frame(&mut wire).await, Frame::List { hashes, .. } if hashes.is_empty()) {}
    assert!(next(&mut wire).now_or_never().is_none());
    book.grow(40);
    assert_eq!(frame(&mut wire).await, Frame::Have(vec![run(16, 15), run(40, 1)]));
}

#[tokio::test]
async fn gone_is_said_of_what_is_not_there_and_of_what_failed_and_the_connection_lives_on() {
    let (blob, good) = (Blob::of(4 * BLOCK), Blob::of(5 * BLOCK));
    let book = Book::empty(&blob);
    let parent = parent("p", &[&book, &Book::whole(&good)]).await;
    let mut wire = dial_in(parent.parent.addr.0).await;
    let nothing = Frame::Open { digest: Digest::from_bytes([0; 32]), traceparent: "nonsense".into(), holders: 0 };
    wire.send(nothing).await.unwrap();
    assert_eq!(frame(&mut wire).await, Frame::Gone);
    open(&mut wire, &blob).await;
    assert!(matches!(frame(&mut wire).await, Frame::Blob { .. }));
    assert!(matches!(frame(&mut wire).await, Frame::Have(_)));
    wire.send(Frame::Want(run(0, 1))).await.unwrap();
    assert_eq!(frame(&mut wire).await, Frame::Wait);
    book.fail();
    while frame(&mut wire).await != Frame::Gone {}
    // Wants that crossed the `Gone` are void, and so is a close.
    wire.send(Frame::Want(run(1, 1))).await.unwrap();
    wire.send(Frame::Close).await.unwrap();
    assert_eq!(frame(&mut wire).await, Frame::Closed);
    open(&mut wire, &good).await;
    assert!(matches!(frame(&mut wire).await, Frame::Blob { .. }));
}

#[tokio::test]
async fn a_blob_that_comes_later_is_served_then() {
    let blob = Blob::of(BLOCK);
    let parent = parent("p", &[]).await;
    let mut wire = dial_in(parent.parent.addr.0).await;
    open(&mut wire, &blob).await;
    assert_eq!(frame(&mut wire).await, Frame::Gone);
    parent.shelf.put(&Book::whole(&blob));
    open(&mut wire, &blob).await;
    assert!(matches!(frame(&mut wire).await, Frame::Blob { .. }));
}

#[tokio::test]
async fn i11_a_child_that_does_not_read_is_dropped() {
    let blob = Blob::of(400 * BLOCK);
    let book = Book::whole(&blob);
    let config = peer::Config { write_timeout: Duration::from_millis(100), ..peer_config() };
    let parent = parent_with("p", config, Some(hello("a", "p")), &[&book]).await;
    let mut wire = dial_in(parent.parent.addr.0).await;
    open(&mut wire, &blob).await;
    wire.send(Frame::Want(run(0, 400))).await.unwrap();
    eventually("it is served", || parent.peer.load().uploads == 1).await;
    eventually("it is dropped", || parent.connections() == 0).await;
    assert!(book.reads.load(std::sync::atomic::Ordering::Relaxed) < 400, "the kernel took all of it");
}

#[tokio::test]
async fn draining_ends_what_rests_and_lets_an_upload_finish() {
    let blob = Blob::of(10 * BLOCK);
    let book = Book::stuck(&blob, 2);
    let mut parent = parent("p", &[&book]).await;
    let mut resting = dial_in(parent.parent.addr.0).await;
    let (swarm, _me) = child();
    let ground = Field::of(&blob);
    let _fetching = fetch(&swarm, &ground, &[&parent.parent]);
    eventually("it serves", || ground.len() == 2).await;
    parent.drain.fire();
    assert_eq!(next(&mut resting).await, Some(Ok(Frame::Refused(Refusal::Draining))));
    drop(resting);
    assert_eq!(parent.peer.load().uploads, 1);
    book.unstick();
    eventually("what was wanted came", || ground.len() >= 4).await;
    tokio::time::timeout(BOUND, &mut parent.running).await.expect("the peer ends").unwrap();
}
