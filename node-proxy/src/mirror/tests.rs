//! The mirror on real sockets, before a real engine and a registry on loopback: what containerd would read off the wire.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::registry::Registry as MetricsRegistry;
use shoal_base::drain;
use shoal_proto::{Digest, Hash, Layout, PieceList};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use super::*;
use crate::blob::{self, Peers};
use crate::origin::test_registry::{Content, Reply, Seen, TestServer, digest_of, ranged};
use crate::origin::{self, RegistryConfig, Target, WhenDown, Witness};
use crate::store::{Memory, Store};
use crate::swarm::{Ask, Event, FindError, Finding, Ground, ListError, Parent, ParentSource, Sighting};

mod bounds;
mod ends;
mod files;
mod outage;
mod private;
mod public;

const NS: &str = "ns=registry.example";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A node without control and without peers.
struct Nobody;

#[async_trait::async_trait]
impl Peers for Nobody {
    async fn fetch(&self, _: Arc<dyn Ground>, _: watch::Receiver<Arc<[Parent]>>, _: mpsc::Sender<Event>) {}

    async fn fetch_list(
        &self,
        _: Digest,
        _: Layout,
        _: Hash,
        _: Arc<[Parent]>,
        _: mpsc::Sender<Event>,
    ) -> Result<PieceList, ListError> {
        Err(ListError::NoParent)
    }

    async fn locate(&self, _: Digest, _: Vec<Parent>) -> Sighting {
        Sighting::Nowhere
    }
}

#[async_trait::async_trait]
impl ParentSource for Nobody {
    async fn find(&self, _: Ask) -> Result<Finding, FindError> {
        Err(FindError::Unreachable("there is no control".into()))
    }

    fn known(&self) -> Vec<Parent> {
        Vec::new()
    }
}

/// What the rest of the cluster remembers.
#[derive(Default)]
struct Remembered {
    public_since: Mutex<Option<Duration>>,
    told: Mutex<Vec<(Target, Option<Digest>)>>,
}

#[async_trait::async_trait]
impl Witness for Remembered {
    fn saw_public(&self, target: &Target, manifest: Option<&Digest>) {
        self.told.lock().push((target.clone(), manifest.copied()));
    }

    async fn public_since(&self, _: &Target, _: Option<&Digest>) -> Option<Duration> {
        *self.public_since.lock()
    }
}

/// Answers some requests in the registry's stead.
type Instead = Box<dyn Fn(&Seen) -> Option<Reply> + Send>;

