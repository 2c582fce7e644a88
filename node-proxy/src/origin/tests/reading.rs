//! Bodies, ranges, heads, and what statuses mean.

use super::*;

async fn serve(reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (TestServer, Arc<Origin>) {
    let server = TestServer::start(|_| reply).await;
    let origin = origin(&server);
    (server, origin)
}

#[tokio::test]
async fn a_range_is_given_whether_or_not_the_registry_knows_ranges() {
    for ignores in [false, true] {
        let (_server, origin) =
            serve(move |seen| if ignores { Reply::ok(BYTES) } else { ranged(seen, &Bytes::from_static(BYTES)) }).await;
        let size = BYTES.len();
        for (range, want) in [
            (ByteRange::From(0), 0..size),
            (ByteRange::From(7), 7..size),
            (ByteRange::Span { first: 2, last: 4 }, 2..5),
            (ByteRange::Span { first: 2, last: 4000 }, 2..size),
            (ByteRange::Last(3), size - 3..size),
        ] {
            assert_eq!(read(&origin, Some(range), &Who::Anybody).await.unwrap(), BYTES[want.clone()], "{range}");
            let body =
                origin.get(&target(), Kind::Blob, &digest_of(BYTES), Some(range), &[], &Who::Anybody).await.unwrap();
            assert!(body.partial);
            assert_eq!(
                (body.start, body.length, body.size),
                (want.start as u64, Some((want.end - want.start) as u64), Some(size as u64))
            );
        }
        let past = read(&origin, Some(ByteRange::From(size as u64)), &Who::Anybody).await;
        assert!(matches!(past, Err(OriginError::Range)), "{past:?}");
    }
}

#[tokio::test]
async fn another_range_than_asked_for_is_nonsense() {
    for content_range in ["bytes 0-4/21", "bytes 6-10/21", "bytes 5-9/*", "bytes */21", "nonsense"] {
        let (_server, origin) = serve(move |_| {
            Reply::status(206)
                .with("content-range", content_range)
                .content(Content::Whole(Bytes::from_static(b"01234")))
        })
        .await;
        let got = read(&origin, Some(ByteRange::Span { first: 5, last: 10 }), &Who::Anybody).await;
        assert!(matches!(got, Err(OriginError::Nonsense { .. })), "{content_range}: {got:?}");
    }
}

#[tokio::test]
async fn a_body_that_ends_early_is_an_error() {
    let (_server, origin) =
        serve(|_| Reply::status(200).content(Content::Broken(Bytes::from_static(b"some"), 21))).await;
    let mut body = origin.get(&target(), Kind::Blob, &digest_of(BYTES), None, &[], &Who::Anybody).await.unwrap();
    assert_eq!(body.next().await.unwrap().unwrap(), "some");
    assert!(matches!(body.next().await, Some(Err(OriginError::Unreachable { .. }))));
    assert!(body.next().await.is_none());
}

#[tokio::test]
async fn a_silent_body_is_an_error() {
    let (_server, origin) =
        serve(|_| Reply::status(200).content(Content::Silent(Bytes::from_static(b"some"), 21))).await;
    let error = read(&origin, None, &Who::Anybody).await.unwrap_err();
    assert!(matches!(&error, OriginError::Stalled { .. }) && error.is_outage(), "{error:?}");
}

#[tokio::test]
async fn more_bytes_than_the_range_announced_are_nonsense() {
    let (_server, origin) = serve(|_| {
        Reply::status(206)
            .with("content-range", "bytes 5-9/21")
            .content(Content::Chunked(Bytes::from_static(b"0123456")))
    })
    .await;
    let got = read(&origin, Some(ByteRange::Span { first: 5, last: 9 }), &Who::Anybody).await;
    assert!(matches!(got, Err(OriginError::Nonsense { .. })), "{got:?}");
}

#[tokio::test]
async fn fewer_bytes_than_the_range_announced_are_an_error() {
    let (_server, origin) = serve(|_| {
        Reply::status(206).with("content-range", "bytes 5-9/21").content(Content::Chunked(Bytes::from_static(b"01")))
    })
    .await;
    let got = read(&origin, Some(ByteRange::Span { first: 5, last: 9 }), &Who::Anybody).await;
    assert!(matches!(got, Err(OriginError::Unreachable { .. })), "{got:?}");
}

#[tokio::test]
async fn encoded_bytes_are_nonsense() {
    let (_server, origin) = serve(|_| Reply::ok(BYTES).with("content-encoding", "gzip")).await;
    assert!(matches!(read(&origin, None, &Who::Anybody).await, Err(OriginError::Nonsense { .. })));
}

#[tokio::test]
async fn a_status_means_what_the_caller_can_do() {
    type Check = fn(&OriginError) -> bool;
    let cases: [(u16, Option<&'static str>, Check); 9] = [
        (404, None, |e| matches!(e, OriginError::NotFound { .. })),
        (400, None, |e| matches!(e, OriginError::NotFound { .. })),
        (416, None, |e| matches!(e, OriginError::Range)),
        (429, Some("7"), |e| matches!(e, OriginError::Busy { retry_after, .. } if retry_after.as_secs() == 7)),
        (429, None, |e| matches!(e, OriginError::Busy { retry_after, .. } if retry_after.as_secs() == 1)),
        (503, Some("9999999"), |e| matches!(e, OriginError::Busy { retry_after, .. } if retry_after.as_secs() == 3600)),
        (503, None, |e| matches!(e, OriginError::Unreachable { .. })),
        (500, None, |e| matches!(e, OriginError::Unreachable { .. })),
        (402, None, |e| matches!(e, OriginError::Nonsense { .. })),
    ];
    for (status, retry_after, fits) in cases {
        let (_server, origin) = serve(move |_| {
            let reply = Reply::status(status);
            retry_after.map_or_else(|| Reply::status(status), |after| reply.with("retry-after", after))
        })
        .await;
        let error = read(&origin, None, &Who::Anybody).await.unwrap_err();
        assert!(fits(&error), "{status}: {error:?}");
    }
}

#[tokio::test]
async fn no_headers_in_time_is_an_outage() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let config = Config {
        registries: BTreeMap::from([(
            target().registry,
            RegistryConfig { endpoint: Some(endpoint.parse().unwrap()), ..RegistryConfig::default() },
        )]),
        headers_timeout: Duration::from_millis(100),
        ..Config::default()
    };
    let origin = Origin::new(config, Arc::new(Nobody), Metrics::new(&mut MetricsRegistry::default())).unwrap();
    let error = read(&origin, None, &Who::Anybody).await.unwrap_err();
    assert!(matches!(&error, OriginError::Unreachable { why, .. } if why.contains("no headers")), "{error:?}");
}

/// Decision 004.
#[tokio::test]
async fn after_a_silence_the_registry_is_left_alone() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let config = Config {
        registries: BTreeMap::from([(
            target().registry,
            RegistryConfig { endpoint: Some(endpoint.parse().unwrap()), ..RegistryConfig::default() },
        )]),
        headers_timeout: Duration::from_millis(100),
        ..Config::default()
    };
    let origin = Origin::new(config, Arc::new(Nobody), Metrics::new(&mut MetricsRegistry::default())).unwrap();
    assert!(matches!(read(&origin, None, &Who::Anybody).await, Err(OriginError::Unreachable { .. })));
    let since = tokio::time::Instant::now();
    let error = read(&origin, None, &Who::Anybody).await.unwrap_err();
    assert!(matches!(error, OriginError::Silent { .. }) && error.is_outage(), "{error:?}");
    assert!(since.elapsed() < Duration::from_millis(90), "it waited {:?}", since.elapsed());
    let elsewhere = Target { registry: "127.0.0.1:1".parse().unwrap(), ..target() };
    let other = origin.get(&elsewhere, Kind::Blob, &digest_of(BYTES), None, &[], &Who::Anybody).await;
    assert!(matches!(other, Err(OriginError::Refused { .. })), "another registry is asked");
    let first = listener.accept().await.unwrap();
    let second = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(second.is_err(), "it was asked again");
    drop(first);
}

