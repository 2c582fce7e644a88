//! The composition root: the only place that names concrete types, makes them in order, and ends them in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use shoal_base::drain::{self, Drain, Hangups, Signals, Trigger};
use shoal_base::{listen, metrics, telemetry};
use shoal_proto::NodeId;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::blob::{self, Engine};
use crate::config::Config;
use crate::containerd::forward::{self, Forward};
use crate::containerd::socket::Socket;
use crate::containerd::stock::{self, Stock};
use crate::control::{self, Difference};
use crate::mirror::{self, Mirror};
use crate::origin::Origin;
use crate::peer::{self, Peer};
use crate::store::{Disk, Store};
use crate::swarm::{self, Swarm};
use crate::{admin, containerd, origin};

use limits::Limits;
use orders::Orders;

pub mod cli;
mod content;
mod facts;
mod hosts;
mod image;
mod limits;
mod local;
mod orders;

pub use limits::Reread;

/// Changes of the store that wait for the session; beyond it the node announces everything again.
const DIFFERENCES: usize = 1024;

/// Peers that read a blob from us when we end have at least this long to go elsewhere, and no longer than that.
const FAREWELL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// How often links to files of containerd's own store are looked at, while that is not in use.
const LINKS: Duration = Duration::from_secs(60);

/// A daemon that is put together and listens, but does not serve yet.
pub struct App {
    config: Config,
    telemetry: telemetry::Guard,
    store: Arc<Disk>,
    mirror: (Arc<Mirror>, TcpListener),
    forward: Option<(Arc<Forward>, Socket)>,
    stock: Option<Arc<Stock>>,
    peer: (Arc<Peer>, TcpListener),
    admin: (listen::Http, TcpListener),
    plugin: Option<containerd::content::Plugin>,
    control: Arc<control::Client>,
    node: Arc<facts::Node>,
    limits: Limits,
    /// This node can log in somewhere.
    has_own: bool,
    /// Ends what serves containerd.
    end: (Trigger, Drain),
    /// Ends what serves peers.
    leave: (Trigger, Drain),
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

        let limits = Limits::new(config.limits);
        limits.register(registry.sub("limits"));
        let store = Disk::open(config.store.clone()).await.context("open the store")?;
        store.register(registry.sub("store"));
        let plugin = content_store(&config, &store, &me, &mut registry).await?;
        let control = control::Client::open(config.control.clone(), control::Metrics::new(registry.sub("control")))?;
        if control.secured().is_none() {
            tracing::warn!(
                allow = ?config.peer.allow,
                "tls is off: whoever connects from these networks is the node that it says it is, and everybody between reads along"
            );
        }
        let witness = Arc::new(facts::Cluster(Arc::clone(&control)));
        let origin = origin::Metrics::new(registry.sub("origin"));
        let origin_config = origin::Config { limit: limits.origin.clone(), ..config.origin.clone() };
        let origin = Origin::new(origin_config, witness, origin)?;
        let swarm = swarm::Metrics::register(registry.sub("swarm"));
        let swarm_config =
            swarm::Config { download: limits.download.clone(), tls: control.secured(), ..config.swarm.clone() };
        let swarm = Swarm::new(swarm_config, control.membership(), swarm);
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
        let peer_config = peer::Config { upload: limits.upload.clone(), tls: control.secured(), ..config.peer.clone() };
        let peer = Peer::new(peer_config, control.membership(), offers, peer);
        let mirror = mirror::Metrics::new(registry.sub("mirror"));
        let has_own = origin.has_own();
        let mirror = Mirror::new(config.mirror.clone(), origin, engine.clone(), mirror);
        let (forward, stock) = beside_containerd(&config, &me, &store, &engine, &mut registry).await?;
        let (end, leave) = (drain::channel(), drain::channel());
        let node = Arc::new(facts::Node {
            store: Arc::clone(&store),
            engine,
            peer: Arc::clone(&peer),
            control: Arc::clone(&control),
            metrics: counted,
            limits: limits.clone(),
            mode: if config.containerd.content_listen.is_some() { "plugin" } else { "stock" },
            leaving: leave.1.clone(),
        });
        let (ready, debug) = (facts::ready(Arc::clone(&node)), facts::debug(Arc::clone(&node)));
        let counted = listen::Metrics::register(registry.sub("admin"));
        let admin = admin::router(admin::Config::default(), Arc::new(registry), ready, debug, end.1.clone());
        let admin = listen::Http::new(admin).counted(counted);

