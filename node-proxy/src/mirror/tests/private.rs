//! What an anonymous token can't read: given only to whom the registry lets read it, whoever holds it (I10).

use super::*;

const TOKEN: (&str, &str) = ("authorization", "Bearer callers-own");

async fn private() -> (Rig, Bytes, Digest) {
    let rig = Rig::start().await;
    let bytes = content(3);
    let digest = rig.shelve(&bytes, "application/octet-stream");
    *rig.shelf.only.lock() = Some("callers-own");
    (rig, bytes, digest)
}

#[tokio::test]
async fn without_a_credential_the_registrys_challenge_is_passed_on_unchanged() {
    let (rig, _, digest) = private().await;
    rig.tag("1", &image_manifest());
    let said = challenge(&rig.server.base());
    for answer in [
        rig.blob(&digest, &[]).await,
        rig.manifest("1", &[]).await,
        rig.head("manifests", "1", &[]).await,
        rig.manifest(digest, &[]).await,
    ] {
        assert_eq!((answer.status, answer.end), (401, End::Fin));
        assert_eq!(answer.header("www-authenticate"), Some(said.as_str()));
    }
    assert_eq!(rig.blob(&digest, &[]).await.code(), "UNAUTHORIZED");
}

#[tokio::test]
async fn i10_with_the_callers_token_it_is_read_once_kept_and_given_to_whom_the_registry_lets_read() {
    let (rig, bytes, digest) = private().await;
    for _ in 0..2 {
        let got = rig.blob(&digest, &[TOKEN]).await;
        assert_eq!((got.status, got.end), (200, End::Fin));
        assert_eq!(got.body, bytes);
        assert_eq!(got.header("docker-content-digest"), Some(digest.to_string().as_str()));
        eventually("it is held", || rig.store.held(&digest).is_some()).await;
    }
    assert_eq!(rig.gets(), 1, "the second read is out of the store");
    let part = rig.blob(&digest, &[TOKEN, ("range", "bytes=100-299")]).await;
    assert_eq!((part.status, part.body.as_slice()), (206, &bytes[100..300]));
    assert!(rig.engine.offer(&digest).await.is_some(), "peers ask their own callers' registry");
    assert!(rig.cluster.told.lock().is_empty(), "nobody is told that it is public");
}

#[tokio::test]
async fn i10_what_this_disk_holds_is_not_given_to_whom_the_registry_does_not_let_read() {
    let (rig, bytes, digest) = private().await;
    let manifest = image_manifest();
    let manifest_digest = rig.shelve(&manifest, MANIFEST);
    assert!(rig.blob(&digest, &[TOKEN]).await.body == bytes);
    assert_eq!(rig.manifest(manifest_digest, &[TOKEN]).await.body, manifest);
    for held in [digest, manifest_digest] {
        eventually("it is held", || rig.store.held(&held).is_some()).await;
    }
    let said = challenge(&rig.server.base());
    for other in [&[][..], &[("authorization", "Bearer stolen")], &[("authorization", "Basic bWU6eW91")]] {
        for answer in [
            rig.blob(&digest, other).await,
            rig.manifest(manifest_digest, other).await,
            rig.head("blobs", digest, other).await,
            rig.head("manifests", manifest_digest, other).await,
            rig.blob(&digest, &[other, &[("range", "bytes=5-")]].concat()).await,
        ] {
            assert_eq!((answer.status, answer.end), (401, End::Fin));
            assert_eq!(answer.header("www-authenticate"), Some(said.as_str()));
            assert!(!answer.body.windows(16).any(|part| part == &bytes[..16]));
        }
    }
}

