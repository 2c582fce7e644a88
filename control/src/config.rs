//! Settings of `shoal-control`: what a file, the environment and flags say ([`Raw`]), and what they mean ([`Config`]).
//!
//! The doc comments of [`Raw`] are the operator's reference: `docs/reference/shoal-control.md` is made from them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shoal_base::config::Faults;
use shoal_base::listen::collide;
use shoal_base::telemetry::TelemetryConfig;
use shoal_base::units::Span;

use crate::api::grpc;
use crate::clusters;
use crate::scope::{ClusterScope, Scopes};

#[doc(hidden)]
pub mod fuzz;

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
            grpc: RawGrpc::default(),
            rest: RawRest::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

/// The port for nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawGrpc {
    /// Where nodes connect.
    pub listen: SocketAddr,
    /// Networks that nodes may connect from. Until nodes have certificates this is all that tells them from others, so
    /// list what you have. Default: loopback and the private networks of RFC 1918 and RFC 4193.
    pub allow: Vec<String>,
}

impl Default for RawGrpc {
    fn default() -> Self {
        let private = ["127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];
        Self { listen: ([0, 0, 0, 0], 6080).into(), allow: private.map(str::to_owned).to_vec() }
    }
}

/// The port for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawRest {
    /// Where `shoalctl`, probes and scrapers connect. Whoever reaches it may change clusters, for there are no API
    /// tokens yet; so it is on loopback unless you say otherwise.
    pub listen: SocketAddr,
}

impl Default for RawRest {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 6081).into() }
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
            faults.push("grpc.allow", "is empty, and no node could connect; for all networks say 0.0.0.0/0 and ::/0");
        }
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
            grpc: grpc::Config { allow },
            clusters: clusters::Config { default_cluster },
        };
        faults.into_result(config)
    }
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
    fn an_empty_list_of_networks_does_not_admit_everybody() {
        assert_eq!(load(&[("grpc.allow", "")]).unwrap_err().iter().next().unwrap().key, "grpc.allow");
    }

    #[test]
    fn an_empty_name_means_no_default_cluster() {
        assert_eq!(load(&[("default_cluster", " ")]).unwrap().clusters.default_cluster, "");
    }
}
