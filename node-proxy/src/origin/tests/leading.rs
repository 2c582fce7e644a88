//! Where redirects, realms, names and proxies may lead.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn serving(_: String) -> impl Fn(&Seen) -> Reply + Send + Sync + 'static {
    |seen| ranged(seen, &Bytes::from_static(BYTES))
}

/// A registry whose blobs are elsewhere.
fn redirecting(to: String) -> impl FnOnce(String) -> Box<dyn Fn(&Seen) -> Reply + Send + Sync> {
    move |_| Box::new(move |_| Reply::status(307).with("location", format!("{to}/storage?signature=secret")))
}

#[tokio::test]
async fn a_redirect_to_another_origin_carries_no_credential_but_the_range() {
    let storage = TestServer::start(serving).await;
    let server = TestServer::start(redirecting(storage.base())).await;
    let own = credential("Bearer own");
    let got = read(&origin(&server), Some(ByteRange::From(3)), &Who::Caller(own.clone())).await.unwrap();
    assert_eq!(got, BYTES[3..]);
    assert_eq!(server.seen()[0].header("authorization"), Some("Bearer own"));
    let seen = &storage.seen()[0];
    assert_eq!((seen.header("authorization"), seen.header("range")), (None, Some("bytes=3-")));
    assert_eq!(seen.path, "/storage?signature=secret");
}

#[tokio::test]
async fn a_redirect_within_the_registry_keeps_the_credential() {
    let server = TestServer::start(|_| {
        |seen: &Seen| match seen.path.as_str() {
            "/moved" => ranged(seen, &Bytes::from_static(BYTES)),
            _ => Reply::status(302).with("location", "/moved"),
        }
    })
    .await;
    let own = credential("Bearer own");
    assert_eq!(read(&origin(&server), None, &Who::Caller(own.clone())).await.unwrap(), BYTES);
    assert_eq!(server.seen()[1].header("authorization"), Some("Bearer own"));
}

#[tokio::test]
async fn a_credential_that_was_dropped_does_not_come_back() {
    let home = Arc::new(parking_lot::Mutex::new(String::new()));
    let back = Arc::clone(&home);
    let storage =
        TestServer::start(move |_| move |_: &Seen| Reply::status(307).with("location", format!("{}/end", back.lock())))
            .await;
    let to = storage.base();
    let server = TestServer::start(move |_| {
        move |seen: &Seen| match seen.path.as_str() {
            "/end" => ranged(seen, &Bytes::from_static(BYTES)),
            _ => Reply::status(307).with("location", to.clone()),
        }
    })
    .await;
    *home.lock() = server.base();
    let own = credential("Bearer own");
    assert_eq!(read(&origin(&server), None, &Who::Caller(own.clone())).await.unwrap(), BYTES);
    assert_eq!(server.seen()[1].header("authorization"), None);
}

#[tokio::test]
async fn a_redirect_to_an_address_that_is_not_named_is_refused() {
    let storage = TestServer::start(serving).await;
    let server = TestServer::start(redirecting(storage.base())).await;
    // The endpoint is named by being written as an address; its neighbour on the same address is not.
    let origin = origin_with(RegistryConfig { allow_addresses: Vec::new(), ..settings(&server) });
    let error = read(&origin, None, &Who::Anybody).await.unwrap_err();
    assert!(matches!(&error, OriginError::Refused { why, .. } if why.contains("loopback")), "{error:?}");
    assert_eq!(storage.seen().len(), 0);
    assert!(!error.to_string().contains("secret"));
}

#[tokio::test]
async fn a_name_that_resolves_to_loopback_is_refused() {
    let storage = TestServer::start(serving).await;
    let to = format!("http://localhost:{}", storage.addr.port());
    let server = TestServer::start(redirecting(to)).await;
    let origin = origin_with(RegistryConfig { allow_addresses: Vec::new(), ..settings(&server) });
    assert!(matches!(read(&origin, None, &Who::Anybody).await, Err(OriginError::Refused { .. })));
    assert_eq!(storage.seen().len(), 0);
}

