//! What outlives the process of preheat jobs.

use async_trait::async_trait;

use super::{AuditEntry, Error, Seconds};

/// The durable part of preheats. Rules and the meaning of a job are [`crate::preheat`]'s.
#[async_trait]
pub trait Preheats: Send + Sync + 'static {
    /// Keeps a job, new or changed, and the audit entry, if the change is somebody's. Never moves a job in the order.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn put_preheat(&self, row: &PreheatRow, audit: Option<&AuditEntry>) -> Result<(), Error>;

    /// A job.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn preheat(&self, id: &str) -> Result<Option<PreheatRow>, Error>;

    /// Jobs that were made before that one, newest first, at most `most`. `None`: from the newest one. Of a job that is not there,
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn preheats(&self, before: Option<&str>, most: u32) -> Result<Vec<PreheatRow>, Error>;

    /// All jobs that go on, oldest first.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn running_preheats(&self) -> Result<Vec<PreheatRow>, Error>;

    /// Forgets all but the newest `keep` of those that ended. The answer is how many went.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn prune_preheats(&self, keep: u32) -> Result<u64, Error>;
}

/// A job as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreheatRow {
    /// Never given twice.
    pub id: String,
    /// When it was made.
    pub created: Seconds,
    /// When it ended; `None`: it goes on.
    pub ended: Option<Seconds>,
    /// The whole of it.
    pub job: serde_json::Value,
}
