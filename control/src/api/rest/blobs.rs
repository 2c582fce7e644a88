//! Routes of blobs, flights and images: who has what, who fetches what, and from whom.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use shoal_proto::{ClusterId, Digest, NodeId};
use utoipa::{IntoParams, ToSchema};

use super::Parts;
use super::caller::Viewer;
use super::document::{Asking, Finding, Reading};
use super::extract::{Body, Path, Query};
use super::page::{List, Page};
use super::problem::Problem;
use crate::identity::Caller;
use crate::swarm::{self, Waiting};

/// A blob in one cluster.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BlobView {
    /// Which.
    #[schema(pattern = "^sha256:[0-9a-f]{64}$")]
    digest: String,
    /// Name of the cluster.
    cluster: String,
    /// Id of the cluster.
    #[schema(value_type = String)]
    cluster_id: ClusterId,
    /// Bytes; null: nobody knows yet.
    #[schema(minimum = 0, required = true)]
    size: Option<u64>,
    /// Content-Type as the origin gave it; null: nobody knows yet, or it gave none.
    #[schema(required = true)]
    media_type: Option<String>,
    /// Nodes that hold it whole.
    #[schema(minimum = 0)]
    holders: usize,
    /// Nodes that fetch it now.
    #[schema(minimum = 0)]
    flights: usize,
}

/// A blob, cluster by cluster.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BlobDetail {
    /// Which.
    #[schema(pattern = "^sha256:[0-9a-f]{64}$")]
    digest: String,
    /// Every cluster in which somebody holds or fetches it.
    clusters: Vec<BlobView>,
}

/// A node that has a blob, whole or in part.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HolderView {
    /// Its id.
    #[schema(value_type = String)]
    node: NodeId,
    /// Its host name; null when it left this moment.
    #[schema(required = true)]
    name: Option<String>,
    /// Name of its cluster.
    cluster: String,
    /// It holds the whole.
    complete: bool,
    /// Verified bytes on its disk, rounded up to a block; null: nobody knows how large the blob is.
    #[schema(minimum = 0, required = true)]
    bytes: Option<u64>,
}

/// One node's fetch of one digest, however many readers wait on it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FlightView {
    /// Who fetches.
    #[schema(value_type = String)]
    node: NodeId,
    /// Its host name; null when it left this moment.
    #[schema(required = true)]
    name: Option<String>,
    /// Name of its cluster.
    cluster: String,
    /// What it fetches.
    #[schema(pattern = "^sha256:[0-9a-f]{64}$")]
    digest: String,
    /// Which registry it would read.
    registry: String,
    /// Which repository there.
    repository: String,
    /// Bytes; null: nobody knows yet.
    #[schema(minimum = 0, required = true)]
    size: Option<u64>,
    /// Verified bytes on its disk, rounded up to a block; null while the size is not known.
    #[schema(minimum = 0, required = true)]
    bytes: Option<u64>,
    /// Read from the origin in this flight.
    #[schema(minimum = 0)]
    origin_bytes: u64,
    /// It has leave to read the origin now.
    reads_origin: bool,
    /// Everything is there and checked.
    complete: bool,
    /// Whom control told it to fetch from, best first, then others that gave it something before. It picks among them, piece by
    /// piece: who feeds it has `bytes`.
    parents: Vec<ParentView>,
    /// Why it has neither parents nor leave to read the origin.
    #[schema(required = true)]
    waiting: Option<&'static str>,
    /// The seed that was ordered to fetch it and is waited for, for two seconds at most; null: there is none.
    #[schema(required = true)]
    seed: Option<SeedView>,
    /// The node is a seed, and control ordered this flight.
    ordered: bool,
}

/// A node that feeds another, or may.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ParentView {
    /// Its id.
    #[schema(value_type = String)]
    node: NodeId,
    /// Its host name; null when it left this moment.
    #[schema(required = true)]
    name: Option<String>,
    /// It holds the whole.
    complete: bool,
    /// That came from it in this flight, as the fetching node says once in a quarter of a second; 0: nothing yet.
    #[schema(minimum = 0)]
    bytes: u64,
}

