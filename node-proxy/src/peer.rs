//! The parent's side of the peer protocol: serves blocks of what this node holds, or is fetching, to its children.
//!
//! Owns the peer listener, its limits, and who may connect. Does not own bytes: they are behind [`Offers`], which shows
//! only checked blocks (I1). The source of truth is `docs/peer-protocol.md`.
//!
//! What is shown to which child is decided by [`show`], which is pure.
//!
//! What always holds: only a listed network and only a node of this node's own cluster gets an answer, by its certificate where
//! there are certificates, and when this node is moved to another cluster all its children's connections end at once (I3), as does
//! that of a child whose certificate is declared void or over; one block that
//! is not in a file, one read buffer and 64 wants are the most that a connection holds in memory (I11).

mod connection;
mod crowd;
mod metrics;
mod offers;
mod outgoing;
mod serve;
pub mod show;

use std::collections::HashMap;
use std::mem;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use parking_lot::Mutex;
use rustls::ServerConfig;
use shoal_base::drain::Drain;
use shoal_base::limit::Limiter;
use shoal_base::sparse::Sparse;
use shoal_base::tls::{self, Secured, Wire};
use shoal_proto::Digest;
use shoal_proto::frame::{Frame, FrameError, Hello, Refusal};
use shoal_proto::identity::{Bearer, Known, Unfit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use connection::{Connection, End};
use crowd::Crowd;
pub use metrics::Metrics;
use metrics::Reason;
pub use offers::{Offer, Offers};

/// Accepting failed (no file descriptors, most likely): how long until the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Strangers that are being told so at once; further ones are dropped without a word.
const MOST_REFUSALS: usize = 64;

/// Who is served, and how much.
#[derive(Debug, Clone)]
pub struct Config {
    /// Networks that may connect. Empty: nobody.
    pub allow: Vec<IpNet>,
    /// Blobs that are served at once, each to one child; the next child is told `Busy`. 0: nobody is served.
    pub upload_slots: u32,
    /// Connections at once, resting ones included; further ones are closed.
    pub max_connections: usize,
    /// The hello must come within this.
    pub hello_timeout: Duration,
    /// A connection on which nothing is asked, said or sent for so long is closed. Keep it above the children's `pool_idle`.
    pub idle_timeout: Duration,
    /// A child that takes no byte for so long is dropped.
    pub write_timeout: Duration,
    /// What `Busy` tells a child.
    pub retry_after: Duration,
    /// How often `Wait` is said. The child's limit is 2 s (I8).
    pub wait_every: Duration,
    /// Growth is told at most this often, or each 16 blocks.
    pub have_every: Duration,
    /// How long running uploads may go on when this node drains.
    pub drain_timeout: Duration,
    /// What all children together may take, in bytes of blocks. While there is a limit, fewer children are served at once.
    pub upload: Limiter,
    /// Children show certificates; `None`: whoever is in an allowed network is who they say.
    pub tls: Option<Secured<Known>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            upload_slots: 64,
            max_connections: 1024,
            hello_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(10),
            retry_after: Duration::from_millis(500),
            wait_every: Duration::from_millis(500),
            have_every: Duration::from_millis(50),
            drain_timeout: Duration::from_secs(5),
            upload: Limiter::none(),
            tls: None,
        }
    }
}

/// How busy this node is with children, for heartbeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Blobs being served now.
    pub uploads: u32,
    /// How many could be.
    pub slots: u32,
    /// Connections of children, resting ones included.
    pub connections: u64,
}

/// Kinds of lines about refused children; each has its own bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Line {
    /// No handshake, or a certificate that can't be read.
    Handshake(Option<tls::Refusal>),
    /// It says itself that it is of another cluster.
    Cluster,
    /// Its certificate does not fit what it says.
    Unfit(mem::Discriminant<Unfit>),
}

/// Serves children. One for the whole process.
pub struct Peer {
    config: Config,
    server: Option<Arc<ServerConfig>>,
    me: watch::Receiver<Option<Hello>>,
    offers: Arc<dyn Offers>,
    metrics: Metrics,
    /// Of lines about children that were refused.
    lines: Sparse<Line>,
    slots: Arc<Semaphore>,
    /// What is being served now, so that the children of one blob are shown it as one crowd.
    crowds: Mutex<HashMap<Digest, Weak<Crowd>>>,
}

