//! Which cluster a node belongs to: pure functions from clusters' scopes and a node's facts to a decision.
//!
//! Owns the meaning of a scope ([`ClusterScope`]), of a node's facts ([`Facts`]), the rules by which a set of clusters
//! is accepted or refused ([`Scopes::check`]) and the rules by which one of them wins ([`Scopes::decide`]). Owns no
//! clock, no storage and no live nodes: [`crate::clusters`] keeps the set, `nodes` keeps who is alive.
//!
//! Source of truth: DESIGN section 6, and `scope/vectors.json`, the table that states it case by case. In short:
//!
//! 1. The longest CIDR prefix that holds the node's address wins, whatever else matches. Among equals a cluster that
//!    names the node's IDC; among equals the longest location path that is a prefix of the node's; then the oldest
//!    cluster. A cluster that matches on nothing is out.
//! 2. Nothing matched: the default cluster; without one the node runs alone.
//! 3. A pin outranks all of this; a pin to a name that does not exist means alone, never a guess.
//!
//! Text compares trimmed and without regard to case; see [`fold`] for what that means beyond ASCII.

mod check;
mod decide;
mod facts;
mod file;
#[doc(hidden)]
pub mod fuzz;
mod index;
mod network;
mod text;

#[cfg(test)]
mod tests;

pub use check::{ClusterScope, Refusal, Scopes};
pub use decide::{Considered, Decision, Explanation};
pub use facts::{BadFact, Facts};
pub use file::{FileError, parse_file};
pub use text::fold;