/// A seed that is waited for.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SeedView {
    /// Who.
    #[schema(value_type = String)]
    node: NodeId,
    /// Its host name; null when it left this moment.
    #[schema(required = true)]
    name: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BlobsQuery {
    /// Only in this cluster, by name or id.
    #[param(max_length = 256, nullable = false)]
    cluster: Option<String>,
    /// Only digests that begin so: `sha256:` and up to 64 hex digits.
    #[param(max_length = 71, nullable = false)]
    digest: Option<String>,
    /// Items at most.
    #[param(minimum = 1, maximum = 1000, nullable = false, default = 100)]
    limit: Option<u32>,
    /// `next` of the page before.
    #[param(max_length = 4096, nullable = false)]
    after: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct HoldersQuery {
    /// Only in this cluster, by name or id.
    #[param(max_length = 256, nullable = false)]
    cluster: Option<String>,
    /// Items at most.
    #[param(minimum = 1, maximum = 1000, nullable = false, default = 100)]
    limit: Option<u32>,
    /// `next` of the page before.
    #[param(max_length = 4096, nullable = false)]
    after: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct FlightsQuery {
    /// Only in this cluster, by name or id.
    #[param(max_length = 256, nullable = false)]
    cluster: Option<String>,
    /// Only those of this node, by id.
    #[param(max_length = 64, nullable = false, pattern = "^[a-z0-9-]{1,64}$")]
    node: Option<String>,
    /// Only those of this digest.
    #[param(max_length = 71, nullable = false, pattern = "^sha256:[0-9a-f]{64}$")]
    digest: Option<String>,
    /// Items at most.
    #[param(minimum = 1, maximum = 1000, nullable = false, default = 100)]
    limit: Option<u32>,
    /// `next` of the page before.
    #[param(max_length = 4096, nullable = false)]
    after: Option<String>,
}

/// Which blobs are looked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AskShare {
    /// The blobs of an image, as its manifest lists them, the config and the manifest itself if they are to count.
    #[schema(min_items = 1, max_items = 1000)]
    blobs: Vec<AskBlob>,
    /// Only in this cluster, by name or id.
    #[schema(max_length = 256, examples("default"))]
    cluster: Option<String>,
}

/// A descriptor, as much of it as counts.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AskBlob {
    /// Which.
    #[schema(
        min_length = 71,
        max_length = 71,
        pattern = "^sha256:[0-9a-f]{64}$",
        examples("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    )]
    digest: String,
    /// Bytes. Left out: as those say who have it.
    #[schema(minimum = 0, maximum = 1099511627776i64)]
    size: Option<u64>,
}

/// What a node has of an image.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ShareView {
    /// Its id.
    #[schema(value_type = String)]
    node: NodeId,
    /// Its host name; null when it left this moment.
    #[schema(required = true)]
    name: Option<String>,
    /// Name of its cluster.
    cluster: String,
    /// Blobs that it holds whole.
    #[schema(minimum = 0)]
    blobs: usize,
    /// Verified bytes on its disk, those of flights included.
    #[schema(minimum = 0)]
    bytes: u64,
    /// Of all bytes whose size is known; 1 is everything.
    #[schema(minimum = 0, maximum = 1)]
    share: f64,
}

/// What all blobs are together.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Share {
    /// How many different ones were asked for.
    #[schema(minimum = 1)]
    blobs: usize,
    /// Bytes of those whose size is known.
    #[schema(minimum = 0)]
    bytes: u64,
    /// Digests that nobody within reach has, and whose size was not given.
    unknown: Vec<String>,
    /// Every node that has something, by id.
    nodes: List<ShareView>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ShareQuery {
    /// Items at most.
    #[param(minimum = 1, maximum = 1000, nullable = false, default = 100)]
    limit: Option<u32>,
    /// `next` of the page before.
    #[param(max_length = 4096, nullable = false)]
    after: Option<String>,
}

/// Clusters by id, as far as a caller sees them.
struct Within(HashMap<ClusterId, String>);

