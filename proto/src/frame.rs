//! The peer data plane: frames over one TCP connection between a child, who asks, and a parent, who serves.
//!
//! A frame is an eight byte head and a payload. Head: kind (1 byte), three zero bytes, payload length (4 bytes).
//! All numbers are big endian; a text is its length (1 byte) and UTF-8. A payload has an upper bound by its kind, known
//! before a byte of it is read. The source of truth is `docs/peer-protocol.md`.
//!
//! One blob at a time travels on a connection: `Open … Close / Closed`; then the connection may serve another.
//! The codec is pure: it owns no socket and no clock. Anything malformed ends the connection.

use std::str::FromStr;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::{BlockIndex, ClusterId, Digest, NodeId};

#[doc(hidden)]
pub mod fuzz;

/// First four bytes of a hello, so that a stray client is told apart at once.
pub const MAGIC: [u8; 4] = *b"SHOL";
/// The version that this code speaks. A peer that speaks another is refused.
pub const VERSION: u16 = 1;
/// Bytes before each payload.
pub const HEAD: usize = 8;

/// Largest block (proto's layout) and its index.
const LARGEST_BLOCK_PAYLOAD: usize = (32 << 20) + 4;
/// A whole list: 8,192 hashes and the first index.
const LARGEST_LIST_PAYLOAD: usize = 8192 * 32 + 4;
/// Runs in one `Have`: alternate blocks of the largest list.
const MOST_RUNS: usize = 4096;
const SMALL: usize = 1024;

/// A run of blocks, half open: `first..first + count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first block.
    pub first: BlockIndex,
    /// How many; never 0.
    pub count: u32,
}

impl Run {
    /// The blocks, half open.
    pub fn blocks(&self) -> std::ops::Range<BlockIndex> {
        self.first..self.first.saturating_add(self.count)
    }
}

/// Who speaks, and of which cluster it believes itself a node. The first frame of either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The sender's cluster; both ends refuse another than their own (I3).
    pub cluster: ClusterId,
    /// The sender.
    pub node: NodeId,
    /// The sender's assignment epoch, for logs.
    pub epoch: u64,
}

/// Why a parent won't serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// The hello was of another cluster.
    Cluster = 1,
    /// The hello's version is not spoken here.
    Version = 2,
    /// The sender's address is not in a listed network.
    Network = 3,
    /// A frame made no sense at this point.
    Protocol = 4,
    /// The parent is draining.
    Draining = 5,
    /// The child's certificate is not that of the node that its hello names, or of this cluster, or is void.
    Identity = 6,
}

impl Refusal {
    fn parse(code: u8) -> Result<Self, FrameError> {
        Ok(match code {
            1 => Self::Cluster,
            2 => Self::Version,
            3 => Self::Network,
            4 => Self::Protocol,
            5 => Self::Draining,
            6 => Self::Identity,
            _ => return Err(FrameError::Malformed("refusal")),
        })
    }
}

/// What travels between child and parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Both, first.
    Hello(Hello),
    /// Parent: not you, or not now. The connection ends.
    Refused(Refusal),
    /// Child: the blob that the frames after this are about. `traceparent` is W3C trace context, empty for none.
    Open {
        /// The blob.
        digest: Digest,
        /// W3C `traceparent`, or empty.
        traceparent: String,
        /// How many nodes the child knows that hold the blob whole, the parent included if it does; 255 for more.
        holders: u8,
    },
    /// Parent: I hold it, whole or in part. `Have` follows, and again as it grows.
    Blob {
        /// Bytes of the blob.
        size: u64,
        /// Content-Type as the origin gave it, or empty.
        media_type: String,
        /// Whether the parent holds the blob whole, its SHA-256 checked.
        whole: bool,
    },
    /// Parent: these runs of blocks can be had here, in addition to what was said before.
    Have(Vec<Run>),
    /// Child: send me the piece list.
    WantList,
    /// Parent: hashes of the blocks from `first` on, n times 32 bytes. The answer to `WantList`; it ends with an empty one.
    List {
        /// The block of the first hash.
        first: BlockIndex,
        /// n times 32 bytes.
        hashes: Bytes,
    },
    /// Child: send me these blocks, in this order, after what I wanted before.
    Want(Run),
    /// Parent: one block.
    Block {
        /// Which.
        block: BlockIndex,
        /// All of its bytes.
        bytes: Bytes,
    },
    /// Parent: I do not have the next wanted block yet and wait for it myself. Every 500 ms.
    Wait,
    /// Parent: no upload slot free; come back after this many milliseconds.
    Busy {
        /// Milliseconds.
        retry_after_ms: u32,
    },
    /// Parent: I do not hold this blob (any more).
    Gone,
    /// Child: done with this blob; what was wanted and not sent is void.
    Close,
    /// Parent: the last frame about this blob; the next `Open` is welcome.
    Closed,
}