#[tokio::test]
async fn a_tag_is_what_the_head_says_and_accept_is_the_callers() {
    let (server, origin) = serve(|_| {
        Reply::ok(BYTES).with("docker-content-digest", digest_of(b"x").to_string()).with("content-type", "a/manifest")
    })
    .await;
    let accept = [HeaderValue::from_static("a/manifest"), HeaderValue::from_static("b/index")];
    let tag: Reference = "v1".parse().unwrap();
    let head = origin.head_manifest(&target(), &tag, &accept, &Who::Anybody).await.unwrap();
    assert_eq!(head, Head { digest: digest_of(b"x"), media_type: "a/manifest".into(), size: BYTES.len() as u64 });
    let seen = server.seen();
    assert_eq!((seen.len(), seen[0].path.as_str()), (1, "/v2/library/app/manifests/v1"));
    assert_eq!(seen[0].headers.get_all("accept").iter().collect::<Vec<_>>(), ["a/manifest", "b/index"]);
}

#[tokio::test]
async fn a_tag_without_digest_in_its_head_is_hashed() {
    for head_status in [200, 405] {
        let (server, origin) = serve(move |seen| match (seen.method.as_str(), head_status) {
            ("HEAD", 405) => Reply::status(405),
            _ => Reply::ok(BYTES).with("content-type", "a/manifest"),
        })
        .await;
        let head = origin.head_manifest(&target(), &"v1".parse().unwrap(), &[], &Who::Anybody).await.unwrap();
        assert_eq!(head, Head { digest: digest_of(BYTES), media_type: "a/manifest".into(), size: BYTES.len() as u64 });
        let methods: Vec<String> = server.seen().iter().map(|seen| seen.method.to_string()).collect();
        assert_eq!(methods, ["HEAD", "GET"]);
    }
}

