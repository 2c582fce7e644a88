//! Routes of tokens, members and the audit log.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shoal_base::units::Span;
use shoal_proto::{ClusterId, NodeId};

use super::Parts;
use super::caller::{Admin, Operator, Viewer, reaches, reaches_all};
use super::nodes::rfc3339;
use super::problem::{Body, Path, Problem, Query};
use crate::clusters;
use crate::identity::{
    AccessError, ApiTokenRow, AuditRow, Caller, Error, Identity, JoinTokenRow, Member, NewJoinToken, NewToken, Role,
};

const DEFAULT_TTL: Duration = Duration::from_secs(3600);
const DEFAULT_ENTRIES: u32 = 100;
const MOST_ENTRIES: u32 = 1000;

impl From<AccessError> for Problem {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::Refused { field, reason } => Self::field(field, reason),
            AccessError::Store(error) => unavailable(&error),
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused { field, reason } => Self::field(field, reason),
            Error::NoMember(_) => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            other => unavailable(&other),
        }
    }
}

fn unavailable(error: &(dyn std::error::Error + 'static)) -> Problem {
    let cause = error.source().map(ToString::to_string);
    tracing::error!(%error, cause, "a change of tokens or members failed");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, format!("nothing was changed: {error}"))
}

fn identity(parts: &Parts) -> Result<&Arc<Identity>, Problem> {
    let why = "this control service runs with tls = \"off\": nodes have no certificates and need no tokens";
    parts.identity.as_ref().ok_or_else(|| Problem::new(StatusCode::CONFLICT, why))
}

