//! What outlives the process of preheat jobs.

use std::collections::BTreeSet;

use async_trait::async_trait;
use shoal_proto::ClusterId;

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

    /// Those jobs of the filter that were made before that one, in short, newest first, at most `most`. `None`: from the newest one.
    /// Of a job that is not there, nothing. Costs what the answer holds, not what the jobs do.
    ///
    /// # Errors
    /// [`Error::Failed`].
    async fn preheats(
        &self,
        filter: &PreheatFilter,
        before: Option<&str>,
        most: u32,
    ) -> Result<Vec<PreheatShort>, Error>;

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
    /// When and how it ended; `None`: it goes on.
    pub ended: Option<(Seconds, Outcome)>,
    /// Of which cluster it is.
    pub cluster: ClusterId,
    /// What lists show of it.
    pub short: serde_json::Value,
    /// The whole of it.
    pub job: serde_json::Value,
}

/// A job as lists read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreheatShort {
    /// Its id.
    pub id: String,
    /// As it was put.
    pub short: serde_json::Value,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All of it is held.
    Done,
    /// Some of it is not.
    Failed,
    /// It was taken back.
    Cancelled,
}

impl Outcome {
    /// As it is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Which jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PreheatFilter {
    /// Of these clusters; `None`: of all.
    pub clusters: Option<BTreeSet<ClusterId>>,
    /// How far they are.
    pub standing: Standing,
}

/// How far a job is, as far as it is stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Standing {
    /// Whatever it is like.
    #[default]
    Any,
    /// It goes on.
    Open,
    /// It ended so.
    Ended(Outcome),
}
