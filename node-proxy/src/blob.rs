//! The engine that every edge calls: a blob's bytes, wherever they are, verified.
//!
//! Owns flights: any number of readers of a digest share one fetch. A flight takes bytes from the store, from parents
//! or from the origin, hashes them, and hands them on from the first block; it alone decides that a blob is held.
//! Does not speak HTTP, gRPC or the peer protocol.
//!
//! What always holds:
//! - A byte that leaves here came from a held blob, from the origin in this flight, or matched the piece list; the last
//!   block goes to a reader only after the SHA-256 of the whole closed (I1).
//! - One flight per digest, however many readers (I6, on one node).
//! - The first byte or an error within the first byte budget (I8).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_proto::{Digest, Kind, NodeId};

use crate::origin::{self, OriginError};
use crate::store::{Store, StoreError};
use crate::swarm::ParentSource;

mod close;
mod cluster;
mod fetch;
mod flight;
#[doc(hidden)]
pub mod fuzz;
mod lately;
mod liars;
mod look_ahead;
mod metrics;
mod offer;
mod outside;
mod progress;
mod read;
mod run;
mod upstream;

#[cfg(test)]
mod tests;

pub use look_ahead::Named;
pub use metrics::Metrics;
pub use offer::Offer;
pub use outside::{Incoming, Peers, Upstream};
pub use progress::Progress;
pub use read::{MOST_AT_ONCE, Opened, Part, Reading};

use flight::Flight;
use liars::Liars;

/// Traces of flights are remembered for late requests: so many at most, each for so long when room is needed.
const MOST_TRACES: usize = 1024;
/// Held blobs that are remembered as read from the origin; what is older has found other holders.
const MOST_FIRST_HAND: usize = 1024;
const TRACE_LIFE: Duration = Duration::from_secs(60);

/// What a reader wants. Whoever calls has asked the origin whether the reader may have it, and whether it is in the
/// repository (I10): this room gives what it holds to whoever asks.
#[derive(Debug, Clone)]
pub struct Want {
    /// The content.
    pub digest: Digest,
    /// Where the origin has it.
    pub target: origin::Target,
    /// Blob or manifest.
    pub kind: Kind,
    /// On whose behalf the origin may be read.
    pub who: origin::Who,
}

/// Why bytes can't be given, by what the edge answers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// This node threw the digest away within the last 10 minutes because it did not match (I1). Answer 404.
    #[error("{0} did not match its digest here; ask the registry")]
    Mismatched(Digest),
    /// The origin says that it is not there. Answer 404.
    #[error("{0} is not at the origin")]
    NotFound(Digest),
    /// No byte within the first byte budget (I8). Pass a Range through, else answer 503.
    #[error("no byte of {digest} within {waited:?}")]
    Slow {
        /// The blob.
        digest: Digest,
        /// How long.
        waited: Duration,
    },
    /// No room on disk (I11), or a blob that can't be cut into blocks: pass through, keep nothing.
    #[error("{0} can't be kept here: {1}")]
    NotKept(Digest, String),
    /// The origin failed, and nobody else has it.
    #[error("{0}: {1}")]
    Origin(Digest, Arc<OriginError>),
    /// Everything that was tried failed mid-way. After bytes have flown: FIN. Before: 503.
    #[error("{0} can't be read: {1}")]
    Failed(Digest, String),
}

/// Where bytes came from that a reader got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sources {
    /// Held before anybody asked.
    pub local: u64,
    /// From peers.
    pub peers: u64,
    /// From the origin.
    pub origin: u64,
}

/// Settings of the engine.
#[derive(Debug, Clone)]
pub struct Config {
    /// The longest wait for a first byte, 5 s (I8).
    pub first_byte_budget: Duration,
    /// The same while another node's request is out at the origin, 20 s (I8).
    pub origin_byte_budget: Duration,
    /// How many flights that nobody waits for may read the origin at once; 0 turns look-ahead off.
    pub look_ahead: usize,
    /// A flight that nobody waits for stops after this long, 30 s.
    pub linger: Duration,
    /// How long a digest that did not match is refused, 10 min (I1).
    pub shun: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            first_byte_budget: Duration::from_secs(5),
            origin_byte_budget: Duration::from_secs(20),
            look_ahead: 3,
            linger: Duration::from_secs(30),
            shun: Duration::from_secs(600),
        }
    }
}

