//! Routes of the audit log and of the authority.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::super::Parts;
use super::super::caller::{Admin, Viewer, reaches_all};
use super::super::document::{Reading, ReadingIdentity};
use super::super::extract::Query;
use super::super::page::{List, Page};
use super::super::problem::Problem;
use super::super::time::{parse, seconds};
use super::identity;
use crate::identity::{AuditFilter, AuditRow};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in super::super) struct AuditQuery {
    /// Only entries older than the one of this number.
    #[param(minimum = 0, maximum = 9223372036854775807i64, nullable = false)]
    before: Option<u64>,
    /// Only what this one did: an API token's name, `node <id>` or `shoal-control`.
    #[param(max_length = 256, nullable = false)]
    who: Option<String>,
    /// Only this action, such as `cluster.create`, or all about such things, such as `cluster`.
    #[param(max_length = 256, nullable = false)]
    action: Option<String>,
    /// Only what was done to this one, named as it was then, such as a cluster's name.
    #[param(max_length = 256, nullable = false)]
    subject: Option<String>,
    /// Only what was done at this time or later (RFC 3339).
    #[param(max_length = 64, nullable = false, format = DateTime)]
    since: Option<String>,
    /// Only what was done before this time (RFC 3339).
    #[param(max_length = 64, nullable = false, format = DateTime)]
    until: Option<String>,
    /// Items at most.
    #[param(minimum = 1, maximum = 1000, nullable = false, default = 100)]
    limit: Option<u32>,
    /// `next` of the page before.
    #[param(max_length = 4096, nullable = false)]
    after: Option<String>,
}

/// Who did what to what.
#[derive(Debug, Serialize, ToSchema)]
pub(in super::super) struct AuditView {
    /// Its number; the later, the larger.
    #[schema(minimum = 0)]
    seq: u64,
    /// When.
    #[schema(format = DateTime)]
    at: String,
    /// The API token's name, or `node <id>`, or `shoal-control`.
    who: String,
    /// Such as `cluster.create`.
    action: String,
    /// Such as a cluster's name.
    subject: String,
    /// What it was, without secrets; null: it was not there.
    #[schema(value_type = Option<Object>, required = true)]
    before: Option<Value>,
    /// What it is, without secrets; null: it is not there any more.
    #[schema(value_type = Option<Object>, required = true)]
    after: Option<Value>,
}

/// Both ends of a time, in seconds since 1970, half-open.
fn within(since: Option<&str>, until: Option<&str>) -> Result<(Option<u64>, Option<u64>), Problem> {
    let mut faults = Vec::new();
    let mut read = |field: &str, text: Option<&str>| {
        let second = text.map(parse)?;
        if second.is_none() {
            let why = format!(
                "{:?} is no time as RFC 3339 writes it, such as 2026-11-23T12:44:10Z",
                text.unwrap_or_default()
            );
            faults.push((field.to_owned(), why));
        }
        second
    };
    let (since, until) = (read("since", since), read("until", until));
    if since.zip(until).is_some_and(|(since, until)| since >= until) {
        faults.push(("until".to_owned(), "is not later than since".to_owned()));
    }
    if faults.is_empty() { Ok((since, until)) } else { Err(Problem::fields(faults)) }
}

/// The audit log, newest first
#[utoipa::path(get, path = "/api/v1/audit", operation_id = "list_audit", tag = "audit", security(("token" = [])), params(AuditQuery),
    responses((status = 200, description = "A page.", body = List<AuditView>), Reading))]
pub(in super::super) async fn list(
    Admin(caller): Admin,
    State(parts): State<Parts>,
    Query(query): Query<AuditQuery>,
) -> Result<Json<List<AuditView>>, Problem> {
    reaches_all(&caller)?;
    let page = Page { limit: query.limit, after: query.after.as_deref() };
    let after: Option<u64> = page.after()?;
    let before = query.before.into_iter().chain(after).min();
    let (since, until) = within(query.since.as_deref(), query.until.as_deref())?;
    let filter = AuditFilter { before, who: query.who, action: query.action, subject: query.subject, since, until };
    let most = u32::try_from(page.limit() + 1).unwrap_or(u32::MAX);
    let rows = parts.access.audit(&filter, most).await?;
    let view = |AuditRow { seq, entry }| AuditView {
        seq,
        at: seconds(entry.at),
        who: entry.who,
        action: entry.action,
        subject: entry.subject,
        before: entry.before,
        after: entry.after,
    };
    Ok(Json(page.first(rows, |row| row.seq).map(view)))
}

/// The authority of the nodes.
#[derive(Debug, Serialize, ToSchema)]
pub(in super::super) struct AuthorityView {
    /// Whose names its certificates carry.
    trust_domain: String,
    /// SHA-256 of the certificate (DER), in hex: what join tokens carry.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    sha256: String,
    /// Base64 of the certificate (DER).
    #[schema(content_encoding = "base64")]
    certificate: String,
}

/// The certificate of the authority that certifies nodes
#[utoipa::path(get, path = "/api/v1/ca", operation_id = "get_ca", tag = "members", security(("token" = [])),
    responses((status = 200, description = "It.", body = AuthorityView), ReadingIdentity))]
pub(in super::super) async fn authority(_: Viewer, State(parts): State<Parts>) -> Result<Json<AuthorityView>, Problem> {
    use base64::Engine as _;
    let authority = identity(&parts)?.authority();
    Ok(Json(AuthorityView {
        trust_domain: authority.trust_domain().to_string(),
        sha256: hex::encode(authority.pin()),
        certificate: base64::engine::general_purpose::STANDARD.encode(authority.certificate()),
    }))
}
