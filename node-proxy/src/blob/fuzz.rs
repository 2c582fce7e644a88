//! What holds for any manifest: the fuzz target of `integration/fuzz`, and the test that plays its corpus.

use std::collections::HashSet;

use super::look_ahead::{MOST_BLOBS, blobs_of};

/// A manifest as a registry may send it. What look-ahead reads of it are blobs that it names, each once, no more than
/// an image has, and none when it is no image of ours to fetch.
///
/// # Panics
/// When that does not hold.
pub fn manifest(data: &[u8]) {
    let blobs = blobs_of(data);
    assert!(blobs.len() <= MOST_BLOBS + 1, "{} blobs", blobs.len());
    let distinct: HashSet<_> = blobs.iter().map(|(digest, _)| digest).collect();
    assert_eq!(distinct.len(), blobs.len());
    if blobs.is_empty() {
        return;
    }
    // Another parser, that knows nothing of manifests, finds every one of them, in the same order. It also reads what
    // look-ahead skips, and takes offence at text there that is not UTF-8; look-ahead does not, nor does containerd.
    let Ok(read) = serde_json::from_slice::<serde_json::Value>(data) else { return };
    assert_eq!(read.get("schemaVersion"), Some(&2.into()));
    let layers = read.get("layers").and_then(|layers| layers.as_array()).expect("an image has layers");
    let mut named = read.get("config").into_iter().chain(layers);
    for (digest, size) in &blobs {
        let found = named.any(|blob| {
            blob.get("digest").and_then(|text| text.as_str()) == Some(&digest.to_string())
                && blob.get("size").and_then(serde_json::Value::as_u64) == Some(*size)
        });
        assert!(found, "{digest} of {size} bytes is not named, or not in this order");
    }
}