impl Peer {
    /// A parent that is `me` to children; while `me` is `None` this node has no cluster and serves nobody.
    pub fn new(
        config: Config,
        me: watch::Receiver<Option<Hello>>,
        offers: Arc<dyn Offers>,
        metrics: Metrics,
    ) -> Arc<Self> {
        let slots = Arc::new(Semaphore::new(config.upload_slots as usize));
        let server = config.tls.as_ref().map(|tls| tls::server(&tls.keeper, true, &[]));
        Arc::new(Self {
            config,
            server,
            me,
            offers,
            metrics,
            lines: Sparse::default(),
            slots,
            crowds: Mutex::default(),
        })
    }

    /// Bytes of blocks written to children since the start.
    pub fn served_bytes(&self) -> u64 {
        self.metrics.served_bytes()
    }

    /// How busy this node is with children.
    pub fn load(&self) -> Load {
        let slots = self.config.upload_slots;
        let uploads = slots.saturating_sub(u32::try_from(self.slots.available_permits()).unwrap_or(slots));
        let connections = u64::try_from(self.metrics.connections.get()).unwrap_or(0);
        Load { uploads, slots, connections }
    }

    /// Serves until `drain` is signalled; then lets what is being served go on for `drain_timeout`.
    pub async fn run(self: Arc<Self>, listener: TcpListener, drain: Drain) {
        let _working = drain.guard();
        let (mut children, mut strangers) = (JoinSet::new(), JoinSet::new());
        loop {
            tokio::select! {
                () = drain.signalled() => break,
                Some(_) = children.join_next() => {}
                Some(_) = strangers.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, from)) if !self.allows(from.ip()) => {
                        self.metrics.refuse(Refusal::Network);
                        tracing::debug!(%from, "child is not in an allowed network");
                        if strangers.len() < MOST_REFUSALS {
                            // Without a handshake, whatever is spoken here: it would cost more than the stranger is worth.
                            let mut connection = Connection::new(Wire::Plain(stream), &self.config);
                            strangers.spawn(async move { connection.refuse(Refusal::Network).await });
                        }
                    }
                    Ok((_, from)) if children.len() >= self.config.max_connections => {
                        self.metrics.refuse(Reason::Full);
                        tracing::debug!(%from, "too many connections");
                    }
                    Ok((stream, from)) => {
                        children.spawn(self.clone().child(stream, from.ip(), drain.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept peer connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
        drop(listener);
        let rest = async { while children.join_next().await.is_some() {} };
        if timeout(self.config.drain_timeout, rest).await.is_err() {
            tracing::info!(children = children.len(), "uploads cut off at the end of the drain");
        }
    }

    fn allows(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.config.allow.iter().any(|net| net.contains(&ip))
    }

    /// One connection, to its end.
    async fn child(self: Arc<Self>, stream: TcpStream, from: IpAddr, drain: Drain) {
        let _count = Counted::one(&self.metrics);
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%from, %error, "set nodelay");
            return;
        }
        let Some((wire, bearer)) = self.secured(stream, from).await else { return };
        let mut connection = Connection::new(wire, &self.config);
        let end = self.talk(&mut connection, bearer.as_ref(), from, &drain).await;
        tracing::debug!(%from, %end, "child's connection ended");
        match end {
            End::Refuse(refusal) => {
                self.metrics.refuse(refusal);
                connection.refuse(refusal).await;
            }
            End::NoHello => self.metrics.refuse(Reason::Silent),
            End::Malformed(_) => self.metrics.refuse(Reason::Protocol),
            End::Closed | End::Idle | End::Moved | End::Void | End::Broken(_) => {}
        }
    }

    /// The handshake, and whose certificate was shown. `None`: it is not one to talk to.
    async fn secured(&self, stream: TcpStream, from: IpAddr) -> Option<(Wire, Option<Child>)> {
        let Some(server) = self.server.clone() else { return Some((Wire::Plain(stream), None)) };
        let refuse = |kind: Option<tls::Refusal>, why: &str| {
            self.metrics.refuse(Reason::Handshake);
            if let Some(left_out) = self.lines.next(Line::Handshake(kind)) {
                tracing::info!(%from, why, left_out, "refused a child");
            }
        };
        let wire = match timeout(self.config.hello_timeout, Wire::accept(stream, Some(server))).await {
            Ok(Ok(wire)) => wire,
            Ok(Err(error)) => {
                match tls::Refusal::of(&error) {
                    Some(refusal) => refuse(Some(refusal), &refusal.to_string()),
                    None => tracing::debug!(%from, %error, "a handshake broke"),
                }
                return None;
            }
            Err(_) => {
                self.metrics.refuse(Reason::Silent);
                return None;
            }
        };
        let seen = wire.seen().and_then(|seen| seen.ok_or_else(|| "it showed no certificate".into()));
        let child = seen.and_then(|seen| {
            let bearer = Bearer::new(&seen.name, &seen.serial).map_err(|unfit| unfit.to_string())?;
            Ok(Child { bearer, ends: seen.ends })
        });
        match child {
            Ok(child) => Some((wire, Some(child))),
            Err(why) => {
                refuse(None, &why);
                None
            }
        }
    }

    /// Returns when a child's certificate counts no more.
    async fn void(&self, child: Option<&Child>) {
        let (Some(child), Some(tls)) = (child, &self.config.tls) else { return std::future::pending().await };
        let mut known = tls.known.clone();
        let left = child.ends.duration_since(SystemTime::now()).unwrap_or_default();
        let node = child.bearer.id.node();
        let is_void = |known: &Arc<Known>| node.is_none_or(|node| known.voids.cover(node, child.bearer.issued));
        let declared = async {
            if known.wait_for(is_void).await.is_err() {
                // Nobody is left who could declare it.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = declared => {}
            () = tokio::time::sleep(left) => {}
        }
    }

    async fn talk(&self, connection: &mut Connection, child: Option<&Child>, from: IpAddr, drain: &Drain) -> End {
        let theirs = match timeout(self.config.hello_timeout, connection.next()).await {
            Err(_) => return End::NoHello,
            Ok(Ok(Frame::Hello(hello))) => hello,
            Ok(Ok(_)) => return End::Refuse(Refusal::Protocol),
            Ok(Err(End::Malformed(FrameError::Version(_)))) => return End::Refuse(Refusal::Version),
            Ok(Err(end)) => return end,
        };
        let mut me = self.me.clone();
        let mine = match me.borrow_and_update().clone() {
            Some(mine) if mine.cluster == theirs.cluster => mine,
            _ => {
                if let Some(left_out) = self.lines.next(Line::Cluster) {
                    let (node, why) = (&theirs.node, format!("it says that it is of cluster {}", theirs.cluster));
                    tracing::info!(%from, peer.node = %node, why, left_out, "refused a child");
                }
                return End::Refuse(Refusal::Cluster);
            }
        };
        let cluster = mine.cluster.clone();
        if let (Some(child), Some(tls)) = (child, &self.config.tls) {
            let fits = child.bearer.is_peer(&tls.known.borrow(), &cluster, &theirs.node);
            if let Err(unfit) = fits {
                if let Some(left_out) = self.lines.next(Line::Unfit(mem::discriminant(&unfit))) {
                    tracing::info!(%from, peer.node = %theirs.node, why = %unfit, left_out, "refused a child");
                }
                return End::Refuse(Refusal::Identity);
            }
        }
        if let Err(end) = connection.send(&Frame::Hello(mine)).await {
            return end;
        }
        let moved = async {
            let left = |now: &Option<Hello>| now.as_ref().is_none_or(|now| now.cluster != cluster);
            if me.wait_for(left).await.is_err() {
                // Nobody is left who could move this node.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = moved => End::Moved,
            () = self.void(child) => {
                tracing::info!(%from, peer.node = %theirs.node, "a child's certificate counts no more");
                End::Void
            }
            end = self.session(connection, &theirs, drain) => end,
        }
    }

    /// One blob after another, after the hellos.
    async fn session(&self, connection: &mut Connection, child: &Hello, drain: &Drain) -> End {
        // After `Gone` or `Busy` the child's wants for that blob may still be on their way: they are void.
        let mut void = false;
        loop {
            let frame = tokio::select! {
                biased;
                frame = timeout(self.config.idle_timeout, connection.next()) => match frame {
                    Ok(Ok(frame)) => frame,
                    Ok(Err(end)) => return end,
                    Err(_) => return End::Idle,
                },
                () = drain.signalled() => return End::Refuse(Refusal::Draining),
            };
            let done = match frame {
                Frame::Open { digest, traceparent, holders } => {
                    self.serve(connection, child, serve::Asked { digest, holders }, &traceparent, drain).await
                }
                Frame::Close if void => connection.send(&Frame::Closed).await.map(|()| serve::Done::Closed),
                Frame::Want(_) | Frame::WantList if void => continue,
                _ => return End::Refuse(Refusal::Protocol),
            };
            match done {
                Ok(done) => void = matches!(done, serve::Done::Void),
                Err(end) => return end,
            }
        }
    }
}

/// Whose certificate a child showed, and how long it counts.
struct Child {
    bearer: Bearer,
    ends: SystemTime,
}

/// Counts a connection for as long as it lives.
struct Counted(Metrics);

impl Counted {
    fn one(metrics: &Metrics) -> Self {
        metrics.connections.inc();
        Self(metrics.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}
