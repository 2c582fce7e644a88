//! Routes of join tokens.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use shoal_base::units::Span;
use utoipa::{IntoParams, ToSchema};

use super::super::Parts;
use super::super::caller::{Operator, reaches};
use super::super::clusters::etag;
use super::super::document::{FindingIdentity, Making, ReadingIdentity, Removing};
use super::super::extract::{Body, IfMatch, Path, Query};
use super::super::nodes::NodeRole;
use super::super::page::{List, Page};
use super::super::problem::Problem;
use super::super::time::seconds;
use super::{cluster_id, cluster_name, identity, role};
use crate::identity::{Caller, JoinTokenFilter, JoinTokenRow, NewJoinToken, now_seconds};

const DEFAULT_TTL: Duration = Duration::from_secs(3600);

/// What a join token is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct AskJoinToken {
    /// Nodes that join by it belong to this cluster, by name or id. Left out: their facts decide.
    #[schema(max_length = 256, examples("default"))]
    cluster: Option<String>,
    /// What such a node may be.
    #[serde(default)]
    role: NodeRole,
    /// How long it counts, at most 8784h. Left out: an hour.
    #[schema(value_type = Option<String>, max_length = 32, pattern = r"^\s*(?:[0-9]+\s*(?:ms|s|m|h)|0+)\s*$", examples("24h"))]
    ttl: Option<Span>,
    /// How many nodes may join by it. Left out: one.
    #[schema(minimum = 1, maximum = 100000)]
    uses: Option<u32>,
}

/// A join token.
#[derive(Debug, Serialize, ToSchema)]
pub(in super::super) struct JoinTokenView {
    /// Names it where its secret must not be.
    id: String,
    /// The secret: only in the answer that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    token: Option<String>,
    /// Nodes that join by it belong to this cluster; null: their facts decide.
    #[schema(required = true)]
    cluster: Option<String>,
    /// What such a node may be.
    role: NodeRole,
    /// When it counts no more.
    #[schema(format = DateTime)]
    expires: String,
    /// How many nodes may still join.
    #[schema(minimum = 0)]
    uses_left: u32,
    /// When it was made.
    #[schema(format = DateTime)]
    created: String,
    /// By which API token.
    created_by: String,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in super::super) struct JoinTokensQuery {
    /// Only those that bind nodes to this cluster, by name or id.
    #[param(max_length = 256, nullable = false)]
    cluster: Option<String>,
    /// Only those for nodes of this role.
    #[param(inline, nullable = false)]
    role: Option<NodeRole>,
    /// Only those that count, or only those whose time or uses are over.
    #[param(nullable = false)]
    valid: Option<bool>,
    /// Items at most.
    #[param(minimum = 1, maximum = 1000, nullable = false, default = 100)]
    limit: Option<u32>,
    /// `next` of the page before.
    #[param(max_length = 4096, nullable = false)]
    after: Option<String>,
}

fn view(parts: &Parts, row: JoinTokenRow, token: Option<String>) -> JoinTokenView {
    let cluster = row.cluster.as_ref().map(|id| cluster_name(parts, id));
    JoinTokenView {
        id: row.id,
        token,
        cluster,
        role: role(row.seed),
        expires: seconds(row.expires),
        uses_left: row.uses_left,
        created: seconds(row.created),
        created_by: row.created_by,
    }
}

/// Join tokens, without their secrets, oldest first
#[utoipa::path(get, path = "/api/v1/join-tokens", operation_id = "list_join_tokens", tag = "tokens", security(("token" = [])),
    params(JoinTokensQuery), responses((status = 200, description = "A page.", body = List<JoinTokenView>), ReadingIdentity))]
