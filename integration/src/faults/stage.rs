//! What scenarios of faults play on: a world, images of one size, and a watch over what a pull did.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    aftermath,
    containerd::{Puller, edition::Edition},
    image::{Image, Plan},
    node::labelled,
    registry,
    wait::eventually,
    world::{World, WorldPlan},
};

use super::Row;

const MIB: f64 = 1_048_576.0;

/// Layers of every image here: small enough for many pulls, large enough to be hit in the middle on a shaped link.
const LAYERS: [u64; 3] = [8 << 20, 3 << 20, 1 << 20];

/// A world with images.
pub struct Stage {
    /// The world.
    pub world: World,
    /// What rows say of containerd.
    pub edition: String,
    seed: u64,
    /// Undisturbed seconds: from the origin, from a peer.
    baseline: (f64, f64),
    failures: Vec<String>,
}

/// The longest that one scene may take: what hangs is a failure with a name.
const SCENE_LIMIT: Duration = Duration::from_secs(180);

/// Plays scenes on every edition of `SHOAL_LAB_CONTAINERD`, or on the `usual` ones: a world each, from `plan`.
///
/// # Errors
/// Every scene that failed, on all editions: none keeps another from being played.
pub async fn on_editions(
    usual: &[Edition],
    plan: impl Fn(Edition) -> WorldPlan,
    seed: u64,
    play: impl AsyncFn(&mut Stage) -> Result<()>,
) -> Result<()> {
    let mut failures = Vec::new();
    for edition in Edition::from_env(usual)? {
        let since = Instant::now();
        let mut stage =
            Stage::start(plan(edition), seed).await.with_context(|| format!("set the stage on {edition}"))?;
        if let Err(error) = play(&mut stage).await {
            stage.failures.push(format!("{error:#}"));
        }
        failures.extend(stage.failures.iter().map(|failure| format!("[{edition}] {failure}")));
        println!("scenes on containerd {edition}: {:.0} s", since.elapsed().as_secs_f64());
    }
    ensure!(failures.is_empty(), "{} scenes failed:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

/// Who usually delivers, for the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usually {
    /// The first pull of a cluster.
    Origin,
    /// All others.
    Peer,
}

/// An image on the registry that nobody pulled yet.
pub struct Fresh {
    /// The image.
    pub image: Image,
    /// Where it was pushed.
    pub repository: String,
}

impl Fresh {
    /// As `crictl` names it.
    pub fn name(&self) -> String {
        format!("{}/{}:1", registry::HOST, self.repository)
    }

    /// The same by the manifest's digest.
    pub fn by_digest(&self) -> String {
        format!("{}/{}@{}", registry::HOST, self.repository, self.image.digest)
    }
}

/// A pull that runs.
pub struct Pulling {
    since: Instant,
    pull: tokio::task::JoinHandle<Result<(String, Instant)>>,
}

impl Pulling {
    /// Its end: seconds.
    ///
    /// # Errors
    /// When the pull failed: what `crictl` printed.
    pub async fn end(self) -> Result<f64> {
        let (_, at) = self.pull.await??;
        Ok((at - self.since).as_secs_f64())
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.pull.is_finished()
    }
}

impl Stage {
    /// Starts a world whose nodes are of one cluster, and measures undisturbed pulls on `a1` and `a2`.
    ///
    /// # Errors
    /// When something can't be started, or a pull fails.
    pub async fn start(plan: WorldPlan, seed: u64) -> Result<Self> {
        let edition = plan.edition.to_string();
        let mut world = World::start(plan).await?;
        world.start_nodes().await?;
        let mut stage = Self { world, edition, seed, baseline: (0.0, 0.0), failures: Vec::new() };
        let image = stage.fresh("baseline").await?;
        stage.baseline.0 = stage.pull("a1", &image)?.end().await?;
        stage.baseline.1 = stage.pull("a2", &image)?.end().await?;
        println!("undisturbed on {}: origin {:.2} s, peer {:.2} s", stage.edition, stage.baseline.0, stage.baseline.1);
        Ok(stage)
    }

    /// Plays one scene and keeps its row. What fails is remembered with its name, and the next scene finds everything running
    /// again. `SHOAL_LAB_SCENE` plays only those whose name contains it.
    pub async fn scene(&mut self, fault: &str, play: impl AsyncFnOnce(&mut Self) -> Result<Row>) {
        if std::env::var("SHOAL_LAB_SCENE").is_ok_and(|only| !fault.contains(&only)) {
            return;
        }
        let since = Instant::now();
        let played = tokio::time::timeout(SCENE_LIMIT, play(self)).await;
        let played = played.unwrap_or_else(|_| bail!("not over after {SCENE_LIMIT:?}"));
        let played = played.and_then(|row| super::record(&row));
        let restored = self.restore().await.context("bring everything back afterwards");
        for error in [played, restored].into_iter().filter_map(Result::err) {
            println!("FAILED: {fault}: {error:#}");
            self.failures.push(format!("{fault}: {error:#}"));
        }
        println!("    {:.1} s for the scene: {fault}", since.elapsed().as_secs_f64());
    }

    /// Whether slow scenes are played too: `SHOAL_LAB_LONG=1`.
    pub fn long_scenes() -> bool {
        std::env::var_os("SHOAL_LAB_LONG").is_some_and(|value| value != "0")
    }

    /// Starts again what a scene has ended or stopped, and waits until control knows every node.
    ///
    /// # Errors
    /// When something does not come back.
    pub async fn restore(&mut self) -> Result<()> {
        let names: Vec<String> = self.world.nodes().keys().cloned().collect();
        self.world.control()?.revive().await?;
        for name in names {
            let node = self.world.node(&name)?;
            node.shoal()?.revive().await.with_context(|| format!("shoal-node of {name}"))?;
            node.containerd.revive().await.with_context(|| format!("containerd of {name}"))?;
        }
        self.world.all_connected().await
    }

    /// A new image, pushed.
    ///
    /// # Errors
    /// When it can't be built or pushed.
    pub async fn fresh(&mut self, name: &str) -> Result<Fresh> {
        self.seed += 1;
        let image = Image::obtain(&Plan::random(self.seed, LAYERS.to_vec()))?;
        let repository = format!("lab/{name}-{}", self.seed);
        self.world.registry.push(&image, &repository, "1").await?;
        Ok(Fresh { image, repository })
    }

    /// Starts a pull by tag.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn pull(&mut self, node: &str, image: &Fresh) -> Result<Pulling> {
        Ok(start(self.world.node(node)?.containerd.puller(), image.name()))
    }

    /// Starts a pull by digest.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn pull_by_digest(&mut self, node: &str, image: &Fresh) -> Result<Pulling> {
        Ok(start(self.world.node(node)?.containerd.puller(), image.by_digest()))
    }

    /// Waits until a node has fetched at least so many bytes since the watch began, from origin and peers, and fails when its
    /// pull ended before: then the fault would hit nothing.
    ///
    /// # Errors
    /// When the pull is over, or nothing moves for 20 s.
    pub async fn fetched(&mut self, node: &str, watch: &Watch, bytes: u64, pulling: &Pulling) -> Result<()> {
        let before = watch.fetched(node);
        let shoal = self.world.node(node)?.shoal()?;
        let moved = eventually(Duration::from_secs(20), "bytes to move", || async {
            let now: u64 = shoal.bytes_by_source().await?.values().sum();
            ensure!(now >= before + bytes, "{} bytes so far", now - before);
            Ok(())
        });
        moved.await?;
        ensure!(!pulling.is_over(), "the pull on {node} was over before the fault");
        Ok(())
    }

    /// Begins to watch.
    ///
    /// # Errors
    /// When logs or metrics can't be read.
    pub async fn watch(&mut self) -> Result<Watch> {
        Watch::take(&mut self.world).await
    }

    /// Makes the row of a pull that took `seconds` and that was watched. `log`: daemon, and part of a line that must be there;
    /// `metric`: node, and the start of a sample's line that must have grown.
    ///
    /// # Errors
    /// When the log line or the metric is not there, or anything is wrong in a store.
    pub async fn row(&mut self, fault: &str, watch: &Watch, pull: Pulled<'_>) -> Result<Row> {
        aftermath::check(&mut self.world).await.with_context(|| format!("after: {fault}"))?;
        let usual = match pull.usually {
            Usually::Origin => self.baseline.0,
            Usually::Peer => self.baseline.1,
        };
        let log = eventually(Duration::from_secs(5), "the line in the log", || async { watch.line(pull.log) }).await?;
        let node = self.world.node(pull.metric.0)?;
        let metrics = node.shoal()?.admin().get_text("/metrics").await?;
        let metric = watch.moved(pull.metric.0, pull.metric.1, &metrics)?;
        Ok(Row {
            fault: fault.to_owned(),
            containerd: self.edition.clone(),
            saw: watch.saw(&self.world, pull.node)?,
            delivered: watch.delivered(&mut self.world, pull.node).await?,
            lost_seconds: pull.seconds - usual,
            log,
            metric,
        })
    }
}

