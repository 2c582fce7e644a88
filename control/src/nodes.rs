//! Who is alive: sessions, leases and the cluster of each node.
//!
//! Owns one record per live node. Does not own streams (`api` does) nor what nodes hold (`swarm` does, and hears of
//! every change here through [`Watcher`]). All of it is soft: a node registers again when control restarts.
//!
//! What always holds:
//! - A node has one session. A second one takes its place, and the first ends.
//! - A node whose lease ended is gone: nobody is told of it any more.
//! - When the clusters change, every live node is decided again at once; a node that is moved gets the next epoch.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use shoal_base::drain::Drain;
use shoal_proto::control::v1::FetchOrder;
use shoal_proto::{ClusterId, NodeId};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clusters::{ClusterSet, Decision, Facts};
use traffic::Traffic;

mod metrics;
mod orders;
mod traffic;
mod view;

#[cfg(test)]
mod tests;

pub use metrics::Metrics;
pub use orders::Standing;
pub use traffic::{Bytes, STEP, STEPS};
pub use view::{Move, NodeView};

/// Ties Find streams to a session.
pub type SessionId = [u8; 16];

/// How often leases are looked at: an eighth of a second is nothing beside a lease of seconds.
const SWEEP: Duration = Duration::from_millis(125);

/// Orders that a session has not taken yet; who gives one says it again later.
const ORDERS: usize = 64;

/// How long a node counts as alive.
#[derive(Debug, Clone)]
pub struct Config {
    /// How often a node says that it lives. Above 0.
    pub heartbeat: Duration,
    /// How long it counts as alive without saying so: three heartbeats and some slack, so that one lost second of the
    /// network costs nothing.
    pub lease: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { heartbeat: Duration::from_secs(1), lease: Duration::from_millis(3500) }
    }
}

/// What a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An ordinary node.
    Node,
    /// Its job is to fetch from the origin first.
    Seed,
}

/// What a node says of itself, checked.
#[derive(Debug, Clone)]
pub struct Registration {
    /// Who.
    pub node: NodeId,
    /// Another number at each start of the process.
    pub instance: u64,
    /// For people.
    pub name: String,
    /// For people.
    pub version: String,
    /// Its place.
    pub facts: Facts,
    /// Where its peer listener is, at the address of the facts. Above 0.
    pub peer_port: u16,
    /// The cluster that its config names.
    pub pin: Option<String>,
    /// The cluster that it was let in for; outranks all that it says of itself.
    pub bound: Option<ClusterId>,
    /// What it is for.
    pub role: Role,
    /// It takes orders of single blobs.
    pub takes_orders: bool,
}

impl Registration {
    fn decide(&self, clusters: &ClusterSet) -> Decision {
        let Some(bound) = &self.bound else { return clusters.decide(&self.facts, self.pin.as_deref()) };
        let cluster = clusters.get(bound).cloned();
        let reason = match &cluster {
            Some(cluster) => format!("what it joined by binds it to {}", cluster.name),
            None => "the cluster that what it joined by binds it to was deleted".to_owned(),
        };
        Decision { cluster, reason }
    }
}

/// How a node does. Byte counts are totals since its process started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Uploads now.
    pub uploads: u32,
    /// Uploads at most; 0 when unknown.
    pub upload_slots: u32,
    /// Flights now.
    pub flights: u32,
    /// On its disk.
    pub store_bytes: u64,
    /// Read from the origin.
    pub bytes_from_origin: u64,
    /// Read from peers.
    pub bytes_from_peers: u64,
    /// Given to peers.
    pub bytes_to_peers: u64,
    /// Served from its own disk.
    pub bytes_local: u64,
}

/// Where a node belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Id and name; `None`: it runs alone.
    pub cluster: Option<(ClusterId, String)>,
    /// Grows whenever the node's cluster changes, over restarts of control too.
    pub epoch: u64,
    /// What matched, for people.
    pub reason: String,
}

/// A session that began.
#[derive(Debug)]
pub struct Joined {
    /// Its id.
    pub session: SessionId,
    /// Where the node belongs, now and from now on.
    pub assignment: watch::Receiver<Assignment>,
    /// What the node is to be told to fetch.
    pub orders: mpsc::Receiver<Box<FetchOrder>>,
    /// Fires when the session ended from this side: another took its place, or its lease ended.
    pub over: CancellationToken,
}