pub(in super::super) async fn list(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Query(query): Query<JoinTokensQuery>,
) -> Result<Json<List<JoinTokenView>>, Problem> {
    let identity = identity(&parts)?;
    let filter = JoinTokenFilter {
        cluster: query.cluster.as_deref().map(|name| parts.filter(&caller, name)).transpose()?,
        seed: query.role.map(|role| role == NodeRole::Seed),
        valid: query.valid.map(|valid| (valid, now_seconds())),
    };
    let rows = identity.tokens_of(&filter).await?;
    let mut rows: Vec<_> = rows.into_iter().filter(|row| reaches(&caller, row.cluster.as_ref()).is_ok()).collect();
    let key = |row: &JoinTokenRow| (row.created, row.id.clone());
    rows.sort_by_key(key);
    let page = Page { limit: query.limit, after: query.after.as_deref() };
    Ok(Json(page.of(rows, key)?.map(|row| view(&parts, row, None))))
}

async fn one(parts: &Parts, caller: &Caller, id: &str) -> Result<JoinTokenRow, Problem> {
    let missing = || Problem::new(StatusCode::NOT_FOUND, format!("there is no join token {id:?}"));
    let row = identity(parts)?.tokens().await?.into_iter().find(|row| row.id == id).ok_or_else(missing)?;
    reaches(caller, row.cluster.as_ref())?;
    Ok(row)
}

/// One join token, without its secret
#[utoipa::path(get, path = "/api/v1/join-tokens/{id}", operation_id = "get_join_token", tag = "tokens", security(("token" = [])),
    params(("id" = String, Path, description = "Its id.")),
    responses((status = 200, description = "It.", body = JoinTokenView, headers(("ETag" = String))), FindingIdentity))]
pub(in super::super) async fn show(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let row = one(&parts, &caller, &id).await?;
    Ok((etag(&row.id), Json(view(&parts, row, None))).into_response())
}

/// Make a join token
#[utoipa::path(post, path = "/api/v1/join-tokens", operation_id = "create_join_token", tag = "tokens", security(("token" = [])),
    request_body = AskJoinToken, responses((status = 201, description = "It, with its secret.", body = JoinTokenView,
        headers(("ETag" = String), ("Location" = String))), Making))]
pub(in super::super) async fn create(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Body(ask): Body<AskJoinToken>,
) -> Result<Response, Problem> {
    let cluster = ask.cluster.as_deref().map(|name| cluster_id(&parts, "cluster", name)).transpose()?;
    reaches(&caller, cluster.as_ref())?;
    let new = NewJoinToken {
        cluster,
        seed: ask.role == NodeRole::Seed,
        life: ask.ttl.map_or(DEFAULT_TTL, Duration::from),
        uses: ask.uses.unwrap_or(1),
    };
    let (row, token) = identity(&parts)?.make_token(new, &caller.name).await?;
    let head = [(header::LOCATION, format!("/api/v1/join-tokens/{}", row.id))];
    Ok((StatusCode::CREATED, head, etag(&row.id), Json(view(&parts, row, Some(token.reveal())))).into_response())
}

/// Remove a join token
///
/// Nodes that joined by it stay.
#[utoipa::path(delete, path = "/api/v1/join-tokens/{id}", operation_id = "delete_join_token", tag = "tokens", security(("token" = [])),
    params(("id" = String, Path, description = "Its id."),
        ("If-Match" = Option<String>, Header, nullable = false, pattern = r#"^(?:\*|(?:W/)?"[^"]*"(?:, ?(?:W/)?"[^"]*")*)$"#, description = "The ETag that was read, or `*`. Needed.")),
    responses((status = 204, description = "It is gone."), Removing))]
pub(in super::super) async fn delete(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Path(id): Path<String>,
    tag: Option<IfMatch>,
) -> Result<StatusCode, Problem> {
    let row = one(&parts, &caller, &id).await?;
    IfMatch::check(tag.as_ref(), "the join token", &row.id)?;
    let missing = || Problem::new(StatusCode::NOT_FOUND, format!("there is no join token {id:?}"));
    identity(&parts)?.remove_token(&id, &caller.name).await?.ok_or_else(missing)?;
    Ok(StatusCode::NO_CONTENT)
}
