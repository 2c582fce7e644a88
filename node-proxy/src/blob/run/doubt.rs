//! An author who says another size than the manifest: one of the two is wrong, and the origin knows which.
//!
//! Neither is believed before: bytes of the wrong length would be with a reader by then, and a manifest is anybody's, so that
//! nobody may be called a liar because of one. One byte is read of the origin, outside "once" (I6).

use std::sync::Arc;

use shoal_proto::NodeId;

use super::super::ReadError;
use super::super::metrics::Leave;
use super::{Aborting, Runner, start};

/// A question to the origin, and about whom.
pub(super) struct Doubt {
    author: NodeId,
    said: u64,
    asking: Aborting<Option<u64>>,
}

/// What came of it.
pub(super) struct Settled {
    author: NodeId,
    said: u64,
    /// What the origin says; `None`: it can't be asked.
    size: Option<u64>,
}

/// Waits for the answer; pending while there is no doubt.
pub(super) async fn settled(doubt: &mut Option<Doubt>) -> Settled {
    let Some(asked) = doubt else { return std::future::pending().await };
    let size = (&mut asked.asking).await.ok().flatten();
    let settled = Settled { author: asked.author.clone(), said: asked.said, size };
    *doubt = None;
    settled
}

impl Runner {
    /// Whether an author's size may be taken: it is what the manifest says, or nobody says another.
    pub(super) fn agrees_on_size(&mut self, author: &NodeId, said: u64) -> bool {
        let known = self.flight.layout().is_some() || author == &self.inner.me;
        let Some(hint) = self.flight.size_hint.get().copied().filter(|hint| !known && *hint != said) else {
            return true;
        };
        if self.doubt.is_none() {
            tracing::warn!(digest = %self.flight.digest(), %author, said, manifest = hint, "author says another size than the manifest");
            self.inner.metrics.origin_read(Leave::Doubt);
            let (inner, way) = (Arc::clone(&self.inner), self.flight.way());
            let asking = start(async move { inner.upstream.read(&way?, Some(0..1)).await.ok()?.size });
            self.doubt = Some(Doubt { author: author.clone(), said, asking });
        }
        false
    }

    pub(super) async fn on_size(&mut self, settled: Settled) {
        let digest = self.flight.digest();
        match settled.size {
            Some(size) if size != settled.said => {
                self.inner.liars.add_author(&settled.author, self.inner.config.shun);
                self.blame(settled.author).await;
            }
            Some(_) => self.fail(ReadError::NotKept(digest, "the manifest says another size than the origin".into())),
            None => self.fail(ReadError::Failed(digest, "its size is in doubt, and the origin can't be asked".into())),
        }
    }
}
