//! Who may read a repository, and for how long that is remembered.

use super::*;

async fn later(by: Duration) {
    tokio::time::pause();
    tokio::time::advance(by).await;
    tokio::time::resume();
}

async fn ask(origin: &Origin) -> Result<Access, OriginError> {
    origin.access(&target(), Kind::Blob, &digest_of(BYTES)).await
}

#[tokio::test]
async fn what_an_anonymous_token_reads_is_public_and_asked_once() {
    let server = TestServer::start(behind_tokens).await;
    let origin = origin(&server);
    let asked = futures::future::join_all((0..10).map(|_| ask(&origin))).await;
    assert!(asked.into_iter().all(|access| access.unwrap() == Access::Public));
    assert_eq!(server.count("/v2/"), 2, "without a token, and with one");
    assert!(server.seen().iter().filter(|seen| seen.path.starts_with("/v2/")).all(|seen| seen.method == "HEAD"));
    later(Duration::from_secs(299)).await;
    ask(&origin).await.unwrap();
    assert_eq!(server.count("/v2/"), 2);
    later(Duration::from_secs(2)).await;
    ask(&origin).await.unwrap();
    assert!(server.count("/v2/") > 2);
}

#[tokio::test]
async fn a_private_repository_comes_with_its_challenges_and_is_asked_again_soon() {
    let server = TestServer::start(|base| {
        move |seen: &Seen| {
            if seen.path.starts_with("/token") {
                return Reply::status(403);
            }
            Reply::status(401).with("www-authenticate", challenge(&base))
        }
    })
    .await;
    let origin = origin(&server);
    let want = Access::Private { challenges: vec![HeaderValue::try_from(challenge(&server.base())).unwrap()] };
    assert_eq!(ask(&origin).await.unwrap(), want);
    assert_eq!(ask(&origin).await.unwrap(), want);
    assert_eq!(server.count("/v2/"), 1);
    later(Duration::from_secs(31)).await;
    assert_eq!(ask(&origin).await.unwrap(), want);
    assert_eq!(server.count("/v2/"), 2);
}

#[tokio::test]
async fn what_the_caller_may_read_does_not_make_it_public() {
    let server = TestServer::start(|base| {
        move |seen: &Seen| match seen.header("authorization") {
            Some("Bearer own") => ranged(seen, &Bytes::from_static(BYTES)),
            _ if seen.path.starts_with("/token") => Reply::status(403),
            _ => Reply::status(401).with("www-authenticate", challenge(&base)),
        }
    })
    .await;
    let origin = origin(&server);
    let own = credential("Bearer own");
    read(&origin, None, &Who::Caller(own.clone())).await.unwrap();
    assert!(matches!(ask(&origin).await.unwrap(), Access::Private { .. }));
}