/// The engine. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    me: NodeId,
    config: Config,
    store: Arc<dyn Store>,
    upstream: Arc<dyn Upstream>,
    peers: Arc<dyn Peers>,
    source: Arc<dyn ParentSource>,
    metrics: Metrics,
    flights: Mutex<HashMap<Digest, Arc<Flight>>>,
    shunned: Mutex<HashMap<Digest, Instant>>,
    liars: Liars,
    gate: look_ahead::Gate,
    failing: lately::Lately,
    ignores_ranges: lately::Lately,
    traces: Mutex<HashMap<Digest, (Instant, String)>>,
    /// Held blobs that this process read from the origin, the oldest first.
    first_hand: Mutex<VecDeque<Digest>>,
}

/// What the engine is made of.
pub struct Parts {
    /// This node, the author of lists of what it reads from the origin.
    pub me: NodeId,
    /// The disk.
    pub store: Arc<dyn Store>,
    /// The registry.
    pub upstream: Arc<dyn Upstream>,
    /// Bytes from peers.
    pub peers: Arc<dyn Peers>,
    /// Who knows where a blob is.
    pub source: Arc<dyn ParentSource>,
    /// Registered counters.
    pub metrics: Metrics,
}

/// A flight that a peer asks for is waited for so long until it knows how large the blob is.
const BEGINS_WITHIN: Duration = Duration::from_millis(500);

impl Engine {
    /// Makes an engine with no flight.
    pub fn new(config: Config, parts: Parts) -> Self {
        let gate = look_ahead::Gate::new(config.look_ahead);
        Self(Arc::new(Inner {
            me: parts.me,
            config,
            store: parts.store,
            upstream: parts.upstream,
            peers: parts.peers,
            source: parts.source,
            metrics: parts.metrics,
            flights: Mutex::default(),
            shunned: Mutex::default(),
            liars: Liars::default(),
            gate,
            failing: lately::Lately::fails(),
            ignores_ranges: lately::Lately::ignores_ranges(),
            traces: Mutex::default(),
            first_hand: Mutex::default(),
        }))
    }

    /// Opens content for reading: from the store, or by joining or starting its flight. Size and media type are known
    /// when this returns; no byte need be there yet. `since`: when the caller began to wait, which the budget is counted
    /// from. Cancel safe.
    ///
    /// # Errors
    /// [`ReadError`], within the first byte budget.
    pub async fn open(&self, want: Want, since: tokio::time::Instant) -> Result<Opened, ReadError> {
        self.refuse_shunned(&want.digest)?;
        // A flight may end between the look into the store and the look among the flights: hence twice.
        for _ in 0..2 {
            if let Some(held) = self.open_held(&want.digest).await? {
                return Ok(Opened::held(want.digest, held, Arc::clone(&self.0), since));
            }
            let flight = self.join(&want, None);
            match Opened::flight(Arc::clone(&self.0), flight, since).await {
                Some(opened) => return opened,
                None => continue,
            }
        }
        Err(ReadError::Failed(want.digest, "its flight ended while it was joined".into()))
    }

    async fn open_held(&self, digest: &Digest) -> Result<Option<Arc<dyn crate::store::Held>>, ReadError> {
        match self.0.store.open(digest).await {
            Ok(held) => Ok(held),
            Err(error) => {
                tracing::warn!(%digest, %error, "open held blob");
                Ok(None)
            }
        }
    }

    fn refuse_shunned(&self, digest: &Digest) -> Result<(), ReadError> {
        let mut shunned = self.0.shunned.lock();
        shunned.retain(|_, since| since.elapsed() < self.0.config.shun);
        if shunned.contains_key(digest) { Err(ReadError::Mismatched(*digest)) } else { Ok(()) }
    }

    /// The running flight of a digest, or a new one. `size` is what a manifest says, if known.
    fn join(&self, want: &Want, size: Option<u64>) -> Arc<Flight> {
        let mut flights = self.0.flights.lock();
        // The first manifest that says a size is believed: containerd takes no other for that image either.
        let told = |flight: &Flight| size.map(|size| *flight.size_hint.get_or_init(|| size));
        if let Some(flight) = flights.get(&want.digest).filter(|flight| !flight.is_over()) {
            told(flight);
            flight.may_be_read_by(want);
            return Arc::clone(flight);
        }
        let flight = self.0.start(&mut flights, Flight::new(want.clone()));
        told(&flight);
        flight
    }