        let bind = |key: &'static str, addr| listen::bind(addr).with_context(|| format!("{key}: listen on {addr}"));
        let mirror = (mirror, bind("mirror.listen", config.mirror_listen)?);
        let peer = (peer, bind("peer.listen", config.peer_listen)?);
        let admin = (admin, bind("admin.listen", config.admin_listen)?);
        tracing::info!(
            node = %me,
            mirror = %config.mirror_listen,
            peers = %config.peer_listen,
            admin = %config.admin_listen,
            containerd = forward.as_ref().map(|(_, socket)| tracing::field::display(socket.path().display())),
            held = store.usage().held_blobs,
            "ready"
        );
        Ok(Self {
            config,
            telemetry,
            store,
            mirror,
            forward,
            stock,
            peer,
            admin,
            plugin,
            control,
            node,
            limits,
            has_own,
            end,
            leave,
        })
    }

    /// Serves until SIGTERM or SIGINT, and at SIGHUP takes the limits that `reread` gives; then ends in order. containerd first: no new request, running ones within the
    /// grace, peers still served, since they may take what is being fetched. Then peers: control is told that nothing is
    /// held here, so that it names them somebody else, and no new blob is opened. A second signal cuts all of it short.
    ///
    /// # Errors
    /// When signals can't be listened for.
    pub async fn run(self, reread: Reread) -> anyhow::Result<()> {
        let mut signals = Signals::listen().context("listen for signals")?;
        tokio::spawn(self.limits.follow(Hangups::listen().context("listen for signals")?, reread));
        let ((end, drain), (leave, leaving)) = (self.end, self.leave);
        let (differences, heard) = mpsc::channel(DIFFERENCES);
        tokio::spawn(tell_differences(Arc::clone(&self.store), differences, leaving.clone()));
        if let Some(plugin) = self.plugin {
            tokio::spawn(look_at_links(Arc::clone(&self.store), drain.clone()));
            plugin.start(drain.clone()).context("start the thread of containerd's content")?;
        }
        if let Some(orders) = self.control.orders() {
            let (control, origin) = (Arc::clone(&self.control), self.config.origin.clone());
            let (engine, has_own) = (self.node.engine.clone(), self.has_own);
            let carrying = Orders { control, mirror: self.config.mirror_listen, origin, engine, has_own };
            tokio::spawn(carrying.run(orders, drain.clone()));
        }
        let (mirror, listener) = self.mirror;
        tokio::spawn(mirror.run(listener, drain.clone()));
        if let Some((forward, socket)) = self.forward {
            tokio::spawn(forward.run(socket, drain.clone()));
        }
        if let Some(stock) = self.stock {
            tokio::spawn(stock.run(drain.clone()));
        }
        let (peer, listener) = self.peer;
        tokio::spawn(peer.run(listener, leaving));
        let (admin, listener) = self.admin;
        // Health and metrics outlive the drain: a probe may look on while flights end.
        let (admin_end, admin_drain) = drain::channel();
        tokio::spawn(admin.serve(listener, admin_drain));
        // So does the session: peers may still take what is being fetched.
        let (control_end, control_drain) = drain::channel();
        tokio::spawn(Arc::clone(&self.control).run(self.node.clone(), heard, control_drain));

        // Who starts after us may begin now (systemd's Type=notify); nothing happens where nobody asked to be told.
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            tracing::warn!(%error, "tell systemd that this node is ready");
        }

        let signal = signals.next().await;
        let (asked, grace) = (Instant::now(), self.config.grace);
        // Idle connections end at once; what is left after that moment is at work.
        end.fire();
        tracing::info!(
            signal,
            ?grace,
            connections = drain.working(),
            flights = self.node.engine.flights(),
            uploads = self.node.peer.load().uploads,
            "asked to end"
        );
        let in_order = async {
            if !end.drained(grace).await {
                tracing::warn!(?grace, requests = drain.working(), "requests still ran at the end of the grace");
            }
            let left = grace.saturating_sub(asked.elapsed()).clamp(FAREWELL.0, FAREWELL.1);
            leave.drained(left).await;
        };
        tokio::select! {
            () = in_order => {}
            signal = signals.next() => tracing::warn!(signal, requests = drain.working(), "asked again: ends at once"),
        }
        control_end.fire();
        admin_end.fire();
        tracing::info!(seconds = asked.elapsed().as_secs_f64(), "ended");
        self.telemetry.shutdown().await;
        Ok(())
    }
}

/// The content store of containerd, when this node is to be that.
async fn content_store(
    config: &Config,
    store: &Arc<Disk>,
    me: &shoal_proto::NodeId,
    registry: &mut metrics::Registry,
) -> anyhow::Result<Option<containerd::content::Plugin>> {
    let Some(path) = &config.containerd.content_listen else { return Ok(None) };
    let metrics = containerd::content::Metrics::register(registry.sub("content"));
    let store = Arc::clone(store) as Arc<dyn crate::store::Content>;
    let plugin = containerd::content::Plugin::bind(config.containerd.clone(), path, store, me.clone(), metrics);
    Ok(Some(plugin.await?))
}

/// What stands before containerd and beside its store.
async fn beside_containerd(
    config: &Config,
    me: &NodeId,
    store: &Arc<Disk>,
    engine: &Engine,
    registry: &mut metrics::Registry,
) -> anyhow::Result<(Option<(Arc<Forward>, Socket)>, Option<Arc<Stock>>)> {
    let (calls, counted) =
        (forward::Metrics::new(registry.sub("containerd")), stock::Metrics::new(registry.sub("stock")));
    let forward = match &config.containerd.listen {
        None => None,
        Some(path) => {
            hosts::write(config).context("write the hosts of transfers")?;
            let socket = Socket::bind(path).await;
            let socket = socket.with_context(|| format!("containerd.listen: listen at {}", path.display()))?;
            Some((Forward::new(config.containerd.clone(), engine.clone(), calls), socket))
        }
    };
    // As a plugin, this node is containerd's store.
    let stock = (config.containerd.content_listen.is_none())
        .then(|| Stock::new(me.clone(), config.containerd.clone(), Arc::clone(store), counted));
    Ok((forward, stock))
}

/// What was linked to files of containerd's own store counts against the quota once those are removed.
async fn look_at_links(store: Arc<Disk>, drain: Drain) {
    loop {
        if let Err(error) = store.left_alone().await {
            tracing::warn!(%error, "look at the links of blobs");
        }
        tokio::select! {
            () = tokio::time::sleep(LINKS) => {}
            () = drain.signalled() => return,
        }
    }
}

/// Turns the store's changes into what the session announces; at the end that everything is to be listed anew, which is
/// nothing by then.
async fn tell_differences(store: Arc<Disk>, out: mpsc::Sender<Difference>, leaving: Drain) {
    use tokio::sync::broadcast::error::RecvError;
    let mut changes = store.changes();
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            () = leaving.signalled() => {
                // A session that is gone has nobody to tell. One that lives goes on until the very end.
                let _ = out.send(Difference::Everything).await;
                return out.closed().await;
            }
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
