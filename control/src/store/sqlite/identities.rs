//! Tables of migration 0002, with the indices of 0004.

use async_trait::async_trait;
use shoal_proto::{ClusterId, NodeId};
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::super::identities::{admits, is_new};
use super::super::{
    Admission, ApiTokenRow, AuditEntry, AuditFilter, AuditRow, Error, Identities, JoinTokenFilter, JoinTokenRow,
    Joining, Member, MemberFilter, Role, Seconds, Sha256, Void,
};
use super::{SqliteStore, failed, from_sql, to_sql};

type JoinRow = (String, Vec<u8>, Option<String>, bool, i64, i64, i64, String);
type MemberRow = (String, Vec<u8>, Option<String>, bool, String, i64, Option<i64>);
type ApiRow = (String, String, Vec<u8>, String, Option<String>, i64, Option<i64>);
type AuditLine = (i64, i64, String, String, String, Option<String>, Option<String>);

const MEMBER: &str = "SELECT node_id, key, cluster_id, seed, joined_by, joined, revoked FROM members";
const JOIN_TOKEN: &str = "SELECT id, hash, cluster_id, seed, expires, uses_left, created, created_by FROM join_tokens";

#[async_trait]
impl Identities for SqliteStore {
    async fn add_join_token(&self, token: &JoinTokenRow, audit: &AuditEntry) -> Result<(), Error> {
        let doing = || failed("write a join token");
        let mut tx = self.begin_write().await.map_err(doing())?;
        let insert = "INSERT INTO join_tokens (id, hash, cluster_id, seed, expires, uses_left, created, created_by) \
                      VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
        let written = sqlx::query(insert)
            .bind(&token.id)
            .bind(token.hash.as_slice())
            .bind(token.cluster.as_ref().map(ClusterId::as_str))
            .bind(token.seed)
            .bind(to_sql(token.expires))
            .bind(i64::from(token.uses_left))
            .bind(to_sql(token.created))
            .bind(&token.created_by)
            .execute(&mut *tx)
            .await;
        written.map_err(|error| match (&token.cluster, error.as_database_error()) {
            (Some(cluster), Some(cause)) if cause.is_foreign_key_violation() => Error::NoCluster(cluster.clone()),
            _ => doing()(error),
        })?;
        write_audit(&mut tx, audit).await?;
        tx.commit().await.map_err(doing())
    }

    async fn join_tokens_of(&self, filter: &JoinTokenFilter) -> Result<Vec<JoinTokenRow>, Error> {
        let JoinTokenFilter { cluster, seed, valid } = filter;
        let mut query = QueryBuilder::<Sqlite>::new(JOIN_TOKEN);
        query.push(" WHERE TRUE");
        if let Some(cluster) = cluster {
            query.push(" AND cluster_id = ").push_bind(cluster.as_str());
        }
        if let Some(seed) = seed {
            query.push(" AND seed = ").push_bind(*seed);
        }
        if let Some((valid, now)) = valid {
            query.push(" AND (uses_left > 0 AND expires > ").push_bind(to_sql(*now)).push(") = ").push_bind(*valid);
        }
        query.push(" ORDER BY created, id");
        let rows: Vec<JoinRow> =
            query.build_query_as().fetch_all(&self.pool).await.map_err(failed("read join tokens"))?;
        rows.into_iter().map(join_token).collect()
    }

    async fn remove_join_token(&self, id: &str, audit: &AuditEntry) -> Result<bool, Error> {
        self.remove("DELETE FROM join_tokens WHERE id = ?", id, audit).await
    }

