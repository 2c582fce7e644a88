//! `shoal.control.v1` for nodes.
//!
//! Owns the streams: their checks, their bounds, and the translation between the wire and the rooms. Every bad field
//! of a first message is named in INVALID_ARGUMENT. The source of truth is `proto/shoal/control/v1/control.proto`.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use ipnet::IpNet;
use shoal_base::drain::Drain;
use shoal_proto::NodeId;
use shoal_proto::control::v1 as wire;
use shoal_proto::control::v1::control_server::{Control, ControlServer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};
use tower::util::MapRequestLayer;

use crate::nodes::Nodes;
use crate::preheat::Preheats;
use crate::swarm::Swarm;

mod bounds;
mod caller;
mod find;
mod inbound;
mod join;
mod parse;
mod preface;
mod session;
mod slices;
#[cfg(test)]
mod tests;

/// A thousand holdings of 100 bytes and a whole piece list (256 KiB) fit; nothing larger is sent.
const LARGEST_MESSAGE: usize = 1 << 20;
/// Flights of one node at a time; also the bound on what one connection can make control keep.
const MOST_STREAMS: u32 = 4096;
/// Clears away connections whose other end vanished. A dead node is noticed by its lease, and a dead control by the node's own pings; so this may be
/// patient: when all nodes come back at once, answers lie behind what they announce.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// Connections whose first bytes are waited for; more wait in the listener's backlog.
const MOST_UNSEEN: usize = 4096;
/// For the first message of a stream; nothing is kept for a stream before it.
const FIRST_MESSAGE: Duration = Duration::from_secs(5);

/// How nodes reach control.
#[derive(Debug, Clone)]
pub struct Config {
    /// Networks that nodes may connect from. Empty: all.
    pub allow: Vec<IpNet>,
    /// Connections at once; further ones are closed.
    pub max_connections: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { allow: Vec::new(), max_connections: 16384 }
    }
}

use bounds::Places;
pub use bounds::{Metrics, Reason};
pub use caller::Gate;
use caller::Shown;

/// What the calls need.
#[derive(Clone)]
pub struct Parts {
    /// The live nodes.
    pub nodes: Arc<Nodes>,
    /// Who gives a blob to whom.
    pub swarm: Arc<Swarm>,
    /// What nodes are told to fetch.
    pub preheats: Arc<Preheats>,
    /// Who may call what.
    pub gate: Gate,
    /// What is counted of connections.
    pub metrics: Metrics,
}

fn server(parts: Parts, drain: Drain) -> ControlServer<impl Control> {
    ControlServer::new(Streams { parts, drain })
        .max_decoding_message_size(LARGEST_MESSAGE)
        .max_encoding_message_size(LARGEST_MESSAGE)
}

