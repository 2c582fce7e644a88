//! One registry as it is configured: where it is, whom its TLS must come from, which addresses it may lead to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http::uri::{Authority, Scheme};
use http_body_util::Empty;
use hyper_util::client::legacy;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::address::Named;
use super::connect::{Connector, Dialer};
use super::{Config, Registry, RegistryConfig};

/// Below the minute after which many load balancers drop an idle connection without a word.
const POOL_IDLE: Duration = Duration::from_secs(30);
/// As many as look-ahead and a few readers use at once.
const POOL_PER_HOST: usize = 16;

pub(super) type Client = legacy::Client<Connector, Empty<Bytes>>;

/// Scheme, host and port of a registry: `https://registry.example:5000`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    scheme: Scheme,
    authority: Authority,
}

impl FromStr for Endpoint {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let wrong = || ConfigError::Endpoint(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let parts = uri.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else { return Err(wrong()) };
        let bare = parts.path_and_query.is_none_or(|path| path == "/");
        let known = scheme == Scheme::HTTP || scheme == Scheme::HTTPS;
        if !bare || !known || authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(wrong());
        }
        Ok(Self { scheme, authority })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

/// What is wrong with the settings of a registry.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not `scheme://host[:port]`.
    #[error("{0:?} is not an endpoint such as https://registry.example:5000")]
    Endpoint(String),
    /// An endpoint with `http`, but neither `plain_http` nor a loopback address.
    #[error("{registry}: the endpoint {endpoint} is plain HTTP; set plain_http to allow it")]
    PlainHttp {
        /// Which registry.
        registry: String,
        /// Its endpoint.
        endpoint: String,
    },
    /// Only proxies that are spoken to in plain HTTP (CONNECT) are supported.
    #[error("{registry}: the proxy must be http://host:port")]
    Proxy {
        /// Which registry.
        registry: String,
    },
    /// A CA file can't be used.
    #[error("read CA {path} of {registry}: {why}")]
    Ca {
        /// Which registry.
        registry: String,
        /// Which file.
        path: PathBuf,
        /// What was wrong.
        why: String,
    },
    /// The docker config can't be used.
    #[error("origin.docker_config: {path}: {why}")]
    DockerConfig {
        /// Which file.
        path: PathBuf,
        /// What was wrong; never what it holds.
        why: String,
    },
    /// TLS could not be set up.
    #[error("set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// How one registry is reached.
pub(super) struct Site {
    pub(super) registry: Registry,
    pub(super) base: Endpoint,
    pub(super) plain_http: bool,
    pub(super) client: Client,
}

impl Site {
    pub(super) fn new(
        registry: &Registry,
        settings: &RegistryConfig,
        config: &Config,
        system: &RootCertStore,
    ) -> Result<Self, ConfigError> {
        let base = settings.base(registry)?;
        let mut roots = system.clone();
        for path in &settings.ca {
            add_ca(registry, path, &mut roots)?;
        }
        let proxies = settings.proxies(registry)?;
        let named = Named {
            networks: settings.allow_addresses.clone(),
            endpoint: settings.endpoint.as_ref().and_then(literal_address),
        };
        let plain_http = base.scheme == Scheme::HTTP || settings.plain_http;
        let client = client(Dialer::new(named, proxies), roots, config)?;
        Ok(Self { registry: registry.clone(), base, plain_http, client })
    }

    /// The URL of a path at this registry; the path starts with `/v2/`.
    pub(super) fn url(&self, path: &str) -> Uri {
        Uri::builder()
            .scheme(self.base.scheme.clone())
            .authority(self.base.authority.clone())
            .path_and_query(path)
            .build()
            .expect("names and digests have only characters of a path")
    }
}

impl RegistryConfig {
    /// What can't be used of the settings, by their keys. Reads the files that they name.
    pub(crate) fn faults(&self, registry: &Registry) -> Vec<(&'static str, ConfigError)> {
        let endpoint = self.base(registry).err().map(|error| ("endpoint", error));
        let proxy = self.proxies(registry).err().map(|error| ("proxy", error));
        let ca = self.ca.iter().filter_map(|path| add_ca(registry, path, &mut RootCertStore::empty()).err());
        endpoint.into_iter().chain(ca.map(|error| ("ca", error))).chain(proxy).collect()
    }

    /// Where the registry is reached: `scheme://host[:port]`.
    pub(crate) fn server(&self, registry: &Registry) -> String {
        self.endpoint.clone().unwrap_or_else(|| home(registry, self.plain_http)).to_string()
    }

