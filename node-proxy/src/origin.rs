//! The upstream registry: what a reference resolves to, who may read a repository, and bytes over verified TLS.
//!
//! Owns the HTTP client towards registries and their token services: TLS, redirects, anonymous tokens, the address
//! rule, per registry settings. Does not keep bytes, and knows nothing of peers.
//!
//! What always holds:
//! - No credential is written, logged or traced (I9). A credential goes only to the registry that the caller named, over
//!   TLS unless plain HTTP is configured for it, and never along a redirect to another host.
//! - The address rule (DESIGN section 7) is checked on the address connected to, for redirects and token realms too.
//!
//! Source: OCI distribution spec 1.1; the Docker token authentication specification.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Uri};
use ipnet::IpNet;
use shoal_base::limit::Limiter;
use shoal_proto::Digest;

mod access;
mod address;
mod belongs;
mod body;
mod callers;
mod challenge;
mod connect;
pub(crate) mod fuzz;
mod metrics;
mod name;
mod own;
mod read;
mod request;
mod silence;
mod site;
#[cfg(test)]
pub(crate) mod test_registry;
#[cfg(test)]
mod tests;
mod token;
mod witness;

pub use access::{Access, WhenDown};
pub use body::{Body, ByteRange};
pub use metrics::Metrics;
pub use name::{NameError, Reference, Registry, Repository, Tag};
pub use site::{ConfigError, Endpoint};
pub use witness::{Nobody, Witness};

use site::Site;

/// Where content is read: registry and repository.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    /// The registry.
    pub registry: Registry,
    /// The repository in it.
    pub repository: Repository,
}

/// A caller's `Authorization` header, as it was sent to the mirror. `Debug` hides it (I9).
#[derive(Clone, PartialEq, Eq)]
pub struct Credential(HeaderValue);

impl Credential {
    /// Takes the value of an `Authorization` header.
    pub fn new(mut header: HeaderValue) -> Self {
        header.set_sensitive(true);
        Self(header)
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(hidden)")
    }
}

/// On whose behalf the origin is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Anybody: with no credential, or with an anonymous token that `origin` gets itself.
    Anybody,
    /// A caller: with the caller's own header, sent on unchanged.
    Caller(Credential),
    /// This node: with what its own docker config holds for the registry.
    Own,
}

/// What the origin says about a manifest or blob without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Docker-Content-Digest, or the digest that was asked for.
    pub digest: Digest,
    /// Content-Type as the origin gave it; empty when it gave none.
    pub media_type: String,
    /// Content-Length.
    pub size: u64,
}

/// Settings of the origin client.
#[derive(Debug, Clone)]
pub struct Config {
    /// By the name that `ns=` has. A registry that is not here is reached by its own name over HTTPS.
    pub registries: BTreeMap<Registry, RegistryConfig>,
    /// The longest wait for a connection, TLS included; 5 s.
    pub connect_timeout: Duration,
    /// The longest wait for the headers of an answer, with redirects and tokens that it needs; 20 s (I8).
    pub headers_timeout: Duration,
    /// The longest silence inside a body, after which the rest is asked for anew; 5 s, as for a first byte (I8).
    pub body_idle_timeout: Duration,
    /// `User-Agent`.
    pub user_agent: String,
    /// What all registries together may send, in bytes of bodies.
    pub limit: Limiter,
    /// Who reads what is private while its registry is down.
    pub private_when_down: WhenDown,
    /// `config.json` of docker with credentials of this node's own. `None`: it has none.
    pub docker_config: Option<PathBuf>,
    /// What all registries are shown in place of the docker config's.
    pub login: Option<Login>,
}

/// A user's name and password. It is shown to nobody but a registry and its token service.
#[derive(Clone)]
pub struct Login {
    /// The name.
    pub user: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login")
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            registries: BTreeMap::new(),
            connect_timeout: Duration::from_secs(5),
            headers_timeout: Duration::from_secs(20),
            body_idle_timeout: Duration::from_secs(5),
            user_agent: concat!("shoal-node/", env!("CARGO_PKG_VERSION")).to_owned(),
            limit: Limiter::none(),
            private_when_down: WhenDown::Refuse,
            docker_config: None,
            login: None,
        }
    }
}

/// Settings of one registry; they hold for its redirects and token realms too.
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    /// Where it really is. `None`: at its own name; docker.io is at registry-1.docker.io.
    pub endpoint: Option<Endpoint>,
    /// PEM files of CAs that are trusted beside the system's.
    pub ca: Vec<PathBuf>,
    /// `http://[user:password@]host:port` to go through. `None`: what HTTPS_PROXY, HTTP_PROXY and NO_PROXY say.
    pub proxy: Option<Uri>,
    /// Plain HTTP is allowed: for the endpoint when it says `http`, or gives none, and for redirects and realms.
    pub plain_http: bool,
    /// Networks that may be connected to although the address rule refuses them.
    pub allow_addresses: Vec<IpNet>,
}

