//! Wire contracts of Shoal and the words that both sides of a wire parse into.
//!
//! Owns: `shoal.control.v1` (gRPC between node and control), the peer frame codec ([`frame`]), and the newtypes
//! [`Digest`], [`Layout`], [`BlockIndex`], [`PieceIndex`], [`NodeId`], [`ClusterId`], [`PieceList`], [`BlockSet`], and the names in
//! certificates ([`identity`]), and what authors of piece lists sign ([`statement`]). Does not own
//! sockets, clocks or state: everything here is pure.

mod blocks;
mod codec;
mod digest;
pub mod frame;
pub mod identity;
mod ids;
mod layout;
mod list;
pub mod statement;

pub use blocks::BlockSet;
pub use digest::{Digest, DigestError};
pub use ids::{ClusterId, IdError, NodeId};
pub use layout::{BlockIndex, Layout, LayoutError, PieceIndex};
pub use list::{Conflict, Hash, PieceList};

/// What kind of content a digest names; the OCI distribution spec has another path for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `/v2/<repository>/blobs/<digest>`
    Blob,
    /// `/v2/<repository>/manifests/<digest>`
    Manifest,
}

/// `shoal.control.v1`, generated from `proto/shoal/control/v1/control.proto`, whose comments are the documentation.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod control {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("shoal.control.v1");
    }
}
