//! The three questions of a pull: which digest a reference has, how large a blob is, and the bytes.

use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use hyper::body::Incoming;
use sha2::{Digest as _, Sha256};
use shoal_proto::{Digest, Kind};
use tracing::Instrument;

use super::body::Flow;
use super::metrics::Asked;
use super::request::{Outgoing, nonsense};
use super::site::Site;
use super::{Body, ByteRange, Head, Origin, OriginError, Reference, Target, Who};

/// OCI distribution spec 1.1, "Pulling manifests".
const DOCKER_CONTENT_DIGEST: &str = "docker-content-digest";
/// What containerd itself takes at most for a manifest.
const LARGEST_MANIFEST: u64 = 8 << 20;
/// What is asked for when the caller said nothing: every manifest type that containerd knows, then anything.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
     */*";

pub(super) fn content_path(target: &Target, kind: Kind, reference: &str) -> String {
    let folder = match kind {
        Kind::Blob => "blobs",
        Kind::Manifest => "manifests",
    };
    format!("/v2/{}/{folder}/{reference}", target.repository)
}

/// A span for one question. The path has no query, so no secret.
pub(super) fn span(name: &'static str, method: &'static str, site: &Site, path: &str) -> tracing::Span {
    tracing::info_span!(
        "origin",
        otel.name = name,
        otel.kind = "client",
        http.method = method,
        http.url = format_args!("{}{path}", site.base),
        http.status_code = tracing::field::Empty,
    )
}

pub(super) fn accept(headers: &mut HeaderMap, kind: Kind, accept: &[HeaderValue]) {
    for value in accept {
        headers.append(ACCEPT, value.clone());
    }
    if accept.is_empty() {
        headers.insert(ACCEPT, HeaderValue::from_static(if kind == Kind::Manifest { MANIFEST_TYPES } else { "*/*" }));
    }
}

fn label(kind: Kind) -> Asked {
    match kind {
        Kind::Blob => Asked::Blob,
        Kind::Manifest => Asked::Manifest,
    }
}

impl Origin {
    /// What a reference resolves to. `accept` is the caller's; empty for every type.
    ///
    /// # Errors
    /// [`OriginError`].
    pub async fn head_manifest(
        &self,
        target: &Target,
        reference: &Reference,
        accept: &[HeaderValue],
        who: &Who,
    ) -> Result<Head, OriginError> {
        let asked_for = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => None,
        };
        let site = self.site(&target.registry);
        let path = content_path(target, Kind::Manifest, &reference.to_string());
        let span = span("origin.head", "HEAD", &site, &path);
        match self.request(Method::HEAD, target, &site, Kind::Manifest, &path, None, accept, who).instrument(span).await
        {
            Ok(response) => {
                let digest = digest_of(&site, &response)?;
                if let (Some(digest), Some(asked)) = (digest, asked_for)
                    && digest != asked
                {
                    return Err(nonsense(&site, &format!("asked for {asked} it names {digest}")));
                }
                let media_type = media_type(&response);
                if let (Some(digest), Some(size), false) =
                    (digest.or(asked_for), number(&response, CONTENT_LENGTH), media_type.is_empty())
                {
                    self.found(target, Kind::Manifest, &digest, who);
                    return Ok(Head { digest, media_type, size });
                }
            }
            // 405: a registry that does not know HEAD here.
            Err(OriginError::Nonsense { .. }) => {}
            Err(error) => return Err(error),
        }
        self.head_by_get(target, &site, &path, asked_for, accept, who).await
    }

    /// The spec does not require Docker-Content-Digest: then the bytes say it.
    async fn head_by_get(
        &self,
        target: &Target,
        site: &Site,
        path: &str,
        asked_for: Option<Digest>,
        accept: &[HeaderValue],
        who: &Who,
    ) -> Result<Head, OriginError> {
        let span = span("origin.get", "GET", site, path);
        let sent = self.request(Method::GET, target, site, Kind::Manifest, path, None, accept, who);
        let response = sent.instrument(span.clone()).await?;
        let mut body = self.body(site, response, None, span)?;
        let mut hash = Sha256::new();
        let mut size = 0;
        while let Some(bytes) = body.next().await {
            let bytes = bytes?;
            size += bytes.len() as u64;
            if size > LARGEST_MANIFEST {
                return Err(nonsense(site, "a manifest above 8 MiB"));
            }
            hash.update(&bytes);
        }
        let digest = Digest::from_bytes(hash.finalize().into());
        if let Some(asked) = asked_for.filter(|asked| *asked != digest) {
            return Err(nonsense(site, &format!("asked for {asked} it gives {digest}")));
        }
        self.found(target, Kind::Manifest, &digest, who);
        Ok(Head { digest, media_type: body.media_type, size })
    }

    /// How large a blob is.
    ///
    /// # Errors
    /// [`OriginError`].
    pub async fn head_blob(&self, target: &Target, digest: &Digest, who: &Who) -> Result<Head, OriginError> {
        let site = self.site(&target.registry);
        let path = content_path(target, Kind::Blob, &digest.to_string());
        let span = span("origin.head", "HEAD", &site, &path);
        let response =
            self.request(Method::HEAD, target, &site, Kind::Blob, &path, None, &[], who).instrument(span).await?;
        self.found(target, Kind::Blob, digest, who);
        let size = number(&response, CONTENT_LENGTH).ok_or_else(|| nonsense(&site, "a blob without length"))?;
        Ok(Head { digest: *digest, media_type: media_type(&response), size })
    }

    /// The bytes of a blob or manifest, whole or one range of it. Returns when the headers have come. The bytes are not
    /// checked against the digest. A registry that ignores the range is read from its start, and what was not asked for
    /// is dropped.
    ///
    /// # Errors
    /// [`OriginError`].
    pub async fn get(
        &self,
        target: &Target,
        kind: Kind,
        digest: &Digest,
        range: Option<ByteRange>,
        accept: &[HeaderValue],
        who: &Who,
    ) -> Result<Body, OriginError> {
        let site = self.site(&target.registry);
        let path = content_path(target, kind, &digest.to_string());
        let span = span("origin.get", "GET", &site, &path);
        let sent = self.request(Method::GET, target, &site, kind, &path, range, accept, who);
        let response = sent.instrument(span.clone()).await?;
        self.found(target, kind, digest, who);
        self.body(&site, response, range, span)
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one request, named by the three callers above")]
    async fn request(
        &self,
        method: Method,
        target: &Target,
        site: &Site,
        kind: Kind,
        path: &str,
        range: Option<ByteRange>,
        accepts: &[HeaderValue],
        who: &Who,
    ) -> Result<Response<Incoming>, OriginError> {
        let mut headers = HeaderMap::new();
        accept(&mut headers, kind, accepts);
        if let Some(range) = range {
            headers.insert(RANGE, HeaderValue::try_from(range.to_string()).expect("digits and hyphens"));
        }
        let request = Outgoing { method, url: site.url(path), headers, follow: true };
        self.ask(label(kind), target, site, request, who).await
    }

    fn body(
        &self,
        site: &Site,
        response: Response<Incoming>,
        range: Option<ByteRange>,
        span: tracing::Span,
    ) -> Result<Body, OriginError> {
        let encoded = response.headers().get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity");
        if encoded {
            return Err(nonsense(site, "it encodes what was asked for as it is"));
        }
        let media_type = media_type(&response);
        let announced = number(&response, CONTENT_LENGTH);
        let (mut partial, mut start, mut skip, mut cut) = (range.is_some(), 0, 0, false);
        let (size, length) = match (response.status(), range) {
            (StatusCode::OK, None) => (announced, announced),
            (StatusCode::OK, Some(range)) => {
                let size = announced.ok_or_else(|| nonsense(site, "it ignores the range and names no length"))?;
                let wanted = range.within(size).ok_or(OriginError::Range)?;
                (start, skip, cut, partial) = (wanted.start, wanted.start, true, true);
                (Some(size), Some(wanted.end - wanted.start))
            }
            (StatusCode::PARTIAL_CONTENT, Some(range)) => {
                let given = response.headers().get(CONTENT_RANGE).and_then(|value| content_range(value.to_str().ok()?));
                let (first, last, size) = given.ok_or_else(|| nonsense(site, "a part without Content-Range"))?;
                if !answers(range, first, last, size) {
                    return Err(nonsense(site, &format!("asked for {range} it gives {first}-{last}")));
                }
                start = first;
                (size, Some(last - first + 1))
            }
            (status, _) => return Err(nonsense(site, &format!("it says {status}"))),
        };
        if !cut && announced.is_some() && announced != length {
            return Err(nonsense(site, "Content-Length and Content-Range differ"));
        }
        let flow = Flow {
            incoming: response.into_body(),
            registry: site.registry.to_string(),
            idle: self.config.body_idle_timeout,
            skip,
            left: length,
            cut,
            ended: false,
            limit: self.config.limit.clone(),
            owed: 0,
            metrics: self.metrics.clone(),
            span,
        };
        Ok(Body { partial, size, start, length, media_type, flow })
    }
}

