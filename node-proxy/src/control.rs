//! Client of the control service: one session that says who this node is and what it holds, and one `Find` per flight.
//!
//! Owns the connection to control, this node's id, and on disk its last assignment and the peers it was named. Implements
//! [`ParentSource`](crate::swarm::ParentSource).
//! Decides nothing about blobs: it translates between `shoal.control.v1` and the words of `swarm`.
//!
//! What always holds: the node starts and serves without control, with its last assignment for 24 h (I4); a find fails
//! at once while there is no session, so that a flight can read the origin; after a reconnect control is told again
//! everything that the node holds; peers are told who this node is only with a certificate that says so, where there are
//! certificates; what is said of piece lists is signed then, and no other node's word is believed unsigned. No credential of a registry
//! goes to control, and none that control sends with an order is written anywhere; the node's own key and join token are told to nobody
//! but control (I9).

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::Uri;
use shoal_base::tls::{self, Secured};
use shoal_proto::control::v1::control_client::ControlClient;
use shoal_proto::frame::Hello;
use shoal_proto::identity::Known;
use shoal_proto::{Digest, Hash, NodeId};
use tokio::sync::{mpsc, watch};
use tonic::transport::{Channel, Endpoint};

mod assignment;
mod find;
mod identity;
mod invitation;
mod join;
mod lists;
mod metrics;
mod neighbours;
mod orders;
mod public;
mod session;
mod speak;

pub use assignment::node_id;
use identity::Identity;
pub use metrics::Metrics;
pub use orders::{BlobOrder, ImageOrder, Order, Outcome, Progress};
pub use public::Name as PublicName;

/// A call to control that takes longer than this has failed: a flight must not wait for a control that is away.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// HTTP/2 pings, so that a control that vanished without a FIN is noticed within 3 s.
const KEEP_ALIVE: Duration = Duration::from_millis(1500);

/// Who this node is, and where control is.
#[derive(Debug, Clone)]
pub struct Config {
    /// `https://host:port`, or `http://` without TLS. `None`: no control; every find fails, and the node has no peers.
    pub endpoint: Option<Uri>,
    /// Whether certificates are shown.
    pub tls: tls::Mode,
    /// What this node joins with; `None`: it must be a member already.
    pub join: Option<JoinBy>,
    /// Where node id and assignment are kept.
    pub state_dir: PathBuf,
    /// For people.
    pub name: String,
    /// The advertised address; `None`: the local address that the kernel picks towards control.
    pub advertise: Option<IpAddr>,
    /// The data centre, or empty.
    pub idc: String,
    /// The location as a path, or empty.
    pub location: String,
    /// A cluster's name, or empty.
    pub pinned: String,
    /// Whether this node is a seed.
    pub seed: bool,
    /// Where peers reach this node, beside its address.
    pub peer_port: u16,
}

/// What a node joins with. Files are read each time: whoever mounts them may have put others there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinBy {
    /// A file with a join token, which names control's authority.
    Token(PathBuf),
    /// A file with a service account token of Kubernetes, which does not.
    ServiceAccount {
        /// The file.
        token: PathBuf,
        /// Whom the token may be shown to.
        authority: Authority,
    },
}

/// The authority that control must be certified by at the first contact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authority {
    /// A PEM file with its certificate.
    File(PathBuf),
    /// The SHA-256 of its certificate.
    Sha256(tls::Pin),
}

/// A blob that this node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The blob.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Root of its piece list.
    pub root: Hash,
    /// Content-Type as the origin gave it.
    pub media_type: String,
}

/// A difference to what this node holds.
#[derive(Debug, Clone)]
pub enum Difference {
    /// Held from now on.
    Held(Holding),
    /// Held no more.
    Dropped(Digest),
    /// Differences were missed: list again.
    Everything,
}

/// What a heartbeat says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    /// Uploads now, and how many there may be.
    pub uploads: u32,
    /// Slots.
    pub upload_slots: u32,
    /// Flights now.
    pub flights: u32,
    /// Bytes on disk.
    pub store_bytes: u64,
    /// Totals since the start.
    pub from_origin: u64,
    /// Totals since the start.
    pub from_peers: u64,
    /// Totals since the start.
    pub to_peers: u64,
    /// Totals since the start.
    pub local: u64,
}

/// What the session asks of the rest of the daemon.
pub trait Node: Send + Sync + 'static {
    /// Everything that is held now.
    fn holdings(&self) -> Vec<Holding>;

    /// The load now.
    fn load(&self) -> Load;
}

/// The client. One for the whole process.
pub struct Client {
    config: Config,
    node: NodeId,
    /// `None`: without TLS, whoever is asked is who it says.
    identity: Option<Arc<Identity>>,
    /// Judges what others signed; as the identity.
    authors: Option<Arc<lists::Authors>>,
    endpoint: Option<Endpoint>,
    channel: Option<Channel>,
    membership: watch::Sender<Option<Hello>>,
    /// Ties finds to the session; none while there is no session.
    session: ArcSwapOption<Assigned>,
    public: public::Public,
    orders: orders::Orders,
    neighbours: Arc<neighbours::Neighbours>,
    metrics: Metrics,
}

