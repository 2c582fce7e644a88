use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use shoal_proto::frame::Refusal;

use super::wire::Loss;

/// `shoal_swarm_*`. Clones share the numbers.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Bytes of blocks that were checked and taken.
    pub(super) received: Counter,
    /// Bytes of right blocks that another parent had brought before (end game).
    pub(super) spare: Counter,
    pub(super) refused: Counter,
    pub(super) refused_lists: Counter,
    pub(super) late: Counter,
    pub(super) lost: Family<LostLabels, Counter>,
    pub(super) streams: Gauge,
    pub(super) connections: Family<ConnectionLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LostLabels {
    reason: Reason,
}

/// Why a parent was lost, for the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Reason {
    Connection,
    Silent,
    Gone,
    Refused,
    Cluster,
    Protocol,
    Lied,
    Identity,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ConnectionLabels {
    pub(super) from: Source,
}

/// Where a connection came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Source {
    Dial,
    Pool,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let (m, at) = (&metrics, registry);
        at.register("received_bytes", "Bytes of checked blocks from parents", m.received.clone());
        at.register("spare_bytes", "Bytes of blocks that came a second time", m.spare.clone());
        at.register("refused_blocks", "Blocks with a wrong hash or length, or not asked for", m.refused.clone());
        at.register("refused_lists", "Piece lists that do not match their root", m.refused_lists.clone());
        at.register("late_parents", "Parents that show a block and only wait with it", m.late.clone());
        at.register("lost_parents", "Parents lost while they were used, by reason", m.lost.clone());
        at.register("active_streams", "Parents in use now", m.streams.clone());
        at.register("connections", "Connections to parents taken into use", m.connections.clone());
        metrics
    }

    /// Bytes of checked blocks from parents since the start, for heartbeats.
    pub fn received_bytes(&self) -> u64 {
        self.received.get()
    }

    pub(super) fn count_loss(&self, loss: &Loss) {
        let reason = match loss {
            Loss::Connect(_) | Loss::Closed | Loss::Broken(_) => Reason::Connection,
            Loss::Silent(_) | Loss::Waits(_) => Reason::Silent,
            Loss::Gone => Reason::Gone,
            Loss::Refused(Refusal::Identity) | Loss::Identity(_) => Reason::Identity,
            Loss::Refused(_) | Loss::Busy(_) => Reason::Refused,
            Loss::Cluster(_) | Loss::Node(_) | Loss::Unassigned => Reason::Cluster,
            Loss::Protocol(_) | Loss::Oversize(_) => Reason::Protocol,
            Loss::Lied(_) | Loss::Unasked(_) => Reason::Lied,
        };
        self.lost.get_or_create(&LostLabels { reason }).inc();
    }
}
