//! Listening sockets, and an HTTP server for small requests (admin, REST) that a slow or greedy client can't exhaust.
//!
//! The mirror and the peer port have servers of their own; they share only [`bind`].

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
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::drain::Drain;
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

/// Connections at a time; more wait in the backlog. Each costs about 16 KiB.
const MAX_CONNECTIONS: usize = 512;

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

/// Serves `router` over HTTP/1 until drained: then it takes no more connections, lets requests end, and returns when
/// the last one has. Handlers find the client in [`ConnectInfo<SocketAddr>`].
pub async fn serve_http(listener: TcpListener, router: Router, drain: Drain) {
    let _working = drain.guard();
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    loop {
        let permit = tokio::select! {
            () = drain.signalled() => break,
            // The semaphore is never closed.
            permit = Arc::clone(&connections).acquire_owned() => permit,
        };
        let (stream, client) = tokio::select! {
            () = drain.signalled() => break,
            accepted = accept(&listener) => accepted,
        };
        let hurry = connections.available_permits() < MAX_CONNECTIONS / 2;
        let patience = if hurry { HURRIED_HEADER_TIMEOUT } else { HEADER_TIMEOUT };
        let connection = graceful.watch(connection(stream, client, router.clone(), patience));
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = connection.await {
                tracing::debug!(%client, %error, "a connection ended early");
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
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

fn connection(
    stream: TcpStream,
    client: SocketAddr,
    router: Router,
    patience: Duration,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> + Send {
    // Answers are small; without this the last packet of one may wait for the client's ACK.
    let _ = stream.set_nodelay(true);
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut request = request.map(|body| Body::new(Unhurried::new(body, BODY_TIMEOUT)));
        request.extensions_mut().insert(ConnectInfo(client));
        let mut router = router.clone();
        async move {
            // A router is always ready.
            let response = tower::Service::call(&mut router, request).await;
            response as Result<_, Infallible>
        }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .serve_connection(TokioIo::new(stream), service)
}