fn time(seconds: u64) -> String {
    rfc3339(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// The id of a cluster that is named by id or name.
fn cluster_id(parts: &Parts, field: &'static str, name: &str) -> Result<ClusterId, Problem> {
    let set = parts.clusters.current();
    let found = set.find(name).map(|cluster| cluster.id.clone());
    found.ok_or_else(|| Problem::field(field, clusters::Error::NotFound(name.to_owned()).to_string()))
}

fn cluster_name(parts: &Parts, id: &ClusterId) -> String {
    parts.clusters.current().get(id).map_or_else(|| id.to_string(), |cluster| cluster.name.clone())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AskJoinToken {
    /// Name or id; left out: the facts of the node decide.
    cluster: Option<String>,
    #[serde(default)]
    role: AskRole,
    ttl: Option<Span>,
    uses: Option<u32>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AskRole {
    #[default]
    Node,
    Seed,
}

#[derive(Debug, Serialize)]
pub(super) struct JoinTokenView {
    id: String,
    /// Only in the answer that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    cluster: Option<String>,
    role: &'static str,
    expires: String,
    uses_left: u32,
    created: String,
    created_by: String,
}

fn view_token(parts: &Parts, row: JoinTokenRow, token: Option<String>) -> JoinTokenView {
    let cluster = row.cluster.as_ref().map(|id| cluster_name(parts, id));
    JoinTokenView {
        id: row.id,
        token,
        cluster,
        role: role(row.seed),
        expires: time(row.expires),
        uses_left: row.uses_left,
        created: time(row.created),
        created_by: row.created_by,
    }
}

const fn role(seed: bool) -> &'static str {
    if seed { "seed" } else { "node" }
}

#[derive(Debug, Serialize)]
pub(super) struct JoinTokens {
    join_tokens: Vec<JoinTokenView>,
}

pub(super) async fn join_tokens(
    Operator(caller): Operator,
    State(parts): State<Parts>,
) -> Result<Json<JoinTokens>, Problem> {
    let rows = identity(&parts)?.tokens().await?;
    let seen = rows.into_iter().filter(|row| reaches(&caller, row.cluster.as_ref()).is_ok());
    Ok(Json(JoinTokens { join_tokens: seen.map(|row| view_token(&parts, row, None)).collect() }))
}

pub(super) async fn create_join_token(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Body(ask): Body<AskJoinToken>,
) -> Result<(StatusCode, Json<JoinTokenView>), Problem> {
    let cluster = ask.cluster.as_deref().map(|name| cluster_id(&parts, "cluster", name)).transpose()?;
    reaches(&caller, cluster.as_ref())?;
    let new = NewJoinToken {
        cluster,
        seed: ask.role == AskRole::Seed,
        life: ask.ttl.map_or(DEFAULT_TTL, Duration::from),
        uses: ask.uses.unwrap_or(1),
    };
    let (row, token) = identity(&parts)?.make_token(new, &caller.name).await?;
    Ok((StatusCode::CREATED, Json(view_token(&parts, row, Some(token.reveal())))))
}

pub(super) async fn remove_join_token(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let identity = identity(&parts)?;
    let missing = || Problem::new(StatusCode::NOT_FOUND, format!("there is no join token {id:?}"));
    let row = identity.tokens().await?.into_iter().find(|row| row.id == id).ok_or_else(missing)?;
    reaches(&caller, row.cluster.as_ref())?;
    identity.remove_token(&id, &caller.name).await?.ok_or_else(missing)?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Serialize)]
pub(super) struct MemberView {
    node: NodeId,
    /// Host name, when it is live.
    name: Option<String>,
    live: bool,
    /// The cluster that what it joined by binds it to.
    bound_cluster: Option<String>,
    role: &'static str,
    joined: String,
    joined_by: String,
    revoked: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Members {
    members: Vec<MemberView>,
}

fn view_member(parts: &Parts, member: Member, live: &HashMap<NodeId, String>) -> MemberView {
    MemberView {
        name: live.get(&member.node).cloned(),
        live: live.contains_key(&member.node),
        bound_cluster: member.cluster.as_ref().map(|id| cluster_name(parts, id)),
        role: role(member.seed),
        joined: time(member.joined),
        joined_by: member.joined_by,
        revoked: member.revoked.map(time),
        node: member.node,
    }
}

/// Host names of live nodes.
fn live(parts: &Parts) -> HashMap<NodeId, String> {
    parts.nodes.list().into_iter().map(|node| (node.id, node.name)).collect()
}

/// A member is of the cluster that it is bound to, else of the one that it is live in.
fn sees(parts: &Parts, caller: &Caller, member: &Member) -> Result<(), Problem> {
    let cluster = member.cluster.clone().or_else(|| parts.nodes.cluster_of(&member.node));
    reaches(caller, cluster.as_ref())
}

pub(super) async fn members(Viewer(caller): Viewer, State(parts): State<Parts>) -> Result<Json<Members>, Problem> {
    let rows = identity(&parts)?.members().await?;
    let live = live(&parts);
    let seen = rows.into_iter().filter(|member| sees(&parts, &caller, member).is_ok());
    Ok(Json(Members { members: seen.map(|member| view_member(&parts, member, &live)).collect() }))
}

async fn member(parts: &Parts, caller: &Caller, text: &str) -> Result<NodeId, Problem> {
    let missing = || Problem::new(StatusCode::NOT_FOUND, format!("there is no member {text:?}"));
    let node: NodeId = text.parse().map_err(|_| missing())?;
    let rows = identity(parts)?.members().await?;
    let found = rows.into_iter().find(|member| member.node == node).ok_or_else(missing)?;
    sees(parts, caller, &found)?;
    Ok(node)
}

pub(super) async fn revoke(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Path(text): Path<String>,
) -> Result<Json<MemberView>, Problem> {
    let node = member(&parts, &caller, &text).await?;
    let revoked = identity(&parts)?.revoke(&node, &caller.name).await?;
    parts.nodes.expel(&node, "it was revoked");
    let missing = || Problem::new(StatusCode::NOT_FOUND, format!("there is no member {text:?}"));
    Ok(Json(view_member(&parts, revoked.ok_or_else(missing)?, &live(&parts))))
}

pub(super) async fn remove_member(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Path(text): Path<String>,
) -> Result<StatusCode, Problem> {
    let node = member(&parts, &caller, &text).await?;
    identity(&parts)?.remove(&node, &caller.name).await?;
    parts.nodes.expel(&node, "it was removed from the members");
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AskApiToken {
    name: String,
    role: Role,
    /// Names or ids; left out: all.
    clusters: Option<Vec<String>>,
    ttl: Option<Span>,
}

#[derive(Debug, Serialize)]
pub(super) struct ApiTokenView {
    id: String,
    name: String,
    /// Only in the answer that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    role: Role,
    /// Null: all.
    clusters: Option<Vec<String>>,
    created: String,
    expires: Option<String>,
}

fn view_api_token(parts: &Parts, row: ApiTokenRow, token: Option<String>) -> ApiTokenView {
    let clusters = row.clusters.map(|ids| ids.iter().map(|id| cluster_name(parts, id)).collect());
    ApiTokenView {
        id: row.id,
        name: row.name,
        token,
        role: row.role,
        clusters,
        created: time(row.created),
        expires: row.expires.map(time),
    }
}

#[derive(Debug, Serialize)]
pub(super) struct ApiTokens {
    api_tokens: Vec<ApiTokenView>,
}

pub(super) async fn api_tokens(Admin(caller): Admin, State(parts): State<Parts>) -> Result<Json<ApiTokens>, Problem> {
    reaches_all(&caller)?;
    let rows = parts.access.list().await?;
    Ok(Json(ApiTokens { api_tokens: rows.into_iter().map(|row| view_api_token(&parts, row, None)).collect() }))
}

pub(super) async fn create_api_token(
    Admin(caller): Admin,
    State(parts): State<Parts>,
    Body(ask): Body<AskApiToken>,
) -> Result<(StatusCode, Json<ApiTokenView>), Problem> {
    reaches_all(&caller)?;
    let id = |name: &String| cluster_id(&parts, "clusters", name);
    let clusters = ask.clusters.map(|names| names.iter().map(id).collect::<Result<BTreeSet<_>, _>>()).transpose()?;
    let new = NewToken { name: ask.name, role: ask.role, clusters, life: ask.ttl.map(Duration::from) };
    let (row, token) = parts.access.make(new, &caller.name).await?;
    Ok((StatusCode::CREATED, Json(view_api_token(&parts, row, Some(token)))))
}

pub(super) async fn remove_api_token(
    Admin(caller): Admin,
    State(parts): State<Parts>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    reaches_all(&caller)?;
    let removed = parts.access.remove(&name, &caller.name).await?;
    removed.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, format!("there is no API token {name:?}")))?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditQuery {
    /// Entries older than this one.
    before: Option<u64>,
    limit: Option<u32>,
}

#[derive(Debug, Serialize)]
pub(super) struct AuditView {
    seq: u64,
    at: String,
    who: String,
    action: String,
    subject: String,
    before: Option<Value>,
    after: Option<Value>,
}

#[derive(Debug, Serialize)]
pub(super) struct Audit {
    /// Newest first.
    entries: Vec<AuditView>,
}

pub(super) async fn audit(
    Admin(caller): Admin,
    State(parts): State<Parts>,
    Query(query): Query<AuditQuery>,
) -> Result<Json<Audit>, Problem> {
    reaches_all(&caller)?;
    let most = query.limit.unwrap_or(DEFAULT_ENTRIES);
    if most == 0 || most > MOST_ENTRIES {
        return Err(Problem::field("limit", format!("must be 1 to {MOST_ENTRIES}")));
    }
    let view = |AuditRow { seq, entry }| AuditView {
        seq,
        at: time(entry.at),
        who: entry.who,
        action: entry.action,
        subject: entry.subject,
        before: entry.before,
        after: entry.after,
    };
    let rows = parts.access.audit(query.before, most).await?;
    Ok(Json(Audit { entries: rows.into_iter().map(view).collect() }))
}

#[derive(Debug, Serialize)]
pub(super) struct AuthorityView {
    trust_domain: String,
    /// SHA-256 of the certificate (DER), in hex: what join tokens carry.
    sha256: String,
    /// Base64 of the certificate (DER).
    certificate: String,
}

pub(super) async fn authority(_: Viewer, State(parts): State<Parts>) -> Result<Json<AuthorityView>, Problem> {
    use base64::Engine as _;
    let authority = identity(&parts)?.authority();
    Ok(Json(AuthorityView {
        trust_domain: authority.trust_domain().to_string(),
        sha256: hex::encode(authority.pin()),
        certificate: base64::engine::general_purpose::STANDARD.encode(authority.certificate()),
    }))
}

#[derive(Debug, Serialize)]
pub(super) struct Whoami {
    name: String,
    role: Role,
    /// Null: all.
    clusters: Option<Vec<String>>,
}

pub(super) async fn whoami(Viewer(caller): Viewer, State(parts): State<Parts>) -> Json<Whoami> {
    let clusters = caller.clusters.map(|ids| ids.iter().map(|id| cluster_name(&parts, id)).collect());
    Json(Whoami { name: caller.name, role: caller.role, clusters })
}
