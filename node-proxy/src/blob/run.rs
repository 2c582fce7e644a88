//! What runs a flight: asks control, takes what comes first from parents or the origin, closes the whole.

use std::sync::Arc;
use std::time::Duration;

use shoal_proto::{Hash, Layout, NodeId, PieceList};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::flight::{End, Field, Flight};
use super::look_ahead::{Awaited, Ticket};
use super::metrics::{Leave, Outcome};
use super::upstream::{self, Heard, Trouble};
use super::{Inner, ReadError, close, store_failed};
use crate::origin::OriginError;
use crate::store::StoreError;
use crate::swarm::{Ask, Event, FindError, Finding, ListError, News, OriginTrouble, Parent, Tell};

/// Progress to control, idleness and retries are looked at this often.
const TICK: Duration = Duration::from_millis(250);
/// With control gone, a flight that has had no block for this long reads the origin itself.
const STALL: Duration = Duration::from_secs(2);
/// Control is asked again this long after it went away.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Failed reads of the origin, in this flight, after which it is given up.
const ORIGIN_TRIES: u32 = 3;
/// The sidecar of a partial blob is written after this many new bytes.
const CHECKPOINT: u64 = 64 << 20;

pub(super) fn spawn(inner: Arc<Inner>, flight: Arc<Flight>) {
    let span = tracing::info_span!("flight", digest = %flight.digest(), kind = ?flight.want.kind);
    inner.remember_trace(flight.digest(), &span);
    tokio::spawn(
        async move {
            let mut runner = Runner::new(Arc::clone(&inner), Arc::clone(&flight));
            runner.run().await;
            runner.end().await;
            inner.forget(&flight);
            inner.metrics.flights.dec();
        }
        .instrument(span),
    );
}

type Aborting<T> = AbortOnDropHandle<T>;

fn start<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Aborting<T> {
    let handle: JoinHandle<T> = tokio::spawn(work.instrument(tracing::Span::current()));
    AbortOnDropHandle::new(handle)
}

struct Runner {
    inner: Arc<Inner>,
    flight: Arc<Flight>,
    finding: Option<Finding>,
    /// Whether control was told that this node would read the origin.
    asked_for_permit: bool,
    ask_at: Option<Instant>,
    parents: watch::Sender<Arc<[Parent]>>,
    heard: (mpsc::Sender<Heard>, mpsc::Receiver<Heard>),
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    origin: Option<(Aborting<()>, Option<Awaited>)>,
    permit: Option<u64>,
    /// Leave to read the origin without a permit, not used yet because nobody waits.
    leave: Option<Leave>,
    ticket: Option<Ticket>,
    swarm: Option<Aborting<()>>,
    closing: Option<Aborting<Result<shoal_proto::Digest, ReadError>>>,
    sealed: Option<(NodeId, Hash)>,
    list_body: Option<Aborting<Result<PieceList, ListError>>>,
    checkpoint: Option<Aborting<Result<(), StoreError>>>,
    checkpointed: u64,
    origin_failures: u32,
    grown: (u32, Instant),
    told: u32,
    outcome: Outcome,
}

impl Runner {
    fn new(inner: Arc<Inner>, flight: Arc<Flight>) -> Self {
        Self {
            inner,
            flight,
            finding: None,
            asked_for_permit: false,
            ask_at: Some(Instant::now()),
            parents: watch::Sender::new(Arc::from([])),
            heard: mpsc::channel(64),
            events: mpsc::channel(64),
            origin: None,
            permit: None,
            leave: None,
            ticket: None,
            swarm: None,
            closing: None,
            sealed: None,
            list_body: None,
            checkpoint: None,
            checkpointed: 0,
            origin_failures: 0,
            grown: (0, Instant::now()),
            told: 0,
            outcome: Outcome::Failed,
        }
    }

