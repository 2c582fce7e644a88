use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::{ClientConfig, CommonState, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{Seen, no_name, seen};

/// What may be encrypted before it goes to the kernel: the smallest block with its head, so that it takes one system call.
const UNSENT: usize = (256 << 10) + (16 << 10);

/// A TCP connection, with TLS or without.
#[derive(Debug)]
pub enum Wire {
    /// Without.
    Plain(TcpStream),
    /// With, after the handshake.
    Secured(Box<TlsStream<TcpStream>>),
}

impl Wire {
    /// Takes the server's part in a handshake. Without a bound on time.
    ///
    /// # Errors
    /// What [`super::Refusal::of`] understands, or what the system says.
    pub async fn accept(stream: TcpStream, config: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        match config {
            None => Ok(Self::Plain(stream)),
            Some(config) => {
                let mut stream = TlsAcceptor::from(config).accept(stream).await?;
                stream.get_mut().1.set_buffer_limit(Some(UNSENT));
                Ok(Self::Secured(Box::new(stream.into())))
            }
        }
    }

    /// Takes the client's part in a handshake. Without a bound on time.
    ///
    /// # Errors
    /// As [`Wire::accept`]. That the server refuses this client shows only when something is read.
    pub async fn connect(stream: TcpStream, config: Option<Arc<ClientConfig>>) -> io::Result<Self> {
        match config {
            None => Ok(Self::Plain(stream)),
            Some(config) => {
                Ok(Self::Secured(Box::new(TlsConnector::from(config).connect(no_name(), stream).await?.into())))
            }
        }
    }

    /// What the other side showed; `None`: nothing, or there is no TLS.
    ///
    /// # Errors
    /// Its certificate can't be read.
    pub fn seen(&self) -> Result<Option<Seen>, String> {
        match self {
            Self::Plain(_) => Ok(None),
            Self::Secured(stream) => {
                let state: &CommonState = match &**stream {
                    TlsStream::Client(stream) => stream.get_ref().1,
                    TlsStream::Server(stream) => stream.get_ref().1,
                };
                seen(state)
            }
        }
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Secured(stream) => stream.get_ref().0,
        }
    }

    /// Whether it has TLS.
    pub const fn is_secured(&self) -> bool {
        matches!(self, Self::Secured(_))
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Secured(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Secured(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Self::Secured(stream) => Pin::new(stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Secured(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Secured(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Secured(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

impl Wire {
    /// The two directions, for two that use them at once. What is written to a secured one must be flushed.
    pub fn into_split(self) -> (Reader, Writer) {
        match self {
            Self::Plain(stream) => {
                let (read, write) = stream.into_split();
                (Reader::Plain(read), Writer::Plain(write))
            }
            Self::Secured(stream) => {
                let (read, write) = tokio::io::split(*stream);
                (Reader::Secured(read), Writer::Secured(write))
            }
        }
    }
}

/// What comes.
#[derive(Debug)]
pub enum Reader {
    /// Without TLS.
    Plain(OwnedReadHalf),
    /// With.
    Secured(ReadHalf<TlsStream<TcpStream>>),
}

/// What goes.
#[derive(Debug)]
pub enum Writer {
    /// Without TLS.
    Plain(OwnedWriteHalf),
    /// With.
    Secured(WriteHalf<TlsStream<TcpStream>>),
}

impl Writer {
    /// The socket, where bytes may go to it past this writer: without TLS.
    pub fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(half) => Some(half.as_ref()),
            Self::Secured(_) => None,
        }
    }
}

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(half) => Pin::new(half).poll_read(context, buffer),
            Self::Secured(half) => Pin::new(half).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Writer {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(half) => Pin::new(half).poll_write(context, bytes),
            Self::Secured(half) => Pin::new(half).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(half) => Pin::new(half).poll_write_vectored(context, parts),
            Self::Secured(half) => Pin::new(half).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(half) => half.is_write_vectored(),
            Self::Secured(half) => half.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(half) => Pin::new(half).poll_flush(context),
            Self::Secured(half) => Pin::new(half).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(half) => Pin::new(half).poll_shutdown(context),
            Self::Secured(half) => Pin::new(half).poll_shutdown(context),
        }
    }
}
