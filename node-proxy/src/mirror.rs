//! The OCI pull endpoint that containerd asks: `GET` and `HEAD` of manifests and blobs, on loopback.
//!
//! Owns HTTP towards containerd: routes, ranges, errors as OCI JSON, one span per request. Does not fetch: what the caller may
//! read comes from `blob`. Whether it may is the registry's answer, asked of `origin` before anything is given (I10).
//!
//! What always holds (I7): complete verified bytes; or an error status before the first byte, out of 400 401 403 404 405
//! 416 502 503; or, once bytes have flown, a FIN. Never 200 or 206 before verified bytes are in hand.
//!
//! Source: OCI distribution spec 1.1, "Pull"; RFC 9110 section 14 (Range); what containerd makes of it: the lab's tests.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use shoal_base::drain::Drain;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use crate::blob::Engine;
use crate::origin::{Origin, Registry};

mod answer;
mod body;
mod checked;
mod cuts;
#[doc(hidden)]
pub mod fuzz;
mod headers;
mod metrics;
mod pass;
mod pull;
mod range;
mod refusal;
mod request;
mod route;
#[cfg(test)]
mod tests;
mod wire;

pub use metrics::Metrics;

use answer::Answer;
use cuts::Cuts;
use metrics::What;
use refusal::{Code, Refusal};
use route::Route;
use wire::{Parts, Region, Wire};

/// Headers of a request must come within this: the caller is on this machine.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// Headers in one request; containerd sends fewer than ten.
const MOST_HEADERS: usize = 64;
/// Connections above the bound that are told so at once; a client that waits without an answer may wait for ever.
const MOST_TURNED_AWAY: usize = 256;
/// That connections are turned away is said at most this often: who is turned away comes in floods.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// What is turned away must ask within this.
const TURN_AWAY_TIMEOUT: Duration = Duration::from_secs(1);

/// Settings of the mirror.
#[derive(Debug, Clone)]
pub struct Config {
    /// The registry meant by a request without `ns=`; without it such a request is answered 404.
    pub default_registry: Option<Registry>,
    /// Registries that may be asked for; empty: all.
    pub allow: Vec<Registry>,
    /// Registries that may not be asked for; outranks `allow`.
    pub deny: Vec<Registry>,
    /// Connections at once; what asks on one more is answered 503.
    pub max_connections: usize,
    /// The longest wait for a first byte, counted from the request, 5 s (I8).
    pub first_byte_budget: Duration,
    /// The same while our own request for bytes is out at the origin, 20 s (decision 003).
    pub origin_byte_budget: Duration,
}

/// The mirror, ready to run.
pub struct Mirror {
    config: Config,
    origin: Arc<Origin>,
    blobs: Engine,
    cuts: Cuts,
    metrics: Metrics,
    region: Region,
}

