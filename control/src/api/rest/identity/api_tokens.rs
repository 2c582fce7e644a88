//! Routes of API tokens, and of whoever asks.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use shoal_base::units::Span;
use utoipa::{IntoParams, ToSchema};

use super::super::Parts;
use super::super::caller::{Admin, Viewer, reaches_all};
use super::super::clusters::etag;
use super::super::document::{Finding, Making, Reading, Removing};
use super::super::extract::{Body, IfMatch, Path, Query};
use super::super::page::{List, Page};
use super::super::problem::Problem;
use super::super::time::seconds;
use super::cluster_name;
use crate::identity::{ApiTokenRow, Caller, NewToken, Role, now_seconds};

/// What an API token lets its bearer do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in super::super) enum ApiRole {
    /// Read.
    Viewer,
    /// And change clusters, nodes and jobs.
    Operator,
    /// And tokens.
    Admin,
}

impl From<ApiRole> for Role {
    fn from(role: ApiRole) -> Self {
        match role {
            ApiRole::Viewer => Self::Viewer,
            ApiRole::Operator => Self::Operator,
            ApiRole::Admin => Self::Admin,
        }
    }
}

impl From<Role> for ApiRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Viewer => Self::Viewer,
            Role::Operator => Self::Operator,
            Role::Admin => Self::Admin,
        }
    }
}

/// What an API token is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct AskApiToken {
    /// Whose it is, for the audit log. Unique. Neither `.` nor `..`, nor of the form of a UUID, nor as the audit log names nodes (`node …`)
    /// and this service.
    #[schema(
        min_length = 1,
        max_length = 64,
        pattern = r"^[^\s\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff](?:[^\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]*[^\s\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff])?$",
        examples("ci")
    )]
    name: String,
    /// What its bearer may do.
    role: ApiRole,
    /// The only clusters that its bearer sees and changes, by name or id. Left out: all.
    #[schema(min_items = 1, max_items = 1000)]
    clusters: Option<Vec<String>>,
    /// How long it counts, at most 8784h. Left out: until it is removed.
    #[schema(value_type = Option<String>, max_length = 32, pattern = r"^\s*(?:[0-9]+\s*(?:ms|s|m|h)|0+)\s*$", examples("2160h"))]
    ttl: Option<Span>,
}

/// An API token.
#[derive(Debug, Serialize, ToSchema)]
pub(in super::super) struct ApiTokenView {
    /// Never changes.
    id: String,
    /// Whose it is.
    name: String,
    /// The secret: only in the answer that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    token: Option<String>,
    /// What its bearer may do.
    role: ApiRole,
    /// In which clusters; null: in all.
    #[schema(required = true)]
    clusters: Option<Vec<String>>,
    /// When it was made.
    #[schema(format = DateTime)]
    created: String,
    /// When it counts no more; null: it does not end by itself.
    #[schema(format = DateTime, required = true)]
    expires: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in super::super) struct ApiTokensQuery {
    /// Only those whose name begins so.
    #[param(max_length = 256, nullable = false)]
    name: Option<String>,
    /// Only those of this role.
    #[param(inline, nullable = false)]
    role: Option<ApiRole>,
    /// Only those whose bearer reaches this cluster, by name or id.
    #[param(max_length = 256, nullable = false)]
    cluster: Option<String>,
    /// Only those that count, or only those whose time is over.
    #[param(nullable = false)]
    valid: Option<bool>,
    /// Items at most.
    #[param(minimum = 1, maximum = 1000, nullable = false, default = 100)]
    limit: Option<u32>,
    /// `next` of the page before.
    #[param(max_length = 4096, nullable = false)]
    after: Option<String>,
}

fn view(parts: &Parts, row: ApiTokenRow, token: Option<String>) -> ApiTokenView {
    let clusters = row.clusters.map(|ids| ids.iter().map(|id| cluster_name(parts, id)).collect());
    ApiTokenView {
        id: row.id,
        name: row.name,
        token,
        role: row.role.into(),
        clusters,
        created: seconds(row.created),
        expires: row.expires.map(seconds),
    }
}

/// API tokens, without their secrets, oldest first
#[utoipa::path(get, path = "/api/v1/api-tokens", operation_id = "list_api_tokens", tag = "tokens", security(("token" = [])),
    params(ApiTokensQuery), responses((status = 200, description = "A page.", body = List<ApiTokenView>), Reading))]
pub(in super::super) async fn list(
    Admin(caller): Admin,
    State(parts): State<Parts>,
    Query(query): Query<ApiTokensQuery>,
) -> Result<Json<List<ApiTokenView>>, Problem> {
    reaches_all(&caller)?;
    let (cluster, now) = (query.cluster.as_deref().map(|name| parts.filter(&caller, name)).transpose()?, now_seconds());
    let seen = |row: &ApiTokenRow| {
        let counts = row.expires.is_none_or(|expires| expires > now);
        query.name.as_ref().is_none_or(|prefix| row.name.starts_with(prefix.as_str()))
            && query.role.is_none_or(|role| Role::from(role) == row.role)
            && cluster
                .as_ref()
                .is_none_or(|wanted| row.clusters.as_ref().is_none_or(|clusters| clusters.contains(wanted)))
            && query.valid.is_none_or(|valid| valid == counts)
    };
    let mut rows: Vec<ApiTokenRow> = parts.access.list().await?.into_iter().filter(seen).collect();
    let key = |row: &ApiTokenRow| (row.created, row.id.clone());
    rows.sort_by_key(key);
    let page = Page { limit: query.limit, after: query.after.as_deref() };
    Ok(Json(page.of(rows, key)?.map(|row| view(&parts, row, None))))
}

