//! What must be true when all faults are over.
use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    actor::node_name,
    client::{PlainClient, Pushed},
};
use crate::{aftermath, memory, wait::eventually, world::World};

/// A flight that nobody waits for ends within 30 s; a little more for what it still does.
const QUIET: Duration = Duration::from_secs(45);
/// Descriptors of an idle daemon: sockets of listeners, pools and control, files of the store.
const MOST_DESCRIPTORS: usize = 160;
/// Gauges of a node at which nothing goes on, and their value then.
const IDLE: [&str; 3] = ["shoal_blob_flights ", "shoal_peer_active_uploads ", "shoal_swarm_active_streams "];

/// What nodes are like at the end.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct AtTheEnd {
    /// Descriptors by node.
    pub descriptors: BTreeMap<String, usize>,
    /// The most memory by node, file pages left out, since it was last started. Bytes.
    pub peak_bytes: BTreeMap<String, u64>,
    /// Lines of logs at the level ERROR: by daemon's kind, message and error.
    pub errors: BTreeMap<String, u64>,
    /// Lines at the level WARN: by daemon's kind and message.
    pub warnings: BTreeMap<String, u64>,
}

/// Everything runs again, as it would have without faults.
///
/// # Errors
/// What does not come back.
pub(super) async fn bring_back(world: &mut World) -> Result<()> {
    let names: Vec<String> = world.nodes().keys().cloned().collect();
    world.registry.revive().await.context("the registry")?;
    world.control()?.revive().await.context("control")?;
    for name in names {
        let node = world.node(&name)?;
        node.shoal()?.revive().await.with_context(|| format!("shoal-node of {name}"))?;
        node.containerd.revive().await.with_context(|| format!("containerd of {name}"))?;
    }
    world.all_connected().await
}

/// Every node pulls an image that nobody has, at the first try.
///
/// # Errors
/// The first that fails.
pub(super) async fn all_is_well(clients: &[PlainClient], fresh: &Pushed) -> Result<()> {
    for (number, client) in clients.iter().enumerate() {
        let pulled = client.pull(fresh).await;
        ensure!(pulled.is_ok(), "after all faults a first pull on {} fails: {pulled:?}", node_name(number));
    }
    Ok(())
}

/// Bytes, answers, panics, and that nothing goes on any more.
///
/// # Errors
/// The first thing that is wrong.
pub(super) async fn look(world: &mut World) -> Result<AtTheEnd> {
    let mut end = AtTheEnd::default();
    let names: Vec<String> = world.nodes().keys().cloned().collect();
    for name in &names {
        let shoal = world.node(name)?.shoal()?;
        let admin = shoal.admin().clone();
        eventually(QUIET, "nothing to go on", || async {
            let metrics = admin.get_text("/metrics").await?;
            for gauge in IDLE {
                let value = metrics.lines().find_map(|line| line.strip_prefix(gauge)).map(str::trim);
                ensure!(value == Some("0"), "{gauge}is {value:?} on {name}");
            }
            Ok(())
        })
        .await?;
        let descriptors = descriptors(shoal.pid())?;
        ensure!(descriptors <= MOST_DESCRIPTORS, "{name} has {descriptors} descriptors open and does nothing");
        end.descriptors.insert(name.clone(), descriptors);
        end.peak_bytes.insert(name.clone(), memory::peak_without_files(shoal.pid())?);
    }
    aftermath::check(world).await?;
    let mut logs = vec![("shoal-control", world.control()?.log().to_owned())];
    for name in &names {
        logs.push(("shoal-node", world.node(name)?.shoal()?.log().to_owned()));
    }
    for (daemon, log) in logs {
        let text = fs::read(&log).with_context(|| format!("read {}", log.display()))?;
        for line in String::from_utf8_lossy(&text).lines() {
            let Ok(said) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            let field =
                |name: &str| said["fields"][name].as_str().or_else(|| said[name].as_str()).unwrap_or("").to_owned();
            let message = format!("{daemon}: {}", field("message"));
            match said["level"].as_str() {
                // A person must look: they are told why.
                Some("ERROR") => *end.errors.entry(format!("{message}: {}", field("error"))).or_default() += 1,
                Some("WARN") => *end.warnings.entry(message).or_default() += 1,
                _ => {}
            }
        }
    }
    Ok(end)
}

fn descriptors(pid: u32) -> Result<usize> {
    let dir = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&dir).with_context(|| format!("read {dir}"))?.count())
}
