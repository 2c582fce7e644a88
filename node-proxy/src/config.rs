//! Settings of `shoal-node`: what a file, the environment and flags say ([`Raw`]), and what they mean.
//!
//! The doc comments of [`Raw`] are the operator's reference: `docs/reference/shoal-node.md` is made from them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shoal_base::telemetry::TelemetryConfig;
use shoal_base::units::{ByteSize, Span};

/// Settings of `shoal-node`. Every key has a default; a node without `control.endpoint` reads the origin only.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// Where the node keeps its identity, its last assignment and its blobs.
    pub state_dir: PathBuf,
    /// How long flights may go on after SIGTERM before readers get a FIN.
    pub grace: Span,
    /// Who and where this node is.
    pub node: RawNode,
    /// The control service.
    pub control: RawControl,
    /// The OCI pull endpoint for containerd.
    pub mirror: RawMirror,
    /// The listener for peers.
    pub peer: RawPeer,
    /// Health, metrics and debug pages.
    pub admin: RawAdmin,
    /// The disk.
    pub store: RawStore,
    /// Registries.
    pub origin: RawOrigin,
    /// How pieces are fetched from parents.
    pub swarm: RawSwarm,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/shoal".into(),
            grace: span(30),
            node: RawNode::default(),
            control: RawControl::default(),
            mirror: RawMirror::default(),
            peer: RawPeer::default(),
            admin: RawAdmin::default(),
            store: RawStore::default(),
            origin: RawOrigin::default(),
            swarm: RawSwarm::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

fn span(seconds: u64) -> Span {
    Span::from(std::time::Duration::from_secs(seconds))
}

/// Who and where this node is: the facts that decide its cluster.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawNode {
    /// A name for people. Empty: the host name.
    pub name: String,
    /// The data centre, one value without a bar. Empty: none.
    pub idc: String,
    /// The location as a path, `a|b|c`. Empty: none.
    pub location: String,
    /// The IP address that peers reach this node at. Empty: the local address that the kernel picks towards control.
    pub advertise: String,
    /// Pins the node to a cluster by name, whatever the scopes say. Empty: not pinned.
    pub cluster: String,
    /// `node`, or `seed` for a node whose job is to read the origin first.
    pub role: RawRole,
}

/// What a node is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawRole {
    /// An ordinary node.
    #[default]
    Node,
    /// Reads the origin first.
    Seed,
}

/// The control service.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawControl {
    /// `http://host:6080`. Empty: no control; the node has no peers and reads the origin.
    pub endpoint: String,
}

/// The OCI pull endpoint for containerd.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawMirror {
    /// Where containerd reaches the mirror. Loopback: other hosts have no business here.
    pub listen: SocketAddr,
    /// The registry meant by a request without `ns=`. Empty: such a request is answered 404.
    pub default_registry: String,
    /// Registries that may be asked for. Empty: all that the address rule allows.
    pub allow: Vec<String>,
    /// Registries that may not be asked for; outranks `allow`.
    pub deny: Vec<String>,
    /// The longest wait for the first byte of an answer; then 503, and containerd asks the registry.
    pub first_byte_budget: Span,
    /// The same while another node's request is out at the registry.
    pub origin_byte_budget: Span,
    /// Connections at once.
    pub max_connections: u32,
    /// Blobs of an image that may be read from the registry at once before containerd asks for them; 0 turns it off.
    pub look_ahead: u32,
}

impl Default for RawMirror {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 5080)),
            default_registry: String::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            first_byte_budget: span(5),
            origin_byte_budget: span(20),
            max_connections: 1024,
            look_ahead: 3,
        }
    }
}

/// The listener for peers.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawPeer {
    /// Where peers reach this node.
    pub listen: SocketAddr,
    /// Networks that may connect. The default is loopback and private addresses.
    pub allow: Vec<String>,
    /// Blobs that may be served at once; a peer above it is told to come back.
    pub upload_slots: u32,
    /// Connections at once.
    pub max_connections: u32,
}

impl Default for RawPeer {
    fn default() -> Self {
        let allow = ["127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 5081)),
            allow: allow.map(String::from).to_vec(),
            upload_slots: 64,
            max_connections: 1024,
        }
    }
}

/// Health, metrics and debug pages.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawAdmin {
    /// Where `/livez`, `/readyz`, `/metrics` and `/debug` are.
    pub listen: SocketAddr,
}

impl Default for RawAdmin {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 5082)) }
    }
}

/// The disk.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawStore {
    /// The most bytes of blobs on disk; what was used least recently goes first. 0: no bound but `reserve`.
    pub quota: ByteSize,
    /// Bytes of the file system that are left free. 0: none.
    pub reserve: ByteSize,
}

impl Default for RawStore {
    fn default() -> Self {
        Self { quota: ByteSize::from(50 << 30), reserve: ByteSize::from(1 << 30) }
    }
}

/// Registries.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawOrigin {
    /// The longest wait for a connection.
    pub connect_timeout: Span,
    /// The longest wait for headers.
    pub headers_timeout: Span,
    /// The longest silence inside a body.
    pub body_timeout: Span,
    /// Settings by registry, `[origin.registry."registry.example:5000"]`, as `ns=` names it.
    pub registry: BTreeMap<String, RawRegistry>,
}

impl Default for RawOrigin {
    fn default() -> Self {
        Self {
            connect_timeout: span(5),
            headers_timeout: span(20),
            body_timeout: span(15),
            registry: BTreeMap::new(),
        }
    }
}

/// One registry.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawRegistry {
    /// Where it really is, `https://host[:port]`. Empty: its own name; `docker.io` is known.
    pub endpoint: String,
    /// PEM files of CAs that are trusted for it, beside the system's.
    pub ca: Vec<PathBuf>,
    /// `http://proxy:port` to go through. Empty: what HTTPS_PROXY and NO_PROXY say.
    pub proxy: String,
    /// Speak plain HTTP with it.
    pub plain_http: bool,
    /// Networks that may be connected to for it although the address rule refuses them (loopback, link-local, metadata).
    pub allow_addresses: Vec<String>,
}

/// How pieces are fetched from parents.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawSwarm {
    /// Parents that a blob is fetched from at once.
    pub streams: u32,
    /// A parent that sends nothing for so long loses its pieces to another.
    pub silence: Span,
}

impl Default for RawSwarm {
    fn default() -> Self {
        Self { streams: 4, silence: span(2) }
    }
}

/// Parses a list of networks; a bad one is a fault under `key[index]`.
pub(crate) fn networks(key: &str, texts: &[String], faults: &mut shoal_base::config::Faults) -> Vec<IpNet> {
    let mut networks = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        let parsed = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        match parsed {
            Ok(network) => networks.push(network),
            Err(_) => faults.push(format!("{key}[{at}]"), format!("{text:?} is not a network such as 10.0.0.0/8")),
        }
    }
    networks
}