    async fn run(&mut self) {
        let inner = Arc::clone(&self.inner);
        let flight = Arc::clone(&self.flight);
        let mut changed = flight.subscribe();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ticket = std::pin::pin!(inner.gate.enter());
        while !flight.is_over() {
            if self.ask_at.is_some_and(|at| at <= Instant::now()) {
                self.ask().await;
                continue;
            }
            tokio::select! {
                news = next_news(&mut self.finding) => self.on_news(news).await,
                Some(heard) = self.heard.1.recv() => self.on_heard(heard).await,
                Some(event) = self.events.1.recv() => self.on_event(event).await,
                closed = joined(&mut self.closing) => self.on_closed(closed).await,
                list = joined(&mut self.list_body) => self.on_list(list),
                got = &mut ticket, if self.ticket.is_none() => {
                    self.ticket = Some(got);
                    self.may_now();
                }
                Ok(()) = changed.changed() => self.may_now(),
                _ = tick.tick() => self.on_tick().await,
            }
        }
    }

    /// Whether this flight may read the origin: somebody waits for it, or it is its turn ahead of the readers.
    fn may_read_origin(&self) -> bool {
        self.flight.is_awaited() || self.ticket.is_some()
    }

    /// A reader came, or the gate opened: what was held back starts.
    fn may_now(&mut self) {
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

    async fn ask(&mut self) {
        self.ask_at = None;
        let want = &self.flight.want;
        let may_read_origin = self.may_read_origin();
        let ask = Ask {
            digest: want.digest,
            size: self.flight.layout().map(|layout| layout.size()).or(self.flight.size_hint),
            registry: want.target.registry.to_string(),
            repository: want.target.repository.to_string(),
            kind: want.kind,
            may_read_origin,
            blocks_held: self.flight.body(|body| body.have.len()).unwrap_or(0),
            permit: self.permit,
        };
        self.asked_for_permit = may_read_origin;
        match self.inner.source.find(ask).await {
            Ok(finding) => {
                self.finding = Some(finding);
                self.leave = None;
                self.retell();
            }
            Err(error) => {
                let leave = match error {
                    FindError::Unreachable(_) => Leave::NoControl,
                    FindError::Alone(_) => Leave::Alone,
                };
                tracing::debug!(%error, "ask control");
                self.without_control(leave);
                if leave == Leave::NoControl {
                    self.ask_at = Some(Instant::now() + ASK_AGAIN);
                }
            }
        }
    }

    /// After control came back in the middle of a read of the origin: it must learn the list so far.
    fn retell(&mut self) {
        let (Some(permit), Some(finding)) = (self.permit, &self.finding) else { return };
        let tell = finding.tell.clone();
        let known = self.flight.body(|body| (body.layout.size(), body.media_type.to_string(), body.list.runs(1024)));
        if let Some((size, media_type, runs)) = known {
            tokio::spawn(async move {
                let _ = tell.send(Tell::Headers { permit, size, media_type }).await;
                for (first, hashes) in runs {
                    let _ = tell.send(Tell::Hashes { first, hashes: hashes.into() }).await;
                }
            });
        }
    }

    /// Parents that are known go on serving; without any, the origin.
    fn without_control(&mut self, leave: Leave) {
        if self.origin.is_some() {
            return;
        }
        if !self.parents.borrow().is_empty() && self.grown.1.elapsed() < STALL {
            return;
        }
        if self.may_read_origin() {
            self.start_origin(leave);
        } else {
            self.leave = Some(leave);
        }
    }

    fn start_origin(&mut self, leave: Leave) {
        if self.origin.is_some() || self.flight.body(|body| body.have.is_full()) == Some(true) {
            return;
        }
        self.inner.metrics.origin_read(leave);
        self.flight.set_at_origin(true);
        let awaited = self.flight.is_awaited().then(|| self.inner.gate.awaited());
        let read = upstream::read(Arc::clone(&self.inner), Arc::clone(&self.flight), self.heard.0.clone());
        self.origin = Some((start(read), awaited));
    }

    async fn tell(&self, tell: Tell) {
        if let Some(finding) = &self.finding {
            // A closed channel is noticed on the other half.
            let _ = finding.tell.send(tell).await;
        }
    }

    fn fail(&self, error: ReadError) {
        tracing::debug!(%error, "flight failed");
        self.flight.finish(End::Failed(error));
    }

    async fn on_news(&mut self, news: Option<News>) {
        match news {
            None | Some(News::Again) => {
                self.finding = None;
                self.ask_at = Some(Instant::now() + TICK);
                if self.permit.is_none() && self.parents.borrow().is_empty() {
                    self.ask_at = Some(Instant::now());
                }
            }
            Some(News::Parents(parents)) => {
                self.parents.send_replace(parents.into());
                self.want_list_body();
            }
            Some(News::Head { author, size, media_type }) => {
                if self.begin(size, &media_type, &author).await {
                    self.take_author(author);
                }
            }
            Some(News::Hashes { first, hashes }) => {
                let fits = self.flight.change(|body| body.list.set_run(first, &hashes));
                if let Some(Err(conflict)) = fits {
                    tracing::warn!(digest = %self.flight.digest(), %conflict, "piece list contradicts itself");
                    self.mismatch().await;
                }
            }
            Some(News::Sealed { author, root, size, media_type }) => {
                if self.begin(size, &media_type, &author).await {
                    self.sealed = Some((author, root));
                    self.want_list_body();
                }
            }
            Some(News::Permit { id }) => {
                self.permit = Some(id);
                if self.origin.is_some() {
                    return;
                }
                self.start_origin(Leave::Permit);
            }
            Some(News::Revoked) => {
                self.permit = None;
                self.origin = None;
                self.flight.set_at_origin(false);
            }
            Some(News::Waiting { at_origin, reason }) => {
                tracing::debug!(reason, "wait for another node");
                self.flight.set_at_origin(at_origin);
            }
            Some(News::NotFound) if self.origin.is_none() => self.fail(ReadError::NotFound(self.flight.digest())),
            Some(News::NotFound) => {}
            Some(News::Alone) => {
                self.finding = None;
                self.without_control(Leave::Alone);
            }
        }
    }

    /// Size and media type are known: makes room, and lets swarm and hash begin. False: the flight is over.
    async fn begin(&mut self, size: u64, media_type: &str, author: &NodeId) -> bool {
        let digest = self.flight.digest();
        if let Some(layout) = self.flight.layout() {
            if layout.size() == size {
                return true;
            }
            tracing::warn!(%digest, %author, size, known = layout.size(), "author contradicts the known size");
            self.mismatch().await;
            return false;
        }
        let layout = match Layout::of(size) {
            Ok(layout) => layout,
            Err(error) => {
                self.fail(ReadError::NotKept(digest, error.to_string()));
                return false;
            }
        };
        let partial = match self.inner.store.partial(&digest, layout).await {
            Ok(partial) => partial,
            Err(error) => {
                if let Some(permit) = self.permit.take() {
                    self.tell(Tell::Trouble { permit, why: OriginTrouble::Abandoned }).await;
                }
                self.fail(store_failed(digest, &error));
                return false;
            }
        };
        self.flight.begin(layout, media_type.into(), author.clone(), partial);
        self.closing = Some(start(close::follow(Arc::clone(&self.flight))));
        let ground = Field { flight: Arc::clone(&self.flight), layout, metrics: self.inner.metrics.clone() };
        let (peers, parents, events) = (Arc::clone(&self.inner.peers), self.parents.subscribe(), self.events.0.clone());
        self.swarm = Some(start(async move { peers.fetch(Arc::new(ground), parents, events).await }));
        true
    }

    /// Another author vouches for the list from now on: hashes of blocks that are not here yet are forgotten.
    fn take_author(&self, author: NodeId) {
        self.flight.change(|body| {
            if body.author == author {
                return;
            }
            let mut list = PieceList::new(body.layout);
            for block in body.have.runs().iter().flat_map(shoal_proto::frame::Run::blocks) {
                if let Some(hash) = body.list.get(block) {
                    list.set(block, *hash).expect("the list is empty and the block exists");
                }
            }
            body.list = list;
            body.author = author;
        });
    }

    /// Gets the body of a sealed list from a whole parent, when the list is not complete already.
    fn want_list_body(&mut self) {
        let (Some((_, root)), None) = (&self.sealed, &self.list_body) else { return };
        let Some((layout, complete)) = self.flight.body(|body| (body.layout, body.list.is_complete())) else { return };
        let parents: Arc<[Parent]> = self.parents.borrow().iter().filter(|parent| parent.complete).cloned().collect();
        if complete || parents.is_empty() {
            return;
        }
        let (peers, digest, root) = (Arc::clone(&self.inner.peers), self.flight.digest(), *root);
        self.list_body = Some(start(async move { peers.fetch_list(digest, layout, root, parents).await }));
    }

    fn on_list(&mut self, list: Result<PieceList, ListError>) {
        self.list_body = None;
        match list {
            Ok(list) => {
                let author = self.sealed.as_ref().map(|(author, _)| author.clone());
                self.flight.change(|body| {
                    // Blocks here that the sealed list contradicts are asked for again.
                    for block in body.have.runs().iter().flat_map(shoal_proto::frame::Run::blocks) {
                        if body.list.get(block) != list.get(block) {
                            body.have.remove(block);
                        }
                    }
                    body.list = list;
                    if let Some(author) = author {
                        body.author = author;
                    }
                });
            }
            Err(error) => tracing::debug!(%error, "fetch piece list"),
        }
    }

    async fn on_heard(&mut self, heard: Heard) {
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
            Heard::Ended(Ok(())) => self.origin = None,
            Heard::Ended(Err(trouble)) => {
                self.origin = None;
                self.flight.set_at_origin(false);
                self.on_trouble(trouble).await;
            }
        }
    }