#[tokio::test]
async fn i10_whoever_may_read_another_repository_does_not_get_it_by_that() {
    let (rig, bytes, digest) = private().await;
    assert!(rig.blob(&digest, &[TOKEN]).await.body == bytes);
    eventually("it is held", || rig.store.held(&digest).is_some()).await;
    // Anybody may read lab/open, which has other content.
    let through = |digest: &Digest| format!("GET /v2/lab/open/blobs/{digest}?{NS}");
    let open = digest_of(&content(9));
    let name = open.to_string();
    rig.shelf.instead(move |seen| {
        seen.path.starts_with("/v2/lab/open/").then(|| match seen.path.contains(&name) {
            true => Reply::ok(content(9)),
            false => Reply::status(404),
        })
    });
    assert_eq!(rig.ask(&through(&open), &[]).await.body, content(9));
    for who in [&[][..], &[TOKEN]] {
        let got = rig.ask(&through(&digest), who).await;
        assert_eq!((got.status, got.code().as_str()), (404, "BLOB_UNKNOWN"));
    }
}

#[tokio::test]
async fn i10_after_its_manifest_an_image_costs_the_registry_one_read_a_blob_and_no_question() {
    let (rig, bytes, digest) = private().await;
    let manifest = image_of(&[(digest, bytes.len() as u64)]);
    let manifest_digest = rig.shelve(&manifest, MANIFEST);
    rig.tag("1", &manifest);
    assert_eq!(rig.head("manifests", "1", &[TOKEN]).await.status, 200);
    for _ in 0..2 {
        assert_eq!(rig.manifest(manifest_digest, &[TOKEN]).await.body, manifest);
        assert!(rig.blob(&digest, &[TOKEN]).await.body == bytes);
        eventually("it is held", || rig.store.held(&digest).is_some()).await;
    }
    let asked: Vec<_> = rig.server.seen().into_iter().filter(|seen| seen.path.contains(&digest.to_string())).collect();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].method, "GET");
}

#[tokio::test]
async fn i10_a_right_that_was_taken_away_ends_within_five_minutes() {
    let (rig, bytes, digest) = private().await;
    assert!(rig.blob(&digest, &[TOKEN]).await.body == bytes);
    eventually("it is held", || rig.store.held(&digest).is_some()).await;
    *rig.shelf.only.lock() = Some("another");
    assert_eq!(rig.blob(&digest, &[TOKEN]).await.status, 200, "remembered");
    later(Duration::from_secs(301)).await;
    assert_eq!(rig.blob(&digest, &[TOKEN]).await.status, 401);
    // A right that came back is found within half a minute.
    *rig.shelf.only.lock() = Some("callers-own");
    assert_eq!(rig.blob(&digest, &[TOKEN]).await.status, 401, "remembered");
    later(Duration::from_secs(31)).await;
    assert!(rig.blob(&digest, &[TOKEN]).await.body == bytes);
}

#[tokio::test]
async fn i10_with_the_registry_down_the_config_says_who_reads_what_is_private() {
    for when in [WhenDown::Refuse, WhenDown::SameCredential, WhenDown::Anyone] {
        let rig = Rig::with_origin(|config| config.private_when_down = when).await;
        let bytes = content(3);
        let digest = rig.shelve(&bytes, "application/octet-stream");
        *rig.shelf.only.lock() = Some("callers-own");
        assert!(rig.blob(&digest, &[TOKEN]).await.body == bytes);
        eventually("it is held", || rig.store.held(&digest).is_some()).await;
        rig.shelf.instead(|_| Some(Reply::status(500)));
        later(Duration::from_secs(3600)).await;
        let [same, other, none] = [&[TOKEN][..], &[("authorization", "Bearer other")], &[]];
        let mut got = Vec::new();
        for who in [same, other, none] {
            got.push(rig.blob(&digest, who).await.status);
        }
        let want = match when {
            WhenDown::Refuse => [503, 503, 503],
            // Who shows nothing is asked for it.
            WhenDown::SameCredential => [200, 503, 401],
            WhenDown::Anyone => [200, 200, 200],
        };
        assert_eq!(got, want, "{when:?}");
        later(Duration::from_secs(24 * 3600)).await;
        assert_eq!(rig.blob(&digest, same).await.status, 503, "a day is the most: {when:?}");
    }
}

