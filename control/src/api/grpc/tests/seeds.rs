//! Orders of single blobs, as they are said on sessions; and a seed of a version that knows none.

use super::*;

async fn seed(running: &Running, node: &str, takes_blob_orders: bool) -> Fake {
    let role = wire::Role::Seed.into();
    let register = wire::Register { role, takes_blob_orders, ..register(node, "") };
    let (grpc, up, down) = within(open(running.addr, register)).await.unwrap();
    let mut fake = Fake { grpc, up, down, session: Vec::new(), cluster: String::new(), epoch: 0 };
    fake.assigned().await;
    fake
}

async fn order(seed: &mut Fake) -> wire::FetchOrder {
    let word = within(seed.down.message()).await.unwrap().unwrap().message;
    let Some(Down::Fetch(order)) = word else { panic!("no order: {word:?}") };
    order
}

fn says(order: &wire::FetchOrder, state: wire::order_progress::State) -> Up {
    let order_id = order.order_id.clone();
    Up::Order(wire::OrderProgress { order_id, state: state.into(), ..wire::OrderProgress::default() })
}

/// Until control grants permits (I4).
async fn past_the_start() {
    tokio::time::sleep(swarm::STARTING + Duration::from_millis(50)).await;
}

#[tokio::test]
async fn a_seed_is_ordered_on_its_session_comes_for_the_permit_or_is_passed_over() {
    let running = start(Vec::new()).await;
    let (mut one, other) = (seed(&running, "one", true).await, Fake::join(&running, "other", "").await);
    past_the_start().await;
    let mut waits = other.find(1, 0).await;
    let told = waits.hear(|said| if let Said::Waiting(waiting) = said { Some(waiting.reason()) } else { None }).await;
    assert_eq!(told, wire::waiting::Reason::Seed);
    let given = order(&mut one).await;
    assert_eq!((given.digest.as_slice(), given.kind()), (&[1; 32][..], wire::Kind::Blob));
    assert_eq!((given.registry.as_str(), given.repository.as_str()), ("docker.io", "library/debian"));
    one.say(says(&given, wire::order_progress::State::Running)).await;
    let mut comes = one.find(1, 0).await;
    assert_ne!(comes.permit().await, 0);
    // It can't: the other reads, at once.
    let since = Instant::now();
    let mut reads = other.find(2, 0).await;
    let given = order(&mut one).await;
    one.say(says(&given, wire::order_progress::State::Failed)).await;
    reads.permit().await;
    assert!(since.elapsed() < Duration::from_millis(400), "{:?}", since.elapsed());
    // It says nothing: half a second later, and it is told that it need not begin.
    let since = Instant::now();
    let mut reads = other.find(3, 0).await;
    assert!(!order(&mut one).await.cancelled);
    reads.permit().await;
    assert!((400..2000).contains(&since.elapsed().as_millis()), "{:?}", since.elapsed());
    assert!(order(&mut one).await.cancelled);
}

#[tokio::test]
async fn a_seed_of_a_version_without_such_orders_is_given_none_and_nobody_waits_for_it() {
    let running = start(Vec::new()).await;
    let (mut old, other) = (seed(&running, "old", false).await, Fake::join(&running, "other", "").await);
    past_the_start().await;
    let since = Instant::now();
    other.find(1, 0).await.permit().await;
    assert!(since.elapsed() < Duration::from_millis(400), "{:?}", since.elapsed());
    assert!(
        tokio::time::timeout(Duration::from_millis(300), old.down.message()).await.is_err(),
        "it was told something"
    );
    // What it knows goes on as before: it reads what it looks for itself.
    old.find(2, 0).await.permit().await;
}
