//! The composition root: the only place that names concrete types, makes them in order, and ends them in order.

use std::sync::Arc;

use anyhow::Context;
use shoal_base::drain::{self, Drain};
use shoal_base::{listen, metrics, telemetry};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::blob::{self, Engine};
use crate::config::Config;
use crate::control::{self, Difference};
use crate::mirror::{self, Mirror};
use crate::origin::Origin;
use crate::peer::{self, Peer};
use crate::store::{Disk, Store};
use crate::swarm::{self, Swarm};
use crate::{admin, origin};

pub mod cli;
mod facts;

/// Changes of the store that wait for the session; beyond it the node announces everything again.
const DIFFERENCES: usize = 1024;

/// A daemon that is put together and listens, but does not serve yet.
pub struct App {
    config: Config,
    telemetry: telemetry::Guard,
    store: Arc<Disk>,
    mirror: (Arc<Mirror>, TcpListener),
    peer: (Arc<Peer>, TcpListener),
    admin: (axum::Router, TcpListener),
    control: Arc<control::Client>,
    node: Arc<facts::Node>,
}

impl App {
    /// Makes every part and binds every port, so that a fault shows before anything is served.
    ///
    /// # Errors
    /// What can't be made, and why.
    pub async fn build(config: Config) -> anyhow::Result<Self> {
        let state = &config.state_dir;
        tokio::fs::create_dir_all(state).await.with_context(|| format!("make {}", state.display()))?;
        let me = control::node_id(state)?;
        let telemetry = telemetry::init("shoal-node", me.as_str(), &config.telemetry)?;
        if let Err(error) = listen::raise_open_files() {
            tracing::warn!(%error, "raise the limit of open files");
        }
        let mut registry = metrics::Registry::new("shoal");
        registry.build_info("shoal-node", env!("CARGO_PKG_VERSION"));
        registry.process();

        let store = Disk::open(config.store.clone()).await.context("open the store")?;
        store.register(registry.sub("store"));
        let control = control::Client::open(config.control.clone(), control::Metrics::new(registry.sub("control")))?;
        let witness = Arc::new(facts::Cluster(Arc::clone(&control)));
        let origin = origin::Metrics::new(registry.sub("origin"));
        let origin = Origin::new(config.origin.clone(), witness, origin)?;
        let swarm = swarm::Metrics::register(registry.sub("swarm"));
        let swarm = Swarm::new(config.swarm.clone(), control.membership(), swarm);
        let counted = blob::Metrics::new(registry.sub("blob"));
        let engine = Engine::new(
            config.blob.clone(),
            blob::Parts {
                me: me.clone(),
                store: Arc::clone(&store) as Arc<dyn Store>,
                upstream: Arc::clone(&origin) as Arc<dyn blob::Upstream>,
                peers: Arc::new(swarm) as Arc<dyn blob::Peers>,
                source: Arc::clone(&control) as Arc<dyn swarm::ParentSource>,
                metrics: counted.clone(),
            },
        );
        let peer = peer::Metrics::register(registry.sub("peer"));
        let offers: Arc<dyn peer::Offers> = Arc::new(engine.clone());
        let peer = Peer::new(config.peer.clone(), control.membership(), offers, peer);
        let mirror = mirror::Metrics::new(registry.sub("mirror"));
        let mirror = Mirror::new(config.mirror.clone(), origin, engine.clone(), mirror);
        let node = Arc::new(facts::Node {
            store: Arc::clone(&store),
            engine,
            peer: Arc::clone(&peer),
            control: Arc::clone(&control),
            metrics: counted,
        });
        let (ready, debug) = (facts::ready(Arc::clone(&node)), facts::debug(Arc::clone(&node)));
        let admin = admin::router(admin::Config::default(), Arc::new(registry), ready, debug);

        let bind = |key: &'static str, addr| listen::bind(addr).with_context(|| format!("{key}: listen on {addr}"));
        let mirror = (mirror, bind("mirror.listen", config.mirror_listen)?);
        let peer = (peer, bind("peer.listen", config.peer_listen)?);
        let admin = (admin, bind("admin.listen", config.admin_listen)?);
        tracing::info!(
            node = %me,
            mirror = %config.mirror_listen,
            peers = %config.peer_listen,
            admin = %config.admin_listen,
            held = store.usage().held_blobs,
            "ready"
        );
        Ok(Self { config, telemetry, store, mirror, peer, admin, control, node })
    }

    /// Serves until SIGTERM or SIGINT, then drains: listeners first, running work within the grace.
    ///
    /// # Errors
    /// When signals can't be listened for.
    pub async fn run(self) -> anyhow::Result<()> {
        let (trigger, drain) = drain::channel();
        let (differences, heard) = mpsc::channel(DIFFERENCES);
        tokio::spawn(tell_differences(Arc::clone(&self.store), differences, drain.clone()));
        let (mirror, listener) = self.mirror;
        tokio::spawn(mirror.run(listener, drain.clone()));
        let (peer, listener) = self.peer;
        tokio::spawn(peer.run(listener, drain.clone()));
        let (admin, listener) = self.admin;
        // Health and metrics outlive the drain: a probe may look on while flights end.
        let (admin_end, admin_drain) = drain::channel();
        tokio::spawn(listen::serve_http(listener, admin, admin_drain));
        // So does the session: peers may still take what is being fetched.
        let (control_end, control_drain) = drain::channel();
        tokio::spawn(Arc::clone(&self.control).run(self.node, heard, control_drain));

        drain::shutdown_signal().await?;
        drop(drain);
        if !trigger.drained(self.config.grace).await {
            tracing::warn!(grace = ?self.config.grace, "requests still ran at the end of the grace");
        }
        control_end.fire();
        admin_end.fire();
        tracing::info!("ended");
        self.telemetry.shutdown().await;
        Ok(())
    }
}

/// Turns the store's changes into what the session announces.
async fn tell_differences(store: Arc<Disk>, out: mpsc::Sender<Difference>, drain: Drain) {
    use tokio::sync::broadcast::error::RecvError;
    let mut changes = store.changes();
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            () = drain.signalled() => return,
        };
        let difference = match change {
            Ok(crate::store::Change::Held(digest)) => match store.held(&digest) {
                Some(info) => Difference::Held(facts::holding(digest, &info)),
                None => continue,
            },
            Ok(crate::store::Change::Dropped(digest)) => Difference::Dropped(digest),
            Err(RecvError::Lagged(_)) => Difference::Everything,
            Err(RecvError::Closed) => return,
        };
        if out.send(difference).await.is_err() {
            return;
        }
    }
}