fn media_type(response: &Response<Incoming>) -> String {
    response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

fn number(response: &Response<Incoming>, name: http::HeaderName) -> Option<u64> {
    response.headers().get(name)?.to_str().ok()?.parse().ok()
}

fn digest_of(site: &Site, response: &Response<Incoming>) -> Result<Option<Digest>, OriginError> {
    let Some(value) = response.headers().get(DOCKER_CONTENT_DIGEST) else { return Ok(None) };
    let digest = value.to_str().ok().and_then(|text| text.parse().ok());
    digest.map(Some).ok_or_else(|| nonsense(site, "Docker-Content-Digest is not a digest"))
}

/// `bytes first-last/size`, RFC 9110 section 14.4.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let size: Option<u64> = if size == "*" { None } else { Some(size.parse().ok()?) };
    (first <= last && last < u64::MAX && size.is_none_or(|size| last < size)).then_some((first, last, size))
}

/// Whether `first-last/size` is all of what was asked for.
fn answers(range: ByteRange, first: u64, last: u64, size: Option<u64>) -> bool {
    match (size, range) {
        (Some(size), range) => range.within(size) == Some(first..last + 1),
        (None, ByteRange::Span { first: f, last: l }) => (f, l) == (first, last),
        (None, ByteRange::From(f)) => f == first,
        (None, ByteRange::Last(count)) => last - first + 1 == count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_content_range_as_the_rfc_writes_it() {
        assert_eq!(content_range("bytes 0-9/10"), Some((0, 9, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, 9, None)));
        for bad in ["", "bytes */10", "bytes 9-5/10", "bytes 0-10/10", "items 0-9/10", "bytes 0-9", "bytes a-b/c"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_part_must_be_the_one_asked_for() {
        assert!(answers(ByteRange::From(5), 5, 9, Some(10)));
        assert!(!answers(ByteRange::From(5), 4, 9, Some(10)));
        assert!(!answers(ByteRange::From(5), 5, 8, Some(10)));
        assert!(answers(ByteRange::Span { first: 0, last: 99 }, 0, 9, Some(10)));
        assert!(answers(ByteRange::Last(3), 7, 9, Some(10)));
        assert!(!answers(ByteRange::Last(3), 6, 9, Some(10)));
    }

    proptest! {
        #[test]
        fn content_range_never_panics(text in "bytes [0-9*/-]{0,60}") {
            let _ = content_range(&text);
        }
    }
}
