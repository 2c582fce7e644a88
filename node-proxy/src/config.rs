//! Settings of `shoal-node`: what a file, the environment and flags say ([`Raw`]), and what they mean.
//!
//! The doc comments of [`Raw`] are the operator's reference: `docs/reference/shoal-node.md` is made from them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shoal_base::config::Faults;
use shoal_base::telemetry::TelemetryConfig;
use shoal_base::units::{ByteSize, Span};
use shoal_base::{listen, tls};

use crate::containerd::Removed;
use crate::origin::Registry;
use crate::{blob, containerd, control, mirror, origin, peer, store, swarm};

mod check;
#[doc(hidden)]
pub mod fuzz;
mod join;

/// Settings of `shoal-node`. Every key has a default; a node without `control.endpoint` reads the origin only.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// Where the node keeps its identity, its last assignment and its blobs.
    pub state_dir: PathBuf,
    /// How long flights may go on after SIGTERM before readers get a FIN.
    pub grace: Span,
    /// `on`: this node shows control and its peers a certificate, and they show it theirs. `off` is for labs: whoever connects from
    /// `peer.allow` is the node that it says it is. Control must say the same.
    pub tls: tls::Mode,
    /// Whether core dumps may be written and debuggers may look in. They hold keys, and tokens that pass.
    pub core_dumps: bool,
    /// Who and where this node is.
    pub node: RawNode,
    /// The control service.
    pub control: RawControl,
    /// The OCI pull endpoint for containerd.
    pub mirror: RawMirror,
    /// containerd's sockets and its content store.
    pub containerd: RawContainerd,
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
    /// Limits on bytes per second. They can be changed while the node runs: SIGHUP makes it read its settings again.
    pub limits: RawLimits,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/shoal".into(),
            grace: span(30),
            tls: tls::Mode::default(),
            core_dumps: false,
            node: RawNode::default(),
            control: RawControl::default(),
            mirror: RawMirror::default(),
            containerd: RawContainerd::default(),
            peer: RawPeer::default(),
            admin: RawAdmin::default(),
            store: RawStore::default(),
            origin: RawOrigin::default(),
            swarm: RawSwarm::default(),
            limits: RawLimits::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

fn span(seconds: u64) -> Span {
    Span::secs(seconds)
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
    /// `https://host:6080`; with `tls = "off"` `http://host:6080`. Empty: no control; the node has no peers and reads the origin.
    pub endpoint: String,
    /// A file with the token that this node joins with, as `shoalctl join-token create` prints it. Read when the node has no
    /// certificate, and not needed after.
    pub join_token_file: PathBuf,
    /// A file with a Kubernetes service account token, projected for the audience that control wants; instead of `join_token_file`. It
    /// is read each time, since the kubelet renews it.
    pub service_account_token_file: PathBuf,
    /// A PEM file with the certificate of control's authority, as `shoalctl ca` prints it. A service account token is shown to nobody
    /// else, so it needs this or `ca_sha256`; a join token names the authority itself.
    pub ca_file: PathBuf,
    /// The SHA-256 of that certificate (DER) in hex, as `shoalctl ca` prints it, instead of `ca_file`.
    pub ca_sha256: String,
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
    /// Connections at once; a request on one more is answered 503, and containerd asks the registry.
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

/// containerd's sockets and its content store.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawContainerd {
    /// containerd's own socket.
    pub address: PathBuf,
    /// containerd's own directory, `root` in its settings.
    pub root: PathBuf,
    /// A socket that this node answers in containerd's place: what it is asked goes on to containerd, registry images are
    /// transferred through the mirror, and content that containerd lacks comes from the cluster. For root alone. Empty: none.
    pub listen: PathBuf,
    /// Who keeps containerd's content: `stock`, containerd itself, or `plugin`, this node, as a proxy plugin of the type `content`.
    pub content: RawContent,
    /// What becomes of a blob that containerd removes from a stock store: `keep`, it stays here as cache within `store.quota`, or
    /// `withdraw`, it goes at once.
    pub removed: RawRemoved,
    /// Links what becomes held into containerd's stock store, so that containerd takes it without a fetch. It is used if the
    /// running containerd keeps its own content in `containerd.root`, on the file system of `state_dir`.
    pub content_link: bool,
    /// How much of what containerd had before this node came is hashed in a second, so that the cluster can have it. 0: no limit.
    pub hash_rate: ByteSize,
    /// The socket of that plugin, `address` in containerd's `proxy_plugins`.
    pub content_listen: PathBuf,
}

