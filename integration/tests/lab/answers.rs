//! What we answer, and what the real containerd makes of it: the mirror, in whatever trouble, gives only answers after which the
//! pull goes on. By the rows of what is known of containerd:
//!
//! - 8 exact HEADs, 19 no encoding: `heads_are_exact_and_nothing_is_ever_encoded`; 20 ranges: `ranges_are_answered_…`
//! - 9 one request, then the next host at once: [`refused`], [`turned_away`] with 404 and 503, origin faults with others
//! - 10 never 408 or 429, 17 never a redirect: looked at after every scene of every test ([`lab::aftermath::check`])
//! - 11, 12 headers in time although nothing is known: [`silent`]; 15 no 200 before a byte is in hand: the same
//! - 13 a FIN, and the Range that follows, 14 never a RST: [`cut`], [`interrupted`]
//! - 16 wrong bytes never make a complete body: the liars, and origin faults
//! - 18 one stream with a buffer: `editions`; open ranges of which the start is read: [`interrupted`], and `ranges_are_…`
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::{Method, Request, StatusCode, header};
use lab::{
    containerd::{edition::Edition, requests::Exchange},
    faults::{
        Row,
        stage::{Pulled, Stage, Usually, on_editions},
    },
    flood::HalfOpen,
    http::{Answer, Client, empty},
    image::{Image, Plan},
    registry,
    resets::Resets,
    token::Signer,
    world::{World, WorldPlan},
};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{alone, interrupted};

const SEED: u64 = 40_000;
/// 10 MiB/s: a layer takes most of a second between nodes.
const NODE_RATE: u64 = 80_000_000;
const MIRROR: ([u8; 4], u16) = ([127, 0, 0, 1], 5080);
/// Connections that the mirror takes when it is to have too many.
const MOST_CONNECTIONS: usize = 16;
/// Nobody listens there.
const CLOSED: &str = "\"https://registry.shoal.test:444\"";
const ENDPOINT: &str = "origin.registry.\"registry.shoal.test\".endpoint";

/// `a1` and `a2` as usual; `a3` is started again with what each scene wants of it.
fn plan(edition: Edition) -> WorldPlan {
    let plan = WorldPlan { edition, node_rate: Some(NODE_RATE), ..WorldPlan::one_cluster(3) };
    plan.with_setting("telemetry.log", "\"info,node_proxy::mirror=debug\"")
}

#[test]
fn containerd_goes_on_after_whatever_we_answer() {
    alone(async {
        on_editions(&Edition::APART, plan, SEED, async |stage: &mut Stage| {
            stage.scene("the mirror answers 404 to everything", not_found).await;
            stage.scene("the node's way to the registry is closed", closed).await;
            stage.scene("more connections than the mirror takes", turned_away).await;
            stage.scene("the node's way to the registry is silent", silent).await;
            stage
                .scene("the last parent dies in the middle of a blob and the node can't reach the registry", cut)
                .await;
            interrupted::play(stage).await;
            Ok(())
        })
        .await
    });
}

/// Pulls a fresh image on `a3`, started with a setting, where every request must be refused with one status and go on to the
/// registry at once (rows 9, 10 and 15).
async fn refused(stage: &mut Stage, fault: &str, setting: (&str, &str), refusal: Refusal) -> Result<Row> {
    stage.world.node("a3")?.shoal()?.restart_with(&[setting]).await?;
    stage.world.all_connected().await?;
    let image = stage.fresh("refused").await?;
    let watch = stage.watch().await?;
    let seconds = stage.pull("a3", &image)?.end().await?;
    let gap = went_on(&watch.exchanges("a3")?, refusal)?;
    println!("    from our {} to the registry: {:.0} ms at most", refusal.status, gap * 1000.0);
    let past = watch.past_us(&stage.world)?;
    ensure!(past >= image.image.size(), "only {past} bytes came from the registry");
    let metric = format!("shoal_mirror_requests_total{{kind=\"blob\",status=\"{}\"}} ", refusal.status);
    let pulled =
        Pulled { node: "a3", seconds, usually: Usually::Origin, log: ("a3", "refused"), metric: ("a3", &metric) };
    stage.row(fault, &watch, pulled).await
}

#[derive(Clone, Copy)]
struct Refusal {
    status: u16,
    /// Headers came within this many seconds.
    within: f64,
}

async fn not_found(stage: &mut Stage) -> Result<Row> {
    let deny = ("mirror.deny", "[\"registry.shoal.test\"]");
    refused(stage, "the mirror answers 404 to everything", deny, Refusal { status: 404, within: 1.0 }).await
}