    fn base(&self, registry: &Registry) -> Result<Endpoint, ConfigError> {
        let base = self.endpoint.clone().unwrap_or_else(|| home(registry, self.plain_http));
        let address = literal_address(&base);
        // An endpoint written as a loopback address is named explicitly; a host name that turns out to be one is not.
        let loopback = address.is_some_and(|address| address.ip().to_canonical().is_loopback());
        if base.scheme == Scheme::HTTP && !self.plain_http && !loopback {
            return Err(ConfigError::PlainHttp { registry: registry.to_string(), endpoint: base.to_string() });
        }
        Ok(base)
    }

    fn proxies(&self, registry: &Registry) -> Result<Matcher, ConfigError> {
        match &self.proxy {
            None => Ok(Matcher::from_env()),
            Some(proxy) if proxy.scheme() == Some(&Scheme::HTTP) && proxy.host().is_some() => {
                Ok(Matcher::builder().all(proxy.to_string()).build())
            }
            Some(_) => Err(ConfigError::Proxy { registry: registry.to_string() }),
        }
    }
}

fn add_ca(registry: &Registry, path: &Path, roots: &mut RootCertStore) -> Result<(), ConfigError> {
    let fail = |why: String| ConfigError::Ca { registry: registry.to_string(), path: path.to_owned(), why };
    let certs = CertificateDer::pem_file_iter(path).map_err(|error| fail(error.to_string()))?;
    let mut found = 0;
    for cert in certs {
        let cert = cert.map_err(|error| fail(error.to_string()))?;
        roots.add(cert).map_err(|error| fail(error.to_string()))?;
        found += 1;
    }
    if found == 0 { Err(fail("it holds no certificate".into())) } else { Ok(()) }
}

/// How registries without settings are reached: by their own names, sharing one client.
pub(super) struct Unconfigured(Client);

impl Unconfigured {
    pub(super) fn new(config: &Config, system: &RootCertStore) -> Result<Self, ConfigError> {
        let dialer = Dialer::new(Named::default(), Matcher::from_env());
        client(dialer, system.clone(), config).map(Self)
    }

    pub(super) fn site(&self, registry: &Registry) -> Site {
        Site { registry: registry.clone(), base: home(registry, false), plain_http: false, client: self.0.clone() }
    }
}

fn home(registry: &Registry, plain_http: bool) -> Endpoint {
    let host = match registry.as_str() {
        // docker.io is a name for people; the registry's own host is another.
        "docker.io" | "index.docker.io" => "registry-1.docker.io",
        host => host,
    };
    let scheme = if plain_http { Scheme::HTTP } else { Scheme::HTTPS };
    Endpoint { scheme, authority: host.parse().expect("a registry is an authority") }
}

fn literal_address(endpoint: &Endpoint) -> Option<SocketAddr> {
    let host = endpoint.authority.host();
    let ip: IpAddr = host.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
    let usual = if endpoint.scheme == Scheme::HTTP { 80 } else { 443 };
    Some(SocketAddr::new(ip, endpoint.authority.port_u16().unwrap_or(usual)))
}

/// The machine's own roots. A machine without any can still reach registries whose CA is configured.
pub(super) fn system_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "read system root certificates");
    }
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        tracing::warn!("no system root certificate found; only registries with a configured CA can be read");
    }
    roots
}

fn client(dialer: Dialer, roots: RootCertStore, config: &Config) -> Result<Client, ConfigError> {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(POOL_PER_HOST)
        .build(Connector::new(dialer, tls, config.connect_timeout)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_scheme_host_and_port() {
        for fine in ["https://a.example", "http://127.0.0.1:5000", "https://[::1]:5000", "https://a.example/"] {
            assert!(fine.parse::<Endpoint>().is_ok(), "{fine}");
        }
        for bad in ["", "a.example", "https://", "ftp://a", "https://a/b", "https://a?b", "https://u:p@a", "/v2"] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn plain_http_must_be_named_unless_the_endpoint_is_a_loopback_address() {
        let site = |endpoint: &str, plain_http| {
            let settings =
                RegistryConfig { endpoint: Some(endpoint.parse().unwrap()), plain_http, ..RegistryConfig::default() };
            let registry = "r.example".parse().unwrap();
            Site::new(&registry, &settings, &Config::default(), &RootCertStore::empty()).map(|site| site.plain_http)
        };
        assert!(matches!(site("http://r.example", false), Err(ConfigError::PlainHttp { .. })));
        assert!(matches!(site("http://localhost:5000", false), Err(ConfigError::PlainHttp { .. })));
        assert!(site("http://r.example", true).unwrap());
        assert!(site("http://127.0.0.1:5000", false).unwrap());
        assert!(!site("https://r.example", false).unwrap());
    }

    #[test]
    fn docker_io_is_at_its_registry_host() {
        assert_eq!(home(&"docker.io".parse().unwrap(), false).to_string(), "https://registry-1.docker.io");
        assert_eq!(home(&"r.example:5000".parse().unwrap(), true).to_string(), "http://r.example:5000");
    }
}
