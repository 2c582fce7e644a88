//! Routes of clusters.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use shoal_proto::ClusterId;

use super::Parts;
use super::caller::{Operator, Viewer, reaches, reaches_all};
use super::problem::{Body, IfMatch, Path, Problem, Query};
use crate::clusters::{Applied, ApplyMode, Change, Cluster, ClusterSpec, Edit, Error};
use crate::identity::Caller;

/// A cluster as it is in force.
#[derive(Debug, Serialize)]
pub(super) struct ClusterView {
    id: ClusterId,
    name: String,
    version: u64,
    default: bool,
    idc: String,
    location: String,
    cidrs: Vec<String>,
    /// Live nodes in it.
    nodes: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct ClusterList {
    generation: u64,
    clusters: Vec<ClusterView>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Declared {
    name: String,
    #[serde(default)]
    default: bool,
    #[serde(default)]
    idc: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    cidrs: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeclaredSet {
    clusters: Vec<Declared>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Patch {
    name: Option<String>,
    default: Option<bool>,
    idc: Option<String>,
    location: Option<String>,
    cidrs: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ApplyQuery {
    #[serde(default)]
    prune: bool,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    force: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteQuery {
    #[serde(default)]
    force: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Difference {
    dry_run: bool,
    changes: Vec<ChangeView>,
    /// Names of clusters that are there and were not declared.
    undeclared: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "action", rename_all = "lowercase")]
enum ChangeView {
    Create { name: String, after: ClusterView },
    Update { name: String, before: ClusterView, after: ClusterView },
    Delete { name: String, before: ClusterView },
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

impl Parts {
    fn view(&self, cluster: &Cluster) -> ClusterView {
        let Cluster { id, seq: _, version, name, default, idc, location, cidrs } = cluster.clone();
        let nodes = self.nodes.count_of(&id);
        ClusterView { id, name, version, default, idc, location, cidrs, nodes }
    }

    fn answer(&self, status: StatusCode, cluster: &Cluster) -> Response {
        let etag = format!("\"{}\"", cluster.version);
        (status, [(header::ETAG, etag)], Json(self.view(cluster))).into_response()
    }
}

pub(super) async fn list(Viewer(caller): Viewer, State(parts): State<Parts>) -> Json<ClusterList> {
    let set = parts.clusters.current();
    let seen = set.clusters().iter().filter(|cluster| caller.reaches(&cluster.id));
    let clusters = seen.map(|cluster| parts.view(cluster)).collect();
    Json(ClusterList { generation: set.generation(), clusters })
}

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

impl Parts {
    /// Refuses a caller that does not reach the cluster of that name or id. One that is not there is found missing later.
    fn within_reach(&self, caller: &Caller, id_or_name: &str) -> Result<(), Problem> {
        let set = self.clusters.current();
        set.find(id_or_name).map_or(Ok(()), |cluster| reaches(caller, Some(&cluster.id)))
    }
}

pub(super) async fn create(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Body(spec): Body<Declared>,
) -> Result<Response, Problem> {
    reaches_all(&caller)?;
    let cluster = parts.clusters.by(&caller.name).create(spec.into()).await?;
    let location = format!("/api/v1/clusters/{}", cluster.id);
    Ok(([(header::LOCATION, location)], parts.answer(StatusCode::CREATED, &cluster)).into_response())
}

pub(super) async fn replace(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Path(name): Path<String>,
    version: Option<IfMatch>,
    Body(spec): Body<Declared>,
) -> Result<Response, Problem> {
    update(&parts, &caller, &name, version, ClusterSpec::from(spec).into()).await
}

pub(super) async fn edit(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Path(name): Path<String>,
    version: Option<IfMatch>,
    Body(patch): Body<Patch>,
) -> Result<Response, Problem> {
    update(&parts, &caller, &name, version, patch.into()).await
}

async fn update(
    parts: &Parts,
    caller: &Caller,
    name: &str,
    version: Option<IfMatch>,
    edit: Edit,
) -> Result<Response, Problem> {
    parts.within_reach(caller, name)?;
    let cluster = parts.clusters.by(&caller.name).update(name, version.map(|IfMatch(version)| version), edit).await?;
    Ok(parts.answer(StatusCode::OK, &cluster))
}

pub(super) async fn delete(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Path(name): Path<String>,
    version: Option<IfMatch>,
    Query(query): Query<DeleteQuery>,
) -> Result<StatusCode, Problem> {
    parts.within_reach(&caller, &name)?;
    let version = version.map(|IfMatch(version)| version);
    let nodes_of = |id: &ClusterId| parts.nodes.count_of(id);
    parts.clusters.by(&caller.name).delete(&name, version, query.force, &nodes_of).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn apply(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Query(query): Query<ApplyQuery>,
    Body(set): Body<DeclaredSet>,
) -> Result<Json<Difference>, Problem> {
    reaches_all(&caller)?;
    let ApplyQuery { prune, dry_run, force } = query;
    let declared = set.clusters.into_iter().map(ClusterSpec::from).collect();
    let nodes_of = |id: &ClusterId| if force { 0 } else { parts.nodes.count_of(id) };
    let Applied { changes, undeclared } =
        parts.clusters.by(&caller.name).apply(declared, ApplyMode { prune, dry_run }, &nodes_of).await?;
    let view = |cluster: &Arc<Cluster>| parts.view(cluster);
    let changes = changes.iter().map(|change| match change {
        Change::Created(after) => ChangeView::Create { name: after.name.clone(), after: view(after) },
        Change::Deleted(before) => ChangeView::Delete { name: before.name.clone(), before: view(before) },
        Change::Updated { before, after } => {
            ChangeView::Update { name: after.name.clone(), before: view(before), after: view(after) }
        }
    });
    let changes = changes.collect();
    Ok(Json(Difference { dry_run, changes, undeclared: undeclared.iter().map(|c| c.name.clone()).collect() }))
}
