//! Clients that take bytes and drop them, on one thread each, with as little work as can be: what is measured is the server.
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use shoal_proto::{
    Digest, Layout,
    frame::{Frame, FrameCodec, HEAD, Hello, Run},
};
use tokio_util::codec::Decoder;

use crate::net::Netns;

/// What one read takes.
const BUFFER: usize = 256 << 10;
/// A server that says nothing for so long has failed.
const SILENCE: Duration = Duration::from_secs(60);
/// Wants that are queued at the parent, as a node queues them.
const QUEUED: usize = 2;
/// A `Block`: its head, and the index that its payload begins with.
const BLOCK_HEAD: usize = HEAD + 4;
/// The kind of a `Block` (docs/peer-protocol.md).
const BLOCK: u8 = 9;

/// Connects from a namespace; for a thread that may block.
pub(super) fn connect(ns: &Netns, to: SocketAddr) -> Result<TcpStream> {
    let stream = ns.within(move || TcpStream::connect_timeout(&to, Duration::from_secs(2)));
    let stream = stream.with_context(|| format!("connect from {} to {to}", ns.name))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    Ok(stream)
}

/// Sends a request (all of its head) and drops the body of the answer, which must have `size` bytes. How long it took from
/// the request to the last byte.
pub(super) fn http(stream: &mut TcpStream, request: &str, size: u64) -> Result<Duration> {
    let mut buffer = vec![0; BUFFER];
    let start = Instant::now();
    stream.write_all(request.as_bytes())?;
    let mut read = 0;
    let end = loop {
        if let Some(end) = buffer[..read].windows(4).position(|part| part == b"\r\n\r\n") {
            break end + 4;
        }
        match stream.read(&mut buffer[read..])? {
            0 => bail!("no answer: {:?}", String::from_utf8_lossy(&buffer[..read])),
            n => read += n,
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).to_lowercase();
    ensure!(head.starts_with("http/1.1 20"), "answered {head}");
    ensure!(head.contains(&format!("content-length: {size}\r\n")), "not {size} bytes: {head}");
    let mut left = size - (read - end) as u64;
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => bail!("the answer ended {left} bytes early"),
            n => left = left.checked_sub(n as u64).context("the answer is too long")?,
        }
    }
    Ok(start.elapsed())
}

/// What a child reads from and writes to.
trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// A child that parses frames and drops bytes.
pub(super) struct Child {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    /// What of `buffer` was read and not used.
    unused: std::ops::Range<usize>,
}

impl Child {
    /// Connects, with TLS where there is something to show, and says hello.
    pub(super) fn dial(ns: &Netns, to: SocketAddr, hello: Hello, client: Option<Arc<ClientConfig>>) -> Result<Self> {
        let stream = connect(ns, to)?;
        match client {
            None => Self::hello(Box::new(stream), hello),
            Some(config) => {
                let mut connection = ClientConnection::new(config, shoal_base::tls::no_name())?;
                // As much as the buffers of a node take.
                connection.set_buffer_limit(Some(1 << 20));
                Self::hello(Box::new(StreamOwned::new(connection, stream)), hello)
            }
        }
    }

    /// Says hello on a connection.
    fn hello(stream: Box<dyn Stream>, hello: Hello) -> Result<Self> {
        let mut child = Self { stream, buffer: vec![0; BUFFER], unused: 0..0 };
        child.send(&Frame::Hello(hello))?;
        match child.small()? {
            Frame::Hello(_) => Ok(child),
            other => bail!("said hello, heard {other:?}"),
        }
    }

    /// Takes the whole blob, piece by piece in order, and says how long it took from the `Open` on. `None`: the parent has
    /// nothing of it.
    pub(super) fn take(&mut self, digest: Digest) -> Result<Option<Duration>> {
        let start = Instant::now();
        self.send(&Frame::Open { digest, traceparent: String::new(), holders: 1 })?;
        let layout = match self.small()? {
            Frame::Blob { size, .. } => Layout::of(size)?,
            Frame::Gone | Frame::Busy { .. } => return Ok(None),
            other => bail!("opened, heard {other:?}"),
        };
        let (mut wanted, mut got, mut queued) = (0, 0, std::collections::VecDeque::new());
        while got < layout.blocks() {
            while queued.len() < QUEUED && wanted < layout.pieces() {
                let blocks = layout.piece_blocks(wanted);
                self.send(&Frame::Want(Run { first: blocks.start, count: blocks.end - blocks.start }))?;
                queued.push_back(blocks.end);
                wanted += 1;
            }
            if !self.block(layout, got)? {
                continue;
            }
            got += 1;
            if queued.front() == Some(&got) {
                queued.pop_front();
            }
        }
        let taken = start.elapsed();
        self.send(&Frame::Close)?;
        while !matches!(self.small()?, Frame::Closed) {}
        Ok(Some(taken))
    }

    fn send(&mut self, frame: &Frame) -> Result<()> {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        Ok(self.stream.write_all(&out)?)
    }

    /// Takes a frame: true if it was the block, whose bytes are dropped.
    fn block(&mut self, layout: Layout, block: u32) -> Result<bool> {
        self.fill(HEAD)?;
        if self.unread()[0] != BLOCK {
            match self.small()? {
                Frame::Have(_) | Frame::Wait => return Ok(false),
                other => bail!("waited for block {block}, heard {other:?}"),
            }
        }
        self.fill(BLOCK_HEAD)?;
        let head = &self.unread()[..BLOCK_HEAD];
        let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (len, index) = (number(4) as usize, number(8));
        ensure!(
            index == block && len == 4 + layout.block_len(block),
            "block {index} of {len} bytes instead of {block}"
        );
        self.unused.start += BLOCK_HEAD;
        self.skip(len - 4)?;
        Ok(true)
    }

    /// Takes a frame that is no block.
    fn small(&mut self) -> Result<Frame> {
        self.fill(HEAD)?;
        let head = self.unread();
        let len = HEAD + u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        self.fill(len)?;
        let mut bytes = BytesMut::from(&self.unread()[..len]);
        self.unused.start += len;
        FrameCodec::default().decode(&mut bytes)?.context("a frame that is whole and is not")
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.unused.clone()]
    }

    /// Reads until so many bytes are unused.
    fn fill(&mut self, len: usize) -> Result<()> {
        if self.unused.len() < len {
            self.buffer.copy_within(self.unused.clone(), 0);
            self.unused = 0..self.unused.len();
            self.buffer.resize(self.buffer.len().max(len), 0);
        }
        while self.unused.len() < len {
            self.read()?;
        }
        Ok(())
    }

    fn skip(&mut self, len: usize) -> Result<()> {
        let mut left = len;
        loop {
            let take = left.min(self.unused.len());
            self.unused.start += take;
            left -= take;
            if left == 0 {
                return Ok(());
            }
            self.unused = 0..0;
            self.read()?;
        }
    }

    fn read(&mut self) -> Result<()> {
        let end = self.unused.end;
        match self.stream.read(&mut self.buffer[end..])? {
            0 => bail!("the parent closed"),
            n => self.unused.end += n,
        }
        Ok(())
    }
}
