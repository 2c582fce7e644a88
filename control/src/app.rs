//! The composition root: the only place that names concrete types, makes them in order, and ends them in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use shoal_base::drain::{self, Signals};
use shoal_base::{listen, metrics, telemetry};
use tokio::net::TcpListener;

use crate::api::{grpc, rest};
use crate::clusters::{self, Clusters};
use crate::config::Config;
use crate::nodes::{self, Nodes};
use crate::store::{SqliteStore, Store};
use crate::swarm::{self, Swarm};

pub mod cli;

/// A control service that is put together and listens, but does not serve yet.
pub struct App {
    config: Config,
    telemetry: telemetry::Guard,
    store: Arc<SqliteStore>,
    clusters: Arc<Clusters>,
    nodes: Arc<Nodes>,
    swarm: Arc<Swarm>,
    registry: Arc<metrics::Registry>,
    grpc: TcpListener,
    rest: TcpListener,
}

impl App {
    /// Makes every part and binds every port, so that a fault shows before anything is served.
    ///
    /// # Errors
    /// What can't be made, and why.
    pub async fn build(config: Config) -> anyhow::Result<Self> {
        let telemetry = telemetry::init("shoal-control", &host_name(), &config.telemetry)?;
        if let Err(error) = listen::raise_open_files() {
            tracing::warn!(%error, "raise the limit of open files");
        }
        let mut registry = metrics::Registry::new("shoal");
        registry.build_info("shoal-control", env!("CARGO_PKG_VERSION"));
        registry.process();

        let store = Arc::new(SqliteStore::open(&config.state_dir).await.context("open the store")?);
        let counted = clusters::Metrics::register(registry.sub("clusters"));
        let clusters = Clusters::open(Arc::clone(&store) as Arc<dyn Store>, &config.clusters, counted);
        let clusters = Arc::new(clusters.await.context("open the clusters")?);
        let swarm = Arc::new(Swarm::new(swarm::Metrics::register(registry.sub("swarm"))));
        let counted = nodes::Metrics::register(registry.sub("nodes"));
        let watcher = Arc::clone(&swarm) as Arc<dyn nodes::Watcher>;
        let nodes = Arc::new(Nodes::new(nodes::Config::default(), clusters.watch(), watcher, counted));

        let bind = |key: &'static str, addr| listen::bind(addr).with_context(|| format!("{key}: listen on {addr}"));
        let grpc = bind("grpc.listen", config.grpc_listen)?;
        let rest = bind("rest.listen", config.rest_listen)?;
        let registry = Arc::new(registry);
        Ok(Self { config, telemetry, store, clusters, nodes, swarm, registry, grpc, rest })
    }

    /// Serves until SIGTERM or SIGINT, then drains: nodes first, running requests within the grace. A second signal cuts
    /// that short.
    ///
    /// # Errors
    /// When signals can't be listened for, or a listener fails.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut signals = Signals::listen().context("listen for signals")?;
        let (trigger, drain) = drain::channel();
        tracing::info!(
            nodes = %address(&self.grpc)?,
            rest = %address(&self.rest)?,
            state = %self.config.state_dir.display(),
            clusters = self.clusters.current().clusters().len(),
            "ready"
        );
        tokio::spawn(Arc::clone(&self.nodes).run(drain.clone()));
        tokio::spawn(Arc::clone(&self.swarm).run(drain.clone()));
        // Health and metrics outlive the drain: a probe may look on while streams end.
        let (rest_end, rest_drain) = drain::channel();
        let parts = rest::Parts {
            clusters: self.clusters,
            nodes: Arc::clone(&self.nodes),
            registry: self.registry,
            drain: drain.clone(),
        };
        tokio::spawn(listen::serve_http(self.rest, rest::router(parts), rest_drain));
        let working = drain.guard();
        let mut serving = tokio::spawn(grpc::run(self.grpc, self.config.grpc, self.nodes, self.swarm, drain.clone()));

        let failed = tokio::select! {
            signal = signals.next() => {
                tracing::info!(signal, grace = ?self.config.grace, "asked to end");
                None
            }
            ended = &mut serving => Some(ended),
        };
        let asked = Instant::now();
        trigger.fire();
        if let Some(ended) = failed {
            ended.context("serve nodes")?.context("serve nodes")?;
            anyhow::bail!("serve nodes: the listener ended by itself");
        }
        // Its connections end when the streams on them have; the drain then knows of it.
        tokio::spawn(async move {
            let _working = working;
            if let Ok(Err(error)) = serving.await {
                tracing::warn!(%error, "serving nodes ended badly");
            }
        });
        let in_order = async {
            if !trigger.drained(self.config.grace).await {
                tracing::warn!(grace = ?self.config.grace, "requests still ran at the end of the grace");
            }
            rest_end.drained(self.config.grace).await;
        };
        tokio::select! {
            () = in_order => {}
            signal = signals.next() => tracing::warn!(signal, requests = drain.working(), "asked again: ends at once"),
        }
        self.store.close().await;
        tracing::info!(seconds = asked.elapsed().as_secs_f64(), "ended");
        self.telemetry.shutdown().await;
        Ok(())
    }
}

fn address(listener: &TcpListener) -> anyhow::Result<SocketAddr> {
    listener.local_addr().context("read the address of a listener")
}

/// What tells this process from others in traces.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "unnamed".to_owned() } else { name.to_owned() }
}