fn start(puller: Puller, image: String) -> Pulling {
    let pull = async move { puller.pull(&image).await.map(|said| (said, Instant::now())) };
    Pulling { since: Instant::now(), pull: tokio::spawn(pull) }
}

/// A pull that a row is about.
#[derive(Debug, Clone, Copy)]
pub struct Pulled<'a> {
    /// Where.
    pub node: &'a str,
    /// How long it took.
    pub seconds: f64,
    /// With what it is compared.
    pub usually: Usually,
    /// Whose log (`control`, or a node), and part of the line.
    pub log: (&'a str, &'a str),
    /// Which node's metric, and how the sample's line begins.
    pub metric: (&'a str, &'a str),
}

/// How far logs and counters were when it was taken.
pub struct Watch {
    logs: BTreeMap<String, (PathBuf, usize)>,
    containerd: BTreeMap<String, (PathBuf, usize)>,
    metrics: BTreeMap<String, String>,
    reads: usize,
}

impl Watch {
    async fn take(world: &mut World) -> Result<Self> {
        let length = |path: &Path| fs::metadata(path).map(|meta| meta.len() as usize).unwrap_or(0);
        let names: Vec<String> = world.nodes().keys().cloned().collect();
        let mut watch = Self {
            logs: BTreeMap::new(),
            containerd: BTreeMap::new(),
            metrics: BTreeMap::new(),
            reads: world.registry.access_log()?.len(),
        };
        let control = world.control()?.log().to_owned();
        watch.logs.insert("control".into(), (control.clone(), length(&control)));
        for name in names {
            let node = world.node(&name)?;
            let log = node.containerd.log().to_owned();
            watch.containerd.insert(name.clone(), (log.clone(), length(&log)));
            let shoal = node.shoal()?;
            watch.logs.insert(name.clone(), (shoal.log().to_owned(), length(shoal.log())));
            let metrics = shoal.admin().get_text("/metrics").await.unwrap_or_default();
            watch.metrics.insert(name, metrics);
        }
        Ok(watch)
    }

