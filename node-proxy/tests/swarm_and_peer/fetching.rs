//! What a child does with parents of every kind.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures::{SinkExt, StreamExt};
use node_proxy::swarm::{self, Event, Halt, ListError, Parent, ParentAddr, Sighting};
use prometheus_client::registry::Registry;
use shoal_proto::PieceList;
use shoal_proto::frame::Frame;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::support::*;

#[tokio::test]
async fn a_whole_blob_comes_from_one_parent() {
    for size in [0, 1, BLOCK, 9 * BLOCK + 17, 300 * BLOCK] {
        let blob = Blob::of(size);
        let parent = parent("p", &[&Book::whole(&blob)]).await;
        let (swarm, _me) = child();
        let ground = Field::of(&blob);
        let (end, events) = fetch(&swarm, &ground, &[&parent.parent]).done().await;
        assert_eq!(end, Ok(()));
        assert!(ground.bytes() == blob.bytes, "{size} bytes");
        let serving = (size > 0).then(|| Event::Serving { node: node("p") });
        assert_eq!(events, Vec::from_iter(serving));
        assert_eq!(swarm.metrics().received_bytes(), size);
    }
}

#[tokio::test]
async fn three_parents_share_the_work_and_the_one_that_lies_is_shunned() {
    let blob = Blob::of(200 * BLOCK);
    let liar = parent("liar", &[&Book::lying(&blob, (0..200).collect())]).await;
    let (one, two) = (parent("one", &[&Book::whole(&blob)]).await, parent("two", &[&Book::whole(&blob)]).await);
    let (swarm, _me) = child();
    let ground = Field::of(&blob);
    let (end, events) = fetch(&swarm, &ground, &[&liar.parent, &one.parent, &two.parent]).done().await;
    assert_eq!(end, Ok(()));
    assert!(ground.bytes() == blob.bytes);
    assert_eq!(ground.brought("liar"), 0);
    assert!(ground.brought("one") > 0 && ground.brought("two") > 0);
    let lies = events.iter().filter(|event| matches!(event, Event::Lied { node, .. } if node.as_str() == "liar"));
    assert_eq!(lies.count(), 1, "{events:?}");
}

#[tokio::test]
async fn a_block_that_is_too_long_or_too_short_is_a_lie() {
    let blob = Blob::of(4 * BLOCK);
    for len in [BLOCK as usize - 1, BLOCK as usize + 1] {
        let layout = blob.layout;
        let (liar, _running) = rogue("liar", move |mut wire| async move {
            show_all(&mut wire, hello("a", "liar"), layout).await;
            while let Some(Ok(frame)) = wire.next().await {
                if let Frame::Want(run) = frame {
                    let _ = wire.send(Frame::Block { block: run.first, bytes: vec![0; len].into() }).await;
                }
            }
        })
        .await;
        let (swarm, _me) = child();
        let mut fetching = fetch(&swarm, &Field::of(&blob), &[&liar]);
        let event = tokio::time::timeout(BOUND, fetching.events.recv()).await.unwrap();
        assert_eq!(event, Some(Event::Lied { node: node("liar"), block: 0 }), "{len} bytes");
    }
}

#[tokio::test]
async fn a_block_that_was_not_wanted_is_a_lie() {
    let blob = Blob::of(8 * BLOCK);
    let (bytes, layout) = (blob.bytes.clone(), blob.layout);
    let (rogue, _running) = rogue("p", move |mut wire| {
        let block = bytes.slice(BLOCK as usize * 5..BLOCK as usize * 6);
        async move {
            show_all(&mut wire, hello("a", "p"), layout).await;
            let _ = wire.send(Frame::Block { block: 5, bytes: block }).await;
            let _ = wire.next().await;
        }
    })
    .await;
    let (swarm, _me) = child();
    let ground = Field::of(&blob);
    let mut fetching = fetch(&swarm, &ground, &[&rogue]);
    let event = tokio::time::timeout(BOUND, fetching.events.recv()).await.unwrap();
    assert_eq!(event, Some(Event::Lied { node: node("p"), block: 5 }));
    assert_eq!(ground.len(), 0);
}

