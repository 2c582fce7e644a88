//! The session: register, heartbeats, announcements; back come assignments.

use std::sync::Arc;
use std::time::Duration;

use shoal_base::backoff::Backoff;
use shoal_base::drain::Drain;
use shoal_proto::ClusterId;
use shoal_proto::control::v1 as wire;
use shoal_proto::frame::Hello;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use wire::session_request::Message as Say;
use wire::session_response::Message as Hear;

use super::{Assigned, Client, Difference, Holding, Load, Node, Outbox, assignment, join, lists};

/// Blobs in one announcement: 1 to 2 KiB. Control keeps room for the largest message of each session, and has ten thousand of them.
pub(super) const BATCH: usize = 8;
/// How long until control is tried again, at least and at most: after a restart it must know within 5 s what nodes hold
/// (I4), the first announcement included.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));
/// What is never due is looked at once a day.
const FAR: Duration = Duration::from_secs(24 * 3600);
/// Until control says how often it wants a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(1);

impl Client {
    /// Keeps a session with control until the drain is signalled. `differences` is what the store's changes become.
    pub async fn run(self: Arc<Self>, node: Arc<dyn Node>, mut differences: mpsc::Receiver<Difference>, drain: Drain) {
        if self.channel.is_none() {
            tracing::info!("no control is configured: this node has no peers and reads the origin");
            // Nobody wants to know; the sender must not wait.
            differences.close();
            return drain.signalled().await;
        }
        let instance = rand::random();
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut away = false;
        loop {
            let lived = tokio::select! {
                lived = self.session(instance, node.as_ref(), &mut differences) => lived,
                () = drain.signalled() => return,
            };
            self.metrics.connected.set(0);
            let Err(why) = lived else { return };
            self.heed(&why);
            // A session that lived and ended is news, as is the first that did not come to be.
            if self.session.swap(None).is_some() {
                backoff.reset();
                away = false;
            }
            match away {
                false if join::is_refusal(&why) => {
                    tracing::warn!(error = why.message(), "control does not take this node, which goes on without it");
                }
                false => tracing::warn!(error = why.message(), "control is away"),
                true => tracing::debug!(error = why.message(), "control is still away"),
            }
            away = true;
            tokio::select! {
                () = tokio::time::sleep(backoff.next(rand::random())) => {}
                () = drain.signalled() => return,
            }
        }
    }

    /// One session, to its end: an error says why, Ok that nobody has news of this node any more.
    async fn session(
        &self,
        instance: u64,
        node: &dyn Node,
        differences: &mut mpsc::Receiver<Difference>,
    ) -> Result<(), tonic::Status> {
        self.be_member().await?;
        let mut grpc = self.grpc().ok_or_else(|| tonic::Status::unavailable("no control is configured"))?;
        let ip = self.ip().await.map_err(|error| tonic::Status::unavailable(format!("own address: {error}")))?;
        let (out, stream) = mpsc::channel(16);
        send(&out, Say::Register(self.register(instance, ip))).await?;
        let calling = grpc.session(ReceiverStream::new(stream));
        let mut news = tokio::time::timeout(Duration::from_secs(3), calling)
            .await
            .map_err(|_| tonic::Status::deadline_exceeded("control does not answer"))??
            .into_inner();
        // Differences from before are part of the full list that follows.
        while differences.try_recv().is_ok() {}
        let mut assigned = false;
        let mut signed_for = None;
        let mut beat = tokio::time::interval(HEARTBEAT);
        let mut session = Vec::new();
        let mut renewal = std::pin::pin!(tokio::time::sleep(FAR));
        loop {
            tokio::select! {
                message = news.message() => {
                    let message = match message {
                        Ok(Some(message)) => message.message,
                        Ok(None) => return Err(tonic::Status::unavailable("control ended the session")),
                        Err(status) => {
                            tracing::debug!(%status, "session ended");
                            return Err(status);
                        }
                    };
                    match message {
                        Some(Hear::Assigned(to)) => {
                            if to.heartbeat_ms > 0 {
                                beat = tokio::time::interval(Duration::from_millis(u64::from(to.heartbeat_ms)));
                            }
                            session.clone_from(&to.session);
                            self.assigned(to).await?;
                            renewal.as_mut().reset(tokio::time::Instant::now() + self.renewal().min(FAR));
                            self.show_certificate(&out).await?;
                            // What was signed for another cluster counts for nothing in this one.
                            let cluster = self.signs().map(|signs| signs.cluster);
                            let moved = std::mem::replace(&mut signed_for, cluster.clone()) != cluster;
                            if !std::mem::replace(&mut assigned, true) || moved {
                                self.announce_all(&out, node.holdings()).await?;
                            }
                            // Another cluster knows nothing of it.
                            self.tell_public(&out, true).await?;
                            self.tell_orders(&out, true).await?;
                        }
                        Some(Hear::Fetch(order)) => self.orders.heard(order),
                        Some(Hear::Voided(voided)) => {
                            if let Some(identity) = &self.identity {
                                identity.void(voided);
                            }
                        }
                        None => tracing::debug!("control said something that this version does not know"),
                    }
                }
                difference = differences.recv(), if assigned => match difference {
                    Some(difference) => self.announce(&out, node, difference, differences).await?,
                    None => return Ok(()),
                },
                () = self.public.news(), if assigned => self.tell_public(&out, false).await?,
                () = self.orders.news(), if assigned => self.tell_orders(&out, false).await?,
                () = &mut renewal, if assigned => {
                    let next = self.renew(&session).await.min(FAR);
                    renewal.as_mut().reset(tokio::time::Instant::now() + next);
                    self.show_certificate(&out).await?;
                }
                _ = beat.tick(), if assigned => send(&out, Say::Heartbeat(heartbeat(node.load()))).await?,
            }
        }
    }

