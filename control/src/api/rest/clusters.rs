//! Routes of clusters.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use shoal_proto::{ClusterId, NodeId};
use utoipa::{IntoParams, ToSchema};

use super::Parts;
use super::caller::{Operator, Viewer, reaches, reaches_all};
use super::document::{Applying, Changing, Finding, Making, Reading, Removing};
use super::extract::{Body, IfMatch, Path, Query};
use super::page::{List, Page};
use super::problem::Problem;
use crate::clusters::{
    Applied, ApplyMode, Change, Changed, Cluster, ClusterSet, ClusterSpec, Edit, Error, Plan, Planned, Reach, Refusal,
};
use crate::identity::{Caller, unfit_name};
use crate::nodes;

/// Moves that a dry run names one by one; all are counted.
const MOST_MOVES: usize = 1000;

/// A cluster as it is in force. Its ETag is its id and its version, `<id>.<version>`: another one that gets its name has another.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ClusterView {
    /// Never changes.
    #[schema(value_type = String, pattern = "^[a-z0-9-]{1,64}$")]
    id: ClusterId,
    /// Unique without regard to case.
    name: String,
    /// Grows with each change.
    #[schema(minimum = 1)]
    version: u64,
    /// Nodes that match nothing come here.
    default: bool,
    /// Data centres, alternatives separated by bars; empty for none.
    idc: String,
    /// A path separated by bars; empty for none.
    location: String,
    /// Networks, host bits masked.
    cidrs: Vec<String>,
    /// Live nodes in it.
    #[schema(minimum = 0)]
    nodes: usize,
    /// Name of the cluster that was the default until this one became it: only in the answer to the change that did so.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    default_from: Option<String>,
}

/// What a cluster is to be. What is left out is empty.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Declared {
    /// Unique without regard to case; space at its ends is dropped. Neither `.` nor `..`, nor of the form of a UUID.
    #[schema(
        min_length = 1,
        max_length = 128,
        pattern = r"^[^\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]*[^\s\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff][^\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]*$",
        examples("west")
    )]
    name: String,
    /// Nodes that match nothing come here. Made or changed alone, it takes this from whichever cluster has it.
    #[serde(default)]
    #[schema(default = false)]
    default: bool,
    /// Data centres, alternatives separated by bars.
    #[serde(default)]
    #[schema(max_length = 4096, pattern = r"^(?:\s*|[^|]*[^\s|][^|]*(?:\|[^|]*[^\s|][^|]*)*)$", examples("w1|w2"))]
    idc: String,
    /// A path separated by bars, the widest first.
    #[serde(default)]
    #[schema(max_length = 1024, pattern = r"^(?:\s*|[^|]*[^\s|][^|]*(?:\|[^|]*[^\s|][^|]*)*)$", examples("eu|fr"))]
    location: String,
    /// Networks, such as 10.1.0.0/16.
    #[serde(default)]
    #[schema(max_items = 4096)]
    cidrs: Vec<String>,
}

/// All clusters as they are to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeclaredSet {
    /// Told apart by name.
    #[schema(max_items = 10000)]
    clusters: Vec<Declared>,
}

/// What to change about a cluster. What is left out, or null, stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Patch {
    /// A new name.
    #[schema(
        min_length = 1,
        max_length = 128,
        pattern = r"^[^\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]*[^\s\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff][^\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]*$"
    )]
    name: Option<String>,
    /// Whether it is the default. It takes this from whichever cluster has it.
    default: Option<bool>,
    /// Empty: none any more.
    #[schema(max_length = 4096, pattern = r"^(?:\s*|[^|]*[^\s|][^|]*(?:\|[^|]*[^\s|][^|]*)*)$")]
    idc: Option<String>,
    /// Empty: none any more.
    #[schema(max_length = 1024, pattern = r"^(?:\s*|[^|]*[^\s|][^|]*(?:\|[^|]*[^\s|][^|]*)*)$")]
    location: Option<String>,
    /// Replaces all networks.
    #[schema(max_items = 4096)]
    cidrs: Option<Vec<String>>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Only clusters whose name begins so, without regard to case.
    #[param(max_length = 256, nullable = false)]
    name: Option<String>,
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
pub(super) struct ApplyQuery {
    /// Delete the clusters that are not declared.
    #[serde(default)]
    #[param(required = false, default = false)]
    prune: bool,
    /// Only tell what would change, and which live nodes would move.
    #[serde(default)]
    #[param(required = false, default = false)]
    dry_run: bool,
    /// Delete clusters that have live nodes, too.
    #[serde(default)]
    #[param(required = false, default = false)]
    force: bool,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ChangeQuery {
    /// Only tell what would change, and which live nodes would move.
    #[serde(default)]
    #[param(required = false, default = false)]
    dry_run: bool,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeleteQuery {
    /// Also if live nodes are in it, or if it is the default.
    #[serde(default)]
    #[param(required = false, default = false)]
    force: bool,
    /// Only tell what would change, and which live nodes would move.
    #[serde(default)]
    #[param(required = false, default = false)]
    dry_run: bool,
}

/// What a change did, or would do.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Difference {
    /// Nothing was changed.
    dry_run: bool,
    /// Oldest cluster first.
    changes: Vec<ChangeView>,
    /// Names of clusters that are there and were not declared. One that loses the default to a declared one is among `changes` too.
    undeclared: Vec<String>,
    /// The state that this was decided on, as `If-Match` of the change itself says it in quotation marks: that of the cluster, or of the
    /// whole set when it is about that. Null: nothing was there.
    #[schema(required = true)]
    version: Option<String>,
    /// In a dry run: which live nodes would move. Else null: they move by themselves, within a second.
    #[schema(required = true)]
    moves: Option<Moves>,
}

/// Live nodes that would belong elsewhere.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Moves {
    /// How many.
    #[schema(minimum = 0)]
    count: usize,
    /// How many from where to where.
    between: Vec<Between>,
    /// The first thousand of them, by name.
    #[schema(max_items = 1000)]
    nodes: Vec<MoveView>,
}

