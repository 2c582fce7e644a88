//! What scenarios of faults play on: a world, images of one size, and a watch over what a pull did.
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    aftermath::{self, Ground},
    containerd::{Puller, edition::Edition},
    image::{Image, Plan},
    node::labelled,
    registry,
    wait::eventually,
    world::{World, WorldPlan},
};

use super::{Row, journal};

mod watch;

pub use watch::Watch;

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
const SCENE_LIMIT: Duration = Duration::from_secs(300);

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
        let ground = Ground::take()?;
        let played = on_one(plan(edition), seed, &play).await;
        let left = ground.is_restored().await.context("after the world was taken down");
        let failed = played.unwrap_or_else(|error| vec![format!("set the stage: {error:#}")]);
        let failed = failed.into_iter().chain(left.err().map(|error| format!("{error:#}")));
        failures.extend(failed.map(|failure| format!("[{edition}] {failure}")));
        println!("scenes on containerd {edition}: {:.0} s", since.elapsed().as_secs_f64());
    }
    ensure!(failures.is_empty(), "{} scenes failed:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

/// Plays in a world of its own; gives what failed.
async fn on_one(plan: WorldPlan, seed: u64, play: &impl AsyncFn(&mut Stage) -> Result<()>) -> Result<Vec<String>> {
    let mut stage = Stage::start(plan, seed).await?;
    if let Err(error) = play(&mut stage).await {
        stage.failures.push(format!("{error:#}"));
    }
    // Once more, for what came when everything was brought back after the last scene.
    if let Err(error) = aftermath::check(&mut stage.world).await {
        stage.failures.push(format!("after all scenes: {error:#}"));
    }
    Ok(std::mem::take(&mut stage.failures))
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
        self.play(fault, false, play).await;
    }

    /// As [`Stage::scene`], for one that takes long: it is played by `make test-all` only.
    pub async fn long_scene(&mut self, fault: &str, play: impl AsyncFnOnce(&mut Self) -> Result<Row>) {
        if Self::long_scenes() {
            self.play(fault, true, play).await;
        }
    }

    /// Whether scenes that take long are asked for (`SHOAL_LAB_LONG`).
    pub fn long_scenes() -> bool {
        std::env::var_os("SHOAL_LAB_LONG").is_some_and(|value| value != "0" && !value.is_empty())
    }

    async fn play(&mut self, fault: &str, long: bool, play: impl AsyncFnOnce(&mut Self) -> Result<Row>) {
        if std::env::var("SHOAL_LAB_SCENE").is_ok_and(|only| !fault.contains(&only)) {
            return;
        }
        let since = Instant::now();
        let played = tokio::time::timeout(SCENE_LIMIT, play(self)).await;
        let played = played.unwrap_or_else(|_| bail!("not over after {SCENE_LIMIT:?}"));
        let played = played.and_then(|row| {
            ensure!(row.fault == fault, "its row is called {:?}", row.fault);
            super::record(&row)
        });
        let restored = self.restore().await.context("bring everything back afterwards");
        let failures: Vec<String> =
            [played, restored].into_iter().filter_map(Result::err).map(|error| format!("{fault}: {error:#}")).collect();
        let seconds = since.elapsed().as_secs_f64();
        let green = failures.is_empty();
        let (name, containerd) = (fault.to_owned(), self.edition.clone());
        let noted = journal::add(&journal::Played { fault: name, containerd, seconds, long, green });
        for failure in failures.into_iter().chain(noted.err().map(|error| format!("{fault}: {error:#}"))) {
            println!("FAILED: {failure}");
            self.failures.push(failure);
        }
        println!("    {seconds:.1} s for the scene: {fault}");
    }

    /// Starts again what a scene has ended or stopped, and waits until control knows every node.
    ///
    /// # Errors
    /// When something does not come back.
    pub async fn restore(&mut self) -> Result<()> {
        let names: Vec<String> = self.world.nodes().keys().cloned().collect();
        self.world.registry.revive().await?;
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
        self.moved(node, watch, bytes).await?;
        ensure!(!pulling.is_over(), "the pull on {node} was over before the fault");
        Ok(())
    }

    /// Waits until a node has fetched at least so many bytes since the watch began, from origin and peers.
    ///
    /// # Errors
    /// When nothing moves for 20 s.
    pub async fn moved(&mut self, node: &str, watch: &Watch, bytes: u64) -> Result<()> {
        let before = watch.fetched(node);
        let shoal = self.world.node(node)?.shoal()?;
        let moved = eventually(Duration::from_secs(20), "bytes to move", || async {
            let now: u64 = shoal.bytes_by_source().await?.values().sum();
            ensure!(now >= before + bytes, "{} bytes so far", now - before);
            Ok(())
        });
        moved.await
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
            saw: watch.saw(pull.node)?,
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
    /// Whose log (`control`, or a node), and part of the line; empty when no daemon has anything to say.
    pub log: (&'a str, &'a str),
    /// Which node's metric, and how the sample's line begins.
    pub metric: (&'a str, &'a str),
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
