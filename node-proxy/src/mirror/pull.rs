//! From a request for content to its answer: who may see it, and where its bytes come from.

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};
use shoal_proto::{Digest, Kind};

use super::Mirror;
use super::answer::{Answer, Code, Refusal};
use super::body::Source;
use super::pass::Pass;
use super::range::{Asked, Given};
use super::route::{Content, Route};
use crate::blob::{Opened, ReadError, Want};
use crate::origin::{Access, As, Credential, Head, OriginError, Reference, Target};

/// A request for content, its registry known.
pub(super) struct Pull {
    pub(super) target: Target,
    pub(super) head: bool,
    pub(super) asked: Asked,
    pub(super) accept: Vec<HeaderValue>,
    pub(super) caller: Option<Credential>,
}

impl Mirror {
    pub(super) async fn pull(&self, route: Route, headers: &HeaderMap) -> Result<Answer, Refusal> {
        let Route::Pull { head, ns, repository, content } = route else { return Ok(Answer::ping()) };
        let pull = Pull {
            target: Target { registry: self.registry(ns.as_deref())?, repository },
            head,
            asked: Asked::of(headers),
            accept: headers.get_all(header::ACCEPT).iter().cloned().collect(),
            caller: headers.get(header::AUTHORIZATION).cloned().map(Credential::new),
        };
        match content {
            Content::Manifest(reference) => self.manifest(&pull, reference).await,
            Content::Blob(digest) => self.blob(&pull, digest).await,
        }
    }

    async fn manifest(&self, pull: &Pull, reference: Reference) -> Result<Answer, Refusal> {
        let refuse = |error: &OriginError| Refusal::origin(error, Code::ManifestUnknown);
        let public = match &reference {
            // What a tag means, and whether anybody may see it, is one question.
            Reference::Tag(_) => {
                match self.origin.head_manifest(&pull.target, &reference, &pull.accept, As::Anonymous).await {
                    Ok(head) if pull.head => return Ok(headers_of(&head)),
                    Ok(head) => Some(head.digest),
                    Err(OriginError::Unauthorized { .. }) if pull.caller.is_some() => None,
                    Err(error) => return Err(refuse(&error)),
                }
            }
            Reference::Digest(digest) => {
                let public = self.is_public(pull, Kind::Manifest, digest).await.map_err(|error| refuse(&error))?;
                public.then_some(*digest)
            }
        };
        let caller = pull.caller.as_ref().map_or(As::Anonymous, As::Caller);
        match public {
            Some(digest) if !pull.head => {
                let want = Want { digest, target: pull.target.clone(), kind: Kind::Manifest };
                self.give(pull, want, Code::ManifestUnknown).await
            }
            Some(_) => {
                let head = self.origin.head_manifest(&pull.target, &reference, &pull.accept, As::Anonymous).await;
                head.map(|head| headers_of(&head)).map_err(|error| refuse(&error))
            }
            None => {
                let head = self.origin.head_manifest(&pull.target, &reference, &pull.accept, caller).await;
                let head = head.map_err(|error| refuse(&error))?;
                if pull.head {
                    return Ok(headers_of(&head));
                }
                self.pass(
                    pull,
                    Pass { kind: Kind::Manifest, digest: head.digest, caller, unknown: Code::ManifestUnknown },
                )
                .await
            }
        }
    }

    async fn blob(&self, pull: &Pull, digest: Digest) -> Result<Answer, Refusal> {
        let refuse = |error: &OriginError| Refusal::origin(error, Code::BlobUnknown);
        let public = self.is_public(pull, Kind::Blob, &digest).await.map_err(|error| refuse(&error))?;
        let caller = pull.caller.as_ref().filter(|_| !public).map_or(As::Anonymous, As::Caller);
        if pull.head {
            let head = self.origin.head_blob(&pull.target, &digest, caller).await.map_err(|error| refuse(&error))?;
            return Ok(headers_of(&head));
        }
        if public {
            return self
                .give(pull, Want { digest, target: pull.target.clone(), kind: Kind::Blob }, Code::BlobUnknown)
                .await;
        }
        self.pass(pull, Pass { kind: Kind::Blob, digest, caller, unknown: Code::BlobUnknown }).await
    }

    /// Whether an anonymous token reads this repository (I10). Without a caller's credential, "no" is the registry's
    /// challenge, passed on unchanged: containerd then gets a token from the registry and comes back with it.
    async fn is_public(&self, pull: &Pull, kind: Kind, digest: &Digest) -> Result<bool, OriginError> {
        match self.origin.access(&pull.target, kind, digest).await? {
            Access::Public => Ok(true),
            Access::Private { .. } if pull.caller.is_some() => Ok(false),
            Access::Private { challenges } => {
                Err(OriginError::Unauthorized { registry: pull.target.registry.to_string(), challenges })
            }
        }
    }

    /// Public content, by way of store, peers or origin.
    async fn give(&self, pull: &Pull, want: Want, unknown: Code) -> Result<Answer, Refusal> {
        let failed = match self.engine(pull, &want).await {
            Ok(answer) => return answer,
            Err(failed) => failed,
        };
        // Past the first byte of a blob containerd takes no 404 or 503 (I7); and what can't be kept still flows (I11).
        if matches!(failed, ReadError::NotKept(..)) || !matches!(pull.asked, Asked::Whole) && pull.asked.start() > 0 {
            tracing::info!(digest = %want.digest, error = %failed, "pass through from the origin");
            let pass = Pass { kind: want.kind, digest: want.digest, caller: As::Anonymous, unknown };
            return self.pass(pull, pass).await;
        }
        tracing::debug!(digest = %want.digest, error = %failed, "not given");
        Err(Refusal::read(&failed, unknown))
    }

    async fn engine(&self, pull: &Pull, want: &Want) -> Result<Result<Answer, Refusal>, ReadError> {
        let opened = self.blobs.open(want.clone()).await?;
        let size = opened.size();
        let (status, range) = match pull.asked.within(size) {
            Given::Whole => (StatusCode::OK, 0..size),
            Given::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
            Given::Unsatisfiable => return Ok(Err(Refusal::range(Some(size)))),
        };
        let mut rest = opened.read(range.clone());
        let first = match rest.next().await {
            Some(Ok(first)) => first,
            Some(Err(error)) => return Err(error),
            None => Bytes::new(),
        };
        if want.kind == Kind::Manifest && status == StatusCode::OK {
            self.blobs.look_ahead(&opened, &want.target);
        }
        let length = range.end - range.start;
        let mut headers = content_headers(&opened, length);
        if status == StatusCode::PARTIAL_CONTENT {
            headers.insert(header::CONTENT_RANGE, content_range(range.start, range.end, size));
        }
        Ok(Ok(Answer::content(status, headers, Source::Engine { first, rest, length })))
    }
}

/// `bytes first-last/size`, `end` exclusive.
pub(super) fn content_range(start: u64, end: u64, size: u64) -> HeaderValue {
    HeaderValue::try_from(format!("bytes {start}-{}/{size}", end - 1)).expect("digits and punctuation")
}

fn content_headers(opened: &Opened, length: u64) -> HeaderMap {
    headers(opened.digest(), opened.media_type(), Some(length))
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

fn headers_of(head: &Head) -> Answer {
    Answer::content(StatusCode::OK, headers(head.digest, &head.media_type, Some(head.size)), Source::Nothing)
}
