//! Routes of live nodes.

use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use shoal_proto::{ClusterId, NodeId};
use utoipa::{IntoParams, ToSchema};

use super::Parts;
use super::caller::{Viewer, reaches};
use super::document::{Finding, Reading};
use super::extract::{Path, Query};
use super::page::{List, Page};
use super::problem::Problem;
use super::time::rfc3339;
use crate::identity::Caller;
use crate::nodes;

/// A live node. Byte counts are totals since its process started.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NodeView {
    /// Lives as long as its state directory.
    #[schema(value_type = String, pattern = "^[a-z0-9-]{1,64}$")]
    id: NodeId,
    /// Its host name, not unique.
    name: String,
    /// Its address.
    #[schema(value_type = String)]
    ip: IpAddr,
    /// Its data centre; empty for none.
    idc: String,
    /// A path separated by bars; empty for none.
    location: String,
    /// What it is for.
    role: NodeRole,
    /// Name of its cluster; null: it runs alone.
    #[schema(required = true)]
    cluster: Option<String>,
    /// Id of its cluster.
    #[schema(value_type = Option<String>, required = true)]
    cluster_id: Option<ClusterId>,
    /// The cluster that its config names.
    #[schema(required = true)]
    pinned_cluster: Option<String>,
    /// Why it belongs there.
    reason: String,
    /// Grows whenever its cluster changes.
    #[schema(minimum = 0)]
    epoch: u64,
    /// Where peers reach it.
    #[schema(value_type = String)]
    peer_addr: SocketAddr,
    /// Of its program.
    version: String,
    /// False: its session broke, and its lease is running out.
    connected: bool,
    /// When its session began.
    #[schema(format = DateTime)]
    connected_since: String,
    /// When it was heard last.
    #[schema(format = DateTime)]
    last_heartbeat: String,
    /// How long ago that was by the clock of control.
    #[schema(minimum = 0)]
    heartbeat_age_seconds: f64,
    /// Whole blobs that it holds.
    #[schema(minimum = 0)]
    held_blobs: u64,
    /// On its disk.
    #[schema(minimum = 0)]
    store_bytes: u64,
    /// Read from the origin.
    #[schema(minimum = 0)]
    bytes_from_origin: u64,
    /// Read from peers.
    #[schema(minimum = 0)]
    bytes_from_peers: u64,
    /// Given to peers.
    #[schema(minimum = 0)]
    bytes_to_peers: u64,
    /// Served from its own disk.
    #[schema(minimum = 0)]
    bytes_local: u64,
    /// Uploads now.
    #[schema(minimum = 0)]
    uploads: u32,
    /// Flights now.
    #[schema(minimum = 0)]
    flights: u32,
}

/// What a node is for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum NodeRole {
    /// An ordinary node.
    #[default]
    Node,
    /// Its job is to fetch from the origin first.
    Seed,
}

impl From<nodes::Role> for NodeRole {
    fn from(role: nodes::Role) -> Self {
        match role {
            nodes::Role::Node => Self::Node,
            nodes::Role::Seed => Self::Seed,
        }
    }
}

/// Whether a node's session is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum NodeState {
    /// It is.
    Connected,
    /// It broke, and its lease is running out.
    Lost,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct NodesQuery {
    /// Only nodes of this cluster, by name or id. Empty: those that run alone.
    #[param(max_length = 256, nullable = false)]
    cluster: Option<String>,
    /// Only nodes whose host name, or id, begins so.
    #[param(max_length = 256, nullable = false)]
    name: Option<String>,
    /// Only nodes of this role.
    #[param(inline, nullable = false)]
    role: Option<NodeRole>,
    /// Only nodes in this state.
    #[param(inline, nullable = false)]
    state: Option<NodeState>,
    /// Only nodes of this version of the program.
    #[param(max_length = 256, nullable = false)]
    version: Option<String>,
    /// Items at most.
    #[param(minimum = 1, maximum = 1000, nullable = false, default = 100)]
    limit: Option<u32>,
    /// `next` of the page before.
    #[param(max_length = 4096, nullable = false)]
    after: Option<String>,
}