/// What control answered last in the session that lives now.
struct Assigned {
    session: Vec<u8>,
    alone: Option<String>,
}

/// Why the client can't be made.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The state directory can't be used.
    #[error("{action} {path}: {source}")]
    State {
        /// Verb, for people.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file with the node's id does not hold one.
    #[error("{0} does not hold a node id; remove it to get a new one")]
    NodeId(PathBuf),
    /// The file with the node's key does not hold one.
    #[error("{path}: {reason}; remove it to join anew")]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Client {
    /// Makes a client that starts from the last assignment on disk, if it is younger than 24 h. Connects later.
    ///
    /// # Errors
    /// [`ControlError`] when the state directory can't be used.
    pub fn open(config: Config, metrics: Metrics) -> Result<Arc<Self>, ControlError> {
        let node = node_id(&config.state_dir)?;
        let identity = match config.tls {
            tls::Mode::On => Some(Arc::new(Identity::open(&config.state_dir)?)),
            tls::Mode::Off => None,
        };
        if let Some(own) = identity.as_ref().and_then(|identity| identity.own()) {
            metrics.certified_until(own.ends);
        }
        let remembered = assignment::load(&config.state_dir, &node)
            .filter(|hello| identity.as_ref().is_none_or(|identity| identity.is_of(Some(&hello.cluster))));
        if let Some(hello) = &remembered {
            tracing::info!(cluster = %hello.cluster, epoch = hello.epoch, "start from the last assignment");
        }
        let endpoint = config.endpoint.clone().map(|uri| {
            // Who speaks TLS here does so by itself: the library's own would look for a host name in the certificate.
            Endpoint::from(plain(uri))
                .connect_timeout(CALL_TIMEOUT)
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE)
                .keep_alive_while_idle(true)
                .tcp_nodelay(true)
        });
        let channel = endpoint.as_ref().map(|endpoint| match &identity {
            Some(identity) => join::channel(endpoint, identity.clone(), metrics.clone()),
            None => endpoint.connect_lazy(),
        });
        let cluster = remembered.as_ref().map(|hello| &hello.cluster);
        let neighbours = neighbours::Neighbours::open(&config.state_dir, cluster);
        let membership = watch::Sender::new(remembered);
        let authors = identity.clone().map(|identity| Arc::new(lists::Authors::new(identity, metrics.clone())));
        let (session, public, orders) = (ArcSwapOption::empty(), public::Public::default(), orders::Orders::default());
        Ok(Arc::new(Self {
            config,
            node,
            identity,
            authors,
            endpoint,
            channel,
            membership,
            session,
            public,
            orders,
            neighbours,
            metrics,
        }))
    }

    /// This node.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// Cluster, node and epoch, as peers are told; `None` while the node has no cluster.
    pub fn membership(&self) -> watch::Receiver<Option<Hello>> {
        self.membership.subscribe()
    }

    /// What peers are shown, and judged by; `None` without TLS.
    pub fn secured(&self) -> Option<Secured<Known>> {
        self.identity.as_ref().map(|identity| identity.secured())
    }

    /// What this node signs with in its cluster; `None` without TLS, or without a cluster.
    fn signs(&self) -> Option<lists::Signs> {
        let identity = self.identity.clone()?;
        let cluster = self.membership.borrow().as_ref()?.cluster.clone();
        Some(lists::Signs { identity, node: self.node.clone(), cluster })
    }

    /// Whether a session lives.
    pub fn is_connected(&self) -> bool {
        self.session.load().is_some()
    }

    fn grpc(&self) -> Option<ControlClient<Channel>> {
        self.channel.clone().map(ControlClient::new)
    }

    /// The address that peers are told.
    async fn ip(&self) -> std::io::Result<IpAddr> {
        if let Some(ip) = self.config.advertise {
            return Ok(ip);
        }
        let unknown = || std::io::Error::other("control's address is not known");
        let uri = self.config.endpoint.as_ref().ok_or_else(unknown)?;
        let host = uri.host().ok_or_else(unknown)?.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(80);
        let towards = tokio::net::lookup_host((host, port)).await?.next().ok_or_else(unknown)?;
        let any: SocketAddr = if towards.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
        // Connecting a datagram socket sends nothing; the kernel only picks the route.
        let socket = tokio::net::UdpSocket::bind(any).await?;
        socket.connect(towards).await?;
        Ok(socket.local_addr()?.ip())
    }
}

/// The same without TLS; without a port, that of its scheme.
fn plain(uri: Uri) -> Uri {
    let mut parts = uri.into_parts();
    if parts.scheme.as_ref() == Some(&http::uri::Scheme::HTTPS) {
        parts.scheme = Some(http::uri::Scheme::HTTP);
    }
    Uri::from_parts(parts).expect("only the scheme is another")
}

/// A bounded queue towards a stream of control.
type Outbox<T> = mpsc::Sender<T>;
