//! `shoal-control` killed at any moment of any write, two hundred times: what was answered as done is there, and what was not answered is
//! there whole or not at all, its audit entry with it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};
use shoal_proto::control::v1 as wire;
use shoal_proto::control::v1::control_client::ControlClient;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;

const TOKEN: &str = "an admin's token that is long enough";
/// Writers run for so long at most before the kill: several writes each.
const LONGEST: u64 = 120;
/// A start takes a fraction of this.
const UP: Duration = Duration::from_secs(20);

struct Server {
    child: Child,
    rest: String,
    grpc: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGKILL.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(state: &Path, sets: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_shoal-control"))
            .args(["serve", "--set", "grpc.listen=127.0.0.1:0", "--set", "rest.listen=127.0.0.1:0"])
            .args(["--set", "rest.tls=off", "--set", "telemetry.log_format=json", "--set"])
            .arg(format!("state_dir={}", state.join("control").display()))
            .arg("--set")
            .arg(format!("rest.admin_token_file={}", state.join("token").display()))
            .args(sets.iter().flat_map(|set| ["--set", set]))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut said, mut places) = (Vec::new(), None);
        while places.is_none() {
            let Some(Ok(line)) = lines.next() else { panic!("it did not start: {said:#?}") };
            let line_said: Value = serde_json::from_str(&line).unwrap_or_default();
            let of =
                |key: &str| line_said["fields"][key].as_str().or_else(|| line_said[key].as_str()).map(str::to_owned);
            places = of("rest").zip(of("nodes"));
            said.push(line);
        }
        // The pipe must be read on, or the server would wait for it.
        std::thread::spawn(move || lines.for_each(drop));
        let (rest, grpc) = places.unwrap();
        Self { child, rest, grpc }
    }
}

/// What something is, as far as it is looked at; `None`: it is not there.
type Is = Option<String>;

/// What was answered, and what was asked and not answered.
#[derive(Debug, Clone, Default)]
struct Known {
    sure: Is,
    asked: Option<Is>,
}

/// What a client knows of one kind of thing, by name.
#[derive(Debug, Default)]
struct Ledger {
    known: BTreeMap<String, Known>,
    /// By which path each is changed.
    paths: BTreeMap<String, String>,
    made: u64,
}

/// A kind of thing that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Cluster,
    ApiToken,
    JoinToken,
    Preheat,
}

impl Kind {
    const fn path(self) -> &'static str {
        match self {
            Self::Cluster => "clusters",
            Self::ApiToken => "api-tokens",
            Self::JoinToken => "join-tokens",
            Self::Preheat => "preheats",
        }
    }

    /// Name, state, and the path to change it of an item of the list; `None`: not one of ours.
    fn read(self, item: &Value) -> Option<(String, String, String)> {
        let text = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
        let (name, is) = match self {
            Self::Cluster => (text("name"), format!("{}|{}", text("idc"), item["cidrs"])),
            Self::ApiToken => (text("name"), text("role")),
            // Nothing else of it is ours to choose.
            Self::JoinToken => (format!("uses-{}", item["uses_left"]), text("role")),
            Self::Preheat => {
                let cancelled = text("state") == "cancelled";
                (text("image"), if cancelled { "cancelled" } else { "goes on" }.to_owned())
            }
        };
        let ours = name.starts_with("k-") || name.starts_with("uses-") || name.contains("/k:");
        let id = if self == Self::ApiToken || self == Self::Cluster { name.clone() } else { text("id") };
        ours.then(|| (name, is, format!("{}/{id}", self.path())))
    }
}

struct Client {
    http: reqwest::Client,
    rest: String,
    /// Writes that were answered as done, or found to be done.
    changes: Arc<AtomicU64>,
}

impl Client {
    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(u16, Value), reqwest::Error> {
        let request = self.http.request(method, format!("http://{}/api/v1/{path}", self.rest));
        let request = request.bearer_auth(TOKEN).header("if-match", "*");
        let request = if let Some(body) = body { request.json(body) } else { request };
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        Ok((status, answer.json().await.unwrap_or_default()))
    }

