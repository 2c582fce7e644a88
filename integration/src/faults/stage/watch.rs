//! What a scene can tell of a pull: how far logs and counters were before it, and what came since.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{
    containerd::requests::{Exchange, exchanges},
    world::World,
};

const MIB: f64 = 1_048_576.0;

/// How far logs and counters were when it was taken.
pub struct Watch {
    logs: BTreeMap<String, (PathBuf, usize)>,
    containerd: BTreeMap<String, (PathBuf, usize)>,
    metrics: BTreeMap<String, String>,
    reads: usize,
}

impl Watch {
    pub(super) async fn take(world: &mut World) -> Result<Self> {
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

    /// Bytes that the node had fetched when the watch began, from origin and peers, in the life of its daemon.
    pub fn fetched(&self, node: &str) -> u64 {
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

    /// The first line of a daemon's log since then that has the text: level, message, and what is known beside it. No text: no
    /// line is looked for, for a fault that is none of the daemons'.
    ///
    /// # Errors
    /// When there is none.
    pub fn line(&self, (who, part): (&str, &str)) -> Result<String> {
        if part.is_empty() {
            return Ok("none: no fault of Shoal's".to_owned());
        }
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

    /// What a sample was, as far as it is part of what it is `now`: a daemon that was restarted counts from 0.
    fn before(&self, node: &str, start: &str, now: &str) -> f64 {
        const STARTED: &str = "process_start_time_seconds ";
        let before = self.metrics.get(node).map_or("", String::as_str);
        if sample(before, STARTED) == sample(now, STARTED) { sample(before, start).unwrap_or(0.0) } else { 0.0 }
    }

    /// How much a sample grew.
    pub(super) fn moved(&self, node: &str, start: &str, now: &str) -> Result<String> {
        let before = self.before(node, start, now);
        let now = sample(now, start).with_context(|| format!("{node} has no metric {start}"))?;
        let grown = now - before;
        ensure!(grown > 0.0, "{start} of {node} did not move: {before} before, {now} after");
        Ok(format!("{} +{grown}", start.trim()))
    }

    /// What a node's containerd asked since then, and what it was answered.
    ///
    /// # Errors
    /// When its log can't be read.
    pub fn exchanges(&self, node: &str) -> Result<Vec<Exchange>> {
        Ok(exchanges(&Self::since(&self.containerd, node)?))
    }

    /// What a node's containerd logged since then.
    ///
    /// # Errors
    /// When its log can't be read.
    pub fn containerd_log(&self, node: &str) -> Result<String> {
        Self::since(&self.containerd, node)
    }

    /// Answers that containerd got since then, by host and status.
    pub(super) fn saw(&self, node: &str) -> Result<String> {
        let mut seen: BTreeMap<(u8, String), usize> = BTreeMap::new();
        for exchange in self.exchanges(node)? {
            let answer = exchange.status().map_or("no answer".to_owned(), |status| status.to_string());
            *seen.entry((u8::from(!exchange.at_us()), answer)).or_default() += 1;
        }
        ensure!(!seen.is_empty(), "containerd of {node} asked nobody");
        let host = |which: u8| if which == 0 { "us" } else { "registry" };
        let parts: Vec<String> =
            seen.iter().map(|((which, answer), count)| format!("{} {answer} x{count}", host(*which))).collect();
        Ok(parts.join(", "))
    }

    /// Bytes that the node got since then, by who gave them.
    pub(super) async fn delivered(&self, world: &mut World, node: &str) -> Result<String> {
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
        let peers = sample(&metrics, peers).unwrap_or(0.0) - self.before(node, peers, &metrics);
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
        Ok(self.origin_readers(world)?.values().sum())
    }

    /// Nodes (ours, not containerd) that read content from the origin since then, and how many bytes each.
    ///
    /// # Errors
    /// When the log can't be read, or an address in it is no node's.
    pub fn origin_readers(&self, world: &World) -> Result<BTreeMap<String, u64>> {
        let mut readers = BTreeMap::new();
        for line in world.registry.access_log()?.iter().skip(self.reads) {
            if line.is_read() && line.agent.starts_with("shoal-node/") {
                let name = world.name_of(line.from).with_context(|| format!("{} is no node", line.from))?;
                *readers.entry(name).or_default() += line.bytes;
            }
        }
        Ok(readers)
    }
}

/// The value of the first sample whose line begins so.
fn sample(text: &str, start: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(start)?.trim().parse().ok())
}
