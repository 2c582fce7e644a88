//! What control says of a blob: size, parents, hashes, permit.

use std::sync::Arc;
use std::time::Duration;

use shoal_proto::{Digest, Layout, NodeId, PieceList};
use tokio::time::Instant;

use super::super::flight::{Contradicted, Field};
use super::super::metrics::Leave;
use super::super::{ReadError, close, store_failed};
use super::{Runner, TICK, start};
use crate::store::{Partial, StoreError};
use crate::swarm::{ListError, Located, News, Parent};

/// How long a flight waits for the one before it to leave the disk.
const TIDYING: Duration = Duration::from_secs(1);

/// Still fetching parents that are asked for a list at a time: they may not have it yet.
const PARTIAL_FOR_LIST: usize = 4;

/// Whom to ask for the body of a sealed list; `turn`: random, so that it is not always the same of those that still fetch.
fn with_list(parents: &[Parent], turn: usize) -> Arc<[Parent]> {
    let (whole, part): (Vec<&Parent>, Vec<&Parent>) = parents.iter().partition(|parent| parent.complete);
    let part = part.iter().cycle().skip(turn % part.len().max(1)).take(PARTIAL_FOR_LIST.min(part.len()));
    whole.iter().chain(part).map(|parent| Parent::clone(parent)).collect()
}

impl Runner {
    pub(super) async fn on_news(&mut self, news: Option<News>) {
        match news {
            None | Some(News::Again) => {
                self.finding = None;
                self.ask_at = Some(Instant::now() + TICK);
                if self.permits.is_empty() && self.parents.borrow().is_empty() {
                    self.ask_at = Some(Instant::now());
                }
            }
            Some(News::Parents(parents)) => {
                self.name(parents);
                self.want_list_body();
                self.ask_holders();
            }
            Some(News::Refused { author }) => self.on_refused(&author),
            Some(News::Head { author, size, media_type }) => {
                if self.believes(&author).await
                    && self.agrees_on_size(&author, size)
                    && self.begin(size, &media_type, &author).await
                {
                    self.take_author(author);
                    self.refused = None;
                }
            }
            Some(News::Hashes { first, hashes }) => {
                let fits = self.flight.change(|body| body.list.set_run(first, &hashes));
                if let Some(Err(conflict)) = fits {
                    tracing::warn!(digest = %self.flight.digest(), %conflict, "piece list contradicts itself");
                    self.mismatch().await;
                }
            }
            Some(News::Sealed { author, root, size, media_type }) => {
                if self.believes(&author).await
                    && self.agrees_on_size(&author, size)
                    && self.begin(size, &media_type, &author).await
                {
                    self.sealed = Some((author, root));
                    self.refused = None;
                    self.want_list_body();
                }
            }
            Some(News::Permit(grant)) => self.on_permit(grant).await,
            Some(News::Revoked) => {
                self.permits.clear();
                self.reads.clear();
                self.flight.set_at_origin(false);
            }
            Some(News::Waiting { at_origin, reason }) => {
                tracing::debug!(reason, "wait for another node");
                self.flight.set_at_origin(at_origin);
            }
            Some(News::NotFound) if self.reads.is_empty() => {
                let digest = self.flight.digest();
                // The origin refused its readers: they are to hear that, and may come again with a fresh token.
                let denied = self.denied.take().map(|error| ReadError::Origin(digest, Arc::new(error)));
                self.fail(denied.unwrap_or(ReadError::NotFound(digest)));
            }
            Some(News::NotFound) => {}
            Some(News::Alone) => {
                self.finding = None;
                self.without_control(Leave::Alone);
            }
        }
    }

    /// Takes candidates, without those that have lied to this node.
    pub(super) fn name(&self, mut parents: Vec<Parent>) {
        parents.retain(|parent| !self.inner.liars.is_parent(&parent.node, self.inner.config.shun));
        self.parents.send_replace(parents.into());
    }

    /// Whether an author's word counts. If not the flight is over: nothing of that author reaches a reader here.
    async fn believes(&mut self, author: &NodeId) -> bool {
        let lied = self.inner.liars.is_author(author, self.inner.config.shun);
        if lied {
            tracing::warn!(digest = %self.flight.digest(), %author, "a piece list of an author that has lied to this node");
            self.throw_away().await;
        }
        !lied
    }

    /// An author turned out to be a liar: whatever else came by its lists goes too.
    pub(super) async fn on_liar(&mut self) {
        if let Some(author) = self.flight.body(|body| body.author.clone()) {
            self.believes(&author).await;
        }
    }

    /// What an earlier flight left on disk is there at once: readers get it, and only the rest is asked for.
    pub(super) async fn resume(&mut self) {
        let digest = self.flight.digest();
        let left = self.inner.store.partials().into_iter().find(|(left, _)| *left == digest);
        if let Some((_, size)) = left {
            let me = self.inner.me.clone();
            self.begin(size, "", &me).await;
        }
    }

