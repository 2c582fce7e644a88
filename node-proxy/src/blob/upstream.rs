//! Reading the origin in a flight: bytes become blocks, blocks get their hash, and this node becomes the list's author.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use shoal_proto::{BlockIndex, Layout, PieceList};
use tokio::sync::{mpsc, watch};

use super::flight::{Flight, From};
use super::{Incoming, Inner, ReadError, Want};
use crate::origin::OriginError;
use crate::swarm::Tell;

/// Why a read of the origin ended before the last block.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The origin, or the way to it.
    Origin(OriginError),
    /// This node: disk or layout. No other try helps here.
    Here(ReadError),
    /// The origin's bytes contradict the list that control gave: its author is at fault.
    Contradicted,
    /// The origin ignores ranges, and only some of the blob is to be read.
    NoRanges,
}

/// What the flight's runner hears of the read.
#[derive(Debug)]
pub(super) enum Heard {
    /// Headers came: this node knows size and media type from the origin.
    Headers { size: u64, media_type: String },
    /// A block is verified and on disk; its hash is in the list.
    Block { first: u32, hash: Bytes },
    /// All that was missing has been read, or why not.
    Ended(Result<(), Trouble>),
}

/// Blocks that a read covers, half open; the end may be behind the blob's.
pub(super) type Extent = Range<BlockIndex>;

/// Everything.
pub(super) const WHOLE: Extent = 0..BlockIndex::MAX;

/// What the runner hears, and of which permit; 0 for none.
pub(super) type Words = mpsc::Sender<(u64, Heard)>;

/// One read of the origin.
pub(super) struct Read {
    pub(super) inner: Arc<Inner>,
    pub(super) flight: Arc<Flight>,
    /// The permit; 0 for none.
    pub(super) permit: u64,
    /// What it covers; it may change while it is read.
    pub(super) extent: watch::Receiver<Extent>,
    pub(super) heard: Words,
}

impl Read {
    /// Reads every run of blocks that the flight lacks and the extent covers. The runner prepares the body between `Headers` and
    /// the first byte.
    pub(super) async fn run(self) {
        let ended = self.missing().await;
        let _ = self.heard.send((self.permit, Heard::Ended(ended))).await;
    }

    async fn missing(&self) -> Result<(), Trouble> {
        let Self { inner, flight, .. } = self;
        let mut at = 0;
        loop {
            let extent = self.extent.borrow().clone();
            let run = match flight.layout() {
                // A size that a manifest names will do to ask for the right bytes; what the origin says is held against it.
                None => self.guess(&extent),
                Some(layout) => match missing_run(flight, layout, at, &extent) {
                    Some(run) => Some(run),
                    None => return Ok(()),
                },
            };
            let size = flight.layout().map(|layout| layout.size()).or(flight.size_hint.get().copied());
            let whole = run.as_ref().is_none_or(|run| size.is_some_and(|size| *run == (0..size)));
            let asked = run.clone().filter(|_| !whole);
            let (way, incoming) = self.ask(asked).await.map_err(Trouble::Origin)?;
            if incoming.ignores_ranges {
                inner.ignores_ranges.note(&way.target.registry);
                let begins = run.as_ref().is_none_or(|run| run.start == 0);
                if self.permit != 0 && extent.end != WHOLE.end && !begins {
                    return Err(Trouble::NoRanges);
                }
            }
            // A registry may answer a range without saying how long the whole is.
            let size = incoming.size.or(size);
            let layout = self.begin(size, incoming.media_type.clone()).await?;
            let run = run.unwrap_or_else(|| missing_run(flight, layout, 0, &extent).unwrap_or(0..0));
            // A resumed body may lack only a part of what a whole answer brings.
            let skip = if whole { run.start } else { 0 };
            at = self.blocks(incoming, layout, run, skip).await?;
            if layout.size() == 0 {
                return Ok(());
            }
        }
    }

    /// Asks the origin in one reader's way after the other, until it refuses none.
    async fn ask(&self, range: Option<Range<u64>>) -> Result<(Want, Incoming), OriginError> {
        let mut refused = OriginError::Unauthorized { registry: self.registry(), challenges: Vec::new() };
        while let Some(way) = self.flight.way() {
            match self.inner.upstream.read(&way, range.clone()).await {
                Err(error @ (OriginError::Unauthorized { .. } | OriginError::Denied { .. })) => {
                    self.flight.is_refused(&way);
                    refused = error;
                }
                Err(error @ OriginError::NotFound { .. }) if self.flight.has_other_than(&way) => {
                    self.flight.is_refused(&way);
                    refused = error;
                }
                answer => return answer.map(|incoming| (way, incoming)),
            }
        }
        Err(refused)
    }

    /// The bytes of an extent of which not everything is to be read, before the origin has said the size.
    fn guess(&self, extent: &Extent) -> Option<Range<u64>> {
        let layout = Layout::of(*self.flight.size_hint.get()?).ok()?;
        let bytes = bytes_of(layout, extent);
        (!bytes.is_empty() && bytes != (0..layout.size())).then_some(bytes)
    }
}

