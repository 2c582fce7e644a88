//! Routes of preheats.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use shoal_proto::{ClusterId, Digest, NodeId};
use utoipa::{IntoParams, ToSchema};

use super::Parts;
use super::caller::{Operator, Viewer, reaches};
use super::clusters::etag;
use super::document::{Changing, Finding, Making, Reading, Removing};
use super::extract::{Body, IfMatch, Path, Query};
use super::page::{List, Page};
use super::problem::Problem;
use super::time::seconds;
use crate::identity::Caller;
use crate::preheat::{
    Blob, Brief, Error, Image, Job, New, Outcome, PreheatFilter, State as How, Stored as Standing, Target, Work,
};

/// Nodes that a list names, of those that were named.
const NAMED: usize = 10;

/// A preheat in short.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PreheatBrief {
    /// Never given twice.
    id: String,
    /// The image in full.
    image: String,
    /// `os/architecture[/variant]`; empty: all images of an index.
    platforms: Vec<String>,
    /// Name of the cluster; null: it is gone.
    #[schema(required = true)]
    cluster: Option<String>,
    /// Its id.
    #[schema(value_type = String)]
    cluster_id: ClusterId,
    /// Which nodes of it.
    target: String,
    /// How far it is.
    state: PreheatState,
    /// Why it failed, or null.
    #[schema(required = true)]
    why: Option<String>,
    /// When it was made.
    #[schema(format = DateTime)]
    created: String,
    /// Name of the API token that made it.
    created_by: String,
    /// When the last node was settled; null: it goes on.
    #[schema(required = true, format = DateTime)]
    ended: Option<String>,
    /// The number in its ETag. It grows with each cancel and each retry.
    #[schema(minimum = 1)]
    version: u64,
    /// What the image's reference led to; null: not known yet.
    #[schema(value_type = Option<String>, required = true)]
    manifest: Option<Digest>,
    /// Of all its blobs.
    #[schema(minimum = 0)]
    bytes: u64,
    /// That its nodes have of it, together.
    #[schema(minimum = 0)]
    held: u64,
    /// Its nodes, counted.
    nodes: PreheatCount,
}

/// How many nodes are how far.
#[derive(Debug, Serialize, ToSchema)]
struct PreheatCount {
    /// All of them.
    #[schema(minimum = 0)]
    all: u64,
    /// Those that have all of the image.
    #[schema(minimum = 0)]
    done: u64,
    /// Those that failed.
    #[schema(minimum = 0)]
    failed: u64,
}

/// An image that is brought to nodes.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PreheatView {
    /// Never given twice.
    id: String,
    /// The image in full.
    image: String,
    /// `os/architecture[/variant]`; empty: all images of an index.
    platforms: Vec<String>,
    /// Name of the cluster; null: it is gone.
    #[schema(required = true)]
    cluster: Option<String>,
    /// Its id.
    #[schema(value_type = String)]
    cluster_id: ClusterId,
    /// Which nodes of it.
    target: String,
    /// How far it is.
    state: PreheatState,
    /// Why it failed, or null.
    #[schema(required = true)]
    why: Option<String>,
    /// When it was made.
    #[schema(format = DateTime)]
    created: String,
    /// Name of the API token that made it.
    created_by: String,
    /// When the last node was settled; null: it goes on.
    #[schema(required = true, format = DateTime)]
    ended: Option<String>,
    /// The number in its ETag. It grows with each cancel and each retry.
    #[schema(minimum = 1)]
    version: u64,
    /// What the image's reference led to; null: not known yet.
    #[schema(value_type = Option<String>, required = true)]
    manifest: Option<Digest>,
    /// Of all its blobs.
    #[schema(minimum = 0)]
    bytes: u64,
    /// That its nodes have of it, together.
    #[schema(minimum = 0)]
    held: u64,
    /// Configurations and layers, once they are known.
    blobs: Vec<PreheatBlob>,
    /// Its nodes.
    nodes: Vec<PreheatNode>,
}

/// A configuration or a layer.
#[derive(Debug, Serialize, ToSchema)]
struct PreheatBlob {
    /// Which.
    #[schema(value_type = String)]
    digest: Digest,
    /// Bytes.
    #[schema(minimum = 0)]
    size: u64,
}

/// One node of a preheat.
#[derive(Debug, Serialize, ToSchema)]
struct PreheatNode {
    /// Its id.
    #[schema(value_type = String)]
    id: NodeId,
    /// Its name when the preheat was made.
    name: String,
    /// How far it is.
    state: PreheatState,
    /// Why it failed, or null.
    #[schema(required = true)]
    why: Option<String>,
    /// Grows with each retry.
    #[schema(minimum = 1)]
    attempt: u32,
    /// That it has of the image.
    #[schema(minimum = 0)]
    bytes: u64,
    /// That it has of each of the blobs, in their order.
    blobs: Vec<u64>,
}

