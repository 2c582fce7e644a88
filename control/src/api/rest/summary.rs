//! How much of everything there is, counted here rather than page by page by whoever asks.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use shoal_proto::{ClusterId, Digest, NodeId};
use utoipa::{IntoParams, ToSchema};

use super::Parts;
use super::caller::{Viewer, reaches};
use super::document::Reading;
use super::extract::Query;
use super::problem::Problem;
use crate::nodes::{NodeView, Role};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct SummaryQuery {
    /// Only of this cluster, by name or id.
    #[param(max_length = 256, nullable = false)]
    cluster: Option<String>,
}

/// What there is of everything at this moment, as far as the token sees. Byte counts are sums over the live nodes of what each counted since its
/// process started.
#[derive(Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Summary {
    /// Clusters.
    #[schema(minimum = 0)]
    clusters: usize,
    /// Live nodes.
    #[schema(minimum = 0)]
    nodes: usize,
    /// Those of them whose session is open; the leases of the others run out.
    #[schema(minimum = 0)]
    connected: usize,
    /// Those of them that are seeds.
    #[schema(minimum = 0)]
    seeds: usize,
    /// Those of them that run alone.
    #[schema(minimum = 0)]
    alone: usize,
    /// Live flights.
    #[schema(minimum = 0)]
    flights: usize,
    /// Blobs that somebody holds or fetches; one of two clusters counts twice.
    #[schema(minimum = 0)]
    blobs: usize,
    /// On the nodes' disks.
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
    /// Served from the nodes' own disks.
    #[schema(minimum = 0)]
    bytes_local: u64,
}

impl Summary {
    fn add(&mut self, node: &NodeView) {
        self.nodes += 1;
        self.connected += usize::from(node.connected);
        self.seeds += usize::from(node.role == Role::Seed);
        self.alone += usize::from(node.cluster_id.is_none());
        let sums = [
            (&mut self.store_bytes, node.store_bytes),
            (&mut self.bytes_from_origin, node.bytes_from_origin),
            (&mut self.bytes_from_peers, node.bytes_from_peers),
            (&mut self.bytes_to_peers, node.bytes_to_peers),
            (&mut self.bytes_local, node.bytes_local),
        ];
        for (sum, bytes) in sums {
            *sum = sum.saturating_add(bytes);
        }
    }
}

/// How many clusters, nodes, flights and blobs there are, and what all nodes together read and gave
#[utoipa::path(get, path = "/api/v1/summary", operation_id = "get_summary", tag = "nodes", security(("token" = [])), params(SummaryQuery),
    responses((status = 200, description = "Counts and sums.", body = Summary), Reading))]
pub(super) async fn show(
    Viewer(caller): Viewer,
    State(parts): State<Parts>,
    Query(query): Query<SummaryQuery>,
) -> Result<Json<Summary>, Problem> {
    let wanted = query.cluster.as_deref().map(|name| parts.filter(&caller, name)).transpose()?;
    let within = |cluster: &ClusterId| match &wanted {
        Some(wanted) => wanted == cluster,
        None => caller.reaches(cluster),
    };
    let seen = |node: &NodeView| match (&node.cluster_id, &wanted) {
        (Some(cluster), _) => within(cluster),
        (None, None) => reaches(&caller, None).is_ok(),
        (None, Some(_)) => false,
    };
    let set = parts.clusters.current();
    let (flights, blobs) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let count = |of: &std::cell::Cell<usize>, cluster: &ClusterId| {
        of.set(of.get() + usize::from(within(cluster)));
        false
    };
    parts.swarm.flights(|cluster: &ClusterId, _: &NodeId, _: &Digest| count(&flights, cluster), None, 0);
    parts.swarm.blobs(|cluster: &ClusterId, _: &Digest| count(&blobs, cluster), None, 0);
    let mut summary = Summary {
        clusters: set.clusters().iter().filter(|cluster| within(&cluster.id)).count(),
        flights: flights.get(),
        blobs: blobs.get(),
        ..Summary::default()
    };
    parts.nodes.list().iter().filter(|node| seen(node)).for_each(|node| summary.add(node));
    Ok(Json(summary))
}