#[tokio::test]
async fn a_parent_dies_and_the_fetch_waits_for_another_and_goes_on() {
    let blob = Blob::of(64 * BLOCK);
    let book = Book::stuck(&blob, 20);
    let first = parent("first", &[&book]).await;
    let (swarm, _me) = child();
    let ground = Field::of(&blob);
    let mut fetching = fetch(&swarm, &ground, &[&first.parent]);
    eventually("20 blocks are in", || ground.len() == 20).await;
    first.running.abort();
    assert_eq!(fetching.lost().await.0, node("first"));
    let second = parent("second", &[&Book::whole(&blob)]).await;
    fetching.parents.send_replace(Arc::new([second.parent.clone()]));
    assert_eq!(fetching.done().await.0, Ok(()));
    assert!(ground.bytes() == blob.bytes);
    assert_eq!((ground.brought("first"), ground.brought("second")), (20, 44), "no block came twice");
}

#[tokio::test]
async fn a_silent_parent_loses_its_pieces_to_another() {
    let blob = Blob::of(40 * BLOCK);
    let layout = blob.layout;
    let (silent, _running) = rogue("silent", move |mut wire| async move {
        show_all(&mut wire, hello("a", "silent"), layout).await;
        while wire.next().await.is_some() {}
    })
    .await;
    let good = parent("good", &[&Book::whole(&blob)]).await;
    let (swarm, _me) = child_with(swarm::Config { silence: Duration::from_millis(50), ..swarm::Config::default() });
    let ground = Field::of(&blob);
    let mut fetching = fetch(&swarm, &ground, &[&silent]);
    assert_eq!(fetching.lost().await, (node("silent"), "no frame for 50ms".into()));
    fetching.parents.send_replace(Arc::new([silent, good.parent.clone()]));
    assert_eq!(fetching.done().await.0, Ok(()));
    assert!(ground.bytes() == blob.bytes);
}

/// A parent that sends the head of the first block and `at_once` bytes of it, then `each` bytes every tenth of a second.
async fn slow_parent(name: &'static str, blob: &Blob, at_once: usize, each: usize) -> Parent {
    let (layout, bytes) = (blob.layout, blob.bytes.clone());
    let talk = move |mut wire: Wire| {
        let bytes = bytes.clone();
        async move {
            show_all(&mut wire, hello("a", name), layout).await;
            let mut frame = BytesMut::new();
            Frame::Block { block: 0, bytes }.encode(&mut frame);
            let now = frame.split_to(at_once);
            let mut sent = wire.get_mut().write_all(&now).await;
            while sent.is_ok() && !frame.is_empty() && each > 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let next = frame.split_to(each.min(frame.len()));
                sent = wire.get_mut().write_all(&next).await;
            }
            while wire.next().await.is_some() {}
        }
    };
    rogue(name, talk).await.0
}

#[tokio::test]
async fn i8_half_a_block_or_a_drip_of_it_does_not_make_a_parent_less_silent() {
    let blob = Blob::of(BLOCK);
    let silence = Duration::from_secs(2);
    let (swarm, _me) = child_with(swarm::Config { silence, ..swarm::Config::default() });
    let lost = async |name: &'static str, at_once, each| {
        let parent = slow_parent(name, &blob, at_once, each).await;
        let began = Instant::now();
        let lost = fetch(&swarm, &Field::of(&blob), &[&parent]).lost().await;
        assert_eq!(lost, (node(name), "no frame for 2s".into()));
        began.elapsed()
    };
    let (half, drip) = tokio::join!(lost("half", BLOCK as usize / 2, 0), lost("drip", 1, 1));
    for took in [half, drip] {
        assert!(silence <= took && took < silence * 7 / 4, "{took:?}");
    }
}