/// Nodes that would go the same way.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Between {
    /// Name of their cluster; null: they run alone.
    #[schema(required = true)]
    from: Option<String>,
    /// Name of their next cluster; null: they would run alone.
    #[schema(required = true)]
    to: Option<String>,
    /// How many.
    #[schema(minimum = 1)]
    nodes: usize,
}

/// A live node that would belong elsewhere.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MoveView {
    /// Its id.
    #[schema(value_type = String)]
    node: NodeId,
    /// Its host name.
    name: String,
    /// Its address.
    #[schema(value_type = String)]
    ip: IpAddr,
    /// Name of its cluster; null: it runs alone.
    #[schema(required = true)]
    from: Option<String>,
    /// Name of its next cluster; null: it would run alone.
    #[schema(required = true)]
    to: Option<String>,
    /// Why it would belong there.
    reason: String,
}

/// What became, or would become, of one cluster.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "action", rename_all = "lowercase")]
enum ChangeView {
    /// It is new. In a dry run its id is not the one that it will have.
    Create { name: String, after: ClusterView },
    /// It is different.
    Update { name: String, before: ClusterView, after: ClusterView },
    /// It is gone.
    Delete { name: String, before: ClusterView },
}

/// A cluster, or what a dry run found.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "it names the two answers for the description; each is made where it is known")]
pub(super) enum Outcome {
    /// Without `dry_run`.
    Cluster(ClusterView),
    /// With `dry_run`.
    Difference(Difference),
}

impl From<Declared> for ClusterSpec {
    fn from(declared: Declared) -> Self {
        let Declared { name, default, idc, location, cidrs } = declared;
        Self { name, default, idc, location, cidrs }
    }
}

impl From<Patch> for Edit {
    fn from(patch: Patch) -> Self {
        let Patch { name, default, idc, location, cidrs } = patch;
        Self { name, default, idc, location, cidrs }
    }
}

pub(super) fn etag(tag: impl std::fmt::Display) -> [(HeaderName, String); 1] {
    [(header::ETAG, format!("\"{tag}\""))]
}

/// A state of a cluster. The version alone is also that of another cluster, made later under the same name.
fn tag(cluster: &Cluster) -> String {
    format!("{}.{}", cluster.id, cluster.version)
}

/// Refuses new names that can't be asked for, or pass for an id. Clusters that have one from before keep it.
fn fit<'a>(new: impl IntoIterator<Item = &'a str>) -> Result<(), Problem> {
    let refusal = |name: &str| {
        let reason = unfit_name(name)?.to_owned();
        Some(Refusal { clusters: vec![name.to_owned()], field: "name".to_owned(), reason })
    };
    let refusals: Vec<Refusal> = new.into_iter().filter_map(|name| refusal(name.trim())).collect();
    if refusals.is_empty() { Ok(()) } else { Err(Error::Refused(refusals).into()) }
}

/// Whether a node is the caller's to see, where it is and where it would be.
fn sees(caller: &Caller, moved: &nodes::Move) -> bool {
    [&moved.from, &moved.to].iter().all(|place| reaches(caller, place.as_ref().map(|(id, _)| id)).is_ok())
}