async fn closed(stage: &mut Stage) -> Result<Row> {
    refused(stage, "the node's way to the registry is closed", (ENDPOINT, CLOSED), Refusal { status: 503, within: 1.0 })
        .await
}

/// Rows 11 and 12: containerd 1.7 would wait for ever for headers, so we must not.
async fn silent(stage: &mut Stage) -> Result<Row> {
    let (listener, _held) = hold(stage.world.net.namespace("control")?.bind(0)?)?;
    let endpoint = format!("\"https://{listener}\"");
    let refusal = Refusal { status: 503, within: 6.0 };
    refused(stage, "the node's way to the registry is silent", (ENDPOINT, &endpoint), refusal).await
}

/// Takes connections and says nothing.
fn hold(listener: TcpListener) -> Result<(std::net::SocketAddr, Holding)> {
    let address = listener.local_addr()?;
    let holding = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    Ok((address, Holding(holding)))
}

struct Holding(JoinHandle<()>);

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Every request at us was made once and answered with the one status in time, and the same was asked of the registry next. Gives
/// the longest wait from our answer to that.
fn went_on(exchanges: &[Exchange], refusal: Refusal) -> Result<f64> {
    let mut longest = 0.0_f64;
    let at_us: Vec<(usize, &Exchange)> = exchanges.iter().enumerate().filter(|(_, one)| one.at_us()).collect();
    ensure!(at_us.len() >= 3, "containerd asked us {} times only", at_us.len());
    for (index, one) in &at_us {
        let (status, answered) = one.answer.with_context(|| format!("no answer to {one:?}"))?;
        ensure!(status == refusal.status && answered - one.at <= refusal.within, "{one:?}");
        let same = at_us.iter().filter(|(_, other)| other.method == one.method && other.path() == one.path()).count();
        ensure!(same == 1, "asked {same} times: {one:?}");
        let next = exchanges[*index..].iter().find(|next| !next.at_us() && next.path() == one.path());
        let next = next.with_context(|| format!("the registry was not asked after {one:?}"))?;
        longest = longest.max(next.at - answered);
    }
    ensure!(longest < 1.0, "{longest} s passed before the registry was asked");
    Ok(longest)
}

/// Row 10: overload is 503, which containerd does not repeat on us.
async fn turned_away(stage: &mut Stage) -> Result<Row> {
    let a3 = stage.world.node("a3")?;
    let ns = a3.ns.clone();
    // Started again, so that no idle connection of an earlier pull gives its place up in the middle.
    a3.shoal()?.restart_with(&[("mirror.max_connections", &MOST_CONNECTIONS.to_string())]).await?;
    stage.world.all_connected().await?;
    let image = stage.fresh("overload").await?;
    let watch = stage.watch().await?;
    let half = HalfOpen::open(&ns, MIRROR.into(), MOST_CONNECTIONS, b"GET /v2/ HTTP/1.1\r\nho").await?;
    let seconds = stage.pull("a3", &image)?.end().await?;
    drop(half);
    let gap = went_on(&watch.exchanges("a3")?, Refusal { status: 503, within: 1.0 })?;
    println!("    from our 503 to the registry: {:.0} ms at most", gap * 1000.0);
    let metric = ("a3", "shoal_mirror_turned_away_total ");
    let log = ("a3", "turned away");
    let pulled = Pulled { node: "a3", seconds, usually: Usually::Origin, log, metric };
    stage.row("more connections than the mirror takes", &watch, pulled).await
}

/// Rows 13 and 14: a body that can't go on ends in a FIN, never in a RST; containerd comes back to us with a Range, is told at
/// once that we can't, and reads the rest from the registry.
async fn cut(stage: &mut Stage) -> Result<Row> {
    let a3 = stage.world.node("a3")?;
    let ns = a3.ns.clone();
    a3.shoal()?.restart_with(&[(ENDPOINT, CLOSED)]).await?;
    stage.world.all_connected().await?;
    let image = stage.fresh("cut").await?;
    stage.pull("a1", &image)?.end().await?;
    let watch = stage.watch().await?;
    let resets = Resets::of_port(&ns, MIRROR.1)?;
    let pulling = stage.pull("a3", &image)?;
    stage.fetched("a3", &watch, 2 << 20, &pulling).await?;
    stage.world.node("a1")?.shoal()?.kill();
    let seconds = pulling.end().await?;
    let resets = resets.sent()?;
    ensure!(resets == 0, "the mirror sent {resets} RSTs");
    let exchanges = watch.exchanges("a3")?;
    let reopened = exchanges.iter().filter(|one| one.at_us() && is_later_part(one)).count();
    let rest = exchanges.iter().find(|one| !one.at_us() && is_later_part(one) && one.status() == Some(206));
    ensure!(reopened > 0 && rest.is_some(), "no part was asked for again: {exchanges:?}");
    let metric = ("a3", "shoal_blob_flights_ended_total{outcome=\"Failed\"} ");
    let pulled = Pulled { node: "a3", seconds, usually: Usually::Peer, log: ("a3", "cut a body short"), metric };
    let fault = "the last parent dies in the middle of a blob and the node can't reach the registry";
    stage.row(fault, &watch, pulled).await
}