#[tokio::test]
async fn another_digest_than_asked_for_is_nonsense() {
    let (_server, origin) = serve(|_| {
        Reply::ok(BYTES).with("docker-content-digest", digest_of(b"x").to_string()).with("content-type", "a/manifest")
    })
    .await;
    let asked = Reference::Digest(digest_of(BYTES));
    let got = origin.head_manifest(&target(), &asked, &[], &Who::Anybody).await;
    assert!(matches!(got, Err(OriginError::Nonsense { .. })), "{got:?}");
}

#[tokio::test]
async fn a_manifest_that_must_be_hashed_has_a_bound() {
    let (_server, origin) = serve(|_| Reply::ok(vec![b' '; (8 << 20) + 1])).await;
    let got = origin.head_manifest(&target(), &"v1".parse().unwrap(), &[], &Who::Anybody).await;
    assert!(matches!(&got, Err(OriginError::Nonsense { why, .. }) if why.contains("8 MiB")), "{got:?}");
}

#[tokio::test]
async fn the_head_of_a_blob_needs_a_length() {
    let (_server, origin) = serve(|_| Reply::ok(BYTES).with("content-type", "a/blob")).await;
    let head = origin.head_blob(&target(), &digest_of(BYTES), &Who::Anybody).await.unwrap();
    assert_eq!((head.size, head.media_type.as_str()), (BYTES.len() as u64, "a/blob"));
    let (_server, origin) = serve(|_| Reply::status(200).content(Content::Chunked(Bytes::new()))).await;
    let head = origin.head_blob(&target(), &digest_of(BYTES), &Who::Anybody).await;
    assert!(matches!(head, Err(OriginError::Nonsense { .. })), "{head:?}");
}

/// An idle connection that the server closes at the moment it is used again is not an outage.
#[tokio::test]
async fn a_connection_that_died_in_the_pool_is_replaced() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let mut head = [0; 4096];
        let answer = [b"HTTP/1.1 200 OK\r\ncontent-length: 21\r\n\r\n", BYTES].concat();
        // One answer; then the next request is read and the connection ends without a word.
        let (mut first, _) = listener.accept().await.unwrap();
        assert!(first.read(&mut head).await.unwrap() > 0);
        first.write_all(&answer).await.unwrap();
        assert!(first.read(&mut head).await.unwrap() > 0);
        drop(first);
        let (mut second, _) = listener.accept().await.unwrap();
        assert!(second.read(&mut head).await.unwrap() > 0);
        second.write_all(&answer).await.unwrap();
        second
    });
    let origin = origin_with(RegistryConfig { endpoint: Some(endpoint.parse().unwrap()), ..RegistryConfig::default() });
    assert_eq!(read(&origin, None, &Who::Anybody).await.unwrap(), BYTES);
    assert_eq!(read(&origin, None, &Who::Anybody).await.unwrap(), BYTES);
    serving.await.unwrap();
}
