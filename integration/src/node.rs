//! One node: a namespace with its own containerd and its own `shoal-node`.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use http::StatusCode;
use nix::sys::signal::Signal;

use crate::{
    aftermath::held_files,
    conditions::Conditions,
    containerd::{Containerd, Kept, Programs, edition::Edition, parse_time},
    disk::Disk,
    http::Client,
    image::Image,
    net::Netns,
    process::{Daemon, run},
    registry,
    rights::User,
    wait::eventually,
};

/// Beside containerd's own.
const SOCKET: &str = "shoal.sock";
/// The socket of its content store.
const CONTENT: &str = "content.sock";
const ADMIN_PORT: u16 = 5082;

/// How a node is set up.
#[derive(Debug, Clone)]
pub struct NodePlan {
    /// Short name: `a1`.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its IDC; empty for none.
    pub idc: String,
    /// More settings of `shoal-node`, `key.path` to value in TOML's form.
    pub settings: BTreeMap<String, String>,
}

/// What a node needs of the world around it.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// `shoal-node`; `None` leaves containerd alone with the origin.
    pub shoal_node: Option<PathBuf>,
    /// containerd and crictl.
    pub programs: Programs,
    /// Which containerd that is, and how it pulls.
    pub edition: Edition,
    /// The lab's root certificate.
    pub root_ca: PathBuf,
    /// Address of control's gRPC and of the trace receiver.
    pub control: Ipv4Addr,
    /// What nodes join by; `None`: they show no certificates.
    pub join_token: Option<PathBuf>,
}

/// A running node.
pub struct Node {
    /// Its namespace.
    pub ns: Netns,
    /// Its containerd.
    pub containerd: Containerd,
    shoal: Option<ShoalNode>,
}

/// A running `shoal-node`.
pub struct ShoalNode {
    daemon: Daemon,
    program: PathBuf,
    config: PathBuf,
    /// The text of `config` as it was planned.
    planned: String,
    /// Where it keeps its state.
    pub state: PathBuf,
    admin: Client,
    ns: Netns,
    conditions: Conditions,
    /// Its own disk, over `state`. After `daemon`: it is taken down when nobody uses it.
    disk: Option<Disk>,
    boots: u32,
}

/// How long one pull took and when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PullTiming {
    /// containerd's first HEAD, seconds since the epoch.
    pub first_head: f64,
    /// The last byte of a blob in its content store, where all are committed: seconds since the epoch.
    pub last_commit: f64,
}

impl PullTiming {
    /// From the first HEAD to the last commit, in seconds.
    pub fn seconds(&self) -> f64 {
        self.last_commit - self.first_head
    }
}