#[tokio::test]
async fn an_answer_about_a_tag_answers_who_may_read() {
    let server = TestServer::start(|_| {
        |_: &Seen| {
            Reply::ok(BYTES).with("docker-content-digest", digest_of(BYTES).to_string()).with("content-type", "a/b")
        }
    })
    .await;
    let origin = origin(&server);
    origin.head_manifest(&target(), &"v1".parse().unwrap(), &[], &Who::Anybody).await.unwrap();
    assert_eq!(ask(&origin).await.unwrap(), Access::Public);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_redirect_to_the_storage_is_answer_enough() {
    let server =
        TestServer::start(|_| |_: &Seen| Reply::status(307).with("location", "http://storage.invalid/signed")).await;
    assert_eq!(ask(&origin(&server)).await.unwrap(), Access::Public);
}

#[tokio::test]
async fn a_digest_that_is_missing_says_nothing() {
    let server = TestServer::start(|_| |_: &Seen| Reply::status(404)).await;
    let origin = origin(&server);
    for asked in 1..3 {
        assert!(matches!(ask(&origin).await, Err(OriginError::NotFound { .. })));
        assert_eq!(server.seen().len(), asked);
    }
}

#[tokio::test]
async fn with_the_origin_down_what_was_public_within_a_day_still_is() {
    let down = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let switch = Arc::clone(&down);
    let server = TestServer::start(move |_| {
        move |seen: &Seen| {
            if switch.load(std::sync::atomic::Ordering::SeqCst) {
                return Reply::status(500);
            }
            ranged(seen, &Bytes::from_static(BYTES))
        }
    })
    .await;
    let origin = origin(&server);
    assert_eq!(ask(&origin).await.unwrap(), Access::Public);
    down.store(true, std::sync::atomic::Ordering::SeqCst);
    later(Duration::from_secs(23 * 3600)).await;
    assert_eq!(ask(&origin).await.unwrap(), Access::Public);
    later(Duration::from_secs(2 * 3600)).await;
    assert!(matches!(ask(&origin).await, Err(OriginError::Unreachable { .. })));
    let other = Target { repository: "never/asked".parse().unwrap(), ..target() };
    let never = origin.access(&other, Kind::Blob, &digest_of(BYTES)).await;
    assert!(matches!(never, Err(OriginError::Unreachable { .. })));
}

/// Everybody may read `library/app`, where the bytes are, and `library/other`, where nothing is.
async fn two_repositories() -> (TestServer, Arc<Origin>, Target) {
    let server = TestServer::start(|_| {
        |seen: &Seen| match seen.path.starts_with("/v2/library/app/") {
            true => ranged(seen, &Bytes::from_static(BYTES)),
            false => Reply::status(404),
        }
    })
    .await;
    let origin = origin(&server);
    (server, origin, Target { repository: "library/other".parse().unwrap(), ..target() })
}

#[tokio::test]
async fn i10_what_is_in_one_repository_is_not_given_by_another() {
    let (server, origin, other) = two_repositories().await;
    let digest = digest_of(BYTES);
    for _ in 0..2 {
        assert_eq!(origin.reader(&target(), Kind::Blob, &digest, None).await.unwrap(), Who::Anybody);
    }
    assert_eq!(server.seen().len(), 1, "the answer about access says that it is there");
    let elsewhere = origin.reader(&other, Kind::Blob, &digest, None).await;
    assert!(matches!(elsewhere, Err(OriginError::NotFound { .. })), "{elsewhere:?}");
    // What a manifest in it names is there, and nobody is asked.
    let before = server.seen().len();
    origin.learn_named(&target(), [digest_of(b"a layer")]);
    origin.reader(&target(), Kind::Blob, &digest_of(b"a layer"), None).await.unwrap();
    assert_eq!(server.seen().len(), before);
}

#[tokio::test]
async fn i10_a_caller_is_asked_about_once_and_each_credential_for_itself() {
    let server = TestServer::start(|base| {
        move |seen: &Seen| match seen.header("authorization") {
            Some("Bearer one" | "Bearer two") => ranged(seen, &Bytes::from_static(BYTES)),
            _ if seen.path.starts_with("/token") => Reply::status(403),
            _ => Reply::status(401).with("www-authenticate", challenge(&base)),
        }
    })
    .await;
    let origin = origin(&server);
    let digest = digest_of(BYTES);
    let asked =
        |with: &'static str| server.seen().iter().filter(|seen| seen.header("authorization") == Some(with)).count();
    let reader = |text: &'static str| {
        let origin = Arc::clone(&origin);
        async move { origin.reader(&target(), Kind::Blob, &digest, Some(&credential(text))).await }
    };
    for _ in 0..3 {
        let all = futures::future::join_all((0..4).map(|_| reader("Bearer one"))).await;
        assert!(all.into_iter().all(|who| matches!(who.unwrap(), Who::Caller(_))));
        assert!(matches!(reader("Bearer three").await, Err(OriginError::Unauthorized { .. })));
    }
    assert_eq!((asked("Bearer one"), asked("Bearer three")), (1, 1));
    reader("Bearer two").await.unwrap();
    assert_eq!(asked("Bearer two"), 1);
}

#[tokio::test]
async fn i10_with_the_registry_down_nobody_gets_by_one_repository_what_is_in_another_nor_afterwards() {
    for when in [WhenDown::Refuse, WhenDown::SameCredential, WhenDown::Anyone] {
        let down = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let switch = Arc::clone(&down);
        let server = TestServer::start(move |_| {
            move |seen: &Seen| match seen.path.contains(&digest_of(BYTES).to_string()) {
                _ if switch.load(std::sync::atomic::Ordering::SeqCst) => Reply::status(500),
                true => ranged(seen, &Bytes::from_static(BYTES)),
                false => Reply::status(404),
            }
        })
        .await;
        let config = Config {
            registries: BTreeMap::from([(target().registry, settings(&server))]),
            private_when_down: when,
            ..Config::default()
        };
        let origin = Origin::new(config, Arc::new(Nobody), Metrics::new(&mut MetricsRegistry::default())).unwrap();
        let own = credential("Bearer own");
        for caller in [None, Some(&own)] {
            origin.reader(&target(), Kind::Blob, &digest_of(BYTES), caller).await.unwrap();
        }
        let elsewhere = digest_of(b"in another repository, and held here");
        down.store(true, std::sync::atomic::Ordering::SeqCst);
        for caller in [None, Some(&own)] {
            let got = origin.reader(&target(), Kind::Blob, &elsewhere, caller).await;
            assert!(got.as_ref().is_err_and(OriginError::is_outage), "{when:?}: {got:?}");
        }
        down.store(false, std::sync::atomic::Ordering::SeqCst);
        later(Duration::from_secs(10)).await;
        let got = origin.reader(&target(), Kind::Blob, &elsewhere, None).await;
        assert!(matches!(got, Err(OriginError::NotFound { .. })), "{when:?}: {got:?}");
    }
}
