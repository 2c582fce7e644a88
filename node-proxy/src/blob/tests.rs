//! The engine among in-process nodes: a registry, a control and peers that are small but real.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use sha2::Digest as _;
use shoal_proto::{Digest, Hash, Kind, Layout, NodeId, PieceList};
use tokio::sync::{mpsc, watch};

use self::control::Swarm;
use super::*;
use crate::origin::{OriginError, Target};
use crate::store::Memory;
use crate::swarm::{
    Ask, Event, FindError, Finding, Grant, Ground, ListError, Located, News, OriginTrouble, Parent, ParentAddr,
    Sighting, Tell,
};

mod control;
mod dismissed;
mod liars;
mod offers;
mod origin_fails;
mod private;
mod runs;
mod unproven;

const BLOCK: usize = 256 << 10;

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(sha2::Sha256::digest(bytes).into())
}

fn content(len: usize, seed: u8) -> Bytes {
    (0..len).map(|at| (at / 251) as u8 ^ (at as u8).wrapping_mul(31) ^ seed).collect::<Vec<u8>>().into()
}

fn target() -> Target {
    Target { registry: "registry.example".parse().unwrap(), repository: "lab/app".parse().unwrap() }
}

fn want(digest: Digest) -> Want {
    Want { digest, target: target(), kind: Kind::Blob, who: origin::Who::Anybody }
}

fn caller(token: &str) -> origin::Who {
    origin::Who::Caller(origin::Credential::new(http::HeaderValue::try_from(token).unwrap()))
}

/// A registry in memory. `cut` ends the next body after so many bytes.
#[derive(Default)]
struct Registry {
    blobs: Mutex<HashMap<Digest, Bytes>>,
    reads: AtomicUsize,
    bytes: Arc<AtomicUsize>,
    cut: Mutex<Option<usize>>,
    stuck: AtomicBool,
    /// Every read fails.
    failing: AtomicBool,
    /// Between two parts of a body.
    slow: Mutex<Option<Duration>>,
    /// Gives the whole whatever range is asked for.
    ignores_ranges: AtomicBool,
    /// Only these credentials read; `None`: anybody.
    only: Mutex<Option<Vec<&'static str>>>,
}

#[async_trait::async_trait]
impl Upstream for Registry {
    async fn read(&self, want: &Want, range: Option<Range<u64>>) -> Result<Incoming, OriginError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if self.stuck.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let registry = || want.target.registry.to_string();
        if self.failing.load(Ordering::SeqCst) {
            return Err(OriginError::Unreachable { registry: registry(), why: "503".into() });
        }
        if let Some(only) = &*self.only.lock()
            && !only.iter().any(|token| want.who == caller(token))
        {
            return Err(OriginError::Unauthorized { registry: registry(), challenges: Vec::new() });
        }
        let bytes = self.blobs.lock().get(&want.digest).cloned();
        let bytes = bytes.ok_or_else(|| OriginError::NotFound { registry: registry() })?;
        let size = Some(bytes.len() as u64);
        let asked = range.clone();
        let mut body = bytes.slice(range.map_or(0..bytes.len(), |range| range.start as usize..range.end as usize));
        let cut = self.cut.lock().take();
        let mut parts: Vec<Result<Bytes, OriginError>> = Vec::new();
        if let Some(cut) = cut {
            body.truncate(cut);
        }
        while !body.is_empty() {
            parts.push(Ok(body.split_to(body.len().min(100_000))));
        }
        if cut.is_some() {
            parts.push(Err(OriginError::Unreachable { registry: registry(), why: "cut".into() }));
        }
        let counter = Arc::clone(&self.bytes);
        let ignores_ranges = asked.is_some() && self.ignores_ranges.load(Ordering::SeqCst);
        if let Some(before) = asked.filter(|_| ignores_ranges) {
            counter.fetch_add(before.start as usize, Ordering::SeqCst);
        }
        let slow = *self.slow.lock();
        let stream = futures::stream::iter(parts)
            .then(move |part| async move {
                match slow {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => tokio::task::yield_now().await,
                }
                part
            })
            .inspect(move |part| {
                if let Ok(part) = part {
                    counter.fetch_add(part.len(), Ordering::SeqCst);
                }
            });
        Ok(Incoming { size, media_type: "application/octet-stream".into(), ignores_ranges, stream: stream.boxed() })
    }
}