/// Whether a blob's rest was asked for: `bytes=N-`, N above 0.
pub(crate) fn is_later_part(exchange: &Exchange) -> bool {
    exchange.range.as_deref().is_some_and(|range| range != "bytes=0-")
}

/// Requests at a mirror that are not containerd's.
struct Asker {
    client: Client,
    signer: Signer,
    repository: &'static str,
}

impl Asker {
    async fn ask(&self, method: Method, what: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let token = self.signer.token(self.repository, &["pull"])?;
        let uri = format!("/v2/{}/{what}?ns={}", self.repository, registry::HOST);
        let mut request = Request::builder().method(method).uri(uri);
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = tokio::time::timeout(Duration::from_secs(10), self.client.send(request.body(empty())?));
        answer.await.with_context(|| format!("{what} was not answered within 10 s"))?
    }
}

/// Row 8: exact headers, whether the answer comes from the registry or from the store. Row 19: nothing is encoded, whatever is
/// offered, and `bytes=0-` is the whole.
#[test]
fn heads_are_exact_and_nothing_is_ever_encoded() {
    alone(async {
        let mut world = World::start(WorldPlan { origin_rate: None, ..WorldPlan::one_cluster(1) }).await?;
        let image = Image::obtain(&Plan::random(SEED - 1, vec![2 << 20, 1 << 16]))?;
        let repository = "lab/exact";
        world.registry.push(&image, repository, "1").await?;
        world.start_nodes().await?;
        let asker = asker(&mut world, repository)?;
        let manifest = ("manifests", image.digest.as_str(), image.manifest.len() as u64, image.media_type.as_str());
        let octets = "application/octet-stream";
        let blobs = image.blobs().map(|blob| ("blobs", blob.digest.as_str(), blob.size, octets));
        let all: Vec<_> = [manifest].into_iter().chain(blobs).collect();
        let accept = ("accept", "application/vnd.oci.image.manifest.v1+json, */*");
        let encodings = ("accept-encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5");
        for round in ["from the registry", "from the store"] {
            for (kind, digest, size, media_type) in &all {
                let by_tag = (*kind == "manifests").then(|| "manifests/1".to_owned());
                for what in by_tag.into_iter().chain([format!("{kind}/{digest}")]) {
                    let head = asker.ask(Method::HEAD, &what, &[accept]).await?;
                    is_exact(&head, digest, *size, media_type).with_context(|| format!("HEAD {what} {round}"))?;
                    for range in [None, Some(("range", "bytes=0-"))] {
                        let offered: Vec<_> = [accept, encodings].into_iter().chain(range).collect();
                        let got = asker.ask(Method::GET, &what, &offered).await?;
                        is_exact(&got, digest, *size, media_type).with_context(|| format!("GET {what} {round}"))?;
                        let hash = format!("sha256:{}", hex::encode(Sha256::digest(&got.body)));
                        ensure!(hash == *digest, "GET {what} {round} gave bytes of {hash}");
                    }
                }
            }
        }
        for what in [
            "manifests/none".to_owned(),
            format!("manifests/sha256:{}", "0".repeat(64)),
            format!("blobs/sha256:{}", "0".repeat(64)),
        ] {
            for method in [Method::HEAD, Method::GET] {
                let answer = asker.ask(method.clone(), &what, &[accept]).await?;
                ensure!(answer.status == StatusCode::NOT_FOUND, "{method} {what}: {}", answer.status);
            }
        }
        Ok(())
    });
}

fn asker(world: &mut World, repository: &'static str) -> Result<Asker> {
    let client = Client::plain(&world.node("a1")?.ns, MIRROR.into());
    Ok(Asker { client, signer: world.registry.signer().clone(), repository })
}

