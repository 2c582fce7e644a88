//! Listening sockets, and an HTTP server for small requests (admin, REST) that a slow or greedy client can't exhaust.
//!
//! The mirror and the peer port have servers of their own; they share only [`bind`].

mod metrics;
#[cfg(test)]
mod tests;
mod unhurried;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::ServerConfig;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::drain::Drain;
use crate::tls::Wire;
pub use metrics::{Metrics, Reason};
use unhurried::Unhurried;

/// Whether two listeners would want one port: the same, at the same address or where one of them takes every address.
/// Port 0 is never the same.
pub fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let overlap = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && overlap
}

/// The networks of this machine itself.
pub fn loopback() -> Vec<IpNet> {
    networks(&["127.0.0.0/8", "::1/128"])
}

/// Loopback, and the private networks of RFC 1918 and RFC 4193.
pub fn private_networks() -> Vec<IpNet> {
    let private = networks(&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]);
    loopback().into_iter().chain(private).collect()
}

fn networks(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().expect("a network")).collect()
}

/// Connections that the kernel holds for us while we are busy.
const BACKLOG: i32 = 1024;

/// How long a client may take to send a request's headers, and how long an idle connection is kept.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The same when more than half of the connections are taken, so that clients that say nothing can't keep out a probe.
const HURRIED_HEADER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a client may be silent in the middle of a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections at a time; more wait for [`PLACE_WAIT`], and are then answered 503. Each costs about 16 KiB, and at most [`LONGEST_HEADERS`] more.
const MAX_CONNECTIONS: usize = 512;

/// How long a connection waits for a place: until those that say nothing were ended, so that they can't keep out a probe. One waits at a
/// time, and the rest in the backlog; when no place came free, those behind it are told at once, until one does.
const PLACE_WAIT: Duration = Duration::from_secs(2);

/// Those that are being told so at once; further ones are closed without a word.
const MOST_TURNED_AWAY: usize = 64;

/// How long that may take.
const TURN_AWAY_TIMEOUT: Duration = Duration::from_secs(1);

/// For a handshake: three packets, and a signature.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// From the end of the headers to the answer, the body included: everything here is answered from memory or with small writes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// After that a connection ends with the request in hand: clients come again, and whoever never reads its answers is gone.
const LONGEST_CONNECTION: Duration = Duration::from_secs(600);

/// Headers of a request; browsers send some twenty.
const MOST_HEADERS: usize = 64;

/// Bytes of a request's line and headers.
const LONGEST_HEADERS: usize = 32 << 10;