impl Node {
    /// Starts `shoal-node`, then containerd, and waits for both.
    ///
    /// # Errors
    /// When either can't be started.
    pub async fn start(plan: &NodePlan, ns: Netns, dir: &Path, runtime: &Path, around: &Surroundings) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let mut hosts_toml = None;
        let mut shoal = None;
        if let Some(program) = &around.shoal_node {
            hosts_toml = Some(run(Command::new(program).args(["hosts-toml", "--registry", registry::HOST]))?);
            shoal = Some(ShoalNode::start_beside(plan, &ns, (dir, Some(runtime)), around).await?);
        }
        let (programs, places) = (&around.programs, (dir, runtime));
        let hosts_toml = hosts_toml.as_deref();
        let kept = match plan.settings.get("containerd.content").map(String::as_str) {
            Some("\"plugin\"") => by_plugin(dir, runtime),
            _ => Kept::Stock,
        };
        let containerd =
            Containerd::start(programs, around.edition, &ns, places, &around.root_ca, hosts_toml, &kept).await?;
        Ok(Self { ns, containerd, shoal })
    }

    /// Its `shoal-node`.
    ///
    /// # Errors
    /// When the lab was started without.
    pub fn shoal(&mut self) -> Result<&mut ShoalNode> {
        self.shoal.as_mut().context("this lab runs without shoal-node")
    }

    /// The same, to be asked alone.
    ///
    /// # Errors
    /// When the lab was started without.
    pub fn shoal_ref(&self) -> Result<&ShoalNode> {
        self.shoal.as_ref().context("this lab runs without shoal-node")
    }

    /// That its containerd keeps its content in its `shoal-node`.
    ///
    /// # Errors
    /// When the lab was started without.
    pub fn by_plugin(&self) -> Result<Kept> {
        let dir = self.shoal_ref()?.state.parent().context("the state is in a directory")?;
        let runtime = self.containerd.socket().parent().context("the socket is in a directory")?;
        Ok(by_plugin(dir, runtime))
    }

    /// The socket of its `shoal-node`'s content store.
    pub fn content_socket(&self) -> PathBuf {
        self.containerd.socket().with_file_name(CONTENT)
    }

    /// The socket that its `shoal-node` answers in containerd's place.
    pub fn socket(&self) -> PathBuf {
        self.containerd.socket().with_file_name(SOCKET)
    }

    /// Pulls `repository:tag` with `crictl`, checks that containerd has every blob, and tells how long it took.
    ///
    /// # Errors
    /// When the pull fails, or a blob is missing afterwards.
    pub async fn pull(&self, repository: &str, tag: &str, image: &Image) -> Result<PullTiming> {
        self.pull_by(None, repository, tag, image).await
    }

    /// The same with a user's name and password.
    ///
    /// # Errors
    /// As [`Node::pull`].
    pub async fn pull_as(&self, user: &User, repository: &str, tag: &str, image: &Image) -> Result<PullTiming> {
        self.pull_by(Some(user), repository, tag, image).await
    }

    async fn pull_by(&self, user: Option<&User>, repository: &str, tag: &str, image: &Image) -> Result<PullTiming> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        let (puller, reference) = (self.containerd.puller(), format!("{}/{repository}:{tag}", registry::HOST));
        let pulled = match user {
            Some(user) => puller.pull_as(&reference, user).await,
            None => puller.pull(&reference).await,
        };
        pulled.with_context(|| format!("pull on {}", self.ns.name))?;
        Ok(PullTiming {
            first_head: self.containerd.first_head(repository, since)?,
            last_commit: self.containerd.last_commit(image.blobs().map(|blob| blob.digest.as_str()))?,
        })
    }
}

fn by_plugin(dir: &Path, runtime: &Path) -> Kept {
    Kept::Plugin(runtime.join(CONTENT), dir.join("shoal/store/held"))
}

impl ShoalNode {
    /// Starts the daemon without containerd beside it, its state in `dir`, and waits until it is ready.
    ///
    /// # Errors
    /// When the surroundings have no `shoal-node`, or it can't be started.
    pub async fn start_alone(plan: &NodePlan, ns: &Netns, dir: &Path, around: &Surroundings) -> Result<Self> {
        Self::start_beside(plan, ns, (dir, None), around).await
    }

    /// The same beside a containerd whose sockets are in `runtime`.
    async fn start_beside(
        plan: &NodePlan,
        ns: &Netns,
        (dir, runtime): (&Path, Option<&Path>),
        around: &Surroundings,
    ) -> Result<Self> {
        let program = around.shoal_node.as_ref().context("these surroundings have no shoal-node")?;
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let (config, state) = (dir.join("shoal-node.toml"), dir.join("shoal"));
        fs::write(&config, config_text(plan, &state, (dir, runtime), around)?)?;
        Self::start(program, &config, &state, ns, dir).await
    }

