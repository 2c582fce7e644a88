//! What anybody may read.

use super::*;

#[tokio::test]
async fn a_blob_comes_whole_with_exact_headers_and_then_out_of_the_store() {
    let rig = Rig::start().await;
    let bytes = content(1);
    let digest = rig.shelve(&bytes, "application/octet-stream");
    for _ in 0..2 {
        let got = rig.blob(&digest, &[]).await;
        assert_eq!((got.status, got.end), (200, End::Fin));
        assert_eq!(got.body, bytes);
        assert_eq!(got.header("content-length"), Some(bytes.len().to_string().as_str()));
        assert_eq!(got.header("docker-content-digest"), Some(digest.to_string().as_str()));
        assert_eq!(got.header("accept-ranges"), Some("bytes"));
        assert_eq!(got.header("content-encoding"), None);
    }
    assert_eq!(rig.gets(), 1, "the second came out of the store");
    let told = rig.cluster.told.lock().clone();
    assert!(told.iter().all(|(_, manifest)| manifest.is_none()), "{told:?}");
    assert_eq!(told.len(), 1, "the cluster is told once that the repository is public: {told:?}");
}

#[tokio::test]
async fn a_manifest_keeps_the_type_that_the_origin_gave() {
    let rig = Rig::start().await;
    let manifest = image_manifest();
    let digest = rig.shelve(&manifest, MANIFEST);
    rig.tag("1.0", &manifest);
    for what in ["1.0".to_owned(), digest.to_string()] {
        let head = rig.head("manifests", &what, &[]).await;
        assert_eq!((head.status, head.body.len()), (200, 0), "{what}");
        let got = rig.manifest(&what, &[]).await;
        assert_eq!((got.status, got.body.as_slice()), (200, manifest.as_ref()), "{what}");
        for answer in [head, got] {
            assert_eq!(answer.header("content-type"), Some(MANIFEST));
            assert_eq!(answer.header("content-length"), Some(manifest.len().to_string().as_str()));
            assert_eq!(answer.header("docker-content-digest"), Some(digest.to_string().as_str()));
        }
    }
}

#[tokio::test]
async fn a_manifest_without_a_type_is_left_to_the_registry() {
    let rig = Rig::start().await;
    let digest = rig.shelve(&image_manifest(), "");
    let got = rig.manifest(digest, &[]).await;
    assert_eq!((got.status, got.code().as_str()), (502, "MANIFEST_INVALID"));
}

#[tokio::test]
async fn ranges_are_answered_as_containerd_reads_them() {
    let rig = Rig::start().await;
    let bytes = content(2);
    let digest = rig.shelve(&bytes, "");
    let size = bytes.len();
    for held in [false, true] {
        for (range, want) in [
            ("bytes=10-19", Some(10..20)),
            ("bytes=262144-", Some(262_144..size)),
            ("bytes=-5", Some(size - 5..size)),
            ("bytes=0-", None),
            ("bytes=1-2,5-6", None),
        ] {
            let got = rig.blob(&digest, &[("range", range)]).await;
            let Some(want) = want else {
                assert_eq!((got.status, got.body.len()), (200, size), "{range}, held: {held}");
                assert_eq!(got.header("content-range"), None);
                continue;
            };
            assert_eq!((got.status, got.body.as_slice()), (206, &bytes[want.clone()]), "{range}, held: {held}");
            let said = format!("bytes {}-{}/{size}", want.start, want.end - 1);
            assert_eq!(got.header("content-range"), Some(said.as_str()));
        }
        for range in ["bytes=500-0", &format!("bytes={size}-")] {
            let got = rig.blob(&digest, &[("range", range)]).await;
            assert_eq!(got.status, 416, "{range}, held: {held}");
            assert_eq!(got.header("content-range"), Some(format!("bytes */{size}").as_str()));
        }
        let conditional = rig.blob(&digest, &[("range", "bytes=10-19"), ("if-range", "\"x\"")]).await;
        assert_eq!(conditional.status, 200);
        eventually("the blob is held", || rig.store.held(&digest).is_some()).await;
    }
}

#[tokio::test]
async fn errors_are_oci_errors_with_the_right_status() {
    let rig = Rig::start().await;
    let hex = "a".repeat(64);
    for (request, status, code) in [
        (format!("GET /v2/lab/app/blobs/sha256:{hex}?{NS}"), 404, "BLOB_UNKNOWN"),
        (format!("GET /v2/lab/app/manifests/nothing?{NS}"), 404, "MANIFEST_UNKNOWN"),
        (format!("GET /v2/lab/app/manifests/sha256:{hex}?{NS}"), 404, "MANIFEST_UNKNOWN"),
        (format!("POST /v2/lab/app/blobs/uploads/?{NS}"), 405, "UNSUPPORTED"),
        (format!("GET /v2/lab/app/tags/list?{NS}"), 404, "UNSUPPORTED"),
        (format!("GET /v2/lab/app/blobs/sha256:abc?{NS}"), 400, "DIGEST_INVALID"),
        (format!("GET /v2/LAB/blobs/sha256:{hex}?{NS}"), 400, "NAME_INVALID"),
        (format!("GET /v2/lab/app/blobs/sha256:{hex}?ns=no%20registry"), 400, "NAME_INVALID"),
        (format!("GET /v2/lab/app/blobs/sha256:{hex}"), 404, "NAME_UNKNOWN"),
        (format!("GET /v2/lab/app/blobs/sha256:{hex}?ns=denied.example"), 404, "NAME_UNKNOWN"),
    ] {
        let got = rig.ask(&request, &[]).await;
        assert_eq!((got.status, got.code().as_str(), got.end), (status, code, End::Fin), "{request}");
    }
    let ping = rig.ask("GET /v2/", &[]).await;
    assert_eq!((ping.status, ping.header("docker-distribution-api-version")), (200, Some("registry/2.0")));
}

#[tokio::test]
async fn ns_does_not_open_the_way_to_addresses_that_nobody_named() {
    let rig = Rig::start().await;
    let inside = TestServer::start(|_| |_: &Seen| Reply::ok("secret")).await;
    let port = inside.addr.port();
    let hex = "a".repeat(64);
    for ns in [format!("127.0.0.1:{port}"), format!("localhost:{port}"), "169.254.169.254".into(), "[::1]:1".into()] {
        for path in [format!("blobs/sha256:{hex}"), "manifests/latest".to_owned()] {
            let got = rig.ask(&format!("GET /v2/latest/meta-data/{path}?ns={ns}"), &[]).await;
            assert!(matches!(got.status, 400 | 403), "{ns}: {}", got.status);
            assert!(!got.body.windows(6).any(|part| part == b"secret"));
        }
    }
    assert!(inside.seen().is_empty(), "something was asked behind the rule");
}

#[tokio::test]
async fn a_redirect_does_not_lead_to_addresses_that_nobody_named() {
    let rig = Rig::start().await;
    // 127.0.0.0/8 is named for this registry; the metadata address is not.
    rig.shelf.instead(|_| Some(Reply::status(307).with("location", "http://169.254.169.254/latest/meta-data/")));
    let got = rig.blob(&digest_of(b"x"), &[]).await;
    assert!(matches!(got.status, 403 | 503), "{}", got.status);
    assert!(got.body.len() < 1000 && got.end == End::Fin);
}
