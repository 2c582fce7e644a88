//! What is wrong with a database file, told so that somebody can mend it.

use std::io;
use std::path::Path;

use sqlx::SqlitePool;

use super::Error;

/// Primary result codes of SQLite (sqlite.org/rescode.html); the low byte of what it reports.
const READONLY: u32 = 8;
const CORRUPT: u32 = 11;
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

/// An error of SQLite.
pub(super) fn database(path: &Path, verb: &str, error: sqlx::Error) -> Error {
    let code = error.as_database_error().and_then(|error| error.code()).and_then(|code| code.parse::<u32>().ok());
    let (path, reason) = (path.to_owned(), error.to_string());
    match code.map(|code| code & 0xff) {
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
