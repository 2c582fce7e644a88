//! One blob for one child, from `Open` to `Closed`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use shoal_base::drain::Drain;
use shoal_base::telemetry::set_parent;
use shoal_proto::frame::{Frame, Hello, Refusal, Run};
use shoal_proto::{BlockIndex, Digest, Layout};
use tokio::sync::watch;
use tokio::time::sleep_until;
use tracing::Instrument;

use super::connection::{Connection, End};
use super::crowd::Place;
use super::metrics::Answer;
use super::{Metrics, Offer, Peer};

/// Wants that may be queued; a child of ours queues two.
const MOST_WANTS: usize = 64;
/// Hashes in one `List` frame: 64 KiB.
const HASHES_A_PART: usize = 2048;

/// How the blob ended; the connection lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// The child closed it.
    Closed,
    /// `Gone` or `Busy` was said; what the child sent before it read that is void.
    Void,
}

/// A slot in use.
struct Upload(Metrics);

impl Upload {
    fn one(metrics: &Metrics) -> Self {
        metrics.uploads.inc();
        Self(metrics.clone())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.uploads.dec();
    }
}

/// One blob being served.
struct Serving<'a> {
    peer: &'a Peer,
    connection: &'a mut Connection,
    drain: &'a Drain,
    offer: Arc<dyn Offer>,
    layout: Layout,
    wants: VecDeque<Run>,
    place: Place,
    /// When the last frame went out, or the first unmet want came in.
    quiet_since: Instant,
    bytes: u64,
}

impl Peer {
    /// Answers an `Open`.
    pub(super) async fn serve(
        &self,
        connection: &mut Connection,
        child: &Hello,
        digest: Digest,
        traceparent: &str,
        drain: &Drain,
    ) -> Result<Done, End> {
        let Ok(_slot) = self.slots.try_acquire() else {
            self.metrics.opened(Answer::Busy);
            let retry_after_ms = u32::try_from(self.config.retry_after.as_millis()).unwrap_or(u32::MAX);
            connection.send(&Frame::Busy { retry_after_ms }).await?;
            return Ok(Done::Void);
        };
        let Some(offer) = self.offers.offer(&digest).await else {
            self.metrics.opened(Answer::Gone);
            connection.send(&Frame::Gone).await?;
            return Ok(Done::Void);
        };
        self.metrics.opened(Answer::Blob);
        let _upload = Upload::one(&self.metrics);
        let span = tracing::info_span!(
            parent: None, "serve blob", %digest, peer.node = %child.node, bytes = tracing::field::Empty
        );
        set_parent(&span, traceparent);
        let (layout, now) = (offer.layout(), Instant::now());
        let serving = Serving {
            peer: self,
            connection,
            drain,
            offer,
            layout,
            wants: VecDeque::new(),
            place: self.place(digest, layout),
            quiet_since: now,
            bytes: 0,
        };
        serving.run().instrument(span).await
    }
}