/// How far something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum PreheatState {
    /// Not begun.
    Waiting,
    /// It has begun.
    Running,
    /// All of it is held.
    Done,
    /// Some of it is not.
    Failed,
    /// It was taken back.
    Cancelled,
}

/// What is to be brought where. At most one of `seeds`, `percent` and `nodes`; without one of them it is all nodes.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPreheat {
    /// As in a pod: `alpine:3`, `registry.example/app@sha256:…`.
    #[schema(min_length = 1, max_length = 1024, examples("registry.example/app:1"))]
    image: String,
    /// Cluster, by name or id.
    #[schema(min_length = 1, max_length = 256)]
    cluster: String,
    /// `os/architecture[/variant]`; empty: all images of an index.
    #[serde(default)]
    #[schema(max_items = 16, examples(json!(["linux/amd64"])))]
    platforms: Vec<String>,
    /// The seeds of the cluster.
    #[serde(default)]
    #[schema(default = false)]
    seeds: bool,
    /// So many of a hundred of its nodes, at least one.
    #[schema(minimum = 1, maximum = 100)]
    percent: Option<u8>,
    /// These nodes, by id or name.
    #[schema(min_items = 1, max_items = 10000)]
    nodes: Option<Vec<String>>,
    /// For the registry. Without it, nodes log in with what they have themselves.
    #[serde(default)]
    #[schema(value_type = RegistryLogin, required = false)]
    login: Option<RegistryLogin>,
}

/// A user of a registry. It is kept in memory alone, for as long as the preheat goes on.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RegistryLogin {
    /// Has no colon.
    #[schema(min_length = 1, max_length = 4096)]
    user: String,
    /// The password, or a token that stands for one.
    #[schema(max_length = 4096, format = Password, write_only)]
    password: String,
}

impl std::fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegistryLogin")
    }
}

/// How to try again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RetryPreheat {
    /// For the registry, as it was the first time: it was not kept.
    #[serde(default)]
    #[schema(value_type = RegistryLogin, required = false)]
    login: Option<RegistryLogin>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PreheatsQuery {
    /// Only onto this cluster, by name or id.
    #[param(max_length = 256, nullable = false)]
    cluster: Option<String>,
    /// Only those that are so far.
    #[param(inline, nullable = false)]
    state: Option<PreheatState>,
    /// Items at most.
    #[param(minimum = 1, maximum = 1000, nullable = false, default = 100)]
    limit: Option<u32>,
    /// `next` of the page before.
    #[param(max_length = 4096, nullable = false)]
    after: Option<String>,
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Bad { field, why } => Self::fields(vec![(field, why)]),
            Error::Refused(why) => Self::new(StatusCode::CONFLICT, why),
            Error::Unknown(_) => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            Error::Store(error) => {
                tracing::error!(%error, "a preheat can't be read or written");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
        }
    }
}

/// As the API names it, and why it failed.
pub(super) fn name(state: &How) -> (PreheatState, Option<String>) {
    match state {
        How::Waiting => (PreheatState::Waiting, None),
        How::Running => (PreheatState::Running, None),
        How::Done => (PreheatState::Done, None),
        How::Failed(why) => (PreheatState::Failed, Some(why.clone())),
        How::Cancelled => (PreheatState::Cancelled, None),
    }
}

/// As in a pod.
pub(super) fn full_name(Image { registry, repository, reference }: &Image) -> String {
    let sign = if reference.parse::<Digest>().is_ok() { '@' } else { ':' };
    format!("{registry}/{repository}{sign}{reference}")
}

impl PreheatBrief {
    fn of(parts: &Parts, brief: Brief) -> Self {
        let (state, why) = name(&brief.state);
        Self {
            image: full_name(&brief.image),
            id: brief.id,
            platforms: brief.platforms,
            cluster: parts.clusters.current().get(&brief.cluster).map(|cluster| cluster.name.clone()),
            cluster_id: brief.cluster,
            target: match &brief.target {
                Target::Seeds => "seeds".to_owned(),
                Target::Percent(100) => "all nodes".to_owned(),
                Target::Percent(percent) => format!("{percent} % of the nodes"),
                Target::Nodes(nodes) if nodes.len() > NAMED => {
                    format!("{} and {} more", nodes[..NAMED].join(", "), nodes.len() - NAMED)
                }
                Target::Nodes(nodes) => nodes.join(", "),
            },
            state,
            why,
            created: seconds(brief.created),
            created_by: brief.created_by,
            ended: brief.ended.map(seconds),
            version: brief.version,
            manifest: brief.manifest,
            bytes: brief.size,
            held: brief.has,
            nodes: PreheatCount { all: brief.nodes, done: brief.done, failed: brief.failed },
        }
    }
}