impl Within {
    fn of(parts: &Parts, caller: &Caller, filter: Option<&str>) -> Result<Self, Problem> {
        let filter = filter.map(|name| parts.filter(caller, name)).transpose()?;
        let seen = |id: &ClusterId| caller.reaches(id) && filter.as_ref().is_none_or(|filter| filter == id);
        let set = parts.clusters.current();
        let clusters = set.clusters().iter().filter(|cluster| seen(&cluster.id));
        Ok(Self(clusters.map(|cluster| (cluster.id.clone(), cluster.name.clone())).collect()))
    }

    fn has(&self, cluster: &ClusterId) -> bool {
        self.0.contains_key(cluster)
    }

    fn name(&self, cluster: &ClusterId) -> String {
        self.0.get(cluster).cloned().unwrap_or_else(|| cluster.to_string())
    }

    fn blob(&self, blob: swarm::BlobView) -> BlobView {
        BlobView {
            digest: blob.digest.to_string(),
            cluster: self.name(&blob.cluster),
            cluster_id: blob.cluster,
            size: blob.size,
            media_type: blob.media_type.filter(|kind| !kind.is_empty()),
            holders: blob.holders,
            flights: blob.flights,
        }
    }
}

fn digest(field: &str, text: &str) -> Result<Digest, Problem> {
    text.parse().map_err(|error: shoal_proto::DigestError| Problem::field(field, error.to_string()))
}

/// Blobs that somebody holds or fetches, by digest, then cluster
#[utoipa::path(get, path = "/api/v1/blobs", operation_id = "list_blobs", tag = "blobs", security(("token" = [])), params(BlobsQuery),
    responses((status = 200, description = "A page.", body = List<BlobView>), Reading))]
pub(super) async fn list(
    Viewer(caller): Viewer,
    State(parts): State<Parts>,
    Query(query): Query<BlobsQuery>,
) -> Result<Json<List<BlobView>>, Problem> {
    let within = Within::of(&parts, &caller, query.cluster.as_deref())?;
    let prefix = query.digest.unwrap_or_default();
    let hex = prefix.strip_prefix("sha256:").or_else(|| "sha256:".starts_with(&prefix).then_some(""));
    let hex =
        hex.filter(|hex| hex.len() <= 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
    let why = || Problem::field("digest", "is no beginning of sha256: and 64 lower-case hex digits".to_owned());
    let hex = hex.ok_or_else(why)?;
    let starts = |digest: &Digest| {
        let nibbles = digest.as_bytes().iter().flat_map(|byte| [byte >> 4, byte & 15]);
        hex.bytes().zip(nibbles).all(|(digit, nibble)| char::from(digit).to_digit(16) == Some(u32::from(nibble)))
    };
    let page = Page { limit: query.limit, after: query.after.as_deref() };
    let after: Option<(String, ClusterId)> = page.after()?;
    let after = after.map(|(text, cluster)| Ok::<_, Problem>((digest("after", &text)?, cluster))).transpose()?;
    let count = Cell::new(0);
    let keep = |cluster: &ClusterId, digest: &Digest| counted(&count, within.has(cluster) && starts(digest));
    let blobs = parts.swarm.blobs(keep, after.as_ref(), page.limit() + 1);
    if after.is_some() {
        // Those of the pages before were not looked at.
        count.set(0);
        parts.swarm.blobs(keep, None, 0);
    }
    let blobs = page.first(blobs, |blob| (blob.digest.to_string(), blob.cluster.clone())).of(count.get());
    Ok(Json(blobs.map(|blob| within.blob(blob))))
}

/// One blob, cluster by cluster
#[utoipa::path(get, path = "/api/v1/blobs/{digest}", operation_id = "get_blob", tag = "blobs", security(("token" = [])),
    params(("digest" = String, Path, pattern = "^sha256:[0-9a-f]{64}$", description = "`sha256:` and 64 hex digits.")),
    responses((status = 200, description = "It.", body = BlobDetail), Finding))]
pub(super) async fn show(
    Viewer(caller): Viewer,
    State(parts): State<Parts>,
    Path(text): Path<String>,
) -> Result<Json<BlobDetail>, Problem> {
    let within = Within::of(&parts, &caller, None)?;
    let wanted = digest("digest", &text)?;
    let mut clusters: Vec<BlobView> = within
        .0
        .keys()
        .filter_map(|cluster| parts.swarm.blob(cluster, &wanted))
        .map(|blob| within.blob(blob))
        .collect();
    if clusters.is_empty() {
        let why = format!("nobody holds or fetches {wanted}, as far as this token sees");
        return Err(Problem::new(StatusCode::NOT_FOUND, why));
    }
    clusters.sort_by(|a, b| a.cluster.cmp(&b.cluster));
    Ok(Json(BlobDetail { digest: wanted.to_string(), clusters }))
}