/// What is wrong with bytes on a peer connection. The connection can't be used any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The hello does not start with the magic.
    #[error("not a Shoal peer: wrong magic")]
    Magic,
    /// The hello has another version.
    #[error("peer protocol version {0} is not spoken here, only {VERSION}")]
    Version(u16),
    /// No such kind of frame.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// The payload is longer than its kind allows.
    #[error("frame of kind {kind} has {len} bytes, at most {most} are allowed")]
    TooLong {
        /// The kind's number.
        kind: u8,
        /// Length in the head.
        len: usize,
        /// The bound.
        most: usize,
    },
    /// The payload does not parse; names the field.
    #[error("malformed frame: {0}")]
    Malformed(&'static str),
    /// The socket failed; the kind of the error and its text.
    #[error("peer connection failed: {1}")]
    Io(std::io::ErrorKind, String),
}

impl From<std::io::Error> for FrameError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error.kind(), error.to_string())
    }
}

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const REFUSED: u8 = 2;
    pub(super) const OPEN: u8 = 3;
    pub(super) const BLOB: u8 = 4;
    pub(super) const HAVE: u8 = 5;
    pub(super) const WANT_LIST: u8 = 6;
    pub(super) const LIST: u8 = 7;
    pub(super) const WANT: u8 = 8;
    pub(super) const BLOCK: u8 = 9;
    pub(super) const WAIT: u8 = 10;
    pub(super) const BUSY: u8 = 11;
    pub(super) const GONE: u8 = 12;
    pub(super) const CLOSE: u8 = 13;
    pub(super) const CLOSED: u8 = 14;
}

/// The most bytes a payload of this kind may have.
fn bound(kind: u8) -> Result<usize, FrameError> {
    Ok(match kind {
        kind::HELLO | kind::OPEN | kind::BLOB => SMALL,
        kind::REFUSED => 1,
        kind::HAVE => MOST_RUNS * 8,
        kind::LIST => LARGEST_LIST_PAYLOAD,
        kind::WANT => 8,
        kind::BLOCK => LARGEST_BLOCK_PAYLOAD,
        kind::BUSY => 4,
        kind::WANT_LIST | kind::WAIT | kind::GONE | kind::CLOSE | kind::CLOSED => 0,
        other => return Err(FrameError::Kind(other)),
    })
}

/// The head of a `Block` frame and the block's index: what goes before the bytes when a parent writes them from a
/// buffer of its own.
pub fn block_head(block: BlockIndex, len: usize) -> [u8; HEAD + 4] {
    let mut head = [0; HEAD + 4];
    head[0] = kind::BLOCK;
    head[4..8].copy_from_slice(&(len as u32 + 4).to_be_bytes());
    head[8..].copy_from_slice(&block.to_be_bytes());
    head
}

