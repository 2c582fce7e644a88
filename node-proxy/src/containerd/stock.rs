//! containerd's own content store, where it stays in use: its files serve the cluster, and ours give way to them.
//!
//! What containerd has stored and this node holds becomes one file ([`Disk::share`]). What containerd had before this node came is
//! hashed, slowly, and held from then on without a copy ([`Disk::hold_theirs`]). What containerd removes is this node's alone, as cache
//! within the quota, or goes with it. Blobs that are held can be lent to containerd before it asks, by a link in its store.
//!
//! containerd says what happens by events, and everything is looked at anew after each connection; that it collected a blob no
//! event says, but the count of links does. Nothing in containerd's directory is ever written but such links.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::{PluginsRequest, SubscribeRequest};
use shoal_base::backoff::Backoff;
use shoal_base::drain::Drain;
use shoal_base::limit::Limiter;
use shoal_proto::{Digest, NodeId};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use super::client::{connect, known_blobs};
use super::{Config, Removed};
use crate::store::{Change, Disk, FileIdentity, Sharing, Store};

mod hash;
mod metrics;
mod seen;

pub use metrics::Metrics;

use seen::Seen;

/// Between an event and the look at what it is about: a pull's events come together.
const SETTLES: Duration = Duration::from_millis(200);
/// What containerd collects, it collects some time after an image went; a look is cheap.
const LOOKS_AFTER: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5), Duration::from_secs(15)];
/// A look without any event.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Before containerd is connected to again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Where the content store is below containerd's root.
const BLOBS: &str = "io.containerd.content.v1.content/blobs/sha256";

/// Keeps this node's store and containerd's one.
pub struct Stock {
    me: NodeId,
    config: Config,
    store: Arc<Disk>,
    blobs: PathBuf,
    seen: Seen,
    pace: Limiter,
    metrics: Metrics,
    /// There is something to hash.
    work: Notify,
}

impl Stock {
    /// Makes it; `me` is this node.
    pub fn new(me: NodeId, config: Config, store: Arc<Disk>, metrics: Metrics) -> Arc<Self> {
        let blobs = config.root.join(BLOBS);
        let pace = Limiter::new(config.hash_rate);
        let seen = Seen::read(&config.state_dir.join("hashed"));
        Arc::new(Self { me, config, store, blobs, seen, pace, metrics, work: Notify::new() })
    }

    /// Follows containerd until the drain is signalled.
    pub async fn run(self: Arc<Self>, drain: Drain) {
        let follow = async {
            let mut backoff = Backoff::new(AGAIN.0, AGAIN.1);
            let mut said = false;
            loop {
                let error = match self.follow(&mut said, &mut backoff).await {
                    Ok(never) => match never {},
                    Err(error) => error,
                };
                if !std::mem::replace(&mut said, true) {
                    tracing::info!(containerd = %self.config.address.display(), %error, "containerd is away; its content is looked at when it is back");
                }
                sleep(backoff.next(rand::random())).await;
            }
        };
        tokio::select! {
            () = follow => {}
            () = self.hash_all() => {}
            () = self.lend_all(), if self.config.content_link => {}
            () = drain.signalled() => {}
        }
        self.seen.write();
    }