    fn fetched(&self, node: &str) -> u64 {
        let text = self.metrics.get(node).map_or("", String::as_str);
        let of = |metric| sample(text, metric).unwrap_or(0.0) as u64;
        of("shoal_blob_from_origin_bytes_total ") + of("shoal_blob_from_peers_bytes_total ")
    }

    /// What a log got since then.
    fn since(logs: &BTreeMap<String, (PathBuf, usize)>, who: &str) -> Result<String> {
        let (path, from) = logs.get(who).with_context(|| format!("{who} is not watched"))?;
        let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        Ok(String::from_utf8_lossy(bytes.get(*from..).unwrap_or_default()).into_owned())
    }

    /// The first line of a daemon's log since then that has the text: level, message, and what is known beside it.
    ///
    /// # Errors
    /// When there is none.
    pub fn line(&self, (who, part): (&str, &str)) -> Result<String> {
        let text = Self::since(&self.logs, who)?;
        let found = text.lines().find(|line| line.contains(part));
        let line = found.with_context(|| format!("the log of {who} has no line with {part:?} since the fault"))?;
        let Ok(said) = serde_json::from_str::<serde_json::Value>(line) else { return Ok(line.to_owned()) };
        let field = |name: &str| said["fields"][name].as_str().or_else(|| said[name].as_str()).map(str::to_owned);
        let mut short = format!("{} {}", said["level"].as_str().unwrap_or(""), field("message").unwrap_or_default());
        for key in ["error", "why", "reason", "cause"] {
            if let Some(value) = field(key) {
                short.push_str(&format!(" {key}={value}"));
            }
        }
        Ok(format!("{}: {short}", if who == "control" { "shoal-control" } else { "shoal-node" }))
    }