impl Serving<'_> {
    async fn run(mut self) -> Result<Done, End> {
        let result = self.answer().await;
        tracing::Span::current().record("bytes", self.bytes);
        result
    }

    async fn answer(&mut self) -> Result<Done, End> {
        let config = &self.peer.config;
        let mut changed = self.offer.changed();
        let mut crowd = self.place.changed();
        let mut growing = true;
        let blob = Frame::Blob {
            size: self.layout.size(),
            media_type: self.offer.media_type().to_owned(),
            whole: self.offer.is_whole(),
        };
        self.send(&blob).await?;
        let (shown, _) = self.place.show(&self.offer.have(), self.offer.first_hand().as_ref());
        self.send(&Frame::Have(shown)).await?;
        loop {
            while let Some(frame) = self.connection.next_now() {
                if let Some(done) = self.heard(frame?).await? {
                    return Ok(done);
                }
            }
            if self.offer.is_over() {
                return self.gone().await;
            }
            changed.mark_unchanged();
            let have = self.offer.have();
            crowd.mark_unchanged();
            let (shown, look_again) = self.place.show(&have, self.offer.first_hand().as_ref());
            if !shown.is_empty() {
                self.send(&Frame::Have(shown)).await?;
                continue;
            }
            let wanted = self.wants.front().map(|run| run.first);
            if let Some(block) = wanted.filter(|block| have.contains(*block)) {
                let Some(bytes) = self.read(block).await? else { return self.gone().await };
                self.give(block, bytes).await?;
                continue;
            }
            if wanted.is_some() && !growing {
                return self.gone().await;
            }
            let mut deadline = self.quiet_since + config.idle_timeout;
            if wanted.is_some() {
                deadline = deadline.min(self.quiet_since + config.wait_every);
            }
            if let Some(at) = look_again {
                deadline = deadline.min(at);
            }
            tokio::select! {
                frame = self.connection.next() => if let Some(done) = self.heard(frame?).await? {
                    return Ok(done);
                },
                result = next_change(&mut changed), if growing => growing = result,
                _ = crowd.changed() => {}
                () = sleep_until(deadline.into()) => {
                    if wanted.is_some() && self.quiet_since.elapsed() >= config.wait_every {
                        self.send(&Frame::Wait).await?;
                    } else if self.quiet_since.elapsed() >= config.idle_timeout {
                        return Err(End::Idle);
                    }
                }
                () = self.drain.signalled(), if wanted.is_none() => return Err(End::Refuse(Refusal::Draining)),
            }
        }
    }

    async fn heard(&mut self, frame: Frame) -> Result<Option<Done>, End> {
        match frame {
            Frame::Want(run) => {
                if run.blocks().end > self.layout.blocks() || self.wants.len() >= MOST_WANTS {
                    return Err(End::Refuse(Refusal::Protocol));
                }
                if self.wants.is_empty() {
                    self.quiet_since = Instant::now();
                }
                self.wants.push_back(run);
                self.place.wanted(run);
                Ok(None)
            }
            Frame::WantList => {
                let Ok(list) = self.offer.list().await else { return self.gone().await.map(Some) };
                for (first, hashes) in list.runs(HASHES_A_PART) {
                    self.send(&Frame::List { first, hashes: hashes.into() }).await?;
                }
                self.send(&Frame::List { first: 0, hashes: Bytes::new() }).await?;
                Ok(None)
            }
            Frame::Close => {
                self.place.closed = true;
                self.send(&Frame::Closed).await?;
                Ok(Some(Done::Closed))
            }
            _ => Err(End::Refuse(Refusal::Protocol)),
        }
    }

    /// Reads a block, saying `Wait` while the disk is slow. `None`: it can't be read any more.
    async fn read(&mut self, block: BlockIndex) -> Result<Option<Bytes>, End> {
        let offer = self.offer.clone();
        let mut reading = offer.read_block(block);
        loop {
            let wait = self.quiet_since + self.peer.config.wait_every;
            tokio::select! {
                biased;
                read = &mut reading => match read {
                    Ok(bytes) if bytes.len() == self.layout.block_len(block) => return Ok(Some(bytes)),
                    Ok(bytes) => {
                        tracing::error!(block, len = bytes.len(), "offer gave a block of a wrong length");
                        return Ok(None);
                    }
                    Err(error) => {
                        tracing::warn!(block, error = %error, "read block for a child");
                        return Ok(None);
                    }
                },
                () = sleep_until(wait.into()) => self.send(&Frame::Wait).await?,
            }
        }
    }

    async fn give(&mut self, block: BlockIndex, bytes: Bytes) -> Result<(), End> {
        let len = bytes.len() as u64;
        self.connection.send_block(block, bytes).await?;
        self.quiet_since = Instant::now();
        self.place.gave(block);
        self.bytes += len;
        self.peer.metrics.served.inc_by(len);
        if let Some(run) = self.wants.front_mut() {
            run.first += 1;
            run.count -= 1;
            if run.count == 0 {
                self.wants.pop_front();
            }
        }
        Ok(())
    }

    async fn gone(&mut self) -> Result<Done, End> {
        self.send(&Frame::Gone).await?;
        Ok(Done::Void)
    }

    async fn send(&mut self, frame: &Frame) -> Result<(), End> {
        self.connection.send(frame).await?;
        self.quiet_since = Instant::now();
        Ok(())
    }
}

/// Waits for a change; false when there will be none any more.
async fn next_change(changed: &mut watch::Receiver<u64>) -> bool {
    changed.changed().await.is_ok()
}
