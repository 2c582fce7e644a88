//! `/api/v1` for people and programs, with health and metrics on the same port.
//!
//! Owns routes, JSON types and the translation of errors into problem documents (RFC 9457). Every field that nobody
//! knows is refused, in bodies and in queries. `ETag` of a cluster is its version; `If-Match` makes a change depend on
//! it. A body must be `application/json`, so that a page of another site can't make a browser send one unasked.
//!
//! | Route | |
//! |---|---|
//! | `GET /api/v1/clusters` | all, oldest first |
//! | `POST /api/v1/clusters` | make one |
//! | `PUT /api/v1/clusters?dry_run&prune&force` | make the set be as declared; answers the difference |
//! | `GET`, `PUT`, `PATCH`, `DELETE /api/v1/clusters/{id or name}` | one; `DELETE` takes `force` |
//! | `GET /api/v1/nodes` | all live nodes |
//! | `GET /api/v1/explain?ip&idc&location&pin` | where such a node would belong, and why |
//! | `GET`, `POST /api/v1/join-tokens`, `DELETE /api/v1/join-tokens/{id}` | what nodes join with |
//! | `GET /api/v1/members`, `POST /api/v1/members/{node}/revoke`, `DELETE /api/v1/members/{node}` | who has joined |
//! | `GET /api/v1/ca` | the authority of the nodes |
//! | `GET`, `POST /api/v1/api-tokens`, `DELETE /api/v1/api-tokens/{id or name}` | who may ask here |
//! | `GET /api/v1/audit?before&limit` | what was changed by whom, newest first |
//! | `GET /api/v1/whoami` | whose token this is |
//! | `GET /livez`, `/readyz`, `/metrics` | without a token |
//!
//! Every request below `/api` shows an API token. A viewer reads, an operator changes clusters and lets nodes in and out, an admin
//! makes API tokens and reads the audit log; a token may be kept to some clusters.

mod caller;
mod certificate;
mod clusters;
mod identity;
mod nodes;
mod problem;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router, middleware};
use serde::Deserialize;
use shoal_base::drain::Drain;
use shoal_base::metrics::{CONTENT_TYPE, Registry};

use crate::clusters::{Clusters, Explanation, Facts};
use crate::identity::{Access, Identity};
use crate::nodes::Nodes;
use caller::{Viewer, reaches_all};
pub use certificate::{Certificate, Source};
use problem::{Problem, Query};

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
    /// What `/metrics` prints.
    pub registry: Arc<Registry>,
    /// Once it is signalled, `/readyz` says no.
    pub drain: Drain,
}

/// All routes.
pub fn router(parts: Parts) -> Router {
    let open = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    let known = Router::new()
        .route("/api/v1/clusters", get(clusters::list).post(clusters::create).put(clusters::apply))
        .route(
            "/api/v1/clusters/{cluster}",
            get(clusters::show).put(clusters::replace).patch(clusters::edit).delete(clusters::delete),
        )
        .route("/api/v1/nodes", get(nodes::list))
        .route("/api/v1/explain", get(explain))
        .route("/api/v1/join-tokens", get(identity::join_tokens).post(identity::create_join_token))
        .route("/api/v1/join-tokens/{id}", delete(identity::remove_join_token))
        .route("/api/v1/members", get(identity::members))
        .route("/api/v1/members/{node}", delete(identity::remove_member))
        .route("/api/v1/members/{node}/revoke", post(identity::revoke))
        .route("/api/v1/ca", get(identity::authority))
        .route("/api/v1/api-tokens", get(identity::api_tokens).post(identity::create_api_token))
        .route("/api/v1/api-tokens/{token}", delete(identity::remove_api_token))
        .route("/api/v1/audit", get(identity::audit))
        .route("/api/v1/whoami", get(identity::whoami))
        .route_layer(middleware::from_fn_with_state(parts.clone(), caller::known));
    open.merge(known)
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "there is nothing at this address") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this address does not take this method")
        })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(parts)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    ip: String,
    #[serde(default)]
    idc: String,
    #[serde(default)]
    location: String,
    pin: Option<String>,
}

async fn explain(
    Viewer(caller): Viewer,
    State(parts): State<Parts>,
    Query(place): Query<Place>,
) -> Result<Json<Explanation>, Problem> {
    reaches_all(&caller)?;
    let facts = Facts::parse(&place.ip, &place.idc, &place.location).map_err(Problem::facts)?;
    Ok(Json(parts.clusters.current().explain(&facts, place.pin.as_deref())))
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
