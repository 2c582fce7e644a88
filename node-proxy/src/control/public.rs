//! Which repositories, and manifests in them, this node could read with an anonymous token, told to control so that the cluster knows (I5).

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use shoal_proto::Digest;
use shoal_proto::control::v1 as wire;
use tokio::sync::Notify;
use tokio::time::Instant;
use wire::session_request::Message as Say;

use super::session::send;
use super::{CALL_TIMEOUT, Client, Outbox};

/// What was seen longer ago is worth nothing.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// Names that are remembered; a node pulls fewer. The oldest goes first.
const MOST: usize = 4096;

/// A repository, or a manifest in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    /// As `ns=` names it.
    pub registry: String,
    /// Its path.
    pub repository: String,
    /// The manifest; `None`: the repository as a whole.
    pub manifest: Option<Digest>,
}

impl Name {
    fn into_wire(self) -> wire::Repository {
        let manifest = self.manifest.map(|digest| digest.as_bytes().to_vec()).unwrap_or_default();
        wire::Repository { registry: self.registry, name: self.repository, manifest }
    }
}

#[derive(Default)]
pub(super) struct Public {
    seen: Mutex<Seen>,
    news: Notify,
}

#[derive(Default)]
struct Seen {
    at: HashMap<Name, Instant>,
    unsaid: Vec<Name>,
}

impl Public {
    /// Ready when there is something that control was not told.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// What control was not told, or everything.
    pub(super) fn take(&self, everything: bool) -> Vec<wire::PublicRepository> {
        let mut seen = self.seen.lock();
        seen.at.retain(|_, since| since.elapsed() < LIFE);
        let unsaid = std::mem::take(&mut seen.unsaid);
        let names = if everything { seen.at.keys().cloned().collect() } else { unsaid };
        let told = names.into_iter().filter_map(|name| {
            let seconds_ago = u32::try_from(seen.at.get(&name)?.elapsed().as_secs()).unwrap_or(u32::MAX);
            Some(wire::PublicRepository { repository: Some(name.into_wire()), seconds_ago })
        });
        told.collect()
    }
}

impl Client {
    /// This node just read from a repository with an anonymous token. Does not wait.
    pub fn saw_public(&self, name: Name) {
        let mut seen = self.public.seen.lock();
        if seen.at.len() >= MOST && !seen.at.contains_key(&name) {
            let oldest = seen.at.iter().min_by_key(|(_, at)| **at).map(|(name, _)| name.clone());
            oldest.map(|name| seen.at.remove(&name));
        }
        seen.at.insert(name.clone(), Instant::now());
        if !seen.unsaid.contains(&name) {
            seen.unsaid.push(name);
        }
        drop(seen);
        self.public.news.notify_one();
    }

    /// How long ago some node of this cluster did; `None` when nobody did, or control does not answer.
    pub async fn public_since(&self, name: Name) -> Option<Duration> {
        let mut grpc = self.grpc()?;
        let session = self.session.load_full()?.session.clone();
        let request = wire::WasPublicRequest { session, repository: Some(name.into_wire()) };
        match tokio::time::timeout(CALL_TIMEOUT, grpc.was_public(request)).await {
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                answer.known.then(|| Duration::from_secs(u64::from(answer.seconds_ago)))
            }
            Ok(Err(status)) => {
                tracing::debug!(%status, "ask control for a repository's access");
                None
            }
            Err(_) => None,
        }
    }

    /// Tells control what it was not told, or everything.
    pub(super) async fn tell_public(
        &self,
        out: &Outbox<wire::SessionRequest>,
        everything: bool,
    ) -> Result<(), tonic::Status> {
        let mut repositories = self.public.take(everything).into_iter().peekable();
        while repositories.peek().is_some() {
            let repositories = repositories.by_ref().take(super::session::BATCH).collect();
            send(out, Say::Public(wire::Public { repositories })).await?;
        }
        Ok(())
    }
}
