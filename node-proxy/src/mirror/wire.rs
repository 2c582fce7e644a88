//! A connection to a client on which bodies may be parts of files: the kernel moves those from the file to the socket, and this
//! process copies nothing.
//!
//! hyper knows bodies in memory only. So a part of a file goes through it as a *stand-in*: as many bytes of one region of
//! memory, which says nothing. The body puts the part at the end of its connection's [`Parts`] and gives hyper the
//! stand-in; [`Wire`] knows the region by its address, and where hyper hands it bytes of the region, sends as many of the
//! first part instead.
//!
//! What always holds: a connection has one response at a time and hyper keeps the order of bytes, so stand-ins come in the
//! order of the parts. It queues slices as they are, because [`Wire`] takes many at once; it would copy them for a connection
//! that does not. The region begins with a mark that no other bytes can have, and a mark outside of the region, which would
//! be such a copy, ends the connection. A stand-in without a part does too: what stands in is never sent.

use std::collections::VecDeque;
use std::error::Error as _;
use std::fs::File;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use nix::sys::sendfile::sendfile64;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::blob::MOST_AT_ONCE;

/// Parts of files that are on their way through one connection. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    region: Region,
    waiting: Arc<Mutex<VecDeque<Waiting>>>,
}

#[derive(Debug)]
struct Waiting {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

/// The bytes that stand in, as many as a part has at most. One is enough for all connections.
#[derive(Debug, Clone)]
pub(super) struct Region(Bytes);

/// What stands in for parts of files and the parts themselves no longer match: a defect of this program or of hyper.
#[derive(Debug, thiserror::Error)]
enum MixedUp {
    #[error("what stands in for a part of a file was copied")]
    Copied,
    #[error("a body has more stand-ins than parts")]
    NoPart,
}

impl From<MixedUp> for io::Error {
    fn from(mixed_up: MixedUp) -> Self {
        Self::other(mixed_up)
    }
}

/// Whether a connection ended because a stand-in was not what it should be, rather than by what client or disk did.
pub(super) fn is_mixed_up(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.and_then(io::Error::get_ref).is_some_and(|inner| inner.is::<MixedUp>())
}

/// Random, so that nobody can make bytes that hold it.
const MARK: usize = 32;

impl Default for Region {
    fn default() -> Self {
        let mut bytes = vec![0; MOST_AT_ONCE as usize];
        bytes[..MARK].copy_from_slice(&rand::random::<[u8; MARK]>());
        Self(bytes.into())
    }
}

impl Parts {
    pub(super) fn new(region: &Region) -> Self {
        Self { region: region.clone(), waiting: Arc::default() }
    }

    /// Puts a part at the end, and gives what stands in for it. `len` is at most [`MOST_AT_ONCE`].
    pub(super) fn stand_in(&self, file: Arc<File>, offset: u64, len: u64) -> Bytes {
        self.waiting.lock().push_back(Waiting { file, offset, left: len });
        self.region.0.slice(..len as usize)
    }

    fn is_stand_in(&self, bytes: &[u8]) -> bool {
        self.region.0.as_ptr_range().contains(&bytes.as_ptr())
    }

    /// Whether bytes that are to go out as they are may go: none of them was copied from what stands in.
    fn allow(&self, plain: &[u8]) -> io::Result<()> {
        let mark = &self.region.0[..MARK];
        if !self.waiting.lock().is_empty() && plain.windows(MARK).any(|bytes| bytes == mark) {
            return Err(MixedUp::Copied.into());
        }
        Ok(())
    }

    /// Sends up to `most` bytes of the first part, as many as the socket takes.
    fn send(&self, stream: &TcpStream, most: usize) -> io::Result<usize> {
        let mut waiting = self.waiting.lock();
        let Some(first) = waiting.front_mut() else {
            return Err(MixedUp::NoPart.into());
        };
        let mut offset = i64::try_from(first.offset).map_err(io::Error::other)?;
        let count = most.min(usize::try_from(first.left).unwrap_or(usize::MAX));
        let sent = sendfile64(stream, &*first.file, Some(&mut offset), count)?;
        if sent == 0 {
            let why = format!("the file ends at byte {}, in the middle of a body", first.offset);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        first.offset += sent as u64;
        first.left -= sent as u64;
        if first.left == 0 {
            waiting.pop_front();
        }
        Ok(sent)
    }
}

/// The connection.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    parts: Parts,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, parts: Parts) -> Self {
        Self { stream, parts }
    }

