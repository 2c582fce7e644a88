//! Bodies as they pass, whole or broken on the way.
use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Entry, wire::Reset};
use crate::http::Body;

/// Before a connection is ended, what was sent so far gets so long to arrive: a reset throws away what still waits in the
/// kernel, and headers without a byte of body are sent only when the body keeps them waiting.
const ARRIVE: Duration = Duration::from_millis(200);

/// What becomes of a body.
pub(super) enum Shape {
    Whole,
    /// Ends the connection after so many bytes.
    End {
        after: u64,
        reset: Option<Reset>,
    },
    /// Says nothing for a while after so many bytes.
    Pause {
        after: u64,
        pause: Duration,
    },
    /// Has only its first bytes, and says so.
    Short {
        length: u64,
    },
    /// Has more bytes at its end, and says so.
    Long {
        more: u64,
    },
    /// Has another byte at an offset.
    Flip {
        at: u64,
    },
}

impl Shape {
    /// The Content-Length that goes with it.
    pub(super) fn announces(&self, length: Option<u64>) -> Option<u64> {
        match self {
            Self::Short { length } => Some(*length),
            Self::Long { more } => length.map(|length| length + more),
            _ => length,
        }
    }
}

/// A body in a shape; what is sent is counted in the log.
pub(super) fn shaped(from: Incoming, shape: Shape, entry: Arc<Entry>) -> Body {
    let (to, frames) = mpsc::channel(1);
    tokio::spawn(async move {
        // The client went away: the log has what it got.
        let _ = pump(Pump { from, to, entry, sent: 0 }, shape).await;
    });
    BodyExt::boxed(StreamBody::new(ReceiverStream::new(frames)))
}

struct Pump {
    from: Incoming,
    to: mpsc::Sender<io::Result<Frame<Bytes>>>,
    entry: Arc<Entry>,
    sent: u64,
}

/// The client is gone, or the registry.
struct Gone;

impl Pump {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Gone> {
        let length = bytes.len() as u64;
        self.to.send(Ok(Frame::data(bytes))).await.map_err(|_| Gone)?;
        self.sent += length;
        self.entry.sent(length);
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Gone> {
        loop {
            match self.from.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => return Ok(Some(bytes)),
                    Err(_trailers) => continue,
                },
                Some(Err(error)) => {
                    let _ = self.to.send(Err(io::Error::other(error))).await;
                    return Err(Gone);
                }
            }
        }
    }

    /// Passes on what comes, up to an offset. What came with it beyond that is given back.
    async fn until(&mut self, offset: u64) -> Result<Bytes, Gone> {
        while self.sent < offset {
            let Some(mut bytes) = self.next().await? else { break };
            let room = usize::try_from(offset - self.sent).unwrap_or(usize::MAX).min(bytes.len());
            let rest = bytes.split_off(room);
            self.send(bytes).await?;
            if !rest.is_empty() {
                return Ok(rest);
            }
        }
        Ok(Bytes::new())
    }

    async fn rest(&mut self, first: Bytes) -> Result<(), Gone> {
        if !first.is_empty() {
            self.send(first).await?;
        }
        self.until(u64::MAX).await.map(drop)
    }
}

async fn pump(mut pump: Pump, shape: Shape) -> Result<(), Gone> {
    match shape {
        Shape::Whole => pump.rest(Bytes::new()).await,
        Shape::End { after, reset } => {
            pump.until(after).await?;
            tokio::time::sleep(ARRIVE).await;
            if let Some(reset) = reset {
                reset.order();
            }
            let _ = pump.to.send(Err(io::Error::other("a fault ends the connection"))).await;
            Ok(())
        }
        Shape::Pause { after, pause } => {
            let rest = pump.until(after).await?;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = pump.to.closed() => return Err(Gone),
            }
            pump.rest(rest).await
        }
        Shape::Short { length } => pump.until(length).await.map(drop),
        Shape::Long { more } => {
            pump.rest(Bytes::new()).await?;
            pump.send(Bytes::from(vec![0x5a; usize::try_from(more).unwrap_or(0)])).await
        }
        Shape::Flip { at } => {
            let rest = pump.until(at).await?;
            let rest = if rest.is_empty() { pump.next().await?.unwrap_or_default() } else { rest };
            let mut flipped = BytesMut::from(&rest[..]);
            if let Some(byte) = flipped.first_mut() {
                *byte ^= 0x5a;
            }
            pump.rest(flipped.freeze()).await
        }
    }
}
