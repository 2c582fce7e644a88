//! What runs a flight: asks control, takes what comes first from parents or the origin, closes the whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use shoal_proto::{Digest, Hash, NodeId, PieceList};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::flight::{End, Flight};
use super::look_ahead::Ticket;
use super::metrics::{Leave, Outcome};
use super::upstream::{Heard, Words};
use super::{Inner, ReadError};
use crate::origin::OriginError;
use crate::store::StoreError;
use crate::swarm::{Ask, Event, FindError, Finding, Grant, ListError, Located, News, Parent, Tell};

mod doubt;
mod end;
mod news;
mod origin;
mod refused;

/// Progress to control, idleness and retries are looked at this often.
const TICK: Duration = Duration::from_millis(250);
/// With control gone, a flight that has had no block for this long reads the origin itself.
const STALL: Duration = Duration::from_secs(2);
/// Parents that are known may take this long to say whether they hold a blob, while control is away.
const KNOWN_PATIENCE: Duration = Duration::from_secs(2);
/// As long as one of them has it in part it is waited for: it may soon vouch for all of it. With what the origin takes then, the
/// first byte still comes within I8's 5 s.
const PART_PATIENCE: Duration = Duration::from_secs(3);
/// A flight that may not read the origin ends when it has had neither parents nor a block for so long.
const NOBODY: Duration = Duration::from_secs(10);
/// Control is asked again this long after it went away.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Failed reads of the origin, in this flight, after which it is given up.
const ORIGIN_TRIES: u32 = 3;
/// The sidecar of a partial blob is written after this many new bytes, at most once a tick: what a kill costs. The store
/// decides by itself when the disk must be waited for.
const CHECKPOINT: u64 = 1 << 20;