    /// How much a sample grew.
    fn moved(&self, node: &str, start: &str, now: &str) -> Result<String> {
        let before = self.metrics.get(node).and_then(|text| sample(text, start)).unwrap_or(0.0);
        let now = sample(now, start).with_context(|| format!("{node} has no metric {start}"))?;
        // A restarted daemon counts from 0.
        let grown = if now >= before { now - before } else { now };
        ensure!(grown > 0.0, "{start} of {node} did not move: {before} before, {now} after");
        Ok(format!("{} +{grown}", start.trim()))
    }

    /// Answers that containerd got since then, by host and status.
    fn saw(&self, world: &World, node: &str) -> Result<String> {
        let text = Self::since(&self.containerd, node)?;
        let mut seen: BTreeMap<(&str, String), usize> = BTreeMap::new();
        for line in text.lines() {
            let Ok(said) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            let (Some(url), Some(status)) = (said["url"].as_str(), said["response.status"].as_str()) else { continue };
            let host = if url.contains("127.0.0.1:5080") { "us" } else { "registry" };
            let status = status.split(' ').next().unwrap_or_default().to_owned();
            *seen.entry((host, status)).or_default() += 1;
        }
        // Later versions log no answers of fetches; then our own count says what they were.
        let _ = world;
        let parts: Vec<String> =
            seen.iter().map(|((host, status), count)| format!("{host} {status} x{count}")).collect();
        Ok(if parts.is_empty() { "nothing in its log".to_owned() } else { parts.join(", ") })
    }

    /// Bytes that the node got since then, by who gave them.
    async fn delivered(&self, world: &mut World, node: &str) -> Result<String> {
        let (mut through_us, mut directly) = (0, 0);
        for line in world.registry.access_log()?.iter().skip(self.reads).filter(|line| line.is_read()) {
            if world.name_of(line.from).as_deref() != Some(node) {
                continue;
            }
            let ours = line.agent.starts_with("shoal-node/");
            *(if ours { &mut through_us } else { &mut directly }) += line.bytes;
        }
        let metrics = world.node(node)?.shoal()?.admin().get_text("/metrics").await?;
        let peers = "shoal_blob_from_peers_bytes_total ";
        let before = self.metrics.get(node).and_then(|text| sample(text, peers)).unwrap_or(0.0);
        let now = sample(&metrics, peers).unwrap_or(0.0);
        let peers = if now >= before { now - before } else { now };
        let parts = [("origin", through_us as f64), ("peers", peers), ("registry directly", directly as f64)];
        let parts = parts.map(|(who, bytes)| format!("{who} {:.1} MiB", bytes / MIB));
        Ok(parts.join(", "))
    }

    /// Bytes of content that containerd on any node read from the registry past us since then.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn past_us(&self, world: &World) -> Result<u64> {
        let log = world.registry.access_log()?;
        let past = log.iter().skip(self.reads).filter(|line| line.is_read() && !line.agent.starts_with("shoal-node/"));
        Ok(past.filter(|line| world.name_of(line.from).is_some()).map(|line| line.bytes).sum())
    }

    /// Bytes of content that nodes (ours, not containerd) read from the origin since then.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn origin_bytes(&self, world: &World) -> Result<u64> {
        let log = world.registry.access_log()?;
        let ours = log.iter().skip(self.reads).filter(|line| line.is_read() && line.agent.starts_with("shoal-node/"));
        Ok(ours.map(|line| line.bytes).sum())
    }
}

/// The value of the first sample whose line begins so.
fn sample(text: &str, start: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(start)?.trim().parse().ok())
}

/// Fails unless a metric with a label has a value.
///
/// # Errors
/// When it has not.
pub fn expect_label(text: &str, metric: &str, label: &str, value: &str) -> Result<u64> {
    match labelled(text, metric, label).get(value) {
        Some(count) => Ok(*count),
        None => bail!("no {metric}{{{label}=\"{value}\"}}"),
    }
}
