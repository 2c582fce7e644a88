//! The flight's own read of the origin: when it may, with whose leave, and what comes of it.

use std::sync::Arc;
use std::time::Duration;

use shoal_proto::{BlockIndex, Digest, PieceList};
use tokio::sync::watch;
use tokio::time::Instant;

use super::super::ReadError;
use super::super::flight::Body;
use super::super::look_ahead::Awaited;
use super::super::metrics::{Failure, Leave};
use super::super::outside::Peers;
use super::super::upstream::{self, Extent, Heard, Trouble};
use super::{Aborting, KNOWN_PATIENCE, ORIGIN_TRIES, PART_PATIENCE, Runner, STALL, TICK, start};
use crate::origin::{OriginError, Registry};
use crate::swarm::{Grant, Located, OriginTrouble, Parent, Sighting, Tell};

/// One read of the origin that is under way.
pub(super) struct Reading {
    _task: Aborting<()>,
    _awaited: Option<Awaited>,
    extent: watch::Sender<Extent>,
}

/// What of an extent is here, as control is told of it.
pub(super) struct Held {
    pub(super) size: u64,
    pub(super) media_type: String,
    /// First block and hashes of blocks in a row.
    pub(super) runs: Vec<(BlockIndex, Vec<u8>)>,
}

impl Runner {
    /// Whether this flight may read the origin: somebody waits for it, or it is its turn ahead of the readers; and the origin has
    /// not refused them all (I10).
    pub(super) fn may_read_origin(&self) -> bool {
        (self.flight.is_awaited() || self.ticket.is_some()) && self.flight.way().is_some()
    }

    /// A reader came, or the gate opened: what was held back starts.
    pub(super) fn may_now(&mut self) {
        if !self.may_read_origin() {
            return;
        }
        if let Some(leave) = self.leave.take() {
            self.start_origin(leave, 0, upstream::WHOLE);
        } else if !self.asked_for_permit && self.finding.is_some() && self.reads.is_empty() {
            // Control must know before it can give a permit: ask again.
            self.finding = None;
            self.ask_at = Some(Instant::now());
        }
    }

