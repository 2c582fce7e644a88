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

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use shoal_proto::Digest;

/// The host (and port) of a registry as containerd names it in `ns=`: `docker.io`, `registry.example:5000`. Lower case.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Registry(String);

impl fmt::Display for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A repository's path, by the grammar of the OCI distribution spec.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Repository(String);

/// A tag, by the grammar of the OCI distribution spec.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Tag(String);

/// Where content is read: registry and repository.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    /// The registry.
    pub registry: Registry,
    /// The repository in it.
    pub repository: Repository,
}

/// What a manifest request names.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Reference {
    /// By tag.
    Tag(Tag),
    /// By digest.
    Digest(Digest),
}

/// A caller's `Authorization` header, as it was sent to the mirror. `Debug` hides it (I9).
#[derive(Clone, PartialEq, Eq)]
pub struct Credential(HeaderValue);

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(hidden)")
    }
}

/// On whose behalf the origin is asked.
#[derive(Clone, Copy, Debug)]
pub enum As<'a> {
    /// With no credential, or with an anonymous token that `origin` gets itself.
    Anonymous,
    /// With the caller's own header, sent on unchanged.
    Caller(&'a Credential),
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

/// Parts of a body as they arrive.
type BodyStream = std::pin::Pin<Box<dyn futures::Stream<Item = Result<Bytes, OriginError>> + Send>>;

/// The start of a body from the origin.
pub struct Body {
    /// 200 or 206.
    pub partial: bool,
    /// Bytes of the whole content (from Content-Length or Content-Range), when the origin says it.
    pub size: Option<u64>,
    /// The first byte's offset in the content.
    pub start: u64,
    /// Bytes that this body will have, when the origin says it.
    pub length: Option<u64>,
    /// Content-Type as the origin gave it; empty when it gave none.
    pub media_type: String,
    stream: BodyStream,
}

/// Why the origin gave nothing, by what the caller can do.
#[derive(Debug, thiserror::Error)]
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
