//! Who holds what: holders, parents and permits.
//!
//! Owns what nodes hold and look for, per cluster and digest, in memory only: nodes say it again when control restarts.
//! Decides whom a finder is told of, and who reads the origin. The rules are a pure machine ([`State`]); what is here
//! gives it the time and random numbers, and carries its words to the streams.
//!
//! What always holds: no two permits of a digest and cluster cover one block (I6); nobody is told of a node of another cluster (I3); none is
//! granted in the first two seconds (I4); a finder whose stream does not keep up is cut off and delays nobody.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shoal_base::drain::Drain;
use shoal_proto::{Digest, NodeId};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::nodes::{Change, Nodes, Watcher};

mod around;
mod blob;
mod candidates;
mod distrust;
mod event;
mod finder;
mod holdings;
mod look;
mod meter;
mod metrics;
mod order;
mod permit;
mod public;
mod seeds;
mod state;
mod willing;

pub use event::{
    Announced, Ask, At, Cause, Certificate, Effect, Event, Fact, FinderId, FlightChange, Grant, MOST_FED, Member, Meta,
    Notice, ParentSaid, Proof, Say, Signature, Skip, Stop, Tell, Trouble, Waiting,
};
pub use look::{BlobView, FlightView, HolderView, Parent};
pub use metrics::Metrics;
pub use order::{Order, Reply};
pub use public::Repository;
pub use state::{Counts, STARTING, State};

/// Words that wait for one stream. A whole piece list whose parts are signed is at most 8,192 of them, which share their hashes with
/// the list; without signatures it is eight, and a reader at 10 Gbit/s makes 5,000 a second.
const QUEUE: usize = 8192 + 1024;
/// How many complaints are remembered so that each is logged once.
const MOST_COMPLAINTS: usize = 4096;
/// Orders that wait to be handed to sessions: a moment's work each.
const ORDERS: usize = 4096;

/// The swarm of every cluster.
pub struct Swarm {
    started: Instant,
    /// The time of the next tick came nearer.
    nearer: Notify,
    metrics: Metrics,
    follower: Option<Arc<dyn Follower>>,
    inner: Mutex<Inner>,
    /// To whoever hands orders to sessions, which must not be done under the lock.
    orders: (mpsc::Sender<ToSeed>, Mutex<Option<mpsc::Receiver<ToSeed>>>),
}

/// An order to a seed, or that it is taken back.
type ToSeed = (NodeId, Order, bool);

/// Hears of flights, in order. Must be quick, and must not call back.
pub trait Follower: Send + Sync + 'static {
    /// Takes one change.
    fn flight(&self, change: FlightChange);
}

struct Inner {
    state: State,
    outlets: HashMap<FinderId, mpsc::Sender<Say>>,
    last: FinderId,
    complaints: HashSet<(NodeId, NodeId)>,
    public: public::Public,
}

impl Swarm {
    /// Knows nothing yet. Its two seconds without permits start now.
    pub fn new(metrics: Metrics) -> Self {
        let inner = Inner {
            state: State::new(),
            outlets: HashMap::new(),
            last: FinderId(0),
            complaints: HashSet::new(),
            public: public::Public::default(),
        };
        let (orders, given) = mpsc::channel(ORDERS);
        let orders = (orders, Mutex::new(Some(given)));
        Self {
            started: Instant::now(),
            nearer: Notify::new(),
            metrics,
            follower: None,
            inner: Mutex::new(inner),
            orders,
        }
    }

    /// The same, with somebody who hears of flights.
    #[must_use]
    pub fn followed(self, follower: Arc<dyn Follower>) -> Self {
        Self { follower: Some(follower), ..self }
    }

    /// Opens a finder's place. The channel ends after [`Say::Stop`] (but for [`Stop::Revoked`]); if it ends without
    /// one, the finder was too slow.
    pub fn find(&self, node: NodeId, ask: Ask) -> (FinderId, mpsc::Receiver<Say>) {
        let (outlet, words) = mpsc::channel(QUEUE);
        let mut inner = self.inner.lock();
        inner.last = FinderId(inner.last.0 + 1);
        let finder = inner.last;
        inner.outlets.insert(finder, outlet);
        self.apply(&mut inner, Event::Find { finder, node, ask });
        (finder, words)
    }

    /// Takes what a finder says.
    pub fn tell(&self, finder: FinderId, tell: Tell) {
        self.apply(&mut self.inner.lock(), Event::Told { finder, tell });
    }

    /// A finder's stream ended; `clean`: the node closed it on purpose.
    pub fn ended(&self, finder: FinderId, clean: bool) {
        let mut inner = self.inner.lock();
        inner.outlets.remove(&finder);
        self.apply(&mut inner, Event::Ended { finder, clean });
    }

    /// Takes what a node holds; answers how many blobs that makes.
    pub fn announce(&self, node: &NodeId, what: Announced) -> usize {
        let mut inner = self.inner.lock();
        self.apply(&mut inner, Event::Announced { node: node.clone(), what });
        inner.state.held_by(node)
    }

    /// A node's signatures are checked by this from now on.
    pub fn certified(&self, node: &NodeId, certificate: Certificate) {
        let certificate = Arc::new(certificate);
        self.apply(&mut self.inner.lock(), Event::Certified { node: node.clone(), certificate });
    }

    /// A node read a repository with an anonymous token so long ago.
    pub fn saw_public(&self, node: &NodeId, repository: Repository, age: Duration) {
        let inner = &mut *self.inner.lock();
        if let Some(cluster) = inner.state.cluster_of(node) {
            inner.public.saw(cluster.clone(), repository, age, Instant::now());
        }
    }