/// One cluster: who runs where, and a control that gives one permit per digest.
#[derive(Default)]
struct Cluster {
    engines: Mutex<HashMap<NodeId, Engine>>,
    swarms: Mutex<HashMap<Digest, Swarm>>,
    away: AtomicBool,
    mismatches: Mutex<Vec<NodeId>>,
    lies: Mutex<Vec<NodeId>>,
    next: AtomicUsize,
    /// Nodes that this one remembers while control is away, whatever they hold.
    known: Mutex<Vec<Parent>>,
    /// Permits are for runs of so many blocks; 0: to the end.
    run: AtomicU32,
    /// What flights said when they asked: whether they take runs.
    take_runs: Mutex<Vec<bool>>,
    /// A list that control hands out instead of the true one: a lying author's.
    false_list: Mutex<Option<(NodeId, u64, Vec<u8>)>>,
    /// What control hands out does not prove to be this author's.
    unproven: Mutex<Option<NodeId>>,
}

struct Source {
    cluster: Arc<Cluster>,
    me: NodeId,
}

#[async_trait::async_trait]
impl ParentSource for Source {
    async fn find(&self, ask: Ask) -> Result<Finding, FindError> {
        if self.cluster.away.load(Ordering::SeqCst) {
            return Err(FindError::Unreachable("away".into()));
        }
        let (news_tx, news) = mpsc::channel(10_000);
        let (tell, mut tells) = mpsc::channel(100);
        let id = self.cluster.next.fetch_add(1, Ordering::SeqCst);
        {
            let mut swarms = self.cluster.swarms.lock();
            let swarm = swarms.entry(ask.digest).or_default();
            self.cluster.take_runs.lock().push(ask.takes_runs);
            swarm.run = if ask.takes_runs { self.cluster.run.load(Ordering::SeqCst) } else { 0 };
            if let (Some(kept), Some(permit)) = (ask.permit, &mut swarm.permit)
                && permit.1 == kept.id
            {
                permit.0 = id;
            }
            if ask.may_read_origin {
                swarm.finders.insert(swarm.finders.len(), (id, self.me.clone(), news_tx.clone()));
            }
            let media_type = "application/octet-stream".to_owned();
            if let Some(author) = self.cluster.unproven.lock().clone() {
                let _ = news_tx.try_send(News::Refused { author });
            } else if let Some((author, size, hashes)) = self.cluster.false_list.lock().clone() {
                let _ = news_tx.try_send(News::Head { author, size, media_type });
                let _ = news_tx.try_send(News::Hashes { first: 0, hashes: hashes.into() });
            } else if let Some((author, root, size)) = swarm.sealed.clone() {
                let _ = news_tx.try_send(News::Sealed { author, root, size, media_type });
            } else if let Some((author, size)) = swarm.head.clone() {
                let _ = news_tx.try_send(News::Head { author, size, media_type });
                for (first, hashes) in swarm.hashes.clone() {
                    let _ = news_tx.try_send(News::Hashes { first, hashes });
                }
            }
            swarm.parents();
            swarm.grant();
        }
        let (cluster, me, digest) = (Arc::clone(&self.cluster), self.me.clone(), ask.digest);
        tokio::spawn(async move {
            while let Some(tell) = tells.recv().await {
                cluster.swarms.lock().entry(digest).or_default().heard(&cluster, &me, tell);
            }
            let mut swarms = cluster.swarms.lock();
            let swarm = swarms.entry(digest).or_default();
            swarm.finders.retain(|(known, ..)| *known != id);
            if swarm.permit.is_some_and(|permit| permit.0 == id) {
                swarm.permit = None;
                swarm.grant();
            }
        });
        Ok(Finding { news, tell })
    }

    fn known(&self) -> Vec<Parent> {
        self.cluster.known.lock().iter().filter(|parent| parent.node != self.me).cloned().collect()
    }
}

/// Peers in the same process: blocks come from the other engine's offer, and are checked as the swarm does.
struct Wire {
    cluster: Arc<Cluster>,
    /// Flips a bit in what this node sends.
    liar: Option<NodeId>,
}

