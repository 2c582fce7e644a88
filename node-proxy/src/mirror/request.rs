//! A request for content.

use http::HeaderValue;
use shoal_proto::{Digest, Kind};
use tokio::time::Instant;

use super::range::Asked;
use crate::blob::Want;
use crate::origin::{Credential, Target, Who};

/// A request for content, its registry known.
pub(super) struct Pull {
    pub(super) target: Target,
    pub(super) head: bool,
    pub(super) asked: Asked,
    pub(super) accept: Vec<HeaderValue>,
    pub(super) caller: Option<Credential>,
    /// When it came: what every budget is counted from.
    pub(super) since: Instant,
}

impl Pull {
    pub(super) fn want(&self, digest: Digest, kind: Kind, who: Who) -> Want {
        Want { digest, target: self.target.clone(), kind, who }
    }
}