fn view(parts: &Parts, job: &Job) -> PreheatView {
    let brief = PreheatBrief::of(parts, job.brief());
    let node = |(id, work): (&NodeId, &Work)| {
        let (state, why) = name(&work.state);
        let of = |blob: &Blob| match work.state {
            How::Done => blob.size,
            _ => work.bytes.get(&blob.digest).copied().unwrap_or(0).min(blob.size),
        };
        PreheatNode {
            id: id.clone(),
            name: work.name.clone(),
            state,
            why,
            attempt: work.attempt,
            bytes: job.bytes_of(work),
            blobs: job.blobs.iter().map(of).collect(),
        }
    };
    let PreheatBrief { id, image, platforms, cluster, cluster_id, target, state, why, created, .. } = brief;
    let PreheatBrief { created_by, ended, version, manifest, bytes, held, .. } = brief;
    PreheatView {
        id,
        image,
        platforms,
        cluster,
        cluster_id,
        target,
        state,
        why,
        created,
        created_by,
        ended,
        version,
        manifest,
        bytes,
        held,
        blobs: job.blobs.iter().map(|blob| PreheatBlob { digest: blob.digest, size: blob.size }).collect(),
        nodes: job.nodes.iter().map(node).collect(),
    }
}

/// With the ETag that a change of it needs.
fn answer(status: StatusCode, parts: &Parts, job: &Job) -> Response {
    (status, etag(job.version), Json(view(parts, job))).into_response()
}

/// Lets a change of the job through that is in the caller's reach and was decided on its state.
fn may(caller: &Caller, version: Option<IfMatch>) -> impl FnOnce(&Job) -> Result<(), Problem> {
    move |job| {
        reaches(caller, Some(&job.cluster))?;
        IfMatch::check(version.as_ref(), "this preheat", &job.version.to_string())
    }
}

/// The same of one that is to be tried again: its cluster must be there.
fn may_retry(parts: &Parts, caller: &Caller, version: Option<IfMatch>) -> impl FnOnce(&Job) -> Result<(), Problem> {
    let (set, may) = (parts.clusters.current(), may(caller, version));
    move |job| {
        may(job)?;
        if set.get(&job.cluster).is_some() {
            return Ok(());
        }
        let named = if job.cluster_name.is_empty() { job.cluster.as_str() } else { &job.cluster_name };
        let why = format!("preheat {}: its cluster {named} is gone; make a new one for another cluster", job.id);
        Err(Problem::new(StatusCode::CONFLICT, why))
    }
}

/// The job, for a caller who reaches its cluster.
async fn one(parts: &Parts, caller: &Caller, id: &str) -> Result<Job, Problem> {
    let job = parts.preheats.get(id).await?;
    reaches(caller, Some(&job.cluster))?;
    Ok(job)
}

/// Preheats, newest first
#[utoipa::path(get, path = "/api/v1/preheats", operation_id = "list_preheats", tag = "preheats", security(("token" = [])),
    params(PreheatsQuery), responses((status = 200, description = "A page.", body = List<PreheatBrief>), Reading))]
pub(super) async fn list(
    Viewer(caller): Viewer,
    State(parts): State<Parts>,
    Query(query): Query<PreheatsQuery>,
) -> Result<Json<List<PreheatBrief>>, Problem> {
    let cluster = query.cluster.as_deref().map(|cluster| parts.filter(&caller, cluster)).transpose()?;
    let page = Page { limit: query.limit, after: query.after.as_deref() };
    let standing = query.state.map_or(Standing::Any, |state| match state {
        PreheatState::Waiting | PreheatState::Running => Standing::Open,
        PreheatState::Done => Standing::Ended(Outcome::Done),
        PreheatState::Failed => Standing::Ended(Outcome::Failed),
        PreheatState::Cancelled => Standing::Ended(Outcome::Cancelled),
    });
    let clusters = cluster.map(|cluster| [cluster].into()).or_else(|| caller.clusters.clone());
    let filter = PreheatFilter { clusters, standing };
    let (mut after, mut found) = (page.after::<String>()?, Vec::new());
    let most = page.limit() + 1;
    // Which of those that go on wait, and which run, only memory knows. There are not many of them.
    while found.len() < most {
        let jobs = parts.preheats.list(&filter, after.as_deref(), most as u32).await?;
        let end = jobs.len() < most;
        after = jobs.last().map(|job| job.id.clone());
        found.extend(jobs.into_iter().filter(|job| query.state.is_none_or(|state| state == name(&job.state).0)));
        if end {
            break;
        }
    }
    found.truncate(most);
    Ok(Json(page.first(found, |job| job.id.clone()).map(|job| PreheatBrief::of(&parts, job))))
}

