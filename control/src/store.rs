//! What outlives the process: clusters and their scopes, who may join and who has joined, API tokens, preheat jobs, and the audit log.
//!
//! Owns the [`Store`], [`Identities`] and [`Preheats`] traits, their SQLite implementation ([`SqliteStore`], the default) and one in memory
//! ([`MemoryStore`], for tests and for programs that embed control). Owns no rules: what may be written is decided by
//! [`crate::clusters`] before it comes here. Who holds which blob is soft state and never comes here.
//!
//! What holds: all changes of one call are written together or not at all, and only if nobody else changed the
//! clusters since they were read ([`Error::Conflict`]); so a check of the whole set before a write stays true after it,
//! also with several processes on one database. One test suite (`store/suite.rs`) runs on every implementation.
//! What is written to the audit log is written with the change that it tells of, or neither. Of secrets only hashes come here.

mod identities;
mod memory;
mod preheats;
mod sqlite;
#[cfg(test)]
mod suite;
#[cfg(test)]
pub(crate) mod upgrade;

use async_trait::async_trait;
use shoal_proto::ClusterId;

pub use identities::{
    Admission, ApiTokenRow, AuditEntry, AuditFilter, AuditRow, Identities, JoinTokenFilter, JoinTokenRow, Joining,
    Member, MemberFilter, Role, Seconds, Sha256, Void,
};
pub use memory::MemoryStore;
pub use preheats::{Outcome, PreheatFilter, PreheatRow, PreheatShort, Preheats, Standing};
pub use sqlite::SqliteStore;

/// The certificate of the nodes' authority in the state directory; it is made after the database.
pub(crate) const AUTHORITY_CERTIFICATE: &str = "ca.pem";
/// Its key.
pub(crate) const AUTHORITY_KEY: &str = "ca.key";

/// Copies the database of a state directory to a new file, at one moment, also while a control service writes to it.
///
/// # Errors
/// [`Error::Exists`], [`Error::NoDatabase`], [`Error::Damaged`], [`Error::Emptied`], [`Error::Failed`]; no file is left then.
pub async fn backup(state_dir: &std::path::Path, to: &std::path::Path) -> Result<(), Error> {
    sqlite::backup(state_dir, to).await
}

/// The durable part of control.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// All clusters.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn clusters(&self) -> Result<ClusterTable, Error>;

    /// Writes all changes and the audit entries together, deletions first, and gives back what is stored then. Cancel safe: a dropped call
    /// has written all or nothing.
    ///
    /// # Errors
    /// [`Error::Conflict`] if `generation` is not that of the stored clusters any more, [`Error::NoCluster`] for a
    /// change of a cluster that is not there, [`Error::NameTaken`], [`Error::Failed`]. After an error nothing has
    /// changed.
    async fn change_clusters(
        &self,
        generation: u64,
        changes: &[ClusterChange],
        audit: &[AuditEntry],
    ) -> Result<ClusterTable, Error>;

    /// Whether the store can be read and written right now: it does both.
    ///
    /// # Errors
    /// [`Error::Failed`], [`Error::Replaced`].
    async fn probe(&self) -> Result<(), Error>;
}

/// All clusters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterTable {
    /// Count of writes that ever happened; 0 only on a store that was never written.
    pub generation: u64,
    /// Oldest first.
    pub clusters: Vec<Cluster>,
}

/// A stored cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Never changes, and is never given to another cluster.
    pub id: ClusterId,
    /// Age: the lower, the older; never used twice.
    pub seq: u64,
    /// Starts at 1 and grows by 1 with each update of this cluster.
    pub version: u64,
    /// Unique; may change.
    pub name: String,
    /// Whether nodes that match nothing come here.
    pub default: bool,
    /// Alternatives separated by bars; empty for none.
    pub idc: String,
    /// A path separated by bars; empty for none.
    pub location: String,
    /// Networks, in the order in which they were written.
    pub cidrs: Vec<String>,
}

/// What an operator says of a cluster; the rest of [`Cluster`] is the store's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterSpec {
    /// As in [`Cluster`].
    pub name: String,
    /// As in [`Cluster`].
    pub default: bool,
    /// As in [`Cluster`].
    pub idc: String,
    /// As in [`Cluster`].
    pub location: String,
    /// As in [`Cluster`].
    pub cidrs: Vec<String>,
}

impl Cluster {
    /// What the operator said.
    pub fn spec(&self) -> ClusterSpec {
        ClusterSpec {
            name: self.name.clone(),
            default: self.default,
            idc: self.idc.clone(),
            location: self.location.clone(),
            cidrs: self.cidrs.clone(),
        }
    }
}