/// Who has a blob, whole or in part, by node
#[utoipa::path(get, path = "/api/v1/blobs/{digest}/holders", operation_id = "list_holders", tag = "blobs", security(("token" = [])),
    params(("digest" = String, Path, pattern = "^sha256:[0-9a-f]{64}$", description = "`sha256:` and 64 hex digits."), HoldersQuery),
    responses((status = 200, description = "A page; empty when nobody has it.", body = List<HolderView>), Reading))]
pub(super) async fn holders(
    Viewer(caller): Viewer,
    State(parts): State<Parts>,
    Path(text): Path<String>,
    Query(query): Query<HoldersQuery>,
) -> Result<Json<List<HolderView>>, Problem> {
    let within = Within::of(&parts, &caller, query.cluster.as_deref())?;
    let digest = digest("digest", &text)?;
    let mut holders: Vec<_> = within.0.keys().flat_map(|cluster| parts.swarm.holders(cluster, &digest)).collect();
    holders.sort_by(|a, b| a.node.cmp(&b.node));
    let page = Page { limit: query.limit, after: query.after.as_deref() };
    let holders = page.of(holders, |holder| holder.node.clone())?;
    let names = parts.nodes.names();
    Ok(Json(holders.map(|holder| HolderView {
        name: names.get(&holder.node).cloned(),
        node: holder.node,
        cluster: within.name(&holder.cluster),
        complete: holder.complete,
        bytes: holder.bytes,
    })))
}

/// Counts what is wanted among what is looked through.
fn counted(count: &Cell<usize>, wanted: bool) -> bool {
    count.set(count.get() + usize::from(wanted));
    wanted
}

/// Live flights, by node, then digest
#[utoipa::path(get, path = "/api/v1/flights", operation_id = "list_flights", tag = "flights", security(("token" = [])), params(FlightsQuery),
    responses((status = 200, description = "A page.", body = List<FlightView>), Reading))]
pub(super) async fn flights(
    Viewer(caller): Viewer,
    State(parts): State<Parts>,
    Query(query): Query<FlightsQuery>,
) -> Result<Json<List<FlightView>>, Problem> {
    let within = Within::of(&parts, &caller, query.cluster.as_deref())?;
    let wanted = query.digest.as_deref().map(|text| digest("digest", text)).transpose()?;
    let node = query.node.as_deref().map(str::parse::<NodeId>).transpose();
    let node = node.map_err(|error| Problem::field("node", error.to_string()))?;
    let page = Page { limit: query.limit, after: query.after.as_deref() };
    let after: Option<(NodeId, String)> = page.after()?;
    let after = after.map(|(node, text)| Ok::<_, Problem>((node, digest("after", &text)?))).transpose()?;
    let count = Cell::new(0);
    let keep = |cluster: &ClusterId, of: &NodeId, digest: &Digest| {
        let wanted = within.has(cluster)
            && node.as_ref().is_none_or(|node| node == of)
            && wanted.as_ref().is_none_or(|wanted| wanted == digest);
        counted(&count, wanted)
    };
    let flights = parts.swarm.flights(keep, after.as_ref(), page.limit() + 1);
    if after.is_some() {
        count.set(0);
        parts.swarm.flights(keep, None, 0);
    }
    let flights = page.first(flights, |flight| (flight.node.clone(), flight.digest.to_string())).of(count.get());
    let names = parts.nodes.names();
    Ok(Json(flights.map(|flight| view(flight, &within, &names))))
}