    fn poll_send(&self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_io(Interest::WRITABLE, || self.parts.send(&self.stream, most)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if !buf.is_empty() && self.parts.is_stand_in(buf) {
            return self.poll_send(cx, buf.len());
        }
        self.parts.allow(buf)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bufs = &bufs[bufs.iter().take_while(|buf| buf.is_empty()).count()..];
        let plain = bufs.iter().take_while(|buf| buf.is_empty() || !self.parts.is_stand_in(buf)).count();
        match bufs.first() {
            Some(first) if plain == 0 => self.poll_send(cx, first.len()),
            _ => {
                bufs[..plain].iter().try_for_each(|buf| self.parts.allow(buf))?;
                Pin::new(&mut self.stream).poll_write_vectored(cx, &bufs[..plain])
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    fn file(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(file)
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at % 251) as u8 + 1).collect()
    }

    #[tokio::test]
    async fn parts_of_files_come_in_their_order_between_what_is_in_memory() {
        let (near, mut far) = pair().await;
        let parts = Parts::new(&Region::default());
        let mut wire = Wire::new(near, parts.clone());
        let (one, two) = (pattern(MOST_AT_ONCE as usize), pattern(70_000));
        let (file_one, file_two) = (file(&one), file(&two));
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            all
        });
        let stand_ins = [parts.stand_in(file_one, 0, MOST_AT_ONCE), parts.stand_in(file_two, 10, 60_000)];
        let mut slices = [&b"head"[..], &stand_ins[0][..], b"", b"middle", &stand_ins[1][..], b"end"].map(IoSlice::new);
        let mut left = &mut slices[..];
        while !left.is_empty() {
            let sent = wire.write_vectored(left).await.unwrap();
            assert!(sent > 0);
            IoSlice::advance_slices(&mut left, sent);
        }
        wire.shutdown().await.unwrap();
        let wanted = [b"head", &one[..], b"middle", &two[10..60_010], b"end"].concat();
        assert!(reading.await.unwrap() == wanted);
        assert!(parts.waiting.lock().is_empty());
    }

    #[tokio::test]
    async fn a_copy_of_what_stands_in_ends_the_connection() {
        let (near, mut far) = pair().await;
        let parts = Parts::new(&Region::default());
        let mut wire = Wire::new(near, parts.clone());
        let stand_in = parts.stand_in(file(&pattern(4096)), 0, 4096);
        let copied = [b"head", &stand_in[..]].concat();
        assert!(wire.write_all(&copied).await.is_err());
        assert!(wire.write_vectored(&[IoSlice::new(b"head"), IoSlice::new(&copied)]).await.is_err());
        drop(wire);
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.unwrap();
        assert!(all.is_empty());
    }

    /// A body that holds a copy of what stands in, as hyper would make one.
    #[tokio::test]
    async fn an_operator_is_told_of_a_copy() {
        for (copy, mixed_up) in [(true, true), (false, false)] {
            let (near, mut far) = pair().await;
            let parts = Parts::new(&Region::default());
            let stand_in = parts.stand_in(file(&pattern(4096)), 0, 4096);
            let body = match copy {
                true => bytes::Bytes::copy_from_slice(&stand_in),
                // The file is cut: not a defect of ours.
                false => {
                    parts.waiting.lock()[0].file.set_len(0).unwrap();
                    stand_in
                }
            };
            let service = hyper::service::service_fn(move |_| {
                let answer = http::Response::new(http_body_util::Full::new(body.clone()));
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            far.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let wire = hyper_util::rt::TokioIo::new(Wire::new(near, parts));
            let error = hyper::server::conn::http1::Builder::new().serve_connection(wire, service).await.unwrap_err();
            assert_eq!(is_mixed_up(&error), mixed_up, "{error:?}");
        }
    }

    #[tokio::test]
    async fn what_stands_in_without_a_part_is_never_sent() {
        let (near, mut far) = pair().await;
        let parts = Parts::new(&Region::default());
        let mut wire = Wire::new(near, parts.clone());
        let short = parts.stand_in(file(b"short"), 0, 4096);
        let error = wire.write_all(&short).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        parts.waiting.lock().clear();
        assert!(wire.write_all(&short).await.is_err(), "a stand-in without a part was sent");
        drop(wire);
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"short");
    }
}
