//! Settings of `shoal-control`: what a file, the environment and flags say ([`Raw`]), and what they mean ([`Config`]).
//!
//! The doc comments of [`Raw`] are the operator's reference: `docs/reference/shoal-control.md` is made from them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shoal_base::config::Faults;
use shoal_base::listen::{self, collide};
use shoal_base::privileges::Needs;
use shoal_base::telemetry::TelemetryConfig;
use shoal_base::tls;
use shoal_base::units::Span;
use shoal_proto::identity::TrustDomain;

use crate::api::grpc;
use crate::clusters;
use crate::identity;
use crate::scope::{ClusterScope, Scopes};

#[doc(hidden)]
pub mod fuzz;
mod kubernetes;
mod rest;

pub use kubernetes::{RawKubernetes, RawRole};
pub(crate) use rest::RestTls;
pub use rest::{RawRest, RawRestTls};

/// Bounds on how long a certificate counts: time to renew it, and not for ever if its node is forgotten.
const SHORTEST_LIFE: Duration = Duration::from_secs(60);
const LONGEST_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Settings of `shoal-control`. Every key has a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// Where the database is. Made on the first start, for the owner alone.
    pub state_dir: PathBuf,
    /// Name of the default cluster that is made on the first start. Empty: none is made. Later starts do not read it.
    pub default_cluster: String,
    /// How long requests may go on after SIGTERM.
    pub grace: Span,
    /// `on`: nodes show certificates that this service issued, and it shows them one. `off` is for labs: whoever connects from
    /// `grpc.allow` is the node that it says it is. Nodes must say the same.
    pub tls: tls::Mode,
    /// Whether core dumps may be written and debuggers may look in. They hold keys and tokens.
    pub core_dumps: bool,
    /// The authority of the nodes.
    pub identity: RawIdentity,
    /// The port for nodes.
    pub grpc: RawGrpc,
    /// The port for people: REST, health and metrics.
    pub rest: RawRest,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/shoal/control".into(),
            default_cluster: "default".into(),
            grace: Span::secs(10),
            tls: tls::Mode::default(),
            core_dumps: false,
            identity: RawIdentity::default(),
            grpc: RawGrpc::default(),
            rest: RawRest::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

/// The authority of the nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawIdentity {
    /// What stands before the path in the names of certificates, `spiffe://<trust domain>/…`. To change it, nodes must join anew.
    pub trust_domain: String,
    /// How long a node's certificate counts. It is renewed at two thirds; with this service away, what is left is how long nodes
    /// still talk to each other.
    pub certificate_life: Span,
    /// A PEM file with the certificate of an authority of your own. Empty: one is made in `state_dir` on the first start.
    pub ca_certificate: PathBuf,
    /// The PEM file with its key (PKCS#8, ECDSA on P-256), readable by its owner alone.
    pub ca_key: PathBuf,
    /// Kubernetes clusters whose service accounts may join, instead of by a join token.
    pub kubernetes: Vec<RawKubernetes>,
}

impl Default for RawIdentity {
    fn default() -> Self {
        Self {
            trust_domain: "shoal".into(),
            certificate_life: Span::secs(24 * 3600),
            ca_certificate: PathBuf::new(),
            ca_key: PathBuf::new(),
            kubernetes: Vec::new(),
        }
    }
}

/// The port for nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawGrpc {
    /// Where nodes connect.
    pub listen: SocketAddr,
    /// Networks that nodes may connect from. Empty: loopback and the private networks of RFC 1918 and RFC 4193; with
    /// `tls = "off"` loopback alone.
    pub allow: Vec<String>,
    /// Connections at once. A node has one, and another while it joins.
    pub max_connections: u32,
}

impl Default for RawGrpc {
    fn default() -> Self {
        Self { listen: ([0, 0, 0, 0], 6080).into(), allow: Vec::new(), max_connections: 16384 }
    }
}

/// What [`Raw`] means. Every value was checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the database is.
    pub state_dir: PathBuf,
    /// How long requests may go on after SIGTERM.
    pub grace: Duration,
    /// Where nodes connect.
    pub grpc_listen: SocketAddr,
    /// Where people connect.
    pub rest_listen: SocketAddr,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    pub(crate) grpc: grpc::Config,
    pub(crate) clusters: clusters::Config,
    pub(crate) tls: tls::Mode,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) identity: identity::Config,
    /// Certificate and key that the operator supplies.
    pub(crate) authority: Option<(PathBuf, PathBuf)>,
    pub(crate) rest_tls: RestTls,
    pub(crate) core_dumps: bool,
    pub(crate) admin_token_file: Option<PathBuf>,
}

impl TryFrom<Raw> for Config {
    type Error = Faults;

