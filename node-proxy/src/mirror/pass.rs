//! Content past the store: streamed from the origin, neither kept nor offered.

use bytes::Bytes;
use http::StatusCode;
use http::header;
use shoal_proto::{Digest, Kind};

use super::Mirror;
use super::answer::{Answer, Code, Refusal};
use super::body::Source;
use super::pull::{Pull, content_range, headers};
use super::range::Asked;
use crate::origin::{As, ByteRange};

/// What is streamed, and on whose behalf.
pub(super) struct Pass<'a> {
    pub(super) kind: Kind,
    pub(super) digest: Digest,
    pub(super) caller: As<'a>,
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
        let got = self.origin.get(&pull.target, pass.kind, &pass.digest, range, &pull.accept, pass.caller).await;
        let mut body = got.map_err(|error| Refusal::origin(&error, pass.unknown))?;
        let first = match body.next().await {
            Some(Ok(first)) => first,
            Some(Err(error)) => return Err(Refusal::origin(&error, pass.unknown)),
            None => Bytes::new(),
        };
        let mut headers = headers(pass.digest, &body.media_type, body.length);
        let mut status = StatusCode::OK;
        if body.partial
            && let (Some(size), Some(length)) = (body.size, body.length)
        {
            status = StatusCode::PARTIAL_CONTENT;
            headers.insert(header::CONTENT_RANGE, content_range(body.start, body.start + length, size));
        }
        let length = body.length;
        Ok(Answer::content(status, headers, Source::Pass { first, rest: body, length }))
    }
}
