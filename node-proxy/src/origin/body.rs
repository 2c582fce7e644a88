//! Bytes from a registry as they arrive, counted, so that a body is whole or an error.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::StreamExt;
use futures::stream::BoxStream;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use shoal_base::limit::Limiter;
use tracing::Instrument;

use super::OriginError;
use super::metrics::{Broken, Metrics};
use super::request::chain;

/// One byte range, as RFC 9110 section 14.1.2 writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteRange {
    /// `first-`
    From(u64),
    /// `first-last`, both inside; `first <= last`.
    Span {
        /// The first byte.
        first: u64,
        /// The last byte.
        last: u64,
    },
    /// `-n`: the last n bytes.
    Last(u64),
}

impl ByteRange {
    /// The range for half-open offsets; `None` when empty.
    pub fn of(range: &Range<u64>) -> Option<Self> {
        (range.start < range.end).then(|| Self::Span { first: range.start, last: range.end - 1 })
    }

    /// Which bytes of `size` it names, half open and cut at the end. `None`: not satisfiable.
    pub fn within(self, size: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(first) => first..size,
            Self::Span { first, last } => first..last.saturating_add(1).min(size),
            Self::Last(count) => size.saturating_sub(count)..size,
        };
        (range.start < range.end).then_some(range)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(first) => write!(f, "bytes={first}-"),
            Self::Span { first, last } => write!(f, "bytes={first}-{last}"),
            Self::Last(count) => write!(f, "bytes=-{count}"),
        }
    }
}

/// The start of a body from the origin.
pub struct Body {
    /// Whether these are the bytes of a range that was asked for, not the whole.
    pub partial: bool,
    /// Bytes of the whole content (from Content-Length or Content-Range), when the origin says it.
    pub size: Option<u64>,
    /// The first byte's offset in the content.
    pub start: u64,
    /// Bytes that this body will have, when the origin says it.
    pub length: Option<u64>,
    /// Content-Type as the origin gave it; empty when it gave none.
    pub media_type: String,
    pub(super) flow: Flow,
}

/// The connection's side of a body.
pub(super) struct Flow {
    pub(super) incoming: Incoming,
    pub(super) registry: String,
    pub(super) idle: Duration,
    /// Bytes to be thrown away first: the origin ignored the range.
    pub(super) skip: u64,
    /// Bytes still to be given.
    pub(super) left: Option<u64>,
    /// More bytes than wanted are no error, for the same reason as `skip`.
    pub(super) cut: bool,
    pub(super) ended: bool,
    pub(super) limit: Limiter,
    /// Bytes that came and were not counted by the limit yet: no more are read before.
    pub(super) owed: u64,
    pub(super) metrics: Metrics,
    pub(super) span: tracing::Span,
}

impl Body {
    /// The next bytes; `None` after the last. Cancel safe. Dropping the body ends the connection.
    ///
    /// # Errors
    /// [`OriginError::Unreachable`] when the body broke or ended early; [`OriginError::Stalled`] when it stopped;
    /// [`OriginError::Nonsense`] when there are more bytes than announced. It ends with an error.
    pub async fn next(&mut self) -> Option<Result<Bytes, OriginError>> {
        let span = self.flow.span.clone();
        self.flow.next().instrument(span).await
    }

    /// The origin gives the whole although a range was asked for; what was not asked for is read and thrown away.
    pub fn ignores_ranges(&self) -> bool {
        self.flow.cut
    }

    /// The bytes as a stream.
    pub fn into_stream(self) -> BoxStream<'static, Result<Bytes, OriginError>> {
        futures::stream::unfold(self, |mut body| async { body.next().await.map(|next| (next, body)) }).boxed()
    }
}

impl Flow {
    async fn next(&mut self) -> Option<Result<Bytes, OriginError>> {
        loop {
            if self.ended || (self.cut && self.left == Some(0)) {
                self.ended = true;
                return None;
            }
            // Outside the time-out: while this node holds itself back, the origin is not silent.
            self.limit.take(self.owed).await;
            self.owed = 0;
            let data = match tokio::time::timeout(self.idle, self.incoming.frame()).await {
                Err(_) => {
                    self.ended = true;
                    self.metrics.broke(Broken::Silent);
                    return Some(Err(OriginError::Stalled { registry: self.registry.clone(), idle: self.idle }));
                }
                Ok(Some(Err(error))) => return self.cut(format!("the body broke: {}", chain(&error))),
                Ok(None) if self.skip > 0 || self.left.is_some_and(|left| left > 0) => {
                    let missing = self.skip + self.left.unwrap_or(0);
                    return self.cut(format!("the body ended {missing} bytes early"));
                }
                Ok(None) => {
                    self.ended = true;
                    return None;
                }
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => data,
                    Err(_trailers) => continue,
                },
            };
            self.metrics.got(data.len());
            self.owed = data.len() as u64;
            match self.take(data) {
                Ok(data) if data.is_empty() => {}
                other => return Some(other),
            }
        }
    }

    fn take(&mut self, mut data: Bytes) -> Result<Bytes, OriginError> {
        let skip = usize::try_from(self.skip).unwrap_or(usize::MAX).min(data.len());
        data.advance(skip);
        self.skip -= skip as u64;
        if let Some(left) = &mut self.left {
            if data.len() as u64 > *left {
                if !self.cut {
                    self.ended = true;
                    self.metrics.broke(Broken::Long);
                    let why = "its body is longer than announced".to_owned();
                    return Err(OriginError::Nonsense { registry: self.registry.clone(), why });
                }
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            }
            *left -= data.len() as u64;
        }
        Ok(data)
    }

    fn cut(&mut self, why: String) -> Option<Result<Bytes, OriginError>> {
        self.ended = true;
        self.metrics.broke(Broken::Cut);
        Some(Err(OriginError::Unreachable { registry: self.registry.clone(), why }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_at_the_end_of_the_content() {
        for (range, size, want) in [
            (ByteRange::From(0), 10, Some(0..10)),
            (ByteRange::From(9), 10, Some(9..10)),
            (ByteRange::From(10), 10, None),
            (ByteRange::From(0), 0, None),
            (ByteRange::Span { first: 2, last: 3 }, 10, Some(2..4)),
            (ByteRange::Span { first: 2, last: u64::MAX }, 10, Some(2..10)),
            (ByteRange::Span { first: 10, last: 11 }, 10, None),
            (ByteRange::Last(3), 10, Some(7..10)),
            (ByteRange::Last(30), 10, Some(0..10)),
            (ByteRange::Last(0), 10, None),
        ] {
            assert_eq!(range.within(size), want, "{range} of {size}");
        }
        assert_eq!(ByteRange::of(&(3..5)).unwrap().to_string(), "bytes=3-4");
        assert_eq!(ByteRange::of(&(3..3)), None);
    }
}
