//! What happens, for whoever looks on: the last events in a ring that every listener reads at its own pace.
//!
//! What always holds: the memory is that of the ring, however many listen and however slow they are; a listener that was overtaken, or
//! comes back after too long, is told so and lists again. Events are numbered in the order in which they happened.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use shoal_base::drain::Drain;
use shoal_proto::{ClusterId, Digest, NodeId};
use tokio::sync::{Semaphore, watch};

use crate::clusters::{Cluster, ClusterSet, Clusters};
use crate::identity::{self, ApiTokenRow, Happened, JoinTokenRow, Member, Role};
use crate::nodes;
use crate::preheat::{self, Job};
use crate::swarm::{FlightChange, Follower};

/// Events that are kept. With a thousand flights a second a listener may be away for some eight seconds.
const RING: usize = 16_384;
/// Listeners at a time: consoles and terminals of people, and a few programs.
const LISTENERS: usize = 64;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    Joined { node: NodeId, name: String, cluster: Option<ClusterId> },
    Moved { node: NodeId, name: String, from: Option<ClusterId>, to: Option<ClusterId> },
    Left { node: NodeId, name: String, cluster: Option<ClusterId> },
    Created { cluster: Arc<Cluster> },
    Updated { cluster: Arc<Cluster> },
    Deleted { cluster: Arc<Cluster> },
    Began { node: NodeId, name: String, cluster: ClusterId, digest: Digest, size: Option<u64> },
    Ended { node: NodeId, name: String, cluster: ClusterId, digest: Digest, complete: bool },
    JoinToken { id: String, cluster: Option<ClusterId>, made: bool },
    ApiToken { id: String, name: String, made: bool },
    Member { node: NodeId, cluster: Option<ClusterId>, became: Became },
    Preheat { id: String, image: preheat::Image, cluster: ClusterId, ended: Option<preheat::State> },
}

/// What became of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Became {
    Joined,
    Revoked,
    Removed,
}

impl What {
    /// The clusters that it is about; `None` stands for nodes that run alone.
    pub(super) fn clusters(&self) -> Vec<Option<&ClusterId>> {
        match self {
            Self::Joined { cluster, .. } | Self::Left { cluster, .. } => vec![cluster.as_ref()],
            Self::Moved { from, to, .. } => vec![from.as_ref(), to.as_ref()],
            Self::Created { cluster } | Self::Updated { cluster } | Self::Deleted { cluster } => {
                vec![Some(&cluster.id)]
            }
            Self::Began { cluster, .. } | Self::Ended { cluster, .. } | Self::Preheat { cluster, .. } => {
                vec![Some(cluster)]
            }
            Self::JoinToken { cluster, .. } | Self::Member { cluster, .. } => vec![cluster.as_ref()],
            // Whoever makes them reaches all.
            Self::ApiToken { .. } => vec![None],
        }
    }

    /// The least that somebody may do who hears of it: to read the list that it is in.
    pub(super) const fn least(&self) -> Role {
        match self {
            Self::ApiToken { .. } => Role::Admin,
            Self::JoinToken { .. } => Role::Operator,
            _ => Role::Viewer,
        }
    }
}

/// The ring.
pub struct Feed {
    /// Tells this process's numbers from those of the one before.
    boot: String,
    latest: watch::Sender<u64>,
    inner: Mutex<Inner>,
    pub(super) listeners: Arc<Semaphore>,
}

#[derive(Default)]
struct Inner {
    ring: VecDeque<Arc<What>>,
    /// The number of the next event.
    next: u64,
    homes: HashMap<NodeId, (String, Option<ClusterId>)>,
}

/// What a listener has missed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missed {
    /// These events, and the number of the next.
    Events(Vec<(u64, Arc<What>)>, u64),
    /// More than is known any more; the number of the next.
    TooMuch(u64),
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            boot: hex::encode(rand::random::<[u8; 6]>()),
            latest: watch::Sender::new(0),
            inner: Mutex::default(),
            listeners: Arc::new(Semaphore::new(LISTENERS)),
        }
    }
}

impl Feed {
    /// Follows the clusters until drained: what changes from this call on, whenever the answer is first polled.
    pub fn run(self: Arc<Self>, clusters: &Clusters, drain: Drain) -> impl Future<Output = ()> + Send + use<> {
        let mut changes = clusters.watch();
        let mut before = changes.borrow_and_update().clone();
        async move {
            loop {
                tokio::select! {
                    () = drain.signalled() => return,
                    changed = changes.changed() => if changed.is_err() { return },
                }
                let after = changes.borrow_and_update().clone();
                difference(&before, &after).into_iter().for_each(|what| self.push(&mut self.inner.lock(), what));
                before = after;
            }
        }
    }

    /// Changes whenever something happens.
    pub(super) fn latest(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    /// How an event is named, so that a listener can come back to it.
    pub(super) fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.boot)
    }

    /// The event behind the one that is named so; `None`: it is not of this process.
    pub(super) fn behind(&self, id: &str) -> Option<u64> {
        let (boot, number) = id.split_once('-')?;
        let number: u64 = number.parse().ok()?;
        (boot == self.boot && number < self.inner.lock().next).then_some(number + 1)
    }

    /// The number of the next event.
    pub(super) fn now(&self) -> u64 {
        self.inner.lock().next
    }

    /// What happened from that event on, at most so much at a time.
    pub(super) fn since(&self, number: u64, most: usize) -> Missed {
        let inner = self.inner.lock();
        let first = inner.next - inner.ring.len() as u64;
        let Some(skip) = number.checked_sub(first) else { return Missed::TooMuch(inner.next) };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(inner.ring.len());
        let events: Vec<_> = (number..).zip(inner.ring.iter().skip(skip).take(most).cloned()).collect();
        let next = number + events.len() as u64;
        Missed::Events(events, next)
    }

    fn push(&self, inner: &mut Inner, what: What) {
        if inner.ring.len() == RING {
            inner.ring.pop_front();
        }
        inner.ring.push_back(Arc::new(what));
        inner.next += 1;
        self.latest.send_replace(inner.next);
    }
}