fn is_exact(answer: &Answer, digest: &str, size: u64, media_type: &str) -> Result<()> {
    ensure!(answer.status == StatusCode::OK, "{} {}", answer.status, String::from_utf8_lossy(&answer.body));
    let (size, all) = (size.to_string(), &answer.headers);
    for (name, wanted) in [("content-length", &*size), ("content-type", media_type), ("docker-content-digest", digest)]
    {
        let got: Vec<_> = all.get_all(name).iter().collect();
        ensure!(got == [wanted], "{name}: {got:?} instead of {wanted}");
    }
    for never in ["content-encoding", "transfer-encoding", "location"] {
        ensure!(!all.contains_key(never), "{never}: {:?}", all[never]);
    }
    Ok(())
}

/// Row 20, of a blob that is on its way and of one that is held; and row 18: who reads the start of an open range and goes makes
/// nobody read anything twice.
#[test]
fn ranges_are_answered_as_containerd_expects() {
    alone(async {
        // 2 MiB/s, so that the layer is on its way for a while.
        let mut world = World::start(WorldPlan { origin_rate: Some(16_000_000), ..WorldPlan::one_cluster(1) }).await?;
        let image = Image::obtain(&Plan::random(SEED - 2, vec![4 << 20]))?;
        let repository = "lab/ranges";
        world.registry.push(&image, repository, "1").await?;
        world.start_nodes().await?;
        let asker = asker(&mut world, repository)?;
        let (layer, bytes) = (&image.layers[0], std::fs::read(&image.layers[0].file)?);
        let what = format!("blobs/{}", layer.digest);
        let last = layer.size - 1;
        let ranges = [
            ("bytes=1048576-1048586".to_owned(), Some(1_048_576..1_048_587)),
            ("bytes=1000-".to_owned(), Some(1000..layer.size)),
            ("bytes=-5".to_owned(), Some(layer.size - 5..layer.size)),
            (format!("bytes=-{}", layer.size * 2), Some(0..layer.size)),
            (format!("bytes={last}-{}", u64::MAX), Some(last..layer.size)),
            ("bytes=500-0".to_owned(), None),
            (format!("bytes={}-", layer.size), None),
            (format!("bytes={}-{}", layer.size + 1, layer.size + 9), None),
        ];
        for round in ["on its way", "held"] {
            // Nobody takes more than the start, as containerd's chunks do.
            let opened = open_and_go(&asker, &what).await?;
            ensure!(opened == StatusCode::PARTIAL_CONTENT, "{round}: {opened}");
            for (range, wanted) in &ranges {
                let got = asker.ask(Method::GET, &what, &[("range", range)]).await?;
                is_part(&got, wanted.clone(), &bytes).with_context(|| format!("{range} of a blob {round}"))?;
            }
        }
        let log = world.registry.access_log()?;
        let reads: Vec<_> = log.iter().filter(|line| line.is_read() && line.digest() == Some(&layer.digest)).collect();
        let read: u64 = reads.iter().map(|line| line.bytes).sum();
        ensure!(reads.len() == 1 && read == layer.size, "the origin gave {read} of {} bytes: {reads:?}", layer.size);
        Ok(())
    });
}

async fn open_and_go(asker: &Asker, what: &str) -> Result<StatusCode> {
    let token = asker.signer.token(asker.repository, &["pull"])?;
    let request = Request::builder()
        .uri(format!("/v2/{}/{what}?ns={}", asker.repository, registry::HOST))
        .header(header::RANGE, "bytes=1000-")
        .header(header::AUTHORIZATION, format!("Bearer {token}"));
    let answer = asker.client.open(request.body(empty())?).await?;
    let status = answer.status();
    let mut body = answer.into_body();
    let first = http_body_util::BodyExt::frame(&mut body).await.context("a body without a byte")?;
    ensure!(first?.into_data().is_ok_and(|data| !data.is_empty()), "a body without a byte");
    Ok(status)
}

fn is_part(got: &Answer, wanted: Option<std::ops::Range<u64>>, bytes: &[u8]) -> Result<()> {
    let size = bytes.len();
    let content_range = got.headers.get(header::CONTENT_RANGE).map(|value| value.to_str()).transpose()?;
    let Some(wanted) = wanted else {
        ensure!(got.status == StatusCode::RANGE_NOT_SATISFIABLE, "{}", got.status);
        ensure!(content_range.is_none_or(|text| text == format!("bytes */{size}")), "{content_range:?}");
        return Ok(());
    };
    if got.status != StatusCode::PARTIAL_CONTENT {
        bail!("{} {}", got.status, String::from_utf8_lossy(&got.body));
    }
    let said = format!("bytes {}-{}/{size}", wanted.start, wanted.end - 1);
    ensure!(content_range == Some(&*said), "{content_range:?} instead of {said}");
    ensure!(got.body == bytes[wanted.start as usize..wanted.end as usize], "other bytes");
    Ok(())
}
