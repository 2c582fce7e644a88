//! The hashes of a file, at a pace that leaves the disk to others.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use shoal_base::limit::Limiter;
use shoal_proto::{Digest, Layout, NodeId, PieceList};

use super::Metrics;
use crate::store::Notes;

/// What is told of a manifest by its own bytes lies in so many of them.
const LARGEST_MANIFEST: u64 = 4 << 20;

/// A file that was read from one end to the other.
pub(super) struct Hashed {
    pub(super) file: File,
    /// Of the file that was read, before it was.
    pub(super) metadata: Metadata,
    pub(super) digest: Digest,
    pub(super) notes: Notes,
}

/// Reads a file; `me` vouches for what was read. `None`: it is not there, or has no layout.
pub(super) async fn file(me: &NodeId, path: &Path, pace: &Limiter, metrics: &Metrics) -> io::Result<Option<Hashed>> {
    let (file, metadata) = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => {
            let file = opened?;
            let metadata = file.metadata()?;
            (file, metadata)
        }
    };
    let Ok(layout) = Layout::of(metadata.len()) else { return Ok(None) };
    let (mut whole, mut list, mut start) = (Sha256::new(), PieceList::new(layout), Vec::new());
    let file = Arc::new(file);
    for block in 0..layout.blocks() {
        let (offset, len) = (layout.block_range(block).start, layout.block_len(block));
        pace.take(len as u64).await;
        let (from, mut sum) = (Arc::clone(&file), whole);
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; len];
            from.read_exact_at(&mut bytes, offset)?;
            sum.update(&bytes);
            Ok::<_, io::Error>((sum, PieceList::hash(&bytes), bytes))
        });
        let (sum, hash, bytes) = read.await.map_err(io::Error::other)??;
        whole = sum;
        // Each block comes once.
        let _ = list.set(block, hash);
        metrics.hashed_bytes.inc_by(len as u64);
        if metadata.len() <= LARGEST_MANIFEST {
            start.extend_from_slice(&bytes);
        }
    }
    let file = Arc::into_inner(file).ok_or_else(|| io::Error::other("the file is still being read"))?;
    let digest = Digest::from_bytes(whole.finalize().into());
    let media_type = media_type(&start);
    Ok(Some(Hashed { file, metadata, digest, notes: Notes { list, author: me.clone(), media_type } }))
}

/// The media type of a manifest, which is what a registry gives it as; empty of anything else.
fn media_type(bytes: &[u8]) -> Arc<str> {
    const OCI: &str = "application/vnd.oci.image";
    let Some(b'{') = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) else { return "".into() };
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(bytes) else { return "".into() };
    let is_manifest = json["schemaVersion"] == 2;
    let said = json["mediaType"].as_str().filter(|_| is_manifest).unwrap_or_default();
    if !said.is_empty() {
        return said.into();
    }
    match (json["layers"].is_array(), json["manifests"].is_array()) {
        (true, _) if is_manifest => format!("{OCI}.manifest.v1+json").into(),
        (_, true) if is_manifest => format!("{OCI}.index.v1+json").into(),
        _ => "".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_says_what_it_is_and_nothing_else_does() {
        let docker = br#" {"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json"}"#;
        assert_eq!(&*media_type(docker), "application/vnd.docker.distribution.manifest.v2+json");
        let oci = br#"{"schemaVersion": 2, "config": {}, "layers": []}"#;
        assert_eq!(&*media_type(oci), "application/vnd.oci.image.manifest.v1+json");
        let index = br#"{"schemaVersion": 2, "manifests": []}"#;
        assert_eq!(&*media_type(index), "application/vnd.oci.image.index.v1+json");
        for other in [&b"\x1f\x8b"[..], b"", b"{", br#"{"architecture": "amd64", "layers": []}"#, b"[1]"] {
            assert_eq!(&*media_type(other), "", "{other:?}");
        }
    }

    #[tokio::test]
    async fn a_file_is_hashed_whole_and_by_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        let bytes: Vec<u8> = (0..700_000u32).map(|at| (at % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let metrics = Metrics::default();
        let me: NodeId = "me".parse().unwrap();
        let hashed = file(&me, &path, &Limiter::none(), &metrics).await.unwrap().unwrap();
        assert_eq!(hashed.digest, Digest::from_bytes(Sha256::digest(&bytes).into()));
        let list = hashed.notes.list;
        assert_eq!(list.get(2), Some(&PieceList::hash(&bytes[2 << 18..])));
        assert!(list.root().is_some());
        assert_eq!(metrics.hashed_bytes.get(), bytes.len() as u64);
        assert!(file(&me, &dir.path().join("none"), &Limiter::none(), &metrics).await.unwrap().is_none());
    }
}
