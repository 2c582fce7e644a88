//! From a request for content to its answer: who may see it, and where its bytes come from.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap};
use shoal_proto::{Digest, Kind};
use tokio::time::Instant;
use tracing::Instrument;

use super::Mirror;
use super::answer::Answer;
use super::body::Source;
use super::headers::{content_range, headers};
use super::metrics::Why;
use super::pass::Pass;
use super::range::{Asked, Given};
use super::refusal::{Code, Refusal};
use super::request::Pull;
use super::route::{Content, Route};
use crate::blob::{Opened, ReadError, Want};
use crate::origin::{Access, As, Credential, Head, OriginError, Reference, Target};

/// Whose credential reads the content.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// Anybody with an anonymous token: what is got may be kept and offered.
    Anybody,
    /// The caller alone (I10).
    Caller,
}

impl Mirror {
    pub(super) async fn pull(&self, route: Route, headers: &HeaderMap, since: Instant) -> Result<Answer, Refusal> {
        let Route::Pull { head, ns, repository, content } = route else { return Ok(Answer::ping()) };
        let pull = Pull {
            target: Target { registry: self.registry(ns.as_deref())?, repository },
            head,
            asked: Asked::of(headers),
            accept: headers.get_all(header::ACCEPT).iter().cloned().collect(),
            caller: headers.get(header::AUTHORIZATION).cloned().map(Credential::new),
            since,
        };
        match content {
            Content::Manifest(Reference::Digest(digest)) => self.by_digest(&pull, digest, Kind::Manifest).await,
            Content::Manifest(tag) => self.by_tag(&pull, tag).await,
            Content::Blob(digest) => self.by_digest(&pull, digest, Kind::Blob).await,
        }
    }

    /// What a tag means, and whether anybody may see it, is one question to the registry; the bytes come by digest.
    async fn by_tag(&self, pull: &Pull, tag: Reference) -> Result<Answer, Refusal> {
        let refuse = |error| Refusal::origin(&error, Code::ManifestUnknown);
        let (head, reader) = match self.head_manifest(pull, tag.clone(), Reader::Anybody).await {
            Ok(head) => (head, Reader::Anybody),
            // A registry may hide what is private behind 404.
            Err(OriginError::Unauthorized { .. } | OriginError::NotFound { .. }) if pull.caller.is_some() => {
                (self.head_manifest(pull, tag, Reader::Caller).await.map_err(refuse)?, Reader::Caller)
            }
            Err(error) => return Err(refuse(error)),
        };
        if pull.head {
            return Ok(headers_of(&head));
        }
        self.bytes(pull, head.digest, Kind::Manifest, reader).await
    }

    async fn by_digest(&self, pull: &Pull, digest: Digest, kind: Kind) -> Result<Answer, Refusal> {
        let unknown = Code::unknown(kind);
        let reader = self.reader(pull, kind, digest).await.map_err(|error| Refusal::origin(&error, unknown))?;
        if !pull.head {
            return self.bytes(pull, digest, kind, reader).await;
        }
        if let Some(answer) = self.held(&digest, kind).filter(|_| reader == Reader::Anybody) {
            return Ok(answer);
        }
        let head = match kind {
            // Asking again would use up what is left of the time for an answer (I5).
            _ if reader == Reader::Anybody && self.origin.is_down(&pull.target) => {
                let (registry, why) = (pull.target.registry.to_string(), "it is down".to_owned());
                Err(OriginError::Unreachable { registry, why })
            }
            Kind::Manifest => self.head_manifest(pull, Reference::Digest(digest), reader).await,
            Kind::Blob => self.head_blob(pull, digest, reader).await,
        };
        match head {
            Ok(head) => Ok(headers_of(&head)),
            // Somebody in the cluster may hold it (I5).
            Err(error) if error.is_outage() && reader == Reader::Anybody => {
                let opened = self.blobs.open(pull.want(digest, kind), pull.since).await;
                let opened = opened.map_err(|_| Refusal::origin(&error, unknown))?;
                Ok(Answer::content(StatusCode::OK, content_headers(&opened, opened.size()), Source::Nothing))
            }
            Err(error) => Err(Refusal::origin(&error, unknown)),
        }
    }

    async fn bytes(&self, pull: &Pull, digest: Digest, kind: Kind, reader: Reader) -> Result<Answer, Refusal> {
        match (reader, &pull.caller) {
            (Reader::Caller, Some(caller)) => {
                self.metrics.passed_through(Why::Caller);
                self.pass(pull, Pass { kind, digest, caller: As::Caller(caller), unknown: Code::unknown(kind) }).await
            }
            _ => self.give(pull, pull.want(digest, kind), Code::unknown(kind)).await,
        }
    }

    /// The headers of what is held here, from memory.
    fn held(&self, digest: &Digest, kind: Kind) -> Option<Answer> {
        let info = self.blobs.held(digest)?;
        let typed = kind == Kind::Blob || !info.media_type.is_empty();
        let headers = typed.then(|| headers(*digest, &info.media_type, Some(info.size)))?;
        Some(Answer::content(StatusCode::OK, headers, Source::Nothing))
    }