    async fn join(&self, by: &Joining, audit: &AuditEntry) -> Result<Admission, Error> {
        let doing = || failed(format!("make node {} a member", by.node));
        let mut tx = self.begin_write().await.map_err(doing())?;
        let row: Option<JoinRow> = sqlx::query_as(sqlx::AssertSqlSafe(format!("{JOIN_TOKEN} WHERE id = ?")))
            .bind(&by.token)
            .fetch_optional(&mut *tx)
            .await
            .map_err(doing())?;
        let token = row.map(join_token).transpose()?;
        let known = read_member(&mut tx, &by.node).await?;
        let is_new = match admits(by, token.as_ref(), known.as_ref()) {
            Ok(is_new) => is_new,
            Err(refused) => return Ok(refused),
        };
        let (Some(token), true) = (token, is_new) else {
            return Ok(known.map_or(Admission::BadToken, Admission::Known));
        };
        sqlx::query("UPDATE join_tokens SET uses_left = uses_left - 1 WHERE id = ?")
            .bind(&token.id)
            .execute(&mut *tx)
            .await
            .map_err(doing())?;
        let member = by.member(&token);
        write_member(&mut tx, &member).await.map_err(doing())?;
        write_audit(&mut tx, audit).await?;
        tx.commit().await.map_err(doing())?;
        Ok(Admission::Admitted(member))
    }

    async fn admit(&self, member: &Member, audit: &AuditEntry) -> Result<Admission, Error> {
        let doing = || failed(format!("make node {} a member", member.node));
        let mut tx = self.begin_write().await.map_err(doing())?;
        let known = read_member(&mut tx, &member.node).await?;
        match is_new(known.as_ref(), &member.key) {
            Ok(true) => {}
            Ok(false) => return Ok(Admission::Known(known.unwrap_or_else(|| member.clone()))),
            Err(refused) => return Ok(refused),
        }
        write_member(&mut tx, member).await.map_err(doing())?;
        write_audit(&mut tx, audit).await?;
        tx.commit().await.map_err(doing())?;
        Ok(Admission::Admitted(member.clone()))
    }

    async fn member(&self, node: &NodeId) -> Result<Option<Member>, Error> {
        let mut connection = self.pool.acquire().await.map_err(failed("read members"))?;
        read_member(&mut connection, node).await
    }

    async fn members_of(&self, filter: &MemberFilter) -> Result<Vec<Member>, Error> {
        let MemberFilter { seed, revoked } = filter;
        let mut query = QueryBuilder::<Sqlite>::new(MEMBER);
        query.push(" WHERE TRUE");
        if let Some(seed) = seed {
            query.push(" AND seed = ").push_bind(*seed);
        }
        if let Some(revoked) = revoked {
            query.push(if *revoked { " AND revoked IS NOT NULL" } else { " AND revoked IS NULL" });
        }
        query.push(" ORDER BY node_id");
        let rows: Vec<MemberRow> =
            query.build_query_as().fetch_all(&self.pool).await.map_err(failed("read members"))?;
        rows.into_iter().map(member).collect()
    }

    async fn revoke(
        &self,
        node: &NodeId,
        seen: Option<&Member>,
        at: Seconds,
        void: &Void,
        audit: &AuditEntry,
    ) -> Result<bool, Error> {
        let doing = || failed(format!("revoke node {node}"));
        let mut tx = self.begin_write().await.map_err(doing())?;
        if !is_as_seen(&mut tx, node, seen).await? {
            return Ok(false);
        }
        let marked = sqlx::query("UPDATE members SET revoked = coalesce(revoked, ?) WHERE node_id = ?")
            .bind(to_sql(at))
            .bind(node.as_str())
            .execute(&mut *tx)
            .await
            .map_err(doing())?;
        if marked.rows_affected() == 0 {
            return Ok(false);
        }
        write_void(&mut tx, void).await?;
        write_audit(&mut tx, audit).await?;
        tx.commit().await.map_err(doing())?;
        Ok(true)
    }

    async fn remove_member(&self, node: &NodeId, seen: Option<&Member>, audit: &AuditEntry) -> Result<bool, Error> {
        let doing = || failed(format!("remove node {node}"));
        let mut tx = self.begin_write().await.map_err(doing())?;
        if !is_as_seen(&mut tx, node, seen).await? {
            return Ok(false);
        }
        let delete = sqlx::query("DELETE FROM members WHERE node_id = ?").bind(node.as_str());
        if delete.execute(&mut *tx).await.map_err(doing())?.rows_affected() == 0 {
            return Ok(false);
        }
        write_audit(&mut tx, audit).await?;
        tx.commit().await.map_err(doing())?;
        Ok(true)
    }