#[async_trait::async_trait]
impl Peers for Wire {
    async fn fetch(
        &self,
        ground: Arc<dyn Ground>,
        mut parents: watch::Receiver<Arc<[Parent]>>,
        events: mpsc::Sender<Event>,
    ) {
        let mut changed = ground.changed();
        let mut shunned: Vec<NodeId> = Vec::new();
        loop {
            changed.borrow_and_update();
            let now: Vec<Parent> =
                parents.borrow_and_update().iter().filter(|parent| !shunned.contains(&parent.node)).cloned().collect();
            let mut moved = false;
            for parent in now {
                let engine = self.cluster.engines.lock().get(&parent.node).cloned();
                let Some(engine) = engine else { continue };
                let Some(offer) = engine.offer(&ground.digest()).await else { continue };
                let have = offer.have();
                for block in 0..ground.layout().blocks() {
                    let Some(expected) = ground.expected(block) else { continue };
                    if ground.has(block) || !have.contains(block) {
                        continue;
                    }
                    let Ok(mut bytes) = offer.read_block(block).await else { continue };
                    if self.liar.as_ref() == Some(&parent.node) {
                        let mut wrong = bytes.to_vec();
                        wrong[0] ^= 1;
                        bytes = wrong.into();
                    }
                    if PieceList::hash(&bytes) != expected {
                        let _ = events.send(Event::Lied { node: parent.node.clone(), block }).await;
                        shunned.push(parent.node.clone());
                        break;
                    }
                    if ground.accept(block, bytes, &parent.node).await.is_err() {
                        return;
                    }
                    moved = true;
                }
            }
            if (0..ground.layout().blocks()).all(|block| ground.has(block)) {
                return;
            }
            if !moved {
                tokio::select! {
                    _ = changed.changed() => {}
                    _ = parents.changed() => {}
                    () = tokio::time::sleep(Duration::from_millis(20)) => {}
                }
            }
        }
    }

    async fn fetch_list(
        &self,
        digest: Digest,
        layout: Layout,
        root: Hash,
        parents: Arc<[Parent]>,
        _: mpsc::Sender<Event>,
    ) -> Result<PieceList, ListError> {
        let node = parents[0].node.clone();
        let engine = self.cluster.engines.lock().get(&node).cloned();
        let lost = |why: &str| ListError::Lost { node: node.clone(), why: why.into() };
        let offer = engine.ok_or_else(|| lost("unknown"))?.offer(&digest).await.ok_or_else(|| lost("gone"))?;
        let list = offer.list().await.map_err(|error| lost(&error.to_string()))?;
        assert_eq!(list.layout(), layout);
        if list.root() == Some(root) { Ok(list) } else { Err(ListError::Lied { node }) }
    }

    async fn locate(&self, digest: Digest, parents: Vec<Parent>) -> Sighting {
        let mut seen = Sighting::Nowhere;
        for parent in parents {
            let engine = self.cluster.engines.lock().get(&parent.node).cloned();
            let Some(engine) = engine else { continue };
            let Some(offer) = engine.offer(&digest).await else { continue };
            if !offer.is_whole() {
                seen = Sighting::Part;
                continue;
            }
            let (size, media_type) = (offer.layout().size(), offer.media_type().to_owned());
            let Ok(list) = offer.list().await else { continue };
            return Sighting::Whole(Located { parent, size, media_type, list });
        }
        seen
    }
}

struct Lab {
    cluster: Arc<Cluster>,
    registry: Arc<Registry>,
    liar: Option<NodeId>,
}

impl Lab {
    fn new() -> Self {
        Self { cluster: Arc::default(), registry: Arc::default(), liar: None }
    }

    fn node(&self, name: &str) -> Engine {
        self.node_with(name, Config::default(), 0)
    }

    fn node_with(&self, name: &str, config: Config, quota: u64) -> Engine {
        self.node_on(name, config, Memory::new(quota))
    }

    fn node_on(&self, name: &str, config: Config, store: Arc<dyn Store>) -> Engine {
        let me: NodeId = name.parse().unwrap();
        let engine = Engine::new(
            config,
            Parts {
                me: me.clone(),
                store,
                upstream: Arc::clone(&self.registry) as Arc<dyn Upstream>,
                peers: Arc::new(Wire { cluster: Arc::clone(&self.cluster), liar: self.liar.clone() }),
                source: Arc::new(Source { cluster: Arc::clone(&self.cluster), me: me.clone() }),
                metrics: Metrics::default(),
            },
        );
        self.cluster.engines.lock().insert(me, engine.clone());
        engine
    }

    fn publish(&self, bytes: &Bytes) -> Digest {
        let digest = digest_of(bytes);
        self.registry.blobs.lock().insert(digest, bytes.clone());
        digest
    }

    fn reads(&self) -> usize {
        self.registry.reads.load(Ordering::SeqCst)
    }
}

async fn read(engine: &Engine, digest: Digest) -> Result<(Bytes, Sources), ReadError> {
    read_range(engine, digest, 0..u64::MAX).await
}

