//! What a peer gets that asks before this node has anything.

use super::*;

/// A reader that waits for the blob: its flight lives.
fn reader(engine: &Engine, digest: Digest) -> tokio::task::JoinHandle<()> {
    let engine = engine.clone();
    tokio::spawn(async move {
        let _ = read(&engine, digest).await;
    })
}

async fn flight_of(engine: &Engine) {
    while engine.flights() == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn i8_an_offer_waits_half_a_second_for_a_flight_that_does_not_know_its_size() {
    let lab = Lab::new();
    let one = lab.node("one");
    let digest = lab.publish(&content(2 * BLOCK, 1));
    lab.registry.stuck.store(true, Ordering::SeqCst);
    let reader = reader(&one, digest);
    flight_of(&one).await;
    let since = tokio::time::Instant::now();
    assert!(one.offer(&digest).await.is_none());
    assert_eq!(since.elapsed(), Duration::from_millis(500));
    reader.abort();
}

#[tokio::test(start_paused = true)]
async fn an_offer_is_made_as_soon_as_the_size_is_known() {
    let lab = Lab::new();
    let one = lab.node("one");
    let digest = lab.publish(&content(2 * BLOCK, 2));
    *lab.registry.slow.lock() = Some(Duration::from_secs(1));
    let reader = reader(&one, digest);
    flight_of(&one).await;
    let since = tokio::time::Instant::now();
    let offer = one.offer(&digest).await.expect("its headers come at once");
    assert!(since.elapsed() < Duration::from_millis(100) && offer.have().is_empty());
    reader.abort();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_waited_for_when_nobody_fetches() {
    let lab = Lab::new();
    let one = lab.node("one");
    let since = tokio::time::Instant::now();
    assert!(one.offer(&lab.publish(&content(BLOCK, 3))).await.is_none());
    assert_eq!(since.elapsed(), Duration::ZERO);
}