/// What the registry behind the mirror has and how it behaves; tests change it as they go.
#[derive(Default)]
struct Shelf {
    content: Mutex<HashMap<String, (Bytes, &'static str)>>,
    /// Only this bearer token reads anything.
    only: Mutex<Option<&'static str>>,
    /// What is answered instead.
    instead: Mutex<Option<Instead>>,
    /// HEADs that came in, answered or not.
    heads: AtomicUsize,
}

impl Shelf {
    fn answer(&self, seen: &Seen, base: &str) -> Reply {
        self.heads.fetch_add(usize::from(seen.method == http::Method::HEAD), Ordering::SeqCst);
        if let Some(reply) = self.instead.lock().as_ref().and_then(|instead| instead(seen)) {
            return reply;
        }
        if seen.path.starts_with("/token") {
            return Reply::ok(r#"{"token":"anonymous"}"#);
        }
        if let Some(only) = *self.only.lock()
            && seen.header("authorization") != Some(format!("Bearer {only}").as_str())
        {
            return Reply::status(401).with("www-authenticate", challenge(base));
        }
        let path = seen.path.split('?').next().unwrap_or_default();
        let last = path.rsplit('/').next().unwrap_or_default();
        match self.content.lock().get(last) {
            Some((bytes, media_type)) => {
                let reply = ranged(seen, bytes).with("docker-content-digest", digest_of(bytes).to_string());
                if media_type.is_empty() { reply } else { reply.with("content-type", *media_type) }
            }
            None => Reply::status(404),
        }
    }

    fn instead(&self, instead: impl Fn(&Seen) -> Option<Reply> + Send + 'static) {
        *self.instead.lock() = Some(Box::new(instead));
    }

    fn as_before(&self) {
        *self.instead.lock() = None;
    }
}

fn challenge(base: &str) -> String {
    format!(r#"Bearer realm="{base}/token",service="the registry",scope="repository:lab/app:pull""#)
}

/// A mirror with all that is behind it.
struct Rig {
    shelf: Arc<Shelf>,
    server: TestServer,
    addr: SocketAddr,
    engine: Engine,
    store: Arc<dyn Store>,
    cluster: Arc<Remembered>,
    trigger: drain::Trigger,
}

impl Rig {
    async fn start() -> Self {
        Self::with(|_| ()).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::on(Memory::new(0), change).await
    }

    async fn on(store: Arc<dyn Store>, change: impl FnOnce(&mut Config)) -> Self {
        Self::made(store, change, |_| ()).await
    }

    async fn with_origin(change: impl FnOnce(&mut origin::Config)) -> Self {
        Self::made(Memory::new(0), |_| (), change).await
    }

    async fn made(
        store: Arc<dyn Store>,
        change: impl FnOnce(&mut Config),
        change_origin: impl FnOnce(&mut origin::Config),
    ) -> Self {
        let shelf = Arc::new(Shelf::default());
        let on_shelf = Arc::clone(&shelf);
        let server = TestServer::start(move |base| move |seen: &Seen| on_shelf.answer(seen, &base)).await;
        let settings = RegistryConfig {
            endpoint: Some(server.base().parse().unwrap()),
            allow_addresses: vec!["127.0.0.0/8".parse().unwrap()],
            ..RegistryConfig::default()
        };
        let mut settings = origin::Config {
            registries: BTreeMap::from([("registry.example".parse().unwrap(), settings)]),
            body_idle_timeout: Duration::from_millis(300),
            ..origin::Config::default()
        };
        change_origin(&mut settings);
        let mut registered = MetricsRegistry::default();
        let cluster = Arc::new(Remembered::default());
        let witness = Arc::clone(&cluster) as Arc<dyn Witness>;
        let origin = Origin::new(settings, witness, origin::Metrics::new(&mut registered)).unwrap();
        let mut config = Config {
            default_registry: None,
            allow: Vec::new(),
            deny: vec!["denied.example".parse().unwrap()],
            max_connections: 64,
            first_byte_budget: Duration::from_millis(500),
            origin_byte_budget: Duration::from_secs(2),
        };
        change(&mut config);
        let parts = blob::Parts {
            me: "me".parse().unwrap(),
            store: Arc::clone(&store),
            upstream: Arc::clone(&origin) as Arc<dyn blob::Upstream>,
            peers: Arc::new(Nobody),
            source: Arc::new(Nobody),
            metrics: blob::Metrics::new(&mut registered),
        };
        let settings = blob::Config {
            first_byte_budget: config.first_byte_budget,
            origin_byte_budget: config.origin_byte_budget,
            ..blob::Config::default()
        };
        let engine = Engine::new(settings, parts);
        let mirror = Mirror::new(config, origin, engine.clone(), Metrics::new(&mut registered));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (trigger, drain) = drain::channel();
        tokio::spawn(mirror.run(listener, drain));
        Self { shelf, server, addr, engine, store, cluster, trigger }
    }

    /// Puts content on the registry's shelf, under its digest.
    fn shelve(&self, bytes: &Bytes, media_type: &'static str) -> Digest {
        let digest = digest_of(bytes);
        self.shelf.content.lock().insert(digest.to_string(), (bytes.clone(), media_type));
        digest
    }

    /// The same under a tag.
    fn tag(&self, tag: &str, bytes: &Bytes) {
        self.shelf.content.lock().insert(tag.to_owned(), (bytes.clone(), MANIFEST));
    }

    /// One request on a connection of its own.
    async fn ask(&self, request: &str, headers: &[(&str, &str)]) -> Raw {
        let mut text = format!("{request} HTTP/1.1\r\nhost: mirror\r\nconnection: close\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        Raw::read(&mut stream).await
    }

    async fn blob(&self, digest: &Digest, headers: &[(&str, &str)]) -> Raw {
        self.ask(&format!("GET /v2/lab/app/blobs/{digest}?{NS}"), headers).await
    }

    async fn head(&self, kind: &str, what: impl std::fmt::Display, headers: &[(&str, &str)]) -> Raw {
        self.ask(&format!("HEAD /v2/lab/app/{kind}/{what}?{NS}"), headers).await
    }

    async fn manifest(&self, what: impl std::fmt::Display, headers: &[(&str, &str)]) -> Raw {
        self.ask(&format!("GET /v2/lab/app/manifests/{what}?{NS}"), headers).await
    }

    /// Reads of content at the registry, HEADs and tokens left out.
    fn gets(&self) -> usize {
        let seen = self.server.seen();
        seen.iter().filter(|seen| seen.method == http::Method::GET && !seen.path.starts_with("/token")).count()
    }
}

/// How a connection ended, as the client's kernel says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Fin,
    Reset,
}

/// An answer as it came off the wire.
#[derive(Debug)]
struct Raw {
    status: u16,
    headers: HashMap<String, String>,
    body: Vec<u8>,
    end: End,
}

impl Raw {
    async fn read(stream: &mut TcpStream) -> Self {
        let mut all = Vec::new();
        let reading = async {
            match stream.read_to_end(&mut all).await {
                Ok(_) => End::Fin,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => End::Reset,
                Err(error) => panic!("{error}"),
            }
        };
        let end = tokio::time::timeout(Duration::from_secs(20), reading).await.expect("no end within 20 s");
        let head = all.windows(4).position(|part| part == b"\r\n\r\n").unwrap_or(all.len());
        let text = String::from_utf8(all[..head].to_vec()).unwrap();
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        Self { status, headers, body: all.get(head + 4..).unwrap_or_default().to_vec(), end }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first code of an OCI error body.
    fn code(&self) -> String {
        let error: serde_json::Value = serde_json::from_slice(&self.body).expect("an OCI error");
        assert_eq!(self.header("content-type"), Some("application/json"));
        assert_eq!(self.header("content-length"), Some(self.body.len().to_string().as_str()));
        error["errors"][0]["code"].as_str().expect("a code").to_owned()
    }
}

/// Bytes of several blocks and a bit.
fn content(seed: u8) -> Bytes {
    (0..(3 << 20) + 1234_usize)
        .map(|at| (at / 251) as u8 ^ (at as u8).wrapping_mul(31) ^ seed)
        .collect::<Vec<u8>>()
        .into()
}

fn image_manifest() -> Bytes {
    Bytes::from_static(br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}"#)
}

/// A manifest of an image with these layers, and a config that is elsewhere.
fn image_of(layers: &[(Digest, u64)]) -> Bytes {
    let layer = |(digest, size): &(Digest, u64)| {
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest.to_string(), "size": size,
        })
    };
    let config = serde_json::json!({
        "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(b"{}").to_string(), "size": 2,
        "urls": ["https://elsewhere.example"],
    });
    let layers: Vec<_> = layers.iter().map(layer).collect();
    serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})
        .to_string()
        .into()
}

/// Lets time pass for what is remembered.
async fn later(by: Duration) {
    tokio::time::pause();
    tokio::time::advance(by).await;
    tokio::time::resume();
}

/// Waits for something to become true, with a bound.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