    /// Size and media type are known: makes room, and lets swarm and hash begin. False: the flight is over.
    pub(super) async fn begin(&mut self, size: u64, media_type: &str, author: &NodeId) -> bool {
        let digest = self.flight.digest();
        if let Some(layout) = self.flight.layout() {
            if layout.size() == size {
                self.flight.learn_type(media_type);
                return true;
            }
            tracing::warn!(%digest, %author, size, known = layout.size(), "author contradicts the known size");
            self.contradiction().await;
            return false;
        }
        let layout = match Layout::of(size) {
            Ok(layout) => layout,
            Err(error) => {
                self.fail(ReadError::NotKept(digest, error.to_string()));
                return false;
            }
        };
        let partial = match self.partial(&digest, layout).await {
            Ok(partial) => partial,
            Err(error) => {
                self.give_back_all().await;
                self.fail(store_failed(digest, &error));
                return false;
            }
        };
        self.flight.begin(layout, media_type.into(), author.clone(), partial);
        // What was left on disk may be of another author.
        let of = self.flight.body(|body| body.author.clone()).unwrap_or_else(|| author.clone());
        if !self.believes(&of).await {
            return false;
        }
        self.follow();
        true
    }

    /// The partial blob on disk. A flight that ended a moment ago may still be tidying up there.
    async fn partial(&self, digest: &Digest, layout: Layout) -> Result<Arc<dyn Partial>, StoreError> {
        let until = Instant::now() + TIDYING;
        loop {
            match self.inner.store.partial(digest, layout).await {
                Err(StoreError::Busy(_)) if Instant::now() < until => tokio::time::sleep(TIDYING / 50).await,
                opened => return opened,
            }
        }
    }

    /// Another author vouches for the list from now on: hashes of blocks that are not here yet are forgotten.
    pub(super) fn take_author(&self, author: NodeId) {
        self.flight.change(|body| {
            if body.author == author {
                return;
            }
            let mut list = PieceList::new(body.layout);
            for block in body.have.runs().iter().flat_map(shoal_proto::frame::Run::blocks) {
                if let Some(hash) = body.list.get(block) {
                    list.set(block, *hash).expect("the list is empty and the block exists");
                }
            }
            body.list = list;
            body.author = author;
        });
    }

    /// Gets the body of a sealed list, when the list is not complete already: from whole parents, or from some that still fetch.
    /// Of a crowd only a few may be told of those that hold the blob, and all of it must come to its hashes.
    pub(super) fn want_list_body(&mut self) {
        let (Some((_, root)), None) = (&self.sealed, &self.list_body) else { return };
        let Some((layout, complete)) = self.flight.body(|body| (body.layout, body.list.is_complete())) else { return };
        let parents = with_list(&self.parents.borrow(), rand::random::<u32>() as usize);
        if complete || parents.is_empty() {
            return;
        }
        let (peers, digest, root) = (Arc::clone(&self.inner.peers), self.flight.digest(), *root);
        let events = self.events.0.clone();
        self.list_body = Some(start(async move { peers.fetch_list(digest, layout, root, parents, events).await }));
    }

    /// A known parent holds the blob whole and vouches for its list, or none does.
    pub(super) async fn on_located(&mut self, located: Option<Located>) {
        // Control is back and named others, or the origin is read already.
        if (self.finding.is_some() && self.refused.is_none()) || !self.reads.is_empty() {
            return;
        }
        let Some((Located { parent, size, media_type, list }, root)) =
            located.and_then(|located| Some((located.list.root()?, located))).map(|(root, located)| (located, root))
        else {
            return if self.finding.is_none() {
                self.without_control(Leave::NoControl)
            };
        };
        if let Some(hint) = self.flight.size_hint.get().filter(|hint| **hint != size) {
            tracing::warn!(digest = %self.flight.digest(), node = %parent.node, said = size, manifest = hint, "a known parent says another size than the manifest");
            return if self.finding.is_none() {
                self.without_control(Leave::NoControl)
            };
        }
        tracing::debug!(digest = %self.flight.digest(), node = %parent.node, "located without control");
        if !self.begin(size, &media_type, &parent.node).await {
            return;
        }
        self.inner.metrics.located.inc();
        self.sealed = Some((parent.node.clone(), root));
        self.grown.1 = Instant::now();
        if self.finding.is_none() {
            self.parents.send_replace(Arc::from([parent]));
        }
        self.refused = None;
        self.on_list(Some(Ok(list))).await;
    }

    /// Lets swarm and hash begin, from what is there.
    fn follow(&mut self) {
        let Some(layout) = self.flight.layout() else { return };
        self.closing = Some(start(close::follow(Arc::clone(&self.flight))));
        let ground = Field { flight: Arc::clone(&self.flight), layout, metrics: self.inner.metrics.clone() };
        let (peers, parents, events) = (Arc::clone(&self.inner.peers), self.parents.subscribe(), self.events.0.clone());
        self.swarm = Some(start(async move { peers.fetch(Arc::new(ground), parents, events).await }));
    }

    pub(super) async fn on_list(&mut self, list: Option<Result<PieceList, ListError>>) {
        let list = match list {
            Some(Ok(list)) => list,
            Some(Err(error)) => return tracing::debug!(%error, "fetch piece list"),
            None => return,
        };
        let author = self.sealed.as_ref().map(|(author, _)| author.clone());
        match self.flight.replace_list(&list, author).await {
            Ok(false) => {}
            // What was hashed may be gone, and whoever fetched may have ended: both begin again.
            Ok(true) => self.follow(),
            Err(Contradicted::Read) => {
                // One of two authors lied, and a reader has bytes of the first: it must not get a complete body.
                tracing::warn!(digest = %self.flight.digest(), "a sealed list contradicts bytes that were read");
                self.contradiction().await;
            }
            Err(Contradicted::Store(error)) => self.fail(error),
        }
    }
}