/// Why the origin gave nothing, by what the caller can do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OriginError {
    /// 401, or 403 to an anonymous token. The challenges are passed on unchanged to whoever asked.
    #[error("{registry} wants authorization")]
    Unauthorized {
        /// Which registry.
        registry: String,
        /// Every `WWW-Authenticate` header of the registry.
        challenges: Vec<HeaderValue>,
    },
    /// 403 to the caller's own credential.
    #[error("{registry} denies access")]
    Denied {
        /// Which registry.
        registry: String,
    },
    /// 404, or a name that the registry calls invalid.
    #[error("{registry} does not have it")]
    NotFound {
        /// Which registry.
        registry: String,
    },
    /// 416: the range starts past the end.
    #[error("range not satisfiable")]
    Range,
    /// 429, or 503 with Retry-After.
    #[error("{registry} is busy")]
    Busy {
        /// Which registry.
        registry: String,
        /// From Retry-After, else 1 s.
        retry_after: Duration,
    },
    /// No connection, TLS failed, no headers in time, the body broke, or another 5xx. Another node may have more luck.
    #[error("{registry} cannot be read: {why}")]
    Unreachable {
        /// Which registry.
        registry: String,
        /// For logs; never holds a credential.
        why: String,
    },
    /// The body stopped. What is missing may be asked for anew.
    #[error("{registry} sent no byte of the body for {idle:?}")]
    Stalled {
        /// Which registry.
        registry: String,
        /// How long.
        idle: Duration,
    },
    /// It left a request without a word a moment ago, and is not asked for now. Let the caller go elsewhere at once.
    #[error("{registry} was silent {since:?} ago")]
    Silent {
        /// Which registry.
        registry: String,
        /// How long ago.
        since: Duration,
    },
    /// The address rule, or the config, forbids to connect there.
    #[error("{registry}: {why}")]
    Refused {
        /// Which registry.
        registry: String,
        /// Which rule.
        why: String,
    },
    /// The origin's answer makes no sense (no digest, no length where one is needed, wrong range).
    #[error("{registry} answered nonsense: {why}")]
    Nonsense {
        /// Which registry.
        registry: String,
        /// What was wrong.
        why: String,
    },
}

/// The client of every registry. One per process.
pub struct Origin {
    config: Config,
    sites: HashMap<Registry, Arc<Site>>,
    /// For registries without settings of their own.
    plain: site::Unconfigured,
    tokens: token::Tokens,
    own: own::Own,
    access: access::Memory,
    callers: callers::Callers,
    belongs: belongs::Belongs,
    silence: silence::Silence,
    witness: Arc<dyn Witness>,
    metrics: Metrics,
}

impl Origin {
    /// Reads the system's roots and the configured CAs. No connection is made. `witness` is asked with a registry down.
    ///
    /// # Errors
    /// [`ConfigError`]: a CA that can't be read, an endpoint or proxy that is not allowed.
    pub fn new(config: Config, witness: Arc<dyn Witness>, metrics: Metrics) -> Result<Arc<Self>, ConfigError> {
        let roots = site::system_roots();
        let mut sites = HashMap::new();
        for (registry, settings) in &config.registries {
            sites.insert(registry.clone(), Arc::new(Site::new(registry, settings, &config, &roots)?));
        }
        let plain = site::Unconfigured::new(&config, &roots)?;
        let own = own::Own::new(config.docker_config.clone(), config.login.clone())?;
        Ok(Arc::new(Self {
            config,
            sites,
            plain,
            tokens: token::Tokens::default(),
            own,
            access: access::Memory::default(),
            callers: callers::Callers::default(),
            belongs: belongs::Belongs::default(),
            silence: silence::Silence::default(),
            witness,
            metrics,
        }))
    }

    /// Whether this node has credentials of its own.
    pub fn has_own(&self) -> bool {
        self.own.is_there()
    }

    /// How a registry is reached.
    fn site(&self, registry: &Registry) -> Arc<Site> {
        self.sites.get(registry).cloned().unwrap_or_else(|| Arc::new(self.plain.site(registry)))
    }
}

impl OriginError {
    /// Whether the origin gave no answer at all, so that what was learnt earlier still holds.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Stalled { .. } | Self::Silent { .. } | Self::Busy { .. })
    }
}