pub(super) fn spawn(inner: Arc<Inner>, flight: Arc<Flight>) {
    let span = tracing::info_span!("flight", digest = %flight.digest(), kind = ?flight.kind);
    inner.remember_trace(flight.digest(), &span);
    tokio::spawn(
        async move {
            let chance = rand::random::<f64>();
            let mut runner = Runner::new(Arc::clone(&inner), Arc::clone(&flight), chance);
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
    heard: (Words, mpsc::Receiver<(u64, Heard)>),
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    /// Reads of the origin, by their permit; 0 for the one without.
    reads: BTreeMap<u64, origin::Reading>,
    /// The permits, by their number. One to the end stays when everything is read: the blob has to close under it.
    permits: BTreeMap<u64, Grant>,
    /// Permits whose reads failed.
    ended: BTreeSet<u64>,
    /// Leave to read the origin without a permit, not used yet because nobody waits.
    leave: Option<Leave>,
    ticket: Option<Ticket>,
    swarm: Option<Aborting<()>>,
    closing: Option<Aborting<Result<Digest, ReadError>>>,
    doubt: Option<doubt::Doubt>,
    sealed: Option<(NodeId, Hash)>,
    list_body: Option<Aborting<Result<PieceList, ListError>>>,
    /// Whether the known parents were asked, once a flight, and their answer while it is awaited.
    asked_known: bool,
    /// Some of the list was not believed, and has not come otherwise.
    refused: Option<refused::Refused>,
    chance: f64,
    locating: Option<Aborting<Option<Located>>>,
    checkpoint: Option<Aborting<Result<(), StoreError>>>,
    checkpointed: u64,
    origin_failures: u32,
    /// What the origin said when it refused every reader so far.
    denied: Option<OriginError>,
    grown: (u32, Instant),
    told: u32,
    outcome: Outcome,
}

impl Runner {
    /// `chance`: random, from 0 to 1; tells apart nodes that start at the same moment.
    fn new(inner: Arc<Inner>, flight: Arc<Flight>, chance: f64) -> Self {
        Self {
            inner,
            flight,
            finding: None,
            asked_for_permit: false,
            ask_at: Some(Instant::now()),
            parents: watch::Sender::new(Arc::from([])),
            heard: mpsc::channel(64),
            events: mpsc::channel(64),
            reads: BTreeMap::new(),
            permits: BTreeMap::new(),
            ended: BTreeSet::new(),
            leave: None,
            ticket: None,
            swarm: None,
            closing: None,
            doubt: None,
            sealed: None,
            list_body: None,
            asked_known: false,
            refused: None,
            chance,
            locating: None,
            checkpoint: None,
            checkpointed: 0,
            origin_failures: 0,
            denied: None,
            grown: (0, Instant::now()),
            told: 0,
            outcome: Outcome::Failed,
        }
    }

    async fn run(&mut self) {
        let inner = Arc::clone(&self.inner);
        let flight = Arc::clone(&self.flight);
        let mut changed = flight.subscribe();
        let mut liars = inner.liars.subscribe();
        self.resume().await;
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
                Some((permit, heard)) = self.heard.1.recv() => self.on_heard(permit, heard).await,
                Some(event) = self.events.1.recv() => self.on_event(event).await,
                closed = joined(&mut self.closing) => self.on_closed(closed).await,
                list = joined(&mut self.list_body) => self.on_list(list).await,
                size = doubt::settled(&mut self.doubt) => self.on_size(size).await,
                located = joined(&mut self.locating) => self.on_located(located.flatten()).await,
                got = &mut ticket, if self.ticket.is_none() => {
                    self.ticket = Some(got);
                    self.may_now();
                }
                Ok(()) = changed.changed() => self.may_now(),
                Ok(()) = liars.changed() => self.on_liar().await,
                _ = tick.tick() => self.on_tick().await,
            }
        }
    }

    async fn ask(&mut self) {
        self.ask_at = None;
        let permit = self.keep_one_permit();
        let way = self.flight.way().map(|way| way.target);
        let may_read_origin = self.may_read_origin();
        let ask = Ask {
            digest: self.flight.digest(),
            size: self.flight.layout().map(|layout| layout.size()).or(self.flight.size_hint.get().copied()),
            registry: way.as_ref().map(|at| at.registry.to_string()).unwrap_or_default(),
            repository: way.as_ref().map(|at| at.repository.to_string()).unwrap_or_default(),
            kind: self.flight.kind,
            may_read_origin,
            blocks_held: self.flight.body(|body| body.have.len()).unwrap_or(0),
            permit,
            takes_runs: !way.is_some_and(|at| self.inner.ignores_ranges.is(&at.registry)),
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
        let (Some(permit), Some(finding)) = (self.permits.keys().next().copied(), &self.finding) else { return };
        let tell = finding.tell.clone();
        if let Some(origin::Held { size, media_type, runs }) = self.held(&super::upstream::WHOLE, |_, _| true) {
            tokio::spawn(async move {
                let _ = tell.send(Tell::Headers { permit, size, media_type }).await;
                for (first, hashes) in runs {
                    let _ = tell.send(Tell::Hashes { first, hashes: hashes.into() }).await;
                }
            });
        }
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

    async fn on_event(&mut self, event: Event) {
        match event {
            Event::Lied { node, block } => {
                tracing::warn!(digest = %self.flight.digest(), %node, block, "peer sent bytes that do not match");
                self.on_lie(node, block).await;
            }
            Event::LiedOfList { node } => {
                tracing::warn!(digest = %self.flight.digest(), %node, "peer sent bytes that do not match: its piece list is not the root's");
                self.on_lie(node, 0).await;
            }
            // Control may know of others, or let this node read the origin: it can't see from afar that a parent is no use.
            Event::Lost { node, .. } => self.tell(Tell::Lost { node }).await,
            Event::Serving { node } => tracing::debug!(%node, "parent serves"),
        }
        self.progress().await;
    }

    /// A parent lied: nobody here asks it again, and control hears of it.
    async fn on_lie(&mut self, node: NodeId, block: u32) {
        self.inner.liars.add_parent(&node, self.inner.config.shun);
        let parents = self.parents.borrow().to_vec();
        self.name(parents);
        self.tell(Tell::Lied { node, block }).await;
    }

    /// Tells control at the first block, and at most once a tick after it.
    async fn progress(&mut self) {
        let blocks = self.flight.body(|body| body.have.len()).unwrap_or(0);
        if blocks > 0 && self.told == 0 {
            self.told = blocks;
            self.tell(self.said(blocks)).await;
        }
    }

    fn said(&self, blocks: u32) -> Tell {
        Tell::Progress { blocks, origin_bytes: self.flight.origin_bytes(), fed: self.flight.fed() }
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
            let _ = finding.tell.try_send(self.said(blocks));
        }
        self.want_list_body();
        if self.finding.is_none() && self.reads.is_empty() && self.leave.is_none() && self.grown.1.elapsed() >= STALL {
            self.without_control(Leave::NoControl);
        }
        self.go_on_without_a_list();
        self.end_without_anybody();
        if self.flight.idle() >= self.inner.config.linger {
            self.outcome = Outcome::Abandoned;
            self.give_back_all().await;
            self.fail(ReadError::Failed(self.flight.digest(), "nobody waits for it any more".into()));
        }
        self.start_checkpoint(blocks);
    }

    /// Who may not read the origin has nothing to wait for once no peer gives anything.
    fn end_without_anybody(&mut self) {
        let nobody = self.flight.way().is_none() && self.parents.borrow().is_empty() && self.locating.is_none();
        if nobody && self.closing.is_none() && self.grown.1.elapsed() >= NOBODY {
            let digest = self.flight.digest();
            let denied = self.denied.take().map(|error| ReadError::Origin(digest, Arc::new(error)));
            self.fail(denied.unwrap_or(ReadError::NotFound(digest)));
        }
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
}

async fn next_news(finding: &mut Option<Finding>) -> Option<News> {
    match finding {
        Some(finding) => finding.news.recv().await,
        None => std::future::pending().await,
    }
}

/// The result of work that was started, `None` when it panicked; pending while there is none.
async fn joined<T: Send + 'static>(work: &mut Option<Aborting<T>>) -> Option<T> {
    let Some(running) = work else { return std::future::pending().await };
    let result = running.await.ok();
    *work = None;
    result
}
