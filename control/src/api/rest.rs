//! `/api/v1` for people and programs, with health and metrics on the same port.
//!
//! Owns routes, JSON types and the translation of errors into problem documents (RFC 9457). Every field that nobody
//! knows is refused, in bodies and in queries. A change of something that is there says in `If-Match` which state of it it is about
//! (`*`: any). A body must be `application/json`, so that a page of another site can't make a browser send one unasked.
//!
//! All routes are in the description at `/api/v1/openapi.json`, which is made of the handlers' own types and checked against them; it is
//! served without a token, as it tells of the program and of nothing in it. So are `/livez`, `/readyz` and `/metrics`.
//!
//! Every other request shows an API token. A viewer reads, an operator changes clusters and lets nodes in and out, an admin
//! makes API tokens and reads the audit log; a token may be kept to some clusters.

mod blobs;
mod caller;
mod certificate;
mod clusters;
mod document;
mod events;
mod extract;
mod feed;
mod identity;
mod nodes;
mod page;
mod preheats;
mod problem;
mod shape;
mod summary;
#[cfg(test)]
mod tests;
mod time;
mod traffic;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use serde::{Deserialize, Serialize};
use shoal_base::drain::Drain;
use shoal_base::metrics::{CONTENT_TYPE, Registry};
use utoipa::openapi::OpenApi;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::clusters::{Clusters, Considered, Explanation, Facts};
use crate::identity::{Access, Identity};
use crate::nodes::Nodes;
use crate::preheat::Preheats;
use crate::swarm::Swarm;
use caller::{Viewer, reaches_all};
pub use certificate::{Certificate, Source};
use document::Reading;
use extract::Query;
pub use feed::Feed;
use problem::Problem;
pub use shape::Shapes;

/// Largest request body: a declared set of some thousand clusters.
const BODY_LIMIT: usize = 1 << 20;

/// How long readiness waits for the disk. Probes commonly give up after one second or a few; a disk that needs longer
/// is not one to be ready on.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);

/// What the routes need.
#[derive(Clone)]
pub struct Parts {
    /// Who may ask.
    pub access: Arc<Access>,
    /// Who may join; `None`: nodes have no certificates.
    pub identity: Option<Arc<Identity>>,
    /// The live set.
    pub clusters: Arc<Clusters>,
    /// The live nodes.
    pub nodes: Arc<Nodes>,
    /// Who holds what.
    pub swarm: Arc<Swarm>,
    /// What is brought to nodes.
    pub preheats: Arc<Preheats>,
    /// What happens.
    pub feed: Arc<Feed>,
    /// What bodies and queries are checked by; new and empty.
    pub shapes: Arc<Shapes>,
    /// What `/metrics` prints.
    pub registry: Arc<Registry>,
    /// Once it is signalled, `/readyz` says no.
    pub drain: Drain,
}

/// Everything below `/api` that needs a token, with its description.
fn described() -> OpenApiRouter<Parts> {
    OpenApiRouter::with_openapi(document::base())
        .routes(routes!(clusters::list, clusters::create, clusters::apply))
        .routes(routes!(clusters::show, clusters::replace, clusters::edit, clusters::delete))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::show))
        .routes(routes!(explain))
        .routes(routes!(traffic::show))
        .routes(routes!(summary::show))
        .routes(routes!(blobs::list))
        .routes(routes!(blobs::show))
        .routes(routes!(blobs::holders))
        .routes(routes!(blobs::flights))
        .routes(routes!(blobs::share))
        .routes(routes!(preheats::list, preheats::create))
        .routes(routes!(preheats::show))
        .routes(routes!(preheats::cancel))
        .routes(routes!(preheats::retry))
        .routes(routes!(events::follow))
        .routes(routes!(identity::join_tokens::list, identity::join_tokens::create))
        .routes(routes!(identity::join_tokens::show, identity::join_tokens::delete))
        .routes(routes!(identity::members::list))
        .routes(routes!(identity::members::show, identity::members::delete))
        .routes(routes!(identity::members::revoke))
        .routes(routes!(identity::audit::authority))
        .routes(routes!(identity::api_tokens::list, identity::api_tokens::create))
        .routes(routes!(identity::api_tokens::show, identity::api_tokens::delete))
        .routes(routes!(identity::api_tokens::whoami))
        .routes(routes!(identity::audit::list))
}

