//! What a blob needs to see of the rest of the machine.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use shoal_proto::{ClusterId, Digest, NodeId};

use super::candidates::{Dice, Facts};
use super::distrust::Distrust;
use super::event::{At, Certificate, Effect, FinderId, Notice, Say};
use super::finder::Finder;
use super::holdings::Holdings;
use super::meter::Rates;
use super::seeds::Seeds;

/// A node as the machine keeps it.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) cluster: Option<ClusterId>,
    pub(super) addr: std::net::SocketAddr,
    pub(super) location: Arc<[String]>,
    /// Its job is to fetch from the origin first.
    pub(super) seed: bool,
    /// It takes orders of single blobs.
    pub(super) orders: bool,
    pub(super) uploads: u32,
    pub(super) slots: u32,
    pub(super) held: Holdings,
    /// By which what it signs is checked.
    pub(super) certificate: Option<Arc<Certificate>>,
    /// Held before the session began and not said again yet.
    pub(super) stale: Option<HashSet<Digest>>,
    pub(super) finders: BTreeSet<FinderId>,
}

/// What a blob needs to see of the rest of the machine.
pub(super) struct Around<'a> {
    pub(super) now: At,
    pub(super) cluster: &'a ClusterId,
    pub(super) digest: Digest,
    pub(super) nodes: &'a HashMap<NodeId, Node>,
    /// Registries that asked this cluster to stay away, and until when.
    pub(super) busy: &'a HashMap<(ClusterId, String), At>,
    pub(super) distrust: &'a Distrust,
    pub(super) rates: &'a Rates,
    pub(super) seeds: &'a mut Seeds,
    /// Until when no permit is granted.
    pub(super) starting: At,
    pub(super) dice: &'a mut Dice,
    pub(super) out: &'a mut Vec<Effect>,
}

impl Around<'_> {
    pub(super) fn say(&mut self, finder: FinderId, say: Say) {
        self.out.push(Effect::Say(finder, say));
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        self.out.push(Effect::Notice { cluster: self.cluster.clone(), digest: self.digest, notice });
    }

    /// Whether a finder may be told of a node.
    pub(super) fn may_name(&self, node: &NodeId, finder: &Finder) -> bool {
        !finder.liars.contains(node) && !self.distrust.shuns(&finder.node, node, self.now)
    }

    /// What a set of candidates needs to know of a node; `None`: it is of no use here.
    pub(super) fn facts(&self, node: &NodeId) -> Option<Facts> {
        let Node { cluster, addr, location, uploads, slots, .. } = self.nodes.get(node)?;
        let (addr, uploads, slots) = (*addr, *uploads, *slots);
        (cluster.as_ref() == Some(self.cluster)).then(|| Facts { addr, uploads, slots, location: Arc::clone(location) })
    }

    /// By what a node's signatures are checked now.
    pub(super) fn certificate(&self, node: &NodeId) -> Option<&Arc<Certificate>> {
        self.nodes.get(node)?.certificate.as_ref()
    }

    pub(super) fn is_seed(&self, node: &NodeId) -> bool {
        self.nodes.get(node).is_some_and(|node| node.seed)
    }

    pub(super) fn busy_until(&self, registry: &str) -> At {
        if self.busy.is_empty() {
            return At::ZERO;
        }
        self.busy.get(&(self.cluster.clone(), registry.to_owned())).copied().unwrap_or_default()
    }
}