/// Who keeps containerd's content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawContent {
    /// containerd itself.
    #[default]
    Stock,
    /// This node.
    Plugin,
}

/// What becomes of a blob that containerd removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawRemoved {
    /// It stays as cache.
    #[default]
    Keep,
    /// It goes.
    Withdraw,
}

impl Default for RawContainerd {
    fn default() -> Self {
        Self {
            address: "/run/containerd/containerd.sock".into(),
            root: "/var/lib/containerd".into(),
            listen: "/run/shoal/containerd.sock".into(),
            content: RawContent::Stock,
            removed: RawRemoved::Keep,
            content_link: false,
            hash_rate: ByteSize::mib(50),
            content_listen: "/run/shoal/content.sock".into(),
        }
    }
}

/// The listener for peers.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawPeer {
    /// Where peers reach this node.
    pub listen: SocketAddr,
    /// Networks that may connect. Empty: loopback and the private networks of RFC 1918 and RFC 4193; with `tls = "off"` loopback
    /// alone.
    pub allow: Vec<String>,
    /// Blobs that may be served at once; a peer above it is told to come back.
    pub upload_slots: u32,
    /// Connections at once.
    pub max_connections: u32,
}

impl Default for RawPeer {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 5081)),
            allow: Vec::new(),
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
        Self { quota: ByteSize::gib(50), reserve: ByteSize::gib(1) }
    }
}

/// Who reads what is private while its registry is down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawWhenDown {
    /// Nobody but whom the registry let read within the last minutes.
    #[default]
    Refuse,
    /// Who shows a credential that the registry let read within a day.
    SameCredential,
    /// Anybody, where some caller could within a day.
    Anyone,
}

/// Registries.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawOrigin {
    /// The longest wait for a connection.
    pub connect_timeout: Span,
    /// The longest wait for headers.
    pub headers_timeout: Span,
    /// The longest silence inside a body; then the rest is asked for anew.
    pub body_timeout: Span,
    /// Who reads what is private, and held in the cluster, while its registry is down: `refuse` (nobody but whom the registry let
    /// read within the last 5 minutes), `same_credential` (who shows this node the credential that the registry let read within
    /// the last 24 h), `anyone` (whoever reaches the mirror, of a repository that some caller of this node could read within
    /// the last 24 h).
    pub private_when_down: RawWhenDown,
    /// A docker `config.json` (`auths`, `credHelpers`, `credsStore`) with credentials of this node's own, for a seed. Empty: none.
    pub docker_config: PathBuf,
    /// Settings by registry, `[origin.registry."registry.example:5000"]`, as `ns=` names it.
    pub registry: BTreeMap<String, RawRegistry>,
}

impl Default for RawOrigin {
    fn default() -> Self {
        Self {
            connect_timeout: span(5),
            headers_timeout: span(20),
            body_timeout: span(5),
            private_when_down: RawWhenDown::Refuse,
            docker_config: PathBuf::new(),
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
        Self { streams: 16, silence: span(2) }
    }
}

/// Limits on bytes per second.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawLimits {
    /// What peers together may take from this node, in bytes per second, at least 128KiB. 0: no limit.
    pub upload: ByteSize,
    /// What this node may take from peers, in bytes per second, at least 128KiB. 0: no limit.
    pub download: ByteSize,
    /// What this node may take from registries, in bytes per second, at least 128KiB. 0: no limit.
    pub origin: ByteSize,
}

/// What [`Raw`] means. Every value was checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where state is kept.
    pub state_dir: PathBuf,
    /// How long running work has after SIGTERM.
    pub grace: Duration,
    /// Where containerd connects.
    pub mirror_listen: SocketAddr,
    /// Where peers connect.
    pub peer_listen: SocketAddr,
    /// Where operators connect.
    pub admin_listen: SocketAddr,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    pub(crate) mirror: mirror::Config,
    pub(crate) containerd: containerd::Config,
    pub(crate) blob: blob::Config,
    pub(crate) store: store::Config,
    pub(crate) origin: origin::Config,
    pub(crate) swarm: swarm::Config,
    pub(crate) peer: peer::Config,
    pub(crate) control: control::Config,
    pub(crate) limits: Rates,
    pub(crate) core_dumps: bool,
}