impl nodes::Watcher for Feed {
    fn changed(&self, change: nodes::Change) {
        let mut inner = self.inner.lock();
        let what = match change {
            nodes::Change::Registered { node, name, cluster, .. } => {
                inner.homes.insert(node.clone(), (name.clone(), cluster.clone()));
                What::Joined { node, name, cluster }
            }
            nodes::Change::Moved { node, cluster: to } => {
                let Some((name, home)) = inner.homes.get_mut(&node) else { return };
                let (name, from) = (name.clone(), std::mem::replace(home, to.clone()));
                What::Moved { node, name, from, to }
            }
            nodes::Change::Left { node } => {
                let Some((name, cluster)) = inner.homes.remove(&node) else { return };
                What::Left { node, name, cluster }
            }
            nodes::Change::Load { .. } => return,
        };
        self.push(&mut inner, what);
    }
}

impl Follower for Feed {
    fn flight(&self, change: FlightChange) {
        let mut inner = self.inner.lock();
        let name =
            |inner: &Inner, node: &NodeId| inner.homes.get(node).map(|(name, _)| name.clone()).unwrap_or_default();
        let what = match change {
            FlightChange::Began { node, cluster, digest, size } => {
                What::Began { name: name(&inner, &node), node, cluster, digest, size }
            }
            FlightChange::Ended { node, cluster, digest, complete } => {
                What::Ended { name: name(&inner, &node), node, cluster, digest, complete }
            }
        };
        self.push(&mut inner, what);
    }
}

impl identity::Follower for Feed {
    fn happened(&self, what: Happened) {
        let mut inner = self.inner.lock();
        let member = |member: Member, became| {
            // One that is bound to no cluster is of the one that it is live in.
            let home = || inner.homes.get(&member.node).and_then(|(_, cluster)| cluster.clone());
            What::Member { cluster: member.cluster.clone().or_else(home), node: member.node, became }
        };
        let join = |token: JoinTokenRow, made| What::JoinToken { id: token.id, cluster: token.cluster, made };
        let api = |token: ApiTokenRow, made| What::ApiToken { id: token.id, name: token.name, made };
        let what = match what {
            Happened::JoinTokenMade(token) => join(token, true),
            Happened::JoinTokenRemoved(token) => join(token, false),
            Happened::ApiTokenMade(token) => api(token, true),
            Happened::ApiTokenRemoved(token) => api(token, false),
            Happened::Joined(who) => member(who, Became::Joined),
            Happened::Revoked(who) => member(who, Became::Revoked),
            Happened::Removed(who) => member(who, Became::Removed),
        };
        self.push(&mut inner, what);
    }
}

impl preheat::Follower for Feed {
    fn preheat(&self, job: &Job) {
        let ended = job.ended.map(|_| job.state());
        let (id, image, cluster) = (job.id.clone(), job.image.clone(), job.cluster.clone());
        self.push(&mut self.inner.lock(), What::Preheat { id, image, cluster, ended });
    }
}

fn difference(before: &ClusterSet, after: &ClusterSet) -> Vec<What> {
    let gone = before.clusters().iter().filter(|old| after.get(&old.id).is_none());
    let gone = gone.map(|cluster| What::Deleted { cluster: Arc::clone(cluster) });
    let rest = after.clusters().iter().filter_map(|new| match before.get(&new.id) {
        None => Some(What::Created { cluster: Arc::clone(new) }),
        Some(old) if old.version != new.version => Some(What::Updated { cluster: Arc::clone(new) }),
        Some(_) => None,
    });
    gone.chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(feed: &Feed, name: &str) {
        let node: NodeId = "n".parse().unwrap();
        feed.inner.lock().homes.insert(node.clone(), (name.to_owned(), None));
        nodes::Watcher::changed(feed, nodes::Change::Left { node });
    }

    fn names(missed: Missed) -> Vec<String> {
        let Missed::Events(events, _) = missed else { panic!("{missed:?}") };
        let name = |what: &What| if let What::Left { name, .. } = what { name.clone() } else { panic!("{what:?}") };
        events.iter().map(|(_, what)| name(what)).collect()
    }

    #[test]
    fn a_listener_reads_on_where_it_stopped() {
        let feed = Feed::default();
        for name in ["a", "b", "c"] {
            left(&feed, name);
        }
        assert_eq!(names(feed.since(0, 2)), ["a", "b"]);
        let id = feed.id(0);
        assert_eq!(names(feed.since(feed.behind(&id).unwrap(), 10)), ["b", "c"]);
        assert_eq!(names(feed.since(3, 10)), Vec::<String>::new());
        for unknown in ["", "0", &format!("{}-3", feed.boot), "other-1", &format!("{}--1", feed.boot)] {
            assert_eq!(feed.behind(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn a_listener_that_was_overtaken_is_told_so_and_memory_does_not_grow() {
        let feed = Feed::default();
        for n in 0..RING + 5 {
            left(&feed, &n.to_string());
        }
        assert_eq!(feed.inner.lock().ring.len(), RING);
        assert_eq!(feed.since(4, 10), Missed::TooMuch((RING + 5) as u64));
        assert_eq!(names(feed.since(5, 1)), ["5"]);
    }
}