fn view(flight: swarm::FlightView, within: &Within, names: &HashMap<NodeId, String>) -> FlightView {
    let parent = |parent: swarm::Parent| ParentView {
        name: names.get(&parent.node).cloned(),
        node: parent.node,
        complete: parent.complete,
        bytes: parent.bytes,
    };
    let seed = |node: NodeId| SeedView { name: names.get(&node).cloned(), node };
    FlightView {
        seed: flight.seed.map(seed),
        ordered: flight.ordered,
        name: names.get(&flight.node).cloned(),
        node: flight.node,
        cluster: within.name(&flight.cluster),
        digest: flight.digest.to_string(),
        registry: flight.repository.registry,
        repository: flight.repository.name,
        size: flight.size,
        bytes: flight.bytes,
        origin_bytes: flight.origin_bytes,
        reads_origin: flight.reads_origin,
        complete: flight.complete,
        parents: flight.parents.into_iter().map(parent).collect(),
        waiting: flight.waiting.map(|waiting| match waiting {
            Waiting::Starting { .. } => "control just started and grants no permits yet",
            Waiting::HolderConnects => "the reader of the origin lost its stream and may come back",
            Waiting::HolderWaits => "the request of the reader is out at the origin",
            Waiting::HolderReads => "another node reads the origin, and can't serve this one",
            Waiting::Busy { .. } => "the origin asked to be left alone for a while",
            Waiting::Nobody => "nobody holds it, and nobody who waits would read the origin",
            Waiting::Seed { .. } => "a seed was ordered to fetch it, and may come for it",
        }),
    }
}

/// Which share of an image each node has
///
/// Control knows blobs and no images: the caller, who has read the manifest, says which blobs an image is made of. Changes nothing.
#[utoipa::path(post, path = "/api/v1/images/share", operation_id = "share_of_image", tag = "images", security(("token" = [])),
    params(ShareQuery), request_body = AskShare, responses((status = 200, description = "The share of each node.", body = Share), Asking))]
pub(super) async fn share(
    Viewer(caller): Viewer,
    State(parts): State<Parts>,
    Query(query): Query<ShareQuery>,
    Body(ask): Body<AskShare>,
) -> Result<Json<Share>, Problem> {
    let within = Within::of(&parts, &caller, ask.cluster.as_deref())?;
    let (mut wanted, mut faults) = (BTreeMap::new(), Vec::new());
    for (i, blob) in ask.blobs.iter().enumerate() {
        match blob.digest.parse::<Digest>() {
            Ok(digest) => {
                let size = wanted.entry(digest).or_insert(None);
                *size = size.or(blob.size);
            }
            Err(error) => faults.push((format!("blobs[{i}].digest"), error.to_string())),
        }
    }
    if !faults.is_empty() {
        return Err(Problem::fields(faults));
    }
    let mut nodes: BTreeMap<NodeId, (ClusterId, usize, u64)> = BTreeMap::new();
    let (mut bytes, mut unknown) = (0_u64, Vec::new());
    for (digest, given) in &wanted {
        let known = within.0.keys().find_map(|cluster| parts.swarm.blob(cluster, digest)?.size);
        match given.or(known) {
            Some(size) => bytes = bytes.saturating_add(size),
            None => unknown.push(digest.to_string()),
        }
        for holder in within.0.keys().flat_map(|cluster| parts.swarm.holders(cluster, digest)) {
            let has = nodes.entry(holder.node).or_insert((holder.cluster, 0, 0));
            has.1 += usize::from(holder.complete);
            // What a caller says of a size counts for all, or a share would not be one.
            let most = given.or(known).unwrap_or(0);
            let here = if holder.complete { most } else { holder.bytes.unwrap_or(0).min(most) };
            has.2 = has.2.saturating_add(here);
        }
    }
    let page = Page { limit: query.limit, after: query.after.as_deref() };
    let nodes = page.of(nodes.into_iter().collect(), |(node, _)| node.clone())?;
    let names = parts.nodes.names();
    let nodes = nodes.map(|(node, (cluster, blobs, here))| ShareView {
        name: names.get(&node).cloned(),
        node,
        cluster: within.name(&cluster),
        blobs,
        bytes: here,
        share: if bytes == 0 { 0.0 } else { fraction(here, bytes) },
    });
    Ok(Json(Share { blobs: wanted.len(), bytes, unknown, nodes }))
}

#[allow(clippy::cast_precision_loss, reason = "a share for people")]
fn fraction(part: u64, whole: u64) -> f64 {
    (part as f64 / whole as f64).min(1.0)
}