    /// Parents that serve go on serving. Without any, those that control named before are asked (I4), then the origin.
    pub(super) fn without_control(&mut self, leave: Leave) {
        if !self.reads.is_empty() || self.locating.is_some() {
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
                let patience = KNOWN_PATIENCE.mul_f64(self.chance);
                self.locating = Some(start(locate(peers, digest, known, patience)));
                return;
            }
        }
        if self.may_read_origin() {
            self.start_origin(leave, 0, upstream::WHOLE);
        } else {
            self.leave = Some(leave);
        }
    }

    /// Leave came, or another extent of one that is there.
    pub(super) async fn on_permit(&mut self, grant: Grant) {
        if self.ended.contains(&grant.id) {
            // Control said so before it heard that this read has ended.
            return;
        }
        self.permits.insert(grant.id, grant);
        if let Some(reading) = self.reads.get(&grant.id) {
            reading.extent.send_replace(grant.covers());
            return;
        }
        // A flight that reads with another leave already is in good hands; control hears of its blocks all the same.
        if !self.reads.contains_key(&0) {
            self.start_origin(Leave::Permit, grant.id, grant.covers());
        }
        if !self.reads.contains_key(&grant.id) {
            self.tell_held(grant, true).await;
            if grant.blocks > 0 && !self.reads.contains_key(&0) {
                self.permits.remove(&grant.id);
            }
        }
    }

    /// Tells of the blocks that a permit covers and that are here already: the origin is not asked for them again.
    async fn tell_held(&mut self, grant: Grant, with_size: bool) {
        let permit = grant.id;
        let Some(Held { size, media_type, runs }) = self.held(&grant.covers(), |_, _| true) else { return };
        if with_size {
            self.tell(Tell::Headers { permit, size, media_type }).await;
        }
        for (first, hashes) in runs {
            self.tell(Tell::Hashes { first, hashes: hashes.into() }).await;
        }
    }

    /// Tells of the blocks of a run that peers gave while it was read: they were not read again, and control may wait for them.
    /// What was read was told block by block; every finder hears again what is told again.
    async fn tell_given(&mut self, run: Grant) {
        let given = self.held(&run.covers(), |body, block| !body.first_hand().contains(block));
        for (first, hashes) in given.map(|held| held.runs).unwrap_or_default() {
            self.tell(Tell::Hashes { first, hashes: hashes.into() }).await;
        }
    }

    /// Size, media type, and hashes of the blocks of an extent that are here and that `of` takes, for control.
    pub(super) fn held(&self, covered: &Extent, of: impl Fn(&Body, BlockIndex) -> bool) -> Option<Held> {
        self.flight.body(|body| {
            let mut held = PieceList::new(body.layout);
            let blocks = body.have.runs();
            for block in blocks
                .iter()
                .flat_map(shoal_proto::frame::Run::blocks)
                .filter(|block| covered.contains(block))
                .filter(|block| of(body, *block))
            {
                if let Some(hash) = body.list.get(block) {
                    held.set(block, *hash).expect("the list is empty and the block exists");
                }
            }
            Held { size: body.layout.size(), media_type: body.media_type.to_string(), runs: held.runs(1024) }
        })
    }

    /// Control is asked anew: one permit at most can be named, the one for what readers want first. What else is read stops.
    pub(super) fn keep_one_permit(&mut self) -> Option<Grant> {
        let first = self.permits.values().min_by_key(|grant| grant.first).copied();
        let kept = first.map(|grant| grant.id);
        self.permits.retain(|id, _| Some(*id) == kept);
        self.reads.retain(|id, _| *id == 0 || Some(*id) == kept);
        first
    }

    /// Gives all permits back: this node won't read any more.
    pub(super) async fn give_back_all(&mut self) {
        for permit in std::mem::take(&mut self.permits).into_keys() {
            self.tell(Tell::Trouble { permit, why: OriginTrouble::Abandoned }).await;
        }
    }

    pub(super) fn start_origin(&mut self, leave: Leave, permit: u64, extent: Extent) {
        let lacks = |body: &super::super::flight::Body| {
            let end = extent.end.min(body.layout.blocks());
            body.layout.blocks() == 0 || body.have.first_missing(extent.start) < end
        };
        if self.reads.contains_key(&permit) || self.flight.body(lacks) == Some(false) {
            return;
        }
        self.inner.metrics.origin_read(leave);
        self.flight.set_at_origin(true);
        let awaited = self.flight.is_awaited().then(|| self.inner.gate.awaited());
        let (extent, receiver) = watch::channel(extent);
        let read = upstream::Read {
            inner: Arc::clone(&self.inner),
            flight: Arc::clone(&self.flight),
            permit,
            extent: receiver,
            heard: self.heard.0.clone(),
        };
        self.reads.insert(permit, Reading { _task: start(read.run()), _awaited: awaited, extent });
    }

    pub(super) async fn on_heard(&mut self, permit: u64, heard: Heard) {
        // Of a read that was given up meanwhile. What it wrote stays; control has no use for its word.
        if !self.reads.contains_key(&permit) {
            return;
        }
        // Under a permit that came later than a read with another leave, that read speaks for it.
        let named = if permit == 0 { self.permits.keys().next().copied() } else { Some(permit) };
        if let Some(tell) = named.and_then(|permit| heard.tell(permit)) {
            self.tell(tell).await;
        }
        match heard {
            Heard::Headers { size, media_type } => {
                self.flight.set_at_origin(false);
                let me = self.inner.me.clone();
                self.begin(size, &media_type, &me).await;
                if let Some(grant) = self.permits.get(&permit).copied() {
                    self.tell_held(grant, false).await;
                }
            }
            Heard::Block { .. } => self.progress().await,
            Heard::Ended(Ok(())) => {
                self.reads.remove(&permit);
                if let Some(run) = self.permits.get(&permit).copied().filter(|grant| grant.blocks > 0) {
                    self.tell_given(run).await;
                    self.permits.remove(&permit);
                }
                self.is_well();
            }
            Heard::Ended(Err(trouble)) => {
                self.reads.remove(&permit);
                self.flight.set_at_origin(false);
                self.on_trouble(named, trouble).await;
                if permit == 0 {
                    // It read for all of them.
                    for permit in std::mem::take(&mut self.permits).into_keys() {
                        self.tell(Tell::Trouble { permit, why: OriginTrouble::Unreachable }).await;
                    }
                }
            }
        }
    }

    /// The registry that the origin is read at.
    fn registry(&self) -> Option<Registry> {
        self.flight.way().map(|way| way.target.registry)
    }

    /// The origin gave what it was asked for.
    pub(super) fn is_well(&self) {
        if let Some(registry) = self.registry() {
            self.inner.failing.clear(&registry);
        }
    }

    pub(super) async fn on_trouble(&mut self, permit: Option<u64>, trouble: Trouble) {
        let digest = self.flight.digest();
        let permit = permit.filter(|permit| self.permits.remove(permit).is_some());
        self.ended.extend(permit);
        self.inner.metrics.origin_failed(Failure::of(&trouble));
        match trouble {
            Trouble::Here(error) => {
                if let Some(permit) = permit {
                    self.tell(Tell::Trouble { permit, why: OriginTrouble::Abandoned }).await;
                }
                self.give_back_all().await;
                self.fail(error);
            }
            Trouble::Contradicted => {
                tracing::warn!(%digest, "the origin's bytes contradict the piece list");
                self.contradiction().await;
            }
            Trouble::NoRanges => {
                tracing::info!(%digest, registry = self.registry().map(tracing::field::display), "the registry ignores ranges");
                if let Some(permit) = permit {
                    self.tell(Tell::Trouble { permit, why: OriginTrouble::Abandoned }).await;
                }
                self.give_back_all().await;
                self.reads.clear();
                // A permit to the end is asked for from now on.
                self.finding = None;
                self.ask_at = Some(Instant::now());
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
                if why == OriginTrouble::Denied {
                    self.denied = Some(error.clone());
                    // A reader with another credential may come: then control is asked again.
                    self.asked_for_permit = false;
                }
                let final_word = !matches!(why, OriginTrouble::Unreachable | OriginTrouble::Busy(_));
                // Whoever waits is better served elsewhere than by a registry that does not speak to us, or gives us nothing.
                let registry = self.registry();
                let fails = registry.as_ref().is_some_and(|registry| self.inner.failing.is(registry));
                let hopeless = matches!(error, OriginError::Silent { .. }) || fails;
                let hopeless = hopeless && self.parents.borrow().is_empty();
                if hopeless || self.origin_failures >= ORIGIN_TRIES || (final_word && permit.is_none()) {
                    if let Some(registry) = registry.filter(|_| !final_word) {
                        self.inner.failing.note(&registry);
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

/// Asks known parents for the blob until one holds it whole. Nodes that start at the same moment without control each wait a
/// random part of 2 s: the first of them reads the origin, and the others see that it does.
async fn locate(peers: Arc<dyn Peers>, digest: Digest, known: Vec<Parent>, patience: Duration) -> Option<Located> {
    let begin = Instant::now();
    loop {
        let seen = tokio::time::timeout(KNOWN_PATIENCE, peers.locate(digest, known.clone())).await;
        let patience = match seen {
            Ok(Sighting::Whole(located)) => return Some(located),
            Ok(Sighting::Part) => PART_PATIENCE,
            Ok(Sighting::Nowhere) | Err(_) => patience,
        };
        let left = patience.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return None;
        }
        tokio::time::sleep(left.min(TICK)).await;
    }
}
