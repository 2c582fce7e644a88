//! Blocks that the kernel takes from a file.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::SinkExt;
use node_proxy::peer;
use shoal_base::limit::Limiter;
use shoal_proto::frame::{Frame, Run};

use crate::support::*;

#[tokio::test]
async fn a_blob_in_a_file_arrives_and_nothing_of_it_is_read_into_memory() {
    let blob = Blob::of(70 * BLOCK + 1234);
    let (book, _file) = Book::in_file(&blob);
    let parent = parent("p", &[&book]).await;
    let (swarm, _me) = child();
    let ground = Field::of(&blob);
    assert_eq!(fetch(&swarm, &ground, &[&parent.parent]).done().await.0, Ok(()));
    assert!(ground.bytes() == blob.bytes);
    assert_eq!(book.reads.load(Ordering::Relaxed), 0);
    // Counted when the socket has taken it, which the child may have read by then.
    eventually("every byte is counted", || parent.peer.served_bytes() == blob.bytes.len() as u64).await;
}

#[tokio::test]
async fn a_child_that_reads_slowly_gets_every_byte_of_a_file() {
    let blob = Blob::of(40 * BLOCK);
    let (book, _file) = Book::in_file(&blob);
    let parent = parent("p", &[&book]).await;
    let mut wire = dial_in(parent.parent.addr.0).await;
    wire.send(Frame::Open { digest: blob.digest, traceparent: String::new(), holders: 1 }).await.unwrap();
    wire.send(Frame::Want(Run { first: 0, count: 40 })).await.unwrap();
    let mut got = Vec::new();
    while got.len() < blob.bytes.len() {
        match next(&mut wire).await {
            Some(Ok(Frame::Block { bytes, .. })) => got.extend_from_slice(&bytes),
            Some(Ok(Frame::Blob { .. } | Frame::Have(_))) => {}
            other => panic!("{other:?}"),
        }
        // Longer than the parent takes to fill the socket.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(got == blob.bytes);
    // Between blocks the child is heard.
    wire.send(Frame::Close).await.unwrap();
    assert!(matches!(next(&mut wire).await, Some(Ok(Frame::Closed))));
}

#[tokio::test]
async fn i7_a_file_that_shrinks_ends_the_connection_and_no_other_byte_is_made_up() {
    for limit in [0, 64 << 20] {
        let blob = Blob::of(40 * BLOCK);
        let (book, file) = Book::in_file(&blob);
        let config = peer::Config { upload: Limiter::new(limit), ..peer_config() };
        let parent = parent_with("p", config, Some(hello("a", "p")), &[&book]).await;
        file.set_len(30 * BLOCK + 1000).unwrap();
        let mut wire = dial_in(parent.parent.addr.0).await;
        wire.send(Frame::Open { digest: blob.digest, traceparent: String::new(), holders: 1 }).await.unwrap();
        wire.send(Frame::Want(Run { first: 0, count: 40 })).await.unwrap();
        let mut got = Vec::new();
        let end = loop {
            match next(&mut wire).await {
                Some(Ok(Frame::Block { bytes, .. })) => got.extend_from_slice(&bytes),
                Some(Ok(Frame::Blob { .. } | Frame::Have(_))) => {}
                end => break end,
            }
        };
        assert!(matches!(end, None | Some(Err(_))), "{end:?}");
        assert!(got == blob.bytes[..30 * BLOCK as usize]);
    }
}

#[tokio::test]
async fn i11_a_child_that_takes_nothing_of_a_file_is_dropped() {
    let blob = Blob::of(200 * BLOCK);
    let (book, _file) = Book::in_file(&blob);
    let config = peer::Config { write_timeout: Duration::from_millis(100), ..peer_config() };
    let parent = parent_with("p", config, Some(hello("a", "p")), &[&book]).await;
    let mut wire = dial_in(parent.parent.addr.0).await;
    wire.send(Frame::Open { digest: blob.digest, traceparent: String::new(), holders: 1 }).await.unwrap();
    wire.send(Frame::Want(Run { first: 0, count: 200 })).await.unwrap();
    eventually("the child was dropped", || parent.connections() == 0).await;
}