/// Limits in bytes per second; 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rates {
    pub(crate) upload: u64,
    pub(crate) download: u64,
    pub(crate) origin: u64,
}

impl TryFrom<Raw> for Config {
    type Error = Faults;

    fn try_from(raw: Raw) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let node = &raw.node;
        if node.idc.contains('|') {
            faults.push("node.idc", "names one data centre, so it may hold no bar");
        }
        if !node.location.is_empty() && node.location.split('|').any(|part| part.trim().is_empty()) {
            faults.push("node.location", "has an empty element");
        }
        let optional = |text: &String| Some(text.trim()).filter(|text| !text.is_empty()).map(str::to_owned);
        let advertise = optional(&node.advertise).and_then(|text| {
            faults.take("node.advertise", text.parse().map_err(|_| format!("{text:?} is not an IP address")))
        });
        let endpoint =
            optional(&raw.control.endpoint).and_then(|text| faults.take("control.endpoint", endpoint(&text, raw.tls)));
        let default_registry = optional(&raw.mirror.default_registry)
            .and_then(|text| faults.take("mirror.default_registry", text.parse()));
        check::limits(&raw, &mut faults);
        check::contradictions(&raw, &mut faults);
        let allow = registries("mirror.allow", &raw.mirror.allow, &mut faults);
        let deny = registries("mirror.deny", &raw.mirror.deny, &mut faults);
        if let Some(registry) = &default_registry
            && (deny.contains(registry) || !(raw.mirror.allow.is_empty() || allow.contains(registry)))
        {
            faults.push(
                "mirror.default_registry",
                format!("{registry} may not be asked for, by mirror.allow or mirror.deny"),
            );
        }
        let config = Self {
            grace: raw.grace.into(),
            mirror_listen: raw.mirror.listen,
            peer_listen: raw.peer.listen,
            admin_listen: raw.admin.listen,
            mirror: mirror::Config {
                default_registry,
                allow,
                deny,
                max_connections: raw.mirror.max_connections as usize,
                first_byte_budget: raw.mirror.first_byte_budget.into(),
                origin_byte_budget: raw.mirror.origin_byte_budget.into(),
            },
            containerd: containerd_config(&raw),
            blob: blob::Config {
                first_byte_budget: raw.mirror.first_byte_budget.into(),
                origin_byte_budget: raw.mirror.origin_byte_budget.into(),
                look_ahead: raw.mirror.look_ahead as usize,
                ..blob::Config::default()
            },
            store: store::Config {
                dir: raw.state_dir.join("store"),
                quota: raw.store.quota.as_u64(),
                reserve: raw.store.reserve.as_u64(),
                boot_id: None,
                claims: raw.containerd.content == RawContent::Plugin,
            },
            origin: origin_config(&raw.origin, &mut faults),
            swarm: swarm::Config {
                streams: raw.swarm.streams as usize,
                silence: raw.swarm.silence.into(),
                ..swarm::Config::default()
            },
            peer: peer::Config {
                allow: peers(&raw, &mut faults),
                upload_slots: raw.peer.upload_slots,
                max_connections: raw.peer.max_connections as usize,
                ..peer::Config::default()
            },
            control: control::Config {
                endpoint,
                tls: raw.tls,
                join: join::checked(&raw.control, &mut faults),
                state_dir: raw.state_dir.clone(),
                name: optional(&node.name).unwrap_or_else(host_name),
                advertise,
                idc: node.idc.trim().to_owned(),
                location: node.location.trim().to_owned(),
                pinned: node.cluster.trim().to_owned(),
                seed: node.role == RawRole::Seed,
                peer_port: raw.peer.listen.port(),
            },
            limits: Rates {
                upload: raw.limits.upload.as_u64(),
                download: raw.limits.download.as_u64(),
                origin: raw.limits.origin.as_u64(),
            },
            core_dumps: raw.core_dumps,
            telemetry: raw.telemetry,
            state_dir: raw.state_dir,
        };
        faults.into_result(config)
    }
}

