//! Blocks on their way out of a file into a socket, for a thread that may block on the disk.
//!
//! The head of a block is written, its bytes go by sendfile(2). A head announces how many bytes follow, so a file that has
//! become shorter ends the connection: nothing else can follow that head.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::sendfile::sendfile64;
use nix::sys::socket::{MsgFlags, send};
use shoal_proto::BlockIndex;
use shoal_proto::frame::{HEAD, block_head};

/// Bytes of a file that go out, after the head of a block when they begin one.
#[derive(Debug)]
pub(super) struct Part {
    head: Option<[u8; HEAD + 4]>,
    offset: u64,
    len: u64,
}

impl Part {
    /// A whole block, `len` bytes at `offset`.
    pub(super) fn block(block: BlockIndex, offset: u64, len: usize) -> Self {
        Self { head: Some(block_head(block, len)), offset, len: len as u64 }
    }

    /// The `at`-th of the parts into which a block is cut: the head goes with the first.
    pub(super) fn of_block(block: BlockIndex, block_len: usize, at: usize, offset: u64, len: u64) -> Self {
        Self { head: (at == 0).then(|| block_head(block, block_len)), offset, len }
    }
}

/// How far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    /// All is in the socket.
    All,
    /// The socket is full.
    Full,
}

/// What has not gone out yet.
#[derive(Debug)]
pub(super) struct Outgoing {
    socket: Arc<OwnedFd>,
    file: Arc<File>,
    parts: VecDeque<Part>,
    /// Bytes of the first part's head that have gone out.
    head_sent: usize,
}

impl Outgoing {
    pub(super) fn new(socket: Arc<OwnedFd>, file: Arc<File>, parts: Vec<Part>) -> Self {
        Self { socket, file, parts: parts.into(), head_sent: 0 }
    }

    /// Pushes into the socket, which does not block, until all is out or the socket is full.
    ///
    /// # Errors
    /// What the socket or the file says; `UnexpectedEof` for a file that has become shorter.
    pub(super) fn push(&mut self) -> io::Result<Pushed> {
        while let Some(part) = self.parts.front_mut() {
            let left = part.head.as_ref().and_then(|head| head.get(self.head_sent..)).filter(|left| !left.is_empty());
            let pushed = if let Some(left) = left {
                // The bytes follow at once: one segment for both.
                let more = MsgFlags::from_bits_retain(nix::libc::MSG_MORE);
                let flags = more | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                send(self.socket.as_raw_fd(), left, flags).map(|sent| self.head_sent += sent)
            } else if part.len == 0 {
                self.parts.pop_front();
                self.head_sent = 0;
                Ok(())
            } else {
                let mut offset = i64::try_from(part.offset).map_err(io::Error::other)?;
                let count = usize::try_from(part.len).unwrap_or(usize::MAX);
                match sendfile64(&*self.socket, &*self.file, Some(&mut offset), count) {
                    Ok(0) => {
                        let why = format!("the file ends at byte {}, in the middle of a block", part.offset);
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
                    }
                    Ok(sent) => {
                        part.offset += sent as u64;
                        part.len -= sent as u64;
                        Ok(())
                    }
                    Err(errno) => Err(errno),
                }
            };
            match pushed {
                Ok(()) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(Pushed::Full),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Pushed::All)
    }
}

/// Whether the socket takes bytes now.
///
/// # Errors
/// `WouldBlock` while it does not.
pub(super) fn can_take(socket: &impl AsFd) -> io::Result<()> {
    let mut asked = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut asked, PollTimeout::ZERO) {
        // Also when it is broken: the next attempt says how.
        Ok(1..) | Err(Errno::EINTR) => Ok(()),
        Ok(_) => Err(io::ErrorKind::WouldBlock.into()),
        Err(errno) => Err(errno.into()),
    }
}
