//! The composition root: the only place that names concrete types, makes them in order, and ends them in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use shoal_base::drain::{self, Drain, Signals};
use shoal_base::tls::{self, Keeper};
use shoal_base::{listen, metrics, telemetry};
use tokio::net::TcpListener;

use crate::api::{grpc, rest};
use crate::clusters::{self, Clusters};
use crate::config::{Config, RestTls};
use crate::console;
use crate::identity::{self, Access, Authority, FirstToken, Identity};
use crate::nodes::{self, Nodes};
use crate::preheat::{self, Preheats};
use crate::store::{self, Identities, SqliteStore, Store};
use crate::swarm::{self, Swarm};

pub mod cli;

/// A control service that is put together and listens, but does not serve yet.
pub struct App {
    config: Config,
    telemetry: telemetry::Guard,
    store: Arc<SqliteStore>,
    access: Arc<Access>,
    identity: Option<Arc<Identity>>,
    clusters: Arc<Clusters>,
    nodes: Arc<Nodes>,
    swarm: Arc<Swarm>,
    preheats: Arc<Preheats>,
    feed: Arc<rest::Feed>,
    registry: Arc<metrics::Registry>,
    grpc: TcpListener,
    rest: TcpListener,
    certificate: Option<rest::Certificate>,
    http: listen::Metrics,
    connections: grpc::Metrics,
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
        let feed = Arc::new(rest::Feed::default());
        let access = open_access(&config, Arc::clone(&store) as Arc<dyn Identities>, Arc::clone(&feed)).await?;
        let counted = identity::Metrics::register(registry.sub("identity"));
        let identity =
            open_identity(&config, Arc::clone(&store) as Arc<dyn Identities>, counted, Arc::clone(&feed)).await?;

        let swarm = Swarm::new(swarm::Metrics::register(registry.sub("swarm")));
        let swarm = Arc::new(swarm.followed(Arc::clone(&feed) as Arc<dyn swarm::Follower>));
        let counted = nodes::Metrics::register(registry.sub("nodes"));
        let watcher = Arc::new((Arc::clone(&swarm), Arc::clone(&feed))) as Arc<dyn nodes::Watcher>;
        let nodes = Arc::new(Nodes::new(nodes::Config::default(), clusters.watch(), watcher, counted));

        let counted = preheat::Metrics::register(registry.sub("preheats"));
        let preheats =
            Preheats::open(Arc::clone(&store) as Arc<dyn store::Preheats>, Arc::clone(&nodes), counted).await;
        let preheats = preheats.context("read the preheats")?;
        preheats.followed_by(Arc::clone(&feed) as Arc<dyn preheat::Follower>);

        let bind = |key: &'static str, addr| listen::bind(addr).with_context(|| format!("{key}: listen on {addr}"));
        let grpc = bind("grpc.listen", config.grpc_listen)?;
        let rest = bind("rest.listen", config.rest_listen)?;
        let certificate = open_certificate(&config, identity.as_ref(), &mut registry)?;
        let http = listen::Metrics::register(registry.sub("rest"));
        let connections = grpc::Metrics::register(registry.sub("grpc"));
        let registry = Arc::new(registry);
        Ok(Self {
            config,
            telemetry,
            store,
            access,
            identity,
            clusters,
            nodes,
            swarm,
            preheats,
            feed,
            registry,
            grpc,
            rest,
            certificate,
            http,
            connections,
        })
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
            rest_tls = self.certificate.is_some(),
            state = %self.config.state_dir.display(),
            clusters = self.clusters.current().clusters().len(),
            "ready"
        );
        tokio::spawn(Arc::clone(&self.nodes).run(drain.clone()));
        tokio::spawn(Arc::clone(&self.swarm).run(Arc::clone(&self.nodes), drain.clone()));
        tokio::spawn(Arc::clone(&self.preheats).run(drain.clone()));
        tokio::spawn(Arc::clone(&self.feed).run(&self.clusters, drain.clone()));
        // Health and metrics outlive the drain: a probe may look on while streams end.
        let (rest_end, rest_drain) = drain::channel();
        let gate = match &self.identity {
            Some(identity) => {
                let keeper = Keeper::new();
                keeper.trust([identity.authority().certificate()]).context("trust the authority of the nodes")?;
                let renewing = show_own(identity, &keeper).context("certify this service")?;
                tokio::spawn(keep_certified(Arc::clone(identity), Arc::clone(&keeper), renewing, drain.clone()));
                grpc::Gate::secured(Arc::clone(identity), &keeper)
            }
            None => grpc::Gate::open(),
        };
        let parts = rest::Parts {
            access: self.access,
            identity: self.identity,
            clusters: self.clusters,
            nodes: Arc::clone(&self.nodes),
            swarm: Arc::clone(&self.swarm),
            preheats: Arc::clone(&self.preheats),
            feed: self.feed,
            shapes: Arc::default(),
            registry: self.registry,
            drain: drain.clone(),
        };
        let api = rest::router(parts);
        let pages = console::router(api.clone(), self.certificate.is_some(), address(&self.grpc)?.port());
        let http = listen::Http::new(api.merge(pages)).counted(self.http);
        let http = http.tls(self.certificate.as_ref().map(rest::Certificate::server));
        tokio::spawn(http.serve(self.rest, rest_drain));
        if let Some(certificate) = self.certificate {
            tokio::spawn(certificate.run(drain.clone()));
        }
        let working = drain.guard();
        let parts = grpc::Parts {
            nodes: self.nodes,
            swarm: self.swarm,
            preheats: self.preheats,
            gate,
            metrics: self.connections,
        };
        let mut serving = tokio::spawn(grpc::run(self.grpc, self.config.grpc, parts, drain.clone()));

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

