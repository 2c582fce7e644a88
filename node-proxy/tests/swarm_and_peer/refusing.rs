//! Who is not served, and by whom nobody is served.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use node_proxy::peer;
use shoal_proto::frame::{Frame, Refusal, Run, VERSION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

#[tokio::test]
async fn i3_a_parent_of_another_cluster_refuses_us() {
    let blob = Blob::of(4 * BLOCK);
    let book = Book::whole(&blob);
    let parent = parent_with("p", peer_config(), Some(hello("b", "p")), &[&book]).await;
    let (swarm, _me) = child();
    let lost = fetch(&swarm, &Field::of(&blob), &[&parent.parent]).lost().await;
    assert_eq!(lost, (node("p"), "it refuses us: Cluster".into()));
}

#[tokio::test]
async fn i3_we_refuse_a_parent_of_another_cluster_and_another_node() {
    let blob = Blob::of(4 * BLOCK);
    for (says, why) in [
        (hello("b", "p"), "it is a node of cluster b, not of ours"),
        (hello("a", "q"), "another node answers there: q"),
    ] {
        let (asked, mut opened) = tokio::sync::mpsc::unbounded_channel();
        let (rogue, _running) = rogue("p", move |mut wire| {
            let (says, asked) = (says.clone(), asked.clone());
            async move {
                let _ = wire.next().await;
                let _ = wire.send(Frame::Hello(says)).await;
                if let Some(Ok(frame)) = wire.next().await {
                    let _ = asked.send(frame);
                }
            }
        })
        .await;
        let (swarm, _me) = child();
        let ground = Field::of(&blob);
        assert_eq!(fetch(&swarm, &ground, &[&rogue]).lost().await, (node("p"), why.into()));
        assert!(opened.try_recv().is_err(), "nothing is asked of it");
    }
}

#[tokio::test]
async fn a_node_without_a_cluster_serves_nobody_and_asks_nobody() {
    let blob = Blob::of(4 * BLOCK);
    let book = Book::whole(&blob);
    let alone = parent_with("p", peer_config(), None, &[&book]).await;
    let (swarm, me) = child();
    assert_eq!(fetch(&swarm, &Field::of(&blob), &[&alone.parent]).lost().await.1, "it refuses us: Cluster");

    me.send_replace(None);
    let good = parent("p", &[&book]).await;
    let ground = Field::of(&blob);
    let fetching = fetch(&swarm, &ground, &[&good.parent]);
    // It asks as soon as it has one, which shows that it did not before.
    assert_eq!(good.peer.load().uploads, 0);
    me.send_replace(Some(hello("a", "child")));
    assert_eq!(fetching.done().await.0, Ok(()));
}

#[tokio::test]
async fn a_child_outside_the_listed_networks_is_refused() {
    let blob = Blob::of(4 * BLOCK);
    let book = Book::whole(&blob);
    for allow in [vec![], vec!["10.0.0.0/8".parse().unwrap(), "::/0".parse().unwrap()]] {
        let config = peer::Config { allow, ..peer_config() };
        let parent = parent_with("p", config, Some(hello("a", "p")), &[&book]).await;
        let (swarm, _me) = child();
        assert_eq!(fetch(&swarm, &Field::of(&blob), &[&parent.parent]).lost().await.1, "it refuses us: Network");
    }
}

#[tokio::test]
async fn i3_children_are_dropped_when_the_parent_moves() {
    let blob = Blob::of(10 * BLOCK);
    let parent = parent("p", &[&Book::stuck(&blob, 1)]).await;
    let mut serving = dial_in(parent.parent.addr.0).await;
    serving.send(Frame::Open { digest: blob.digest, traceparent: String::new(), holders: 1 }).await.unwrap();
    serving.send(Frame::Want(Run { first: 0, count: 10 })).await.unwrap();
    let mut resting = dial_in(parent.parent.addr.0).await;
    eventually("it serves", || parent.peer.load().uploads == 1).await;
    // Another epoch of the same cluster changes nothing for them.
    parent.me.send_modify(|me| me.as_mut().unwrap().epoch += 1);
    resting
        .send(Frame::Open { digest: shoal_proto::Digest::from_bytes([1; 32]), traceparent: String::new(), holders: 1 })
        .await
        .unwrap();
    assert_eq!(next(&mut resting).await, Some(Ok(Frame::Gone)));
    parent.me.send_replace(Some(hello("b", "p")));
    assert!(!matches!(next(&mut resting).await, Some(Ok(_))));
    while let Some(Ok(_)) = next(&mut serving).await {}
    eventually("both are gone", || parent.connections() == 0).await;
}

#[tokio::test]
async fn a_child_that_says_no_hello_is_dropped() {
    let config = peer::Config { hello_timeout: Duration::from_millis(30), ..peer_config() };
    let parent = parent_with("p", config, Some(hello("a", "p")), &[]).await;
    let mut wire = dial(parent.parent.addr.0).await;
    assert!(next(&mut wire).await.is_none());
}

#[tokio::test]
async fn another_version_is_told_so() {
    let parent = parent("p", &[]).await;
    let mut bytes = bytes::BytesMut::new();
    Frame::Hello(hello("a", "child")).encode(&mut bytes);
    bytes[12..14].copy_from_slice(&(VERSION + 1).to_be_bytes());
    let mut wire = dial(parent.parent.addr.0).await;
    wire.get_mut().write_all(&bytes).await.unwrap();
    assert_eq!(next(&mut wire).await, Some(Ok(Frame::Refused(Refusal::Version))));
    assert_eq!(next(&mut wire).await, None);
}

#[tokio::test]
async fn frames_that_make_no_sense_are_refused() {
    let blob = Blob::of(10 * BLOCK);
    let parent = parent("p", &[&Book::stuck(&blob, 0)]).await;
    let open = Frame::Open { digest: blob.digest, traceparent: String::new(), holders: 1 };
    let want = |first, count| Frame::Want(Run { first, count });
    let mut many = vec![open.clone()];
    many.extend((0..66).map(|_| want(0, 1)));
    for frames in [
        vec![Frame::Hello(hello("a", "child"))],
        vec![want(0, 1)],
        vec![Frame::Close],
        vec![open.clone(), open.clone()],
        vec![open.clone(), want(9, 2)],
        vec![open.clone(), Frame::Wait],
        many,
    ] {
        let mut wire = dial_in(parent.parent.addr.0).await;
        for frame in frames.clone() {
            wire.feed(frame).await.unwrap();
        }
        wire.flush().await.unwrap();
        let mut last = None;
        while let Some(Ok(frame)) = next(&mut wire).await {
            last = Some(frame);
        }
        assert_eq!(last, Some(Frame::Refused(Refusal::Protocol)), "{frames:?}");
    }
}

#[tokio::test]
async fn garbage_from_a_child_ends_its_connection_and_nothing_else() {
    let blob = Blob::of(10 * BLOCK);
    let parent = parent("p", &[&Book::whole(&blob)]).await;
    for seed in 0..32u8 {
        let mut noise = vec![0; 4096];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut noise);
        // Before the hello, and after it.
        let wire = if seed % 2 == 0 { dial(parent.parent.addr.0).await } else { dial_in(parent.parent.addr.0).await };
        let mut stream = wire.into_inner();
        let _ = stream.write_all(&noise).await;
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(BOUND, stream.read_to_end(&mut rest)).await.expect("it is closed");
    }
    let (swarm, _me) = child();
    assert_eq!(fetch(&swarm, &Field::of(&blob), &[&parent.parent]).done().await.0, Ok(()));
}

#[tokio::test]
async fn connections_are_bounded() {
    let config = peer::Config { max_connections: 2, ..peer_config() };
    let parent = parent_with("p", config, Some(hello("a", "p")), &[]).await;
    let kept = [dial_in(parent.parent.addr.0).await, dial_in(parent.parent.addr.0).await];
    let mut third = dial(parent.parent.addr.0).await;
    let _ = third.send(Frame::Hello(hello("a", "child"))).await;
    assert!(!matches!(next(&mut third).await, Some(Ok(_))));
    drop(kept);
    eventually("there is room again", || parent.connections() == 0).await;
    dial_in(parent.parent.addr.0).await;
}