    /// How long ago some node of this node's cluster did (I5).
    pub fn public_since(&self, node: &NodeId, repository: &Repository) -> Option<Duration> {
        let inner = self.inner.lock();
        inner.public.age(inner.state.cluster_of(node)?, repository, Instant::now())
    }

    /// How much is known.
    pub fn counts(&self) -> Counts {
        self.inner.lock().state.counts()
    }

    /// Takes what a seed says of an order.
    pub fn answered(&self, seed: &NodeId, (number, digest): (u64, Digest), answer: Reply) {
        self.apply(&mut self.inner.lock(), Event::Answered { seed: seed.clone(), number, digest, answer });
    }

    /// Lets time go by for the machine, and hands its orders to sessions, until drained.
    pub async fn run(self: Arc<Self>, nodes: Arc<Nodes>, drain: Drain) {
        let mut orders = self.orders.1.lock().take();
        loop {
            let next = self.inner.lock().state.next_tick();
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(self.started + at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = drain.signalled() => return,
                Some((seed, order, back)) = next_order(&mut orders) => {
                    if !nodes.order(&seed, order.to_wire(back)) && !back {
                        self.answered(&seed, (order.number, order.digest), Reply::Untold);
                    }
                }
                () = self.nearer.notified() => {}
                () = due => self.apply(&mut self.inner.lock(), Event::Tick),
            }
        }
    }

    fn apply(&self, inner: &mut Inner, event: Event) {
        let before = inner.state.next_tick();
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let effects = inner.state.apply(self.started.elapsed(), rand::random(), event);
            if let Some(follower) = &self.follower {
                inner.state.flights().into_iter().for_each(|change| follower.flight(change));
            }
            for effect in effects {
                match effect {
                    Effect::Say(finder, say) => {
                        let last = say.is_last();
                        let Some(outlet) = inner.outlets.get(&finder) else { continue };
                        let slow = outlet.try_send(say).is_err();
                        if slow || last {
                            inner.outlets.remove(&finder);
                        }
                        if slow && !last {
                            self.metrics.slow.inc();
                            events.push(Event::Ended { finder, clean: false });
                        }
                    }
                    Effect::Order { seed, order, back } => {
                        if let Err(full) = self.orders.0.try_send((seed, order, back)) {
                            let (seed, Order { number, digest, .. }, _) = full.into_inner();
                            events.push(Event::Answered { seed, number, digest, answer: Reply::Untold });
                        }
                    }
                    Effect::Notice { cluster, digest, notice } => {
                        self.metrics.notice(&notice);
                        inner.log(cluster.as_str(), digest, &notice);
                    }
                }
            }
        }
        self.metrics.counts(inner.state.counts());
        let after = inner.state.next_tick();
        if after.is_some_and(|after| before.is_none_or(|before| after < before)) {
            self.nearer.notify_one();
        }
    }
}

async fn next_order(orders: &mut Option<mpsc::Receiver<ToSeed>>) -> Option<ToSeed> {
    match orders {
        Some(orders) => orders.recv().await,
        None => std::future::pending().await,
    }
}

impl Watcher for Swarm {
    fn changed(&self, change: Change) {
        let event = match change {
            Change::Registered { node, name: _, cluster, addr, location, seed, orders, restarted } => {
                let location = location.split('|').filter(|part| !part.is_empty()).map(str::to_lowercase).collect();
                let member = Member { node, cluster, addr, location, seed, orders };
                Event::Registered { member, restarted }
            }
            Change::Moved { node, cluster } => Event::Moved { node, cluster },
            Change::Left { node } => Event::Left { node },
            Change::Load { node, uploads, slots } => Event::Load { node, uploads, slots },
        };
        self.apply(&mut self.inner.lock(), event);
    }
}

impl Inner {
    fn log(&mut self, cluster: &str, digest: Digest, notice: &Notice) {
        match notice {
            Notice::Granted { node } => tracing::debug!(cluster, %digest, %node, "granted the permit"),
            Notice::OneMore { beside } => {
                tracing::debug!(cluster, %digest, beside, "try one more reader of the origin")
            }
            Notice::Moved { node, cause } => tracing::info!(cluster, %digest, %node, ?cause, "took the permit back"),
            Notice::SeedAsked { seed } => tracing::debug!(cluster, %digest, %seed, "ordered a seed to fetch"),
            Notice::SeedCame { seed } => tracing::debug!(cluster, %digest, %seed, "an ordered seed came"),
            Notice::SeedSkipped { seed, why } => {
                tracing::info!(cluster, %digest, %seed, ?why, "an ordered seed is not waited for any more");
            }
            Notice::ReadAgain { blocks } => {
                tracing::info!(cluster, %digest, blocks, "readers of the origin are gone with what they read");
            }
            Notice::RootsDiffer { first, later } => {
                tracing::warn!(cluster, %digest, %first, %later, "two nodes hold different bytes under one digest");
            }
            Notice::ReadersDiffer { first, later } => {
                tracing::warn!(cluster, %digest, %first, %later, "two readers of the origin saw different bytes");
            }
            Notice::AuthorLied { author, writers, reporter } => {
                tracing::warn!(cluster, %digest, %author, ?writers, %reporter, "a blob did not match its digest; its piece list is dropped");
            }
            Notice::ParentLied { parent, reporter } => {
                if self.complaints.len() >= MOST_COMPLAINTS {
                    self.complaints.clear();
                }
                if self.complaints.insert((parent.clone(), reporter.clone())) {
                    tracing::warn!(cluster, %digest, %parent, %reporter, "a parent sent bytes that do not match the piece list");
                }
            }
        }
    }
}
