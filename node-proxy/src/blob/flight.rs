//! One fetch of one digest: its state, shared by the task that runs it, its readers and the peers that it feeds.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use shoal_proto::{BlockIndex, BlockSet, Digest, Hash, Layout, NodeId, PieceList};
use tokio::sync::watch;

use super::{Kind, ReadError, Sources, Want, store_failed};
use crate::store::{Held, Notes, Partial, StoreError};
use crate::swarm::{Ground, Halt, Survey};

/// Where a block came from in this flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Peer,
    Origin,
}

/// Why another list can't take the place of the one that is known.
pub(super) enum Contradicted {
    /// It says other bytes than a reader was given.
    Read,
    /// The store failed.
    Store(ReadError),
}

/// What is known once the size is.
pub(super) struct Body {
    pub(super) layout: Layout,
    pub(super) media_type: Arc<str>,
    pub(super) list: PieceList,
    pub(super) author: NodeId,
    pub(super) have: BlockSet,
    pub(super) partial: Arc<dyn Partial>,
    /// What this node read from the origin in this flight.
    first_hand: BlockSet,
    from_peers: BlockSet,
}

impl Body {
    /// Blocks that this node read from the origin in this flight.
    pub(super) fn first_hand(&self) -> &BlockSet {
        &self.first_hand
    }

    /// Gives a block up: its bytes may be others than the list says.
    pub(super) fn lose(&mut self, block: BlockIndex) {
        self.have.remove(block);
        self.first_hand.remove(block);
        self.from_peers.remove(block);
    }

    fn gain(&mut self, block: BlockIndex, from: From) {
        if !self.have.insert(block) {
            return;
        }
        match from {
            From::Peer => self.from_peers.insert(block),
            From::Origin => self.first_hand.insert(block),
        };
    }

    /// Where a block came from in this flight; `None` if an earlier one left it on disk.
    pub(super) fn from(&self, block: BlockIndex) -> Option<From> {
        match block {
            _ if self.first_hand.contains(block) => Some(From::Origin),
            _ if self.from_peers.contains(block) => Some(From::Peer),
            _ => None,
        }
    }

    /// What the sidecar should remember.
    pub(super) fn notes(&self) -> Notes {
        Notes { list: self.list.clone(), author: self.author.clone(), media_type: Arc::clone(&self.media_type) }
    }
}

/// How a flight ended.
#[derive(Clone)]
pub(super) enum End {
    Held(Arc<dyn Held>),
    Failed(ReadError),
}

/// Whether a request for this blob, ours or another node's, is out at the origin: readers wait longer then (I8).
#[derive(Clone, Copy, Default)]
pub(super) enum AtOrigin {
    #[default]
    Never,
    Now,
    /// It was, until then.
    Until(tokio::time::Instant),
}

#[derive(Default)]
struct State {
    body: Option<Body>,
    end: Option<End>,
    at_origin: AtOrigin,
    /// Next byte of every reader, by reader.
    readers: HashMap<u64, u64>,
    next_reader: u64,
    /// Peers that read from us: interest without a position.
    offers: usize,
    idle_since: Option<Instant>,
    /// Whoever wanted it said that they do not any more. Ends with the next reader.
    dismissed: bool,
}

/// Parents that one word to control tells of.
const MOST_FED: usize = 64;

/// Ways to the origin that one flight knows; every reader of a private blob may bring one.
const MOST_WAYS: usize = 8;

pub(super) struct Flight {
    digest: Digest,
    pub(super) kind: Kind,
    /// Where and on whose behalf the origin may be read: the way of each reader, without those that the origin refused.
    ways: Mutex<Vec<Want>>,
    /// What a manifest says that its size is.
    pub(super) size_hint: OnceLock<u64>,
    state: Mutex<State>,
    fed: Mutex<Fed>,
    changed: watch::Sender<u64>,
}

