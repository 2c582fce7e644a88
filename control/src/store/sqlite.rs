use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqliteConnection, Transaction};

use super::{AuditEntry, Cluster, ClusterChange, ClusterSpec, ClusterTable, Error, Store};

mod backup;
mod fault;
mod identities;
mod preheats;

pub(super) use backup::backup;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// The name of the database in the state directory.
const DATABASE: &str = "control.db";

/// Locked for as long as the store is open.
const LOCK: &str = "control.lock";

/// One writer and a few readers; requests of people, so a handful is plenty.
const CONNECTIONS: u32 = 4;

/// How long a statement waits for another connection's write, and a caller for a connection. Writes take milliseconds;
/// what takes longer than this is a disk that hangs, and then an error is more use than waiting.
const PATIENCE: Duration = Duration::from_secs(5);

/// The durable store of one control process: an SQLite database in write-ahead mode.
///
/// The file and its directory are for the owner alone. A write is on disk when it is acknowledged (`synchronous=FULL`).
#[derive(Debug)]
pub struct SqliteStore {
    pool: SqlitePool,
    path: PathBuf,
    /// Device and inode of the database that is open.
    file: (u64, u64),
    /// Says by its being open that the directory is taken.
    _lock: File,
}

impl SqliteStore {
    /// Opens `control.db` in a directory, making both if they are not there, and brings its schema up to date.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::NewerSchema`], [`Error::Damaged`], [`Error::Emptied`], [`Error::Failed`].
    pub async fn open(dir: &Path) -> Result<Self, Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io_failed(format!("create state directory {}", dir.display())))?;
        let lock = lock(dir)?;
        let path = dir.join(DATABASE);
        refuse_emptied(dir)?;
        let file = create_private(&path).map_err(|error| fault::opening(&path, error))?;

        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(PATIENCE);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(PATIENCE)
            .before_acquire(|connection, _| Box::pin(fault::is_usable(connection)))
            .connect_with(options)
            .await
            .map_err(|error| fault::database(&path, "open", error))?;
        fault::check(&pool, &path).await?;
        migrate(&pool, &path).await?;
        Ok(Self { pool, path, file, _lock: lock })
    }

    /// Looks for the database, and makes none.
    ///
    /// # Errors
    /// [`Error::NoDatabase`].
    pub fn must_be_in(dir: &Path) -> Result<(), Error> {
        let path = dir.join(DATABASE);
        if path.exists() { Ok(()) } else { Err(Error::NoDatabase { path }) }
    }

    /// Closes the database, so that the write-ahead log is folded into it.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn clusters(&self) -> Result<ClusterTable, Error> {
        // One transaction, so that clusters, networks and generation are of one moment.
        let mut tx = self.pool.begin().await.map_err(failed("read clusters"))?;
        read(&mut tx).await
    }

    async fn change_clusters(
        &self,
        generation: u64,
        changes: &[ClusterChange],
        audit: &[AuditEntry],
    ) -> Result<ClusterTable, Error> {
        let mut tx = self.begin_write().await.map_err(failed("write clusters"))?;
        let moved = sqlx::query("UPDATE cluster_generation SET generation = generation + 1 WHERE generation = ?")
            .bind(to_sql(generation))
            .execute(&mut *tx)
            .await
            .map_err(failed("write clusters"))?;
        if moved.rows_affected() == 0 {
            return Err(Error::Conflict);
        }
        for change in super::deletions_first(changes) {
            write(&mut tx, change).await?;
        }
        for entry in audit {
            identities::write_audit(&mut tx, entry).await?;
        }
        let table = read(&mut tx).await?;
        tx.commit().await.map_err(failed("write clusters"))?;
        Ok(table)
    }

    async fn probe(&self) -> Result<(), Error> {
        // SQLite goes on writing to a file that was unlinked, and all of it would be lost.
        let there = std::fs::metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file);
        if !there {
            return Err(Error::Replaced { path: self.path.clone() });
        }
        let probe = async {
            let mut tx = self.begin_write().await?;
            sqlx::query("UPDATE probe SET count = count + 1").execute(&mut *tx).await?;
            sqlx::query("SELECT count FROM probe").fetch_one(&mut *tx).await?;
            tx.commit().await
        };
        probe.await.map_err(|error| fault::database(&self.path, "write to", error))
    }
}