    async fn on_trouble(&mut self, trouble: Trouble) {
        let digest = self.flight.digest();
        let permit = self.permit.take();
        match trouble {
            Trouble::Here(error) => {
                if let Some(permit) = permit {
                    self.tell(Tell::Trouble { permit, why: OriginTrouble::Abandoned }).await;
                }
                self.fail(error);
            }
            Trouble::Contradicted => {
                tracing::warn!(%digest, "the origin's bytes contradict the piece list");
                self.mismatch().await;
            }
            Trouble::Origin(error) => {
                self.origin_failures += 1;
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
                if self.origin_failures >= ORIGIN_TRIES || (final_word && permit.is_none()) {
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

    async fn on_event(&mut self, event: Event) {
        match event {
            Event::Lied { node, block } => {
                tracing::warn!(digest = %self.flight.digest(), %node, block, "peer sent bytes that do not match");
                self.tell(Tell::Lied { node, block }).await;
            }
            Event::Lost { node, why } => tracing::debug!(%node, why, "parent lost"),
            Event::Serving { node } => tracing::debug!(%node, "parent serves"),
        }
        self.progress().await;
    }

    /// Tells control at the first block, and at most once a tick after it.
    async fn progress(&mut self) {
        let blocks = self.flight.body(|body| body.have.len()).unwrap_or(0);
        if blocks > 0 && self.told == 0 {
            self.told = blocks;
            self.tell(Tell::Progress { blocks, origin_bytes: self.flight.origin_bytes() }).await;
        }
    }

    async fn on_tick(&mut self) {
        let blocks = self.flight.body(|body| body.have.len()).unwrap_or(0);
        if blocks > self.grown.0 {
            self.grown = (blocks, Instant::now());
        }
        if blocks > self.told
            && let Some(finding) = &self.finding
        {
            self.told = blocks;
            let _ = finding.tell.try_send(Tell::Progress { blocks, origin_bytes: self.flight.origin_bytes() });
        }
        self.want_list_body();
        if self.finding.is_none() && self.origin.is_none() && self.leave.is_none() && self.grown.1.elapsed() >= STALL {
            self.without_control(Leave::NoControl);
        }
        if self.flight.idle() >= self.inner.config.linger {
            self.outcome = Outcome::Abandoned;
            if let Some(permit) = self.permit.take() {
                self.tell(Tell::Trouble { permit, why: OriginTrouble::Abandoned }).await;
            }
            self.fail(ReadError::Failed(self.flight.digest(), "nobody waits for it any more".into()));
        }
        self.start_checkpoint(blocks);
    }

    fn start_checkpoint(&mut self, blocks: u32) {
        if self.checkpoint.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        let Some((bytes, partial, notes)) = self
            .flight
            .body(|body| {
                let bytes = u64::from(blocks) * body.layout.block_size();
                let due = bytes >= self.checkpointed + CHECKPOINT && !body.have.is_full();
                due.then(|| (bytes, Arc::clone(&body.partial), body.notes()))
            })
            .flatten()
        else {
            return;
        };
        self.checkpointed = bytes;
        self.checkpoint = Some(start(async move { partial.checkpoint(&notes).await }));
    }

    async fn on_closed(&mut self, closed: Result<shoal_proto::Digest, ReadError>) {
        self.closing = None;
        match closed {
            Ok(digest) if digest == self.flight.digest() => self.commit().await,
            Ok(other) => {
                tracing::warn!(digest = %self.flight.digest(), got = %other, "the whole does not match its digest");
                self.mismatch().await;
            }
            Err(error) => self.fail(error),
        }
    }

    async fn commit(&mut self) {
        let digest = self.flight.digest();
        if let Some(running) = self.checkpoint.take() {
            let _ = running.await;
        }
        let Some((partial, notes)) = self.flight.body(|body| (Arc::clone(&body.partial), body.notes())) else { return };
        match partial.commit(&notes).await {
            Ok(held) => {
                let info = held.info().clone();
                self.flight.finish(End::Held(held));
                self.outcome = Outcome::Held;
                let media_type = info.media_type.to_string();
                self.tell(Tell::Done { size: info.size, root: info.root, media_type }).await;
            }
            Err(error) => self.fail(store_failed(digest, &error)),
        }
    }

    /// The whole is wrong, or its list: nobody gets it from here for a while, and the author is named (I1).
    async fn mismatch(&mut self) {
        let digest = self.flight.digest();
        let author = self.flight.body(|body| body.author.clone()).unwrap_or_else(|| self.inner.me.clone());
        self.origin = None;
        self.swarm = None;
        self.closing = None;
        self.inner.shun(digest);
        self.outcome = Outcome::Mismatched;
        tracing::warn!(%digest, %author, "threw a blob away");
        self.tell(Tell::Mismatch { author }).await;
        self.flight.finish(End::Failed(ReadError::Mismatched(digest)));
        if let Some(partial) = self.flight.partial()
            && let Err(error) = partial.discard().await
        {
            tracing::warn!(%digest, %error, "discard partial blob");
        }
    }

    /// Leaves the disk in order: what is verified may be resumed, and the next flight may begin.
    async fn end(&mut self) {
        self.origin = None;
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

async fn next_news(finding: &mut Option<Finding>) -> Option<News> {
    match finding {
        Some(finding) => finding.news.recv().await,
        None => std::future::pending().await,
    }
}

/// The result of work that was started; pending while there is none.
async fn joined<T: Send + 'static>(work: &mut Option<Aborting<T>>) -> T {
    let Some(running) = work else { return std::future::pending().await };
    match running.await {
        Ok(result) => {
            *work = None;
            result
        }
        Err(_) => std::future::pending().await,
    }
}
