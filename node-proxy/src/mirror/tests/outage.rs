//! With the registry down: what is held can be pulled by digest if anybody could read it today (I5).

use super::*;

/// A rig whose blob and manifest are held.
async fn held() -> (Rig, Digest, Digest) {
    let rig = Rig::start().await;
    let (blob, manifest) = (content(1), image_manifest());
    let (blob, manifest) = (rig.shelve(&blob, ""), rig.shelve(&manifest, MANIFEST));
    assert_eq!(rig.blob(&blob, &[]).await.status, 200);
    assert_eq!(rig.manifest(manifest, &[]).await.status, 200);
    for digest in [blob, manifest] {
        eventually("it is held", || rig.store.held(&digest).is_some()).await;
    }
    (rig, blob, manifest)
}

fn down(rig: &Rig) {
    rig.shelf.instead(|_| Some(Reply::status(500)));
}

#[tokio::test]
async fn i5_what_is_held_of_a_repository_that_was_public_is_given() {
    let (rig, blob, manifest) = held().await;
    down(&rig);
    assert_eq!(rig.blob(&blob, &[]).await.status, 200);
    let head = rig.head("manifests", manifest, &[]).await;
    assert_eq!((head.status, head.header("content-type")), (200, Some(MANIFEST)));
    assert_eq!(rig.manifest(manifest, &[]).await.body, image_manifest());
    assert_eq!(rig.head("blobs", blob, &[]).await.status, 200);
    let missing = rig.blob(&digest_of(b"nobody holds it"), &[]).await;
    assert_eq!(missing.status, 503);
    assert_eq!(rig.manifest("1.0", &[]).await.status, 503, "tags are the registry's");
}

#[tokio::test]
async fn i5_the_clusters_word_counts_where_this_node_never_asked() {
    let (rig, blob, _) = held().await;
    down(&rig);
    let elsewhere = |hours: u64| {
        *rig.cluster.public_since.lock() = Some(Duration::from_secs(hours * 3600));
        format!("GET /v2/lab/other-{hours}/blobs/{blob}?{NS}")
    };
    let unknown = rig.ask(&format!("GET /v2/lab/unknown/blobs/{blob}?{NS}"), &[]).await;
    assert_eq!(unknown.status, 503, "nobody knows who may read it");
    let known = elsewhere(3);
    assert_eq!(rig.ask(&known, &[]).await.status, 200);
    let old = elsewhere(25);
    assert_eq!(rig.ask(&old, &[]).await.status, 503);
}

#[tokio::test]
async fn i5_what_was_private_stays_private() {
    let (rig, blob, _) = held().await;
    *rig.shelf.only.lock() = Some("callers-own");
    let secret = format!("GET /v2/lab/secret/blobs/{blob}?{NS}");
    assert_eq!(rig.ask(&secret, &[]).await.status, 401);
    *rig.cluster.public_since.lock() = Some(Duration::from_secs(3600));
    down(&rig);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(3600)).await;
    tokio::time::resume();
    assert_eq!(rig.ask(&secret, &[]).await.status, 503, "the registry's own word outranks the cluster's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn i5_a_registry_that_swallows_everything_is_asked_once_for_a_head() {
    let rig = Rig::with(|config| config.first_byte_budget = Duration::from_secs(5)).await;
    *rig.cluster.public_since.lock() = Some(Duration::from_secs(60));
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    rig.shelf.instead(move |_| {
        let _ = tokio::task::block_in_place(|| gate.lock().recv_timeout(Duration::from_secs(10)));
        Some(Reply::status(500))
    });
    let got = rig.head("manifests", digest_of(b"only the cluster has it"), &[]).await;
    assert_eq!(got.status, 503);
    assert_eq!(rig.shelf.heads.load(Ordering::SeqCst), 1, "the rest of the time is the cluster's");
    drop(release);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn i8_a_registry_that_swallows_everything_does_not_cost_the_budget_of_what_is_held() {
    let rig = Rig::with(|config| config.first_byte_budget = Duration::from_secs(5)).await;
    let bytes = content(2);
    let blob = rig.shelve(&bytes, "");
    assert_eq!(rig.blob(&blob, &[]).await.status, 200);
    eventually("it is held", || rig.store.held(&blob).is_some()).await;
    *rig.cluster.public_since.lock() = Some(Duration::from_secs(60));
    // A HEAD that never ends: the body of a chunked GET does, so the reply is held back by a lock.
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    rig.shelf.instead(move |_| {
        let _ = tokio::task::block_in_place(|| gate.lock().recv_timeout(Duration::from_secs(10)));
        Some(Reply::status(500))
    });
    let other = format!("GET /v2/lab/other/blobs/{blob}?{NS}");
    let got = rig.ask(&other, &[]).await;
    assert_eq!((got.status, got.body.len()), (200, bytes.len()));
    drop(release);
}