    /// What this node can give a peer of a digest: a held blob, or the verified blocks of a running flight.
    pub async fn offer(&self, digest: &Digest) -> Option<Offer> {
        if self.refuse_shunned(digest).is_err() {
            return None;
        }
        if let Ok(Some(held)) = self.open_held(digest).await {
            return Offer::held(held, self.0.first_hand.lock().contains(digest));
        }
        let flight = self.0.flights.lock().get(digest).cloned()?;
        // Control names nodes to each other as soon as it has told them how large the blob is: the other may be here first.
        let begun = flight.begun();
        tokio::time::timeout(BEGINS_WITHIN, begun).await.ok()?;
        Offer::flight(*digest, flight)
    }

    /// What is known of a held blob, from memory; `None` when it is not held or must not be given.
    pub fn held(&self, digest: &Digest) -> Option<crate::store::Info> {
        self.refuse_shunned(digest).ok()?;
        self.0.store.held(digest)
    }

    /// W3C trace context of the flight that fetched, or fetches, this digest: a request that comes while or shortly after
    /// belongs into the same trace, so that whoever looks for its URL finds what was done for it.
    pub fn trace_of(&self, digest: &Digest) -> Option<String> {
        self.0.traces.lock().get(digest).map(|(_, trace)| trace.clone())
    }

    /// Says that whoever read this does not come back for it. A flight that nobody else on this node waits for ends now, not after
    /// [`Config::linger`]; what it has is kept.
    pub fn dismiss(&self, digest: &Digest) {
        if let Some(flight) = self.0.flights.lock().get(digest) {
            flight.dismiss();
        }
    }

    /// How many flights there are now.
    pub fn flights(&self) -> usize {
        self.0.flights.lock().len()
    }
}

impl Inner {
    /// Lets a flight go, where others find it.
    fn start(self: &Arc<Self>, flights: &mut HashMap<Digest, Arc<Flight>>, flight: Flight) -> Arc<Flight> {
        let flight = Arc::new(flight);
        flights.insert(flight.digest(), Arc::clone(&flight));
        self.metrics.flights.inc();
        run::spawn(Arc::clone(self), Arc::clone(&flight));
        flight
    }

    /// The flight ended: readers keep their clone, nobody joins it any more.
    fn forget(&self, flight: &Arc<Flight>) {
        if matches!(flight.end(), Some(flight::End::Held(_))) && flight.is_first_hand() {
            let mut first_hand = self.first_hand.lock();
            first_hand.retain(|digest| *digest != flight.digest());
            if first_hand.len() >= MOST_FIRST_HAND {
                first_hand.pop_front();
            }
            first_hand.push_back(flight.digest());
        }
        let mut flights = self.flights.lock();
        if flights.get(&flight.digest()).is_some_and(|known| Arc::ptr_eq(known, flight)) {
            flights.remove(&flight.digest());
        }
    }

    fn remember_trace(&self, digest: Digest, span: &tracing::Span) {
        let Some(trace) = shoal_base::telemetry::traceparent_of(span) else { return };
        let mut traces = self.traces.lock();
        if traces.len() >= MOST_TRACES {
            traces.retain(|_, (since, _)| since.elapsed() < TRACE_LIFE);
        }
        if traces.len() < MOST_TRACES {
            traces.insert(digest, (Instant::now(), trace));
        }
    }

    fn shun(&self, digest: Digest) {
        self.shunned.lock().insert(digest, Instant::now());
    }
}

/// What a failing store means for a reader.
fn store_failed(digest: Digest, error: &StoreError) -> ReadError {
    match error {
        StoreError::Full { .. } => ReadError::NotKept(digest, error.to_string()),
        StoreError::Busy(_)
        | StoreError::Stale(_)
        | StoreError::InUse(_)
        | StoreError::Io { .. }
        | StoreError::Damaged(_) => {
            tracing::error!(%digest, %error, "store failed");
            ReadError::NotKept(digest, error.to_string())
        }
    }
}
