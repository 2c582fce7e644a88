//! How many connections there may be, and what somebody without a certificate may take: joining is all that is answered then.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

/// Connections without a certificate at once. A node joins within a second and has another connection then, so that even ten
/// thousand nodes that come at once are in within a minute.
pub(super) const MOST_STRANGERS: usize = 256;
/// How long such a connection lives. Joining takes 5 s at most.
const LIFE: Duration = Duration::from_secs(30);
/// Bytes that may come on it: a request to join has some 2 KiB. All strangers together make control hold no more than 16 MiB.
const MOST_BYTES: usize = 64 << 10;

/// What the port for nodes refuses. Clones share the numbers.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    refused: Family<Labels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    reason: Reason,
}

/// Why a connection was refused, or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Reason {
    /// From a network that is not listed.
    Network,
    /// There are too many connections.
    Connections,
    /// There are too many without a certificate.
    Strangers,
    /// No handshake, or none in time.
    Handshake,
    /// Without a certificate, for too long or with too many bytes.
    Overstayed,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let help = "Connections to the port for nodes that were refused or ended for a limit, by reason";
        registry.register("connections_refused", help, metrics.refused.clone());
        metrics
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.refused.get_or_create(&Labels { reason }).inc();
    }

    /// How many were refused for that.
    pub fn refusals(&self, reason: Reason) -> u64 {
        self.refused.get_or_create(&Labels { reason }).get()
    }
}

/// Places for connections.
#[derive(Debug, Clone)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    pub(super) metrics: Metrics,
}

impl Places {
    pub(super) fn new(most: usize, metrics: Metrics) -> Self {
        let most = most.min(Semaphore::MAX_PERMITS);
        Self { all: Arc::new(Semaphore::new(most)), strangers: Arc::new(Semaphore::new(MOST_STRANGERS)), metrics }
    }

    /// A place for a connection, until it is dropped; `None`, and counted: there is none left.
    pub(super) fn take(&self) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.all).try_acquire_owned().ok();
        if place.is_none() {
            self.metrics.refused(Reason::Connections);
        }
        place
    }

    /// The same for one without a certificate.
    pub(super) fn stranger(&self) -> Option<Stay> {
        let Ok(place) = Arc::clone(&self.strangers).try_acquire_owned() else {
            self.metrics.refused(Reason::Strangers);
            return None;
        };
        let (until, metrics) = (Box::pin(tokio::time::sleep(LIFE)), self.metrics.clone());
        Some(Stay { until, left: MOST_BYTES, metrics, _place: place })
    }
}

/// What somebody without a certificate has left.
#[derive(Debug)]
pub(super) struct Stay {
    until: Pin<Box<Sleep>>,
    left: usize,
    metrics: Metrics,
    _place: OwnedSemaphorePermit,
}

impl Stay {
    /// Whether it may be read on. Wakes the task when the time is over.
    pub(super) fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let why = if self.left == 0 {
            "more bytes than joining takes"
        } else if let Poll::Ready(()) = self.until.as_mut().poll(context) {
            "more time than joining takes"
        } else {
            return Ok(());
        };
        self.metrics.refused(Reason::Overstayed);
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    }

    /// So many bytes came.
    pub(super) fn spend(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }
}