#[tokio::test]
async fn i7_wrong_bytes_that_are_streamed_past_the_store_never_make_a_complete_body() {
    // Nothing has room there.
    let rig = Rig::on(Memory::new(1), |_| ()).await;
    let bytes = content(3);
    let digest = rig.shelve(&bytes, "application/octet-stream");
    *rig.shelf.only.lock() = Some("callers-own");
    for wrong_at in [0, bytes.len() - 1] {
        let mut wrong = bytes.to_vec();
        wrong[wrong_at] ^= 1;
        rig.shelf.content.lock().insert(digest.to_string(), (wrong.clone().into(), ""));
        let got = rig.blob(&digest, &[TOKEN]).await;
        assert_eq!((got.status, got.end), (200, End::Fin));
        let given = got.body.len();
        assert!(given > 0 && given < bytes.len() && got.body == wrong[..given], "{given} bytes");
    }
    // What comes at once is known to be wrong before anything was said.
    // An empty one is kept, and found out there.
    for (wrong, status) in [(&b"a few other bytes"[..], 502), (b"", 404)] {
        rig.shelf.content.lock().insert(digest.to_string(), (Bytes::from_static(wrong), ""));
        assert_eq!(rig.blob(&digest, &[TOKEN]).await.status, status);
    }
}

#[tokio::test]
async fn a_private_manifest_by_tag_and_by_digest() {
    let (rig, ..) = private().await;
    let manifest = image_manifest();
    let digest = rig.shelve(&manifest, MANIFEST);
    rig.tag("1", &manifest);
    for what in ["1".to_owned(), digest.to_string()] {
        let head = rig.head("manifests", &what, &[TOKEN]).await;
        let got = rig.manifest(&what, &[TOKEN]).await;
        assert_eq!((head.status, got.status, got.body.as_slice()), (200, 200, manifest.as_ref()), "{what}");
        for answer in [head, got] {
            assert_eq!(answer.header("content-type"), Some(MANIFEST));
            assert_eq!(answer.header("docker-content-digest"), Some(digest.to_string().as_str()));
        }
    }
}

#[tokio::test]
async fn a_wrong_token_is_answered_with_the_registrys_challenge() {
    let (rig, _, digest) = private().await;
    let got = rig.blob(&digest, &[("authorization", "Bearer stolen")]).await;
    assert_eq!(got.status, 401);
    assert_eq!(got.header("www-authenticate"), Some(challenge(&rig.server.base()).as_str()));
    assert!(!String::from_utf8_lossy(&got.body).contains("stolen"));
}

#[tokio::test]
async fn a_registry_that_hides_what_is_private_is_asked_with_the_callers_token() {
    let (rig, bytes, digest) = private().await;
    let manifest = image_manifest();
    rig.tag("1", &manifest);
    rig.shelve(&manifest, MANIFEST);
    rig.shelf.instead(|seen| (seen.header("authorization") != Some(TOKEN.1)).then(|| Reply::status(404)));
    assert_eq!(rig.blob(&digest, &[]).await.status, 404);
    let got = rig.blob(&digest, &[TOKEN]).await;
    assert_eq!((got.status, got.body.len()), (200, bytes.len()));
    assert_eq!(rig.head("manifests", "1", &[TOKEN]).await.status, 200);
    assert_eq!(rig.manifest("1", &[TOKEN]).await.body, manifest);
    eventually("it is held", || rig.store.held(&digest).is_some()).await;
    assert_eq!(rig.blob(&digest, &[]).await.status, 404, "held, and hidden as the registry hides it");
}

#[tokio::test]
async fn what_is_held_of_a_public_repository_is_not_given_out_of_a_private_one() {
    let rig = Rig::start().await;
    let bytes = content(4);
    let digest = rig.shelve(&bytes, "");
    assert_eq!(rig.blob(&digest, &[]).await.status, 200);
    eventually("the blob is held", || rig.store.held(&digest).is_some()).await;
    *rig.shelf.only.lock() = Some("callers-own");
    let other = format!("GET /v2/lab/secret/blobs/{digest}?{NS}");
    assert_eq!(rig.ask(&other, &[]).await.status, 401);
    assert_eq!(rig.ask(&format!("HEAD /v2/lab/secret/blobs/{digest}?{NS}"), &[]).await.status, 401);
    assert!(rig.ask(&other, &[TOKEN]).await.body == bytes);
}
