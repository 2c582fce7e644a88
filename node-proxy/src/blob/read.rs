//! Readers: bytes in order, as they are verified.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shoal_proto::Digest;
use tokio::time::Instant;

use super::flight::{AtOrigin, End, Flight};
use super::{Inner, ReadError, Sources, store_failed};
use crate::store::Held;

/// What one answer of [`Reading::next`] has at most: a few socket writes, and bounded memory per reader.
const CHUNK: u64 = 1 << 20;

/// Content that is there, or on its way: size and media type are known.
pub struct Opened {
    digest: Digest,
    size: u64,
    media_type: Arc<str>,
    from: Source,
    engine: Arc<Inner>,
    since: Instant,
}

#[derive(Clone)]
enum Source {
    Held(Arc<dyn Held>),
    Flight(Arc<Interest>),
}

/// A reader's place in a flight; the flight goes on at least as long as it lives.
struct Interest {
    flight: Arc<Flight>,
    reader: u64,
}

impl Interest {
    fn new(flight: Arc<Flight>, at: u64) -> Self {
        let reader = flight.reader_comes(at);
        Self { flight, reader }
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.flight.reader_goes(self.reader);
    }
}

impl Opened {
    pub(super) fn held(digest: Digest, held: Arc<dyn Held>, engine: Arc<Inner>, since: Instant) -> Self {
        let info = held.info();
        let (size, media_type) = (info.size, Arc::clone(&info.media_type));
        Self { digest, size, media_type, from: Source::Held(held), engine, since }
    }

    /// Waits until the flight knows its size. `None`: it ended well in the meantime, look into the store.
    pub(super) async fn flight(
        engine: Arc<Inner>,
        flight: Arc<Flight>,
        since: Instant,
    ) -> Option<Result<Self, ReadError>> {
        let interest = Arc::new(Interest::new(Arc::clone(&flight), 0));
        let digest = flight.digest();
        let mut patience = Patience { engine: &engine, flight: &flight, since };
        let mut changed = flight.subscribe();
        loop {
            changed.borrow_and_update();
            if let Some((layout, media_type)) = flight.body(|body| (body.layout, Arc::clone(&body.media_type))) {
                let from = Source::Flight(interest);
                return Some(Ok(Self { digest, size: layout.size(), media_type, from, engine, since }));
            }
            match flight.end() {
                Some(End::Held(_)) => return None,
                Some(End::Failed(error)) => return Some(Err(error)),
                None => {}
            }
            if let Err(error) = patience.wait(&mut changed).await {
                return Some(Err(error));
            }
        }
    }

    /// What was asked for.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Bytes of the whole.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Content-Type as the origin gave it; empty when it gave none.
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// Reads `range`, half open, cut at the end. Dropping the reading stops it.
    pub fn read(&self, range: Range<u64>) -> Reading {
        let range = range.start.min(self.size)..range.end.min(self.size);
        let from = match &self.from {
            Source::Held(held) => Source::Held(Arc::clone(held)),
            Source::Flight(interest) => {
                Source::Flight(Arc::new(Interest::new(Arc::clone(&interest.flight), range.start)))
            }
        };
        Reading {
            digest: self.digest,
            at: range.start,
            end: range.end,
            from,
            engine: Arc::clone(&self.engine),
            sources: Sources::default(),
            started: false,
            since: self.since,
        }
    }
}

/// Bytes of a range, in order.
pub struct Reading {
    digest: Digest,
    at: u64,
    end: u64,
    from: Source,
    engine: Arc<Inner>,
    sources: Sources,
    started: bool,
    since: Instant,
}