/// Who gave what, for people.
#[derive(Default)]
struct Fed {
    bytes: HashMap<NodeId, u64>,
    /// Those of whom control has not heard their last.
    unsaid: HashSet<NodeId>,
}

impl Flight {
    /// For a first reader who may read the origin.
    pub(super) fn new(want: Want) -> Self {
        Self { ways: Mutex::new(vec![want.clone()]), ..Self::in_cluster(want.digest, want.kind) }
    }

    /// For somebody who wants what the cluster has: the origin is not read until somebody comes who may.
    pub(super) fn in_cluster(digest: Digest, kind: Kind) -> Self {
        Self {
            digest,
            kind,
            ways: Mutex::default(),
            size_hint: OnceLock::new(),
            state: Mutex::new(State { idle_since: Some(Instant::now()), ..State::default() }),
            fed: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }

    /// Another reader came: the origin may be read in its way too, should it refuse the others.
    pub(super) fn may_be_read_by(&self, want: &Want) {
        let mut ways = self.ways.lock();
        let known = ways.iter().any(|way| way.target == want.target && way.who == want.who);
        if known {
            return;
        }
        if ways.len() >= MOST_WAYS {
            // What came last is valid for longest.
            ways.remove(0);
        }
        ways.push(want.clone());
        drop(ways);
        self.bump();
    }

    /// How the origin is to be read; `None`: it refused every reader, or none may read it.
    pub(super) fn way(&self) -> Option<Want> {
        self.ways.lock().first().cloned()
    }

    /// Whether there is another way than this.
    pub(super) fn has_other_than(&self, way: &Want) -> bool {
        self.ways.lock().iter().any(|known| known.target != way.target || known.who != way.who)
    }

    /// The origin refused this way.
    pub(super) fn is_refused(&self, way: &Want) {
        self.ways.lock().retain(|known| known.target != way.target || known.who != way.who);
    }

    pub(super) fn digest(&self) -> Digest {
        self.digest
    }

    /// Wakes readers, swarm and peers.
    fn bump(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn is_over(&self) -> bool {
        self.state.lock().end.is_some()
    }

    pub(super) fn end(&self) -> Option<End> {
        self.state.lock().end.clone()
    }

    pub(super) fn finish(&self, end: End) {
        self.state.lock().end.get_or_insert(end);
        self.bump();
    }

    /// Size and media type are known: bytes may come.
    pub(super) fn begin(&self, layout: Layout, media_type: Arc<str>, author: NodeId, partial: Arc<dyn Partial>) {
        let mut body = match partial.resumed() {
            Some(left) => Body {
                layout,
                media_type: if media_type.is_empty() { Arc::clone(&left.notes.media_type) } else { media_type },
                list: left.notes.list.clone(),
                author: left.notes.author.clone(),
                have: left.have.clone(),
                partial: Arc::clone(&partial),
                first_hand: BlockSet::empty(layout),
                from_peers: BlockSet::empty(layout),
            },
            None => Body {
                layout,
                media_type,
                list: PieceList::new(layout),
                author,
                have: BlockSet::empty(layout),
                partial: Arc::clone(&partial),
                first_hand: BlockSet::empty(layout),
                from_peers: BlockSet::empty(layout),
            },
        };
        // Blocks without a hash can't be offered to anybody, so they count as missing.
        for block in body.have.runs().iter().flat_map(shoal_proto::frame::Run::blocks).collect::<Vec<_>>() {
            if body.list.get(block).is_none() {
                body.lose(block);
            }
        }
        self.state.lock().body = Some(body);
        self.bump();
    }

    /// The media type became known after the size.
    pub(super) fn learn_type(&self, media_type: &str) {
        if let Some(body) = self.state.lock().body.as_mut().filter(|body| body.media_type.is_empty()) {
            body.media_type = media_type.into();
        }
    }

    /// Looks at the body, if there is one.
    pub(super) fn body<T>(&self, look: impl FnOnce(&Body) -> T) -> Option<T> {
        self.state.lock().body.as_ref().map(look)
    }

    /// Changes the body, if there is one, and wakes everybody.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Body) -> T) -> Option<T> {
        let changed = self.state.lock().body.as_mut().map(change);
        self.bump();
        changed
    }

    pub(super) fn layout(&self) -> Option<Layout> {
        self.body(|body| body.layout)
    }

    /// Returns when its layout is known, or it is over.
    pub(super) async fn begun(&self) {
        let mut changed = self.subscribe();
        while self.layout().is_none() && !self.is_over() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    pub(super) fn set_at_origin(&self, at_origin: bool) {
        let mut state = self.state.lock();
        state.at_origin = match (at_origin, state.at_origin) {
            (true, _) => AtOrigin::Now,
            (false, AtOrigin::Now) => AtOrigin::Until(tokio::time::Instant::now()),
            (false, before) => before,
        };
        drop(state);
        self.bump();
    }

    pub(super) fn at_origin(&self) -> AtOrigin {
        self.state.lock().at_origin
    }

    pub(super) fn partial(&self) -> Option<Arc<dyn Partial>> {
        self.body(|body| Arc::clone(&body.partial))
    }

    /// Writes a block that was checked, or that the origin gave in this flight, and marks it.
    pub(super) async fn put(&self, block: BlockIndex, bytes: Bytes, from: From) -> Result<(), ReadError> {
        let Some(partial) = self.partial() else {
            return Err(ReadError::Failed(self.digest(), "a block came before the size".into()));
        };
        let hash = self.body(|body| body.list.get(block).copied()).flatten();
        match partial.write(block, bytes).await {
            Ok(()) => {}
            // The list that it was checked against is another one now: as if it had not come.
            Err(StoreError::Stale(_)) => return Ok(()),
            // A second copy that came as the blob was closing: the first one is in it.
            Err(_) if self.body(|body| body.have.contains(block)) == Some(true) => return Ok(()),
            // The end of a flight does not wait for blocks that are on their way: the store refuses them, and nothing is wrong.
            Err(_) if self.is_over() => return Err(ReadError::Failed(self.digest(), "the flight is over".into())),
            Err(error) => return Err(store_failed(self.digest(), &error)),
        }
        // Another author may have begun meanwhile, with a list that does not know this block yet: a block without its hash would
        // look like a contradiction once the whole list comes.
        let fits = self.change(|body| {
            let fits = hash.is_none_or(|hash| body.list.set(block, hash).is_ok());
            if fits {
                body.gain(block, from);
            } else {
                body.lose(block);
            }
            fits
        });
        if fits == Some(false) {
            let digest = self.digest();
            tracing::warn!(%digest, block, "the piece lists of two authors contradict each other; the flight ends");
            partial.retract(&[block]).await.map_err(|error| store_failed(digest, &error))?;
            return Err(ReadError::Failed(digest, format!("two piece lists contradict each other on block {block}")));
        }
        Ok(())
    }

    /// Takes another list in the place of the one that is known. Blocks that are here and that it contradicts are given up, on
    /// disk too, before anybody can get others in their place. `Ok`: whether there were any.
    ///
    /// # Errors
    /// [`Contradicted`] when a reader has bytes of such a block; the store's, as what ends the flight.
    pub(super) async fn replace_list(&self, list: &PieceList, author: Option<NodeId>) -> Result<bool, Contradicted> {
        let mut lost = false;
        loop {
            let Some(partial) = self.partial() else { return Ok(lost) };
            let contradicted = self.change(|body| {
                let have = body.have.runs();
                let blocks = have.iter().flat_map(shoal_proto::frame::Run::blocks);
                let wrong: Vec<_> = blocks.filter(|block| body.list.get(*block) != list.get(*block)).collect();
                if wrong.is_empty() {
                    body.list = list.clone();
                    body.author = author.clone().unwrap_or_else(|| body.author.clone());
                }
                wrong
            });
            let contradicted = contradicted.unwrap_or_default();
            if contradicted.is_empty() {
                return Ok(lost);
            }
            if contradicted.iter().any(|block| self.is_read_past(*block)) {
                return Err(Contradicted::Read);
            }
            lost = true;
            let blocks = contradicted.len();
            tracing::warn!(digest = %self.digest(), blocks, author = ?author, "a piece list contradicts blocks that are here; they are fetched again");
            // Their hashes are unknown until the old bytes are gone for good, so that nobody asks for them meanwhile.
            let notes = self.change(|body| {
                let mut kept = BlockSet::full(body.layout);
                for block in &contradicted {
                    kept.remove(*block);
                }
                let mut left = PieceList::new(body.layout);
                for block in (0..body.layout.blocks()).filter(|block| kept.contains(*block)) {
                    if let Some(hash) = list.get(block) {
                        left.set(block, *hash).expect("the list is empty");
                    }
                }
                contradicted.iter().for_each(|block| body.lose(*block));
                body.list = left;
                body.author = author.clone().unwrap_or_else(|| body.author.clone());
                body.notes()
            });
            let Some(notes) = notes else { return Ok(lost) };
            let failed = |error| Contradicted::Store(store_failed(self.digest(), &error));
            partial.retract(&contradicted).await.map_err(failed)?;
            partial.checkpoint(&notes).await.map_err(failed)?;
        }
    }

    /// Bytes in `range` by where they came from.
    pub(super) fn sources(&self, range: std::ops::Range<u64>) -> Sources {
        let mut sources = Sources::default();
        self.body(|body| {
            let mut at = range.start;
            while at < range.end {
                let block = body.layout.block_at(at);
                let end = body.layout.block_range(block).end.min(range.end);
                match body.from(block) {
                    None => sources.local += end - at,
                    Some(From::Peer) => sources.peers += end - at,
                    Some(From::Origin) => sources.origin += end - at,
                }
                at = end;
            }
        });
        sources
    }

    /// Bytes that came from the origin so far.
    pub(super) fn origin_bytes(&self) -> u64 {
        self.body(|body| {
            let runs = body.first_hand.runs();
            let blocks = runs.iter().flat_map(shoal_proto::frame::Run::blocks);
            blocks.map(|block| body.layout.block_len(block) as u64).sum()
        })
        .unwrap_or(0)
    }

    /// Whether this node read at least half of it from the origin.
    pub(super) fn is_first_hand(&self) -> bool {
        self.body(|body| body.first_hand().len() * 2 >= body.layout.blocks()).unwrap_or(false)
    }

    /// After a failed end: the partial blob is free for the next flight, although readers may still hold this one.
    pub(super) fn release(&self) {
        self.state.lock().body = None;
    }

    pub(super) fn reader_comes(&self, at: u64) -> u64 {
        let mut state = self.state.lock();
        let reader = state.next_reader;
        state.next_reader += 1;
        state.readers.insert(reader, at);
        (state.idle_since, state.dismissed) = (None, false);
        drop(state);
        self.bump();
        reader
    }

    pub(super) fn reader_moves(&self, reader: u64, to: u64) {
        self.state.lock().readers.insert(reader, to);
    }

    pub(super) fn reader_goes(&self, reader: u64) {
        let mut state = self.state.lock();
        state.readers.remove(&reader);
        state.note_idle();
    }

    pub(super) fn offer_comes(&self) {
        let mut state = self.state.lock();
        state.offers += 1;
        state.idle_since = None;
    }

    pub(super) fn offer_goes(&self) {
        let mut state = self.state.lock();
        state.offers -= 1;
        state.note_idle();
    }

    /// Whether a reader got bytes of this block, or may have.
    pub(super) fn is_read_past(&self, block: BlockIndex) -> bool {
        let state = self.state.lock();
        let Some(body) = &state.body else { return false };
        let start = body.layout.block_range(block).start;
        state.readers.values().any(|at| *at > start)
    }

    /// Whether somebody on this node waits for it.
    pub(super) fn is_awaited(&self) -> bool {
        !self.state.lock().readers.is_empty()
    }

    /// How many on this node wait for it.
    pub(super) fn readers(&self) -> usize {
        self.state.lock().readers.len()
    }

    /// Parents that gave bytes since this was asked last, with all that each gave; at most [`MOST_FED`] of them.
    pub(super) fn fed(&self) -> Vec<(NodeId, u64)> {
        let mut fed = self.fed.lock();
        let said: Vec<NodeId> = fed.unsaid.iter().take(MOST_FED).cloned().collect();
        let Fed { bytes, unsaid } = &mut *fed;
        let all = |node: NodeId| {
            unsaid.remove(&node);
            let came = bytes.get(&node).copied().unwrap_or(0);
            (node, came)
        };
        said.into_iter().map(all).collect()
    }

    /// Whoever wanted it does not come back: once nobody reads it here, it has been idle for ever. Peers that get it from here go on by
    /// themselves; nodes of which each gives to the other would keep each other at it to the end.
    pub(super) fn dismiss(&self) {
        self.state.lock().dismissed = true;
    }

    /// How long nobody has wanted it.
    pub(super) fn idle(&self) -> std::time::Duration {
        let state = self.state.lock();
        if state.dismissed && state.readers.is_empty() {
            return std::time::Duration::MAX;
        }
        state.idle_since.map(|since| since.elapsed()).unwrap_or_default()
    }
}

impl State {
    fn note_idle(&mut self) {
        if self.readers.is_empty() && self.offers == 0 {
            self.idle_since.get_or_insert_with(Instant::now);
        }
    }
}

/// The flight as the swarm sees it.
pub(super) struct Field {
    pub(super) flight: Arc<Flight>,
    pub(super) layout: Layout,
    pub(super) metrics: super::Metrics,
}

#[async_trait::async_trait]
impl Ground for Field {
    fn digest(&self) -> Digest {
        self.flight.digest()
    }

    fn layout(&self) -> Layout {
        self.layout
    }

    fn expected(&self, block: BlockIndex) -> Option<Hash> {
        self.flight.body(|body| body.list.get(block).copied()).flatten()
    }

    fn has(&self, block: BlockIndex) -> bool {
        self.flight.body(|body| body.have.contains(block)).unwrap_or(false)
    }

    fn survey(&self) -> Survey {
        let none = || BlockSet::empty(self.layout);
        let state = self.flight.state.lock();
        let Some(body) = &state.body else { return Survey { done: none(), known: none(), focuses: Vec::new() } };
        let missing = |at: u64| body.have.first_missing(self.layout.block_at(at));
        let awaited = state.readers.values().filter(|at| **at < self.layout.size()).map(|at| missing(*at));
        let mut focuses: Vec<BlockIndex> = awaited.filter(|block| *block < self.layout.blocks()).collect();
        if focuses.is_empty() {
            focuses.push(body.have.first_missing(0));
        }
        Survey { done: body.have.clone(), known: body.list.known_blocks().clone(), focuses }
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.flight.subscribe()
    }

    async fn accept(&self, block: BlockIndex, bytes: Bytes, from: &NodeId) -> Result<(), Halt> {
        if self.flight.is_over() {
            return Err(Halt);
        }
        let len = bytes.len() as u64;
        match self.flight.put(block, bytes, From::Peer).await {
            Ok(()) => {
                self.metrics.from_peers.inc_by(len);
                let mut fed = self.flight.fed.lock();
                *fed.bytes.entry(from.clone()).or_default() += len;
                fed.unsaid.insert(from.clone());
                Ok(())
            }
            Err(error) => {
                self.flight.finish(End::Failed(error));
                Err(Halt)
            }
        }
    }
}