    async fn start(program: &Path, config: &Path, state: &Path, ns: &Netns, dir: &Path) -> Result<Self> {
        let admin = Client::plain(ns, SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ADMIN_PORT));
        let conditions = Conditions::default();
        let daemon = Self::spawn(program, config, ns, &conditions, &dir.join("shoal-node.log"))?;
        let mut node = Self {
            daemon,
            program: program.to_owned(),
            config: config.to_owned(),
            planned: fs::read_to_string(config).with_context(|| format!("read {}", config.display()))?,
            state: state.to_owned(),
            admin,
            ns: ns.clone(),
            conditions,
            disk: None,
            boots: 0,
        };
        node.wait_ready().await?;
        Ok(node)
    }

    fn spawn(program: &Path, config: &Path, ns: &Netns, conditions: &Conditions, log: &Path) -> Result<Daemon> {
        let config = config.to_str().context("the lab's path is no text")?;
        let command = conditions.command(ns, program, &["run", "--config", config]);
        Daemon::spawn(&format!("shoal-node of {}", ns.name), command, log)
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let up = eventually(Duration::from_secs(20), "shoal-node to be ready", || async {
            let answer = self.admin.get("/readyz").await?;
            if answer.status != StatusCode::OK {
                bail!("/readyz says {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
            }
            Ok(())
        })
        .await;
        if up.is_err() {
            self.daemon.check_running()?;
        }
        up.with_context(|| format!("the end of {}:\n{}", self.daemon.log().display(), self.daemon.log_tail(10)))
    }

    /// Its program, for another command than `run`, where the daemon is.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.ns.command(&self.program);
        command.args(args);
        command
    }

    /// Its settings.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Kills it at once.
    pub fn kill(&mut self) {
        self.daemon.kill();
    }

    /// Starts it again on the same state and under the same conditions, after it was killed.
    ///
    /// # Errors
    /// When it does not come up again.
    pub async fn start_again(&mut self) -> Result<()> {
        self.spawn_again()?;
        self.wait_ready().await
    }

    /// As [`ShoalNode::start_again`], without waiting until it is ready.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn_again(&mut self) -> Result<()> {
        let log = self.daemon.log().to_owned();
        self.daemon = Self::spawn(&self.program, &self.config, &self.ns, &self.conditions, &log)?;
        Ok(())
    }

    /// Starts it again under other conditions, which hold until [`ShoalNode::revive`].
    ///
    /// # Errors
    /// When it does not come up again.
    pub async fn restart_under(&mut self, conditions: Conditions) -> Result<()> {
        self.stop(Duration::from_secs(40)).await;
        self.conditions = conditions;
        self.start_again().await
    }

    /// Starts it again on an empty disk of its own, which it has until [`ShoalNode::revive`]. `disk` makes it over the
    /// directory that it is given.
    ///
    /// # Errors
    /// When the disk can't be made, or the node does not come up on it.
    pub async fn move_to(&mut self, disk: impl FnOnce(&Path) -> Result<Disk>) -> Result<()> {
        self.stop(Duration::from_secs(40)).await;
        self.disk = Some(disk(&self.state)?);
        self.start_again().await
    }

    /// Its own disk.
    ///
    /// # Errors
    /// When it has none.
    pub fn disk(&self) -> Result<&Disk> {
        self.disk.as_ref().with_context(|| format!("{} has no disk of its own", self.ns.name))
    }

    /// Kills it, takes from its disk what was not synced, and starts it again as after a boot of the machine.
    ///
    /// # Errors
    /// When it has no disk that could lose anything, or it does not come up again.
    pub async fn cut_power(&mut self) -> Result<()> {
        self.kill();
        self.disk.as_mut().context("only a disk of its own has a power to cut")?.cut()?;
        self.boots += 1;
        let boot_id = self.config.with_file_name(format!("boot-{}", self.boots));
        let id: [u16; 8] = rand::random();
        let [a, b, c, d, e, f, g, h] = id;
        fs::write(&boot_id, format!("{a:04x}{b:04x}-{c:04x}-{d:04x}-{e:04x}-{f:04x}{g:04x}{h:04x}\n"))?;
        self.conditions.boot_id = Some(boot_id);
        self.start_again().await
    }

    /// Starts it again if it has ended, and lets it go on if it was stopped; on its usual state, under usual conditions.
    ///
    /// # Errors
    /// When it does not come up again.
    pub async fn revive(&mut self) -> Result<()> {
        if self.disk.is_some() || !self.conditions.are_usual() {
            self.kill();
            self.disk = None;
            self.conditions = Conditions::default();
        }
        if self.daemon.resume() { Ok(()) } else { self.start_again().await }
    }

    /// Waits until it has ended by itself, at most for `bound`.
    ///
    /// # Errors
    /// When it still runs.
    pub async fn ended(&mut self, bound: Duration) -> Result<()> {
        let end = tokio::time::Instant::now() + bound;
        while self.daemon.is_running() {
            if tokio::time::Instant::now() >= end {
                bail!("shoal-node of {} still runs after {bound:?}", self.ns.name);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.daemon.signal(signal)
    }

    /// Ends it by SIGTERM and says whether it ended by itself within `grace`.
    pub async fn stop(&mut self, grace: Duration) -> bool {
        tokio::task::block_in_place(|| self.daemon.stop(grace))
    }

    /// Ends it by SIGTERM, or at once, and starts it again on the same state.
    ///
    /// # Errors
    /// When it does not come up again.
    pub async fn restart(&mut self, gently: bool) -> Result<()> {
        if gently {
            self.stop(Duration::from_secs(40)).await;
        } else {
            self.kill();
        }
        self.start_again().await
    }

    /// Ends it by SIGTERM, and starts another program on the same state.
    ///
    /// # Errors
    /// When it does not end by itself, or the other does not come up.
    pub async fn replace(&mut self, program: &Path) -> Result<()> {
        if !self.stop(Duration::from_secs(40)).await {
            bail!("shoal-node of {} did not end by itself", self.ns.name);
        }
        program.clone_into(&mut self.program);
        self.start_again().await
    }

    /// When it wrote the last line of its log, by its own clock: seconds since the epoch.
    ///
    /// # Errors
    /// When the log has no line with a time.
    pub fn said_last(&self) -> Result<f64> {
        let tail = self.daemon.log_tail(20);
        let times = tail.lines().rev().filter_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            parse_time(line["timestamp"].as_str()?)
        });
        times.into_iter().next().with_context(|| format!("no time in:\n{tail}"))
    }

    /// Digests of the blobs that are held in its store now.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn held(&self) -> Result<BTreeSet<String>> {
        let files = held_files(&self.state.join("store/held"))?;
        Ok(files.into_iter().map(|(_, hex)| format!("sha256:{hex}")).collect())
    }

    /// Kills it and starts it again on the same state, with these settings beside those that it was planned with.
    ///
    /// # Errors
    /// When a setting can't be read, or it does not come up again.
    pub async fn restart_with(&mut self, settings: &[(&str, &str)]) -> Result<()> {
        let mut table: toml::Table = self.planned.parse().context("parse the node's own configuration")?;
        for (key, value) in settings {
            put(&mut table, key, value_of(key, value)?)?;
        }
        self.kill();
        fs::write(&self.config, table.to_string()).with_context(|| format!("write {}", self.config.display()))?;
        self.start_again().await
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        self.daemon.log()
    }

    /// Its admin endpoint.
    pub fn admin(&self) -> &Client {
        &self.admin
    }

    /// A value out of its metrics, by name and labels as they stand there.
    ///
    /// # Errors
    /// When the metrics can't be read, or it is none of them.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let text = self.admin.get_text("/metrics").await?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value
            .with_context(|| format!("{name} is not in /metrics"))?
            .parse()
            .with_context(|| format!("{name} is a number"))
    }

    /// Bytes fetched so far, by source (`origin`, `peer`). Not what was given to containerd: a blob that look-ahead brought
    /// from a peer before it was asked for is given out of the store.
    ///
    /// # Errors
    /// When the metrics can't be read.
    pub async fn bytes_by_source(&self) -> Result<BTreeMap<String, u64>> {
        let text = self.admin.get_text("/metrics").await?;
        let of = |metric: &str| text.lines().find_map(|line| line.strip_prefix(metric)?.trim().parse::<f64>().ok());
        let sources =
            [("origin", "shoal_blob_from_origin_bytes_total "), ("peer", "shoal_blob_from_peers_bytes_total ")];
        let fetched = sources.map(|(source, metric)| {
            let bytes = of(metric).with_context(|| format!("{metric}is not in /metrics"))?;
            Ok((source.to_owned(), bytes as u64))
        });
        fetched.into_iter().collect()
    }
}

