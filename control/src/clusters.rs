//! The live set of clusters.
//!
//! Owns the one [`ClusterSet`] that is in force, checks each change against `scope` before it is written, and publishes
//! the new set to whoever watches: `nodes` moves live nodes from it within a second. Owns no nodes. The store is the
//! source of truth; the set in memory always has passed [`crate::scope::Scopes::check`].

mod live;
mod metrics;
mod set;
#[cfg(test)]
mod tests;

pub use crate::scope::{BadFact, Considered, Explanation, Facts, Refusal};
pub use crate::store::{Cluster, ClusterSpec};
pub use live::{Applied, ApplyMode, By, Change, Changed, Clusters, Config, Edit, Error, NodesOf, Plan, Planned, Reach};
pub use metrics::Metrics;
pub use set::{ClusterSet, Decision};
