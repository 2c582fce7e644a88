//! The files of an ingest and of labels, and the hashes that run along while an ingest is written. Pure, but for reading a file.

mod sums;

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::content::Labels;

pub(super) use sums::{Cut, Sums};

/// The bytes of an ingest, in its directory.
pub(super) const DATA: &str = "data";
/// What is known of it.
pub(super) const STATE: &str = "state";
/// About to be renamed to that.
pub(super) const NEW: &str = "new";

/// The SHA-256 of the reference: a name that fits any file system.
pub(super) type Key = [u8; 32];

pub(super) fn key_of(reference: &str) -> Key {
    Sha256::digest(reference).into()
}

/// What the disk remembers of an ingest beside its bytes. It is replaced, never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) reference: String,
    pub(super) total: u64,
    pub(super) started: u64,
    /// So many bytes are on disk whatever happens.
    pub(super) durable: u64,
    /// All bytes are trusted while the machine runs.
    pub(super) boot_id: String,
}

impl State {
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers are JSON")
    }
}

/// Labels of a blob, with the time of their last change in nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Labelled {
    pub(super) updated: u64,
    pub(super) labels: Labels,
}

impl Labelled {
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers are JSON")
    }
}
