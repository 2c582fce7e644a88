//! Counters of the mirror.

use std::time::Duration;

use http::StatusCode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::route::{Content, Route};

/// What a request was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum What {
    Manifest,
    Blob,
    Ping,
    Other,
}

impl What {
    pub(super) fn of(route: Option<&Route>) -> Self {
        match route {
            Some(Route::Ping) => Self::Ping,
            Some(Route::Pull { content: Content::Manifest(_), .. }) => Self::Manifest,
            Some(Route::Pull { content: Content::Blob(_), .. }) => Self::Blob,
            None => Self::Other,
        }
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Ping => "ping",
            Self::Other => "other",
        }
    }
}

/// Where bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum From {
    Origin,
    Peer,
    Local,
}

/// Why bytes were streamed from the origin past the store: outside "once" (I6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Why {
    /// There is no room on disk (I11).
    NotKept,
    /// The end of a blob that nobody else can give in time (I7).
    Range,
}

macro_rules! lower_case_label {
    ($name:ty, $($variant:path => $word:literal),+) => {
        impl EncodeLabelValue for $name {
            fn encode(
                &self,
                encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
            ) -> Result<(), std::fmt::Error> {
                let word = match self { $($variant => $word),+ };
                EncodeLabelValue::encode(&word, encoder)
            }
        }
    };
}

lower_case_label!(From, From::Origin => "origin", From::Peer => "peer", From::Local => "local");
lower_case_label!(
    What, What::Manifest => "manifest", What::Blob => "blob", What::Ping => "ping", What::Other => "other"
);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabel {
    kind: What,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhyLabel {
    why: Why,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: From,
}

/// What the mirror counts. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<RequestLabel, Counter>,
    bytes: Family<SourceLabel, Counter>,
    wait: Histogram,
    turned_away: Counter,
    passed_through: Family<WhyLabel, Counter>,
}

impl Metrics {
    /// Makes the counters and registers them; the registry adds the prefix `shoal_mirror`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            bytes: Family::default(),
            wait: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            turned_away: Counter::default(),
            passed_through: Family::default(),
        };
        // All three exist from the start, so that a rate can be taken from the first pull on.
        for source in [From::Origin, From::Peer, From::Local] {
            metrics.gave(source, 0);
        }
        let (requests, bytes, wait) = (metrics.requests.clone(), metrics.bytes.clone(), metrics.wait.clone());
        registry.register("requests", "Requests by kind and status", requests);
        registry.register("bytes", "Bytes given to containerd, by source", bytes);
        let help = "Connections above mirror.max_connections, answered 503 or closed";
        registry.register("turned_away", help, metrics.turned_away.clone());
        let help = "Answers streamed from the registry past the store, by why";
        registry.register("passed_through", help, metrics.passed_through.clone());
        registry.register_with_unit("answer", "Time until an answer's headers", Unit::Seconds, wait);
        metrics
    }

    pub(super) fn answered(&self, kind: What, status: StatusCode, after: Duration) {
        self.requests.get_or_create(&RequestLabel { kind, status: status.as_u16() }).inc();
        self.wait.observe(after.as_secs_f64());
    }

    pub(super) fn passed_through(&self, why: Why) {
        self.passed_through.get_or_create(&WhyLabel { why }).inc();
    }

    pub(super) fn turned_away(&self) {
        self.turned_away.inc();
    }

    pub(super) fn gave(&self, source: From, bytes: u64) {
        self.bytes.get_or_create(&SourceLabel { source }).inc_by(bytes);
    }
}