    /// One connection: events from now on, then everything that is there.
    async fn follow(
        &self,
        said: &mut bool,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, Box<dyn std::error::Error + Send + Sync>> {
        let channel = connect(&self.config.address).await?;
        let filters = vec![r#"topic~="^/images/""#.to_owned(), r#"topic~="^/content/""#.to_owned()];
        let mut subscriber = EventsClient::new(channel.clone());
        let subscribing = subscriber.subscribe(SubscribeRequest { filters });
        let mut subscribing = std::pin::pin!(subscribing);
        let mut events = None;
        // containerd answers with its first event, and hears from the moment on that it was asked.
        self.look(&channel).await?;
        if std::mem::take(said) {
            tracing::info!(containerd = %self.config.address.display(), "containerd is back");
        }
        backoff.reset();
        let mut looks: BTreeSet<Instant> = LOOKS_AFTER.iter().map(|after| Instant::now() + *after).collect();
        loop {
            let next = looks.first().copied().unwrap_or_else(|| Instant::now() + LOOK_EVERY);
            tokio::select! {
                opened = &mut subscribing, if events.is_none() => events = Some(opened?.into_inner()),
                event = next_event(&mut events) => {
                    let event = event?.ok_or("its events ended")?;
                    let now = Instant::now();
                    looks.insert(now + SETTLES);
                    if event.topic == "/images/delete" {
                        looks.extend(LOOKS_AFTER.iter().map(|after| now + *after));
                    }
                }
                () = tokio::time::sleep_until(next) => {
                    let now = Instant::now();
                    looks.retain(|due| *due > now);
                    self.look(&channel).await?;
                }
            }
        }
    }

    /// Brings both stores together: what is in both, what containerd has alone, what it removed.
    async fn look(&self, channel: &Channel) -> Result<(), tonic::Status> {
        self.leave().await;
        for digest in self.store.alone() {
            self.share(&digest).await;
        }
        let mut wanted = Vec::new();
        for digest in known_blobs(channel).await? {
            if self.store.held(&digest).is_none() && self.seen.is_new(&digest, &self.path(&digest)) {
                wanted.push(digest);
            }
        }
        self.seen.want(wanted);
        self.work.notify_one();
        Ok(())
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    async fn share(&self, digest: &Digest) {
        if !self.seen.is_new(digest, &self.path(digest)) {
            return;
        }
        match self.store.share(digest, self.path(digest)).await {
            Ok(Sharing::Gone) => {}
            Ok(sharing @ (Sharing::One | Sharing::Theirs)) => {
                tracing::debug!(%digest, ?sharing, "one copy with containerd");
                self.metrics.shared.inc();
            }
            Ok(Sharing::Differs) => {
                if self.seen.differs(digest, &self.path(digest)) {
                    tracing::error!(%digest, path = %self.path(digest).display(), "containerd's file of a blob has other bytes than the blob");
                    self.metrics.differ.inc();
                }
            }
            Err(error) => tracing::warn!(%digest, %error, "make one copy with containerd's"),
        }
    }

    /// What containerd removed.
    async fn leave(&self) {
        let left = match self.store.left_alone().await {
            Ok(left) => left,
            Err(error) => return tracing::warn!(%error, "look at what is shared with containerd"),
        };
        for digest in left {
            self.metrics.left.inc();
            if self.config.removed == Removed::Withdraw
                && let Err(error) = self.store.remove(&digest).await
            {
                // It is being read; as cache it goes when there is need of room.
                tracing::info!(%digest, %error, "withdraw what containerd removed");
            }
        }
    }

    /// Hashes what containerd has alone, one blob after the other.
    async fn hash_all(&self) {
        loop {
            self.work.notified().await;
            while let Some(digest) = self.seen.next() {
                if self.store.held(&digest).is_none() {
                    self.adopt(digest).await;
                }
            }
            self.seen.write();
        }
    }

    async fn adopt(&self, digest: Digest) {
        let path = self.path(&digest);
        let hashed = match hash::file(&self.me, &path, &self.pace, &self.metrics).await {
            Ok(Some(hashed)) => hashed,
            // Removed, or too large for a layout.
            Ok(None) => return,
            Err(error) => return tracing::warn!(%digest, path = %path.display(), %error, "hash what containerd has"),
        };
        let identity = FileIdentity::of(&hashed.metadata);
        if hashed.digest != digest {
            tracing::error!(%digest, path = %path.display(), is = %hashed.digest, "containerd's file of a blob has other bytes than the blob");
            self.metrics.differ.inc();
            return self.seen.is_bad(digest, identity);
        }
        let size = hashed.metadata.len();
        match self.store.hold_theirs(&digest, hashed.file, path, hashed.notes).await {
            Ok(Sharing::One | Sharing::Theirs) => {
                tracing::debug!(%digest, size, "containerd's blob is held here too");
                self.metrics.adopted.inc();
            }
            Ok(Sharing::Gone | Sharing::Differs) => {}
            Err(error) => tracing::warn!(%digest, %error, "hold what containerd has"),
        }
    }

    /// Lends what becomes held to containerd, before it asks for it.
    async fn lend_all(&self) {
        if let Err(why) = self.may_lend().await {
            tracing::warn!(why, "containerd.content_link: blobs are not linked into containerd's store");
            return std::future::pending().await;
        }
        let mut changes = self.store.changes();
        for digest in self.store.alone() {
            self.lend(&digest).await;
        }
        loop {
            match changes.recv().await {
                Ok(Change::Held(digest)) => self.lend(&digest).await,
                Ok(Change::Dropped(_)) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return std::future::pending().await,
            }
        }
    }

    async fn lend(&self, digest: &Digest) {
        match self.store.lend(digest, self.path(digest)).await {
            Ok(true) => drop(self.metrics.lent.inc()),
            Ok(false) => {}
            Err(error) => tracing::warn!(%digest, %error, "link a blob into containerd's store"),
        }
    }

    /// Whether the running containerd takes what lies in its store: its own plugin keeps its content, in the directory that
    /// this node sees, and on the same file system.
    async fn may_lend(&self) -> Result<(), String> {
        let mut backoff = Backoff::new(AGAIN.0, AGAIN.1);
        let plugins = loop {
            let asked = async {
                let channel = connect(&self.config.address).await.map_err(|error| error.to_string())?;
                let filters = vec!["type==io.containerd.content.v1".to_owned()];
                let request = PluginsRequest { filters };
                let plugins = IntrospectionClient::new(channel).plugins(request).await;
                plugins.map(|plugins| plugins.into_inner().plugins).map_err(|status| status.to_string())
            };
            match asked.await {
                Ok(plugins) => break plugins,
                Err(error) => tracing::debug!(error, "ask containerd for its plugins"),
            }
            sleep(backoff.next(rand::random())).await;
        };
        match plugins.iter().find(|plugin| plugin.id == "content") {
            None => return Err("containerd's own content store is turned off".into()),
            Some(plugin) if plugin.init_err.is_some() => {
                return Err("containerd's own content store did not start".into());
            }
            Some(_) => {}
        }
        if plugins.len() > 1 {
            return Err("containerd has more than one content store".into());
        }
        let (here, blobs) = (self.config.state_dir.join("link-probe"), self.blobs.clone());
        let there = blobs.with_file_name(".shoal-probe");
        let probe = tokio::task::spawn_blocking(move || {
            // containerd makes it with its first blob.
            std::fs::create_dir_all(&blobs).map_err(|error| format!("{}: {error}", blobs.display()))?;
            std::fs::write(&here, "").map_err(|error| format!("{}: {error}", here.display()))?;
            let _ = std::fs::remove_file(&there);
            let linked = std::fs::hard_link(&here, &there).map_err(|error| format!("{}: {error}", there.display()));
            let _ = (std::fs::remove_file(&here), std::fs::remove_file(&there));
            linked
        });
        probe.await.map_err(|error| error.to_string())?
    }
}

async fn next_event(
    events: &mut Option<tonic::Streaming<containerd_client::types::Envelope>>,
) -> Result<Option<containerd_client::types::Envelope>, tonic::Status> {
    match events {
        Some(events) => events.message().await,
        None => std::future::pending().await,
    }
}
