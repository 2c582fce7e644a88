//! What containerd and its clients reach through unix sockets: a socket in front of containerd, and a content store behind it.
//!
//! Owns the sockets, what is said on them in containerd's words, and what containerd is asked. Does not own bytes: they come
//! from `blob` (what the cluster has) and from `store` (what this node has on disk).
//!
//! What always holds: what is not ours passes unchanged, and what containerd says comes first; nothing is claimed to containerd
//! that is not held and verified.
//!
//! Source: containerd's `api/` and `plugins/content`, read in 1.6, 1.7, 2.1 and 2.3; decision 013.

use std::path::PathBuf;

pub mod client;
pub mod content;
pub mod forward;
pub mod socket;
pub mod stock;

/// The server's side of `containerd.services.content.v1`, over the messages of `containerd-client`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::too_many_lines)]
pub mod api {
    include!(concat!(env!("OUT_DIR"), "/containerd.services.content.v1.Content.rs"));
}

/// `google.protobuf.Empty`.
pub type Empty = ();

/// What becomes of a blob that containerd removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// It stays as cache, within the quota.
    Keep,
    /// It goes.
    Withdraw,
}

/// Where containerd is, and how it uses this node.
#[derive(Debug, Clone)]
pub struct Config {
    /// The socket of the real containerd.
    pub address: PathBuf,
    /// containerd's own directory, `root` in its settings.
    pub root: PathBuf,
    /// The socket in front of containerd; `None`: there is none.
    pub listen: Option<PathBuf>,
    /// The socket of the content store; `None`: containerd keeps its own.
    pub content_listen: Option<PathBuf>,
    /// Where what was found out of containerd's files is kept.
    pub state_dir: PathBuf,
    /// Bytes of containerd's that are hashed in a second, at most; 0 for no bound.
    pub hash_rate: u64,
    /// What becomes of a blob that containerd removed.
    pub removed: Removed,
    /// Whether held blobs are linked into containerd's store before it asks for them.
    pub content_link: bool,
    /// The directory that transfers of registry images are told to find their hosts in.
    pub hosts_dir: PathBuf,
}