    async fn void(&self, voids: &[Void]) -> Result<(), Error> {
        let doing = || failed("declare certificates void");
        let mut tx = self.begin_write().await.map_err(doing())?;
        for void in voids {
            write_void(&mut tx, void).await?;
        }
        tx.commit().await.map_err(doing())
    }

    async fn voids(&self, now: Seconds) -> Result<Vec<Void>, Error> {
        let doing = || failed("read void certificates");
        let mut tx = self.begin_write().await.map_err(doing())?;
        sqlx::query("DELETE FROM voids WHERE forget <= ?").bind(to_sql(now)).execute(&mut *tx).await.map_err(doing())?;
        let rows: Vec<(String, i64, i64)> =
            sqlx::query_as("SELECT node_id, before, forget FROM voids ORDER BY node_id")
                .fetch_all(&mut *tx)
                .await
                .map_err(doing())?;
        tx.commit().await.map_err(doing())?;
        let void = |(id, before, forget): (String, i64, i64)| {
            Ok(Void { node: node_id(&id)?, before: from_sql(before), forget: from_sql(forget) })
        };
        rows.into_iter().map(void).collect()
    }

    async fn add_api_token(&self, token: &ApiTokenRow, audit: &AuditEntry) -> Result<(), Error> {
        let doing = || failed("write an API token");
        let clusters = token.clusters.as_ref().map(|clusters| serde_json::json!(clusters).to_string());
        let mut tx = self.begin_write().await.map_err(doing())?;
        let insert =
            "INSERT INTO api_tokens (id, name, hash, role, clusters, created, expires) VALUES (?, ?, ?, ?, ?, ?, ?)";
        let written = sqlx::query(insert)
            .bind(&token.id)
            .bind(&token.name)
            .bind(token.hash.as_slice())
            .bind(token.role.as_str())
            .bind(clusters)
            .bind(to_sql(token.created))
            .bind(token.expires.map(to_sql))
            .execute(&mut *tx)
            .await;
        written.map_err(|error| match error.as_database_error() {
            Some(cause) if cause.is_unique_violation() && cause.message().contains("api_tokens.name") => {
                Error::NameTaken(token.name.clone())
            }
            _ => doing()(error),
        })?;
        write_audit(&mut tx, audit).await?;
        tx.commit().await.map_err(doing())
    }

    async fn api_tokens(&self) -> Result<Vec<ApiTokenRow>, Error> {
        let rows: Vec<ApiRow> = sqlx::query_as(
            "SELECT id, name, hash, role, clusters, created, expires FROM api_tokens ORDER BY created, id",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed("read API tokens"))?;
        rows.into_iter().map(api_token).collect()
    }

    async fn remove_api_token(&self, id: &str, audit: &AuditEntry) -> Result<bool, Error> {
        self.remove("DELETE FROM api_tokens WHERE id = ?", id, audit).await
    }

    async fn audit_of(&self, filter: &AuditFilter, most: u32) -> Result<Vec<AuditRow>, Error> {
        let mut query = QueryBuilder::new("");
        audit_query(&mut query, filter, most);
        let rows: Vec<AuditLine> =
            query.build_query_as().fetch_all(&self.pool).await.map_err(failed("read the audit log"))?;
        rows.into_iter().map(audit_row).collect()
    }
}

/// Appends the question for those entries. Only what narrows is in it, or SQLite would use no index.
fn audit_query(query: &mut QueryBuilder<Sqlite>, filter: &AuditFilter, most: u32) {
    let AuditFilter { before, who, action, subject, since, until } = filter;
    query.push("SELECT seq, at, who, action, subject, before, after FROM audit WHERE TRUE");
    if let Some(before) = before {
        query.push(" AND seq < ").push_bind(to_sql(*before));
    }
    for (column, value) in [(" AND who = ", who), (" AND subject = ", subject)] {
        if let Some(value) = value {
            query.push(column).push_bind(value.clone());
        }
    }
    if let Some(action) = action {
        // All that begin with it and a dot are between it with a dot and it with what comes behind a dot in ASCII.
        query.push(" AND (action = ").push_bind(action.clone());
        query.push(" OR (action >= ").push_bind(format!("{action}.")).push(" AND action < ");
        query.push_bind(format!("{action}/")).push("))");
    }
    for (column, second) in [(" AND at >= ", since), (" AND at < ", until)] {
        if let Some(second) = second {
            query.push(column).push_bind(to_sql(*second));
        }
    }
    query.push(" ORDER BY seq DESC LIMIT ").push_bind(i64::from(most));
}

