//! Peers that control named, remembered on disk for a day, so that a node has somebody to ask while control is away (I4).

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_proto::{ClusterId, NodeId};

use super::assignment::{is_fresh, now, replace};
use crate::swarm::{Parent, ParentAddr};

/// More than any flight asks, so that some are left when a few are gone.
const MOST: usize = 64;
/// What is known already is written again after this, so that its age on disk is not far off.
const RENEW: u64 = 3600;

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Neighbour {
    node: NodeId,
    addr: std::net::SocketAddr,
    /// When control named it last: seconds since 1970.
    at: u64,
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Known {
    cluster: Option<ClusterId>,
    /// The latest first.
    nodes: VecDeque<Neighbour>,
}

/// What is remembered. One for the whole process.
pub(super) struct Neighbours {
    path: PathBuf,
    known: Mutex<Known>,
    /// One write at a time, each of what is newest then.
    writing: Mutex<()>,
}

impl Neighbours {
    /// Reads what was remembered of the cluster; anything else on disk counts as nothing.
    pub(super) fn open(state_dir: &Path, cluster: Option<&ClusterId>) -> Arc<Self> {
        let path = state_dir.join("neighbours.json");
        let read = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Known>(&text).ok());
        let known = read.filter(|known| cluster.is_some() && known.cluster.as_ref() == cluster);
        let known = known.unwrap_or_else(|| Known { cluster: cluster.cloned(), nodes: VecDeque::new() });
        Arc::new(Self { path, known: Mutex::new(known), writing: Mutex::default() })
    }

    /// This node belongs to that cluster from now on: peers of another one are forgotten (I3).
    pub(super) fn belong(self: &Arc<Self>, cluster: Option<&ClusterId>) {
        let mut known = self.known.lock();
        if known.cluster.as_ref() == cluster {
            return;
        }
        *known = Known { cluster: cluster.cloned(), nodes: VecDeque::new() };
        drop(known);
        self.write();
    }

    /// Control named these.
    pub(super) fn note(self: &Arc<Self>, parents: &[Parent]) {
        let now = now();
        let mut known = self.known.lock();
        if known.cluster.is_none() {
            return;
        }
        let mut news = false;
        for parent in parents {
            let before = known.nodes.iter().position(|one| one.node == parent.node);
            let before = before.and_then(|at| known.nodes.remove(at));
            news |= before.is_none_or(|one| one.addr != parent.addr.0 || one.at.abs_diff(now) > RENEW);
            known.nodes.push_front(Neighbour { node: parent.node.clone(), addr: parent.addr.0, at: now });
        }
        known.nodes.truncate(MOST);
        drop(known);
        if news {
            self.write();
        }
    }

    /// Who was named within a day, the latest first.
    pub(super) fn list(&self) -> Vec<Parent> {
        let known = self.known.lock();
        let fresh = known.nodes.iter().filter(|one| is_fresh(one.at));
        let parent = |one: &Neighbour| Parent { node: one.node.clone(), addr: ParentAddr(one.addr), complete: true };
        fresh.map(parent).collect()
    }

    /// Off the async threads: it waits for the disk.
    fn write(self: &Arc<Self>) {
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let _one = this.writing.lock();
            let text = serde_json::to_vec_pretty(&*this.known.lock()).expect("names and numbers are JSON");
            if let Err(error) = replace(&this.path, &text) {
                tracing::warn!(%error, path = %this.path.display(), "remember peers");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str) -> Option<ClusterId> {
        Some(name.parse().unwrap())
    }

    fn parent(name: &str, port: u16) -> Parent {
        Parent { node: name.parse().unwrap(), addr: ParentAddr(([10, 0, 0, 1], port).into()), complete: true }
    }

    async fn on_disk(dir: &Path, count: usize) -> Known {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let read = std::fs::read(dir.join("neighbours.json")).ok();
            let known: Option<Known> = read.and_then(|text| serde_json::from_slice(&text).ok());
            match known {
                Some(known) if known.nodes.len() == count => return known,
                _ if std::time::Instant::now() > end => panic!("{count} neighbours never reached the disk"),
                _ => tokio::task::yield_now().await,
            }
        }
    }

    #[tokio::test]
    async fn i4_peers_that_control_named_are_known_after_a_restart_the_latest_first() {
        let dir = tempfile::tempdir().unwrap();
        let east = cluster("east");
        let neighbours = Neighbours::open(dir.path(), east.as_ref());
        neighbours.note(&[parent("n1", 1), parent("n2", 1)]);
        neighbours.note(&[parent("n1", 2)]);
        assert_eq!(neighbours.list(), [parent("n1", 2), parent("n2", 1)]);
        on_disk(dir.path(), 2).await;
        // The write of the new address may come after the first.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while Neighbours::open(dir.path(), east.as_ref()).list() != neighbours.list() {
            assert!(std::time::Instant::now() < end, "the latest address never reached the disk");
            tokio::task::yield_now().await;
        }
        assert!(Neighbours::open(dir.path(), None).list().is_empty());
        std::fs::write(dir.path().join("neighbours.json"), "torn {").unwrap();
        assert!(Neighbours::open(dir.path(), east.as_ref()).list().is_empty());
    }

    #[tokio::test]
    async fn i3_peers_of_the_old_cluster_are_forgotten_by_a_move() {
        let dir = tempfile::tempdir().unwrap();
        let neighbours = Neighbours::open(dir.path(), cluster("east").as_ref());
        neighbours.note(&[parent("n1", 1)]);
        on_disk(dir.path(), 1).await;
        neighbours.belong(cluster("west").as_ref());
        assert!(neighbours.list().is_empty());
        on_disk(dir.path(), 0).await;
        assert!(Neighbours::open(dir.path(), cluster("east").as_ref()).list().is_empty());
    }

    #[tokio::test]
    async fn i4_who_was_not_named_for_a_day_is_not_asked() {
        let dir = tempfile::tempdir().unwrap();
        let at = |hours: u64| now() - hours * 3600;
        let nodes = [("n1", 1), ("n2", 25)].map(|(name, hours)| Neighbour {
            node: name.parse().unwrap(),
            addr: ([10, 0, 0, 1], 1).into(),
            at: at(hours),
        });
        let known = Known { cluster: cluster("east"), nodes: nodes.into() };
        std::fs::write(dir.path().join("neighbours.json"), serde_json::to_vec(&known).unwrap()).unwrap();
        assert_eq!(Neighbours::open(dir.path(), cluster("east").as_ref()).list(), [parent("n1", 1)]);
    }

    #[tokio::test]
    async fn no_more_are_remembered_than_are_ever_asked() {
        let dir = tempfile::tempdir().unwrap();
        let neighbours = Neighbours::open(dir.path(), cluster("east").as_ref());
        let many: Vec<Parent> = (0..200).map(|n| parent(&format!("n{n}"), 1)).collect();
        neighbours.note(&many);
        assert_eq!(neighbours.list().len(), MOST);
    }
}
