//! One blob for one child, from `Open` to `Closed`.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use shoal_base::drain::Drain;
use shoal_base::limit::LARGEST_PART;
use shoal_base::telemetry::set_parent;
use shoal_proto::frame::{Frame, Hello, Refusal, Run, block_head};
use shoal_proto::{BlockIndex, BlockSet, Digest, Layout};
use tokio::sync::watch;
use tokio::time::sleep_until;
use tracing::Instrument;

use super::connection::{Connection, End};
use super::crowd::Place;
use super::metrics::Answer;
use super::outgoing::Part;
use super::show::Opening;
use super::{Metrics, Offer, Peer};
use crate::blob::ReadError;

/// Wants that may be queued; a child of ours queues two.
const MOST_WANTS: usize = 64;
/// Hashes in one `List` frame: 64 KiB.
const HASHES_A_PART: usize = 2048;
/// Out of a file goes so much before the child is listened to again: as much as a socket takes, so that changing to a thread
/// that may block costs little.
const AT_ONCE: u64 = 4 << 20;
/// With a limit, so many children are served at once that each has its next block within this: long before a child asks
/// others for it.
const NEXT_BLOCK_WITHIN: u64 = 1;

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

/// An `Open`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) digest: Digest,
    pub(super) holders: u8,
}

impl Peer {
    /// Answers an `Open`.
    pub(super) async fn serve(
        &self,
        connection: &mut Connection,
        child: &Hello,
        Asked { digest, holders }: Asked,
        traceparent: &str,
        drain: &Drain,
    ) -> Result<Done, End> {
        let Ok(_slot) = self.slots.try_acquire() else { return self.busy(connection).await };
        let Some(offer) = self.offers.offer(&digest).await else {
            self.metrics.opened(Answer::Gone);
            connection.send(&Frame::Gone).await?;
            return Ok(Done::Void);
        };
        if self.load().uploads > self.slots_within_limit(offer.layout()) {
            return self.busy(connection).await;
        }
        self.metrics.opened(Answer::Blob);
        let _upload = Upload::one(&self.metrics);
        let span = tracing::info_span!(
            parent: None, "serve blob", %digest, peer.node = %child.node, bytes = tracing::field::Empty
        );
        set_parent(&span, traceparent);
        let opening = Opening { holders: holders.into(), whole: offer.is_whole() };
        let (layout, now) = (offer.layout(), Instant::now());
        let serving = Serving {
            peer: self,
            connection,
            drain,
            offer,
            layout,
            wants: VecDeque::new(),
            place: self.place(digest, layout, opening),
            quiet_since: now,
            bytes: 0,
        };
        serving.run().instrument(span).await
    }

    async fn busy(&self, connection: &mut Connection) -> Result<Done, End> {
        self.metrics.opened(Answer::Busy);
        let retry_after_ms = u32::try_from(self.config.retry_after.as_millis()).unwrap_or(u32::MAX);
        connection.send(&Frame::Busy { retry_after_ms }).await?;
        Ok(Done::Void)
    }

