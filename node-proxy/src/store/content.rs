//! What containerd's content store asks of a store, beside [`Store`].
//!
//! A held blob is *claimed* when containerd knows of it: it then stays, whatever the quota says. What becomes held by a flight
//! is cache, until containerd asks for it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use shoal_proto::{Digest, NodeId};

use super::ingest::Labelled;
use super::{Ingest, Store, StoreError};

/// Labels of a blob.
pub type Labels = BTreeMap<String, String>;

/// A blob that is containerd's.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The blob.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// When it became held, in nanoseconds since 1970.
    pub created: u64,
    /// When its labels changed last, else as `created`.
    pub updated: u64,
    pub(super) labels: Option<Arc<Labelled>>,
}

impl Claimed {
    /// Its labels.
    pub fn labels(&self) -> impl Iterator<Item = (&String, &String)> {
        self.labels.iter().flat_map(|labelled| &labelled.labels)
    }

    /// One of its labels.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.as_ref()?.labels.get(key).map(String::as_str)
    }
}

/// How labels change.
#[derive(Debug, Clone)]
pub enum LabelUpdate {
    /// They become these.
    All(Labels),
    /// These change, and the others stay. An empty value removes a label.
    Some(Labels),
}

/// What containerd is writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngestStatus {
    /// containerd's name of it.
    pub reference: String,
    /// Bytes so far.
    pub offset: u64,
    /// Bytes of the whole, as it was said at the start; 0: not said.
    pub total: u64,
    /// Nanoseconds since 1970.
    pub started: u64,
    /// Nanoseconds since 1970.
    pub updated: u64,
}

/// How an ingest is to become a blob.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Bytes that it must have; 0: any.
    pub total: u64,
    /// What it must be.
    pub expected: Option<Digest>,
    /// Who vouches for the piece list: this node.
    pub author: NodeId,
    /// Content-Type, when it is a manifest; else empty.
    pub media_type: Arc<str>,
    /// Labels of the blob.
    pub labels: Labels,
}

/// Why an ingest does not go on.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// Somebody else writes it. Ask again.
    #[error("it is being written by somebody else")]
    Locked,
    /// The write is not where the ingest ends. It stays as it is.
    #[error("the write is at {asked}, and the ingest ends at {offset}")]
    Offset {
        /// Where the ingest ends.
        offset: u64,
        /// Where the write would be.
        asked: u64,
    },
    /// It is not what it should be. It stays as it is.
    #[error("it is {have}, and should be {want}")]
    Unexpected {
        /// What it is.
        have: String,
        /// What was wanted.
        want: String,
    },
    /// The blob is held already, and is claimed now. The ingest is gone.
    #[error("{0} is there already")]
    Exists(Digest),
    /// It was aborted or committed in the meantime.
    #[error("it was aborted")]
    Gone,
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Blobs that are containerd's, and what it writes.
#[async_trait::async_trait]
pub trait Content: Store {
    /// Claims a held blob: a look-up in memory. `None`: it is not held.
    fn claim(&self, digest: &Digest) -> Option<Claimed>;

    /// Gives a claim up: the blob is cache from now on, and goes at once where more than the quota is held (I11). False: it was not
    /// claimed.
    async fn unclaim(&self, digest: &Digest) -> bool;

    /// Everything that is claimed, in no order.
    fn claimed(&self) -> Vec<Claimed>;

    /// A moment: later than every claim before, and earlier than every claim after.
    fn moment(&self) -> u64;

    /// Gives up every claim that was made until a moment and whose blob is not `known`, and lets go what is above the quota.
    /// How many claims those were.
    async fn unclaim_others(&self, known: HashSet<Digest>, until: u64) -> usize;

    /// Changes the labels of a held blob, for good when it returns. `None`: it is not held.
    ///
    /// # Errors
    /// [`StoreError`]; the labels are as they were.
    async fn label(&self, digest: &Digest, update: LabelUpdate) -> Result<Option<Claimed>, StoreError>;

    /// Opens an ingest, and makes it if it is not there. Nobody else writes it until the answer is dropped, and what it asked for
    /// is done. What an earlier daemon left is read once, since only the bytes tell their hash. One with another total begins anew.
    ///
    /// # Errors
    /// [`IngestError::Locked`] when somebody writes it for longer than a moment.
    async fn ingest(&self, reference: &str, total: u64) -> Result<Ingest, IngestError>;

    /// Every ingest, in no order.
    fn ingests(&self) -> Vec<IngestStatus>;

    /// One of them.
    fn ingest_status(&self, reference: &str) -> Option<IngestStatus>;

    /// Throws an ingest away, whoever writes it. False: there is none.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    async fn abort(&self, reference: &str) -> Result<bool, StoreError>;
}