#[tokio::test]
async fn a_token_realm_at_an_address_that_is_not_named_is_refused() {
    let realm = TestServer::start(|_| |_: &Seen| Reply::ok(r#"{"token":"t"}"#)).await;
    let at = realm.base();
    let server =
        TestServer::start(move |_| move |_: &Seen| Reply::status(401).with("www-authenticate", challenge(&at))).await;
    let origin = origin_with(RegistryConfig { allow_addresses: Vec::new(), ..settings(&server) });
    assert!(matches!(read(&origin, None, &Who::Anybody).await, Err(OriginError::Refused { .. })));
    assert_eq!(realm.seen().len(), 0);
}

#[tokio::test]
async fn a_registry_without_settings_on_loopback_is_refused() {
    let server = TestServer::start(serving).await;
    let origin = origin(&server);
    let target = Target { registry: server.addr.to_string().parse().unwrap(), ..target() };
    let got = origin.get(&target, Kind::Blob, &digest_of(BYTES), None, &[], &Who::Anybody).await;
    assert!(matches!(got, Err(OriginError::Refused { .. })));
}

#[tokio::test]
async fn tls_is_verified_against_the_configured_ca() {
    let server = TestServer::start_tls(serving).await;
    assert_eq!(read(&origin(&server), None, &Who::Anybody).await.unwrap(), BYTES);
    let stranger = origin_with(RegistryConfig { ca: Vec::new(), ..settings(&server) });
    let error = read(&stranger, None, &Who::Anybody).await.unwrap_err();
    assert!(matches!(&error, OriginError::Unreachable { why, .. } if why.contains("certificate")), "{error:?}");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn https_never_becomes_plain_http_unless_that_is_named() {
    let storage = TestServer::start(serving).await;
    let to = storage.base();
    let server = TestServer::start_tls(redirecting(to)).await;
    let error = read(&origin(&server), None, &Who::Anybody).await.unwrap_err();
    assert!(matches!(&error, OriginError::Refused { why, .. } if why.contains("plain HTTP")), "{error:?}");
    assert_eq!(storage.seen().len(), 0);
    let named = origin_with(RegistryConfig { plain_http: true, ..settings(&server) });
    let own = credential("Bearer own");
    assert_eq!(read(&named, None, &Who::Caller(own.clone())).await.unwrap(), BYTES);
    assert_eq!(storage.seen()[0].header("authorization"), None);
}

#[tokio::test]
async fn redirects_end_after_five() {
    let server = TestServer::start(|_| |_: &Seen| Reply::status(307).with("location", "/again")).await;
    assert!(matches!(read(&origin(&server), None, &Who::Anybody).await, Err(OriginError::Nonsense { .. })));
    assert_eq!(server.seen().len(), 6);
}

#[tokio::test]
async fn the_storage_saying_403_is_not_the_registry_denying_access() {
    let storage = TestServer::start(|_| |_: &Seen| Reply::status(403)).await;
    let server = TestServer::start(redirecting(storage.base())).await;
    let error = read(&origin(&server), None, &Who::Anybody).await.unwrap_err();
    assert!(matches!(error, OriginError::Unreachable { .. }), "{error:?}");
}

/// A proxy that knows CONNECT alone, and one word of authorization. Gives the heads of the requests it got.
async fn proxy() -> (std::net::SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (heads, told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let heads = heads.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let to = head.split(' ').nth(1).unwrap().to_owned();
                heads.send(head).unwrap();
                let mut server = tokio::net::TcpStream::connect(to).await.unwrap();
                client.write_all(b"HTTP/1.1 200 fine\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (addr, told)
}

#[tokio::test]
async fn a_configured_proxy_is_gone_through_by_connect() {
    let server = TestServer::start_tls(serving).await;
    let (addr, mut told) = proxy().await;
    let proxied = RegistryConfig { proxy: Some(format!("http://u:p@{addr}").parse().unwrap()), ..settings(&server) };
    assert_eq!(read(&origin_with(proxied), None, &Who::Anybody).await.unwrap(), BYTES);
    let head = told.recv().await.unwrap();
    assert!(head.starts_with(&format!("CONNECT {} ", server.addr)), "{head}");
    assert!(head.to_ascii_lowercase().contains("proxy-authorization: basic dtpw"), "{head}");
}

#[tokio::test]
async fn a_proxy_is_not_asked_for_addresses_that_are_not_named() {
    let storage = TestServer::start_tls(serving).await;
    let server = TestServer::start_tls(redirecting(storage.base())).await;
    let (addr, mut told) = proxy().await;
    let proxied = RegistryConfig {
        proxy: Some(format!("http://{addr}").parse().unwrap()),
        allow_addresses: Vec::new(),
        ..settings(&server)
    };
    assert!(matches!(read(&origin_with(proxied), None, &Who::Anybody).await, Err(OriginError::Refused { .. })));
    assert!(told.recv().await.unwrap().contains(&server.addr.to_string()));
    assert!(told.try_recv().is_err());
}

#[tokio::test]
async fn a_ca_that_is_none_is_told_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, "not a certificate").unwrap();
    let server = TestServer::start(serving).await;
    let config = Config {
        registries: BTreeMap::from([(
            target().registry,
            RegistryConfig { ca: vec![path.clone()], ..settings(&server) },
        )]),
        ..Config::default()
    };
    let error = Origin::new(config, Arc::new(Nobody), Metrics::new(&mut MetricsRegistry::default())).err().unwrap();
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
}