/// Serves nodes until drained; then streams end, and nodes come back with back-off.
///
/// # Errors
/// What the system says of the listener.
pub async fn run(listener: TcpListener, config: Config, parts: Parts, drain: Drain) -> io::Result<()> {
    let Config { allow, max_connections } = config;
    let gate = parts.gate.clone();
    let places = Places::new(max_connections, parts.metrics.clone());
    let entry = places.clone();
    let incoming = TcpListenerStream::new(listener).filter_map(move |socket| {
        let socket = socket.and_then(|socket| Ok((socket.peer_addr()?, socket)));
        let answer = match socket {
            Ok((from, socket)) if admits(&allow, from.ip()) => {
                // Words are small and are waited for.
                let _ = socket.set_nodelay(true);
                let place = entry.take();
                if place.is_none() {
                    tracing::debug!(%from, "refused a connection: there are too many");
                }
                place.map(|place| (socket, place))
            }
            Ok((from, _)) => {
                entry.metrics.refused(Reason::Network);
                tracing::debug!(%from, "refused a connection from a network that is not listed");
                None
            }
            Err(error) => {
                // A connection that was gone before it was taken, or no file descriptor left.
                tracing::debug!(%error, "accept a connection");
                None
            }
        };
        std::future::ready(answer)
    });
    let incoming = incoming.map(move |(socket, place)| {
        let (gate, places) = (gate.clone(), places.clone());
        async move { inbound::take(socket, place, &places, &gate).await.map(Ok::<_, io::Error>) }
    });
    let incoming = incoming.buffer_unordered(MOST_UNSEEN).filter_map(std::future::ready);
    tonic::transport::Server::builder()
        .max_concurrent_streams(MOST_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(16 << 10)
        .layer(MapRequestLayer::new(slices::cut))
        .add_service(server(parts, drain.clone()))
        .serve_with_incoming_shutdown(incoming, async move { drain.signalled().await })
        .await
        .map_err(io::Error::other)
}

fn admits(allow: &[IpNet], from: IpAddr) -> bool {
    let from = from.to_canonical();
    allow.is_empty() || allow.iter().any(|network| network.contains(&from))
}

struct Streams {
    parts: Parts,
    drain: Drain,
}

#[tonic::async_trait]
impl Control for Streams {
    type SessionStream = BoxStream<'static, Result<wire::SessionResponse, Status>>;
    type FindStream = BoxStream<'static, Result<wire::FindResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<wire::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let shown = self.parts.gate.node(&request)?;
        let mut requests = request.into_inner();
        let Some(wire::session_request::Message::Register(register)) = first(&mut requests).await?.message else {
            return Err(Status::invalid_argument("the first message must be register"));
        };
        let mut who = parse::register(register)?;
        join::bind(&self.parts.gate, shown.as_ref(), &mut who).await?;
        let joined = self.parts.nodes.register(who.clone());
        // Whoever was revoked between the two was not live yet, and was not expelled.
        if let Err(status) = join::bind(&self.parts.gate, shown.as_ref(), &mut who).await {
            self.parts.nodes.expel(&who.node, "it is no member any more");
            return Err(status);
        }
        Ok(Response::new(session::serve(self.parts.clone(), self.drain.clone(), joined, shown, requests)))
    }

    async fn find(&self, request: Request<Streaming<wire::FindRequest>>) -> Result<Response<Self::FindStream>, Status> {
        let span = tracing::info_span!("find", digest = tracing::field::Empty, node = tracing::field::Empty);
        shoal_base::telemetry::extract_grpc(&span, request.metadata());
        let shown = self.parts.gate.node(&request)?;
        let mut requests = request.into_inner();
        let Some(wire::find_request::Message::Start(mut start)) = first(&mut requests).await?.message else {
            return Err(Status::invalid_argument("the first message must be start"));
        };
        let certificate = self.parts.gate.certificate(shown.as_ref(), std::mem::take(&mut start.certificate))?;
        let (session, ask) = parse::start(start)?;
        span.record("digest", tracing::field::display(ask.digest));
        let Some(node) = self.parts.node_of(&session, shown.as_ref()) else {
            return Ok(Response::new(find::unknown_session()));
        };
        span.record("node", node.as_str());
        if let Some(certificate) = certificate {
            self.parts.swarm.certified(&node, certificate);
        }
        Ok(Response::new(find::serve(Arc::clone(&self.parts.swarm), self.drain.clone(), node, ask, requests, span)))
    }

    async fn was_public(
        &self,
        request: Request<wire::WasPublicRequest>,
    ) -> Result<Response<wire::WasPublicResponse>, Status> {
        let shown = self.parts.gate.node(&request)?;
        let wire::WasPublicRequest { session, repository } = request.into_inner();
        let repository = parse::repository(repository.unwrap_or_default())?;
        let node = self.parts.node_of(&session, shown.as_ref());
        let node = node.ok_or_else(|| Status::not_found("session: unknown or ended"))?;
        let age = self.parts.swarm.public_since(&node, &repository);
        let seconds_ago = age.map_or(0, |age| u32::try_from(age.as_secs()).unwrap_or(u32::MAX));
        Ok(Response::new(wire::WasPublicResponse { known: age.is_some(), seconds_ago }))
    }

    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::Certified>, Status> {
        join::join(&self.parts, request).await.map(Response::new)
    }

    async fn certify(&self, request: Request<wire::CertifyRequest>) -> Result<Response<wire::Certified>, Status> {
        join::certify(&self.parts, request).await.map(Response::new)
    }
}

impl Parts {
    /// Whose session it is; `None`: nobody's, or not that of the certificate.
    fn node_of(&self, session: &[u8], shown: Option<&Shown>) -> Option<NodeId> {
        let node = self.nodes.node_of(session)?;
        shown.is_none_or(|shown| shown.bearer.id.node() == Some(&node)).then_some(node)
    }
}

async fn first<T>(requests: &mut Streaming<T>) -> Result<T, Status> {
    match tokio::time::timeout(FIRST_MESSAGE, requests.message()).await {
        Ok(message) => message?.ok_or_else(|| Status::invalid_argument("the stream ended before its first message")),
        Err(_) => Err(Status::deadline_exceeded("no first message within 5 s")),
    }
}
