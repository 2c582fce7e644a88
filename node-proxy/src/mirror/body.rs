//! Response bodies: bytes from the engine or from the origin, pulled only as fast as the client takes them.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use http_body::{Frame, SizeHint};

use super::checked::Checked;
use super::cuts::Note;
use super::metrics::{From, Metrics};
use super::wire::Parts;
use crate::blob::{Part, ReadError, Reading, Sources};

/// Ends a connection after bytes have flown: hyper closes it, which is a FIN (I7).
#[derive(Debug, thiserror::Error)]
#[error("the body ended early: {0}")]
pub(super) struct Cut(String);

/// Where a body comes from.
pub(super) enum Source {
    Nothing,
    Text(Bytes),
    /// From the engine: the first bytes, which are in hand, and the rest.
    Engine {
        first: Bytes,
        rest: Reading,
        length: u64,
        note: Note,
    },
    /// From the origin, past the store: the first bytes and the rest.
    Pass {
        first: Bytes,
        rest: Box<Checked>,
        length: Option<u64>,
        note: Note,
    },
}

/// A response body.
pub(super) struct Body {
    parts: BoxStream<'static, Result<Bytes, Cut>>,
    length: Option<u64>,
}

impl Body {
    /// `span` is closed with the body, after the bytes of each source were recorded in it.
    pub(super) fn new(source: Source, span: tracing::Span, metrics: Metrics, through: Option<Parts>) -> Self {
        match source {
            Source::Nothing => Self { parts: futures::stream::empty().boxed(), length: Some(0) },
            Source::Text(text) => {
                let length = Some(text.len() as u64);
                Self { parts: futures::stream::iter([Ok(text)]).boxed(), length }
            }
            Source::Engine { first, rest, length, note } => {
                let meter = Meter { span, metrics, note, counted: Sources::default() };
                Self { parts: parts(first, Rest::Engine(rest, through), meter), length: Some(length) }
            }
            Source::Pass { first, rest, length, note } => {
                let meter = Meter { span, metrics, note, counted: Sources::default() };
                Self { parts: parts(first, Rest::Pass(rest), meter), length }
            }
        }
    }
}

/// What comes after the first bytes.
enum Rest {
    /// What is in a file stays there, if the connection can take it from there.
    Engine(Reading, Option<Parts>),
    Pass(Box<Checked>),
}

impl Rest {
    /// The next bytes, or the end of the body, which is noted.
    async fn next(&mut self, meter: &Meter) -> Option<Result<Bytes, Cut>> {
        let cut = match self {
            Self::Engine(rest, through) => match engine_next(rest, through.as_ref()).await? {
                Ok(bytes) => return Some(Ok(bytes)),
                // A full disk says nothing of the origin: the rest is streamed past the store (I11).
                Err(error) => meter.cut(&error, !matches!(error, ReadError::NotKept(..))),
            },
            Self::Pass(rest) => match rest.next().await? {
                Ok(bytes) => return Some(Ok(bytes)),
                Err(error) => meter.cut(&error, true),
            },
        };
        Some(Err(cut))
    }

    /// Where the bytes came from so far, this part included.
    fn sources(&self, before: Sources, part: &Bytes) -> Sources {
        match self {
            Self::Engine(rest, _) => rest.sources(),
            Self::Pass(_) => Sources { origin: before.origin + part.len() as u64, ..before },
        }
    }
}

async fn engine_next(rest: &mut Reading, through: Option<&Parts>) -> Option<Result<Bytes, ReadError>> {
    let Some(through) = through else { return rest.next().await };
    match rest.next_part().await? {
        Ok(Part::Bytes(bytes)) => Some(Ok(bytes)),
        Ok(Part::File { file, offset, len }) => Some(Ok(through.stand_in(file, offset, len))),
        Err(error) => Some(Err(error)),
    }
}

fn parts(first: Bytes, rest: Rest, meter: Meter) -> BoxStream<'static, Result<Bytes, Cut>> {
    let state = (Some(first), rest, meter);
    futures::stream::unfold(state, |(first, mut rest, mut meter)| async move {
        let part = match first {
            Some(first) => Ok(first),
            None => rest.next(&meter).await?,
        };
        if let Ok(part) = &part {
            meter.count(rest.sources(meter.counted, part));
        }
        Some((part, (None, rest, meter)))
    })
    .boxed()
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.parts.poll_next_unpin(cx).map(|part| part.map(|part| part.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Counts what a body gave, by source, into metrics as it goes and into the span at its end.
struct Meter {
    span: tracing::Span,
    metrics: Metrics,
    note: Note,
    counted: Sources,
}

impl Meter {
    /// `counts`: whether it says that this blob had better be asked for elsewhere.
    fn cut(&self, error: &dyn std::error::Error, counts: bool) -> Cut {
        self.span.in_scope(|| tracing::warn!(%error, "cut a body short"));
        if counts {
            self.note.cut();
        }
        Cut(error.to_string())
    }

    fn count(&mut self, now: Sources) {
        let before = std::mem::replace(&mut self.counted, now);
        self.metrics.gave(From::Origin, now.origin - before.origin);
        self.metrics.gave(From::Peer, now.peers - before.peers);
        self.metrics.gave(From::Local, now.local - before.local);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // Exporters take the last exit as a span's end, so the body's end must be one.
        let _in = self.span.enter();
        self.span.record("shoal.bytes.origin", self.counted.origin);
        self.span.record("shoal.bytes.peer", self.counted.peers);
        self.span.record("shoal.bytes.local", self.counted.local);
    }
}