async fn read_range(engine: &Engine, digest: Digest, range: Range<u64>) -> Result<(Bytes, Sources), ReadError> {
    let opened = engine.open(want(digest), tokio::time::Instant::now()).await?;
    let mut reading = opened.read(range);
    let mut bytes = Vec::new();
    while let Some(part) = reading.next().await {
        bytes.extend_from_slice(&part?);
    }
    Ok((bytes.into(), reading.sources()))
}

/// Bytes until the error that must come, and the error.
async fn read_to_error(opened: &Opened) -> (usize, ReadError) {
    let mut reading = opened.read(0..u64::MAX);
    let mut got = 0;
    loop {
        match reading.next().await {
            Some(Ok(part)) => got += part.len(),
            Some(Err(error)) => return (got, error),
            None => panic!("the body is complete, {got} bytes"),
        }
    }
}

#[tokio::test]
async fn the_first_node_reads_the_origin_and_the_second_reads_the_first() {
    let lab = Lab::new();
    let (one, two) = (lab.node("one"), lab.node("two"));
    for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 77] {
        let bytes = content(len, len as u8);
        let digest = lab.publish(&bytes);
        let before = lab.reads();
        let (got, sources) = read(&one, digest).await.unwrap();
        assert_eq!((got, sources.origin), (bytes.clone(), len as u64));
        let (got, sources) = read(&two, digest).await.unwrap();
        assert_eq!((got, sources.peers, sources.origin), (bytes.clone(), len as u64, 0));
        let (got, sources) = read(&two, digest).await.unwrap();
        assert_eq!((got, sources.local), (bytes, len as u64));
        assert_eq!(lab.reads() - before, 1);
    }
}

#[tokio::test]
async fn any_number_of_readers_share_one_flight() {
    let lab = Lab::new();
    let (one, two) = (lab.node("one"), lab.node("two"));
    let bytes = content(20 * BLOCK + 5, 3);
    let digest = lab.publish(&bytes);
    let reads = (0..40).map(|at| {
        let engine = if at % 2 == 0 { one.clone() } else { two.clone() };
        async move { read(&engine, digest).await.unwrap().0 }
    });
    for got in futures::future::join_all(reads).await {
        assert_eq!(got, bytes);
    }
    assert_eq!(lab.reads(), 1);
    assert_eq!(lab.registry.bytes.load(Ordering::SeqCst), bytes.len());
}

#[tokio::test]
async fn control_hears_who_gives_how_much_while_it_comes() {
    let lab = Lab::new();
    let (one, two) = (lab.node("one"), lab.node("two"));
    let bytes = content(16 * BLOCK, 5);
    let digest = lab.publish(&bytes);
    *lab.registry.slow.lock() = Some(Duration::from_millis(20));
    let (first, second) = tokio::join!(read(&one, digest), read(&two, digest));
    assert!(first.unwrap().0 == bytes && second.unwrap().0 == bytes);
    let fed = lab.cluster.swarms.lock()[&digest].fed.clone();
    // One of them read the origin, and the other read that one.
    let giver = fed.first().expect("somebody was fed").0.clone();
    assert!(fed.iter().all(|(node, given)| *node == giver && (1..=bytes.len() as u64).contains(given)), "{fed:?}");
    assert!(fed.is_sorted_by_key(|(_, given)| *given), "all that it gave, each time: {fed:?}");
}

#[tokio::test]
async fn ranges_are_cut_out_of_the_whole() {
    let lab = Lab::new();
    let one = lab.node("one");
    let bytes = content(3 * BLOCK, 9);
    let digest = lab.publish(&bytes);
    for range in [0..1, 5..(BLOCK as u64 + 9), (2 * BLOCK as u64)..u64::MAX, 7..7] {
        let (got, _) = read_range(&one, digest, range.clone()).await.unwrap();
        let end = range.end.min(bytes.len() as u64) as usize;
        assert_eq!(got, bytes.slice(range.start as usize..end));
    }
}

