//! What an anonymous token can't read: the caller's own credential, and nothing kept or offered (I10).

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
async fn i10_with_the_callers_token_it_is_streamed_and_neither_kept_nor_offered() {
    let (rig, bytes, digest) = private().await;
    for _ in 0..2 {
        let got = rig.blob(&digest, &[TOKEN]).await;
        assert_eq!((got.status, got.end), (200, End::Fin));
        assert_eq!(got.body, bytes);
        assert_eq!(got.header("docker-content-digest"), Some(digest.to_string().as_str()));
    }
    assert_eq!(rig.gets(), 2, "each read asks the registry");
    let part = rig.blob(&digest, &[TOKEN, ("range", "bytes=100-299")]).await;
    assert_eq!((part.status, part.body.as_slice()), (206, &bytes[100..300]));
    assert!(rig.store.held(&digest).is_none() && rig.store.list().is_empty());
    assert!(rig.engine.offer(&digest).await.is_none());
    assert_eq!(rig.engine.flights(), 0);
    assert!(rig.cluster.told.lock().is_empty(), "nobody is told that it is public");
    let usage = rig.store.usage();
    assert_eq!((usage.held, usage.partial), (0, 0));
}

#[tokio::test]
async fn i7_wrong_bytes_that_are_streamed_past_the_store_never_make_a_complete_body() {
    let (rig, bytes, digest) = private().await;
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
    for wrong in [&b"a few other bytes"[..], b""] {
        rig.shelf.content.lock().insert(digest.to_string(), (Bytes::from_static(wrong), ""));
        let got = rig.blob(&digest, &[TOKEN]).await;
        assert_eq!((got.status, got.code().as_str()), (502, "UNAVAILABLE"));
    }
    let nothing = rig.shelve(&Bytes::new(), "");
    assert_eq!((rig.blob(&nothing, &[TOKEN]).await.status, rig.store.list().len()), (200, 0));
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
    assert!(rig.store.list().is_empty());
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
    assert!(rig.store.list().is_empty());
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
    assert_eq!(rig.ask(&other, &[TOKEN]).await.body, bytes);
}
