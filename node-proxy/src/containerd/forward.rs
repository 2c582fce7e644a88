//! The socket in front of containerd: what is asked goes on to containerd as it came, but for three calls.
//!
//! Requests and answers are HTTP/2 bodies that nobody looks into, so that every service passes, those of plugins and of later
//! versions too. A client's connection has one of its own to containerd, made when it is first needed and made anew when
//! containerd was restarted. A transfer from a registry is told to find its hosts in our directory (`transfer.rs`); content that
//! containerd lacks is looked for in the cluster (`content.rs`).
//!
//! What always holds: containerd's own answer comes first; with containerd away a client hears `UNAVAILABLE`, never a broken
//! stream.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use shoal_base::drain::Drain;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Config;
use super::socket::Socket;
use crate::blob::Engine;

mod content;
mod grpc;
mod metrics;
mod transfer;
mod upstream;

pub use metrics::Metrics;

use metrics::Way;
use upstream::Upstream;

/// Connections at once. Clients on a node are few; each keeps one.
const MOST_CONNECTIONS: usize = 512;
/// Streams at once on a connection. A kubelet's watch, events and a pull's blobs are streams each; hyper's own bound is 200.
const MOST_STREAMS: u32 = 4096;
/// Metadata of a request, credentials of a pull included.
const MOST_HEADERS: u32 = 16 << 20;
/// What may be on its way to us in a stream, and in a connection: a few of the largest reads of content.
pub(super) const WINDOWS: (u32, u32) = (4 << 20, 16 << 20);
/// How long after accept a connection may stay without a first stream is the client's affair; one that is dead is noticed by this.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// A body on its way through.
pub(super) type Body = UnsyncBoxBody<Bytes, Failed>;
/// What ended it.
pub(super) type Failed = Box<dyn std::error::Error + Send + Sync>;

/// The socket in front of containerd, ready to run.
pub struct Forward {
    config: Config,
    blobs: Engine,
    metrics: Metrics,
}

impl Forward {
    /// Makes it. `config.hosts_dir` is expected to hold what sends containerd to the mirror.
    pub fn new(config: Config, blobs: Engine, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { config, blobs, metrics })
    }

    /// Serves until the drain is signalled. Calls that run then go on within the grace; streams that have no end of their own,
    /// such as events, are cut.
    pub async fn run(self: Arc<Self>, socket: Socket, drain: Drain) {
        let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        loop {
            // A client beyond them waits in the socket's queue.
            let slot = tokio::select! {
                slot = Arc::clone(&slots).acquire_owned() => slot,
                () = drain.signalled() => return,
            };
            let accepted = tokio::select! {
                accepted = socket.listener.accept() => accepted,
                () = drain.signalled() => return,
            };
            match (accepted, slot) {
                (Ok((stream, _)), Ok(slot)) => {
                    drop(tokio::spawn(Arc::clone(&self).connection(stream, drain.clone(), slot)));
                }
                (Err(error), _) => {
                    tracing::warn!(%error, "accept a connection of a containerd client");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                (_, Err(_)) => return,
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: UnixStream, drain: Drain, _slot: OwnedSemaphorePermit) {
        self.metrics.connections.inc();
        let upstream = Arc::new(Upstream::new(&self.config.address));
        let service = {
            let (forward, drain) = (Arc::clone(&self), drain.clone());
            service_fn(move |request: Request<Incoming>| {
                let (forward, upstream, drain) = (Arc::clone(&forward), Arc::clone(&upstream), drain.clone());
                async move { Ok::<_, Infallible>(forward.answer(request, &upstream, &drain).await) }
            })
        };
        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MOST_STREAMS)
            .max_header_list_size(MOST_HEADERS)
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .max_send_buf_size(WINDOWS.0 as usize)
            .keep_alive_interval(KEEP_ALIVE)
            .serve_connection(TokioIo::new(stream), service);
        let mut serving = std::pin::pin!(serving);
        let ended = tokio::select! {
            ended = &mut serving => ended,
            () = drain.signalled() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection of a containerd client ended");
        }
        self.metrics.connections.dec();
    }

    async fn answer(&self, request: Request<Incoming>, upstream: &Upstream, drain: &Drain) -> Response<Body> {
        let way = Way::of(request.uri().path());
        self.metrics.called(way);
        let answer = match way {
            Way::Transfer => self.transfer(request, upstream).await,
            Way::Info => self.info(request, upstream).await,
            Way::Read => self.read(request, upstream).await,
            Way::Endless | Way::Other => upstream.send(request.map(upstream::passed)).await,
        };
        // A process that ends waits for what ends.
        let guard = (way != Way::Endless).then(|| drain.guard());
        answer.map(|body| {
            body.map_frame(move |frame| {
                let _counted = &guard;
                frame
            })
            .boxed_unsync()
        })
    }
}
