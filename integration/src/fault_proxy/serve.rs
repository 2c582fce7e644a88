//! The proxy's listener and its connections.
use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::LazyConfigAcceptor;

use super::{
    Shared, answer,
    wire::{Line, Reset, is_rustls},
};

/// Accepts until aborted, which ends every connection too.
pub(super) fn accept(shared: Arc<Shared>, listener: TcpListener) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Ok((stream, from)) = listener.accept() => {
                    connections.spawn(connection(shared.clone(), stream, from));
                }
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
            }
        }
    })
}

async fn connection(shared: Arc<Shared>, tcp: TcpStream, from: SocketAddr) {
    let _ = tcp.set_nodelay(true);
    let reset = Reset::default();
    let line = Line::new(tcp, reset.clone());
    let start = match LazyConfigAcceptor::new(rustls::server::Acceptor::default(), line).await {
        Ok(start) => start,
        Err(error) => return tracing::debug!(%from, %error, "fault proxy: no greeting"),
    };
    let fault = shared.judge_connection(is_rustls(&start.client_hello()));
    let stream = match start.into_stream(shared.certificates.of(fault)).await {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%from, %error, "fault proxy: no TLS"),
    };
    let mut round = shared.round.subscribe();
    round.mark_unchanged();
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, reset) = (shared.clone(), reset.clone());
        async move { Ok::<_, Infallible>(answer::answer(&shared, from, request, reset).await) }
    });
    let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    let ended = tokio::select! {
        ended = &mut serving => ended,
        _ = round.changed() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%from, %error, "fault proxy: connection");
    }
}
