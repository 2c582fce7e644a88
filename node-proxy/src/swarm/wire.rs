//! One connection to a parent, from the hello on.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use futures::{FutureExt, StreamExt};
use rustls::ClientConfig;
use shoal_base::limit::Limiter;
use shoal_base::tls::{self, Reader, Wire, Writer};
use shoal_proto::frame::{Frame, FrameCodec, FrameError, Hello, Refusal};
use shoal_proto::identity::Bearer;
use shoal_proto::{BlockIndex, ClusterId, Digest, Layout, NodeId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::codec::FramedRead;
use tokio_util::sync::ReusableBoxFuture;

use super::{Config, Parent};

/// One read takes as much (SWARM: 64 KiB buffers halve the speed of a core).
const READ_BUFFER: usize = 256 << 10;
/// A buffer above this is given back while a connection rests in the pool.
const RESTING_BUFFER: usize = 8 << 10;
/// So many bytes are a sign of life, if no frame is whole yet: at a sixth of the pace that a block needs to come within the
/// patience with a parent.
const SIGN_OF_LIFE: usize = 8 << 10;

/// Why a parent can't be used now. All but `Unassigned` are the parent's, or the network's.
#[derive(Debug, thiserror::Error)]
pub(super) enum Loss {
    #[error("connect: {0}")]
    Connect(String),
    #[error("the connection was closed")]
    Closed,
    #[error("{0}")]
    Broken(String),
    #[error("no frame for {0:?}")]
    Silent(Duration),
    #[error("only waits, no block for {0:?}")]
    Waits(Duration),
    #[error("it has no slot for {0:?}")]
    Busy(Duration),
    #[error("it does not hold the blob")]
    Gone,
    #[error("it refuses us: {0:?}")]
    Refused(Refusal),
    #[error("it is a node of cluster {0}, not of ours")]
    Cluster(ClusterId),
    #[error("another node answers there: {0}")]
    Node(NodeId),
    #[error("{0}")]
    Identity(String),
    #[error("{0}")]
    Protocol(String),
    #[error("{0}")]
    Oversize(String),
    #[error("block {0} does not match the piece list")]
    Lied(BlockIndex),
    #[error("block {0} was not asked for")]
    Unasked(BlockIndex),
    #[error("this node has no cluster")]
    Unassigned,
}

impl Loss {
    /// Logs that a parent was lost: one more line among many when nodes come and go, and worth a look when it cost us blocks
    /// that it owed, or did what no node does.
    pub(super) fn log(&self, digest: &Digest, node: &NodeId, owed: bool) {
        let odd = matches!(
            self,
            Self::Silent(_) | Self::Waits(_) | Self::Protocol(_) | Self::Oversize(_) | Self::Identity(_)
        );
        if owed || odd {
            tracing::info!(%digest, peer.node = %node, error = %self, "parent lost in the middle");
        } else {
            tracing::debug!(%digest, peer.node = %node, error = %self, "parent lost");
        }
    }
}

impl From<FrameError> for Loss {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(..) => Self::Broken(error.to_string()),
            FrameError::TooLong { .. } => Self::Oversize(error.to_string()),
            other => Self::Protocol(other.to_string()),
        }
    }
}

/// The reading half of a connection, and when bytes last came over it in earnest.
#[derive(Debug)]
struct Heard {
    half: Reader,
    /// Bytes since then.
    since: usize,
    at: Instant,
}

impl Heard {
    fn new(half: Reader) -> Self {
        Self { half, since: 0, at: Instant::now() }
    }
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.half).poll_read(context, buffer));
        self.since += buffer.filled().len() - before;
        if self.since >= SIGN_OF_LIFE {
            (self.since, self.at) = (0, Instant::now());
        }
        Poll::Ready(read)
    }
}

/// A connection on which both hellos were said and are of one cluster (I3).
#[derive(Debug)]
pub(super) struct Connection {
    reader: FramedRead<Heard, FrameCodec>,
    writer: Writer,
    out: BytesMut,
    pub(super) silence: Duration,
    /// What this node said of itself; when that has changed, the connection is of no use.
    pub(super) said: Arc<Hello>,
    /// Whether it served before.
    pub(super) pooled: bool,
    limit: Limiter,
    /// The wait until what came last may have come; nothing is read meanwhile, so that the parent is slowed down too.
    paying: Option<ReusableBoxFuture<'static, ()>>,
    listening_since: Instant,
    /// Whose certificate was shown, and when it is over.
    bearer: Option<(Bearer, SystemTime)>,
}

/// The handshake with a parent, which must be the node that control named, and of this cluster (I3).
async fn secured(
    stream: TcpStream,
    parent: &Parent,
    me: &Hello,
    config: &Config,
    client: Option<Arc<ClientConfig>>,
) -> Result<(Wire, Option<(Bearer, SystemTime)>), Loss> {
    let Some(tls) = &config.tls else { return Ok((Wire::Plain(stream), None)) };
    let wire = match timeout(config.connect_timeout, Wire::connect(stream, client)).await {
        Ok(Ok(wire)) => wire,
        Ok(Err(error)) => {
            return Err(match tls::Refusal::of(&error) {
                Some(refusal) => Loss::Identity(refusal.to_string()),
                None => Loss::Connect(error.to_string()),
            });
        }
        Err(_) => return Err(Loss::Connect(format!("no handshake within {:?}", config.connect_timeout))),
    };
    let seen = wire.seen().and_then(|seen| seen.ok_or_else(|| "it showed no certificate".into()));
    let seen = seen.map_err(Loss::Identity)?;
    let bearer = Bearer::new(&seen.name, &seen.serial);
    let bearer = bearer.and_then(|bearer| {
        bearer.is_peer(&tls.known.borrow(), &me.cluster, &parent.node)?;
        Ok(bearer)
    });
    Ok((wire, Some((bearer.map_err(|unfit| Loss::Identity(unfit.to_string()))?, seen.ends))))
}