    /// How many children can be served at once by the upload limit; a child that would wait long for each block is better
    /// told to go elsewhere (I8).
    fn slots_within_limit(&self, layout: Layout) -> u32 {
        let turn = layout.block_size().min(LARGEST_PART);
        match self.config.upload.rate() {
            0 => u32::MAX,
            rate => u32::try_from(rate.saturating_mul(NEXT_BLOCK_WITHIN) / turn).unwrap_or(u32::MAX).max(1),
        }
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
            let file = self.offer.file().filter(|_| self.connection.takes_files());
            if let Some(blocks) = self.next_blocks(&have) {
                if !self.give(blocks, file).await? {
                    return self.gone().await;
                }
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
        let read = self.waiting(offer.read_block(block)).await?;
        Ok(self.whole(block, read))
    }

    /// What was read, when it is a whole block.
    fn whole(&self, block: BlockIndex, read: Result<Bytes, ReadError>) -> Option<Bytes> {
        match read {
            Ok(bytes) if bytes.len() == self.layout.block_len(block) => Some(bytes),
            Ok(bytes) => {
                tracing::error!(block, len = bytes.len(), "offer gave a block of a wrong length");
                None
            }
            Err(error) => {
                tracing::warn!(block, error = %error, "read block for a child");
                None
            }
        }
    }

    /// The blocks that are wanted next and can be given, as many as go out at once.
    fn next_blocks(&self, have: &BlockSet) -> Option<Range<BlockIndex>> {
        let run = self.wants.front()?;
        let most = match self.peer.config.upload.rate() {
            0 => (AT_ONCE / self.layout.block_size()).min(self.place.at_once().into()).max(1),
            // Each has its turn.
            _ => 1,
        };
        let most = run.first.saturating_add(u32::try_from(most).unwrap_or(u32::MAX)).min(run.blocks().end);
        let end = (run.first..most).find(|block| !have.contains(*block)).unwrap_or(most);
        (run.first < end).then_some(run.first..end)
    }

    /// Sends blocks. False: one can't be read any more.
    async fn give(&mut self, blocks: Range<BlockIndex>, file: Option<Arc<File>>) -> Result<bool, End> {
        let limited = self.peer.config.upload.rate() > 0;
        match file {
            Some(file) if !limited => {
                let part =
                    |block| Part::block(block, self.layout.block_range(block).start, self.layout.block_len(block));
                let parts = blocks.clone().map(part).collect();
                self.connection.send_file(file, parts).await?;
            }
            None if !limited => {
                if !self.give_from_memory(blocks.clone()).await? {
                    return Ok(false);
                }
            }
            file => {
                for block in blocks.clone() {
                    if !self.give_in_parts(block, file.clone()).await? {
                        return Ok(false);
                    }
                }
            }
        }
        self.gave(&blocks);
        Ok(true)
    }

    /// Sends blocks through memory: while one goes out, the next is read. False: one can't be read any more.
    async fn give_from_memory(&mut self, blocks: Range<BlockIndex>) -> Result<bool, End> {
        let Some(mut bytes) = self.read(blocks.start).await? else { return Ok(false) };
        for block in blocks.clone() {
            let head = block_head(block, bytes.len());
            let next = (block + 1 < blocks.end).then(|| self.offer.clone());
            let ahead = async { Some(next?.read_block(block + 1).await) };
            let (sent, ahead) = tokio::join!(self.connection.send_bytes(&head, bytes), ahead);
            sent?;
            self.quiet_since = Instant::now();
            bytes = match ahead {
                None => return Ok(true),
                Some(read) => match self.whole(block + 1, read) {
                    Some(bytes) => bytes,
                    None => return Ok(false),
                },
            };
        }
        Ok(true)
    }

    /// Sends one block, as fast as the limit allows. The first part of it is waited for before its head goes out, so that
    /// `Wait` can be said; a block of one part is whole then, and of a larger one the child sees bytes arrive.
    async fn give_in_parts(&mut self, block: BlockIndex, file: Option<Arc<File>>) -> Result<bool, End> {
        let upload = self.peer.config.upload.clone();
        let (start, len) = (self.layout.block_range(block).start, self.layout.block_len(block));
        let part = if len as u64 <= LARGEST_PART { len } else { upload.part() as usize };
        self.waiting(upload.take(part.min(len) as u64)).await?;
        let bytes = match &file {
            Some(_) => None,
            None => match self.read(block).await? {
                Some(bytes) => Some(bytes),
                None => return Ok(false),
            },
        };
        let head = block_head(block, len);
        let mut at = 0;
        while at < len {
            let end = len.min(at + part);
            if at > 0 {
                upload.take((end - at) as u64).await;
            }
            match (&file, &bytes) {
                (Some(file), _) => {
                    let out = Part::of_block(block, len, at, start + at as u64, (end - at) as u64);
                    self.connection.send_file(Arc::clone(file), vec![out]).await?;
                }
                (None, Some(bytes)) => {
                    let head = if at == 0 { &head[..] } else { &[] };
                    self.connection.send_bytes(head, bytes.slice(at..end)).await?;
                }
                (None, None) => return Ok(false),
            }
            at = end;
        }
        Ok(true)
    }

    /// Waits for something between two frames, saying `Wait` meanwhile.
    async fn waiting<T>(&mut self, what: impl Future<Output = T>) -> Result<T, End> {
        let mut what = std::pin::pin!(what);
        loop {
            let wait = self.quiet_since + self.peer.config.wait_every;
            tokio::select! {
                biased;
                done = &mut what => return Ok(done),
                () = sleep_until(wait.into()) => self.send(&Frame::Wait).await?,
            }
        }
    }

    /// Counts what was sent off the wants.
    fn gave(&mut self, blocks: &Range<BlockIndex>) {
        let len = blocks.clone().map(|block| self.layout.block_len(block) as u64).sum::<u64>();
        self.quiet_since = Instant::now();
        self.place.gave(Run { first: blocks.start, count: blocks.end - blocks.start });
        self.bytes += len;
        self.peer.metrics.served.inc_by(len);
        if let Some(run) = self.wants.front_mut() {
            run.first += blocks.end - blocks.start;
            run.count -= blocks.end - blocks.start;
            if run.count == 0 {
                self.wants.pop_front();
            }
        }
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
