//! Frames to and from one child.
//!
//! Blocks go out in one of two ways: from memory, or out of a file, which the kernel then hands to the socket without a copy.
//! Of the second the file's owner must have said that its bytes are what they were when they were checked.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures::{FutureExt, StreamExt};
use shoal_base::tls::{Reader, Wire, Writer};
use shoal_proto::frame::{Frame, FrameCodec, FrameError, Refusal};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::codec::FramedRead;

use super::Config;
use super::outgoing::{Outgoing, Part, Pushed, can_take};

/// Children send small frames only.
const READ_BUFFER: usize = 4 << 10;
/// How long a refused child may take to read that it was refused.
const LINGER: Duration = Duration::from_millis(500);
/// What is read of a refused child at most.
const LINGER_BYTES: u64 = 64 << 10;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the child closed it")]
    Closed,
    #[error("no hello in time")]
    NoHello,
    #[error("nothing was asked for long")]
    Idle,
    #[error("this node was moved to another cluster")]
    Moved,
    #[error("the child's certificate is void, or its time is over")]
    Void,
    #[error("refused: {0:?}")]
    Refuse(Refusal),
    #[error("{0}")]
    Malformed(FrameError),
    #[error("{0}")]
    Broken(std::io::Error),
}

pub(super) struct Connection {
    reader: FramedRead<Reader, FrameCodec>,
    writer: Writer,
    /// The same socket, for threads that may block; made when first needed.
    socket: Option<Arc<OwnedFd>>,
    out: BytesMut,
    write_timeout: Duration,
}

impl Connection {
    pub(super) fn new(wire: Wire, config: &Config) -> Self {
        let (read, write) = wire.into_split();
        // A child sends no block: one byte is the bound that makes the codec refuse it by its head.
        let reader = FramedRead::with_capacity(read, FrameCodec { most_block: 1 }, READ_BUFFER);
        Self { reader, writer: write, socket: None, out: BytesMut::new(), write_timeout: config.write_timeout }
    }

    /// The next frame. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Frame, End> {
        match self.reader.next().await {
            Some(Ok(frame)) => Ok(frame),
            Some(Err(FrameError::Io(kind, why))) => Err(End::Broken(std::io::Error::new(kind, why))),
            Some(Err(error)) => Err(End::Malformed(error)),
            None => Err(End::Closed),
        }
    }

    /// The next frame if it is here already.
    pub(super) fn next_now(&mut self) -> Option<Result<Frame, End>> {
        self.next().now_or_never()
    }

    /// Not cancel safe.
    pub(super) async fn send(&mut self, frame: &Frame) -> Result<(), End> {
        self.out.clear();
        frame.encode(&mut self.out);
        let out = self.out.split();
        self.write(out).await
    }

    /// Writes a block, or a part of one without a head, from memory. Not cancel safe.
    pub(super) async fn send_bytes(&mut self, head: &[u8], bytes: bytes::Bytes) -> Result<(), End> {
        self.write(Buf::chain(head, bytes)).await
    }

    /// Whether the kernel can hand a file to the socket: not where its bytes are encrypted on the way.
    pub(super) fn takes_files(&self) -> bool {
        self.writer.plain().is_some()
    }

    fn plain(&self) -> Result<&TcpStream, End> {
        self.writer.plain().ok_or_else(|| End::Broken(std::io::Error::other("a file can't go out encrypted")))
    }

    /// Writes blocks, or parts of one, out of a file. Not cancel safe.
    pub(super) async fn send_file(&mut self, file: Arc<File>, parts: Vec<Part>) -> Result<(), End> {
        let socket = match &self.socket {
            Some(socket) => Arc::clone(socket),
            None => {
                let own = self.plain()?;
                let socket = Arc::new(own.as_fd().try_clone_to_owned().map_err(End::Broken)?);
                Arc::clone(self.socket.insert(socket))
            }
        };
        let mut outgoing = Outgoing::new(socket, file, parts);
        loop {
            // What is not in the page cache is read from the disk here: not on a thread that others wait for.
            let pushing = tokio::task::spawn_blocking(move || outgoing.push().map(|pushed| (outgoing, pushed)));
            let pushed = pushing.await.map_err(|ended| End::Broken(std::io::Error::other(ended)))?;
            match pushed.map_err(End::Broken)? {
                (_, Pushed::All) => return Ok(()),
                (rest, Pushed::Full) => outgoing = rest,
            }
            let stream = self.plain()?;
            // Asked of the kernel each time: the other thread's attempt is not one that the runtime has seen.
            let writable = stream.async_io(Interest::WRITABLE, || can_take(stream));
            match timeout(self.write_timeout, writable).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(End::Broken(error)),
                Err(_) => return Err(End::Broken(std::io::ErrorKind::TimedOut.into())),
            }
        }
    }

    async fn write(&mut self, mut from: impl Buf) -> Result<(), End> {
        while from.has_remaining() {
            match timeout(self.write_timeout, self.writer.write_buf(&mut from)).await {
                Ok(Ok(0)) => return Err(End::Broken(std::io::ErrorKind::WriteZero.into())),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(End::Broken(error)),
                Err(_) => return Err(End::Broken(std::io::ErrorKind::TimedOut.into())),
            }
        }
        // What is encrypted may wait in a buffer.
        match timeout(self.write_timeout, self.writer.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(End::Broken(error)),
            Err(_) => Err(End::Broken(std::io::ErrorKind::TimedOut.into())),
        }
    }

    /// Says why, and closes so that the child can read it: a close with unread bytes would reset the connection.
    pub(super) async fn refuse(&mut self, refusal: Refusal) {
        let goodbye = async {
            self.send(&Frame::Refused(refusal)).await.ok()?;
            self.writer.shutdown().await.ok()?;
            tokio::io::copy(&mut self.reader.get_mut().take(LINGER_BYTES), &mut tokio::io::sink()).await.ok()
        };
        let _ = timeout(LINGER, goodbye).await;
    }
}