impl Parts {
    fn view(&self, cluster: &Cluster) -> ClusterView {
        let Cluster { id, seq: _, version, name, default, idc, location, cidrs } = cluster.clone();
        let nodes = self.nodes.count_of(&id);
        ClusterView { id, name, version, default, idc, location, cidrs, nodes, default_from: None }
    }

    fn answer(&self, status: StatusCode, cluster: &Cluster) -> Response {
        (status, etag(tag(cluster)), Json(self.view(cluster))).into_response()
    }

    fn answer_changed(&self, status: StatusCode, changed: &Changed) -> Response {
        let default_from = changed.default_from.as_ref().map(|cluster| cluster.name.clone());
        let view = ClusterView { default_from, ..self.view(&changed.cluster) };
        (status, etag(tag(&changed.cluster)), Json(view)).into_response()
    }

    /// The cluster of that name or id, for a caller who wants to change it.
    fn changeable(&self, caller: &Caller, id_or_name: &str) -> Result<Arc<Cluster>, Problem> {
        let set = self.clusters.current();
        let cluster = set.find(id_or_name).ok_or_else(|| Error::NotFound(id_or_name.to_owned()))?;
        reaches(caller, Some(&cluster.id))?;
        Ok(Arc::clone(cluster))
    }

    fn changes(&self, changes: &[Change]) -> Vec<ChangeView> {
        let view = |cluster: &Arc<Cluster>| self.view(cluster);
        let change = |change: &Change| match change {
            Change::Created(after) => ChangeView::Create { name: after.name.clone(), after: view(after) },
            Change::Deleted(before) => ChangeView::Delete { name: before.name.clone(), before: view(before) },
            Change::Updated { before, after } => {
                ChangeView::Update { name: after.name.clone(), before: view(before), after: view(after) }
            }
        };
        changes.iter().map(change).collect()
    }

    /// How many live nodes such clusters would move from or to where the caller has no say.
    fn beyond(&self, caller: &Caller, after: &ClusterSet) -> usize {
        if caller.reaches_all() {
            return 0;
        }
        self.nodes.moves(after).iter().filter(|moved| !sees(caller, moved)).count()
    }

    /// Which live nodes such clusters would move, as far as the caller sees them.
    fn moves(&self, caller: &Caller, after: &ClusterSet) -> Moves {
        let moves: Vec<nodes::Move> = self.nodes.moves(after).into_iter().filter(|moved| sees(caller, moved)).collect();
        let name = |place: &Option<(ClusterId, String)>| place.as_ref().map(|(_, name)| name.clone());
        let mut between = std::collections::BTreeMap::<_, usize>::new();
        for moved in &moves {
            *between.entry((name(&moved.from), name(&moved.to))).or_default() += 1;
        }
        let view = |moved: &nodes::Move| MoveView {
            node: moved.node.clone(),
            name: moved.name.clone(),
            ip: moved.ip,
            from: name(&moved.from),
            to: name(&moved.to),
            reason: moved.reason.clone(),
        };
        Moves {
            count: moves.len(),
            between: between.into_iter().map(|((from, to), nodes)| Between { from, to, nodes }).collect(),
            nodes: moves.iter().take(MOST_MOVES).map(view).collect(),
        }
    }

    async fn plan(&self, caller: &Caller, planned: Planned) -> Result<Response, Problem> {
        let (has, beyond) = (|id: &ClusterId| caller.reaches(id), |after: &ClusterSet| self.beyond(caller, after));
        let reach = Reach { has: &has, beyond: &beyond };
        let Plan { changes, before, after } = self.clusters.by(&caller.name).within(reach).plan(&planned).await?;
        let version = match &planned {
            Planned::Create(_) => None,
            Planned::Update(name, _) | Planned::Delete(name) => before.find(name).map(|cluster| tag(cluster)),
        };
        let (changes, moves) = (self.changes(&changes), Some(self.moves(caller, &after)));
        let head = version.as_ref().map(etag);
        Ok((head, Json(Difference { dry_run: true, changes, undeclared: Vec::new(), version, moves })).into_response())
    }
}

/// Clusters, oldest first
///
/// The ETag is that of the whole set, for a change of all of it.
#[utoipa::path(get, path = "/api/v1/clusters", operation_id = "list_clusters", tag = "clusters", security(("token" = [])),
    params(ListQuery), responses((status = 200, description = "A page.", body = List<ClusterView>, headers(("ETag" = String))), Reading))]
