//! What is wrong with a database file, told so that somebody can mend it.

use std::io;
use std::path::Path;

use sqlx::{Connection as _, SqliteConnection, SqlitePool};

use super::Error;

/// Primary result codes of SQLite (sqlite.org/rescode.html); the low byte of what it reports.
const READONLY: u32 = 8;
const CORRUPT: u32 = 11;
pub(super) const FULL: u32 = 13;
const NOT_A_DATABASE: u32 = 26;

/// Looks through the file, so that damage is found at the start and not by whoever happens to need the page.
pub(super) async fn check(pool: &SqlitePool, path: &Path) -> Result<(), Error> {
    let said: Result<Vec<(String,)>, _> = sqlx::query_as("PRAGMA quick_check(1)").fetch_all(pool).await;
    let said = said.map_err(|error| database(path, "check", error))?;
    match said.first() {
        Some((text,)) if text != "ok" => Err(Error::Damaged { path: path.to_owned(), reason: text.clone() }),
        _ => Ok(()),
    }
}

/// The primary result code of an error of SQLite.
pub(super) fn code(error: &sqlx::Error) -> Option<u32> {
    let code = error.as_database_error()?.code()?.parse::<u32>().ok()?;
    Some(code & 0xff)
}

/// Whether a connection can be used. After a disk that was full, or an error of the disk, SQLite has rolled a transaction back by itself; sqlx
/// still counts it as open and refuses to begin another, for as long as the connection lives.
pub(super) async fn is_usable(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    Ok(!connection.is_in_transaction())
}

/// An error of SQLite.
pub(super) fn database(path: &Path, verb: &str, error: sqlx::Error) -> Error {
    let (code, path, reason) = (code(&error), path.to_owned(), error.to_string());
    match code {
        Some(FULL) => Error::Full { doing: format!("{verb} database {}", path.display()) },
        Some(READONLY) => Error::ReadOnly { path, reason },
        Some(CORRUPT | NOT_A_DATABASE) => Error::Damaged { path, reason },
        _ => Error::failed(format!("{verb} database {}", path.display()))(Box::new(error)),
    }
}

/// An error of the system when the file was opened.
pub(super) fn opening(path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Error::ReadOnly { path: path.to_owned(), reason: error.to_string() }
        }
        _ => Error::failed(format!("open database {}", path.display()))(Box::new(error)),
    }
}