/// One change of the clusters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterChange {
    /// A new cluster, younger than all before.
    Insert {
        /// New.
        id: ClusterId,
        /// What it is.
        spec: ClusterSpec,
    },
    /// Replaces all that an operator says of a cluster.
    Update {
        /// Which.
        id: ClusterId,
        /// What it is from now on.
        spec: ClusterSpec,
    },
    /// Removes a cluster.
    Delete {
        /// Which.
        id: ClusterId,
    },
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else changed the clusters: read them again and decide again.
    #[error("the clusters were changed by somebody else at the same time")]
    Conflict,
    /// A change of a cluster that is not stored.
    #[error("there is no cluster with the id {0}")]
    NoCluster(ClusterId),
    /// Another cluster, or another API token, has the name.
    #[error("another one is named {0}")]
    NameTaken(String),
    /// Another process has the state directory.
    #[error("{path} is locked: another shoal-control runs on this state directory")]
    Locked {
        /// The lock file.
        path: std::path::PathBuf,
    },
    /// The database was written by a later version of the program.
    #[error(
        "{path} has schema version {found}, but this shoal-control knows versions up to {known} only: \
         it was written by a later release; run that release, or restore a backup made before the upgrade"
    )]
    NewerSchema {
        /// The database.
        path: std::path::PathBuf,
        /// Version in the database.
        found: i64,
        /// Last version that this program knows.
        known: i64,
    },
    /// A step of the schema is not the one that this program has: somebody built another program, or changed the database by hand.
    #[error(
        "{path}: step {version} of the schema is not the one that this shoal-control has, or was left half done; \
         run the release that wrote it, or restore a backup"
    )]
    OtherSchema {
        /// The database.
        path: std::path::PathBuf,
        /// Which step.
        version: i64,
    },
    /// The database can be read at most.
    #[error(
        "{path} can't be written ({reason}): look at the owner and mode of the file and its directory, and at how the disk is mounted"
    )]
    ReadOnly {
        /// The database.
        path: std::path::PathBuf,
        /// What the system says.
        reason: String,
    },
    /// There is no room.
    #[error("{doing}: the disk that the database is on is full; make room, it goes on by itself")]
    Full {
        /// What was to be done.
        doing: String,
    },
    /// What is in the file is no database any more.
    #[error(
        "{path} is damaged ({reason}): stop shoal-control, keep the file for who looks into it, and put a backup in its place, \
         without the files control.db-wal and control.db-shm"
    )]
    Damaged {
        /// The database.
        path: std::path::PathBuf,
        /// What SQLite says.
        reason: String,
    },
    /// The database has nothing in it, and there was one.
    #[error(
        "{path} is damaged: it is empty, and {beside} says that a control service was here; put a backup in its place, or, to begin anew \
         with no clusters, tokens and members, move the whole directory away"
    )]
    Emptied {
        /// The database.
        path: std::path::PathBuf,
        /// What is beside it.
        beside: &'static str,
    },
    /// A backup is not written over something.
    #[error("{path} is there already: a backup is written to a new file")]
    Exists {
        /// The file.
        path: std::path::PathBuf,
    },
    /// There is no database to make a backup of, or to change beside the service.
    #[error("there is no {path}: is the state directory right?")]
    NoDatabase {
        /// The database.
        path: std::path::PathBuf,
    },
    /// The database file is gone or is another one than we opened.
    #[error("{path} was removed or replaced while shoal-control runs; restart it")]
    Replaced {
        /// The database.
        path: std::path::PathBuf,
    },
    /// The disk, the file or the database failed: nothing that the caller can do differently.
    #[error("{doing}")]
    Failed {
        /// Verb and object.
        doing: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ClusterChange {
    /// Which cluster it is about.
    pub const fn id(&self) -> &ClusterId {
        match self {
            Self::Insert { id, .. } | Self::Update { id, .. } | Self::Delete { id } => id,
        }
    }
}

impl Error {
    fn failed(doing: impl Into<String>) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Self {
        let doing = doing.into();
        move |source| Self::Failed { doing, source }
    }
}

/// Deletions free names that insertions may take.
fn deletions_first(changes: &[ClusterChange]) -> impl Iterator<Item = &ClusterChange> {
    let is_deletion = |change: &&ClusterChange| matches!(change, ClusterChange::Delete { .. });
    changes.iter().filter(is_deletion).chain(changes.iter().filter(move |change| !is_deletion(change)))
}
