//! Reading the origin in a flight: bytes become blocks, blocks get their hash, and this node becomes the list's author.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use shoal_proto::{Layout, PieceList};
use tokio::sync::mpsc;

use super::flight::{Flight, From};
use super::{Incoming, Inner, ReadError};
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

/// Reads every run of blocks that the flight lacks. The runner prepares the body between `Headers` and the first byte:
/// `begun` answers when it has.
pub(super) async fn read(inner: Arc<Inner>, flight: Arc<Flight>, heard: mpsc::Sender<Heard>) {
    let ended = read_missing(&inner, &flight, &heard).await;
    let _ = heard.send(Heard::Ended(ended)).await;
}

async fn read_missing(inner: &Inner, flight: &Flight, heard: &mpsc::Sender<Heard>) -> Result<(), Trouble> {
    let mut at = 0;
    loop {
        let run = match flight.layout() {
            None => None,
            Some(layout) => match missing_run(flight, layout, at) {
                Some(run) => Some(run),
                None => return Ok(()),
            },
        };
        let whole = run.as_ref().is_none_or(|run| flight.layout().is_some_and(|l| *run == (0..l.size())));
        let incoming =
            inner.upstream.read(&flight.want, run.clone().filter(|_| !whole)).await.map_err(Trouble::Origin)?;
        let layout = begin(flight, heard, incoming.size, incoming.media_type.clone()).await?;
        let run = run.unwrap_or_else(|| missing_run(flight, layout, 0).unwrap_or(0..0));
        // A resumed body may lack only a part of what a whole answer brings.
        let skip = if whole { run.start } else { 0 };
        at = blocks(inner, flight, heard, incoming, layout, run, skip).await?;
        if layout.size() == 0 {
            return Ok(());
        }
    }
}

/// The first run of missing bytes from `at` on.
fn missing_run(flight: &Flight, layout: Layout, at: u64) -> Option<Range<u64>> {
    flight
        .body(|body| {
            if at >= layout.size() {
                return None;
            }
            let first = body.have.first_missing(layout.block_at(at));
            let end = (first..layout.blocks()).find(|block| body.have.contains(*block)).unwrap_or(layout.blocks());
            (first < layout.blocks()).then(|| layout.block_range(first).start..layout.block_range(end - 1).end)
        })
        .flatten()
}

/// Tells the runner of the headers, and waits until the flight has a body.
async fn begin(
    flight: &Flight,
    heard: &mpsc::Sender<Heard>,
    size: Option<u64>,
    media_type: String,
) -> Result<Layout, Trouble> {
    let digest = flight.digest();
    let Some(size) = size else {
        return Err(Trouble::Here(ReadError::NotKept(digest, "the origin does not say its size".into())));
    };
    // Before any of its bytes is taken: they can't become what the manifest names, and a reader would get some of them.
    if let Some(told) = flight.size_hint.get().copied().filter(|told| *told != size) {
        let registry = flight.want.target.registry.to_string();
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
    heard.send(headers).await.map_err(|_| gone())?;
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
    inner: &Inner,
    flight: &Flight,
    heard: &mpsc::Sender<Heard>,
    mut incoming: Incoming,
    layout: Layout,
    run: Range<u64>,
    mut skip: u64,
) -> Result<u64, Trouble> {
    let mut at = run.start;
    let mut buffer = BytesMut::new();
    while at < run.end {
        let block = layout.block_at(at);
        let len = layout.block_len(block);
        while buffer.len() < len {
            let mut bytes = match incoming.stream.next().await {
                Some(Ok(bytes)) => bytes,
                Some(Err(error)) => return Err(Trouble::Origin(error)),
                None => {
                    return Err(Trouble::Origin(OriginError::Unreachable {
                        registry: flight.want.target.registry.to_string(),
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
        heard.send(block).await.map_err(gone)?;
        at += len as u64;
    }
    Ok(at)
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