/// What happened to a node, in the order in which it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A session began.
    Registered {
        /// Who.
        node: NodeId,
        /// Its host name.
        name: String,
        /// Where it belongs.
        cluster: Option<ClusterId>,
        /// Where peers reach it.
        addr: SocketAddr,
        /// Its location path; empty for none.
        location: String,
        /// Its job is to fetch from the origin first.
        seed: bool,
        /// It takes orders of single blobs.
        orders: bool,
        /// The process is another one than in the session before.
        restarted: bool,
    },
    /// It belongs elsewhere.
    Moved {
        /// Who.
        node: NodeId,
        /// Where.
        cluster: Option<ClusterId>,
    },
    /// It is gone.
    Left {
        /// Who.
        node: NodeId,
    },
    /// It said how busy it is.
    Load {
        /// Who.
        node: NodeId,
        /// Uploads now.
        uploads: u32,
        /// Uploads at most; 0 when unknown.
        slots: u32,
    },
}

/// Hears of every change, in order, before whoever caused it goes on. Must be quick, and must not call back.
pub trait Watcher: Send + Sync + 'static {
    /// Takes one change.
    fn changed(&self, change: Change);
}

impl<A: Watcher, B: Watcher> Watcher for (Arc<A>, Arc<B>) {
    fn changed(&self, change: Change) {
        self.0.changed(change.clone());
        self.1.changed(change);
    }
}

/// All live nodes.
pub struct Nodes {
    config: Config,
    clusters: watch::Receiver<Arc<ClusterSet>>,
    watcher: Arc<dyn Watcher>,
    metrics: Metrics,
    /// Steps of traffic are counted from here.
    began: Instant,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    nodes: HashMap<NodeId, Record>,
    sessions: HashMap<SessionId, NodeId>,
    traffic: Traffic,
}

struct Record {
    who: Registration,
    session: SessionId,
    /// The session's stream is open.
    connected: bool,
    since: SystemTime,
    heard: Instant,
    heard_at: SystemTime,
    load: Load,
    /// Up to what its traffic is counted; `None`: what it fetched before it came here is not known.
    counted: Option<Load>,
    held: usize,
    assignment: watch::Sender<Assignment>,
    /// Boxed: the channel has room for 32 from the start, and hardly a session ever has one.
    orders: mpsc::Sender<Box<FetchOrder>>,
    over: CancellationToken,
}

impl Nodes {
    /// No node yet.
    pub fn new(
        config: Config,
        clusters: watch::Receiver<Arc<ClusterSet>>,
        watcher: Arc<dyn Watcher>,
        metrics: Metrics,
    ) -> Self {
        Self { config, clusters, watcher, metrics, began: Instant::now(), inner: Mutex::default() }
    }

    /// How often nodes say that they live.
    pub fn heartbeat(&self) -> Duration {
        self.config.heartbeat
    }

    /// The id of a cluster, by its id or name.
    pub fn cluster_named(&self, id_or_name: &str) -> Option<ClusterId> {
        self.clusters.borrow().find(id_or_name).map(|cluster| cluster.id.clone())
    }

    /// Begins a session; one that the node had before ends.
    pub fn register(&self, who: Registration) -> Joined {
        let mut inner = self.inner.lock();
        let Decision { cluster, reason } = who.decide(&self.clusters.borrow());
        let cluster = cluster.map(|cluster| (cluster.id.clone(), cluster.name.clone()));
        let session: SessionId = rand::random();
        let id = who.node.clone();
        let before = inner.nodes.remove(&id);
        let (mut restarted, mut counted) = (false, None);
        let mut assignment = Assignment { cluster, epoch: unix_now(), reason };
        if let Some(before) = before {
            inner.sessions.remove(&before.session);
            restarted = before.who.instance != who.instance;
            counted = if restarted { Some(Load::default()) } else { before.counted };
            if restarted && before.connected && before.who.facts.ip() != who.facts.ip() {
                tracing::warn!(
                    node = %id, name = who.name, ip = %who.facts.ip(), other = before.who.name, other_ip = %before.who.facts.ip(),
                    "two processes use one node id; was the state directory copied?"
                );
            }
            let was = before.assignment.borrow().clone();
            let moved = assignment.cluster.as_ref().map(|c| &c.0) != was.cluster.as_ref().map(|c| &c.0);
            assignment.epoch = if moved { was.epoch + 1 } else { was.epoch };
            before.over.cancel();
        }
        let place = assignment.cluster.as_ref().map_or("none", |(_, name)| name.as_str());
        tracing::info!(
            node = %id, name = who.name, ip = %who.facts.ip(), version = who.version, cluster = place,
            reason = assignment.reason, epoch = assignment.epoch, "node registered"
        );
        if who.role == Role::Seed && !who.takes_orders {
            tracing::warn!(node = %id, name = who.name, version = who.version, "a seed is of a version that takes no orders: others read");
        }
        self.metrics.registered.inc();
        self.watcher.changed(Change::Registered {
            node: id.clone(),
            name: who.name.clone(),
            cluster: assignment.cluster.as_ref().map(|(id, _)| id.clone()),
            addr: SocketAddr::new(who.facts.ip(), who.peer_port),
            location: who.facts.location().to_owned(),
            seed: who.role == Role::Seed,
            orders: who.takes_orders,
            restarted,
        });
        let (assignment, receiver) = watch::channel(assignment);
        let over = CancellationToken::new();
        let (orders, to_come) = mpsc::channel(ORDERS);
        let record = Record {
            who,
            session,
            connected: true,
            since: SystemTime::now(),
            heard: Instant::now(),
            heard_at: SystemTime::now(),
            load: Load::default(),
            counted,
            held: 0,
            assignment,
            orders,
            over: over.clone(),
        };
        inner.sessions.insert(session, id.clone());
        inner.nodes.insert(id, record);
        self.count(&inner);
        Joined { session, assignment: receiver, orders: to_come, over }
    }

