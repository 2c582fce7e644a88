//! How a flight ends: held, thrown away, or left on disk for the next one.

use std::sync::Arc;

use shoal_proto::{Digest, NodeId};

use super::super::flight::End;
use super::super::metrics::Outcome;
use super::super::{ReadError, store_failed};
use super::Runner;
use crate::swarm::{Finding, Tell};

impl Runner {
    pub(super) async fn on_closed(&mut self, closed: Option<Result<Digest, ReadError>>) {
        let died = || Err(ReadError::Failed(self.flight.digest(), "hashing it panicked".into()));
        match closed.unwrap_or_else(died) {
            Ok(digest) if digest == self.flight.digest() => self.commit().await,
            Ok(other) => {
                tracing::warn!(digest = %self.flight.digest(), got = %other, "the whole does not match its digest");
                self.mismatch().await;
            }
            Err(error) => self.fail(error),
        }
    }

    pub(super) async fn commit(&mut self) {
        let digest = self.flight.digest();
        if let Some(running) = self.checkpoint.take() {
            let _ = running.await;
        }
        let Some((partial, notes)) = self.flight.body(|body| (Arc::clone(&body.partial), body.notes())) else { return };
        match partial.commit(&notes).await {
            Ok(held) => {
                if self.flight.origin_bytes() > 0 {
                    // The last block may close the blob before its read is heard to have ended.
                    self.is_well();
                }
                let info = held.info().clone();
                self.flight.finish(End::Held(held));
                self.outcome = Outcome::Held;
                let media_type = info.media_type.to_string();
                self.tell(Tell::Done { size: info.size, root: info.root, media_type }).await;
            }
            Err(error) => self.fail(store_failed(digest, &error)),
        }
    }

    /// The whole is wrong: nobody gets it from here for a while, and its author is named (I1).
    pub(super) async fn mismatch(&mut self) {
        let author = self.author();
        // What this node read of the origin itself may be what is wrong.
        if author != self.inner.me && self.flight.origin_bytes() == 0 {
            self.inner.liars.add_author(&author, self.inner.config.shun);
        }
        self.blame(author).await;
    }

    /// Two authors say different things, or the origin says another than the author. One is wrong; nobody here knows which, so that
    /// no more than this blob is held against the author.
    pub(super) async fn contradiction(&mut self) {
        let author = self.author();
        self.blame(author).await;
    }

    fn author(&self) -> NodeId {
        self.flight.body(|body| body.author.clone()).unwrap_or_else(|| self.inner.me.clone())
    }

    pub(super) async fn blame(&mut self, author: NodeId) {
        tracing::warn!(digest = %self.flight.digest(), %author, "threw a blob away");
        self.throw_away().await;
        self.tell(Tell::Mismatch { author }).await;
    }

    /// Ends the flight and leaves nothing of it; for a while this node answers 404 for the digest.
    pub(super) async fn throw_away(&mut self) {
        let digest = self.flight.digest();
        self.reads.clear();
        self.swarm = None;
        self.closing = None;
        self.doubt = None;
        self.inner.shun(digest);
        self.outcome = Outcome::Mismatched;
        self.flight.finish(End::Failed(ReadError::Mismatched(digest)));
        if let Some(partial) = self.flight.partial()
            && let Err(error) = partial.discard().await
        {
            tracing::warn!(%digest, %error, "discard partial blob");
        }
    }

    /// Leaves the disk in order: what is verified may be resumed, and the next flight may begin.
    pub(super) async fn end(&mut self) {
        self.reads.clear();
        self.swarm = None;
        self.closing = None;
        self.checkpoint = None;
        self.inner.metrics.end(self.outcome);
        if let Some(End::Failed(error)) = self.flight.end() {
            if !matches!(error, ReadError::Mismatched(_)) {
                let left = self.flight.body(|body| (Arc::clone(&body.partial), body.notes(), body.have.is_empty()));
                if let Some((partial, notes, empty)) = left {
                    let kept = if empty { partial.discard().await } else { partial.checkpoint(&notes).await };
                    if let Err(error) = kept {
                        tracing::warn!(digest = %self.flight.digest(), %error, "leave partial blob");
                    }
                }
            }
            self.flight.release();
        }
        // Lets what was told last reach control before the stream closes.
        if let Some(Finding { news, tell }) = self.finding.take() {
            drop(tell);
            drop(news);
        }
    }
}
