//! What the rest of the cluster knows of a repository's access, for the hours in which its registry can't say (I5).

use std::time::Duration;

use shoal_proto::Digest;

use super::Target;

/// Remembers, across the nodes of a cluster, which repositories an anonymous token could read.
#[async_trait::async_trait]
pub trait Witness: Send + Sync + 'static {
    /// This node just read from the repository with an anonymous token; `manifest`: this manifest. Must not wait.
    fn saw_public(&self, target: &Target, manifest: Option<&Digest>);

    /// How long ago some node of the cluster did; `None` when nobody did, or it can't be learnt now. Must answer soon.
    async fn public_since(&self, target: &Target, manifest: Option<&Digest>) -> Option<Duration>;
}

/// Knows nothing: for a node without control.
pub struct Nobody;

#[async_trait::async_trait]
impl Witness for Nobody {
    fn saw_public(&self, _: &Target, _: Option<&Digest>) {}

    async fn public_since(&self, _: &Target, _: Option<&Digest>) -> Option<Duration> {
        None
    }
}
