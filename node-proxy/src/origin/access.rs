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
/// A registry that says nothing for so long counts as down for a repository that is known to have been public: the
/// rest of the first byte budget belongs to the bytes.
const PATIENCE: Duration = Duration::from_secs(2);
/// A registry that was found down is asked again after this long.
const DOWN_LIFE: Duration = Duration::from_secs(5);
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
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: Option<(Access, Instant)>,
    /// When the cluster was told last that it is public.
    told: Option<Instant>,
    /// When the registry was found down.
    down: Option<Instant>,
}

fn within(since: Option<Instant>, life: Duration) -> bool {
    since.is_some_and(|since| since.elapsed() < life)
}

impl Entry {
    fn fresh(&self) -> Option<Access> {
        let state = self.state.lock();
        let (access, since) = state.known.as_ref()?;
        let life = match access {
            Access::Public if within(state.down, DOWN_LIFE) => OUTAGE_LIFE,
            Access::Public => PUBLIC_LIFE,
            Access::Private { .. } => PRIVATE_LIFE,
        };
        within(Some(*since), life).then(|| access.clone())
    }

    fn was_public_today(&self) -> bool {
        matches!(&self.state.lock().known, Some((Access::Public, since)) if since.elapsed() < OUTAGE_LIFE)
    }

    /// Somebody else's word: kept as old as it is, and only until the registry itself says something.
    fn hear(&self, age: Duration) {
        let Some(since) = Instant::now().checked_sub(age) else { return };
        self.state.lock().known.get_or_insert((Access::Public, since));
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

    /// What the registry itself just said. True when the cluster should be told that it is public.
    pub(super) fn learn(&self, target: &Target, access: Access) -> bool {
        let entry = self.entry(target);
        let mut state = entry.state.lock();
        let tell = access == Access::Public && !within(state.told, PUBLIC_LIFE);
        if tell {
            state.told = Some(Instant::now());
        }
        state.known = Some((access, Instant::now()));
        state.down = None;
        tell
    }
}

impl Origin {
    /// Whether an anonymous token can read the repository, found out by asking for `digest` in it. With the origin down,
    /// a repository that was public within the last 24 h is public, as this node or the cluster remembers (I5).
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
        let mut probe = std::pin::pin!(self.probe(target, kind, digest));
        let answer = match tokio::time::timeout(PATIENCE, &mut probe).await {
            Ok(answer) => answer,
            Err(_) if self.was_public(&entry, target).await => return Ok(down(&entry, target)),
            Err(_) => probe.await,
        };
        match answer {
            Ok(()) => Ok(Access::Public),
            Err(OriginError::Unauthorized { challenges, .. }) => Ok(Access::Private { challenges }),
            Err(error) if error.is_outage() && self.was_public(&entry, target).await => Ok(down(&entry, target)),
            Err(error) => Err(error),
        }
    }

    /// Whether the registry was found down a moment ago, when it was asked about this repository: then it is no use to ask it
    /// for what the cluster can answer.
    pub fn is_down(&self, target: &Target) -> bool {
        within(self.access.entry(target).state.lock().down, DOWN_LIFE)
    }

    async fn was_public(&self, entry: &Entry, target: &Target) -> bool {
        if entry.was_public_today() {
            return true;
        }
        if let Some(age) = self.witness.public_since(target).await {
            entry.hear(age);
        }
        entry.was_public_today()
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

/// The registry is down, and the repository was public.
fn down(entry: &Entry, target: &Target) -> Access {
    tracing::info!(registry = %target.registry, repository = %target.repository, "the registry is down; the repository was public within a day");
    entry.state.lock().down = Some(Instant::now());
    Access::Public
}
