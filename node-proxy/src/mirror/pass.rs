//! Content past the store: streamed from the origin, neither kept nor offered.

use std::ops::Range;

use bytes::Bytes;
use http::StatusCode;
use http::header;
use shoal_proto::{Digest, Kind};

use super::Mirror;
use super::answer::Answer;
use super::body::Source;
use super::checked::Checked;
use super::headers::{content_range, headers};
use super::range::Asked;
use super::refusal::{Code, Refusal};
use super::request::Pull;
use crate::origin::{Body, ByteRange, OriginError, Who};

/// What is streamed, and on whose behalf.
pub(super) struct Pass<'a> {
    pub(super) kind: Kind,
    pub(super) digest: Digest,
    pub(super) caller: &'a Who,
    pub(super) unknown: Code,
}

impl Mirror {
    pub(super) async fn pass(&self, pull: &Pull, pass: Pass<'_>) -> Result<Answer, Refusal> {
        let range = match pull.asked {
            asked if asked.is_whole() => None,
            Asked::From(first, None) => Some(ByteRange::From(first)),
            Asked::From(first, Some(last)) => Some(ByteRange::Span { first, last }),
            Asked::Last(n) => Some(ByteRange::Last(n)),
            Asked::Whole => None,
            Asked::Impossible => return Err(Refusal::range(None)),
        };
        let registry = || pull.target.registry.to_string();
        let begun = async {
            let got = self.origin.get(&pull.target, pass.kind, &pass.digest, range, &pull.accept, pass.caller).await;
            let body = got?;
            let about = About::of(&body);
            let mut body = Checked::new(body, pass.digest, registry());
            let first = match body.next().await {
                Some(first) => first?,
                None if about.length == Some(0) => Bytes::new(),
                // 200 and then nothing is the one answer that containerd does not survive.
                None => {
                    let why = "a body without bytes".to_owned();
                    return Err(OriginError::Nonsense { registry: registry(), why });
                }
            };
            Ok((first, about, body))
        };
        let limit = self.config.origin_byte_budget;
        let begun =
            tokio::time::timeout(limit.saturating_sub(pull.since.elapsed()), begun).await.unwrap_or_else(|_| {
                Err(OriginError::Unreachable { registry: registry(), why: format!("no byte within {limit:?}") })
            });
        let (first, about, rest) = begun.map_err(|error| Refusal::origin(&error, pass.unknown))?;
        if pass.kind == Kind::Manifest && about.media_type.is_empty() {
            return Err(Refusal::untyped());
        }
        let length = about.length;
        let mut headers = headers(pass.digest, &about.media_type, length);
        let mut status = StatusCode::OK;
        if let Some((range, size)) = about.part {
            status = StatusCode::PARTIAL_CONTENT;
            headers.insert(header::CONTENT_RANGE, content_range(range.start, range.end, size));
        }
        let note = self.cuts.of(pass.digest);
        Ok(Answer::content(status, headers, Source::Pass { first, rest: Box::new(rest), length, note }))
    }
}

/// What the headers say of a body.
struct About {
    media_type: String,
    length: Option<u64>,
    /// Which bytes of how many, if it is not the whole.
    part: Option<(Range<u64>, u64)>,
}

impl About {
    fn of(body: &Body) -> Self {
        let part = match (body.size, body.length) {
            (Some(size), Some(length)) if body.partial => Some((body.start..body.start + length, size)),
            _ => None,
        };
        Self { media_type: body.media_type.clone(), length: body.length, part }
    }
}
