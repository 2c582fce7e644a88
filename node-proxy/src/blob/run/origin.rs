//! The flight's own read of the origin: when it may, with whose leave, and what comes of it.

use std::sync::Arc;

use tokio::time::Instant;

use super::super::ReadError;
use super::super::metrics::{Failure, Leave};
use super::super::upstream::{self, Heard, Trouble};
use super::{KNOWN_PATIENCE, ORIGIN_TRIES, Runner, STALL, TICK, start};
use crate::origin::OriginError;
use crate::swarm::{OriginTrouble, Tell};

impl Runner {
    /// Whether this flight may read the origin: somebody waits for it, or it is its turn ahead of the readers.
    pub(super) fn may_read_origin(&self) -> bool {
        self.flight.is_awaited() || self.ticket.is_some()
    }

    /// A reader came, or the gate opened: what was held back starts.
    pub(super) fn may_now(&mut self) {
        if !self.may_read_origin() {
            return;
        }
        if let Some(leave) = self.leave.take() {
            self.start_origin(leave);
        } else if !self.asked_for_permit && self.finding.is_some() && self.origin.is_none() {
            // Control must know before it can give a permit: ask again.
            self.finding = None;
            self.ask_at = Some(Instant::now());
        }
    }

    /// Parents that serve go on serving. Without any, those that control named before are asked (I4), then the origin.
    pub(super) fn without_control(&mut self, leave: Leave) {
        if self.origin.is_some() || self.locating.is_some() {
            return;
        }
        if !self.parents.borrow().is_empty() && self.grown.1.elapsed() < STALL {
            return;
        }
        if leave == Leave::NoControl && !std::mem::replace(&mut self.asked_known, true) {
            let mut known = self.inner.source.known();
            known.retain(|parent| !self.inner.liars.is_parent(&parent.node, self.inner.config.shun));
            if !known.is_empty() {
                let (peers, digest) = (Arc::clone(&self.inner.peers), self.flight.digest());
                let locating =
                    async move { tokio::time::timeout(KNOWN_PATIENCE, peers.locate(digest, known)).await.ok()? };
                self.locating = Some(start(locating));
                return;
            }
        }
        if self.may_read_origin() {
            self.start_origin(leave);
        } else {
            self.leave = Some(leave);
        }
    }

    pub(super) fn start_origin(&mut self, leave: Leave) {
        if self.origin.is_some() || self.flight.body(|body| body.have.is_full()) == Some(true) {
            return;
        }
        self.inner.metrics.origin_read(leave);
        self.flight.set_at_origin(true);
        let awaited = self.flight.is_awaited().then(|| self.inner.gate.awaited());
        let read = upstream::read(Arc::clone(&self.inner), Arc::clone(&self.flight), self.heard.0.clone());
        self.origin = Some((start(read), awaited));
    }

    pub(super) async fn on_heard(&mut self, heard: Heard) {
        if let Some(tell) = self.permit.and_then(|permit| heard.tell(permit)) {
            self.tell(tell).await;
        }
        match heard {
            Heard::Headers { size, media_type } => {
                self.flight.set_at_origin(false);
                let me = self.inner.me.clone();
                self.begin(size, &media_type, &me).await;
            }
            Heard::Block { .. } => self.progress().await,
            Heard::Ended(Ok(())) => {
                self.origin = None;
                self.inner.failing.clear(&self.flight.want.target.registry);
            }
            Heard::Ended(Err(trouble)) => {
                self.origin = None;
                self.flight.set_at_origin(false);
                self.on_trouble(trouble).await;
            }
        }
    }

    pub(super) async fn on_trouble(&mut self, trouble: Trouble) {
        let digest = self.flight.digest();
        let permit = self.permit.take();
        self.inner.metrics.origin_failed(Failure::of(&trouble));
        match trouble {
            Trouble::Here(error) => {
                if let Some(permit) = permit {
                    self.tell(Tell::Trouble { permit, why: OriginTrouble::Abandoned }).await;
                }
                self.fail(error);
            }
            Trouble::Contradicted => {
                tracing::warn!(%digest, "the origin's bytes contradict the piece list");
                self.contradiction().await;
            }
            Trouble::Origin(error) => {
                // A body that stops has cost seconds already: twice is enough.
                self.origin_failures += if matches!(error, OriginError::Stalled { .. }) { 2 } else { 1 };
                let why = match &error {
                    OriginError::NotFound { .. } => OriginTrouble::NotFound,
                    OriginError::Unauthorized { .. } | OriginError::Denied { .. } => OriginTrouble::Denied,
                    OriginError::Busy { retry_after, .. } => OriginTrouble::Busy(*retry_after),
                    _ => OriginTrouble::Unreachable,
                };
                tracing::info!(%digest, %error, "read origin");
                if let Some(permit) = permit {
                    self.tell(Tell::Trouble { permit, why }).await;
                }
                let final_word = !matches!(why, OriginTrouble::Unreachable | OriginTrouble::Busy(_));
                // Whoever waits is better served elsewhere than by a registry that does not speak to us, or gives us nothing.
                let registry = &self.flight.want.target.registry;
                let hopeless = matches!(error, OriginError::Silent { .. }) || self.inner.failing.is(registry);
                let hopeless = hopeless && self.parents.borrow().is_empty();
                if hopeless || self.origin_failures >= ORIGIN_TRIES || (final_word && permit.is_none()) {
                    if !final_word {
                        self.inner.failing.note(registry);
                    }
                    self.fail(match why {
                        OriginTrouble::NotFound => ReadError::NotFound(digest),
                        _ => ReadError::Origin(digest, Arc::new(error)),
                    });
                } else if permit.is_none() {
                    self.ask_at = Some(Instant::now() + TICK);
                    self.finding = None;
                }
            }
        }
    }
}
