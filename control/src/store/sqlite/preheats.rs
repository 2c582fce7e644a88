//! The table of migration 0003.

use async_trait::async_trait;

use super::super::{AuditEntry, Error, PreheatRow, Preheats};
use super::identities::write_audit;
use super::{SqliteStore, failed, from_sql, to_sql};

type Row = (String, i64, Option<i64>, String);

const COLUMNS: &str = "SELECT id, created, ended, job FROM preheats";

#[async_trait]
impl Preheats for SqliteStore {
    async fn put_preheat(&self, row: &PreheatRow, audit: Option<&AuditEntry>) -> Result<(), Error> {
        let doing = || failed(format!("write preheat {}", row.id));
        let mut tx = self.begin_write().await.map_err(doing())?;
        let upsert = "INSERT INTO preheats (id, created, ended, job) VALUES (?, ?, ?, ?) \
                      ON CONFLICT (id) DO UPDATE SET ended = excluded.ended, job = excluded.job";
        sqlx::query(upsert)
            .bind(&row.id)
            .bind(to_sql(row.created))
            .bind(row.ended.map(to_sql))
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

    async fn preheats(&self, before: Option<&str>, most: u32) -> Result<Vec<PreheatRow>, Error> {
        let below = "seq < coalesce((SELECT seq FROM preheats WHERE id = ?1), iif(?1 IS NULL, 9223372036854775807, 0))";
        let sql = format!("{COLUMNS} WHERE {below} ORDER BY seq DESC LIMIT ?2");
        let rows: Vec<Row> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(before)
            .bind(i64::from(most))
            .fetch_all(&self.pool)
            .await
            .map_err(failed("read preheats"))?;
        rows.into_iter().map(preheat).collect()
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

fn preheat((id, created, ended, job): Row) -> Result<PreheatRow, Error> {
    let job =
        serde_json::from_str(&job).map_err(|error| Error::failed(format!("read preheat {id}"))(Box::new(error)))?;
    Ok(PreheatRow { id, created: from_sql(created), ended: ended.map(from_sql), job })
}
