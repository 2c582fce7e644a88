//! Lists that do not prove to be their author's.

use super::*;

#[tokio::test]
async fn i1_a_holder_is_asked_itself_when_its_list_does_not_prove_to_be_its_own() {
    let lab = Lab::new();
    let (one, two) = (lab.node("one"), lab.node("two"));
    let bytes = content(3 * BLOCK + 5, 7);
    let digest = lab.publish(&bytes);
    read(&one, digest).await.unwrap();
    *lab.cluster.unproven.lock() = Some("one".parse().unwrap());
    let (got, sources) = read(&two, digest).await.unwrap();
    assert_eq!((got, sources.peers, sources.origin), (bytes.clone(), bytes.len() as u64, 0));
    assert_eq!(lab.reads(), 1);
    assert!(lab.cluster.mismatches.lock().is_empty() && lab.cluster.lies.lock().is_empty(), "nobody is called a liar");
}

#[tokio::test(start_paused = true)]
async fn i8_with_no_list_that_is_believed_and_no_permit_the_origin_is_read_in_time() {
    let lab = Lab::new();
    let two = lab.node("two");
    let bytes = content(3 * BLOCK + 5, 7);
    let digest = lab.publish(&bytes);
    *lab.cluster.unproven.lock() = Some("one".parse().unwrap());
    // Somebody else reads, and nothing that is heard of that is believed.
    lab.cluster.swarms.lock().entry(digest).or_default().permit = Some((1_000, 1_000));
    let begin = tokio::time::Instant::now();
    let (got, sources) = read(&two, digest).await.unwrap();
    assert_eq!((got, sources.origin), (bytes.clone(), bytes.len() as u64));
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(lab.reads(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_may_read_under_a_permit_does_so_at_once() {
    let lab = Lab::new();
    let two = lab.node("two");
    let bytes = content(3 * BLOCK + 5, 7);
    let digest = lab.publish(&bytes);
    *lab.cluster.unproven.lock() = Some("one".parse().unwrap());
    let begin = tokio::time::Instant::now();
    let (got, _) = read(&two, digest).await.unwrap();
    assert_eq!(got, bytes);
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert_eq!(lab.reads(), 1);
}
