//! Frames to and from one child.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures::{FutureExt, StreamExt};
use shoal_proto::BlockIndex;
use shoal_proto::frame::{Frame, FrameCodec, FrameError, Refusal, block_head};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use tokio_util::codec::FramedRead;

use super::Config;

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
    #[error("refused: {0:?}")]
    Refuse(Refusal),
    #[error("{0}")]
    Malformed(FrameError),
    #[error("{0}")]
    Broken(std::io::Error),
}

pub(super) struct Connection {
    reader: FramedRead<OwnedReadHalf, FrameCodec>,
    writer: OwnedWriteHalf,
    out: BytesMut,
    write_timeout: Duration,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, config: &Config) -> Self {
        let (read, write) = stream.into_split();
        // A child sends no block: one byte is the bound that makes the codec refuse it by its head.
        let reader = FramedRead::with_capacity(read, FrameCodec { most_block: 1 }, READ_BUFFER);
        Self { reader, writer: write, out: BytesMut::new(), write_timeout: config.write_timeout }
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

    /// Writes a block from the buffer that it is in. Not cancel safe.
    pub(super) async fn send_block(&mut self, block: BlockIndex, bytes: bytes::Bytes) -> Result<(), End> {
        let head = block_head(block, bytes.len());
        self.write(Buf::chain(&head[..], bytes)).await
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
        Ok(())
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
