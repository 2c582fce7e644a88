//! What the daemon says of itself: to control, to probes, to people.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use serde_json::json;
use shoal_base::drain::Drain;
use shoal_proto::Digest;

use crate::admin;
use crate::blob::{self, Engine};
use crate::control::{self, Holding, Load};
use crate::origin::{Target, Witness};
use crate::peer::Peer;
use crate::store::{Disk, Info, Store};

use super::limits::Limits;

pub(super) struct Node {
    pub(super) store: Arc<Disk>,
    pub(super) engine: Engine,
    pub(super) peer: Arc<Peer>,
    pub(super) control: Arc<control::Client>,
    pub(super) metrics: blob::Metrics,
    pub(super) limits: Limits,
    /// Who keeps containerd's content: `stock` or `plugin`.
    pub(super) mode: &'static str,
    /// Signalled when peers are to take their blocks elsewhere.
    pub(super) leaving: Drain,
}

/// What the cluster remembers of a registry that is down (I5).
pub(super) struct Cluster(pub(super) Arc<control::Client>);

#[async_trait::async_trait]
impl Witness for Cluster {
    fn saw_public(&self, target: &Target, manifest: Option<&Digest>) {
        self.0.saw_public(name(target, manifest));
    }

    async fn public_since(&self, target: &Target, manifest: Option<&Digest>) -> Option<Duration> {
        self.0.public_since(name(target, manifest)).await
    }
}

fn name(target: &Target, manifest: Option<&Digest>) -> control::PublicName {
    let (registry, repository) = (target.registry.to_string(), target.repository.to_string());
    control::PublicName { registry, repository, manifest: manifest.copied() }
}

pub(super) fn holding(digest: Digest, info: &Info) -> Holding {
    Holding { digest, size: info.size, root: info.root, media_type: info.media_type.to_string() }
}

impl control::Node for Node {
    fn holdings(&self) -> Vec<Holding> {
        // What control does not know of it names to nobody.
        if self.leaving.is_signalled() {
            return Vec::new();
        }
        self.store.list().iter().map(|(digest, info)| holding(*digest, info)).collect()
    }

    fn load(&self) -> Load {
        let uploads = self.peer.load();
        let usage = self.store.usage();
        let (from_origin, from_peers, local) = self.metrics.bytes();
        Load {
            uploads: uploads.uploads,
            upload_slots: uploads.slots,
            flights: self.engine.flights().try_into().unwrap_or(u32::MAX),
            store_bytes: usage.held + usage.partial,
            from_origin,
            from_peers,
            to_peers: self.peer.served_bytes(),
            local,
        }
    }
}

/// The truth behind `/readyz`: the store takes a byte. Control away is no reason to be unready (I4).
pub(super) fn ready(node: Arc<Node>) -> admin::Ready {
    Arc::new(move || {
        let node = Arc::clone(&node);
        async move { node.store.probe().await.map_err(|error| vec![format!("store: {error}")]) }.boxed()
    })
}

/// `/debug`: what this node is and does now.
pub(super) fn debug(node: Arc<Node>) -> admin::Debug {
    Arc::new(move || {
        let node = Arc::clone(&node);
        async move { node.describe() }.boxed()
    })
}

impl Node {
    fn describe(&self) -> serde_json::Value {
        let node = self;
        let usage = node.store.usage();
        let uploads = node.peer.load();
        let membership = node.control.membership().borrow().clone();
        json!({
            "node": node.control.node().as_str(),
            "mode": node.mode,
            "version": env!("CARGO_PKG_VERSION"),
            "control": {"connected": node.control.is_connected()},
            "cluster": membership.as_ref().map(|hello| json!({"id": hello.cluster.as_str(), "epoch": hello.epoch})),
            "store": {
                "held_blobs": usage.held_blobs,
                "held_bytes": usage.held,
                "shared_blobs": usage.shared_blobs,
                "shared_bytes": usage.shared,
                "claimed_blobs": usage.claimed_blobs,
                "claimed_bytes": usage.claimed,
                "ingest_bytes": usage.ingests,
                "partial_bytes": usage.partial,
                "quota_bytes": usage.quota,
            },
            "flights": node.engine.flights(),
            "flying": node.engine.progress(),
            "uploads": {"now": uploads.uploads, "slots": uploads.slots},
            "limits": node.limits.describe(),
        })
    }
}
