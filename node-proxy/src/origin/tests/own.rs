//! Credentials of this node's own.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// base64 of `seed:secret`
const LOGIN: &str = "Basic c2VlZDpzZWNyZXQ=";

struct With {
    origin: Arc<Origin>,
    folder: tempfile::TempDir,
}

fn with(server: &TestServer, docker_config: &str) -> With {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, docker_config).unwrap();
    let config = Config {
        registries: BTreeMap::from([(target().registry, settings(server))]),
        docker_config: Some(path),
        ..Config::default()
    };
    let origin = Origin::new(config, Arc::new(Nobody), Metrics::new(&mut MetricsRegistry::default())).unwrap();
    With { origin, folder }
}

/// Wants the login itself.
fn basic(_: String) -> impl Fn(&Seen) -> Reply + Send + Sync + 'static {
    |seen| match seen.header("authorization") {
        Some(LOGIN) => ranged(seen, &Bytes::from_static(BYTES)),
        _ => Reply::status(401).with("www-authenticate", r#"Basic realm="r""#),
    }
}

/// Wants a token that the login gets.
fn bearer(base: String) -> impl Fn(&Seen) -> Reply + Send + Sync + 'static {
    move |seen| {
        let token = match seen.header("authorization") {
            Some(LOGIN) if seen.path.starts_with("/token") => "seeds",
            _ => "anonymous",
        };
        if seen.path.starts_with("/token") {
            return Reply::ok(format!(r#"{{"token":"{token}","expires_in":300}}"#));
        }
        match seen.header("authorization") {
            Some("Bearer seeds") => ranged(seen, &Bytes::from_static(BYTES)),
            _ => Reply::status(401).with("www-authenticate", challenge(&base)),
        }
    }
}

const AUTHS: &str = r#"{"auths":{"registry.example":{"auth":"c2VlZDpzZWNyZXQ="}}}"#;

#[tokio::test]
async fn the_login_is_used_as_the_registry_wants_it_and_does_not_make_anything_public() {
    for server in [TestServer::start(basic).await, TestServer::start(bearer).await] {
        let own = with(&server, AUTHS);
        for _ in 0..2 {
            assert_eq!(read(&own.origin, None, &Who::Own).await.unwrap(), BYTES);
        }
        assert!(matches!(read(&own.origin, None, &Who::Anybody).await, Err(OriginError::Unauthorized { .. })));
        let access = own.origin.access(&target(), Kind::Blob, &digest_of(BYTES)).await.unwrap();
        assert!(matches!(access, Access::Private { .. }));
    }
}

#[tokio::test]
async fn without_a_login_for_the_registry_it_is_refused_as_without_any() {
    let server = TestServer::start(basic).await;
    for config in [r#"{"auths":{"other.example":{"auth":"c2VlZDpzZWNyZXQ="}}}"#, "{}"] {
        let read = read(&with(&server, config).origin, None, &Who::Own).await;
        assert!(matches!(read, Err(OriginError::Unauthorized { .. })), "{read:?}");
    }
    assert_eq!(server.seen().len(), 0);
}

#[tokio::test]
async fn a_password_that_was_changed_is_read_anew_once_the_registry_refuses_the_old() {
    let server = TestServer::start(basic).await;
    // base64 of `seed:old`
    let own = with(&server, r#"{"auths":{"registry.example":{"auth":"c2VlZDpvbGQ="}}}"#);
    assert!(matches!(read(&own.origin, None, &Who::Own).await, Err(OriginError::Unauthorized { .. })));
    std::fs::write(own.folder.path().join("config.json"), AUTHS).unwrap();
    assert_eq!(read(&own.origin, None, &Who::Own).await.unwrap(), BYTES);
}

#[tokio::test]
async fn a_file_that_is_gone_is_named() {
    let server = TestServer::start(basic).await;
    let own = with(&server, AUTHS);
    std::fs::remove_file(own.folder.path().join("config.json")).unwrap();
    let said = read(&own.origin, None, &Who::Own).await.unwrap_err().to_string();
    assert!(said.contains("config.json") && said.contains("registry.example"), "{said}");
}

#[tokio::test]
async fn a_credential_helper_is_asked_for_the_registry() {
    let server = TestServer::start(basic).await;
    let own = with(&server, r#"{"credHelpers":{"registry.example":"shoal-test"}}"#);
    let program = own.folder.path().join("docker-credential-shoal-test");
    let script = r#"#!/bin/sh
[ "$1" = get ] && [ "$(cat)" = registry.example ] || exit 1
echo '{"ServerURL":"registry.example","Username":"seed","Secret":"secret"}'
"#;
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let said = read(&own.origin, None, &Who::Own).await.unwrap_err().to_string();
    assert!(said.contains("docker-credential-shoal-test: start it"), "it is not on the PATH: {said}");
    let found = super::super::own::ask_at(&program, "registry.example").await.unwrap();
    assert_eq!(found, ("seed".to_owned(), "secret".to_owned()));
    let said = super::super::own::ask_at(&program, "other.example").await.unwrap_err();
    assert!(said.contains("it has nothing for other.example"), "{said}");
}