/// A path that was given.
fn path(path: &Path) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then(|| path.to_owned())
}

fn containerd_config(raw: &Raw) -> containerd::Config {
    containerd::Config {
        address: raw.containerd.address.clone(),
        root: raw.containerd.root.clone(),
        listen: path(&raw.containerd.listen),
        content_listen: match raw.containerd.content {
            RawContent::Stock => None,
            RawContent::Plugin => path(&raw.containerd.content_listen),
        },
        hosts_dir: raw.state_dir.join("hosts"),
        state_dir: raw.state_dir.clone(),
        hash_rate: raw.containerd.hash_rate.as_u64(),
        removed: match raw.containerd.removed {
            RawRemoved::Keep => Removed::Keep,
            RawRemoved::Withdraw => Removed::Withdraw,
        },
        content_link: raw.containerd.content_link,
    }
}

fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| "unnamed".to_owned())
}

fn endpoint(text: &str, mode: tls::Mode) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("{text:?}: {error}"))?;
    match (uri.scheme_str(), uri.host(), mode) {
        (Some("https"), Some(_), tls::Mode::On) | (Some("http"), Some(_), tls::Mode::Off) => Ok(uri),
        (Some("http"), Some(_), tls::Mode::On) => {
            Err("is http://, and tls is on; say https://, or tls = \"off\"".into())
        }
        (Some("https"), Some(_), tls::Mode::Off) => {
            Err("is https://, and tls is off; say http://, or tls = \"on\"".into())
        }
        _ => Err(format!("{text:?} is not https://host:port")),
    }
}

/// Who may connect as a peer.
fn peers(raw: &Raw, faults: &mut Faults) -> Vec<IpNet> {
    match (raw.peer.allow.is_empty(), raw.tls) {
        (false, _) => networks("peer.allow", &raw.peer.allow, faults),
        (true, tls::Mode::On) => listen::private_networks(),
        (true, tls::Mode::Off) => listen::loopback(),
    }
}

fn origin_config(raw: &RawOrigin, faults: &mut Faults) -> origin::Config {
    let mut registries = BTreeMap::new();
    for (name, raw) in &raw.registry {
        let key = |leaf: &str| format!("origin.registry.\"{name}\".{leaf}");
        let optional = |text: &str| (!text.trim().is_empty()).then(|| text.trim().to_owned());
        let Some(registry) = faults.take(&format!("origin.registry.\"{name}\""), name.parse::<Registry>()) else {
            continue;
        };
        let endpoint = optional(&raw.endpoint).and_then(|text| faults.take(&key("endpoint"), text.parse()));
        let proxy = optional(&raw.proxy).and_then(|text| faults.take(&key("proxy"), text.parse::<Uri>()));
        let allow_addresses = networks(&key("allow_addresses"), &raw.allow_addresses, faults);
        let (ca, plain_http) = (raw.ca.clone(), raw.plain_http);
        registries.insert(registry, origin::RegistryConfig { endpoint, ca, proxy, plain_http, allow_addresses });
    }
    origin::Config {
        registries,
        connect_timeout: raw.connect_timeout.into(),
        headers_timeout: raw.headers_timeout.into(),
        body_idle_timeout: raw.body_timeout.into(),
        private_when_down: match raw.private_when_down {
            RawWhenDown::Refuse => origin::WhenDown::Refuse,
            RawWhenDown::SameCredential => origin::WhenDown::SameCredential,
            RawWhenDown::Anyone => origin::WhenDown::Anyone,
        },
        docker_config: (!raw.docker_config.as_os_str().is_empty()).then(|| raw.docker_config.clone()),
        ..origin::Config::default()
    }
}

fn registries(key: &str, texts: &[String], faults: &mut Faults) -> Vec<Registry> {
    let parsed = texts.iter().enumerate().map(|(at, text)| (at, text.parse::<Registry>()));
    parsed.filter_map(|(at, registry)| faults.take(&format!("{key}[{at}]"), registry)).collect()
}

/// Parses a list of networks; a bad one is a fault under `key[index]`.
fn networks(key: &str, texts: &[String], faults: &mut Faults) -> Vec<IpNet> {
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
