//! Settings of Kubernetes clusters whose service accounts may join.

use std::collections::BTreeSet;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shoal_base::config::Faults;
use shoal_base::tls;

use super::given;
use crate::identity::kubernetes::Config;

/// What a node may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawRole {
    /// An ordinary node.
    #[default]
    Node,
    /// One that may read registries first.
    Seed,
}

/// A Kubernetes cluster whose service accounts may join.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawKubernetes {
    /// What members and the audit log call it.
    pub name: String,
    /// The issuer of its tokens, as `kubectl get --raw /.well-known/openid-configuration` tells it.
    pub issuer: String,
    /// The audience that its tokens must be for. Let it be one that nothing else takes.
    pub audience: String,
    /// A file with its public keys, as `kubectl get --raw /openid/v1/jwks` prints them. It is read again while this service runs, at
    /// most every 3 s; while it can't be used nobody joins by it.
    pub jwks_file: PathBuf,
    /// The service accounts that may join, each as `namespace:name`.
    pub service_accounts: Vec<String>,
    /// A cluster, by name or id, that nodes which join so belong to, whatever their facts say. Empty: their facts decide.
    pub cluster: String,
    /// What nodes which join so may be.
    pub role: RawRole,
}

impl Default for RawKubernetes {
    fn default() -> Self {
        Self {
            name: String::new(),
            issuer: String::new(),
            audience: "shoal".into(),
            jwks_file: PathBuf::new(),
            service_accounts: Vec::new(),
            cluster: String::new(),
            role: RawRole::default(),
        }
    }
}

pub(super) fn checked(raws: &[RawKubernetes], mode: tls::Mode, faults: &mut Faults) -> Vec<Config> {
    if mode == tls::Mode::Off && !raws.is_empty() {
        faults.push("identity.kubernetes", "is of no use with tls = \"off\": nobody joins, everybody is who they say");
    }
    let mut names = BTreeSet::new();
    let mut all = Vec::new();
    for (at, raw) in raws.iter().enumerate() {
        let at = format!("identity.kubernetes[{at}]");
        let name = raw.name.trim();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !(1..=64).contains(&name.len()) || !name.chars().all(plain) {
            faults.push(format!("{at}.name"), "has 1 to 64 letters, digits, hyphens, underscores and dots");
        } else if !names.insert(name) {
            faults.push(format!("{at}.name"), format!("{name} is that of another one"));
        }
        for (leaf, text) in [("issuer", &raw.issuer), ("audience", &raw.audience)] {
            if text.trim().is_empty() {
                faults.push(format!("{at}.{leaf}"), "is empty");
            }
        }
        let jwks_file = given(&raw.jwks_file);
        if jwks_file.is_none() {
            faults.push(format!("{at}.jwks_file"), "is empty");
        }
        if raw.service_accounts.is_empty() {
            faults.push(format!("{at}.service_accounts"), "is empty, so that nobody could join by it");
        }
        for (position, account) in raw.service_accounts.iter().enumerate() {
            if !is_account(account) {
                let fault = format!("{account:?} is not a service account, namespace:name");
                faults.push(format!("{at}.service_accounts[{position}]"), fault);
            }
        }
        all.push(Config {
            name: name.to_owned(),
            at,
            issuer: raw.issuer.trim().to_owned(),
            audience: raw.audience.trim().to_owned(),
            jwks_file: jwks_file.unwrap_or_default(),
            accounts: raw.service_accounts.iter().cloned().collect(),
            cluster: Some(raw.cluster.trim().to_owned()).filter(|name| !name.is_empty()),
            seed: raw.role == RawRole::Seed,
        });
    }
    all
}

/// Names of Kubernetes have lower case letters, digits, hyphens and dots.
fn is_account(text: &str) -> bool {
    let good = |name: &str| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        (1..=253).contains(&name.len()) && name.bytes().all(plain)
    };
    text.split_once(':').is_some_and(|(namespace, name)| good(namespace) && good(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> RawKubernetes {
        RawKubernetes {
            name: "prod".into(),
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            jwks_file: "/etc/shoal/jwks.json".into(),
            service_accounts: vec!["shoal:shoal-node".into()],
            ..RawKubernetes::default()
        }
    }

    fn faults(raws: &[RawKubernetes], mode: tls::Mode) -> Vec<String> {
        let mut faults = Faults::default();
        checked(raws, mode, &mut faults);
        faults.iter().map(|fault| fault.key.clone()).collect()
    }

    #[test]
    fn a_full_entry_is_taken() {
        let mut none = Faults::default();
        let all = checked(&[RawKubernetes { cluster: "b".into(), ..good() }], tls::Mode::On, &mut none);
        assert!(none.is_empty() && all[0].audience == "shoal" && !all[0].seed);
        assert_eq!(all[0].cluster.as_deref(), Some("b"));
    }

    #[test]
    fn every_fault_of_an_entry_is_named() {
        assert_eq!(
            faults(&[RawKubernetes { audience: " ".into(), ..RawKubernetes::default() }], tls::Mode::On),
            ["name", "issuer", "audience", "jwks_file", "service_accounts"]
                .map(|leaf| format!("identity.kubernetes[0].{leaf}"))
        );
        assert_eq!(faults(&[good(), good()], tls::Mode::On), ["identity.kubernetes[1].name"]);
        for bad in ["", "shoal", ":x", "x:", "a:b:c", "*:*", "A:b", "system:serviceaccount:a:b"] {
            let entry = RawKubernetes { service_accounts: vec!["a:b".into(), bad.into()], ..good() };
            assert_eq!(faults(&[entry], tls::Mode::On), ["identity.kubernetes[0].service_accounts[1]"], "{bad}");
        }
        assert_eq!(faults(&[good()], tls::Mode::Off), ["identity.kubernetes"]);
    }
}
