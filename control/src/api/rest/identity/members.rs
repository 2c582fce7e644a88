//! Routes of members: nodes that have joined, live or not.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use shoal_proto::{ClusterId, NodeId};
use utoipa::{IntoParams, ToSchema};

use super::super::Parts;
use super::super::caller::{Operator, Viewer, reaches};
use super::super::clusters::etag;
use super::super::document::{FindingIdentity, ReadingIdentity, Removing};
use super::super::extract::{IfMatch, Path, Query};
use super::super::nodes::NodeRole;
use super::super::page::{List, Page};
use super::super::problem::Problem;
use super::super::time::seconds;
use super::{cluster_name, identity, role};
use crate::identity::{Caller, Member, MemberFilter};

/// A node that has joined.
#[derive(Debug, Serialize, ToSchema)]
pub(in super::super) struct MemberView {
    /// Its id.
    #[schema(value_type = String)]
    node: NodeId,
    /// Host name, when it is live.
    #[schema(required = true)]
    name: Option<String>,
    /// It has a session now, or a lease.
    live: bool,
    /// The cluster that what it joined by binds it to.
    #[schema(required = true)]
    bound_cluster: Option<String>,
    /// What it may be.
    role: NodeRole,
    /// When it joined.
    #[schema(format = DateTime)]
    joined: String,
    /// The id of its token, or `kubernetes:ISSUER:NAMESPACE:NAME`.
    joined_by: String,
    /// When it was revoked; null: it was not.
    #[schema(format = DateTime, required = true)]
    revoked: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in super::super) struct MembersQuery {
    /// Only those of this cluster, by name or id: bound to it, or live in it and bound to none.
    #[param(max_length = 256, nullable = false)]
    cluster: Option<String>,
    /// Only those whose id begins so, or whose host name does while they are live.
    #[param(max_length = 256, nullable = false)]
    name: Option<String>,
    /// Only those that may be of this role.
    #[param(inline, nullable = false)]
    role: Option<NodeRole>,
    /// Only those that are live, or are not.
    #[param(nullable = false)]
    live: Option<bool>,
    /// Only those that were revoked, or were not.
    #[param(nullable = false)]
    revoked: Option<bool>,
    /// Items at most.
    #[param(minimum = 1, maximum = 1000, nullable = false, default = 100)]
    limit: Option<u32>,
    /// `next` of the page before.
    #[param(max_length = 4096, nullable = false)]
    after: Option<String>,
}

fn view(parts: &Parts, member: Member, live: &HashMap<NodeId, String>) -> MemberView {
    MemberView {
        name: live.get(&member.node).cloned(),
        live: live.contains_key(&member.node),
        bound_cluster: member.cluster.as_ref().map(|id| cluster_name(parts, id)),
        role: role(member.seed),
        joined: seconds(member.joined),
        joined_by: member.joined_by,
        revoked: member.revoked.map(seconds),
        node: member.node,
    }
}

/// What tells its states apart: it may join anew under the same id, with another key, and be revoked.
fn state(member: &Member) -> String {
    format!("{}-{}-{}", member.joined, member.revoked.unwrap_or(0), hex::encode(&member.key[..6]))
}

/// The state to which a change of a member is held when it is written; `None`: the caller said any.
fn matched(given: Option<&IfMatch>, member: Member) -> Result<Option<Member>, Problem> {
    IfMatch::check(given, "the member", &state(&member))?;
    Ok((given != Some(&IfMatch::Any)).then_some(member))
}

/// A member is of the cluster that it is bound to, else of the one that it is live in.
fn home(parts: &Parts, member: &Member) -> Option<ClusterId> {
    member.cluster.clone().or_else(|| parts.nodes.cluster_of(&member.node))
}

/// Members, by id
#[utoipa::path(get, path = "/api/v1/members", operation_id = "list_members", tag = "members", security(("token" = [])),
    params(MembersQuery), responses((status = 200, description = "A page.", body = List<MemberView>), ReadingIdentity))]