    /// Renews the lease. False: the session is over.
    pub fn heartbeat_of(&self, session: &SessionId, load: Load) -> bool {
        let mut inner = self.inner.lock();
        let step = self.step();
        let Inner { nodes, sessions, traffic } = &mut *inner;
        let Some(record) = sessions.get(session).and_then(|node| nodes.get_mut(node)) else { return false };
        let known = (record.load.uploads, record.load.upload_slots);
        record.renew();
        record.load = load;
        if let Some(before) = record.counted.replace(load) {
            let assignment = record.assignment.borrow();
            let cluster = assignment.cluster.as_ref().map(|(id, _)| id);
            traffic.add(cluster, step, Bytes::between(&before, &load));
        }
        let (node, uploads, slots) = (record.who.node.clone(), load.uploads, load.upload_slots);
        if known != (uploads, slots) {
            self.watcher.changed(Change::Load { node, uploads, slots });
        }
        true
    }

    /// The step of traffic that is now.
    fn step(&self) -> u64 {
        self.began.elapsed().as_secs() / STEP.as_secs()
    }

    /// Bytes by source in the last `steps` steps ([`STEP`]; at most [`STEPS`] of them, fewer after a start), the oldest first, of the
    /// clusters that `keep` takes; `None` is nodes that run alone. The last one is not over.
    pub fn traffic(&self, steps: u64, keep: impl Fn(Option<&ClusterId>) -> bool) -> Vec<Bytes> {
        self.inner.lock().traffic.last(self.step(), steps, keep)
    }

    /// Notes how many blobs the node holds; that it said so renews the lease too.
    pub fn holds(&self, session: &SessionId, held: usize) {
        if let Some(record) = self.inner.lock().of(session) {
            record.renew();
            record.held = held;
        }
    }

    /// The session's stream ended. A node that closed it on purpose is gone; else its lease goes on, because peers may
    /// still reach it.
    pub fn disconnected(&self, session: &SessionId, clean: bool) {
        let mut inner = self.inner.lock();
        let Some(record) = inner.of(session) else { return };
        record.connected = false;
        if clean {
            let node = record.who.node.clone();
            self.remove(&mut inner, &node, "its session was closed");
        }
        self.count(&inner);
    }

    /// Whose session it is; `None`: nobody's, or it ended.
    pub fn node_of(&self, session: &[u8]) -> Option<NodeId> {
        let session: SessionId = session.try_into().ok()?;
        self.inner.lock().sessions.get(&session).cloned()
    }

    /// The cluster that a live node belongs to.
    pub fn cluster_of(&self, node: &NodeId) -> Option<ClusterId> {
        let inner = self.inner.lock();
        let assignment = inner.nodes.get(node)?.assignment.borrow();
        assignment.cluster.as_ref().map(|(id, _)| id.clone())
    }

    /// Ends a node's session and lease, as if it had gone. False: it is not live.
    pub fn expel(&self, node: &NodeId, why: &'static str) -> bool {
        let mut inner = self.inner.lock();
        let live = inner.nodes.contains_key(node);
        self.remove(&mut inner, node, why);
        self.count(&inner);
        live
    }