    fn try_from(raw: Raw) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        if raw.state_dir.as_os_str().is_empty() {
            faults.push("state_dir", "is empty");
        }
        let default_cluster = raw.default_cluster.trim().to_owned();
        if !default_cluster.is_empty() {
            let scope = ClusterScope { name: default_cluster.clone(), default: true, ..ClusterScope::default() };
            for refusal in Scopes::check(vec![scope]).err().unwrap_or_default() {
                faults.push("default_cluster", refusal.reason);
            }
        }
        let mut allow = Vec::new();
        for (at, text) in raw.grpc.allow.iter().enumerate() {
            let parsed = text.trim().parse::<IpNet>().map_err(|_| format!("{text:?} is not a network like 10.0.0.0/8"));
            allow.extend(faults.take(&format!("grpc.allow[{at}]"), parsed));
        }
        if raw.grpc.allow.is_empty() {
            // The room reads an empty list as "all"; nobody gets that by leaving something out.
            allow = match raw.tls {
                tls::Mode::On => listen::private_networks(),
                tls::Mode::Off => listen::loopback(),
            };
        }
        if raw.grpc.max_connections == 0 {
            faults.push("grpc.max_connections", "must be at least 1");
        }
        let trust_domain: Option<TrustDomain> = faults.take("identity.trust_domain", raw.identity.trust_domain.parse());
        let life = Duration::from(raw.identity.certificate_life);
        if !(SHORTEST_LIFE..=LONGEST_LIFE).contains(&life) {
            faults.push("identity.certificate_life", "must be 1m to 720h");
        }
        let authority = match (given(&raw.identity.ca_certificate), given(&raw.identity.ca_key)) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                faults.push("identity.ca_key", "is missing, and identity.ca_certificate is there");
                None
            }
            (None, Some(_)) => {
                faults.push("identity.ca_certificate", "is missing, and identity.ca_key is there");
                None
            }
        };
        let kubernetes = kubernetes::checked(&raw.identity.kubernetes, raw.tls, &mut faults);
        if collide(raw.rest.listen, raw.grpc.listen) {
            faults.push("rest.listen", format!("{} is taken by grpc.listen, {}", raw.rest.listen, raw.grpc.listen));
        }
        raw.telemetry.check("telemetry", &mut faults);
        let config = Self {
            state_dir: raw.state_dir,
            grace: raw.grace.into(),
            grpc_listen: raw.grpc.listen,
            rest_listen: raw.rest.listen,
            telemetry: raw.telemetry,
            grpc: grpc::Config { allow, max_connections: raw.grpc.max_connections as usize },
            clusters: clusters::Config { default_cluster },
            tls: raw.tls,
            trust_domain: trust_domain.unwrap_or_else(|| "shoal".parse().expect("a trust domain")),
            identity: identity::Config { life, kubernetes },
            authority,
            core_dumps: raw.core_dumps,
            rest_tls: rest::checked(&raw.rest, raw.tls, &mut faults),
            admin_token_file: given(&raw.rest.admin_token_file),
        };
        faults.into_result(config)
    }
}

impl Config {
    /// What this daemon may not give up.
    pub fn needs(&self) -> Needs {
        let mut files: Vec<PathBuf> = self.admin_token_file.iter().cloned().collect();
        files.extend(self.authority.iter().flat_map(|(certificate, key)| [certificate.clone(), key.clone()]));
        files.extend(self.identity.kubernetes.iter().map(|cluster| cluster.jwks_file.clone()));
        if let RestTls::Files(certificate, key) = &self.rest_tls {
            files.extend([certificate.clone(), key.clone()]);
        }
        Needs {
            listeners: vec![self.grpc_listen, self.rest_listen],
            files,
            directories: vec![self.state_dir.clone()],
            core_dumps: self.core_dumps,
        }
    }
}

/// A path that says something.
fn given(path: &Path) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(sets: &[(&str, &str)]) -> Result<Config, Faults> {
        let sets: Vec<_> = sets.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let raw: Raw = shoal_base::config::load(None, "SHOAL_CONTROL", std::iter::empty(), &sets)?;
        Config::try_from(raw)
    }

    #[test]
    fn the_defaults_are_fine_and_keep_strangers_out() {
        let config = load(&[]).unwrap();
        assert!(config.rest_listen.ip().is_loopback());
        assert_eq!(config.grpc_listen.port(), 6080);
        assert_eq!(config.clusters.default_cluster, "default");
        let admits = |ip: &str| {
            config.grpc.allow.iter().any(|network| network.contains(&ip.parse::<std::net::IpAddr>().unwrap()))
        };
        assert!(admits("10.1.2.3") && admits("127.0.0.1") && admits("fd00::1"));
        assert!(!admits("8.8.8.8") && !admits("2001:db8::1"));
    }

    #[test]
    fn every_fault_is_named_with_its_key_at_once() {
        let faults =
            load(&[("grpc.allow", "10.0.0.0/8,10.0.0.0/99,x"), ("default_cluster", &"x".repeat(200))]).unwrap_err();
        let keys: Vec<&str> = faults.iter().map(|fault| fault.key.as_str()).collect();
        assert_eq!(keys, ["default_cluster", "grpc.allow[1]", "grpc.allow[2]"]);
    }

    #[test]
    fn without_tls_only_loopback_and_what_is_listed_is_admitted() {
        let off = load(&[("tls", "off")]).unwrap();
        let admits = |config: &Config, ip: &str| {
            config.grpc.allow.iter().any(|network| network.contains(&ip.parse::<std::net::IpAddr>().unwrap()))
        };
        assert!(admits(&off, "127.0.0.1") && admits(&off, "::1") && !admits(&off, "10.1.2.3"));
        let listed = load(&[("tls", "off"), ("grpc.allow", "10.0.0.0/8")]).unwrap();
        assert!(admits(&listed, "10.1.2.3") && !admits(&listed, "127.0.0.1"));
    }

    #[test]
    fn what_is_wrong_with_the_identity_is_named() {
        for (key, value, fault) in [
            ("identity.trust_domain", "Not A Domain", "identity.trust_domain"),
            ("identity.certificate_life", "1s", "identity.certificate_life"),
            ("identity.certificate_life", "721h", "identity.certificate_life"),
            ("identity.ca_certificate", "/ca.pem", "identity.ca_key"),
            ("identity.ca_key", "/ca.key", "identity.ca_certificate"),
        ] {
            assert_eq!(load(&[(key, value)]).unwrap_err().iter().next().unwrap().key, fault, "{key}={value}");
        }
    }

    #[test]
    fn an_empty_name_means_no_default_cluster() {
        assert_eq!(load(&[("default_cluster", " ")]).unwrap().clusters.default_cluster, "");
    }
}
