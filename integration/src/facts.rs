//! What a walk-through found: raw facts, as `lab demo --json` writes them and `lab check` judges them.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    net::{LinkRate, PairCount},
    otlp::BlobTrace,
    registry::Reads,
};

/// Everything that a walk-through measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Facts {
    /// Versions of the programs that took part.
    pub versions: Vec<String>,
    /// The image.
    pub image: ImageFacts,
    /// Clusters, in the order in which they pulled.
    pub clusters: Vec<ClusterFacts>,
    /// Reads of the origin by digest and node, from its own access log.
    pub origin_reads: BTreeMap<String, BTreeMap<String, Reads>>,
    /// The kernel's counters for every ordered pair of nodes.
    pub pairs: Vec<PairCount>,
    /// Links.
    pub links: LinkFacts,
    /// What traces of every layer on every node show.
    pub traces: Vec<BlobTrace>,
}

/// The image that was pulled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageFacts {
    /// As it was pulled.
    pub reference: String,
    /// The manifest.
    pub manifest: BlobFacts,
    /// The configuration.
    pub config: BlobFacts,
    /// Layers, bottom first.
    pub layers: Vec<BlobFacts>,
}

impl ImageFacts {
    /// Layers and configuration.
    pub fn blobs(&self) -> impl Iterator<Item = &BlobFacts> {
        self.layers.iter().chain([&self.config])
    }

    /// Bytes of layers and configuration.
    pub fn size(&self) -> u64 {
        self.blobs().map(|blob| blob.size).sum()
    }
}

/// A blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BlobFacts {
    /// `sha256:…`
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

/// A cluster and its pulls.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterFacts {
    /// Its name.
    pub name: String,
    /// Its nodes' pulls, in order: the first had to read the origin.
    pub pulls: Vec<PullFacts>,
}

/// One pull.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PullFacts {
    /// The node.
    pub node: String,
    /// When containerd sent its first HEAD, seconds since the epoch.
    pub first_head: f64,
    /// When the last byte of a blob was written to containerd's content store, seconds since the epoch.
    pub last_commit: f64,
    /// Bytes that the node fetched during the pull, by source, as its own metrics say.
    pub fetched_bytes: BTreeMap<String, u64>,
    /// Bytes of blobs that the origin's access log says this node read.
    pub origin_bytes: u64,
}

impl PullFacts {
    /// From the first HEAD to the last commit, in seconds.
    pub fn seconds(&self) -> f64 {
        self.last_commit - self.first_head
    }

    /// Bytes from one source, as the node counted them.
    pub fn from(&self, source: &str) -> u64 {
        self.fetched_bytes.get(source).copied().unwrap_or(0)
    }
}

/// How fast links were.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LinkFacts {
    /// What the kernel shapes each link to.
    pub shaped: Vec<LinkRate>,
    /// Bits per second that one TCP stream got from the origin's machine to a node.
    pub origin_measured: u64,
    /// Bits per second that one TCP stream got between the two nodes of each cluster, by cluster.
    pub peers_measured: BTreeMap<String, u64>,
}
