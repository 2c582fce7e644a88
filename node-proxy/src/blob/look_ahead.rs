//! Look-ahead: the blobs of an image start flying when its manifest was got (DESIGN section 4.3).

use std::sync::Arc;

use oci_distribution::manifest::OciDescriptor;
use serde::Deserialize;
use shoal_proto::{Digest, Kind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::{Engine, Opened, Want};

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

/// What an index names. Source: OCI image spec 1.1 image-index.md; Docker manifest list v2.2.
#[derive(Deserialize)]
struct Index {
    manifests: Vec<OciDescriptor>,
}

/// What a manifest names that is in its repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// Blobs of an image, in the manifest's order, config first, with their sizes.
    blobs: Vec<(Digest, u64)>,
    /// Manifests of an index, or blobs of what is no image that anybody pulls.
    others: Vec<Digest>,
}

impl Named {
    /// Every digest.
    pub fn digests(&self) -> impl Iterator<Item = Digest> + '_ {
        self.blobs.iter().map(|(digest, _)| *digest).chain(self.others.iter().copied())
    }
}

/// Content of foreign layers is elsewhere; a registry takes a manifest that names them although it has them not.
fn is_elsewhere(blob: &OciDescriptor) -> bool {
    blob.media_type.contains("foreign") || blob.media_type.contains("nondistributable") || blob.urls.is_some()
}

/// Pure. Empty for what is no manifest.
pub(super) fn named_by(manifest: &[u8]) -> Named {
    let digest = |blob: &OciDescriptor| blob.digest.parse::<Digest>().ok();
    if let Ok(index) = serde_json::from_slice::<Index>(manifest) {
        let others = index.manifests.iter().filter(|blob| !is_elsewhere(blob)).filter_map(digest).collect();
        return Named { blobs: Vec::new(), others };
    }
    let Ok(manifest) = serde_json::from_slice::<ImageManifest>(manifest) else { return Named::default() };
    let config = manifest.config.media_type.as_str();
    let image = config == oci_distribution::manifest::IMAGE_CONFIG_MEDIA_TYPE
        || config == oci_distribution::manifest::IMAGE_DOCKER_CONFIG_MEDIA_TYPE;
    let image = image
        && manifest.schema_version == 2
        && manifest.artifact_type.is_none()
        && manifest.layers.len() <= MOST_BLOBS;
    let mut blobs: Vec<(Digest, u64)> = Vec::new();
    let mut others = Vec::new();
    for blob in std::iter::once(&manifest.config).chain(&manifest.layers).filter(|blob| !is_elsewhere(blob)) {
        match (digest(blob), u64::try_from(blob.size)) {
            (Some(digest), Ok(size)) if image && blobs.iter().all(|(known, _)| *known != digest) => {
                blobs.push((digest, size));
            }
            (Some(digest), _) if !image => others.push(digest),
            _ => {}
        }
    }
    Named { blobs, others }
}

/// Digest and size of every blob that an image manifest names, in its order, config first. Empty for an index, an
/// artifact, and anything else that is not an image.
pub(super) fn blobs_of(manifest: &[u8]) -> Vec<(Digest, u64)> {
    named_by(manifest).blobs
}

impl Engine {
    /// What a manifest names that is in its repository; nothing when it can't be read, or is larger than any.
    pub async fn named_by(&self, manifest: &Opened) -> Named {
        if manifest.size() > LARGEST_MANIFEST {
            return Named::default();
        }
        let mut reading = manifest.read(0..manifest.size());
        let mut bytes = Vec::new();
        while let Some(part) = reading.next().await {
            let Ok(part) = part else { return Named::default() };
            bytes.extend_from_slice(&part);
        }
        named_by(&bytes)
    }

    /// After an image manifest was got by digest: the blobs that it names and this node lacks start flying, in the
    /// background, on behalf of whoever wanted the manifest.
    pub fn look_ahead(&self, named: &Named, manifest: &Want) {
        if !self.0.gate.open {
            return;
        }
        for (digest, size) in &named.blobs {
            if self.0.store.held(digest).is_none() && self.refuse_shunned(digest).is_ok() {
                let want = Want { digest: *digest, kind: Kind::Blob, ..manifest.clone() };
                self.join(&want, Some(*size));
            }
        }
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

    #[test]
    fn what_a_manifest_names_is_in_its_repository_but_for_what_is_elsewhere() {
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        let digest = |c: u8| Digest::from_bytes([c; 32]);
        let named = |text: &str| named_by(text.as_bytes()).digests().collect::<Vec<_>>();
        let image = manifest("application/vnd.oci.image.config.v1+json", layer, "");
        assert_eq!(named(&image), [digest(0xaa), digest(0xbb)]);
        assert_eq!(named(&manifest("application/vnd.oci.empty.v1+json", layer, "")).len(), 3, "an artifact");
        let foreign = manifest("x/y", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "");
        assert_eq!(named(&foreign), [digest(0xaa)]);
        let c = "c".repeat(64);
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"a/b","digest":"sha256:{c}","size":7}},
                {{"mediaType":"a/b","digest":"sha256:{c}","size":7,"urls":["http://x"]}}]}}"#
        );
        assert_eq!(named(&index), [digest(0xcc)]);
        for other in ["", "[", "{}", r#"{"manifests":7}"#] {
            assert!(named(other).is_empty(), "{other}");
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