pub(in super::super) async fn list(
    Viewer(caller): Viewer,
    State(parts): State<Parts>,
    Query(query): Query<MembersQuery>,
) -> Result<Json<List<MemberView>>, Problem> {
    let identity = identity(&parts)?;
    let cluster = query.cluster.as_deref().map(|name| parts.filter(&caller, name)).transpose()?;
    let seed = query.role.map(|role| role == NodeRole::Seed);
    let rows = identity.members_of(&MemberFilter { seed, revoked: query.revoked }).await?;
    let live = parts.nodes.names();
    let named = |member: &Member, prefix: &str| {
        member.node.as_str().starts_with(prefix) || live.get(&member.node).is_some_and(|name| name.starts_with(prefix))
    };
    let seen = |member: &Member| {
        let home = home(&parts, member);
        reaches(&caller, home.as_ref()).is_ok()
            && cluster.as_ref().is_none_or(|wanted| home.as_ref() == Some(wanted))
            && query.name.as_ref().is_none_or(|prefix| named(member, prefix))
            && query.live.is_none_or(|wanted| wanted == live.contains_key(&member.node))
    };
    let mut rows: Vec<Member> = rows.into_iter().filter(seen).collect();
    rows.sort_by(|a, b| a.node.cmp(&b.node));
    let page = Page { limit: query.limit, after: query.after.as_deref() };
    Ok(Json(page.of(rows, |member| member.node.clone())?.map(|member| view(&parts, member, &live))))
}

async fn one(parts: &Parts, caller: &Caller, text: &str) -> Result<Member, Problem> {
    let missing = || Problem::new(StatusCode::NOT_FOUND, format!("there is no member {text:?}"));
    let node: NodeId = text.parse().map_err(|_| missing())?;
    let found = identity(parts)?.member(&node).await?.ok_or_else(missing)?;
    reaches(caller, home(parts, &found).as_ref())?;
    Ok(found)
}

/// One member
#[utoipa::path(get, path = "/api/v1/members/{node}", operation_id = "get_member", tag = "members", security(("token" = [])),
    params(("node" = String, Path, description = "Its id.")),
    responses((status = 200, description = "It.", body = MemberView, headers(("ETag" = String))), FindingIdentity))]
pub(in super::super) async fn show(
    Viewer(caller): Viewer,
    State(parts): State<Parts>,
    Path(text): Path<String>,
) -> Result<Response, Problem> {
    let member = one(&parts, &caller, &text).await?;
    Ok((etag(state(&member)), Json(view(&parts, member, &parts.nodes.names()))).into_response())
}

/// Take a node's certificates away, everywhere and at once
///
/// It is given no other. To do it twice does it once.
#[utoipa::path(post, path = "/api/v1/members/{node}/revoke", operation_id = "revoke_member", tag = "members", security(("token" = [])),
    params(("node" = String, Path, description = "Its id."),
        ("If-Match" = Option<String>, Header, nullable = false, pattern = r#"^(?:\*|(?:W/)?"[^"]*"(?:, ?(?:W/)?"[^"]*")*)$"#, description = "The ETag that was read, or `*`. Needed.")),
    responses((status = 200, description = "As it is now.", body = MemberView, headers(("ETag" = String))), Removing))]
pub(in super::super) async fn revoke(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Path(text): Path<String>,
    tag: Option<IfMatch>,
) -> Result<Response, Problem> {
    let member = one(&parts, &caller, &text).await?;
    let node = member.node.clone();
    let seen = matched(tag.as_ref(), member)?;
    let revoked = identity(&parts)?.revoke_seen(&node, seen.as_ref(), &caller.name).await?;
    parts.nodes.expel(&node, "it was revoked");
    let missing = || Problem::new(StatusCode::NOT_FOUND, format!("there is no member {text:?}"));
    let revoked = revoked.ok_or_else(missing)?;
    Ok((etag(state(&revoked)), Json(view(&parts, revoked, &parts.nodes.names()))).into_response())
}

/// Forget a node, so that it may join anew
#[utoipa::path(delete, path = "/api/v1/members/{node}", operation_id = "delete_member", tag = "members", security(("token" = [])),
    params(("node" = String, Path, description = "Its id."),
        ("If-Match" = Option<String>, Header, nullable = false, pattern = r#"^(?:\*|(?:W/)?"[^"]*"(?:, ?(?:W/)?"[^"]*")*)$"#, description = "The ETag that was read, or `*`. Needed.")),
    responses((status = 204, description = "It is forgotten."), Removing))]
pub(in super::super) async fn delete(
    Operator(caller): Operator,
    State(parts): State<Parts>,
    Path(text): Path<String>,
    tag: Option<IfMatch>,
) -> Result<StatusCode, Problem> {
    let member = one(&parts, &caller, &text).await?;
    let node = member.node.clone();
    let seen = matched(tag.as_ref(), member)?;
    identity(&parts)?.remove_seen(&node, seen.as_ref(), &caller.name).await?;
    parts.nodes.expel(&node, "it was removed from the members");
    Ok(StatusCode::NO_CONTENT)
}