impl SqliteStore {
    async fn remove(&self, sql: &'static str, id: &str, audit: &AuditEntry) -> Result<bool, Error> {
        let doing = || failed(format!("remove {id}"));
        let mut tx = self.begin_write().await.map_err(doing())?;
        let removed = sqlx::query(sql).bind(id).execute(&mut *tx).await.map_err(doing())?;
        if removed.rows_affected() == 0 {
            return Ok(false);
        }
        write_audit(&mut tx, audit).await?;
        tx.commit().await.map_err(doing())?;
        Ok(true)
    }
}

/// Writes an entry in the transaction of the change that it tells of.
pub(super) async fn write_audit(connection: &mut SqliteConnection, entry: &AuditEntry) -> Result<(), Error> {
    sqlx::query("INSERT INTO audit (at, who, action, subject, before, after) VALUES (?, ?, ?, ?, ?, ?)")
        .bind(to_sql(entry.at))
        .bind(&entry.who)
        .bind(&entry.action)
        .bind(&entry.subject)
        .bind(entry.before.as_ref().map(ToString::to_string))
        .bind(entry.after.as_ref().map(ToString::to_string))
        .execute(connection)
        .await
        .map_err(failed("write the audit log"))?;
    Ok(())
}

async fn write_void(connection: &mut SqliteConnection, void: &Void) -> Result<(), Error> {
    let upsert = "INSERT INTO voids (node_id, before, forget) VALUES (?, ?, ?) ON CONFLICT (node_id) \
                  DO UPDATE SET before = max(before, excluded.before), forget = max(forget, excluded.forget)";
    sqlx::query(upsert)
        .bind(void.node.as_str())
        .bind(to_sql(void.before))
        .bind(to_sql(void.forget))
        .execute(connection)
        .await
        .map_err(failed(format!("declare certificates of node {} void", void.node)))?;
    Ok(())
}

/// Writes a member that was not there.
async fn write_member(tx: &mut SqliteConnection, member: &Member) -> Result<(), sqlx::Error> {
    let insert = "INSERT INTO members (node_id, key, cluster_id, seed, joined_by, joined, revoked) \
                  VALUES (?, ?, ?, ?, ?, ?, NULL)";
    sqlx::query(insert)
        .bind(member.node.as_str())
        .bind(member.key.as_slice())
        .bind(member.cluster.as_ref().map(ClusterId::as_str))
        .bind(member.seed)
        .bind(&member.joined_by)
        .bind(to_sql(member.joined))
        .execute(tx)
        .await
        .map(drop)
}

async fn read_member(connection: &mut SqliteConnection, node: &NodeId) -> Result<Option<Member>, Error> {
    let row: Option<MemberRow> = sqlx::query_as(sqlx::AssertSqlSafe(format!("{MEMBER} WHERE node_id = ?")))
        .bind(node.as_str())
        .fetch_optional(connection)
        .await
        .map_err(failed("read members"))?;
    row.map(member).transpose()
}

/// Whether a member is in the state in which somebody saw it. Asked in a transaction that writes, so that it stays so.
async fn is_as_seen(connection: &mut SqliteConnection, node: &NodeId, seen: Option<&Member>) -> Result<bool, Error> {
    match seen {
        Some(seen) => Ok(read_member(connection, node).await?.as_ref() == Some(seen)),
        None => Ok(true),
    }
}

fn join_token(row: JoinRow) -> Result<JoinTokenRow, Error> {
    let (id, hash, cluster, seed, expires, uses_left, created, created_by) = row;
    Ok(JoinTokenRow {
        hash: hash_of(hash, &id)?,
        cluster: cluster.as_deref().map(cluster_id).transpose()?,
        seed,
        expires: from_sql(expires),
        uses_left: u32::try_from(uses_left).unwrap_or(u32::MAX),
        created: from_sql(created),
        created_by,
        id,
    })
}