/// Values of a metric by one label, in Prometheus' or OpenMetrics' text.
pub fn labelled(text: &str, metric: &str, label: &str) -> BTreeMap<String, u64> {
    let start = format!("{metric}{{");
    let key = format!("{label}=\"");
    let samples = text.lines().filter_map(|line| line.strip_prefix(&start)?.split_once('}'));
    let mut by_label = BTreeMap::new();
    for (labels, value) in samples {
        let Some((_, rest)) = labels.split_once(&key) else { continue };
        let name = rest.split('"').next().unwrap_or_default();
        let value: f64 = value.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
        *by_label.entry(name.to_owned()).or_default() += value as u64;
    }
    by_label
}

/// The daemon's settings: all of them, so that a default that changes shows.
fn config_text(
    plan: &NodePlan,
    state: &Path,
    (dir, runtime): (&Path, Option<&Path>),
    around: &Surroundings,
) -> Result<String> {
    let mut table = toml::toml! {
        [mirror]
        listen = "127.0.0.1:5080"
        [peer]
        listen = "0.0.0.0:5081"
        allow = ["10.77.0.0/16"]
        [telemetry]
        log = "info"
        log_format = "json"
    };
    let control = around.control;
    let origin = format!("origin.registry.\"{}\"", registry::HOST);
    let mut set = |key: &str, value: toml::Value| put(&mut table, key, value);
    set("state_dir", state.display().to_string().into())?;
    set("node.name", plan.name.clone().into())?;
    set("node.idc", plan.idc.clone().into())?;
    match &around.join_token {
        Some(token) => {
            set("control.endpoint", format!("https://{control}:6080").into())?;
            set("control.join_token_file", token.display().to_string().into())?;
        }
        None => {
            set("tls", "off".into())?;
            set("control.endpoint", format!("http://{control}:6080").into())?;
        }
    }
    match runtime {
        Some(runtime) => {
            let text = |path: PathBuf| toml::Value::from(path.display().to_string());
            fs::create_dir_all(runtime).with_context(|| format!("create {}", runtime.display()))?;
            set("containerd.address", text(runtime.join("containerd.sock")))?;
            set("containerd.listen", text(runtime.join(SOCKET)))?;
            set("containerd.content_listen", text(runtime.join(CONTENT)))?;
            set("containerd.root", text(dir.join("root")))?;
        }
        None => set("containerd.listen", "".into())?,
    }
    set("admin.listen", format!("127.0.0.1:{ADMIN_PORT}").into())?;
    set(&format!("{origin}.ca"), vec![around.root_ca.display().to_string()].into())?;
    set("telemetry.otlp_endpoint", format!("http://{control}:{}", crate::otlp::PORT).into())?;
    for (key, value) in &plan.settings {
        set(key, value_of(key, value)?)?;
    }
    Ok(table.to_string())
}