#[tokio::test]
async fn i4_with_control_away_a_known_peer_gives_what_it_holds_and_the_origin_the_rest() {
    let lab = Lab::new();
    let (one, two) = (lab.node("one"), lab.node("two"));
    let (held, other) = (content(5 * BLOCK + 9, 7), content(BLOCK, 8));
    let [held_digest, other_digest] = [&held, &other].map(|bytes| lab.publish(bytes));
    read(&one, held_digest).await.unwrap();
    lab.cluster.away.store(true, Ordering::SeqCst);
    let addr = ParentAddr(([127, 0, 0, 1], 1).into());
    let known = ["one", "two"].map(|name| Parent { node: name.parse().unwrap(), addr, complete: true });
    *lab.cluster.known.lock() = known.into();
    let (got, sources) = read(&two, held_digest).await.unwrap();
    assert_eq!((got, sources.peers, sources.origin), (held.clone(), held.len() as u64, 0));
    let (got, sources) = read(&two, other_digest).await.unwrap();
    assert_eq!((got, sources.origin), (other.clone(), other.len() as u64));
    assert_eq!(lab.reads(), 2);
}

#[tokio::test]
async fn i4_with_control_away_a_known_peer_that_still_reads_is_waited_for() {
    let lab = Lab::new();
    let (one, two) = (lab.node("one"), lab.node("two"));
    let bytes = content(5 * BLOCK + 9, 7);
    let digest = lab.publish(&bytes);
    lab.cluster.away.store(true, Ordering::SeqCst);
    let addr = ParentAddr(([127, 0, 0, 1], 1).into());
    *lab.registry.slow.lock() = Some(Duration::from_millis(30));
    let first = tokio::spawn(async move { read(&one, digest).await });
    while lab.registry.bytes.load(Ordering::SeqCst) < BLOCK {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    *lab.cluster.known.lock() = vec![Parent { node: "one".parse().unwrap(), addr, complete: true }];
    let (got, sources) = read(&two, digest).await.unwrap();
    assert_eq!((got, sources.peers, sources.origin), (bytes.clone(), bytes.len() as u64, 0));
    assert_eq!(first.await.unwrap().unwrap().0, bytes);
    assert_eq!(lab.reads(), 1);
}

#[tokio::test]
async fn i1_a_known_peer_that_vouches_for_wrong_bytes_never_completes_a_body() {
    let lab = Lab::new();
    let bytes = content(3 * BLOCK, 7);
    let digest = lab.publish(&bytes);
    lab.cluster.away.store(true, Ordering::SeqCst);
    // It holds other bytes under the digest, and its list agrees with them.
    let wrong = content(3 * BLOCK, 9);
    let store = Memory::new(0);
    let layout = Layout::of(wrong.len() as u64).unwrap();
    let partial = store.partial(&digest, layout).await.unwrap();
    let mut list = PieceList::new(layout);
    for block in 0..layout.blocks() {
        let part = wrong.slice(block as usize * BLOCK..(block as usize + 1) * BLOCK);
        list.set(block, PieceList::hash(&part)).unwrap();
        partial.write(block, part).await.unwrap();
    }
    let notes = crate::store::Notes { list, author: "liar".parse().unwrap(), media_type: "".into() };
    partial.commit(&notes).await.unwrap();
    lab.node_on("liar", Config::default(), store);
    let addr = ParentAddr(([127, 0, 0, 1], 1).into());
    *lab.cluster.known.lock() = vec![Parent { node: "liar".parse().unwrap(), addr, complete: true }];
    let two = lab.node("two");
    // It may be found out before the reader is told the size: then the reader gets no body at all.
    let (got, error) = match two.open(want(digest), tokio::time::Instant::now()).await {
        Err(error) => (0, error),
        Ok(opened) => read_to_error(&opened).await,
    };
    assert!(matches!(error, ReadError::Mismatched(_)), "{error}");
    assert!(got <= 2 * BLOCK, "{got}: the last block was given");
    assert!(two.held(&digest).is_none());
    // What else it holds is not asked of it: it vouched for a lie.
    let other = content(2 * BLOCK, 11);
    let name = lab.publish(&other);
    let liar = lab.cluster.engines.lock().get(&"liar".parse::<NodeId>().unwrap()).cloned().unwrap();
    read(&liar, name).await.unwrap();
    let (got, sources) = read(&two, name).await.unwrap();
    assert_eq!((got, sources.origin, sources.peers), (other.clone(), other.len() as u64, 0));
}

#[tokio::test]
async fn a_lying_parent_costs_nothing_and_is_named() {
    let mut lab = Lab::new();
    let one = lab.node("one");
    let bytes = content(4 * BLOCK, 6);
    let digest = lab.publish(&bytes);
    read(&one, digest).await.unwrap();
    lab.liar = Some("one".parse().unwrap());
    let two = lab.node("two");
    // Once control drops the liar, the origin is read again: here by a permit that the test gives.
    let reading = tokio::spawn(async move { read(&two, digest).await });
    while lab.cluster.lies.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    {
        let mut swarms = lab.cluster.swarms.lock();
        let swarm = swarms.get_mut(&digest).unwrap();
        swarm.holders.clear();
        swarm.grant();
    }
    assert_eq!(reading.await.unwrap().unwrap().0, bytes);
    assert_eq!(*lab.cluster.lies.lock(), ["one".parse().unwrap()]);
}

#[tokio::test]
async fn i1_a_lying_author_never_completes_a_body_and_nobody_holds_the_blob() {
    let lab = Lab::new();
    let (one, two) = (lab.node("one"), lab.node("two"));
    let (bytes, lie) = (content(3 * BLOCK, 7), content(3 * BLOCK, 8));
    let digest = lab.publish(&bytes);
    // A holder of other bytes vouches for their list under this digest.
    let lie_digest = lab.publish(&lie);
    read(&one, lie_digest).await.unwrap();
    let hashes: Vec<u8> = lie.chunks(BLOCK).flat_map(PieceList::hash).collect();
    *lab.cluster.false_list.lock() = Some(("one".parse().unwrap(), lie.len() as u64, hashes));
    let liar = one.clone();
    let opened = two.open(want(digest), tokio::time::Instant::now()).await.unwrap();
    let flight = two.0.flights.lock().get(&digest).cloned().unwrap();
    for block in 0..3 {
        let offer = liar.offer(&lie_digest).await.unwrap();
        flight.put(block, offer.read_block(block).await.unwrap(), flight::From::Peer).await.unwrap();
    }
    let (got, error) = read_to_error(&opened).await;
    assert!(matches!(error, ReadError::Mismatched(_)), "{error}");
    assert!(got <= 2 * BLOCK);
    assert_eq!(*lab.cluster.mismatches.lock(), ["one".parse().unwrap()]);
    assert!(two.0.store.held(&digest).is_none());
    assert!(two.offer(&digest).await.is_none());
    assert!(matches!(
        two.open(want(digest), tokio::time::Instant::now()).await.err().unwrap(),
        ReadError::Mismatched(_)
    ));
}

/// The flight before has failed, and writes down what it leaves: the next one must not fail for that.
#[tokio::test]
async fn a_flight_waits_for_the_one_before_it_to_leave_the_disk() {
    let lab = Lab::new();
    let bytes = content(3 * BLOCK, 1);
    let digest = lab.publish(&bytes);
    let store = Memory::new(0);
    let node = lab.node_on("a", Config::default(), store.clone());
    let left = store.partial(&digest, Layout::of(bytes.len() as u64).unwrap()).await.unwrap();
    let leaves = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(left);
    });
    assert_eq!(read(&node, digest).await.unwrap().0, bytes);
    leaves.await.unwrap();
}

