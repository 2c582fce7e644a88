//! A copy of the database, made while it is in use.
//!
//! `VACUUM INTO` (sqlite.org/lang_vacuum.html) reads in one transaction, so that the copy is of one moment, and writers go on beside it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};

use super::{DATABASE, Error, PATIENCE, SqliteStore, fault, io_failed, refuse_emptied};

/// As [`crate::store::backup`] says.
pub(in crate::store) async fn backup(state_dir: &Path, to: &Path) -> Result<(), Error> {
    SqliteStore::must_be_in(state_dir)?;
    refuse_emptied(state_dir)?;
    let from = state_dir.join(DATABASE);
    // For the owner alone before there is anything in it; SQLite writes into an empty file that is there.
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    made.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists { path: to.to_owned() },
        _ => io_failed(format!("make backup {}", to.display()))(error),
    })?;
    let copied = copy(&from, to).await;
    if copied.is_err() {
        let _ = std::fs::remove_file(to);
    }
    copied
}

async fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let pool = open(from).await.map_err(|error| fault::database(from, "open", error))?;
    let target = to.to_str().ok_or_else(|| {
        io_failed(format!("make backup {}", to.display()))(io::Error::new(io::ErrorKind::InvalidInput, "is not UTF-8"))
    })?;
    let written = sqlx::query("VACUUM INTO ?").bind(target).execute(&pool).await;
    pool.close().await;
    written.map_err(|error| fault::database(from, "copy", error))?;
    // Nobody keeps a backup that can't be read.
    let copy = open(to).await.map_err(|error| fault::database(to, "open", error))?;
    let checked = fault::check(&copy, to).await;
    copy.close().await;
    checked?;
    let synced = File::open(to).and_then(|file| file.sync_all());
    synced.map_err(io_failed(format!("write backup {}", to.display())))
}

async fn open(path: &Path) -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(false).busy_timeout(PATIENCE);
    SqlitePoolOptions::new().max_connections(1).acquire_timeout(PATIENCE).connect_with(options).await
}