/// The API tokens. The first one, if it is made here, is printed: once, and to standard error alone.
async fn open_access(
    config: &Config,
    store: Arc<dyn Identities>,
    feed: Arc<rest::Feed>,
) -> anyhow::Result<Arc<Access>> {
    let supplied = match &config.admin_token_file {
        Some(path) => {
            let text = tokio::fs::read_to_string(path).await;
            Some(text.with_context(|| format!("rest.admin_token_file: read {}", path.display()))?.trim().to_owned())
        }
        None => None,
    };
    let (access, first) = Access::open(store, supplied.as_deref()).await.context("open the API tokens")?;
    match first {
        FirstToken::Made(token) => {
            eprintln!("The first API token, of an admin. It is not shown again:\n\n    {token}\n");
        }
        FirstToken::Supplied => tracing::info!("took the first API token from rest.admin_token_file"),
        FirstToken::None => {}
    }
    Ok(Arc::new(access.followed(feed)))
}

async fn open_identity(
    config: &Config,
    store: Arc<dyn Identities>,
    metrics: identity::Metrics,
    feed: Arc<rest::Feed>,
) -> anyhow::Result<Option<Arc<Identity>>> {
    if config.tls == tls::Mode::Off {
        tracing::warn!(
            allow = ?config.grpc.allow,
            "tls is off: whoever connects from these networks is the node that it says it is, and everybody between reads along"
        );
        return Ok(None);
    }
    let authority = match &config.authority {
        Some((certificate, key)) => Authority::supplied(certificate, key, config.trust_domain.clone()),
        None => Authority::open(&config.state_dir, config.trust_domain.clone()),
    };
    let authority = authority.context("open the authority of the nodes")?;
    let identity = Identity::open(config.identity.clone(), authority, store, metrics).await;
    Ok(Some(Arc::new(identity.context("open the members")?.followed(feed))))
}

/// What REST shows; `None`: it speaks without TLS.
fn open_certificate(
    config: &Config,
    identity: Option<&Arc<Identity>>,
    registry: &mut metrics::Registry,
) -> anyhow::Result<Option<rest::Certificate>> {
    let source = match (&config.rest_tls, identity) {
        (RestTls::Plain, _) => {
            if !config.rest_listen.ip().is_loopback() {
                tracing::warn!(
                    listen = %config.rest_listen,
                    "rest.tls is off beyond loopback: everybody between reads API tokens along"
                );
            }
            return Ok(None);
        }
        (RestTls::Files(certificate, key), _) => {
            rest::Source::Files { certificate: certificate.clone(), key: key.clone() }
        }
        (RestTls::Authority(names), Some(identity)) => {
            rest::Source::Authority { identity: Arc::clone(identity), names: names.clone() }
        }
        (RestTls::Authority(_), None) => anyhow::bail!("rest.tls: there is no authority to certify this port"),
    };
    let opened = rest::Certificate::open(source, registry.sub("rest"));
    opened.map(Some).map_err(|why| anyhow::anyhow!("open the certificate of REST: {why}"))
}

/// Shows a new certificate of this service from now on. How long until the next.
fn show_own(identity: &Identity, keeper: &Keeper) -> anyhow::Result<Duration> {
    let (chain, key, until) = identity.own()?;
    keeper.show(chain, key)?;
    Ok(until)
}

async fn keep_certified(identity: Arc<Identity>, keeper: Arc<Keeper>, mut until: Duration, drain: Drain) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(until) => {}
            () = drain.signalled() => return,
        }
        until = show_own(&identity, &keeper).unwrap_or_else(|error| {
            tracing::error!(%error, "can't renew the certificate of this service; tries again in a minute");
            Duration::from_secs(60)
        });
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