#[tokio::test]
async fn i11_a_blob_above_the_quota_is_not_kept() {
    let lab = Lab::new();
    let one = lab.node_with("one", Config::default(), BLOCK as u64);
    let digest = lab.publish(&content(2 * BLOCK, 1));
    let error = read(&one, digest).await.unwrap_err();
    assert!(matches!(error, ReadError::NotKept(..)), "{error}");
}

#[tokio::test]
async fn an_image_manifest_makes_its_blobs_fly() {
    let lab = Lab::new();
    let one = lab.node("one");
    let layers: Vec<Digest> = (0..5).map(|seed| lab.publish(&content(BLOCK, seed))).collect();
    let config = lab.publish(&content(10, 99));
    let describe = |digest: &Digest, size: usize, kind: &str| serde_json::json!({"mediaType": kind, "digest": digest.to_string(), "size": size});
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": describe(&config, 10, "application/vnd.oci.image.config.v1+json"),
        "layers": layers.iter().map(|digest| describe(digest, BLOCK, "application/x")).collect::<Vec<_>>(),
    });
    let manifest = lab.publish(&Bytes::from(manifest.to_string()));
    let wanted = Want { kind: Kind::Manifest, ..want(manifest) };
    let opened = one.open(wanted.clone(), tokio::time::Instant::now()).await.unwrap();
    one.look_ahead(&one.named_by(&opened).await, &wanted);
    let all = || layers.iter().chain([&config]).all(|digest| one.0.store.held(digest).is_some());
    tokio::time::timeout(Duration::from_secs(10), async {
        while !all() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(lab.reads(), 7);
}