impl Frame {
    const fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => kind::HELLO,
            Self::Refused(_) => kind::REFUSED,
            Self::Open { .. } => kind::OPEN,
            Self::Blob { .. } => kind::BLOB,
            Self::Have(_) => kind::HAVE,
            Self::WantList => kind::WANT_LIST,
            Self::List { .. } => kind::LIST,
            Self::Want(_) => kind::WANT,
            Self::Block { .. } => kind::BLOCK,
            Self::Wait => kind::WAIT,
            Self::Busy { .. } => kind::BUSY,
            Self::Gone => kind::GONE,
            Self::Close => kind::CLOSE,
            Self::Closed => kind::CLOSED,
        }
    }

    /// Appends the frame. Texts above 255 bytes are cut: they are ours, and none is that long.
    pub fn encode(&self, out: &mut BytesMut) {
        let at = out.len();
        out.put_slice(&[self.kind(), 0, 0, 0, 0, 0, 0, 0]);
        match self {
            Self::Hello(hello) => {
                out.put_slice(&MAGIC);
                out.put_u16(VERSION);
                out.put_u64(hello.epoch);
                put_text(out, hello.cluster.as_str());
                put_text(out, hello.node.as_str());
            }
            Self::Refused(refusal) => out.put_u8(*refusal as u8),
            Self::Open { digest, traceparent, holders } => {
                out.put_slice(digest.as_bytes());
                put_text(out, traceparent);
                out.put_u8(*holders);
            }
            Self::Blob { size, media_type, whole } => {
                out.put_u64(*size);
                out.put_u8(u8::from(*whole));
                put_text(out, media_type);
            }
            Self::Have(runs) => {
                for run in runs {
                    out.put_u32(run.first);
                    out.put_u32(run.count);
                }
            }
            Self::List { first, hashes } => {
                out.put_u32(*first);
                out.put_slice(hashes);
            }
            Self::Want(run) => {
                out.put_u32(run.first);
                out.put_u32(run.count);
            }
            Self::Block { block, bytes } => {
                out.put_u32(*block);
                out.put_slice(bytes);
            }
            Self::Busy { retry_after_ms } => out.put_u32(*retry_after_ms),
            Self::WantList | Self::Wait | Self::Gone | Self::Close | Self::Closed => {}
        }
        let len = (out.len() - at - HEAD) as u32;
        out[at + 4..at + 8].copy_from_slice(&len.to_be_bytes());
    }

    fn decode(kind: u8, payload: Bytes) -> Result<Self, FrameError> {
        let mut from = Payload(payload);
        let frame = match kind {
            kind::HELLO => {
                if from.take(4, "magic")?.as_ref() != MAGIC {
                    return Err(FrameError::Magic);
                }
                let version = from.u16("version")?;
                if version != VERSION {
                    return Err(FrameError::Version(version));
                }
                let epoch = from.u64("epoch")?;
                let (cluster, node) = (from.id("cluster")?, from.id("node")?);
                Self::Hello(Hello { cluster, node, epoch })
            }
            kind::REFUSED => Self::Refused(Refusal::parse(from.u8("refusal")?)?),
            kind::OPEN => {
                let digest =
                    Digest::try_from(from.take(32, "digest")?.as_ref()).map_err(|_| FrameError::Malformed("digest"))?;
                Self::Open { digest, traceparent: from.text("traceparent")?, holders: from.u8("holders")? }
            }
            kind::BLOB => {
                let size = from.u64("size")?;
                let whole = match from.u8("whole")? {
                    0 => false,
                    1 => true,
                    _ => return Err(FrameError::Malformed("whole")),
                };
                Self::Blob { size, media_type: from.text("media type")?, whole }
            }
            kind::HAVE => {
                let mut runs = Vec::with_capacity(from.0.len() / 8);
                while !from.0.is_empty() {
                    runs.push(from.run()?);
                }
                Self::Have(runs)
            }
            kind::WANT_LIST => Self::WantList,
            kind::LIST => {
                let first = from.u32("first")?;
                if !from.0.len().is_multiple_of(32) {
                    return Err(FrameError::Malformed("hashes"));
                }
                Self::List { first, hashes: from.rest() }
            }
            kind::WANT => Self::Want(from.run()?),
            kind::BLOCK => Self::Block { block: from.u32("block")?, bytes: from.rest() },
            kind::WAIT => Self::Wait,
            kind::BUSY => Self::Busy { retry_after_ms: from.u32("retry after")? },
            kind::GONE => Self::Gone,
            kind::CLOSE => Self::Close,
            kind::CLOSED => Self::Closed,
            other => return Err(FrameError::Kind(other)),
        };
        if from.0.is_empty() { Ok(frame) } else { Err(FrameError::Malformed("bytes after the last field")) }
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    let len = text.len().min(255);
    out.put_u8(len as u8);
    out.put_slice(&text.as_bytes()[..len]);
}

/// Reads fields off a payload; each names itself when it is missing.
struct Payload(Bytes);

impl Payload {
    fn take(&mut self, len: usize, field: &'static str) -> Result<Bytes, FrameError> {
        if self.0.len() < len { Err(FrameError::Malformed(field)) } else { Ok(self.0.split_to(len)) }
    }

    fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.0)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, FrameError> {
        Ok(self.take(1, field)?.get_u8())
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, FrameError> {
        Ok(self.take(2, field)?.get_u16())
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, FrameError> {
        Ok(self.take(4, field)?.get_u32())
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, FrameError> {
        Ok(self.take(8, field)?.get_u64())
    }

    fn text(&mut self, field: &'static str) -> Result<String, FrameError> {
        let len = self.u8(field)?;
        let bytes = self.take(usize::from(len), field)?;
        std::str::from_utf8(&bytes).map(str::to_owned).map_err(|_| FrameError::Malformed(field))
    }

    fn id<T: FromStr>(&mut self, field: &'static str) -> Result<T, FrameError> {
        self.text(field)?.parse().map_err(|_| FrameError::Malformed(field))
    }

    fn run(&mut self) -> Result<Run, FrameError> {
        let run = Run { first: self.u32("run")?, count: self.u32("run")? };
        let fits = run.count > 0 && run.first.checked_add(run.count).is_some();
        if fits { Ok(run) } else { Err(FrameError::Malformed("run")) }
    }
}

/// Frames for `tokio_util::codec`: use it with `FramedRead` and `FramedWrite`.
#[derive(Debug, Default, Clone, Copy)]
pub struct FrameCodec {
    /// The most bytes a `Block` frame's payload may have here, 0 for the protocol's bound. A child sets it to the block
    /// size of the blob it asks for, so that a parent cannot make it buffer more.
    pub most_block: usize,
}

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = FrameError;

    fn decode(&mut self, from: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some(head) = from.first_chunk::<HEAD>() else { return Ok(None) };
        let kind = head[0];
        let mut most = bound(kind)?;
        if kind == kind::BLOCK && self.most_block > 0 {
            most = most.min(self.most_block + 4);
        }
        if head[1..4] != [0; 3] {
            return Err(FrameError::Malformed("reserved bytes"));
        }
        let len = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if len > most {
            return Err(FrameError::TooLong { kind, len, most });
        }
        if from.len() < HEAD + len {
            from.reserve(HEAD + len - from.len());
            return Ok(None);
        }
        from.advance(HEAD);
        Frame::decode(kind, from.split_to(len).freeze()).map(Some)
    }
}

impl Encoder<Frame> for FrameCodec {
    type Error = FrameError;

    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> Result<(), FrameError> {
        frame.encode(out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> Vec<Frame> {
        let hello = Hello { cluster: "a".parse().unwrap(), node: "n-1".parse().unwrap(), epoch: 7 };
        vec![
            Frame::Hello(hello),
            Frame::Refused(Refusal::Network),
            Frame::Open { digest: Digest::from_bytes([9; 32]), traceparent: "00-ab-cd-01".into(), holders: 3 },
            Frame::Blob { size: 1 << 40, media_type: "application/octet-stream".into(), whole: true },
            Frame::Have(vec![Run { first: 0, count: 3 }, Run { first: 9, count: 1 }]),
            Frame::Have(vec![]),
            Frame::WantList,
            Frame::List { first: 4, hashes: Bytes::from(vec![3; 64]) },
            Frame::Want(Run { first: 1, count: 8191 }),
            Frame::Block { block: 5, bytes: Bytes::from(vec![1; 300_000]) },
            Frame::Wait,
            Frame::Busy { retry_after_ms: 250 },
            Frame::Gone,
            Frame::Close,
            Frame::Closed,
        ]
    }

    #[test]
    fn reads_what_it_writes_in_any_cut() {
        let mut wire = BytesMut::new();
        for frame in frames() {
            frame.encode(&mut wire);
        }
        for cut in [1, 7, 4096, wire.len()] {
            let (mut codec, mut buffer, mut got) = (FrameCodec::default(), BytesMut::new(), Vec::new());
            for part in wire.chunks(cut) {
                buffer.extend_from_slice(part);
                while let Some(frame) = codec.decode(&mut buffer).unwrap() {
                    got.push(frame);
                }
            }
            assert_eq!(got, frames());
        }
    }

    #[test]
    fn a_block_head_is_the_start_of_a_block_frame() {
        let mut whole = BytesMut::new();
        Frame::Block { block: 77, bytes: Bytes::from_static(b"abc") }.encode(&mut whole);
        let mut parts = block_head(77, 3).to_vec();
        parts.extend_from_slice(b"abc");
        assert_eq!(whole, parts);
    }

    #[test]
    fn refuses_too_long_before_it_reads_it() {
        let mut wire = BytesMut::from(&[kind::BLOCK, 0, 0, 0, 0, 4, 0, 5][..]);
        let error = FrameCodec { most_block: 256 << 10 }.decode(&mut wire).unwrap_err();
        assert_eq!(error, FrameError::TooLong { kind: kind::BLOCK, len: 0x0004_0005, most: 0x0004_0004 });
        let mut wire = BytesMut::from(&[kind::WAIT, 0, 0, 0, 0, 0, 0, 1][..]);
        assert!(matches!(FrameCodec::default().decode(&mut wire), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn refuses_a_stranger() {
        let mut wire = BytesMut::from(&b"GET / HTTP/1.1\r\n"[..]);
        assert_eq!(FrameCodec::default().decode(&mut wire), Err(FrameError::Kind(b'G')));
    }

    proptest! {
        #[test]
        fn never_panics_and_never_asks_for_more_than_the_bound(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = FrameCodec::default().decode(&mut buffer) {}
        }
    }
}