#[tokio::test]
async fn i8_a_parent_whose_block_takes_longer_than_the_silence_is_not_lost_while_its_bytes_come() {
    let blob = Blob::of(BLOCK);
    let silence = Duration::from_secs(1);
    let (swarm, _me) = child_with(swarm::Config { silence, ..swarm::Config::default() });
    let ground = Field::of(&blob);
    let parent = slow_parent("slow", &blob, 1, 12 << 10).await;
    let began = Instant::now();
    assert_eq!(fetch(&swarm, &ground, &[&parent]).done().await.0, Ok(()));
    assert!(ground.bytes() == blob.bytes && began.elapsed() > silence * 2);
}

#[tokio::test]
async fn a_parent_that_says_wait_is_not_silent_but_cannot_do_so_for_ever() {
    let blob = Blob::of(4 * BLOCK);
    let layout = blob.layout;
    let (waits, _running) = rogue("waits", move |mut wire| async move {
        show_all(&mut wire, hello("a", "waits"), layout).await;
        while wire.send(Frame::Wait).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let config = swarm::Config {
        silence: Duration::from_millis(100),
        patience: Duration::from_millis(300),
        ..swarm::Config::default()
    };
    let (swarm, _me) = child_with(config);
    let began = Instant::now();
    let lost = fetch(&swarm, &Field::of(&blob), &[&waits]).lost().await;
    assert_eq!(lost, (node("waits"), "only waits, no block for 300ms".into()));
    assert!(began.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn blocks_come_from_a_parent_that_is_still_fetching() {
    let blob = Blob::of(40 * BLOCK);
    let book = Book::empty(&blob);
    let parent = parent("p", &[&book]).await;
    let (swarm, _me) = child();
    let ground = Field::of(&blob);
    let fetching = fetch(&swarm, &ground, &[&parent.parent]);
    for block in 0..40 {
        book.grow(block);
        // Cut-through: what the parent got is passed on before it has more.
        eventually("the block was passed on", || ground.len() == block + 1).await;
    }
    assert_eq!(fetching.done().await.0, Ok(()));
    assert!(ground.bytes() == blob.bytes);
}

#[tokio::test]
async fn a_chain_of_nodes_passes_blocks_on_while_they_arrive() {
    let blob = Blob::of(60 * BLOCK);
    let (top, middle) = (Book::empty(&blob), Book::empty(&blob));
    let (one, two) = (parent("one", &[&top]).await, parent("two", &[&middle]).await);
    let (grounds, swarms) = ([Field::of(&blob), Field::of(&blob)], [child(), child()]);
    let first = fetch(&swarms[0].0, &grounds[0], &[&one.parent]);
    let second = fetch(&swarms[1].0, &grounds[1], &[&two.parent]);
    let shown = async {
        for block in 0..60 {
            top.grow(block);
            eventually("the middle has it", || grounds[0].len() == block + 1).await;
            middle.grow(block);
        }
    };
    shown.await;
    assert_eq!(first.done().await.0, Ok(()));
    assert_eq!(second.done().await.0, Ok(()));
    assert!(grounds[1].bytes() == blob.bytes);
}

#[tokio::test]
async fn a_block_is_asked_only_when_its_hash_is_known() {
    let blob = Blob::of(10 * BLOCK);
    let book = Book::whole(&blob);
    let parent = parent("p", &[&book]).await;
    let (swarm, _me) = child();
    let ground = Field::knowing(&blob, PieceList::new(blob.layout));
    let fetching = fetch(&swarm, &ground, &[&parent.parent]);
    eventually("the child is there", || parent.peer.load().uploads == 1).await;
    for block in 0..10 {
        assert_eq!(book.reads.load(Ordering::Relaxed), block);
        ground.learn(block, *blob.list.get(block).unwrap());
        eventually("the block is in", || ground.len() == block + 1).await;
    }
    assert_eq!(fetching.done().await.0, Ok(()));
}

#[tokio::test]
async fn the_fetch_ends_when_the_ground_halts() {
    let blob = Blob::of(10 * BLOCK);
    let parent = parent("p", &[&Book::whole(&blob)]).await;
    let (swarm, _me) = child();
    let ground = Field::of(&blob);
    ground.halt.store(true, Ordering::Relaxed);
    assert_eq!(fetch(&swarm, &ground, &[&parent.parent]).done().await.0, Err(Halt));
}

#[tokio::test]
async fn dropping_the_fetch_closes_its_connections() {
    let blob = Blob::of(100 * BLOCK);
    let parents = [parent("a", &[&Book::stuck(&blob, 3)]).await, parent("b", &[&Book::stuck(&blob, 3)]).await];
    let (swarm, _me) = child();
    let ground = Field::of(&blob);
    let fetching = fetch(&swarm, &ground, &[&parents[0].parent, &parents[1].parent]);
    eventually("both serve", || parents.iter().all(|p| p.peer.load().uploads == 1) && ground.len() == 6).await;
    fetching.running.abort();
    eventually("the connections are closed", || parents.iter().all(|p| p.peer.load().uploads == 0)).await;
}

#[tokio::test]
async fn a_busy_parent_is_asked_again() {
    let blob = Blob::of(30 * BLOCK);
    let book = Book::stuck(&blob, 5);
    let config = swarm_slots(1);
    let parent = parent_with("p", config, Some(hello("a", "p")), &[&book]).await;
    let (swarm, _me) = child();
    let grounds = [Field::of(&blob), Field::of(&blob)];
    let first = fetch(&swarm, &grounds[0], &[&parent.parent]);
    eventually("the slot is taken", || grounds[0].len() == 5).await;
    assert_eq!((parent.peer.load().uploads, parent.peer.load().slots), (1, 1));
    let second = fetch(&swarm, &grounds[1], &[&parent.parent]);
    book.unstick();
    assert_eq!(first.done().await.0, Ok(()));
    let (end, events) = second.done().await;
    assert_eq!(end, Ok(()));
    assert_eq!(events, [Event::Serving { node: node("p") }], "busy is not lost");
}

fn swarm_slots(slots: u32) -> node_proxy::peer::Config {
    node_proxy::peer::Config { upload_slots: slots, retry_after: Duration::from_millis(50), ..peer_config() }
}

#[tokio::test]
async fn a_parent_that_has_nothing_for_us_makes_room_for_one_that_has() {
    let blob = Blob::of(10 * BLOCK);
    let useless = [parent("u1", &[&Book::empty(&blob)]).await, parent("u2", &[&Book::empty(&blob)]).await];
    let good = parent("good", &[&Book::whole(&blob)]).await;
    let config = swarm::Config { streams: 2, useless_after: Duration::from_millis(50), ..swarm::Config::default() };
    let (swarm, _me) = child_with(config);
    let ground = Field::of(&blob);
    let fetching = fetch(&swarm, &ground, &[&useless[0].parent, &useless[1].parent, &good.parent]);
    assert_eq!(fetching.done().await.0, Ok(()));
    assert_eq!(ground.brought("good"), 10);
}

fn counted(registry: &Registry, what: &str) -> bool {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    text.lines().any(|line| line == what)
}

#[tokio::test]
async fn a_connection_serves_one_blob_after_another_until_this_node_moves() {
    let blobs = [Blob::of(3 * BLOCK), Blob::of(5 * BLOCK), Blob::of(7 * BLOCK)];
    let books = blobs.each_ref().map(Book::whole);
    let parent = parent("p", &[&books[0], &books[1], &books[2]]).await;
    let mut registry = Registry::default();
    let me = tokio::sync::watch::Sender::new(Some(hello("a", "child")));
    let metrics = swarm::Metrics::register(registry.sub_registry_with_prefix("shoal_swarm"));
    let swarm = swarm::Swarm::new(swarm::Config::default(), me.subscribe(), metrics);
    for (at, blob) in blobs.iter().enumerate() {
        if at == 2 {
            me.send_modify(|me| me.as_mut().unwrap().epoch += 1);
        }
        let ground = Field::of(blob);
        assert_eq!(fetch(&swarm, &ground, &[&parent.parent]).done().await.0, Ok(()));
        assert!(ground.bytes() == blob.bytes);
        eventually("the blob is closed", || parent.peer.load().uploads == 0).await;
        // The parent is done a moment before the child has read `Closed`.
        eventually("the connection rests", || swarm.resting() == 1).await;
    }
    assert!(counted(&registry, r#"shoal_swarm_connections_total{from="Dial"} 2"#));
    assert!(counted(&registry, r#"shoal_swarm_connections_total{from="Pool"} 1"#));
}

#[tokio::test]
async fn a_rested_connection_that_the_parent_closed_costs_nothing() {
    let blobs = [Blob::of(3 * BLOCK), Blob::of(5 * BLOCK)];
    let books = blobs.each_ref().map(Book::whole);
    let config = node_proxy::peer::Config { idle_timeout: Duration::from_millis(30), ..peer_config() };
    let parent = parent_with("p", config, Some(hello("a", "p")), &[&books[0], &books[1]]).await;
    let (swarm, _me) = child();
    for blob in &blobs {
        let (end, events) = fetch(&swarm, &Field::of(blob), &[&parent.parent]).done().await;
        assert_eq!(end, Ok(()));
        assert_eq!(events, [Event::Serving { node: node("p") }]);
        eventually("the parent closed it", || parent.connections() == 0).await;
    }
}

#[tokio::test]
async fn streams_end_when_this_node_moves() {
    let blob = Blob::of(10 * BLOCK);
    let parent = parent("p", &[&Book::stuck(&blob, 2)]).await;
    let (swarm, me) = child();
    let ground = Field::of(&blob);
    let _fetching = fetch(&swarm, &ground, &[&parent.parent]);
    eventually("it serves", || ground.len() == 2).await;
    me.send_replace(None);
    eventually("the connection is closed", || parent.connections() == 0).await;
}

/// Control gives every node another epoch when it was restarted; that must not cost a pull anything.
#[tokio::test]
async fn a_stream_goes_on_when_only_the_epoch_of_this_node_changes() {
    let blob = Blob::of(10 * BLOCK);
    let book = Book::stuck(&blob, 2);
    let parent = parent("p", &[&book]).await;
    let (swarm, me) = child();
    let ground = Field::of(&blob);
    let fetching = fetch(&swarm, &ground, &[&parent.parent]);
    eventually("it serves", || ground.len() == 2).await;
    me.send_modify(|me| me.as_mut().unwrap().epoch += 1);
    book.unstick();
    let (end, events) = fetching.done().await;
    assert_eq!(end, Ok(()));
    assert_eq!(events, [Event::Serving { node: node("p") }], "the blob was opened once");
}

#[tokio::test]
async fn garbage_from_a_parent_is_a_lost_parent() {
    let blob = Blob::of(10 * BLOCK);
    for seed in 0..8u8 {
        let (garbage, _running) = rogue("p", move |wire| async move {
            let mut noise = vec![0; 4096];
            blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut noise);
            let _ = wire.into_inner().write_all(&noise).await;
        })
        .await;
        let (swarm, _me) = child();
        assert_eq!(fetch(&swarm, &Field::of(&blob), &[&garbage]).lost().await.0, node("p"));
    }
}

#[tokio::test]
async fn a_list_comes_from_the_parent_whose_list_matches_the_root() {
    let blob = Blob::of(50 * BLOCK);
    let mut wrong = PieceList::new(blob.layout);
    for block in 0..blob.layout.blocks() {
        wrong.set(block, [block as u8; 32]).unwrap();
    }
    let liar = parent("liar", &[&Book::listing(&blob, wrong)]).await;
    let none = parent("none", &[]).await;
    let good = parent("good", &[&Book::whole(&blob)]).await;
    let (swarm, _me) = child();
    let (tell, mut events) = mpsc::channel(16);
    let ask = |parents: Vec<Parent>| {
        let (swarm, blob, tell) = (swarm.clone(), blob.clone(), tell.clone());
        async move { swarm.fetch_list(blob.digest, blob.layout, blob.root(), &parents, tell).await }
    };
    let list = ask(vec![liar.parent.clone(), none.parent.clone(), good.parent.clone()]).await.unwrap();
    assert_eq!(list, blob.list);
    assert_eq!(events.try_recv().ok(), Some(Event::LiedOfList { node: node("liar") }));
    let error = ask(vec![liar.parent.clone(), none.parent.clone()]).await.unwrap_err();
    assert!(matches!(error, ListError::Lied { node } if node.as_str() == "liar"));
    let error = ask(vec![none.parent.clone()]).await.unwrap_err();
    assert!(matches!(error, ListError::Lost { node, .. } if node.as_str() == "none"));
    assert!(matches!(ask(vec![]).await, Err(ListError::NoParent)));
}

#[tokio::test]
async fn i8_a_parent_that_waits_instead_of_giving_the_list_does_not_hold_up_the_others() {
    let blob = Blob::of(50 * BLOCK);
    let layout = blob.layout;
    let (waits, _running) = rogue("waits", move |mut wire| async move {
        show_all(&mut wire, hello("a", "waits"), layout).await;
        while wire.send(Frame::Wait).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let good = parent("good", &[&Book::whole(&blob)]).await;
    let (swarm, _me) = child();
    let (tell, _events) = mpsc::channel(16);
    let asked = |parents: Vec<Parent>| {
        let (swarm, blob, tell) = (swarm.clone(), blob.clone(), tell.clone());
        let asking = async move { swarm.fetch_list(blob.digest, blob.layout, blob.root(), &parents, tell).await };
        tokio::time::timeout(Duration::from_secs(4), asking)
    };
    let since = std::time::Instant::now();
    let list = asked(vec![waits.clone(), good.parent.clone()]).await.expect("in time").unwrap();
    assert_eq!(list, blob.list);
    assert!(since.elapsed() < Duration::from_millis(1500), "{:?}", since.elapsed());
    // Alone, it is given up after the silence, whatever it says meanwhile.
    let error = asked(vec![waits]).await.expect("in time").unwrap_err();
    assert!(matches!(error, ListError::Lost { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prints_how_fast_it_is() {
    let blob = Blob::of(256 << 20);
    let parents = [parent("one", &[&Book::whole(&blob)]).await, parent("two", &[&Book::whole(&blob)]).await];
    for count in [1, 2] {
        let (swarm, _me) = child();
        let ground = Field::of(&blob);
        let named: Vec<&Parent> = parents[..count].iter().map(|parent| &parent.parent).collect();
        let began = Instant::now();
        assert_eq!(fetch(&swarm, &ground, &named).done().await.0, Ok(()));
        let took = began.elapsed();
        println!(
            "256 MiB from {count} parents: {took:?}, {:.2} GB/s",
            blob.bytes.len() as f64 / took.as_secs_f64() / 1e9
        );
    }
}

#[tokio::test]
async fn i4_a_blob_is_located_at_the_parent_that_holds_it_whole() {
    let blob = Blob::of(50 * BLOCK + 3);
    let partial = Book::empty(&blob);
    partial.grow(0);
    let part = parent("part", &[&partial]).await;
    let none = parent("none", &[]).await;
    let stranger =
        parent_with("stranger", peer_config(), Some(hello("elsewhere", "stranger")), &[&Book::whole(&blob)]).await;
    let good = parent("good", &[&Book::whole(&blob)]).await;
    let gone = Parent { addr: ParentAddr(([127, 0, 0, 1], 1).into()), ..none.parent.clone() };
    let (swarm, _me) = child();
    let useless = [&part.parent, &none.parent, &stranger.parent, &gone].map(Parent::clone);
    assert_eq!(swarm.locate(blob.digest, &useless).await, Sighting::Part);
    assert_eq!(swarm.locate(blob.digest, &useless[1..]).await, Sighting::Nowhere);
    let all = [&useless[..], std::slice::from_ref(&good.parent)].concat();
    let Sighting::Whole(located) = swarm.locate(blob.digest, &all).await else { panic!("one holds it whole") };
    assert_eq!(
        (located.parent, located.size, located.list),
        (good.parent.clone(), blob.layout.size(), blob.list.clone())
    );
}