fn member(row: MemberRow) -> Result<Member, Error> {
    let (id, key, cluster, seed, joined_by, joined, revoked) = row;
    Ok(Member {
        node: node_id(&id)?,
        key: hash_of(key, &id)?,
        cluster: cluster.as_deref().map(cluster_id).transpose()?,
        seed,
        joined_by,
        joined: from_sql(joined),
        revoked: revoked.map(from_sql),
    })
}

fn api_token(row: ApiRow) -> Result<ApiTokenRow, Error> {
    let (id, name, hash, role, clusters, created, expires) = row;
    let unreadable = |what: &str| Error::failed(format!("read the {what} of API token {name}"));
    let role = serde_json::from_value::<Role>(role.into()).map_err(|error| unreadable("role")(Box::new(error)))?;
    let clusters = clusters.map(|text| serde_json::from_str(&text)).transpose();
    let clusters = clusters.map_err(|error| unreadable("clusters")(Box::new(error)))?;
    let hash = hash_of(hash, &id)?;
    Ok(ApiTokenRow { id, name, hash, role, clusters, created: from_sql(created), expires: expires.map(from_sql) })
}

fn audit_row(row: AuditLine) -> Result<AuditRow, Error> {
    let (seq, at, who, action, subject, before, after) = row;
    let json = |text: Option<String>| {
        let value = text.map(|text| serde_json::from_str(&text)).transpose();
        value.map_err(|error| Error::failed(format!("read entry {seq} of the audit log"))(Box::new(error)))
    };
    let (before, after) = (json(before)?, json(after)?);
    Ok(AuditRow { seq: from_sql(seq), entry: AuditEntry { at: from_sql(at), who, action, subject, before, after } })
}

fn hash_of(bytes: Vec<u8>, of: &str) -> Result<Sha256, Error> {
    let wrong = |bytes: Vec<u8>| format!("it has {} bytes, not 32", bytes.len());
    bytes.try_into().map_err(|bytes| Error::failed(format!("read the hash of {of}"))(wrong(bytes).into()))
}

fn node_id(text: &str) -> Result<NodeId, Error> {
    text.parse().map_err(|error| Error::failed(format!("read node id {text:?}"))(Box::new(error)))
}

fn cluster_id(text: &str) -> Result<ClusterId, Error> {
    text.parse().map_err(|error| Error::failed(format!("read cluster id {text:?}"))(Box::new(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_audit_log_is_not_read_from_end_to_end_for_what_is_rare_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).await.unwrap();
        let some = |text: &str| Some(text.to_owned());
        for (filter, index) in [
            (AuditFilter { who: some("ci"), ..AuditFilter::default() }, "audit_who"),
            (AuditFilter { who: some("ci"), before: Some(1 << 40), ..AuditFilter::default() }, "audit_who"),
            (AuditFilter { subject: some("west"), ..AuditFilter::default() }, "audit_subject"),
            (AuditFilter { action: some("cluster"), ..AuditFilter::default() }, "audit_action"),
            (AuditFilter { since: Some(7), until: Some(9), ..AuditFilter::default() }, "audit_at"),
            (AuditFilter { since: Some(7), until: Some(9), who: some("ci"), ..AuditFilter::default() }, "audit_who"),
        ] {
            let mut query = QueryBuilder::new("EXPLAIN QUERY PLAN ");
            audit_query(&mut query, &filter, 101);
            let plan: Vec<(i64, i64, i64, String)> = query.build_query_as().fetch_all(&store.pool).await.unwrap();
            let steps: Vec<&str> = plan.iter().map(|(_, _, _, step)| step.as_str()).collect();
            assert!(steps.iter().any(|step| step.contains(index)), "{filter:?}: {steps:?}");
            assert!(!steps.iter().any(|step| step.starts_with("SCAN")), "{filter:?}: {steps:?}");
        }
    }
}
