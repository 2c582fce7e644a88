//! Who may read a repository: whether an anonymous token can (I10), asked once and remembered for a while.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method};
use parking_lot::Mutex;
use shoal_proto::{Digest, Kind};
use tokio::time::Instant;
use tracing::Instrument;

use super::metrics::Asked;
use super::read::{content_path, span};
use super::request::Outgoing;
use super::{As, Origin, OriginError, Target};

/// A repository rarely turns private, and then a pull may succeed for so long.
const PUBLIC_LIFE: Duration = Duration::from_secs(5 * 60);
/// A repository that was just made public should be found soon.
const PRIVATE_LIFE: Duration = Duration::from_secs(30);
/// With the origin down, what was public within a day still is (I5).
const OUTAGE_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Repositories remembered before old ones are dropped.
const MOST_KNOWN: usize = 4096;

/// Who can read a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Anybody, with an anonymous token at most.
    Public,
    /// Not an anonymous token.
    Private {
        /// The registry's `WWW-Authenticate` headers, unchanged.
        challenges: Vec<HeaderValue>,
    },
}

#[derive(Default)]
pub(super) struct Memory(Mutex<HashMap<Target, Arc<Entry>>>);

#[derive(Default)]
struct Entry {
    /// Held while the registry is asked, so that one question does for all.
    asking: tokio::sync::Mutex<()>,
    known: Mutex<Option<(Access, Instant)>>,
}

impl Entry {
    fn fresh(&self) -> Option<Access> {
        let known = self.known.lock();
        let (access, since) = known.as_ref()?;
        let life = if *access == Access::Public { PUBLIC_LIFE } else { PRIVATE_LIFE };
        (since.elapsed() < life).then(|| access.clone())
    }

    fn was_public_today(&self) -> bool {
        matches!(&*self.known.lock(), Some((Access::Public, since)) if since.elapsed() < OUTAGE_LIFE)
    }
}

impl Memory {
    fn entry(&self, target: &Target) -> Arc<Entry> {
        let mut entries = self.0.lock();
        if entries.len() >= MOST_KNOWN && !entries.contains_key(target) {
            entries.retain(|_, entry| Arc::strong_count(entry) > 1 || entry.fresh().is_some());
            if entries.len() >= MOST_KNOWN {
                return Arc::default();
            }
        }
        Arc::clone(entries.entry(target.clone()).or_default())
    }

    pub(super) fn learn(&self, target: &Target, access: Access) {
        *self.entry(target).known.lock() = Some((access, Instant::now()));
    }
}

impl Origin {
    /// Whether an anonymous token can read the repository, found out by asking for `digest` in it. With the origin down,
    /// a repository that was public within the last 24 h is public (I5).
    ///
    /// # Errors
    /// [`OriginError`], never `Unauthorized`. `NotFound` says nothing about access: some registries hide private
    /// repositories behind it.
    pub async fn access(&self, target: &Target, kind: Kind, digest: &Digest) -> Result<Access, OriginError> {
        let entry = self.access.entry(target);
        if let Some(known) = entry.fresh() {
            return Ok(known);
        }
        let _asking = entry.asking.lock().await;
        if let Some(known) = entry.fresh() {
            return Ok(known);
        }
        match self.probe(target, kind, digest).await {
            Ok(()) => Ok(Access::Public),
            Err(OriginError::Unauthorized { challenges, .. }) => Ok(Access::Private { challenges }),
            Err(error) if error.is_outage() && entry.was_public_today() => {
                tracing::debug!(registry = %target.registry, %error, "origin is down; the repository was public");
                Ok(Access::Public)
            }
            Err(error) => Err(error),
        }
    }

    /// A HEAD whose redirect is answer enough: only who may read sees where the bytes are.
    async fn probe(&self, target: &Target, kind: Kind, digest: &Digest) -> Result<(), OriginError> {
        let site = self.site(&target.registry);
        let path = content_path(target, kind, &digest.to_string());
        let span = span("origin.access", "HEAD", &site, &path);
        let mut headers = HeaderMap::new();
        super::read::accept(&mut headers, kind, &[]);
        let request = Outgoing { method: Method::HEAD, url: site.url(&path), headers, follow: false };
        self.ask(Asked::Access, target, &site, request, As::Anonymous).instrument(span).await.map(drop)
    }
}
