use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What is done with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Way {
    /// `containerd.services.transfer.v1.Transfer/Transfer`.
    Transfer,
    /// `containerd.services.content.v1.Content/Info`.
    Info,
    /// `containerd.services.content.v1.Content/Read`.
    Read,
    /// Goes on as it came, and lasts as long as its client likes.
    Endless,
    /// Goes on as it came.
    Other,
}

impl Way {
    pub(super) fn of(path: &str) -> Self {
        match path {
            "/containerd.services.transfer.v1.Transfer/Transfer" => Self::Transfer,
            "/containerd.services.content.v1.Content/Info" => Self::Info,
            "/containerd.services.content.v1.Content/Read" => Self::Read,
            "/containerd.services.events.v1.Events/Subscribe"
            | "/containerd.services.events.ttrpc.v1.Events/Forward"
            | "/containerd.services.streaming.v1.Streaming/Stream"
            | "/containerd.services.tasks.v1.Tasks/Wait"
            | "/containerd.services.sandbox.v1.Controller/Wait"
            | "/runtime.v1.RuntimeService/GetContainerEvents" => Self::Endless,
            _ => Self::Other,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    way: Way,
}

/// What the socket counts. Cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics {
    pub(super) connections: Gauge,
    calls: Family<Call, Counter>,
    /// Transfers that were sent to the mirror.
    pub(super) steered: Counter,
    /// Answers that came from the cluster, since containerd had none.
    pub(super) from_cluster: Counter,
    pub(super) bytes: Counter,
}

impl Metrics {
    /// Makes the counters and registers them; the registry adds the prefix `shoal_containerd`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("clients", "Connections of containerd's clients", metrics.connections.clone());
        registry.register("calls", "Calls on the socket, by what is done with them", metrics.calls.clone());
        let help = "Transfers of registry images that were sent to the mirror";
        registry.register("steered_transfers", help, metrics.steered.clone());
        let help = "Calls for content that containerd lacked and the cluster had";
        registry.register("from_cluster", help, metrics.from_cluster.clone());
        let help = "Bytes of content that containerd lacked and the cluster had";
        registry.register("from_cluster_bytes", help, metrics.bytes.clone());
        metrics
    }

    pub(super) fn called(&self, way: Way) {
        self.calls.get_or_create(&Call { way }).inc();
    }
}