fn bytes_of(layout: Layout, extent: &Extent) -> Range<u64> {
    let at = |block: BlockIndex| if block >= layout.blocks() { layout.size() } else { layout.block_range(block).start };
    at(extent.start)..at(extent.end)
}

/// The first run of missing bytes from `at` on, inside the extent.
fn missing_run(flight: &Flight, layout: Layout, at: u64, extent: &Extent) -> Option<Range<u64>> {
    let inside = bytes_of(layout, extent);
    let at = at.max(inside.start);
    flight
        .body(|body| {
            if at >= inside.end {
                return None;
            }
            let last = layout.blocks().min(extent.end);
            let first = body.have.first_missing(layout.block_at(at));
            let end = (first..last).find(|block| body.have.contains(*block)).unwrap_or(last);
            (first < last).then(|| layout.block_range(first).start..layout.block_range(end - 1).end)
        })
        .flatten()
}

impl Read {
    /// The registry, for people.
    fn registry(&self) -> String {
        self.flight.way().map(|way| way.target.registry.to_string()).unwrap_or_default()
    }

    /// Tells the runner of the headers, and waits until the flight has a body.
    async fn begin(&self, size: Option<u64>, media_type: String) -> Result<Layout, Trouble> {
        let Self { flight, heard, .. } = self;
        let digest = flight.digest();
        let Some(size) = size else {
            return Err(Trouble::Here(ReadError::NotKept(digest, "the origin does not say its size".into())));
        };
        // Before any of its bytes is taken: they can't become what the manifest names, and a reader would get some of them.
        if let Some(told) = flight.size_hint.get().copied().filter(|told| *told != size) {
            let registry = self.registry();
            let why = format!("it gives {size} bytes of {digest}, which has {told} by its manifest");
            return Err(Trouble::Origin(OriginError::Nonsense { registry, why }));
        }
        if let Some(layout) = flight.layout()
            && layout.size() != size
        {
            return Err(Trouble::Contradicted);
        }
        Layout::of(size).map_err(|error| Trouble::Here(ReadError::NotKept(digest, error.to_string())))?;
        let mut changed = flight.subscribe();
        let headers = Heard::Headers { size, media_type };
        let gone = || Trouble::Here(ReadError::Failed(digest, "its flight ended".into()));
        heard.send((self.permit, headers)).await.map_err(|_| gone())?;
        loop {
            changed.borrow_and_update();
            if let Some(layout) = flight.layout() {
                return Ok(layout);
            }
            if flight.is_over() {
                return Err(gone());
            }
            changed.changed().await.map_err(|_| gone())?;
        }
    }

    /// Cuts the body into blocks and puts them. Returns the offset after the last block that was put.
    async fn blocks(
        &self,
        mut incoming: Incoming,
        layout: Layout,
        run: Range<u64>,
        mut skip: u64,
    ) -> Result<u64, Trouble> {
        let Self { inner, flight, heard, .. } = self;
        let mut at = run.start;
        let mut buffer = BytesMut::new();
        // Others may have been given what is behind the end meanwhile.
        while at < run.end && at < bytes_of(layout, &self.extent.borrow()).end {
            let block = layout.block_at(at);
            let len = layout.block_len(block);
            while buffer.len() < len {
                let mut bytes = match incoming.stream.next().await {
                    Some(Ok(bytes)) => bytes,
                    Some(Err(error)) => return Err(Trouble::Origin(error)),
                    None => {
                        return Err(Trouble::Origin(OriginError::Unreachable {
                            registry: self.registry(),
                            why: format!("the body ended at byte {} of {}", at + buffer.len() as u64, run.end),
                        }));
                    }
                };
                inner.metrics.from_origin.inc_by(bytes.len() as u64);
                let cut = skip.min(bytes.len() as u64);
                skip -= cut;
                let bytes = bytes.split_off(cut as usize);
                buffer.reserve(len.saturating_sub(buffer.len()));
                buffer.extend_from_slice(&bytes);
            }
            let bytes = buffer.split_to(len).freeze();
            let hash = PieceList::hash(&bytes);
            if flight.change(|body| body.list.set(block, hash).is_err()) == Some(true) {
                return Err(Trouble::Contradicted);
            }
            flight.put(block, bytes, From::Origin).await.map_err(Trouble::Here)?;
            let block = Heard::Block { first: block, hash: Bytes::copy_from_slice(&hash) };
            let gone = |_| Trouble::Here(ReadError::Failed(flight.digest(), "its flight ended".into()));
            heard.send((self.permit, block)).await.map_err(gone)?;
            at += len as u64;
        }
        Ok(at)
    }
}

impl Heard {
    /// What control hears of it.
    pub(super) fn tell(&self, permit: u64) -> Option<Tell> {
        match self {
            Self::Headers { size, media_type } => {
                Some(Tell::Headers { permit, size: *size, media_type: media_type.clone() })
            }
            Self::Block { first, hash } => Some(Tell::Hashes { first: *first, hashes: hash.clone() }),
            Self::Ended(_) => None,
        }
    }
}
