//! The table of migrations 0003 and 0005.

use async_trait::async_trait;

use super::super::{AuditEntry, Error, Outcome, PreheatFilter, PreheatRow, PreheatShort, Preheats, Standing};
use super::identities::write_audit;
use super::{SqliteStore, failed, from_sql, to_sql};

type Row = (String, i64, Option<i64>, String, Option<String>, String, String);

const COLUMNS: &str = "SELECT id, created, ended, cluster, outcome, short, job FROM preheats";

#[async_trait]
impl Preheats for SqliteStore {
    async fn put_preheat(&self, row: &PreheatRow, audit: Option<&AuditEntry>) -> Result<(), Error> {
        let doing = || failed(format!("write preheat {}", row.id));
        let mut tx = self.begin_write().await.map_err(doing())?;
        let upsert = "INSERT INTO preheats (id, created, ended, cluster, outcome, short, job) VALUES (?, ?, ?, ?, ?, ?, ?) \
                      ON CONFLICT (id) DO UPDATE SET ended = excluded.ended, outcome = excluded.outcome, \
                      short = excluded.short, job = excluded.job";
        sqlx::query(upsert)
            .bind(&row.id)
            .bind(to_sql(row.created))
            .bind(row.ended.map(|(at, _)| to_sql(at)))
            .bind(row.cluster.as_str())
            .bind(row.ended.map(|(_, how)| how.as_str()))
            .bind(row.short.to_string())
            .bind(row.job.to_string())
            .execute(&mut *tx)
            .await
            .map_err(doing())?;
        if let Some(entry) = audit {
            write_audit(&mut tx, entry).await?;
        }
        tx.commit().await.map_err(doing())
    }

    async fn preheat(&self, id: &str) -> Result<Option<PreheatRow>, Error> {
        let sql = format!("{COLUMNS} WHERE id = ?");
        let row: Option<Row> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed(format!("read preheat {id}")))?;
        row.map(preheat).transpose()
    }

    async fn preheats(
        &self,
        filter: &PreheatFilter,
        before: Option<&str>,
        most: u32,
    ) -> Result<Vec<PreheatShort>, Error> {
        let sql = "SELECT id, short FROM preheats \
             WHERE seq < coalesce((SELECT seq FROM preheats WHERE id = ?1), iif(?1 IS NULL, 9223372036854775807, 0)) \
             AND (?2 IS NULL OR cluster IN (SELECT value FROM json_each(?2))) \
             AND (?3 IS NULL OR coalesce(outcome, 'open') = ?3) ORDER BY seq DESC LIMIT ?4";
        let clusters = filter.clusters.as_ref().map(|clusters| serde_json::json!(clusters).to_string());
        let standing = match filter.standing {
            Standing::Any => None,
            Standing::Open => Some("open"),
            Standing::Ended(outcome) => Some(outcome.as_str()),
        };
        let rows: Vec<(String, String)> = sqlx::query_as(sql)
            .bind(before)
            .bind(clusters)
            .bind(standing)
            .bind(i64::from(most))
            .fetch_all(&self.pool)
            .await
            .map_err(failed("read preheats"))?;
        let short = |(id, short): (String, String)| Ok(PreheatShort { short: json(&id, &short)?, id });
        rows.into_iter().map(short).collect()
    }

    async fn running_preheats(&self) -> Result<Vec<PreheatRow>, Error> {
        let sql = format!("{COLUMNS} WHERE ended IS NULL ORDER BY seq");
        let rows: Vec<Row> =
            sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(&self.pool).await.map_err(failed("read preheats"))?;
        rows.into_iter().map(preheat).collect()
    }

    async fn prune_preheats(&self, keep: u32) -> Result<u64, Error> {
        let pruned = sqlx::query(
            "DELETE FROM preheats WHERE ended IS NOT NULL AND seq NOT IN \
             (SELECT seq FROM preheats WHERE ended IS NOT NULL ORDER BY seq DESC LIMIT ?)",
        )
        .bind(i64::from(keep))
        .execute(&self.pool)
        .await
        .map_err(failed("forget old preheats"))?;
        Ok(pruned.rows_affected())
    }
}

fn preheat((id, created, ended, cluster, outcome, short, job): Row) -> Result<PreheatRow, Error> {
    let wrong = |why: String| Error::failed(format!("read preheat {id}"))(why.into());
    let outcome = match outcome.as_deref() {
        None => None,
        Some("done") => Some(Outcome::Done),
        Some("failed") => Some(Outcome::Failed),
        Some("cancelled") => Some(Outcome::Cancelled),
        Some(other) => return Err(wrong(format!("no job ends {other:?}"))),
    };
    let cluster = cluster.parse().map_err(|error| wrong(format!("cluster {cluster:?}: {error}")))?;
    let (short, job) = (json(&id, &short)?, json(&id, &job)?);
    Ok(PreheatRow { created: from_sql(created), ended: ended.map(from_sql).zip(outcome), cluster, short, job, id })
}

fn json(id: &str, text: &str) -> Result<serde_json::Value, Error> {
    serde_json::from_str(text).map_err(|error| Error::failed(format!("read preheat {id}"))(Box::new(error)))
}