pub(super) async fn list(
    Viewer(caller): Viewer,
    State(parts): State<Parts>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let set = parts.clusters.current();
    let prefix = query.name.unwrap_or_default().to_lowercase();
    let seen =
        |cluster: &&Arc<Cluster>| caller.reaches(&cluster.id) && cluster.name.to_lowercase().starts_with(&prefix);
    let page = Page { limit: query.limit, after: query.after.as_deref() };
    let clusters = set.clusters().iter().filter(seen).cloned().collect();
    let clusters = page.of(clusters, |cluster: &Arc<Cluster>| cluster.seq)?.map(|cluster| parts.view(&cluster));
    Ok((etag(set.generation()), Json(clusters)).into_response())
}

/// One cluster
#[utoipa::path(get, path = "/api/v1/clusters/{cluster}", operation_id = "get_cluster", tag = "clusters", security(("token" = [])),
    params(("cluster" = String, Path, description = "Name or id.")),
    responses((status = 200, description = "It.", body = ClusterView, headers(("ETag" = String))), Finding))]
pub(super) async fn show(
    Viewer(caller): Viewer,
    State(parts): State<Parts>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    match parts.clusters.current().find(&name) {
        Some(cluster) if caller.reaches(&cluster.id) => Ok(parts.answer(StatusCode::OK, cluster)),
        _ => Err(Error::NotFound(name).into()),
    }
}

/// Make a cluster
#[utoipa::path(post, path = "/api/v1/clusters", operation_id = "create_cluster", tag = "clusters", security(("token" = [])),
    params(ChangeQuery), request_body = Declared,
    responses((status = 201, description = "It was made.", body = ClusterView, headers(("ETag" = String), ("Location" = String))),
        (status = 200, description = "With `dry_run`.", body = Difference), Making))]
pub(super) async fn create(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Query(query): Query<ChangeQuery>,
    Body(spec): Body<Declared>,
) -> Result<Response, Problem> {
    reaches_all(&caller)?;
    fit([spec.name.as_str()])?;
    if query.dry_run {
        return parts.plan(&caller, Planned::Create(spec.into())).await;
    }
    let made = parts.clusters.by(&caller.name).create(spec.into()).await?;
    let location = format!("/api/v1/clusters/{}", made.cluster.id);
    Ok(([(header::LOCATION, location)], parts.answer_changed(StatusCode::CREATED, &made)).into_response())
}

/// Replace all that is said of a cluster
#[utoipa::path(put, path = "/api/v1/clusters/{cluster}", operation_id = "replace_cluster", tag = "clusters", security(("token" = [])),
    params(("cluster" = String, Path, description = "Name or id."), ChangeQuery,
        ("If-Match" = Option<String>, Header, nullable = false, pattern = r#"^(?:\*|(?:W/)?"[^"]*"(?:, ?(?:W/)?"[^"]*")*)$"#, description = "The ETag that was read, or `*`. Needed without `dry_run`.")),
    request_body = Declared,
    responses((status = 200, description = "As it is now, or with `dry_run` what would change.", body = Outcome,
        headers(("ETag" = String))), Changing))]
pub(super) async fn replace(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Path(name): Path<String>,
    version: Option<IfMatch>,
    Query(query): Query<ChangeQuery>,
    Body(spec): Body<Declared>,
) -> Result<Response, Problem> {
    update(&parts, &caller, &name, version, query.dry_run, ClusterSpec::from(spec).into()).await
}

/// Change what is given, and leave the rest
#[utoipa::path(patch, path = "/api/v1/clusters/{cluster}", operation_id = "edit_cluster", tag = "clusters", security(("token" = [])),
    params(("cluster" = String, Path, description = "Name or id."), ChangeQuery,
        ("If-Match" = Option<String>, Header, nullable = false, pattern = r#"^(?:\*|(?:W/)?"[^"]*"(?:, ?(?:W/)?"[^"]*")*)$"#, description = "The ETag that was read, or `*`. Needed without `dry_run`.")),
    request_body = Patch,
    responses((status = 200, description = "As it is now, or with `dry_run` what would change.", body = Outcome,
        headers(("ETag" = String))), Changing))]
pub(super) async fn edit(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Path(name): Path<String>,
    version: Option<IfMatch>,
    Query(query): Query<ChangeQuery>,
    Body(patch): Body<Patch>,
) -> Result<Response, Problem> {
    update(&parts, &caller, &name, version, query.dry_run, patch.into()).await
}