impl Reading {
    /// The next verified bytes; `None` at the end of the range. The first call answers within the first byte budget;
    /// a later one as long as the flight lives. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Bytes, ReadError>> {
        if self.at >= self.end && self.started {
            return None;
        }
        let next = match &self.from {
            Source::Held(held) => {
                let held = Arc::clone(held);
                self.held(&held).await
            }
            Source::Flight(interest) => {
                let interest = Arc::clone(interest);
                self.flying(&interest).await
            }
        };
        self.started = true;
        match next {
            Ok(bytes) if bytes.is_empty() => None,
            other => Some(other),
        }
    }

    /// Where the bytes given so far came from.
    pub fn sources(&self) -> Sources {
        self.sources
    }

    async fn held(&mut self, held: &Arc<dyn Held>) -> Result<Bytes, ReadError> {
        let len = (self.end - self.at).min(CHUNK);
        let bytes = held.read_at(self.at, len as usize).await.map_err(|error| store_failed(self.digest, &error))?;
        self.sources.local += bytes.len() as u64;
        self.engine.metrics.local.inc_by(bytes.len() as u64);
        self.at += bytes.len() as u64;
        Ok(bytes)
    }

    async fn flying(&mut self, interest: &Interest) -> Result<Bytes, ReadError> {
        let flight = &interest.flight;
        let engine = Arc::clone(&self.engine);
        let mut patience = Patience { engine: &engine, flight, since: self.since };
        let mut changed = flight.subscribe();
        loop {
            changed.borrow_and_update();
            let end = flight.end();
            if let Some(End::Failed(error)) = end {
                return Err(error);
            }
            let held = match end {
                Some(End::Held(held)) => Some(held),
                _ => None,
            };
            let upto = readable(flight, self.at, held.is_some()).min(self.end);
            if upto > self.at || (held.is_some() && self.at >= self.end) {
                let len = (upto - self.at).min(CHUNK) as usize;
                let bytes = match (&held, flight.partial()) {
                    (Some(held), _) => held.read_at(self.at, len).await,
                    (None, Some(partial)) => partial.read_at(self.at, len).await,
                    (None, None) => return Err(ReadError::Failed(self.digest, "its bytes vanished".into())),
                };
                let bytes = match bytes {
                    Ok(bytes) => bytes,
                    // A commit used the partial up between the look and the read.
                    Err(_) if held.is_none() && flight.is_over() => continue,
                    Err(error) => return Err(store_failed(self.digest, &error)),
                };
                self.count(flight.sources(self.at..self.at + bytes.len() as u64));
                self.at += bytes.len() as u64;
                flight.reader_moves(interest.reader, self.at);
                return Ok(bytes);
            }
            if self.started {
                // After the first byte the flight's own bounds hold; it ends or moves on.
                changed.changed().await.map_err(|_| ReadError::Failed(self.digest, "its flight vanished".into()))?;
            } else {
                patience.wait(&mut changed).await?;
            }
        }
    }

    fn count(&mut self, sources: Sources) {
        self.sources.local += sources.local;
        self.sources.peers += sources.peers;
        self.sources.origin += sources.origin;
    }
}

/// The first byte from `at` on that a reader may not have yet: the end of the contiguous run of verified blocks, without
/// the last block of the blob until the whole closed (I1).
fn readable(flight: &Flight, at: u64, closed: bool) -> u64 {
    flight
        .body(|body| {
            let layout = body.layout;
            if closed {
                return layout.size();
            }
            if at >= layout.size() {
                return at;
            }
            let first_missing = body.have.first_missing(layout.block_at(at));
            layout.block_range(first_missing.min(layout.blocks().saturating_sub(1))).start.max(at)
        })
        .unwrap_or(at)
}

/// The wait for a first byte (I8).
struct Patience<'a> {
    engine: &'a Inner,
    flight: &'a Flight,
    since: Instant,
}

impl Patience<'_> {
    /// After a wait for the origin the usual budget begins anew, within the longer one: headers that took 6 s must not end
    /// in a refusal because the first block takes another moment.
    fn budget(&self) -> Duration {
        let config = &self.engine.config;
        let (usual, most) = (config.first_byte_budget, config.origin_byte_budget.max(config.first_byte_budget));
        match self.flight.at_origin() {
            AtOrigin::Now => most,
            AtOrigin::Until(left) => (left.saturating_duration_since(self.since) + usual).min(most),
            AtOrigin::Never => usual,
        }
    }

    /// Waits for a change of the flight, as long as the budget lasts.
    async fn wait(&mut self, changed: &mut tokio::sync::watch::Receiver<u64>) -> Result<(), ReadError> {
        let digest = self.flight.digest();
        let waited = self.since.elapsed();
        let slow = ReadError::Slow { digest, waited };
        let Some(left) = self.budget().checked_sub(waited).filter(|left| !left.is_zero()) else { return Err(slow) };
        match tokio::time::timeout(left, changed.changed()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(ReadError::Failed(digest, "its flight vanished".into())),
            // The budget may have grown while we waited; the next call decides.
            Err(_) => Ok(()),
        }
    }
}