impl Mirror {
    /// Makes the mirror.
    pub fn new(config: Config, origin: Arc<Origin>, blobs: Engine, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { config, origin, blobs, cuts: Cuts::default(), metrics, region: Region::default() })
    }

    /// Serves until the drain is signalled; requests that run then are finished, as far as the grace allows.
    pub async fn run(self: Arc<Self>, listener: TcpListener, drain: Drain) {
        let slots = Arc::new(Semaphore::new(self.config.max_connections));
        let turned_away = Arc::new(Semaphore::new(MOST_TURNED_AWAY));
        let mut said: Option<Instant> = None;
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "accept a connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = drain.signalled() => return,
            };
            let (mirror, drain) = (Arc::clone(&self), drain.clone());
            match Arc::clone(&slots).try_acquire_owned() {
                Ok(slot) => drop(tokio::spawn(mirror.connection(stream, drain, slot))),
                Err(_) => {
                    self.metrics.turned_away();
                    if said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
                        said = Some(Instant::now());
                        let most = self.config.max_connections;
                        tracing::warn!(most, "connections turned away: more than mirror.max_connections");
                    }
                    if let Ok(slot) = Arc::clone(&turned_away).try_acquire_owned() {
                        tokio::spawn(mirror.turn_away(stream, slot));
                    }
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, drain: Drain, _slot: OwnedSemaphorePermit) {
        let _ = stream.set_nodelay(true);
        let guard = drain.guard();
        let parts = Parts::new(&self.region);
        let wire = Wire::new(stream, parts.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (mirror, parts) = (Arc::clone(&self), parts.clone());
            async move { Ok::<_, Infallible>(mirror.handle(request, parts).await) }
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS_TIMEOUT)
            .max_headers(MOST_HEADERS)
            .serve_connection(TokioIo::new(wire), service);
        let mut serving = std::pin::pin!(serving);
        let ended = tokio::select! {
            ended = &mut serving => ended,
            () = drain.signalled() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        match ended {
            Err(error) if wire::is_mixed_up(&error) => {
                tracing::error!(%error, "mirror connection ended by a defect of ours")
            }
            // A body that ended early, a client that went away: each was logged or counted where it happened.
            Err(error) => tracing::debug!(%error, "mirror connection ended"),
            Ok(()) => {}
        }
        drop(guard);
    }

    /// Answers what comes on a connection too many with 503, so that the client goes on elsewhere at once.
    async fn turn_away(self: Arc<Self>, stream: TcpStream, _slot: OwnedSemaphorePermit) {
        let service = service_fn(|_: Request<Incoming>| {
            let text = format!("more than {} connections at once", self.config.max_connections);
            let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, text);
            let answer = Answer::from(refusal).into_response(tracing::Span::none(), self.metrics.clone(), None);
            async move { Ok::<_, Infallible>(answer) }
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(TURN_AWAY_TIMEOUT)
            .max_headers(MOST_HEADERS)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        // Whoever can't be told is as gone as whoever was.
        let _ = serving.await;
    }

    /// Answers one request. Its span lasts until the body's last byte.
    async fn handle(&self, request: Request<Incoming>, parts: Parts) -> Response<body::Body> {
        let since = tokio::time::Instant::now();
        let route = Route::of(request.method(), request.uri());
        let what = What::of(route.as_ref().ok());
        let span = self.span(&request, route.as_ref().ok(), what);
        let answered = async {
            match route {
                Ok(route) => self.pull(route, request.headers(), since).await,
                Err(refusal) => Err(refusal),
            }
        };
        let answer = answered.instrument(span.clone()).await.unwrap_or_else(|refusal| {
            span.in_scope(|| refusal.log());
            Answer::from(refusal)
        });
        let status = answer.status();
        span.record("http.status_code", status.as_u16());
        if status.is_client_error() || status.is_server_error() {
            span.record("otel.status_code", if status.is_server_error() { "ERROR" } else { "OK" });
        }
        self.metrics.answered(what, status, since.elapsed());
        answer.into_response(span, self.metrics.clone(), Some(parts))
    }

    /// The span of a request, in the caller's trace, else in that of the flight that serves it (decision 001).
    fn span(&self, request: &Request<Incoming>, route: Option<&Route>, what: What) -> tracing::Span {
        let url = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let span = tracing::info_span!(
            "request",
            otel.name = format!("{} {}", request.method(), what.word()),
            otel.kind = "server",
            otel.status_code = tracing::field::Empty,
            http.method = %request.method(),
            http.url = url,
            http.status_code = tracing::field::Empty,
            shoal.bytes.origin = tracing::field::Empty,
            shoal.bytes.peer = tracing::field::Empty,
            shoal.bytes.local = tracing::field::Empty,
        );
        if request.headers().contains_key("traceparent") {
            shoal_base::telemetry::extract_http(&span, request.headers());
        } else if let Some(trace) = route.and_then(Route::digest).and_then(|digest| self.blobs.trace_of(&digest)) {
            shoal_base::telemetry::set_parent(&span, &trace);
        }
        span
    }

    /// Which registry a request means, if this mirror may ask it.
    fn registry(&self, ns: Option<&str>) -> Result<Registry, Refusal> {
        let registry = match ns {
            Some(ns) => ns
                .parse::<Registry>()
                .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, Code::NameInvalid, format!("ns: {error}")))?,
            None => self.config.default_registry.clone().ok_or_else(|| {
                Refusal::new(StatusCode::NOT_FOUND, Code::NameUnknown, "ns is missing and there is no default registry")
            })?,
        };
        let listed = self.config.allow.is_empty() || self.config.allow.contains(&registry);
        if !listed || self.config.deny.contains(&registry) {
            let text = format!("ns: {registry} may not be asked through this mirror");
            return Err(Refusal::new(StatusCode::NOT_FOUND, Code::NameUnknown, text));
        }
        Ok(registry)
    }
}