async fn one(parts: &Parts, caller: &Caller, id_or_name: &str) -> Result<ApiTokenRow, Problem> {
    reaches_all(caller)?;
    let rows = parts.access.list().await?;
    let found = rows.into_iter().find(|row| row.id == id_or_name || row.name == id_or_name);
    found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, format!("there is no API token {id_or_name:?}")))
}

/// One API token, without its secret
#[utoipa::path(get, path = "/api/v1/api-tokens/{token}", operation_id = "get_api_token", tag = "tokens", security(("token" = [])),
    params(("token" = String, Path, description = "Its name or id.")),
    responses((status = 200, description = "It.", body = ApiTokenView, headers(("ETag" = String))), Finding))]
pub(in super::super) async fn show(
    Admin(caller): Admin,
    State(parts): State<Parts>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let row = one(&parts, &caller, &name).await?;
    Ok((etag(&row.id), Json(view(&parts, row, None))).into_response())
}

/// Make an API token
#[utoipa::path(post, path = "/api/v1/api-tokens", operation_id = "create_api_token", tag = "tokens", security(("token" = [])),
    request_body = AskApiToken, responses((status = 201, description = "It, with its secret.", body = ApiTokenView,
        headers(("ETag" = String), ("Location" = String))), Making))]
pub(in super::super) async fn create(
    Admin(caller): Admin,
    State(parts): State<Parts>,
    Body(ask): Body<AskApiToken>,
) -> Result<Response, Problem> {
    reaches_all(&caller)?;
    let (mut ids, mut faults) = (BTreeSet::new(), Vec::new());
    let set = parts.clusters.current();
    for (i, name) in ask.clusters.iter().flatten().enumerate() {
        match set.find(name) {
            Some(cluster) => _ = ids.insert(cluster.id.clone()),
            None => faults.push((format!("clusters[{i}]"), format!("there is no cluster {name:?}"))),
        }
    }
    if !faults.is_empty() {
        return Err(Problem::fields(faults));
    }
    let clusters = ask.clusters.map(|_| ids);
    let new = NewToken { name: ask.name, role: ask.role.into(), clusters, life: ask.ttl.map(Duration::from) };
    let (row, token) = parts.access.make(new, &caller.name).await?;
    let head = [(header::LOCATION, format!("/api/v1/api-tokens/{}", row.id))];
    Ok((StatusCode::CREATED, head, etag(&row.id), Json(view(&parts, row, Some(token)))).into_response())
}

/// Remove an API token
///
/// The last one of an admin that reaches all clusters and does not end by itself stays.
#[utoipa::path(delete, path = "/api/v1/api-tokens/{token}", operation_id = "delete_api_token", tag = "tokens", security(("token" = [])),
    params(("token" = String, Path, description = "Its name or id."),
        ("If-Match" = Option<String>, Header, nullable = false, pattern = r#"^(?:\*|(?:W/)?"[^"]*"(?:, ?(?:W/)?"[^"]*")*)$"#, description = "The ETag that was read, or `*`. Needed.")),
    responses((status = 204, description = "It is gone."), Removing))]
pub(in super::super) async fn delete(
    Admin(caller): Admin,
    State(parts): State<Parts>,
    Path(name): Path<String>,
    tag: Option<IfMatch>,
) -> Result<StatusCode, Problem> {
    let row = one(&parts, &caller, &name).await?;
    IfMatch::check(tag.as_ref(), "the API token", &row.id)?;
    // By its id: another one may have its name by now.
    let removed = parts.access.remove(&row.id, &caller.name).await?;
    removed.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, format!("there is no API token {name:?}")))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whoever asks.
#[derive(Debug, Serialize, ToSchema)]
pub(in super::super) struct Whoami {
    /// The API token's name.
    name: String,
    /// What it lets them do.
    role: ApiRole,
    /// In which clusters; null: in all.
    #[schema(required = true)]
    clusters: Option<Vec<String>>,
}

/// Whose API token this is
#[utoipa::path(get, path = "/api/v1/whoami", operation_id = "whoami", tag = "tokens", security(("token" = [])),
    responses((status = 200, description = "Whoever asks.", body = Whoami), Reading))]
pub(in super::super) async fn whoami(Viewer(caller): Viewer, State(parts): State<Parts>) -> Json<Whoami> {
    let clusters = caller.clusters.map(|ids| ids.iter().map(|id| cluster_name(&parts, id)).collect());
    Json(Whoami { name: caller.name, role: caller.role.into(), clusters })
}