impl SqliteStore {
    /// Takes the write lock at once, so that what is read in the transaction is what is written upon.
    async fn begin_write(&self) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
        self.pool.begin_with("BEGIN IMMEDIATE").await
    }
}

async fn migrate(pool: &SqlitePool, path: &Path) -> Result<(), Error> {
    MIGRATIONS.run(pool).await.map_err(|error| match error {
        MigrateError::VersionMissing(found) => Error::NewerSchema {
            path: path.to_owned(),
            found,
            known: MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0),
        },
        MigrateError::VersionMismatch(version) | MigrateError::Dirty(version) => {
            Error::OtherSchema { path: path.to_owned(), version }
        }
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            fault::database(path, "bring up to date the schema of", error)
        }
        other => Error::failed(format!("bring the schema of {} up to date", path.display()))(Box::new(other)),
    })
}

type ClusterRow = (i64, String, i64, String, bool, String, String);

async fn read(connection: &mut SqliteConnection) -> Result<ClusterTable, Error> {
    let doing = || failed("read clusters");
    let (generation,): (i64,) = sqlx::query_as("SELECT generation FROM cluster_generation")
        .fetch_one(&mut *connection)
        .await
        .map_err(doing())?;
    let rows: Vec<ClusterRow> =
        sqlx::query_as("SELECT seq, id, version, name, is_default, idc, location FROM clusters ORDER BY seq")
            .fetch_all(&mut *connection)
            .await
            .map_err(doing())?;
    let cidrs: Vec<(i64, String)> =
        sqlx::query_as("SELECT cluster_seq, cidr FROM cluster_cidrs ORDER BY cluster_seq, position")
            .fetch_all(&mut *connection)
            .await
            .map_err(doing())?;
    let mut cidrs = cidrs.into_iter().peekable();
    let mut clusters = Vec::with_capacity(rows.len());
    for (seq, id, version, name, default, idc, location) in rows {
        let id =
            id.parse().map_err(|error| Error::failed(format!("read the id of cluster {name}"))(Box::new(error)))?;
        let mut mine = Vec::new();
        while let Some((_, cidr)) = cidrs.next_if(|(owner, _)| *owner == seq) {
            mine.push(cidr);
        }
        let (seq, version) = (from_sql(seq), from_sql(version));
        clusters.push(Cluster { id, seq, version, name, default, idc, location, cidrs: mine });
    }
    Ok(ClusterTable { generation: from_sql(generation), clusters })
}

async fn write(connection: &mut SqliteConnection, change: &ClusterChange) -> Result<(), Error> {
    let (id, spec, sql) = match change {
        ClusterChange::Delete { id } => {
            let deleted = sqlx::query("DELETE FROM clusters WHERE id = ?")
                .bind(id.as_str())
                .execute(&mut *connection)
                .await
                .map_err(failed(format!("delete cluster {id}")))?;
            return if deleted.rows_affected() == 0 { Err(Error::NoCluster(id.clone())) } else { Ok(()) };
        }
        ClusterChange::Insert { id, spec } => (
            id,
            spec,
            "INSERT INTO clusters (version, name, is_default, idc, location, id) VALUES (1, ?, ?, ?, ?, ?) RETURNING seq",
        ),
        ClusterChange::Update { id, spec } => (
            id,
            spec,
            "UPDATE clusters SET version = version + 1, name = ?, is_default = ?, idc = ?, location = ? WHERE id = ? \
             RETURNING seq",
        ),
    };
    let doing = || format!("write cluster {id}");
    let ClusterSpec { name, default, idc, location, cidrs } = spec;
    let row: Option<(i64,)> = sqlx::query_as(sql)
        .bind(name)
        .bind(default)
        .bind(idc)
        .bind(location)
        .bind(id.as_str())
        .fetch_optional(&mut *connection)
        .await
        .map_err(|error| match error.as_database_error() {
            Some(cause) if cause.is_unique_violation() && cause.message().contains("clusters.name") => {
                Error::NameTaken(name.clone())
            }
            _ => failed(doing())(error),
        })?;
    let Some((seq,)) = row else { return Err(Error::NoCluster(id.clone())) };
    sqlx::query("DELETE FROM cluster_cidrs WHERE cluster_seq = ?")
        .bind(seq)
        .execute(&mut *connection)
        .await
        .map_err(failed(doing()))?;
    for (position, cidr) in (0_i64..).zip(cidrs) {
        sqlx::query("INSERT INTO cluster_cidrs (cluster_seq, position, cidr) VALUES (?, ?, ?)")
            .bind(seq)
            .bind(position)
            .bind(cidr)
            .execute(&mut *connection)
            .await
            .map_err(failed(doing()))?;
    }
    Ok(())
}

fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join(LOCK);
    let doing = || io_failed(format!("lock {}", path.display()));
    let file = private().open(&path).map_err(|error| fault::opening(&path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { path }),
        Err(TryLockError::Error(error)) => Err(doing()(error)),
    }
}

/// A start that broke off leaves an empty file too, but then there is no authority yet: a copy that broke off, or a disk that lost it,
/// must not be taken for a new database.
fn refuse_emptied(dir: &Path) -> Result<(), Error> {
    let path = dir.join(DATABASE);
    let is_empty = std::fs::metadata(&path).is_ok_and(|meta| meta.len() == 0);
    let beside = [super::AUTHORITY_KEY, super::AUTHORITY_CERTIFICATE].into_iter().find(|name| dir.join(name).exists());
    match beside {
        Some(beside) if is_empty => Err(Error::Emptied { path, beside }),
        _ => Ok(()),
    }
}

/// Makes the file before SQLite does, for the owner alone: the journals beside it take over its mode.
fn create_private(path: &Path) -> io::Result<(u64, u64)> {
    let file = private().open(path)?;
    let meta = file.metadata()?;
    if meta.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok((meta.dev(), meta.ino()))
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

fn failed(doing: impl Into<String>) -> impl FnOnce(sqlx::Error) -> Error {
    let doing = doing.into();
    move |error| match fault::code(&error) {
        Some(fault::FULL) => Error::Full { doing },
        _ => Error::failed(doing)(Box::new(error)),
    }
}

fn io_failed(doing: String) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::failed(doing)(Box::new(error))
}

/// Counts stay far below 2^63.
fn to_sql(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn from_sql(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

#[cfg(test)]
impl SqliteStore {
    /// Makes the database look as if a later release had written it.
    pub(super) async fn forge_later_schema(&self, version: i64) {
        sqlx::query(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (?, 'from the future', TRUE, x'00', 0)",
        )
        .bind(version)
        .execute(&self.pool)
        .await
        .unwrap();
    }

    /// Makes a step of the schema look as if another program had written it.
    pub(super) async fn forge_checksum(&self, version: i64) {
        let query = sqlx::query("UPDATE _sqlx_migrations SET checksum = x'00' WHERE version = ?").bind(version);
        query.execute(&self.pool).await.unwrap();
    }

    /// Makes SQLite run out of room, on every connection that is open now, as with a full disk; or makes room again.
    pub(super) async fn run_out(&self, out: bool) {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(self.pool.acquire().await.unwrap());
        }
        // No smaller than what is used already.
        let pragma = if out { "PRAGMA max_page_count = 1" } else { "PRAGMA max_page_count = 100000" };
        for connection in &mut connections {
            sqlx::query(pragma).execute(&mut **connection).await.unwrap();
        }
    }

    /// Makes SQLite refuse to write, on every connection, as it does for a file that is read-only.
    pub(super) async fn query_only(&self, on: bool) {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(self.pool.acquire().await.unwrap());
        }
        let pragma = if on { "PRAGMA query_only = ON" } else { "PRAGMA query_only = OFF" };
        for connection in &mut connections {
            sqlx::query(pragma).execute(&mut **connection).await.unwrap();
        }
    }
}