/// Bring an image to nodes
///
/// It goes on after this answer, and after a restart of this service.
#[utoipa::path(post, path = "/api/v1/preheats", operation_id = "create_preheat", tag = "preheats", security(("token" = [])),
    request_body = NewPreheat, responses((status = 201, description = "It begins.", body = PreheatView,
        headers(("ETag" = String))), Making))]
pub(super) async fn create(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Body(body): Body<NewPreheat>,
) -> Result<Response, Problem> {
    let cluster = parts.filter(&caller, &body.cluster)?;
    let target = match (body.seeds, body.percent, body.nodes) {
        (true, None, None) => Target::Seeds,
        (false, Some(percent), None) => Target::Percent(percent),
        (false, None, Some(nodes)) => Target::Nodes(nodes),
        (false, None, None) => Target::Percent(100),
        (seeds, Some(_), _) if seeds => return Err(Problem::field("percent", "is given beside seeds".to_owned())),
        _ => return Err(Problem::field("nodes", "is given beside seeds or percent".to_owned())),
    };
    let login = body.login.map(|RegistryLogin { user, password }| (user, password));
    let cluster_name = parts.clusters.current().get(&cluster).map(|cluster| cluster.name.clone()).unwrap_or_default();
    let new = New { image: body.image, platforms: body.platforms, cluster, cluster_name, target, login };
    let job = parts.preheats.create(new, &caller.name).await?;
    Ok(answer(StatusCode::CREATED, &parts, &job))
}

/// One preheat
#[utoipa::path(get, path = "/api/v1/preheats/{preheat}", operation_id = "get_preheat", tag = "preheats", security(("token" = [])),
    params(("preheat" = String, Path, description = "Its id.")),
    responses((status = 200, description = "It.", body = PreheatView, headers(("ETag" = String))), Finding))]
pub(super) async fn show(
    Viewer(caller): Viewer,
    State(parts): State<Parts>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    Ok(answer(StatusCode::OK, &parts, &one(&parts, &caller, &id).await?))
}

/// Take a preheat back
///
/// What nodes hold of it by now, they keep.
#[utoipa::path(post, path = "/api/v1/preheats/{preheat}/cancel", operation_id = "cancel_preheat", tag = "preheats",
    security(("token" = [])), params(("preheat" = String, Path, description = "Its id."),
        ("If-Match" = Option<String>, Header, nullable = false, pattern = r#"^(?:\*|(?:W/)?"[^"]*"(?:, ?(?:W/)?"[^"]*")*)$"#, description = "The ETag that was read, or `*`. Needed.")),
    responses((status = 200, description = "As it is now.", body = PreheatView, headers(("ETag" = String))), Removing))]
pub(super) async fn cancel(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Path(id): Path<String>,
    version: Option<IfMatch>,
) -> Result<Response, Problem> {
    let job = parts.preheats.cancel(&id, &caller.name, may(&caller, version)).await?;
    Ok(answer(StatusCode::OK, &parts, &job))
}

/// Try again what failed or was taken back
///
/// Without a body, nodes log in with what they have themselves.
#[utoipa::path(post, path = "/api/v1/preheats/{preheat}/retry", operation_id = "retry_preheat", tag = "preheats",
    security(("token" = [])), params(("preheat" = String, Path, description = "Its id."),
        ("If-Match" = Option<String>, Header, nullable = false, pattern = r#"^(?:\*|(?:W/)?"[^"]*"(?:, ?(?:W/)?"[^"]*")*)$"#, description = "The ETag that was read, or `*`. Needed.")),
    request_body = Option<RetryPreheat>,
    responses((status = 200, description = "It begins again.", body = PreheatView, headers(("ETag" = String))), Changing))]
pub(super) async fn retry(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Path(id): Path<String>,
    version: Option<IfMatch>,
    body: Option<Body<RetryPreheat>>,
) -> Result<Response, Problem> {
    let login = body.and_then(|Body(body)| body.login).map(|RegistryLogin { user, password }| (user, password));
    let job = parts.preheats.retry(&id, login, &caller.name, may_retry(&parts, &caller, version)).await?;
    Ok(answer(StatusCode::OK, &parts, &job))
}