    fn register(&self, instance: u64, ip: std::net::IpAddr) -> wire::Register {
        let config = &self.config;
        let role = if config.seed { wire::Role::Seed } else { wire::Role::Node };
        wire::Register {
            node_id: self.node.to_string(),
            instance,
            name: config.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            facts: Some(wire::Facts { ip: ip.to_string(), idc: config.idc.clone(), location: config.location.clone() }),
            peer_port: u32::from(config.peer_port),
            pinned_cluster: config.pinned.clone(),
            role: role.into(),
            takes_blob_orders: true,
        }
    }

    async fn assigned(&self, to: wire::Assigned) -> Result<(), tonic::Status> {
        let invalid = |_| tonic::Status::internal("control names a cluster that is not an id");
        let hello = if to.cluster_id.is_empty() {
            None
        } else {
            let cluster: ClusterId = to.cluster_id.parse().map_err(invalid)?;
            Some(Hello { cluster, node: self.node.clone(), epoch: to.epoch })
        };
        // A node that is moved loses its peers at once, before it is certified for others.
        self.membership.send_if_modified(|known| {
            let leaves = known.as_ref().map(|known| &known.cluster) != hello.as_ref().map(|hello| &hello.cluster);
            leaves && known.take().is_some()
        });
        self.be_certified(&to.session, hello.as_ref().map(|hello| &hello.cluster)).await?;
        let cluster = to.cluster_name.as_str();
        tracing::info!(cluster, epoch = to.epoch, reason = to.reason, "assigned");
        if let Err(error) = assignment::save(&self.config.state_dir, hello.as_ref(), cluster) {
            tracing::warn!(%error, "remember the assignment");
        }
        self.neighbours.belong(hello.as_ref().map(|hello| &hello.cluster));
        let alone = hello.is_none().then_some(to.reason);
        self.membership.send_if_modified(|known| {
            let moved = *known != hello;
            *known = hello;
            moved
        });
        if self.session.swap(Some(Arc::new(Assigned { session: to.session, alone }))).is_none() {
            self.metrics.sessions.inc();
        }
        self.metrics.connected.set(1);
        Ok(())
    }

    /// By what to check this node's signatures, before there are any.
    async fn show_certificate(&self, out: &Outbox<wire::SessionRequest>) -> Result<(), tonic::Status> {
        let Some(signs) = self.signs() else { return Ok(()) };
        send(out, Say::Certificate(wire::Certificate { certificate: signs.certificate() })).await
    }

    /// The full list, in batches: it replaces whatever control knew of this node.
    async fn announce_all(&self, out: &Outbox<wire::SessionRequest>, all: Vec<Holding>) -> Result<(), tonic::Status> {
        let mut all = all.into_iter().peekable();
        let mut reset = true;
        loop {
            let batch: Vec<_> = all.by_ref().take(BATCH).collect();
            let complete = all.peek().is_none();
            let signs = self.signs();
            // A thousand signatures take some 30 ms.
            let held = tokio::task::spawn_blocking(move || {
                batch.into_iter().map(|holding| lists::held(holding, signs.as_ref())).collect()
            });
            let held = held.await.map_err(|error| tonic::Status::internal(format!("sign what is held: {error}")))?;
            send(out, Say::Announce(wire::Announce { reset, held, dropped: Vec::new(), complete })).await?;
            reset = false;
            if complete {
                return Ok(());
            }
        }
    }

    /// One difference, and those that wait behind it.
    async fn announce(
        &self,
        out: &Outbox<wire::SessionRequest>,
        node: &dyn Node,
        first: Difference,
        more: &mut mpsc::Receiver<Difference>,
    ) -> Result<(), tonic::Status> {
        let mut announce = wire::Announce::default();
        let mut next = Some(first);
        while let Some(difference) = next {
            match difference {
                Difference::Held(holding) => {
                    announce.dropped.retain(|dropped| dropped.as_slice() != holding.digest.as_bytes());
                    announce.held.push(lists::held(holding, self.signs().as_ref()));
                }
                Difference::Dropped(digest) => {
                    announce.held.retain(|held| held.digest.as_slice() != digest.as_bytes());
                    announce.dropped.push(digest.as_bytes().to_vec());
                }
                Difference::Everything => return self.announce_all(out, node.holdings()).await,
            }
            let full = announce.held.len() + announce.dropped.len() >= BATCH;
            next = if full { None } else { more.try_recv().ok() };
        }
        send(out, Say::Announce(announce)).await
    }
}

fn heartbeat(load: Load) -> wire::Heartbeat {
    wire::Heartbeat {
        uploads: load.uploads,
        upload_slots: load.upload_slots,
        flights: load.flights,
        store_bytes: load.store_bytes,
        bytes_from_origin: load.from_origin,
        bytes_from_peers: load.from_peers,
        bytes_to_peers: load.to_peers,
        bytes_local: load.local,
    }
}

pub(super) async fn send(out: &Outbox<wire::SessionRequest>, message: Say) -> Result<(), tonic::Status> {
    let gone = |_| tonic::Status::unavailable("the session's stream closed");
    out.send(wire::SessionRequest { message: Some(message) }).await.map_err(gone)
}
