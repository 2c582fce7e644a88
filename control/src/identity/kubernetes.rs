//! Service account tokens of Kubernetes, checked against the public keys of the cluster that issued them.
//!
//! Owns those keys and what a token must say. Asks nobody: the keys are in a file that the operator keeps
//! (`kubectl get --raw /openid/v1/jwks`), and it is read again while this service runs.
//!
//! What always holds: a token counts only with a signature by one of the keys, made in a way that fits the kind of key, and with an
//! issuer, an audience, an end and a listed service account; until its signature was checked, nobody is told more than that it does
//! not count. With a file that can't be used nobody joins.
//!
//! Source: RFC 7515 and 7519; Kubernetes, "Managing Service Accounts", on bound tokens and the claim `kubernetes.io`.

mod keys;
#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeSet;
use std::path::PathBuf;

use jsonwebtoken::errors::{Error as JwtError, ErrorKind};
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde::Deserialize;

use keys::{Key, Keys};

/// Clocks of API servers and ours may differ by so many seconds.
const LEEWAY: u64 = 10;
/// What stands before namespace and name in the claim `sub`.
const ACCOUNT: &str = "system:serviceaccount:";

/// A Kubernetes cluster whose service accounts may join.
#[derive(Debug, Clone)]
pub struct Config {
    /// What it is called in the audit log and of members.
    pub name: String,
    /// The key path of these settings, for messages.
    pub at: String,
    /// The claim `iss`.
    pub issuer: String,
    /// What the claim `aud` must hold.
    pub audience: String,
    /// The keys, as a JSON Web Key Set.
    pub jwks_file: PathBuf,
    /// Who may join, each as `namespace:name`.
    pub accounts: BTreeSet<String>,
    /// Who joins belongs to the cluster of this name or id, whatever its facts say.
    pub cluster: Option<String>,
    /// Who joins may be a seed.
    pub seed: bool,
}

/// What a good token says of its bearer.
#[derive(Debug)]
pub(super) struct Vouched<'a> {
    /// By whom.
    pub(super) by: &'a Config,
    /// `namespace:name`.
    pub(super) account: String,
    /// The Kubernetes node that the token is bound to.
    pub(super) node: Option<String>,
    /// The pod that the token is bound to.
    pub(super) pod: Option<String>,
}

/// Why a token does not count. The later, the more of it was right.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Unvouched {
    /// Not signed by anybody that is known here. Why is for the log alone.
    #[error("the service account token is not signed with a key of a Kubernetes cluster that is configured here")]
    Stranger(&'static str),
    /// Our fault: a file with keys can't be used.
    #[error("the keys that service account tokens are checked with can't be read")]
    Keys,
    /// It lacks what every such token has.
    #[error("the service account token has no {0}")]
    Lacks(String),
    /// Of another issuer.
    #[error("the service account token has another issuer than the one that is configured here")]
    Issuer,
    /// For somebody else.
    #[error("the service account token is not for the audience {0:?}")]
    Audience(String),
    /// Its time is over.
    #[error("the time of the service account token is over")]
    Over,
    /// Its time has not begun.
    #[error("the time of the service account token has not begun")]
    Early,
    /// Nobody that may join.
    #[error("service account {0} may not join")]
    Account(String),
}

impl Unvouched {
    /// What only our own log says.
    pub const fn hidden(&self) -> Option<&'static str> {
        match self {
            Self::Stranger(why) => Some(why),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    #[serde(rename = "kubernetes.io", default)]
    bound: Bound,
}

/// What the token is bound to; a cluster before 1.30 does not tell of nodes.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Bound {
    node: Option<Named>,
    pod: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// All Kubernetes clusters whose service accounts may join.
#[derive(Debug, Default)]
pub(super) struct Kubernetes(Vec<(Config, Keys)>);

impl Kubernetes {
    /// Reads all keys.
    ///
    /// # Errors
    /// Which file can't be used, and why.
    pub(super) async fn open(configs: Vec<Config>) -> Result<Self, String> {
        let mut all = Vec::new();
        for config in configs {
            let keys = Keys::open(config.jwks_file.clone()).await;
            let keys = keys.map_err(|why| format!("{}.jwks_file: {}: {why}", config.at, config.jwks_file.display()))?;
            all.push((config, keys));
        }
        Ok(Self(all))
    }

    /// Whom a token speaks for.
    ///
    /// # Errors
    /// [`Unvouched`]; of several clusters what the one says that it was most right for.
    pub(super) async fn check(&self, token: &str) -> Result<Vouched<'_>, Unvouched> {
        let header = decode_header(token).map_err(|_| Unvouched::Stranger("its header names no known algorithm"))?;
        let kid = header.kid.as_deref().ok_or(Unvouched::Stranger("it names no key"))?;
        if header.crit.is_some() {
            // RFC 7515, section 4.1.11: what is not understood must not be passed over.
            return Err(Unvouched::Stranger("its header has extensions"));
        }
        let mut nearest = None;
        for (config, keys) in &self.0 {
            let checked = match keys.find(kid).await {
                Ok(Some(key)) => config.check(token, header.alg, &key),
                Ok(None) => continue,
                Err(()) => Err(Unvouched::Keys),
            };
            match checked {
                Ok(vouched) => return Ok(vouched),
                Err(why) => nearest = nearest.max(Some(why)),
            }
        }
        Err(nearest.unwrap_or(Unvouched::Stranger("no configured Kubernetes cluster has the key that it names")))
    }
}

impl Config {
    fn check(&self, token: &str, algorithm: Algorithm, key: &Key) -> Result<Vouched<'_>, Unvouched> {
        let mut validation = Validation::new(algorithm);
        validation.algorithms = key.algorithms.to_vec();
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let claims = decode::<Claims>(token, &key.key, &validation).map_err(|error| self.unvouched(&error))?.claims;
        let account = claims.sub.strip_prefix(ACCOUNT).unwrap_or(&claims.sub).to_owned();
        // A subject of another kind has no listed name, whatever follows its own prefix.
        if !claims.sub.starts_with(ACCOUNT) || !self.accounts.contains(&account) {
            return Err(Unvouched::Account(account));
        }
        let name = |named: Option<Named>| named.map(|named| named.name);
        Ok(Vouched { by: self, account, node: name(claims.bound.node), pod: name(claims.bound.pod) })
    }

    /// The library looks at claims only after the signature.
    fn unvouched(&self, error: &JwtError) -> Unvouched {
        match error.kind() {
            ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => {
                Unvouched::Lacks(claim.clone())
            }
            ErrorKind::InvalidIssuer => Unvouched::Issuer,
            ErrorKind::InvalidAudience => Unvouched::Audience(self.audience.clone()),
            ErrorKind::ExpiredSignature => Unvouched::Over,
            ErrorKind::ImmatureSignature => Unvouched::Early,
            ErrorKind::InvalidAlgorithm => Unvouched::Stranger("its algorithm is not one of the key that it names"),
            ErrorKind::InvalidSignature => Unvouched::Stranger("its signature is not that of the key that it names"),
            _ => Unvouched::Stranger("it is no token that can be read"),
        }
    }
}