impl Parts {
    /// The cluster that a filter names.
    pub(super) fn filter(&self, caller: &Caller, name: &str) -> Result<ClusterId, Problem> {
        let set = self.clusters.current();
        let found = set.find(name).filter(|cluster| caller.reaches(&cluster.id));
        let missing = || Problem::field("cluster", format!("there is no cluster {name:?}"));
        found.map(|cluster| cluster.id.clone()).ok_or_else(missing)
    }
}

/// Live nodes, by cluster, then name
#[utoipa::path(get, path = "/api/v1/nodes", operation_id = "list_nodes", tag = "nodes", security(("token" = [])), params(NodesQuery),
    responses((status = 200, description = "A page.", body = List<NodeView>), Reading))]
pub(super) async fn list(
    Viewer(caller): Viewer,
    State(parts): State<Parts>,
    Query(query): Query<NodesQuery>,
) -> Result<Json<List<NodeView>>, Problem> {
    let now = SystemTime::now();
    let cluster = match query.cluster.as_deref() {
        None => None,
        Some("") => Some(None),
        Some(name) => Some(Some(parts.filter(&caller, name)?)),
    };
    let starts = |node: &nodes::NodeView| {
        query.name.as_deref().is_none_or(|prefix| node.name.starts_with(prefix) || node.id.as_str().starts_with(prefix))
    };
    let seen = |node: &nodes::NodeView| {
        reaches(&caller, node.cluster_id.as_ref()).is_ok()
            && cluster.as_ref().is_none_or(|cluster| *cluster == node.cluster_id)
            && starts(node)
            && query.role.is_none_or(|role| role == node.role.into())
            && query.state.is_none_or(|state| (state == NodeState::Connected) == node.connected)
            && query.version.as_ref().is_none_or(|version| *version == node.version)
    };
    let mut nodes: Vec<nodes::NodeView> = parts.nodes.list().into_iter().filter(seen).collect();
    let key = |node: &nodes::NodeView| (node.cluster_name.clone(), node.name.clone(), node.id.clone());
    nodes.sort_by_cached_key(key);
    let page = Page { limit: query.limit, after: query.after.as_deref() };
    Ok(Json(page.of(nodes, key)?.map(|node| view(node, now))))
}

/// One live node
#[utoipa::path(get, path = "/api/v1/nodes/{node}", operation_id = "get_node", tag = "nodes", security(("token" = [])),
    params(("node" = String, Path, description = "Its id.")), responses((status = 200, description = "It.", body = NodeView), Finding))]
pub(super) async fn show(
    Viewer(caller): Viewer,
    State(parts): State<Parts>,
    Path(text): Path<String>,
) -> Result<Json<NodeView>, Problem> {
    let node = text.parse::<NodeId>().ok().and_then(|id| parts.nodes.get(&id));
    let node = node.filter(|node| reaches(&caller, node.cluster_id.as_ref()).is_ok());
    let missing = || Problem::new(StatusCode::NOT_FOUND, format!("there is no live node {text:?}"));
    Ok(Json(view(node.ok_or_else(missing)?, SystemTime::now())))
}

fn view(node: nodes::NodeView, now: SystemTime) -> NodeView {
    NodeView {
        id: node.id,
        name: node.name,
        ip: node.ip,
        idc: node.idc,
        location: node.location,
        role: node.role.into(),
        cluster: node.cluster_name,
        cluster_id: node.cluster_id,
        pinned_cluster: node.pinned_cluster,
        reason: node.reason,
        epoch: node.epoch,
        peer_addr: node.peer_addr,
        version: node.version,
        connected: node.connected,
        connected_since: rfc3339(node.connected_since),
        last_heartbeat: rfc3339(node.last_heartbeat),
        heartbeat_age_seconds: now.duration_since(node.last_heartbeat).unwrap_or_default().as_secs_f64(),
        held_blobs: node.held_blobs,
        store_bytes: node.store_bytes,
        bytes_from_origin: node.bytes_from_origin,
        bytes_from_peers: node.bytes_from_peers,
        bytes_to_peers: node.bytes_to_peers,
        bytes_local: node.bytes_local,
        uploads: node.uploads,
        flights: node.flights,
    }
}