    /// How many live nodes a cluster has.
    pub fn count_of(&self, cluster: &ClusterId) -> usize {
        let inner = self.inner.lock();
        let of = |record: &&Record| record.assignment.borrow().cluster.as_ref().is_some_and(|(id, _)| id == cluster);
        inner.nodes.values().filter(of).count()
    }

    /// All live nodes, by name, then id.
    pub fn list(&self) -> Vec<NodeView> {
        let inner = self.inner.lock();
        let mut list: Vec<NodeView> = inner.nodes.values().map(Record::view).collect();
        drop(inner);
        list.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        list
    }

    /// One live node.
    pub fn get(&self, node: &NodeId) -> Option<NodeView> {
        self.inner.lock().nodes.get(node).map(Record::view)
    }

    /// Host names of live nodes.
    pub fn names(&self) -> HashMap<NodeId, String> {
        let inner = self.inner.lock();
        inner.nodes.iter().map(|(id, record)| (id.clone(), record.who.name.clone())).collect()
    }

    /// Which live nodes would belong elsewhere if these were the clusters, by name, then id. Nothing is changed.
    pub fn moves(&self, clusters: &ClusterSet) -> Vec<Move> {
        let inner = self.inner.lock();
        let mut moves: Vec<Move> = inner.nodes.values().filter_map(|record| record.moved_by(clusters)).collect();
        drop(inner);
        moves.sort_by(|a, b| (&a.name, &a.node).cmp(&(&b.name, &b.node)));
        moves
    }

    /// Follows the clusters and ends leases, until drained.
    pub async fn run(self: Arc<Self>, drain: Drain) {
        let mut clusters = self.clusters.clone();
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = drain.signalled() => return,
                changed = clusters.changed() => match changed {
                    Ok(()) => self.decide_all(&clusters.borrow_and_update().clone()),
                    Err(_) => return,
                },
                _ = sweep.tick() => self.sweep(),
            }
        }
    }

    fn decide_all(&self, clusters: &ClusterSet) {
        let mut inner = self.inner.lock();
        for (id, record) in &mut inner.nodes {
            let Decision { cluster, reason } = record.who.decide(clusters);
            let cluster = cluster.map(|cluster| (cluster.id.clone(), cluster.name.clone()));
            let was = record.assignment.borrow().clone();
            if was.cluster == cluster && was.reason == reason {
                continue;
            }
            let to = cluster.as_ref().map(|(id, _)| id.clone());
            let moved = to.as_ref() != was.cluster.as_ref().map(|(id, _)| id);
            let epoch = if moved { was.epoch + 1 } else { was.epoch };
            if moved {
                let name =
                    |place: &Option<(ClusterId, String)>| place.as_ref().map_or("none".into(), |(_, n)| n.clone());
                tracing::info!(node = %id, name = record.who.name, from = name(&was.cluster), to = name(&cluster), reason, epoch, "node moved");
                self.metrics.moved.inc();
                self.watcher.changed(Change::Moved { node: id.clone(), cluster: to });
            }
            record.assignment.send_replace(Assignment { cluster, epoch, reason });
        }
    }

    fn sweep(&self) {
        let mut inner = self.inner.lock();
        let late = |record: &&Record| record.heard.elapsed() > self.config.lease;
        let gone: Vec<NodeId> = inner.nodes.values().filter(late).map(|record| record.who.node.clone()).collect();
        for node in &gone {
            self.metrics.expired.inc();
            self.remove(&mut inner, node, "its lease ended");
        }
        if !gone.is_empty() {
            self.count(&inner);
        }
    }

    fn remove(&self, inner: &mut Inner, node: &NodeId, why: &'static str) {
        if let Some(record) = inner.nodes.remove(node) {
            inner.sessions.remove(&record.session);
            record.over.cancel();
            tracing::info!(%node, name = record.who.name, why, "node left");
            self.watcher.changed(Change::Left { node: node.clone() });
        }
    }

    fn count(&self, inner: &Inner) {
        let connected = inner.nodes.values().filter(|record| record.connected).count();
        self.metrics.live.set(inner.nodes.len() as i64);
        self.metrics.sessions.set(connected as i64);
    }
}

impl Inner {
    fn of(&mut self, session: &SessionId) -> Option<&mut Record> {
        self.nodes.get_mut(self.sessions.get(session)?)
    }
}

impl Record {
    fn renew(&mut self) {
        (self.heard, self.heard_at) = (Instant::now(), SystemTime::now());
    }
}

/// Where epochs start: later than any that control gave before it restarted, as long as nodes move less than once a
/// second.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs())
}
