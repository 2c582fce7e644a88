//! What can be counted of the swarm.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::event::{Cause, Notice, Skip};
use super::state::Counts;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MovedLabels {
    cause: CauseLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are the label's values")]
enum CauseLabel {
    lost,
    silent,
    no_headers,
    slow,
    failed,
    gave_up,
    distrusted,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SkippedLabels {
    why: SkipLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are the label's values")]
enum SkipLabel {
    silent,
    late,
    refused,
    gone,
    untold,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FaultLabels {
    fault: FaultLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are the label's values")]
enum FaultLabel {
    roots_differ,
    readers_differ,
    author_lied,
    parent_lied,
}

/// Metrics of the room. The registry passed in has the room's prefix.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    blobs: Gauge,
    finders: Gauge,
    holdings: Gauge,
    permits: Gauge,
    granted: Counter,
    one_more: Counter,
    moved: Family<MovedLabels, Counter>,
    again: Counter,
    faults: Family<FaultLabels, Counter>,
    pub(super) slow: Counter,
    seeds: Gauge,
    orders: Counter,
    orders_taken: Counter,
    orders_skipped: Family<SkippedLabels, Counter>,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("blobs", "Blobs that somebody holds or looks for, per cluster", metrics.blobs.clone());
        registry.register("finders", "Open Find streams", metrics.finders.clone());
        registry.register("holdings", "Whole blobs on nodes, summed over nodes", metrics.holdings.clone());
        registry.register("permits", "Permits that are out", metrics.permits.clone());
        registry.register("permits_granted", "Permits granted", metrics.granted.clone());
        registry.register(
            "readers_tried",
            "Readers of the origin that were tried beside others",
            metrics.one_more.clone(),
        );
        registry.register("permits_moved", "Permits taken back before the blob closed", metrics.moved.clone());
        let help = "Blocks that are read from the origin once more because who had read them is gone";
        registry.register("blocks_read_again", help, metrics.again.clone());
        registry.register("faults", "What nodes said that can't be true of all of them", metrics.faults.clone());
        registry.register("seeds", "Live seeds that take orders", metrics.seeds.clone());
        registry.register("seed_orders", "Orders to seeds to fetch a blob that is looked for", metrics.orders.clone());
        let help = "Orders after which the seed came for the permit";
        registry.register("seed_orders_taken", help, metrics.orders_taken.clone());
        let help = "Orders after which the seed was not waited for any more";
        registry.register("seed_orders_skipped", help, metrics.orders_skipped.clone());
        registry.register("finders_cut_off", "Find streams that did not keep up", metrics.slow.clone());
        metrics
    }

    pub(super) fn counts(&self, counts: Counts) {
        self.blobs.set(counts.blobs as i64);
        self.finders.set(counts.finders as i64);
        self.holdings.set(counts.holdings as i64);
        self.permits.set(counts.permits as i64);
        self.seeds.set(counts.seeds as i64);
    }

    pub(super) fn notice(&self, notice: &Notice) {
        let fault = match notice {
            Notice::Granted { .. } => {
                self.granted.inc();
                return;
            }
            Notice::OneMore { .. } => {
                self.one_more.inc();
                return;
            }
            Notice::Moved { cause, .. } => {
                let cause = match cause {
                    Cause::Lost => CauseLabel::lost,
                    Cause::Silent => CauseLabel::silent,
                    Cause::NoHeaders => CauseLabel::no_headers,
                    Cause::Slow => CauseLabel::slow,
                    Cause::Failed => CauseLabel::failed,
                    Cause::GaveUp => CauseLabel::gave_up,
                    Cause::Distrusted => CauseLabel::distrusted,
                };
                self.moved.get_or_create(&MovedLabels { cause }).inc();
                return;
            }
            Notice::ReadAgain { blocks } => {
                self.again.inc_by(u64::from(*blocks));
                return;
            }
            Notice::SeedAsked { .. } => {
                self.orders.inc();
                return;
            }
            Notice::SeedCame { .. } => {
                self.orders_taken.inc();
                return;
            }
            Notice::SeedSkipped { why, .. } => {
                let why = match why {
                    Skip::Silent => SkipLabel::silent,
                    Skip::Late => SkipLabel::late,
                    Skip::Refused => SkipLabel::refused,
                    Skip::Gone => SkipLabel::gone,
                    Skip::Untold => SkipLabel::untold,
                };
                self.orders_skipped.get_or_create(&SkippedLabels { why }).inc();
                return;
            }
            Notice::RootsDiffer { .. } => FaultLabel::roots_differ,
            Notice::ReadersDiffer { .. } => FaultLabel::readers_differ,
            Notice::AuthorLied { .. } => FaultLabel::author_lied,
            Notice::ParentLied { .. } => FaultLabel::parent_lied,
        };
        self.faults.get_or_create(&FaultLabels { fault }).inc();
    }
}