/// A setting's value, written as in TOML.
fn value_of(key: &str, value: &str) -> Result<toml::Value> {
    let parsed: toml::Table = format!("v = {value}").parse().with_context(|| format!("setting {key} = {value}"))?;
    Ok(parsed["v"].clone())
}

/// Sets a dotted key, whose quoted parts may hold dots.
fn put(table: &mut toml::Table, key: &str, value: toml::Value) -> Result<()> {
    let nested: toml::Table = format!("{key} = 0").parse().with_context(|| format!("setting {key}"))?;
    let mut names = Vec::new();
    let mut at = &toml::Value::Table(nested);
    while let toml::Value::Table(inner) = at {
        let (name, next) = inner.iter().next().with_context(|| format!("setting {key}"))?;
        names.push(name.clone());
        at = next;
    }
    let last = names.pop().with_context(|| format!("setting {key}"))?;
    let mut here = table;
    for name in names {
        let next = here.entry(name).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        here = next.as_table_mut().with_context(|| format!("setting {key} lies below a value"))?;
    }
    here.insert(last, value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_by_source_from_the_metrics_page() {
        let text = "# TYPE shoal_mirror_bytes counter\nshoal_mirror_bytes_total{source=\"origin\"} 12\n\
                    shoal_mirror_bytes_total{source=\"peer\"} 1.5e3\nshoal_other_total{source=\"peer\"} 9\n";
        let found = labelled(text, "shoal_mirror_bytes_total", "source");
        assert_eq!(found, [("origin".to_owned(), 12), ("peer".to_owned(), 1500)].into());
    }

    #[test]
    fn settings_reach_nested_keys_with_dots_in_them() {
        let mut table = toml::Table::new();
        put(&mut table, "origin.registry.\"r.test\".ca", vec!["x".to_owned()].into()).unwrap();
        put(&mut table, "store.quota", "300MiB".into()).unwrap();
        let wanted: toml::Table =
            "[origin.registry.\"r.test\"]\nca = [\"x\"]\n[store]\nquota = \"300MiB\"".parse().unwrap();
        assert_eq!(table, wanted);
    }
}
