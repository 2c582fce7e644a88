//! Who may read a repository: whether an anonymous token or a caller's own can (I10), and whether what is asked for is in it;
//! asked once and remembered for a while.

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
use super::{Credential, Origin, OriginError, Target, Who};

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

/// Who may read what is private and held in the cluster while its registry is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenDown {
    /// Whom the registry let read within the last minutes, and nobody else.
    #[default]
    Refuse,
    /// Who shows the same credential that the registry let read within the last 24 h, to this node.
    SameCredential,
    /// Anybody, of a repository that some caller of this node could read within the last 24 h.
    Anyone,
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
    /// When a caller of this node read from it last.
    reader: Option<Instant>,
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

    fn had_reader_today(&self) -> bool {
        within(self.state.lock().reader, OUTAGE_LIFE)
    }

    /// The challenges of the registry's last word, if that was "not anybody".
    fn challenges(&self) -> Option<Vec<HeaderValue>> {
        match &self.state.lock().known {
            Some((Access::Private { challenges }, since)) if since.elapsed() < OUTAGE_LIFE => Some(challenges.clone()),
            _ => None,
        }
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

    /// A caller just read from it, with a credential.
    pub(super) fn note_reader(&self, target: &Target) {
        self.entry(target).state.lock().reader = Some(Instant::now());
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
        let mut probe = std::pin::pin!(self.probe(target, kind, digest, &Who::Anybody));
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

    /// Whether the registry said a moment ago that an anonymous token can't read it.
    pub fn is_private(&self, target: &Target) -> bool {
        matches!(self.access.entry(target).fresh(), Some(Access::Private { .. }))
    }

    /// Whether the registry was found down a moment ago, when it was asked about this repository: then it is no use to ask it
    /// for what the cluster can answer.
    pub fn is_down(&self, target: &Target) -> bool {
        within(self.access.entry(target).state.lock().down, DOWN_LIFE)
    }

    /// Who reads content of a repository: anybody, or the caller with a credential of its own; and whether it is there at all
    /// (I10). What a caller has no right to, or what is in another repository, is never given out, whoever holds it.
    ///
    /// # Errors
    /// [`OriginError`]: `Unauthorized` with the registry's challenges for who shows no credential, or one that it does not take.
    pub async fn reader(
        &self,
        target: &Target,
        kind: Kind,
        digest: &Digest,
        caller: Option<&Credential>,
    ) -> Result<Who, OriginError> {
        let who = self.who(target, kind, digest, caller).await?;
        self.contains(target, kind, digest, &who).await?;
        Ok(who)
    }

    async fn who(
        &self,
        target: &Target,
        kind: Kind,
        digest: &Digest,
        caller: Option<&Credential>,
    ) -> Result<Who, OriginError> {
        let caller_reads = |caller: &Credential| Who::Caller(caller.clone());
        // A caller that is known needs no anonymous question, and the registry no request.
        if let Some(caller) = caller
            && self.access.entry(target).fresh() != Some(Access::Public)
            && matches!(self.callers.entry(target, caller).fresh(), Some(Ok(())))
        {
            return Ok(caller_reads(caller));
        }
        match (self.access(target, kind, digest).await, caller) {
            (Ok(Access::Public), _) => Ok(Who::Anybody),
            // Some registries hide what is private behind 404.
            (Ok(Access::Private { .. }) | Err(OriginError::NotFound { .. }), Some(caller)) => {
                self.access_as(target, kind, digest, caller).await?;
                Ok(caller_reads(caller))
            }
            (Ok(Access::Private { challenges }), None) => {
                Err(OriginError::Unauthorized { registry: target.registry.to_string(), challenges })
            }
            (Err(error), caller) if error.is_outage() => self.who_when_down(target, caller, error),
            (Err(error), _) => Err(error),
        }
    }

    /// Whether the registry lets this caller read the repository, asked with the caller's own credential.
    async fn access_as(
        &self,
        target: &Target,
        kind: Kind,
        digest: &Digest,
        caller: &Credential,
    ) -> Result<(), OriginError> {
        let entry = self.callers.entry(target, caller);
        if let Some(known) = entry.fresh() {
            return known;
        }
        let _asking = entry.asking.lock().await;
        if let Some(known) = entry.fresh() {
            return known;
        }
        match self.probe(target, kind, digest, &Who::Caller(caller.clone())).await {
            Err(error) if error.is_outage() => self.who_when_down(target, Some(caller), error).map(drop),
            answer => answer,
        }
    }

    /// The registry does not say who may read, and nobody remembers that anybody may: the config's choice.
    fn who_when_down(
        &self,
        target: &Target,
        caller: Option<&Credential>,
        error: OriginError,
    ) -> Result<Who, OriginError> {
        let entry = self.access.entry(target);
        let who = match (self.config.private_when_down, caller) {
            (WhenDown::Refuse, _) => None,
            (WhenDown::SameCredential, Some(caller)) => {
                self.callers.entry(target, caller).read_today().then(|| Who::Caller(caller.clone()))
            }
            // Who shows nothing is asked for it, as the registry would.
            (WhenDown::SameCredential, None) => {
                return Err(match entry.challenges() {
                    Some(challenges) => OriginError::Unauthorized { registry: target.registry.to_string(), challenges },
                    None => error,
                });
            }
            (WhenDown::Anyone, caller) => {
                entry.had_reader_today().then(|| caller.map_or(Who::Anybody, |caller| Who::Caller(caller.clone())))
            }
        };
        let Some(who) = who else { return Err(error) };
        tracing::info!(registry = %target.registry, repository = %target.repository, "the registry is down; origin.private_when_down lets this caller read");
        entry.state.lock().down = Some(Instant::now());
        Ok(who)
    }

    /// Whether content is in a repository. The registry is asked once; manifests that are in it say it of what they name.
    async fn contains(&self, target: &Target, kind: Kind, digest: &Digest, who: &Who) -> Result<(), OriginError> {
        if self.belongs.knows(target, digest) {
            return Ok(());
        }
        let answer = if self.is_down(target) {
            let (registry, why) = (target.registry.to_string(), "it is down".to_owned());
            Err(OriginError::Unreachable { registry, why })
        } else {
            let mut probe = std::pin::pin!(self.probe(target, kind, digest, who));
            match tokio::time::timeout(PATIENCE, &mut probe).await {
                Ok(answer) => answer,
                Err(_) if self.was_in(target, digest, who).await => Ok(()),
                Err(_) => probe.await,
            }
        };
        match answer {
            Err(error) if error.is_outage() && self.was_in(target, digest, who).await => Ok(()),
            answer => answer,
        }
    }

    /// With the registry down: whether the cluster knows that it is in there.
    async fn was_in(&self, target: &Target, digest: &Digest, who: &Who) -> bool {
        let known = *who == Who::Anybody
            && self.witness.public_since(target, Some(digest)).await.is_some_and(|age| age < OUTAGE_LIFE);
        if known {
            self.belongs.learn(target, digest);
        }
        known
    }

    /// The registry has it, and gave it to whoever asked.
    pub(super) fn found(&self, target: &Target, kind: Kind, digest: &Digest, who: &Who) {
        self.belongs.learn(target, digest);
        if kind == Kind::Manifest && *who == Who::Anybody {
            self.witness.saw_public(target, Some(digest));
        }
    }

    /// A manifest that is in the repository names this content, so that it is in there too: a registry takes no manifest that
    /// names what it has not (OCI distribution spec 1.1, "Pushing Manifests").
    pub fn learn_named(&self, target: &Target, named: impl IntoIterator<Item = Digest>) {
        for digest in named {
            self.belongs.learn(target, &digest);
        }
    }

    async fn was_public(&self, entry: &Entry, target: &Target) -> bool {
        if entry.was_public_today() {
            return true;
        }
        if let Some(age) = self.witness.public_since(target, None).await {
            entry.hear(age);
        }
        entry.was_public_today()
    }

    /// A HEAD whose redirect is answer enough: only who may read sees where the bytes are.
    async fn probe(&self, target: &Target, kind: Kind, digest: &Digest, who: &Who) -> Result<(), OriginError> {
        let site = self.site(&target.registry);
        let path = content_path(target, kind, &digest.to_string());
        let span = span("origin.access", "HEAD", &site, &path);
        let mut headers = HeaderMap::new();
        super::read::accept(&mut headers, kind, &[]);
        let request = Outgoing { method: Method::HEAD, url: site.url(&path), headers, follow: false };
        self.ask(Asked::Access, target, &site, request, who).instrument(span).await?;
        self.found(target, kind, digest, who);
        Ok(())
    }
}

/// The registry is down, and the repository was public.
fn down(entry: &Entry, target: &Target) -> Access {
    tracing::info!(registry = %target.registry, repository = %target.repository, "the registry is down; the repository was public within a day");
    entry.state.lock().down = Some(Instant::now());
    Access::Public
}
