//! Headers of answers with content.

use http::header::{self, HeaderMap, HeaderValue};
use shoal_proto::Digest;

/// `bytes first-last/size`, `end` exclusive.
pub(super) fn content_range(start: u64, end: u64, size: u64) -> HeaderValue {
    HeaderValue::try_from(format!("bytes {start}-{}/{size}", end - 1)).expect("digits and punctuation")
}

/// What every answer with content says: exact type, length and digest (CONTAINERD 8).
pub(super) fn headers(digest: Digest, media_type: &str, length: Option<u64>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let media_type = HeaderValue::from_str(media_type).ok().filter(|value| !value.is_empty());
    let media_type = media_type.unwrap_or_else(|| HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_TYPE, media_type);
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    let digest = HeaderValue::try_from(digest.to_string()).expect("hex digits");
    headers.insert("docker-content-digest", digest);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers
}
