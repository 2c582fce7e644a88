//! Anonymous tokens, and the caller's own.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

#[tokio::test]
async fn a_public_blob_is_read_with_an_anonymous_token_that_is_fetched_once() {
    let server = TestServer::start(behind_tokens).await;
    let origin = origin(&server);
    for _ in 0..3 {
        assert_eq!(read(&origin, None, &Who::Anybody).await.unwrap(), BYTES);
    }
    let seen = server.seen();
    let asked: Vec<&str> = seen.iter().map(|seen| seen.path.split('/').nth(1).unwrap()).collect();
    assert_eq!(asked, ["v2", "token?service=the%20registry&scope=repository:library", "v2", "v2", "v2"]);
    assert!(seen[1].path.ends_with("/app:pull"));
    assert_eq!(seen[1].header("authorization"), None, "the token service gets no credential");
    assert_eq!(seen[0].header("accept-encoding"), Some("identity"));
    assert!(seen[0].header("user-agent").unwrap().starts_with("shoal-node/"));
    assert_eq!(origin.metrics.received(), 3 * BYTES.len() as u64);
}

#[tokio::test]
async fn requests_at_once_share_one_token() {
    let server = TestServer::start(behind_tokens).await;
    let origin = origin(&server);
    let reads = (0..20).map(|_| read(&origin, None, &Who::Anybody));
    for read in futures::future::join_all(reads).await {
        assert_eq!(read.unwrap(), BYTES);
    }
    assert_eq!(server.count("/token"), 1);
}

#[tokio::test]
async fn a_token_that_the_registry_no_longer_takes_is_renewed() {
    let given = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&given);
    let server = TestServer::start(move |base| {
        move |seen: &Seen| {
            let now = counter.load(Ordering::SeqCst);
            if seen.path.starts_with("/token") {
                counter.store(now + 1, Ordering::SeqCst);
                return Reply::ok(format!(r#"{{"access_token":"number-{}"}}"#, now + 1));
            }
            // The first token is taken once; then only later ones are.
            let used = seen.header("authorization").map(String::from);
            let fine = match used.as_deref() {
                Some("Bearer number-1") => seen.header("range").is_none(),
                Some(_) => true,
                None => false,
            };
            if fine {
                ranged(seen, &Bytes::from_static(BYTES))
            } else {
                Reply::status(401).with("www-authenticate", challenge(&base))
            }
        }
    })
    .await;
    let origin = origin(&server);
    read(&origin, None, &Who::Anybody).await.unwrap();
    assert_eq!(read(&origin, Some(ByteRange::From(5)), &Who::Anybody).await.unwrap(), BYTES[5..]);
    assert_eq!(given.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_token_is_not_used_after_it_expired() {
    let server = TestServer::start(behind_tokens).await;
    let origin = origin(&server);
    read(&origin, None, &Who::Anybody).await.unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(295)).await;
    tokio::time::resume();
    read(&origin, None, &Who::Anybody).await.unwrap();
    assert_eq!(server.count("/token"), 2);
}

#[tokio::test]
async fn the_challenge_comes_back_unchanged_when_the_token_service_says_no() {
    let server = TestServer::start(|base| {
        move |seen: &Seen| {
            if seen.path.starts_with("/token") {
                return Reply::status(401).with("www-authenticate", "Basic realm=\"the token service's own\"");
            }
            Reply::status(401)
                .with("www-authenticate", challenge(&base))
                .with("www-authenticate", "Basic realm=\"second\"")
        }
    })
    .await;
    let error = read(&origin(&server), None, &Who::Anybody).await.unwrap_err();
    let OriginError::Unauthorized { challenges, .. } = error else { panic!("{error:?}") };
    assert_eq!(challenges, [challenge(&server.base()).as_str(), "Basic realm=\"second\""]);
}

#[tokio::test]
async fn the_first_challenge_comes_back_when_the_anonymous_token_is_not_enough() {
    for status in [401, 403] {
        let server = TestServer::start(move |base| {
            move |seen: &Seen| match (seen.path.starts_with("/token"), seen.header("authorization")) {
                (true, _) => Reply::ok(r#"{"token":"weak"}"#),
                (false, None) => Reply::status(401).with("www-authenticate", challenge(&base)),
                (false, Some(_)) if status == 401 => {
                    Reply::status(401).with("www-authenticate", "Bearer realm=\"x\",error=\"insufficient_scope\"")
                }
                (false, Some(_)) => Reply::status(403),
            }
        })
        .await;
        let origin = origin(&server);
        // The second time the token is known, and the registry never sends the first challenge again.
        for _ in 0..2 {
            let error = read(&origin, None, &Who::Anybody).await.unwrap_err();
            let OriginError::Unauthorized { challenges, .. } = error else { panic!("{error:?}") };
            assert_eq!(challenges, [challenge(&server.base()).as_str()], "{status}");
        }
    }
}

#[tokio::test]
async fn a_basic_challenge_is_relayed_and_no_token_is_sought() {
    let server =
        TestServer::start(|_| |_: &Seen| Reply::status(401).with("www-authenticate", "Basic realm=\"r\"")).await;
    let error = read(&origin(&server), None, &Who::Anybody).await.unwrap_err();
    assert!(matches!(&error, OriginError::Unauthorized { challenges, .. } if challenges == &["Basic realm=\"r\""]));
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn the_callers_header_is_sent_unchanged_and_its_refusal_comes_back() {
    let server = TestServer::start(|base| {
        move |seen: &Seen| match seen.header("authorization") {
            Some("Bearer the-callers-own") => ranged(seen, &Bytes::from_static(BYTES)),
            Some("Bearer known-but-denied") => Reply::status(403),
            _ => Reply::status(401).with("www-authenticate", challenge(&base)),
        }
    })
    .await;
    let origin = origin(&server);
    let own = credential("Bearer the-callers-own");
    assert_eq!(read(&origin, None, &Who::Caller(own.clone())).await.unwrap(), BYTES);
    let denied = credential("Bearer known-but-denied");
    assert!(matches!(read(&origin, None, &Who::Caller(denied.clone())).await, Err(OriginError::Denied { .. })));
    let wrong = credential("Bearer wrong");
    let error = read(&origin, None, &Who::Caller(wrong.clone())).await.unwrap_err();
    assert!(matches!(&error, OriginError::Unauthorized { challenges, .. } if challenges.len() == 1));
    assert_eq!(server.count("/token"), 0, "no token is fetched on behalf of a caller");
    assert!(!format!("{own:?} {error:?} {error}").contains("own\""), "no credential in text");
}

#[tokio::test]
async fn a_token_service_that_is_down_is_an_outage_and_no_denial() {
    let server = TestServer::start(|base| {
        move |seen: &Seen| {
            if seen.path.starts_with("/token") {
                return Reply::status(503);
            }
            Reply::status(401).with("www-authenticate", challenge(&base))
        }
    })
    .await;
    let error = read(&origin(&server), None, &Who::Anybody).await.unwrap_err();
    assert!(error.is_outage(), "{error:?}");
}