/// After `accept` failed for want of files or memory, how long until the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens. Port 0 takes a free one. The unspecified IPv6 address (`[::]`) listens on IPv4 too.
///
/// # Errors
/// What the system says.
pub fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if let IpAddr::V6(ip) = addr.ip() {
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    // A restarted daemon must not wait until the connections of the old one are forgotten.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Raises the limit of open files to what the system allows this process, and says what it is now.
///
/// # Errors
/// What the system says.
pub fn raise_open_files() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// HTTP/1 for small requests, with TLS or without.
///
/// What it bounds, each with a counter in [`Metrics`]: connections at once, the time for a handshake, for headers and for a whole
/// request, the silence within a body, how many headers there are and how long they are, and how long a connection lives.
pub struct Http {
    router: Router,
    tls: Option<Arc<ServerConfig>>,
    metrics: Metrics,
    most: usize,
}

impl Http {
    /// Serves a router. Handlers find the client in [`ConnectInfo<SocketAddr>`].
    #[must_use]
    pub fn new(router: Router) -> Self {
        Self { router, tls: None, metrics: Metrics::default(), most: MAX_CONNECTIONS }
    }

    /// Over TLS.
    #[must_use]
    pub fn tls(self, tls: Option<Arc<ServerConfig>>) -> Self {
        Self { tls, ..self }
    }

    /// What is refused is counted there.
    #[must_use]
    pub fn counted(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// Serves until drained: then it takes no more connections, lets requests end, and returns when the last one has.
    pub async fn serve(self, listener: TcpListener, drain: Drain) {
        let _working = drain.guard();
        let most = self.most;
        let connections = Arc::new(Semaphore::new(most));
        let turned_away = Arc::new(Semaphore::new(MOST_TURNED_AWAY));
        let this = Arc::new(self);
        let mut stuck = false;
        loop {
            let (stream, client) = tokio::select! {
                () = drain.signalled() => break,
                accepted = accept(&listener) => accepted,
            };
            let patience = if stuck { Duration::ZERO } else { PLACE_WAIT };
            let place = tokio::select! {
                () = drain.signalled() => break,
                place = tokio::time::timeout(patience, Arc::clone(&connections).acquire_owned()) => place,
            };
            stuck = place.is_err();
            // The semaphore is never closed.
            let Ok(Ok(permit)) = place else {
                this.metrics.refused(Reason::Connections);
                // Beyond some, or where TLS would have to be spoken first, the connection just ends.
                if let (None, Ok(permit)) = (&this.tls, Arc::clone(&turned_away).try_acquire_owned()) {
                    tokio::spawn(async move {
                        let _permit = permit;
                        let _ = tokio::time::timeout(TURN_AWAY_TIMEOUT, turn_away(stream)).await;
                    });
                }
                continue;
            };
            let hurry = connections.available_permits() < most / 2;
            let (this, drain) = (Arc::clone(&this), drain.clone());
            tokio::spawn(async move {
                let _permit = permit;
                this.connection(stream, client, if hurry { HURRIED_HEADER_TIMEOUT } else { HEADER_TIMEOUT }, drain)
                    .await;
            });
        }
        drop(listener);
        // The semaphore is never closed.
        let _ = connections.acquire_many(u32::try_from(most).unwrap_or(u32::MAX)).await;
    }

    async fn connection(&self, stream: TcpStream, client: SocketAddr, patience: Duration, drain: Drain) {
        // Answers are small; without this the last packet of one may wait for the client's ACK.
        let _ = stream.set_nodelay(true);
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, Wire::accept(stream, self.tls.clone()));
        let wire = tokio::select! {
            wire = handshake => wire,
            () = drain.signalled() => return,
        };
        let Ok(Ok(wire)) = wire else {
            self.metrics.refused(Reason::Handshake);
            return tracing::debug!(%client, "a handshake failed");
        };
        let service = hyper::service::service_fn(move |request| self.answer(request, client));
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(patience)
            .max_headers(MOST_HEADERS)
            .max_buf_size(LONGEST_HEADERS)
            .serve_connection(TokioIo::new(wire), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = drain.signalled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = tokio::time::sleep(LONGEST_CONNECTION) => {
                connection.as_mut().graceful_shutdown();
                // Whoever does not take its answer by then never will.
                let Ok(ended) = tokio::time::timeout(REQUEST_TIMEOUT, connection).await else {
                    return self.metrics.refused(Reason::Slow);
                };
                ended
            }
        };
        if let Err(error) = ended {
            if error.is_parse_too_large() {
                self.metrics.refused(Reason::Headers);
            } else if error.is_timeout() {
                self.metrics.refused(Reason::Slow);
            }
            tracing::debug!(%client, %error, "a connection ended early");
        }
    }

    async fn answer(&self, request: Request<Incoming>, client: SocketAddr) -> Result<Response, Infallible> {
        let mut request = request.map(|body| Body::new(Unhurried::new(body, BODY_TIMEOUT)));
        request.extensions_mut().insert(ConnectInfo(client));
        let mut router = self.router.clone();
        // A router is always ready.
        let answering = tower::Service::call(&mut router, request);
        let Ok(answer) = tokio::time::timeout(REQUEST_TIMEOUT, answering).await else {
            self.metrics.refused(Reason::Slow);
            return Ok((StatusCode::REQUEST_TIMEOUT, [(header::CONNECTION, "close")]).into_response());
        };
        if answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::PAYLOAD_TOO_LARGE) {
            self.metrics.refused(Reason::Body);
        }
        answer
    }
}

/// Says that there are too many, and waits until that was read: a connection that is closed over unread bytes is reset, and what
/// was said may be lost.
async fn turn_away(mut stream: TcpStream) -> io::Result<()> {
    stream
        .write_all(
            b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        )
        .await?;
    stream.shutdown().await?;
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// The next connection. Errors of one connection or of the moment are waited out.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