    /// Who reads this repository (I10). Without a caller's credential, "not anybody" is the registry's challenge, passed
    /// on unchanged: containerd then gets a token from the registry and comes back with it.
    async fn reader(&self, pull: &Pull, kind: Kind, digest: Digest) -> Result<Reader, OriginError> {
        let (origin, target) = (Arc::clone(&self.origin), pull.target.clone());
        let asked = self.ask(pull, async move { origin.access(&target, kind, &digest).await }).await;
        match asked {
            Ok(Access::Public) => Ok(Reader::Anybody),
            Ok(Access::Private { .. }) | Err(OriginError::NotFound { .. }) if pull.caller.is_some() => {
                Ok(Reader::Caller)
            }
            Ok(Access::Private { challenges }) => {
                Err(OriginError::Unauthorized { registry: pull.target.registry.to_string(), challenges })
            }
            Err(error) => Err(error),
        }
    }

    async fn head_manifest(&self, pull: &Pull, what: Reference, reader: Reader) -> Result<Head, OriginError> {
        let (origin, target, accept) = (Arc::clone(&self.origin), pull.target.clone(), pull.accept.clone());
        let caller = pull.caller.clone().filter(|_| reader == Reader::Caller);
        let asking = async move {
            let who = caller.as_ref().map_or(As::Anonymous, As::Caller);
            origin.head_manifest(&target, &what, &accept, who).await
        };
        self.ask(pull, asking).await
    }

    async fn head_blob(&self, pull: &Pull, digest: Digest, reader: Reader) -> Result<Head, OriginError> {
        let (origin, target) = (Arc::clone(&self.origin), pull.target.clone());
        let caller = pull.caller.clone().filter(|_| reader == Reader::Caller);
        let asking = async move {
            let who = caller.as_ref().map_or(As::Anonymous, As::Caller);
            origin.head_blob(&target, &digest, who).await
        };
        self.ask(pull, asking).await
    }

    /// A question to the registry within the first byte budget (I8). What takes longer goes on without us, so that the
    /// token and the access that it brings are known when containerd asks next.
    async fn ask<T: Send + 'static>(
        &self,
        pull: &Pull,
        asking: impl Future<Output = Result<T, OriginError>> + Send + 'static,
    ) -> Result<T, OriginError> {
        let limit = self.config.first_byte_budget;
        let asked = tokio::spawn(asking.in_current_span());
        let unreachable = |why: String| OriginError::Unreachable { registry: pull.target.registry.to_string(), why };
        match tokio::time::timeout(limit.saturating_sub(pull.since.elapsed()), asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(ended)) => Err(unreachable(ended.to_string())),
            Err(_) => Err(unreachable(format!("no answer within {limit:?}"))),
        }
    }

    /// Public content, by way of store, peers or origin.
    async fn give(&self, pull: &Pull, want: Want, unknown: Code) -> Result<Answer, Refusal> {
        let begun = !matches!(pull.asked, Asked::Whole) && pull.asked.start() > 0;
        if begun && self.cuts.are_enough(&want.digest) {
            let text = format!("{} was cut short again and again", want.digest);
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, text));
        }
        let failed = match self.engine(pull, &want).await {
            Ok(answer) => return answer,
            Err(failed) => failed,
        };
        // Past the first byte of a blob containerd takes no 404 or 503 (I7); and what can't be kept still flows (I11).
        if matches!(failed, ReadError::NotKept(..)) || begun {
            tracing::info!(digest = %want.digest, error = %failed, "pass through from the origin");
            let why = if matches!(failed, ReadError::NotKept(..)) { Why::NotKept } else { Why::Range };
            self.metrics.passed_through(why);
            let pass = Pass { kind: want.kind, digest: want.digest, caller: As::Anonymous, unknown };
            return self.pass(pull, pass).await;
        }
        tracing::debug!(digest = %want.digest, error = %failed, "not given");
        Err(Refusal::read(&failed, unknown))
    }

    async fn engine(&self, pull: &Pull, want: &Want) -> Result<Result<Answer, Refusal>, ReadError> {
        let opened = self.blobs.open(want.clone(), pull.since).await?;
        if want.kind == Kind::Manifest && opened.media_type().is_empty() {
            return Ok(Err(Refusal::untyped()));
        }
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
        Ok(Ok(Answer::content(
            status,
            headers,
            Source::Engine { first, rest, length, note: self.cuts.of(want.digest) },
        )))
    }
}

fn headers_of(head: &Head) -> Answer {
    Answer::content(StatusCode::OK, headers(head.digest, &head.media_type, Some(head.size)), Source::Nothing)
}

fn content_headers(opened: &Opened, length: u64) -> HeaderMap {
    headers(opened.digest(), opened.media_type(), Some(length))
}
