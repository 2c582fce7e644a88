//! The client against real servers on loopback, which the address rule is told to allow.

use std::time::Duration;

use bytes::Bytes;
use prometheus_client::registry::Registry as MetricsRegistry;

use super::test_registry::{Content, Reply, Seen, TestServer, digest_of, ranged};
use super::*;
use shoal_proto::Kind;

mod access;
mod leading;
mod own;
mod reading;
mod tokens;

const BYTES: &[u8] = b"some bytes of a layer";

fn target() -> Target {
    Target { registry: "registry.example".parse().unwrap(), repository: "library/app".parse().unwrap() }
}

/// Settings that reach a test server as `registry.example`, with every loopback address named.
fn settings(server: &TestServer) -> RegistryConfig {
    RegistryConfig {
        endpoint: Some(server.base().parse().unwrap()),
        ca: server.ca.iter().map(|(path, _)| path.clone()).collect(),
        allow_addresses: vec!["127.0.0.0/8".parse().unwrap()],
        ..RegistryConfig::default()
    }
}

fn origin_with(settings: RegistryConfig) -> Arc<Origin> {
    let config = Config {
        registries: BTreeMap::from([(target().registry, settings)]),
        body_idle_timeout: Duration::from_millis(300),
        ..Config::default()
    };
    Origin::new(config, Arc::new(Nobody), Metrics::new(&mut MetricsRegistry::default())).unwrap()
}

fn origin(server: &TestServer) -> Arc<Origin> {
    origin_with(settings(server))
}

fn credential(text: &str) -> Credential {
    Credential::new(HeaderValue::try_from(text).unwrap())
}

/// All bytes of a blob, or the first error.
async fn read(origin: &Origin, range: Option<ByteRange>, who: &Who) -> Result<Bytes, OriginError> {
    let digest = digest_of(BYTES);
    let mut body = origin.get(&target(), Kind::Blob, &digest, range, &[], who).await?;
    let mut all = Vec::new();
    while let Some(part) = body.next().await {
        all.extend_from_slice(&part?);
    }
    assert!(body.next().await.is_none(), "a body stays ended");
    Ok(all.into())
}

const CHALLENGE_TAIL: &str = r#"service="the registry",scope="repository:library/app:pull",error="odd, but relayed""#;

fn challenge(realm: &str) -> String {
    format!(r#"Bearer realm="{realm}/token",{CHALLENGE_TAIL}"#)
}

/// A registry that wants a token which its own `/token` gives to anybody.
fn behind_tokens(base: String) -> impl Fn(&Seen) -> Reply + Send + Sync + 'static {
    move |seen| {
        if seen.path.starts_with("/token") {
            return Reply::ok(r#"{"token":"anonymous-token","expires_in":300}"#);
        }
        if seen.header("authorization") == Some("Bearer anonymous-token") {
            return ranged(seen, &Bytes::from_static(BYTES));
        }
        Reply::status(401).with("www-authenticate", challenge(&base))
    }
}
