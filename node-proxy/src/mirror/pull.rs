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
use crate::origin::{Credential, Head, OriginError, Reference, Target, Who};

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

    /// What a tag means, and who may see it, is one question to the registry; the bytes come by digest.
    async fn by_tag(&self, pull: &Pull, tag: Reference) -> Result<Answer, Refusal> {
        let refuse = |error| Refusal::origin(&error, Code::ManifestUnknown);
        let asked = match (&pull.caller, self.origin.is_private(&pull.target)) {
            // It was not for anybody a moment ago.
            (Some(_), true) => None,
            _ => Some(self.head_manifest(pull, tag.clone(), &Who::Anybody).await),
        };
        let (head, who) = match (asked, &pull.caller) {
            (Some(Ok(head)), _) => (head, Who::Anybody),
            // A registry may hide what is private behind 404.
            (None | Some(Err(OriginError::Unauthorized { .. } | OriginError::NotFound { .. })), Some(caller)) => {
                let who = Who::Caller(caller.clone());
                (self.head_manifest(pull, tag, &who).await.map_err(refuse)?, who)
            }
            (Some(Err(error)), _) => return Err(refuse(error)),
            (None, None) => unreachable!("without a caller anybody is asked for"),
        };
        if pull.head {
            return Ok(headers_of(&head));
        }
        self.give(pull, pull.want(head.digest, Kind::Manifest, who), Code::ManifestUnknown).await
    }

    async fn by_digest(&self, pull: &Pull, digest: Digest, kind: Kind) -> Result<Answer, Refusal> {
        let unknown = Code::unknown(kind);
        let who = self.reader(pull, kind, digest).await.map_err(|error| Refusal::origin(&error, unknown))?;
        if !pull.head {
            return self.give(pull, pull.want(digest, kind, who), unknown).await;
        }
        if let Some(answer) = self.held(&digest, kind) {
            return Ok(answer);
        }
        let head = match kind {
            // Asking again would use up what is left of the time for an answer (I5).
            _ if self.origin.is_down(&pull.target) => {
                let (registry, why) = (pull.target.registry.to_string(), "it is down".to_owned());
                Err(OriginError::Unreachable { registry, why })
            }
            Kind::Manifest => self.head_manifest(pull, Reference::Digest(digest), &who).await,
            Kind::Blob => self.head_blob(pull, digest, &who).await,
        };
        match head {
            Ok(head) => Ok(headers_of(&head)),
            // Somebody in the cluster may hold it (I5).
            Err(error) if error.is_outage() => {
                let opened = self.blobs.open(pull.want(digest, kind, who), pull.since).await;
                let opened = opened.map_err(|_| Refusal::origin(&error, unknown))?;
                Ok(Answer::content(StatusCode::OK, content_headers(&opened, opened.size()), Source::Nothing))
            }
            Err(error) => Err(Refusal::origin(&error, unknown)),
        }
    }

    /// The headers of what is held here, from memory.
    fn held(&self, digest: &Digest, kind: Kind) -> Option<Answer> {
        let info = self.blobs.held(digest)?;
        let typed = kind == Kind::Blob || !info.media_type.is_empty();
        let headers = typed.then(|| headers(*digest, &info.media_type, Some(info.size)))?;
        Some(Answer::content(StatusCode::OK, headers, Source::Nothing))
    }

    /// Who reads this content of this repository (I10). Without a caller's credential, "not anybody" is the registry's challenge,
    /// passed on unchanged: containerd then gets a token from the registry and comes back with it.
    async fn reader(&self, pull: &Pull, kind: Kind, digest: Digest) -> Result<Who, OriginError> {
        let (origin, target, caller) = (Arc::clone(&self.origin), pull.target.clone(), pull.caller.clone());
        self.ask(pull, async move { origin.reader(&target, kind, &digest, caller.as_ref()).await }).await
    }

    async fn head_manifest(&self, pull: &Pull, what: Reference, who: &Who) -> Result<Head, OriginError> {
        let (origin, target, accept) = (Arc::clone(&self.origin), pull.target.clone(), pull.accept.clone());
        let who = who.clone();
        self.ask(pull, async move { origin.head_manifest(&target, &what, &accept, &who).await }).await
    }

    async fn head_blob(&self, pull: &Pull, digest: Digest, who: &Who) -> Result<Head, OriginError> {
        let (origin, target, who) = (Arc::clone(&self.origin), pull.target.clone(), who.clone());
        self.ask(pull, async move { origin.head_blob(&target, &digest, &who).await }).await
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

    /// Content that the caller may read, by way of store, peers or origin.
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
            let pass = Pass { kind: want.kind, digest: want.digest, caller: &want.who, unknown };
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
            // Before containerd has it, so that what it asks for next is known to be there.
            let left = self.config.first_byte_budget.saturating_sub(pull.since.elapsed());
            // One that comes slowly is given as it comes (I8); what it names is then asked for blob by blob.
            let named = tokio::time::timeout(left, self.blobs.named_by(&opened)).await.unwrap_or_default();
            self.origin.learn_named(&want.target, named.digests());
            self.blobs.look_ahead(&named, want);
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
