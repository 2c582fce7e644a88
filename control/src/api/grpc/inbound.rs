//! A connection of a node, from the moment at which it is known who has it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use shoal_base::tls::{self, Wire};
use shoal_proto::identity::Bearer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tonic::transport::server::Connected;

use super::bounds::{self, Places, Stay};
use super::caller::{Caller, Gate, Shown};
use super::preface;
use crate::identity::Reason;

/// For a handshake: three packets, and a signature on either side.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// A connection that begins as HTTP/2 does, or that ended its handshake well.
pub(super) struct Inbound {
    wire: Wire,
    from: From,
    /// Of who has no certificate.
    stay: Option<Stay>,
    _place: OwnedSemaphorePermit,
}

/// What requests know of their connection.
#[derive(Debug, Clone)]
pub(super) struct From {
    /// Who.
    pub(super) caller: Caller,
    /// From where, for logs.
    pub(super) addr: String,
}

/// Looks at a new connection. `None`: it is not one to serve.
pub(super) async fn take(
    socket: TcpStream,
    place: OwnedSemaphorePermit,
    places: &Places,
    gate: &Gate,
) -> Option<Inbound> {
    let addr = socket.peer_addr().map_or_else(|_| "unknown".to_owned(), |addr| addr.to_string());
    let Some(config) = gate.config() else {
        let Some(socket) = preface::seen(socket).await else {
            places.metrics.refused(bounds::Reason::Handshake);
            return None;
        };
        let from = From { caller: Caller::Anyone, addr };
        return Some(Inbound { wire: Wire::Plain(socket), from, stay: None, _place: place });
    };
    let wire = match tokio::time::timeout(HANDSHAKE, Wire::accept(socket, Some(config))).await {
        Ok(Ok(wire)) => wire,
        Ok(Err(error)) => {
            places.metrics.refused(bounds::Reason::Handshake);
            match tls::Refusal::of(&error) {
                Some(refusal) => gate.refuse(Reason::of_handshake(refusal), &refusal.to_string(), &addr),
                None => tracing::debug!(from = addr, %error, "a handshake broke"),
            }
            return None;
        }
        Err(_) => {
            places.metrics.refused(bounds::Reason::Handshake);
            tracing::debug!(from = addr, "no handshake within {HANDSHAKE:?}");
            return None;
        }
    };
    let caller = match wire.seen() {
        Ok(None) => Caller::Stranger,
        Ok(Some(seen)) => match Bearer::new(&seen.name, &seen.serial) {
            Ok(bearer) => Caller::Bearer(Shown { bearer, key: seen.key }),
            Err(unfit) => {
                gate.refuse(Some(Reason::of_unfit(&unfit)), &unfit.to_string(), &addr);
                return None;
            }
        },
        Err(why) => {
            gate.refuse(Some(Reason::Name), &why, &addr);
            return None;
        }
    };
    let stay = match caller {
        Caller::Stranger => Some(places.stranger()?),
        Caller::Anyone | Caller::Bearer(_) => None,
    };
    Some(Inbound { wire, from: From { caller, addr }, stay, _place: place })
}

impl Connected for Inbound {
    type ConnectInfo = From;

    fn connect_info(&self) -> From {
        self.from.clone()
    }
}

impl AsyncRead for Inbound {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(stay) = &mut this.stay {
            stay.check(context)?;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.wire).poll_read(context, buffer);
        if let Some(stay) = &mut this.stay {
            stay.spend(buffer.filled().len() - before);
        }
        read
    }
}

impl AsyncWrite for Inbound {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().wire).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().wire).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_shutdown(context)
    }
}
