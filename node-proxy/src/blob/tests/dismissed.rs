//! Flights whose readers say that they do not come back.

use super::*;

async fn reading(lab: &Lab, engine: &Engine, digest: Digest) -> tokio::task::JoinHandle<()> {
    let engine = engine.clone();
    let before = lab.registry.bytes.load(Ordering::SeqCst);
    let reader = tokio::spawn(async move {
        let _ = read(&engine, digest).await;
    });
    while lab.registry.bytes.load(Ordering::SeqCst) == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    reader
}

/// How long it takes until nothing flies.
async fn over(engine: &Engine) -> Duration {
    let since = tokio::time::Instant::now();
    while engine.flights() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    since.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_flight_whose_reader_was_taken_back_ends_at_once_and_one_whose_reader_broke_off_lingers() {
    let lab = Lab::new();
    let one = lab.node("one");
    *lab.registry.slow.lock() = Some(Duration::from_secs(1));
    let digest = lab.publish(&content(200 * BLOCK, 1));
    let reader = reading(&lab, &one, digest).await;
    reader.abort();
    assert!(reader.await.unwrap_err().is_cancelled());
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(one.flights(), 1, "whoever broke off may come back");
    one.dismiss(&digest);
    let took = over(&one).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    let read = lab.registry.bytes.load(Ordering::SeqCst);
    assert!(read < 100 * BLOCK, "{read} bytes of it were read");
}

#[tokio::test(start_paused = true)]
async fn who_still_reads_or_comes_back_keeps_a_dismissed_flight() {
    let lab = Lab::new();
    let one = lab.node("one");
    *lab.registry.slow.lock() = Some(Duration::from_millis(100));
    let bytes = content(60 * BLOCK, 3);
    let digest = lab.publish(&bytes);
    let taken_back = reading(&lab, &one, digest).await;
    let other = tokio::spawn({
        let one = one.clone();
        async move { read(&one, digest).await.unwrap().0 }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    taken_back.abort();
    one.dismiss(&digest);
    assert_eq!(other.await.unwrap(), bytes);
    assert_eq!(lab.reads(), 1, "it was one flight from beginning to end");
    // What is not there is dismissed without a word.
    one.dismiss(&digest);
}

#[tokio::test(start_paused = true)]
async fn nodes_of_which_each_gives_to_the_other_do_not_keep_each_other_at_it() {
    let lab = Lab::new();
    let (one, two) = (lab.node("one"), lab.node("two"));
    *lab.registry.slow.lock() = Some(Duration::from_secs(1));
    let digest = lab.publish(&content(200 * BLOCK, 5));
    let readers = [reading(&lab, &one, digest).await, reading(&lab, &two, digest).await];
    // Each knows of the other and has opened what it gives.
    tokio::time::sleep(Duration::from_secs(30)).await;
    for reader in readers {
        reader.abort();
        assert!(reader.await.unwrap_err().is_cancelled());
    }
    let before = lab.registry.bytes.load(Ordering::SeqCst);
    assert!(before < 60 * BLOCK, "{before} bytes of it were read before");
    [&one, &two].iter().for_each(|node| node.dismiss(&digest));
    let took = over(&one).await + over(&two).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    let read = lab.registry.bytes.load(Ordering::SeqCst) - before;
    assert!(read < 10 * BLOCK, "{read} bytes of it were read after that");
}