    /// Writes something, noting before what is asked and after what was answered.
    async fn write(&self, kind: Kind, ledger: &Mutex<Ledger>, random: &mut StdRng) -> Result<(), reqwest::Error> {
        let (name, to, method, path, body) = {
            let mut ledger = ledger.lock().await;
            let there: Vec<(String, String)> = ledger
                .known
                .iter()
                .filter(|(_, known)| known.asked.is_none() && known.sure.as_deref().is_some_and(|is| is != "cancelled"))
                .map(|(name, _)| (name.clone(), ledger.paths.get(name).cloned().unwrap_or_default()))
                .collect();
            let made = ledger.made;
            let old = there.get(random.random_range(0..there.len().max(1))).cloned();
            match old.filter(|_| there.len() > 8 || random.random_bool(0.5)) {
                Some((name, path)) if kind == Kind::Cluster && random.random_bool(0.6) => {
                    ledger.made += 1;
                    let (idc, cidr) = (format!("dc-{made}"), format!("10.{}.{}.0/24", made / 250 % 250, made % 250));
                    let is = format!("{idc}|{}", json!([cidr]));
                    (name, Some(is), Method::PATCH, path, Some(json!({ "idc": idc, "cidrs": [cidr] })))
                }
                Some((name, path)) if kind == Kind::Preheat => {
                    (name, Some("cancelled".to_owned()), Method::POST, format!("{path}/cancel"), None)
                }
                Some((name, path)) => (name, None, Method::DELETE, path, None),
                None => {
                    ledger.made += 1;
                    let (name, is, body) = new(kind, made);
                    (name, Some(is), Method::POST, kind.path().to_owned(), Some(body))
                }
            }
        };
        ledger.lock().await.known.entry(name.clone()).or_default().asked = Some(to.clone());
        let (status, answer) = self.ask(method.clone(), &path, body.as_ref()).await?;
        assert!((200..300).contains(&status), "{method} {path} {body:?}: {status} {answer}");
        let mut ledger = ledger.lock().await;
        ledger.known.insert(name.clone(), Known { sure: to, asked: None });
        if let Some((named, _, path)) = kind.read(&answer).filter(|_| method == Method::POST) {
            assert_eq!(named, name);
            ledger.paths.insert(name, path);
        }
        self.changes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Holds what is there against what is known, and takes it as known.
    async fn compare(&self, kind: Kind, ledger: &mut Ledger) -> (u32, u32) {
        let (status, list) = self.ask(Method::GET, &format!("{}?limit=1000", kind.path()), None).await.unwrap();
        assert_eq!((status, &list["next"]), (200, &Value::Null), "{list}");
        let items = list["items"].as_array().unwrap();
        let mut there: BTreeMap<String, (String, String)> =
            items.iter().filter_map(|item| kind.read(item)).map(|(name, is, path)| (name, (is, path))).collect();
        let (mut done, mut undone) = (0, 0);
        for (name, known) in &mut ledger.known {
            let found = there.remove(name);
            let is = found.as_ref().map(|(is, _)| is.clone());
            if let Some(asked) = known.asked.take().filter(|asked| *asked != known.sure) {
                if is == asked {
                    done += 1;
                    self.changes.fetch_add(1, Ordering::Relaxed);
                    known.sure = asked;
                } else {
                    undone += 1;
                }
            }
            assert_eq!(is, known.sure, "{kind:?} {name}");
            if let Some((_, path)) = found {
                ledger.paths.insert(name.clone(), path);
            }
        }
        assert!(there.is_empty(), "nobody asked for these: {there:?}");
        ledger
            .known
            .retain(|_, known| known.sure.as_deref().is_some_and(|is| is != "cancelled" || kind == Kind::Preheat));
        (done, undone)
    }
}

/// Name, state, and request of something new.
fn new(kind: Kind, number: u64) -> (String, String, Value) {
    match kind {
        Kind::Cluster => {
            let (name, idc) = (format!("k-{number}"), format!("new-{number}"));
            let body = json!({ "name": name, "idc": idc, "cidrs": [] });
            (name, format!("{idc}|[]"), body)
        }
        Kind::ApiToken => {
            let name = format!("k-{number}");
            let body = json!({ "name": name, "role": "viewer" });
            (name, "viewer".to_owned(), body)
        }
        Kind::JoinToken => {
            let uses = 1000 + number;
            (format!("uses-{uses}"), "node".to_owned(), json!({ "uses": uses, "ttl": "24h" }))
        }
        Kind::Preheat => {
            let image = format!("registry.test/k:{number}");
            let body = json!({ "image": image, "cluster": "default" });
            (image, "goes on".to_owned(), body)
        }
    }
}

/// A node that is there, and takes no notice of what it is told.
async fn node(grpc: &str) -> mpsc::Sender<wire::SessionRequest> {
    let mut client = ControlClient::connect(format!("http://{grpc}")).await.unwrap();
    let (up, stream) = mpsc::channel(4);
    let facts = wire::Facts { ip: "127.0.0.1".into(), ..wire::Facts::default() };
    let role = wire::Role::Node.into();
    let register = wire::Register {
        node_id: "n1".into(),
        facts: Some(facts),
        peer_port: 1,
        role,
        takes_blob_orders: true,
        ..Default::default()
    };
    let message = Some(wire::session_request::Message::Register(register));
    up.send(wire::SessionRequest { message }).await.unwrap();
    let mut down = client.session(ReceiverStream::new(stream)).await.unwrap().into_inner();
    tokio::spawn(async move { while let Ok(Some(_)) = down.message().await {} });
    up
}

async fn kill_again_and_again(kills: u32, kinds: &[Kind], sets: &[&str], seed: u64) {
    // The only provider that the build has on purpose.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let state = tempfile::tempdir().unwrap();
    std::fs::write(state.path().join("token"), TOKEN).unwrap();
    let mut random = StdRng::seed_from_u64(seed);
    let mut ledgers: BTreeMap<Kind, Arc<Mutex<Ledger>>> = kinds.iter().map(|kind| (*kind, Arc::default())).collect();
    let changes = Arc::new(AtomicU64::new(0));
    let (mut first, mut sums, begin) = (None, (0, 0), Instant::now());
    for kill in 0..=kills {
        let since = Instant::now();
        let server = Server::start(state.path(), sets);
        assert!(since.elapsed() < UP);
        let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
        let client = Arc::new(Client { http, rest: server.rest.clone(), changes: Arc::clone(&changes) });
        for (kind, ledger) in &mut ledgers {
            let (done, undone) = client.compare(*kind, &mut *ledger.lock().await).await;
            sums = (sums.0 + done, sums.1 + undone);
        }
        // The number of the last entry counts them all: each change has one, and none is without its change.
        let (status, audit) = client.ask(Method::GET, "audit?limit=1", None).await.unwrap();
        assert_eq!(status, 200, "{audit}");
        let entries = audit["items"][0]["seq"].as_u64().unwrap_or(0);
        let base = *first.get_or_insert(entries);
        assert_eq!(entries, base + changes.load(Ordering::Relaxed), "after {kill} kills: {audit}");
        if kill == kills {
            break;
        }
        let _node = if kinds.contains(&Kind::Preheat) { Some(node(&server.grpc).await) } else { None };
        let writers: Vec<_> = ledgers
            .iter()
            .map(|(kind, ledger)| {
                let (client, kind, ledger) = (Arc::clone(&client), *kind, Arc::clone(ledger));
                let mut random = StdRng::seed_from_u64(random.random());
                tokio::spawn(async move { while client.write(kind, &ledger, &mut random).await.is_ok() {} })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(random.random_range(1..=LONGEST))).await;
        drop(server);
        for writer in writers {
            writer.await.unwrap();
        }
    }
    let (done, undone) = sums;
    println!(
        "{kills} kills in {:.1} s: {} changes, all there; of what was not answered {done} were done and {undone} not",
        begin.elapsed().as_secs_f64(),
        changes.load(Ordering::Relaxed)
    );
    assert!(changes.load(Ordering::Relaxed) > u64::from(kills), "hardly anything was written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_answered_is_lost_in_150_kills_while_clusters_and_tokens_are_written() {
    kill_again_and_again(150, &[Kind::Cluster, Kind::ApiToken, Kind::JoinToken], &[], 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_answered_is_lost_in_50_kills_while_preheats_are_made_and_cancelled() {
    kill_again_and_again(50, &[Kind::Preheat], &["tls=off"], 2).await;
}