impl Connection {
    /// Connects and says hello.
    pub(super) async fn dial(
        parent: &Parent,
        me: Arc<Hello>,
        config: &Config,
        client: Option<Arc<ClientConfig>>,
    ) -> Result<Self, Loss> {
        let stream = match timeout(config.connect_timeout, TcpStream::connect(parent.addr.0)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Loss::Connect(error.to_string())),
            Err(_) => return Err(Loss::Connect(format!("no answer within {:?}", config.connect_timeout))),
        };
        // Wants are small and must not wait for one another.
        stream.set_nodelay(true).map_err(|error| Loss::Connect(error.to_string()))?;
        let (wire, bearer) = secured(stream, parent, &me, config, client).await?;
        let (read, write) = wire.into_split();
        let reader = FramedRead::with_capacity(Heard::new(read), FrameCodec::default(), READ_BUFFER);
        let mut this = Self {
            reader,
            writer: write,
            out: BytesMut::new(),
            silence: config.silence,
            said: me,
            pooled: false,
            limit: config.download.clone(),
            paying: None,
            listening_since: Instant::now(),
            bearer,
        };
        let hello = Frame::Hello(Hello::clone(&this.said));
        this.send(&hello).await?;
        match this.next_in_time().await? {
            Frame::Hello(theirs) if theirs.cluster != this.said.cluster => Err(Loss::Cluster(theirs.cluster)),
            Frame::Hello(theirs) if theirs.node != parent.node => Err(Loss::Node(theirs.node)),
            Frame::Hello(_) => Ok(this),
            Frame::Refused(refusal) => Err(Loss::Refused(refusal)),
            _ => Err(Loss::Protocol("the first frame is not a hello".into())),
        }
    }

    /// Prepares for a blob: no block may be larger than its layout says.
    pub(super) fn expect(&mut self, layout: Layout) {
        self.reader.decoder_mut().most_block = layout.block_size() as usize;
    }

    /// Writes a small frame. Not cancel safe.
    pub(super) async fn send(&mut self, frame: &Frame) -> Result<(), Loss> {
        self.out.clear();
        frame.encode(&mut self.out);
        let written = async {
            self.writer.write_all(&self.out).await?;
            // What is encrypted may wait in a buffer.
            self.writer.flush().await
        };
        match timeout(self.silence, written).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Loss::Broken(error.to_string())),
            Err(_) => Err(Loss::Silent(self.silence)),
        }
    }

    /// The next frame, whenever it comes, and not before this node's limit lets it. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Frame, Loss> {
        if let Some(paying) = &mut self.paying {
            paying.get_pin().await;
            self.paying = None;
            self.listening_since = Instant::now();
        }
        match self.reader.next().await {
            Some(Ok(frame)) => {
                if let Frame::Block { bytes, .. } = &frame
                    && self.limit.rate() > 0
                {
                    let (limit, len) = (self.limit.clone(), bytes.len() as u64);
                    self.paying = Some(ReusableBoxFuture::new(async move { limit.take(len).await }));
                }
                Ok(frame)
            }
            Some(Err(error)) => Err(error.into()),
            None => Err(Loss::Closed),
        }
    }

    /// The next frame, which must come before the parent counts as silent.
    pub(super) async fn next_in_time(&mut self) -> Result<Frame, Loss> {
        timeout(self.silence, self.next()).await.map_err(|_| Loss::Silent(self.silence))?
    }

    /// Since when this node has listened to the parent: what came before, while its own limit held it back, says nothing of the
    /// parent.
    pub(super) fn listening_since(&self) -> Instant {
        if self.paying.is_some() { Instant::now() } else { self.listening_since }
    }

    /// When the parent last gave a sign of life below a whole frame: its link may be slow, or have many children.
    pub(super) fn heard_at(&self) -> Instant {
        self.reader.get_ref().at
    }

    /// Ends the blob, so that the connection may serve another. Nothing that was wanted may be outstanding.
    pub(super) async fn close_blob(&mut self) -> Result<(), Loss> {
        let silence = self.silence;
        self.send(&Frame::Close).await?;
        // What the parent said before it read our Close: growth, or that it has the blob no more.
        let drained = async {
            loop {
                match self.next().await? {
                    Frame::Closed => return Ok(()),
                    Frame::Have(_) | Frame::Wait | Frame::Gone | Frame::Busy { .. } => {}
                    _ => return Err(Loss::Protocol("unexpected frame after Close".into())),
                }
            }
        };
        timeout(silence, drained).await.map_err(|_| Loss::Silent(silence))??;
        if !self.reader.read_buffer().is_empty() {
            return Err(Loss::Protocol("bytes after Closed".into()));
        }
        if self.reader.read_buffer().capacity() > RESTING_BUFFER {
            *self.reader.read_buffer_mut() = BytesMut::new();
        }
        self.pooled = true;
        Ok(())
    }

    /// Whether the parent has said or done nothing since the blob was closed.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        self.reader.get_mut().half.read(&mut byte).now_or_never().is_none()
    }

    /// Whether the parent's certificate counts still.
    pub(super) fn is_fit(&self, config: &Config) -> bool {
        let (Some((bearer, ends)), Some(tls)) = (&self.bearer, &config.tls) else { return true };
        let node = bearer.id.node();
        let void = node.is_none_or(|node| tls.known.borrow().voids.cover(node, bearer.issued));
        !void && SystemTime::now() < *ends
    }
}