async fn update(
    parts: &Parts,
    caller: &Caller,
    name: &str,
    version: Option<IfMatch>,
    dry_run: bool,
    edit: Edit,
) -> Result<Response, Problem> {
    let current = parts.changeable(caller, name)?;
    fit(edit.name.as_deref().filter(|new| new.trim() != current.name))?;
    if dry_run {
        return parts.plan(caller, Planned::Update(name.to_owned(), edit)).await;
    }
    let version = matched(version.as_ref(), &current)?;
    // By id: what was looked at is what is changed, whoever has its name by now.
    let (has, beyond) = (|id: &ClusterId| caller.reaches(id), |after: &ClusterSet| parts.beyond(caller, after));
    let reach = Reach { has: &has, beyond: &beyond };
    let changed = parts.clusters.by(&caller.name).within(reach).update(current.id.as_str(), version, edit).await?;
    Ok(parts.answer_changed(StatusCode::OK, &changed))
}

/// The version that a change is held to when it is written; `None`: the caller said any.
fn matched(given: Option<&IfMatch>, current: &Cluster) -> Result<Option<u64>, Problem> {
    IfMatch::check(given, &format!("cluster {}", current.name), &tag(current))?;
    Ok((given != Some(&IfMatch::Any)).then_some(current.version))
}

/// Delete a cluster
///
/// Its nodes are decided again at once. Those that are bound to it run alone, until they are deleted as members and join anew.
#[utoipa::path(delete, path = "/api/v1/clusters/{cluster}", operation_id = "delete_cluster", tag = "clusters", security(("token" = [])),
    params(("cluster" = String, Path, description = "Name or id."), DeleteQuery,
        ("If-Match" = Option<String>, Header, nullable = false, pattern = r#"^(?:\*|(?:W/)?"[^"]*"(?:, ?(?:W/)?"[^"]*")*)$"#, description = "The ETag that was read, or `*`. Needed without `dry_run`.")),
    responses((status = 204, description = "It is gone."), (status = 200, description = "With `dry_run`.", body = Difference), Removing))]
pub(super) async fn delete(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Path(name): Path<String>,
    version: Option<IfMatch>,
    Query(query): Query<DeleteQuery>,
) -> Result<Response, Problem> {
    let current = parts.changeable(&caller, &name)?;
    if query.dry_run {
        return parts.plan(&caller, Planned::Delete(name)).await;
    }
    let version = matched(version.as_ref(), &current)?;
    let nodes_of = |id: &ClusterId| parts.nodes.count_of(id);
    let (has, beyond) = (|id: &ClusterId| caller.reaches(id), |after: &ClusterSet| parts.beyond(&caller, after));
    let reach = Reach { has: &has, beyond: &beyond };
    parts.clusters.by(&caller.name).within(reach).delete(current.id.as_str(), version, query.force, &nodes_of).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Make all clusters be as declared
///
/// A second call with the same set changes nothing.
#[utoipa::path(put, path = "/api/v1/clusters", operation_id = "apply_clusters", tag = "clusters", security(("token" = [])),
    params(ApplyQuery,
        ("If-Match" = Option<String>, Header, nullable = false, pattern = r#"^(?:\*|(?:W/)?"[^"]*"(?:, ?(?:W/)?"[^"]*")*)$"#, description = "The ETag of the list that was read, or `*`. Needed without `dry_run`.")),
    request_body = DeclaredSet,
    responses((status = 200, description = "What changed. The ETag is that of the set as it is now.", body = Difference,
        headers(("ETag" = String))), Applying))]
pub(super) async fn apply(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    version: Option<IfMatch>,
    Query(query): Query<ApplyQuery>,
    Body(set): Body<DeclaredSet>,
) -> Result<Response, Problem> {
    reaches_all(&caller)?;
    let ApplyQuery { prune, dry_run, force } = query;
    let known = parts.clusters.current();
    fit(set.clusters.iter().map(|one| one.name.as_str()).filter(|name| known.named(name).is_none()))?;
    let mut generation = None;
    if !dry_run {
        let current = parts.clusters.current().generation();
        IfMatch::check(version.as_ref(), "the set of clusters", &current.to_string())?;
        generation = (version != Some(IfMatch::Any)).then_some(current);
    }
    let declared = set.clusters.into_iter().map(ClusterSpec::from).collect();
    let nodes_of = |id: &ClusterId| if force { 0 } else { parts.nodes.count_of(id) };
    let mode = ApplyMode { prune, dry_run, generation };
    let Applied { changes, undeclared, before, after } =
        parts.clusters.by(&caller.name).apply(declared, mode, &nodes_of).await?;
    let now = if dry_run { before.generation() } else { after.generation() };
    let difference = Difference {
        dry_run,
        changes: parts.changes(&changes),
        undeclared: undeclared.iter().map(|cluster| cluster.name.clone()).collect(),
        version: Some(before.generation().to_string()),
        moves: dry_run.then(|| parts.moves(&caller, &after)),
    };
    Ok((etag(now), Json(difference)).into_response())
}
