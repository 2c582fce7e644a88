//! Readers: bytes in order, as they are verified.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shoal_proto::Digest;
use tokio::time::Instant;

use super::flight::{AtOrigin, End, Flight};
use super::{Inner, ReadError, Sources, store_failed};
use crate::store::{Held, Partial, StoreError};

/// What one answer of [`Reading::next`] has at most, in bytes: a few socket writes, and bounded memory per reader.
pub const MOST_AT_ONCE: u64 = 1 << 20;

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

/// Some bytes of a range.
#[derive(Debug)]
pub enum Part {
    /// In memory.
    Bytes(Bytes),
    /// In a file, and in the page cache a moment ago. They do not change.
    File {
        /// The file.
        file: Arc<File>,
        /// Where they begin in it.
        offset: u64,
        /// How many; never 0.
        len: u64,
    },
}

impl Part {
    /// How many bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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
        match self.part(false).await? {
            Ok(Part::Bytes(bytes)) => Some(Ok(bytes)),
            Ok(Part::File { .. }) => unreachable!("parts of files were not asked for"),
            Err(error) => Some(Err(error)),
        }
    }

    /// As [`Reading::next`], but bytes that are in a file may stay there.
    pub async fn next_part(&mut self) -> Option<Result<Part, ReadError>> {
        self.part(true).await
    }

    async fn part(&mut self, files: bool) -> Option<Result<Part, ReadError>> {
        if self.at >= self.end && self.started {
            return None;
        }
        let next = match &self.from {
            Source::Held(held) => {
                let held = Arc::clone(held);
                self.held(&held, files).await
            }
            Source::Flight(interest) => {
                let interest = Arc::clone(interest);
                self.flying(&interest, files).await
            }
        };
        self.started = true;
        match next {
            Ok(part) if part.is_empty() => None,
            other => Some(other),
        }
    }

    /// Where the bytes given so far came from.
    pub fn sources(&self) -> Sources {
        self.sources
    }

    async fn held(&mut self, held: &Arc<dyn Held>, files: bool) -> Result<Part, ReadError> {
        let len = (self.end - self.at).min(MOST_AT_ONCE);
        let part =
            part_of_held(&**held, self.at, len, files).await.map_err(|error| store_failed(self.digest, &error))?;
        self.sources.local += part.len();
        self.engine.metrics.local.inc_by(part.len());
        self.at += part.len();
        Ok(part)
    }

    async fn flying(&mut self, interest: &Interest, files: bool) -> Result<Part, ReadError> {
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
                let len = (upto - self.at).min(MOST_AT_ONCE);
                let part = match (&held, flight.partial()) {
                    (Some(held), _) => part_of_held(&**held, self.at, len, files).await,
                    (None, Some(partial)) => part_of_partial(&*partial, self.at, len, files).await,
                    // It failed between the two looks: the next round says why.
                    (None, None) if flight.is_over() => continue,
                    (None, None) => return Err(ReadError::Failed(self.digest, "its bytes vanished".into())),
                };
                let part = match part {
                    Ok(part) => part,
                    // A commit used the partial up between the look and the read.
                    Err(_) if held.is_none() && flight.is_over() => continue,
                    Err(error) => return Err(store_failed(self.digest, &error)),
                };
                self.count(flight.sources(self.at..self.at + part.len()));
                self.at += part.len();
                flight.reader_moves(interest.reader, self.at);
                return Ok(part);
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

async fn part_of_held(held: &dyn Held, offset: u64, len: u64, files: bool) -> Result<Part, StoreError> {
    match held.file().filter(|_| files && len > 0) {
        Some(file) => held.warm(offset, len).await.map(|()| Part::File { file, offset, len }),
        None => held.read_at(offset, len as usize).await.map(Part::Bytes),
    }
}

async fn part_of_partial(partial: &dyn Partial, offset: u64, len: u64, files: bool) -> Result<Part, StoreError> {
    match partial.file().filter(|_| files && len > 0) {
        Some(file) => partial.warm(offset, len).await.map(|()| Part::File { file, offset, len }),
        None => partial.read_at(offset, len as usize).await.map(Part::Bytes),
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
