//! A live node as people see it.

use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use shoal_proto::{ClusterId, NodeId};

use super::{Record, Role};
use crate::clusters::{ClusterSet, Decision};

/// A live node at one moment. Byte counts are totals since its process started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// Who.
    pub id: NodeId,
    /// The host name, not unique.
    pub name: String,
    /// Its address.
    pub ip: IpAddr,
    /// Empty for none.
    pub idc: String,
    /// `a|b|c`; empty for none.
    pub location: String,
    /// What it is for.
    pub role: Role,
    /// `None`: it runs alone.
    pub cluster_id: Option<ClusterId>,
    /// The cluster's name.
    pub cluster_name: Option<String>,
    /// The cluster that its config names.
    pub pinned_cluster: Option<String>,
    /// Why it belongs there.
    pub reason: String,
    /// Grows whenever its cluster changes.
    pub epoch: u64,
    /// Where peers reach it.
    pub peer_addr: SocketAddr,
    /// The daemon's version.
    pub version: String,
    /// False: its session broke, and its lease is running out.
    pub connected: bool,
    /// When its session began.
    pub connected_since: SystemTime,
    /// When it was heard last.
    pub last_heartbeat: SystemTime,
    /// Whole blobs that it holds.
    pub held_blobs: u64,
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
    /// Uploads now.
    pub uploads: u32,
    /// Flights now.
    pub flights: u32,
}

/// A live node that would belong elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Who.
    pub node: NodeId,
    /// The host name, not unique.
    pub name: String,
    /// Its address.
    pub ip: IpAddr,
    /// Where it is, by id and name; `None`: alone.
    pub from: Option<(ClusterId, String)>,
    /// Where it would be. The id of a cluster that is not made yet is not the one that it will have.
    pub to: Option<(ClusterId, String)>,
    /// Why it would belong there.
    pub reason: String,
}

impl Record {
    /// `None`: it would stay.
    pub(super) fn moved_by(&self, clusters: &ClusterSet) -> Option<Move> {
        let Decision { cluster, reason } = self.who.decide(clusters);
        let to = cluster.map(|cluster| (cluster.id.clone(), cluster.name.clone()));
        let from = self.assignment.borrow().cluster.clone();
        if from.as_ref().map(|(id, _)| id) == to.as_ref().map(|(id, _)| id) {
            return None;
        }
        let (node, name, ip) = (self.who.node.clone(), self.who.name.clone(), self.who.facts.ip());
        Some(Move { node, name, ip, from, to, reason })
    }

    pub(super) fn view(&self) -> NodeView {
        let assignment = self.assignment.borrow().clone();
        let (cluster_id, cluster_name) = assignment.cluster.unzip();
        NodeView {
            id: self.who.node.clone(),
            name: self.who.name.clone(),
            ip: self.who.facts.ip(),
            idc: self.who.facts.idc().to_owned(),
            location: self.who.facts.location().to_owned(),
            role: self.who.role,
            cluster_id,
            cluster_name,
            pinned_cluster: self.who.pin.clone(),
            reason: assignment.reason,
            epoch: assignment.epoch,
            peer_addr: SocketAddr::new(self.who.facts.ip(), self.who.peer_port),
            version: self.who.version.clone(),
            connected: self.connected,
            connected_since: self.since,
            last_heartbeat: self.heard_at,
            held_blobs: self.held as u64,
            store_bytes: self.load.store_bytes,
            bytes_from_origin: self.load.bytes_from_origin,
            bytes_from_peers: self.load.bytes_from_peers,
            bytes_to_peers: self.load.bytes_to_peers,
            bytes_local: self.load.bytes_local,
            uploads: self.load.uploads,
            flights: self.load.flights,
        }
    }
}
