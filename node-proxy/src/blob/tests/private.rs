//! Flights of what only some callers may read (I10): on whose behalf the origin is read.

use super::*;

fn wanted_by(digest: Digest, token: &str) -> Want {
    Want { who: caller(token), ..want(digest) }
}

async fn whole(engine: &Engine, want: Want) -> Result<Bytes, ReadError> {
    let opened = engine.open(want, tokio::time::Instant::now()).await?;
    let mut reading = opened.read(0..opened.size());
    let mut all = Vec::new();
    while let Some(part) = reading.next().await {
        all.extend_from_slice(&part?);
    }
    Ok(all.into())
}

fn lab_for(only: &[&'static str]) -> (Lab, Bytes, Digest) {
    let lab = Lab::new();
    let bytes = content(3 * BLOCK, 1);
    let digest = lab.publish(&bytes);
    *lab.registry.only.lock() = Some(only.to_vec());
    (lab, bytes, digest)
}

#[tokio::test]
async fn i10_the_origin_is_read_on_behalf_of_who_wants_it() {
    let (lab, bytes, digest) = lab_for(&["mine"]);
    assert_eq!(whole(&lab.node("one"), wanted_by(digest, "mine")).await.unwrap(), bytes);
}

#[tokio::test]
async fn i10_a_refused_reader_hears_it_and_not_that_the_blob_is_missing() {
    let (lab, _, digest) = lab_for(&["another's"]);
    for (away, who) in [(true, caller("mine")), (false, caller("mine")), (false, origin::Who::Anybody)] {
        lab.cluster.away.store(away, Ordering::SeqCst);
        let error = whole(&lab.node("one"), Want { who, ..want(digest) }).await.unwrap_err();
        match &error {
            ReadError::Origin(_, why) if matches!(**why, OriginError::Unauthorized { .. }) => {}
            // Nobody else came who may read it.
            ReadError::Slow { .. } if !away => {}
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn i10_a_flight_that_the_origin_refuses_goes_on_with_the_credential_of_another_reader() {
    for away in [false, true] {
        let (lab, bytes, digest) = lab_for(&["good"]);
        lab.cluster.away.store(away, Ordering::SeqCst);
        let one = lab.node("one");
        let (over, good) = tokio::join!(whole(&one, wanted_by(digest, "over")), whole(&one, wanted_by(digest, "good")));
        assert_eq!(good.unwrap(), bytes);
        assert_eq!(over.unwrap(), bytes, "it is one flight");
        assert_eq!(lab.reads(), 2);
    }
}

#[tokio::test]
async fn i10_a_reader_with_a_credential_that_counts_may_come_after_the_refusal() {
    let (lab, bytes, digest) = lab_for(&["good"]);
    let one = lab.node("one");
    let over = tokio::spawn({
        let one = one.clone();
        async move { whole(&one, wanted_by(digest, "over")).await }
    });
    tokio::time::timeout(Duration::from_secs(5), async {
        while lab.reads() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(whole(&one, wanted_by(digest, "good")).await.unwrap(), bytes);
    // It was let wait: the flight that refused it may have gone on for the other.
    if let Ok(got) = over.await.unwrap() {
        assert_eq!(got, bytes);
    }
}

#[tokio::test]
async fn i10_a_node_whose_reader_was_refused_leaves_the_permit_to_one_that_may() {
    let (lab, bytes, digest) = lab_for(&["good"]);
    let (one, two) = (lab.node("one"), lab.node("two"));
    let (over, good) = tokio::join!(whole(&one, wanted_by(digest, "over")), whole(&two, wanted_by(digest, "good")));
    assert_eq!(good.unwrap(), bytes);
    assert_eq!(over.unwrap(), bytes, "from its peer: its own registry said that it may, before it asked here");
    assert_eq!(lab.registry.bytes.load(Ordering::SeqCst), 3 * BLOCK);
}

#[tokio::test]
async fn i10_whoever_is_refused_hears_the_registrys_challenge_and_not_what_our_own_login_came_to() {
    use crate::origin::test_registry::{Reply, Seen, TestServer, ranged};
    use crate::origin::{Config, Metrics, Nobody, Origin, RegistryConfig};
    const CHALLENGE: &str = r#"Basic realm="the registry""#;
    let bytes = content(10, 1);
    let content = bytes.clone();
    // base64 of `seed:secret`
    let server = TestServer::start(|_| {
        move |seen: &Seen| match seen.header("authorization") {
            Some("Basic c2VlZDpzZWNyZXQ=") => ranged(seen, &content),
            _ => Reply::status(401).with("www-authenticate", CHALLENGE),
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let read = async |config: &str, gone: bool| {
        std::fs::write(&path, config).unwrap();
        let settings = RegistryConfig {
            endpoint: Some(server.base().parse().unwrap()),
            allow_addresses: vec!["127.0.0.0/8".parse().unwrap()],
            ..RegistryConfig::default()
        };
        let config = Config {
            registries: [(target().registry, settings)].into(),
            docker_config: Some(path.clone()),
            ..Config::default()
        };
        let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
        let origin = Origin::new(config, Arc::new(Nobody), metrics).unwrap();
        if gone {
            std::fs::remove_file(&path).unwrap();
        }
        Upstream::read(&*origin, &wanted_by(digest_of(&bytes), "Bearer over"), None).await.map(|body| body.size)
    };
    let login = r#"{"auths":{"registry.example":{"auth":"c2VlZDpzZWNyZXQ="}}}"#;
    assert_eq!(read(login, false).await.unwrap(), Some(10), "by our own login, once the caller's token is over");
    for (config, gone) in [("{}", false), (login, true)] {
        match read(config, gone).await {
            Err(OriginError::Unauthorized { challenges, .. }) => assert_eq!(challenges, [CHALLENGE]),
            other => panic!("{other:?}"),
        }
    }
}
