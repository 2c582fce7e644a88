//! Look-ahead: the blobs of an image start flying when its manifest was got (DESIGN section 4.3).

use std::sync::Arc;

use oci_distribution::manifest::OciDescriptor;
use serde::Deserialize;
use shoal_proto::{Digest, Kind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::Instrument;

use super::{Engine, Opened, Want};
use crate::origin;

/// A manifest above this is not read ahead: containerd itself refuses manifests above 8 MiB.
const LARGEST_MANIFEST: u64 = 8 << 20;
/// A manifest that names more blobs than this is not an image that anybody pulls.
pub(super) const MOST_BLOBS: usize = 512;

/// Lets flights that nobody waits for read the origin: a few at once, in the order in which they came, and only while no
/// flight that somebody waits for reads it.
pub(super) struct Gate {
    slots: Arc<Semaphore>,
    awaited: watch::Sender<usize>,
    open: bool,
}

/// A flight's leave to read the origin although nobody waits for it.
pub(super) struct Ticket {
    _slot: OwnedSemaphorePermit,
}

/// While it lives, the flights behind the gate hold back.
pub(super) struct Awaited(watch::Sender<usize>);

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Gate {
    pub(super) fn new(slots: usize) -> Self {
        let awaited = watch::Sender::new(0);
        Self { slots: Arc::new(Semaphore::new(slots)), awaited, open: slots > 0 }
    }

    pub(super) fn awaited(&self) -> Awaited {
        self.awaited.send_modify(|count| *count += 1);
        Awaited(self.awaited.clone())
    }

    /// Cancel safe; a dropped call loses its place in the queue.
    pub(super) async fn enter(&self) -> Ticket {
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { return std::future::pending().await };
        // The sender lives as long as the gate.
        let _ = self.awaited.subscribe().wait_for(|count| *count == 0).await;
        Ticket { _slot: slot }
    }
}

/// The parts of an image manifest that name blobs. Source: OCI image spec 1.1 manifest.md; Docker image manifest v2.2.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ImageManifest {
    schema_version: u64,
    artifact_type: Option<String>,
    config: OciDescriptor,
    layers: Vec<OciDescriptor>,
}

/// Digest and size of every blob that an image manifest names, in its order, config first. Empty for an index, an
/// artifact, and anything else that is not an image.
pub(super) fn blobs_of(manifest: &[u8]) -> Vec<(Digest, u64)> {
    let Ok(manifest) = serde_json::from_slice::<ImageManifest>(manifest) else { return Vec::new() };
    let config = manifest.config.media_type.as_str();
    let image = config == oci_distribution::manifest::IMAGE_CONFIG_MEDIA_TYPE
        || config == oci_distribution::manifest::IMAGE_DOCKER_CONFIG_MEDIA_TYPE;
    if manifest.schema_version != 2 || manifest.artifact_type.is_some() || !image || manifest.layers.len() > MOST_BLOBS
    {
        return Vec::new();
    }
    let elsewhere = |blob: &OciDescriptor| {
        blob.media_type.contains("foreign") || blob.media_type.contains("nondistributable") || blob.urls.is_some()
    };
    let mut blobs: Vec<(Digest, u64)> = Vec::new();
    for blob in std::iter::once(&manifest.config).chain(&manifest.layers).filter(|blob| !elsewhere(blob)) {
        if let (Ok(digest), Ok(size)) = (blob.digest.parse(), u64::try_from(blob.size))
            && blobs.iter().all(|(known, _)| *known != digest)
        {
            blobs.push((digest, size));
        }
    }
    blobs
}

impl Engine {
    /// After an image manifest was got by digest: the blobs that it names and this node lacks start flying, in the
    /// background. Whatever is not an image manifest is left alone.
    pub fn look_ahead(&self, manifest: &Opened, target: &origin::Target) {
        if !self.0.gate.open || manifest.size() > LARGEST_MANIFEST {
            return;
        }
        let mut reading = manifest.read(0..manifest.size());
        let (engine, target) = (self.clone(), target.clone());
        let read = async move {
            let mut bytes = Vec::new();
            while let Some(Ok(part)) = reading.next().await {
                bytes.extend_from_slice(&part);
            }
            let target = &target;
            for (digest, size) in blobs_of(&bytes) {
                if engine.0.store.held(&digest).is_none() && engine.refuse_shunned(&digest).is_ok() {
                    let want = Want { digest, target: target.clone(), kind: Kind::Blob };
                    engine.join(&want, Some(size));
                }
            }
        };
        tokio::spawn(read.instrument(tracing::Span::current()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(config_type: &str, layer_type: &str, extra: &str) -> String {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        format!(
            r#"{{"schemaVersion":2,{extra}"config":{{"mediaType":"{config_type}","digest":"sha256:{a}","size":3}},
            "layers":[{{"mediaType":"{layer_type}","digest":"sha256:{b}","size":5}},
                      {{"mediaType":"{layer_type}","digest":"sha256:{b}","size":5}}]}}"#
        )
    }

    #[test]
    fn reads_images_and_nothing_else() {
        let oci = "application/vnd.oci.image.config.v1+json";
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        let digest = |c: u8| Digest::from_bytes([c; 32]);
        let image = manifest(oci, layer, "");
        assert_eq!(blobs_of(image.as_bytes()), [(digest(0xaa), 3), (digest(0xbb), 5)]);
        let docker = manifest("application/vnd.docker.container.image.v1+json", layer, "");
        assert_eq!(blobs_of(docker.as_bytes()).len(), 2);
        let foreign = manifest(oci, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "");
        assert_eq!(blobs_of(foreign.as_bytes()), [(digest(0xaa), 3)]);
        let artifact = manifest("application/vnd.oci.empty.v1+json", layer, "");
        let typed = manifest(oci, layer, r#""artifactType":"x/y","#);
        for other in [artifact.as_str(), typed.as_str(), r#"{"schemaVersion":2,"manifests":[]}"#, "", "[", "{}"] {
            assert!(blobs_of(other.as_bytes()).is_empty(), "{other}");
        }
    }

    #[tokio::test]
    async fn holds_back_while_somebody_waits_for_another() {
        let gate = Gate::new(1);
        let awaited = gate.awaited();
        assert!(futures::FutureExt::now_or_never(gate.enter()).is_none());
        drop(awaited);
        let first = gate.enter().await;
        assert!(futures::FutureExt::now_or_never(gate.enter()).is_none());
        drop(first);
        gate.enter().await;
    }
}