/// The description of the API.
pub fn openapi() -> OpenApi {
    let mut open = OpenApiRouter::<Parts>::new().routes(routes!(description));
    let mut api = described().into_openapi();
    api.merge(open.to_openapi());
    document::optional_bodies(&mut api);
    api
}

/// All routes.
pub fn router(parts: Parts) -> Router {
    let open = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route(document::ADDRESS, get(description));
    let (known, _) = described().split_for_parts();
    let known = known.route_layer(middleware::from_fn_with_state(parts.clone(), caller::known));
    open.merge(known)
        // By these very words a later `shoalctl` knows that this is an older control.
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "there is nothing at this address") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this address does not take this method")
        })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(parts)
}

/// This description
///
/// Needs no token: it tells of the program, and of nothing in it.
#[utoipa::path(get, path = "/api/v1/openapi.json", operation_id = "describe", tag = "about",
    responses((status = 200, description = "OpenAPI 3.1.", body = Object)))]
async fn description() -> Json<OpenApi> {
    Json(openapi())
}

/// Facts of a node.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Place {
    /// Its address.
    #[param(max_length = 64, example = "10.1.2.3")]
    ip: String,
    /// Its data centre.
    #[serde(default)]
    #[param(required = false, max_length = 1024, pattern = r"^[^|]*$", example = "w1")]
    idc: String,
    /// Its location, a path separated by bars.
    #[serde(default)]
    #[param(
        required = false,
        max_length = 1024,
        pattern = r"^(?:\s*|[^|]*[^\s|][^|]*(?:\|[^|]*[^\s|][^|]*)*)$",
        example = "eu|fr"
    )]
    location: String,
    /// The cluster that its config names.
    #[param(max_length = 256, nullable = false)]
    pin: Option<String>,
}

/// Where a node would belong, with everything that this was decided by.
#[derive(Serialize, ToSchema)]
struct ExplanationView {
    /// Name of the cluster; null: it would run alone.
    #[schema(required = true)]
    cluster: Option<String>,
    /// One sentence.
    reason: String,
    /// Every cluster, the best match first, those that match on nothing last.
    considered: Vec<ConsideredView>,
}

/// What a cluster matched on; null: not on that.
#[derive(Serialize, ToSchema)]
struct ConsideredView {
    /// Its name.
    cluster: String,
    /// Longest of its networks that holds the node's address.
    #[schema(required = true)]
    cidr: Option<String>,
    /// The alternative that is the node's IDC.
    #[schema(required = true)]
    idc: Option<String>,
    /// Its location path, a prefix of the node's.
    #[schema(required = true)]
    location: Option<String>,
}

/// Which cluster a node would belong to, and why
#[utoipa::path(get, path = "/api/v1/explain", operation_id = "explain", tag = "clusters", security(("token" = [])), params(Place),
    responses((status = 200, description = "Where, and why.", body = ExplanationView), Reading))]
async fn explain(
    Viewer(caller): Viewer,
    State(parts): State<Parts>,
    Query(place): Query<Place>,
) -> Result<Json<ExplanationView>, Problem> {
    reaches_all(&caller)?;
    let facts = Facts::parse(&place.ip, &place.idc, &place.location).map_err(Problem::facts)?;
    let Explanation { cluster, reason, considered } = parts.clusters.current().explain(&facts, place.pin.as_deref());
    let view = |Considered { cluster, cidr, idc, location }| ConsideredView { cluster, cidr, idc, location };
    Ok(Json(ExplanationView { cluster, reason, considered: considered.into_iter().map(view).collect() }))
}

async fn ready(State(parts): State<Parts>) -> Response {
    if parts.drain.is_signalled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "ending\n").into_response();
    }
    match tokio::time::timeout(PROBE_PATIENCE, parts.clusters.probe()).await {
        Ok(Ok(())) => "ok\n".into_response(),
        Ok(Err(error)) => {
            tracing::error!(%error, cause = problem::cause(&error), "the store is unusable");
            (StatusCode::SERVICE_UNAVAILABLE, format!("store: {error}\n")).into_response()
        }
        Err(_) => {
            tracing::error!(patience = ?PROBE_PATIENCE, "the store does not answer");
            (StatusCode::SERVICE_UNAVAILABLE, "store: does not answer\n").into_response()
        }
    }
}

async fn metrics(State(parts): State<Parts>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], parts.registry.encode()).into_response()
}
