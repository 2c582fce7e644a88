//! A blob, a place to fetch it to, a shelf to serve it from, and peers that misbehave.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use node_proxy::blob::ReadError;
use node_proxy::peer::{self, Offer, Offers, Peer};
use node_proxy::swarm::{self, Event, Ground, Halt, Parent, ParentAddr, Survey, Swarm};
use parking_lot::Mutex;
use shoal_base::drain::{self, Trigger};
use shoal_proto::frame::{Frame, FrameCodec, FrameError, Hello};
use shoal_proto::{BlockIndex, BlockSet, Digest, Hash, Layout, NodeId, PieceList};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::codec::Framed;

pub(crate) const BLOCK: u64 = 256 << 10;
/// Everything in these tests is a matter of milliseconds; this bound only ends a test that hangs.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

pub(crate) fn hello(cluster: &str, node: &str) -> Hello {
    Hello { cluster: cluster.parse().unwrap(), node: node.parse().unwrap(), epoch: 1 }
}

pub(crate) fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

/// Waits until it is so.
pub(crate) async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(BOUND, async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

/// Random bytes with a name and a list.
#[derive(Clone)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) layout: Layout,
    pub(crate) bytes: Bytes,
    pub(crate) list: PieceList,
}

impl Blob {
    pub(crate) fn of(size: u64) -> Self {
        let layout = Layout::of(size).unwrap();
        let mut bytes = vec![0; size as usize];
        blake3::Hasher::new().update(&size.to_le_bytes()).finalize_xof().fill(&mut bytes);
        let mut list = PieceList::new(layout);
        let bytes = Bytes::from(bytes);
        for block in 0..layout.blocks() {
            list.set(block, PieceList::hash(&part(&bytes, layout, block))).unwrap();
        }
        Self { digest: Digest::from_bytes(PieceList::hash(&bytes)), layout, bytes, list }
    }

    pub(crate) fn root(&self) -> Hash {
        self.list.root().unwrap()
    }
}

fn part(bytes: &Bytes, layout: Layout, block: BlockIndex) -> Bytes {
    let range = layout.block_range(block);
    bytes.slice(range.start as usize..range.end as usize)
}

/// Where a fetch puts its blocks.
pub(crate) struct Field {
    digest: Digest,
    layout: Layout,
    list: Mutex<PieceList>,
    blocks: Mutex<BTreeMap<BlockIndex, Bytes>>,
    pub(crate) brought: Mutex<HashMap<NodeId, u32>>,
    changed: watch::Sender<u64>,
    pub(crate) halt: AtomicBool,
}

impl Field {
    /// Empty, with the whole list known.
    pub(crate) fn of(blob: &Blob) -> Arc<Self> {
        Self::knowing(blob, blob.list.clone())
    }

    pub(crate) fn knowing(blob: &Blob, list: PieceList) -> Arc<Self> {
        Arc::new(Self {
            digest: blob.digest,
            layout: blob.layout,
            list: Mutex::new(list),
            blocks: Mutex::default(),
            brought: Mutex::default(),
            changed: watch::Sender::new(0),
            halt: AtomicBool::new(false),
        })
    }

    pub(crate) fn learn(&self, block: BlockIndex, hash: Hash) {
        self.list.lock().set(block, hash).unwrap();
        self.changed.send_modify(|n| *n += 1);
    }

    pub(crate) fn len(&self) -> u32 {
        self.blocks.lock().len() as u32
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.blocks.lock().values().flat_map(|bytes| bytes.to_vec()).collect()
    }

    pub(crate) fn brought(&self, by: &str) -> u32 {
        self.brought.lock().get(&node(by)).copied().unwrap_or(0)
    }
}

#[async_trait::async_trait]
impl Ground for Field {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn layout(&self) -> Layout {
        self.layout
    }

    fn expected(&self, block: BlockIndex) -> Option<Hash> {
        self.list.lock().get(block).copied()
    }

    fn has(&self, block: BlockIndex) -> bool {
        self.blocks.lock().contains_key(&block)
    }

    fn survey(&self) -> Survey {
        let (mut done, mut known) = (BlockSet::empty(self.layout), BlockSet::empty(self.layout));
        self.blocks.lock().keys().for_each(|block| assert!(done.insert(*block)));
        let list = self.list.lock();
        (0..self.layout.blocks())
            .filter(|block| list.get(*block).is_some())
            .for_each(|block| assert!(known.insert(block)));
        let focuses = vec![done.first_missing(0)];
        Survey { done, known, focuses }
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    async fn accept(&self, block: BlockIndex, bytes: Bytes, from: &NodeId) -> Result<(), Halt> {
        if self.halt.load(Ordering::Relaxed) {
            return Err(Halt);
        }
        assert_eq!(Some(PieceList::hash(&bytes)), self.expected(block), "an unchecked block was handed over (I1)");
        assert!(self.blocks.lock().insert(block, bytes).is_none(), "block {block} was handed over twice");
        *self.brought.lock().entry(from.clone()).or_default() += 1;
        self.changed.send_modify(|n| *n += 1);
        Ok(())
    }
}

/// One blob to serve, in full or growing, honest or not.
pub(crate) struct Book {
    blob: Blob,
    list: PieceList,
    have: Mutex<BlockSet>,
    changed: watch::Sender<u64>,
    over: AtomicBool,
    /// Blocks whose bytes are wrong.
    lies: Vec<BlockIndex>,
    pub(crate) reads: AtomicU32,
    /// After so many blocks reading takes for ever.
    stuck_after: AtomicU32,
}

impl Book {
    pub(crate) fn whole(blob: &Blob) -> Arc<Self> {
        Arc::new(Self::build(blob, BlockSet::full(blob.layout)))
    }

    pub(crate) fn empty(blob: &Blob) -> Arc<Self> {
        Arc::new(Self::build(blob, BlockSet::empty(blob.layout)))
    }

    pub(crate) fn lying(blob: &Blob, lies: Vec<BlockIndex>) -> Arc<Self> {
        let mut book = Self::build(blob, BlockSet::full(blob.layout));
        book.lies = lies;
        Arc::new(book)
    }

    pub(crate) fn listing(blob: &Blob, list: PieceList) -> Arc<Self> {
        let mut book = Self::build(blob, BlockSet::full(blob.layout));
        book.list = list;
        Arc::new(book)
    }

    pub(crate) fn stuck(blob: &Blob, after: u32) -> Arc<Self> {
        let book = Self::build(blob, BlockSet::full(blob.layout));
        book.stuck_after.store(after, Ordering::Relaxed);
        Arc::new(book)
    }

    fn build(blob: &Blob, have: BlockSet) -> Self {
        Self {
            list: blob.list.clone(),
            blob: blob.clone(),
            have: Mutex::new(have),
            changed: watch::Sender::new(0),
            over: AtomicBool::new(false),
            lies: Vec::new(),
            reads: AtomicU32::new(0),
            stuck_after: AtomicU32::new(u32::MAX),
        }
    }

    pub(crate) fn grow(&self, block: BlockIndex) {
        self.have.lock().insert(block);
        self.changed.send_modify(|n| *n += 1);
    }

    pub(crate) fn fail(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.changed.send_modify(|n| *n += 1);
    }

    pub(crate) fn unstick(&self) {
        self.stuck_after.store(u32::MAX, Ordering::Relaxed);
        self.changed.send_modify(|n| *n += 1);
    }
}

struct Open(Arc<Book>);

#[async_trait::async_trait]
impl Offer for Open {
    fn layout(&self) -> Layout {
        self.0.blob.layout
    }

    fn media_type(&self) -> &str {
        "application/vnd.oci.image.layer.v1.tar+gzip"
    }

    fn is_whole(&self) -> bool {
        self.0.have.lock().is_full()
    }

    async fn list(&self) -> Result<PieceList, ReadError> {
        Ok(self.0.list.clone())
    }

    fn have(&self) -> BlockSet {
        self.0.have.lock().clone()
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    fn is_over(&self) -> bool {
        self.0.over.load(Ordering::Relaxed)
    }

    async fn read_block(&self, block: BlockIndex) -> Result<Bytes, ReadError> {
        assert!(self.0.have.lock().contains(block), "block {block} is not there yet");
        let read = self.0.reads.fetch_add(1, Ordering::Relaxed);
        let mut changed = self.0.changed.subscribe();
        while read >= self.0.stuck_after.load(Ordering::Relaxed) {
            let _ = changed.changed().await;
        }
        let bytes = part(&self.0.blob.bytes, self.0.blob.layout, block);
        if !self.0.lies.contains(&block) {
            return Ok(bytes);
        }
        let mut wrong = bytes.to_vec();
        wrong[0] ^= 1;
        Ok(wrong.into())
    }
}

/// What a parent has.
#[derive(Default)]
pub(crate) struct Shelf(Mutex<HashMap<Digest, Arc<Book>>>);

impl Shelf {
    pub(crate) fn put(&self, book: &Arc<Book>) {
        self.0.lock().insert(book.blob.digest, book.clone());
    }
}

#[async_trait::async_trait]
impl Offers for Shelf {
    async fn offer(&self, digest: &Digest) -> Option<Arc<dyn Offer>> {
        let book = self.0.lock().get(digest).cloned()?;
        Some(Arc::new(Open(book)))
    }
}

/// A running parent.
pub(crate) struct Running {
    pub(crate) parent: Parent,
    pub(crate) peer: Arc<Peer>,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) me: watch::Sender<Option<Hello>>,
    pub(crate) drain: Trigger,
    pub(crate) running: JoinHandle<()>,
}

impl Running {
    /// Connections of children now.
    pub(crate) fn connections(&self) -> u64 {
        self.peer.load().connections
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.running.abort();
    }
}

pub(crate) fn peer_config() -> peer::Config {
    peer::Config {
        allow: vec!["127.0.0.0/8".parse().unwrap()],
        wait_every: Duration::from_millis(10),
        have_every: Duration::from_millis(5),
        ..peer::Config::default()
    }
}

pub(crate) async fn parent_with(name: &str, config: peer::Config, me: Option<Hello>, books: &[&Arc<Book>]) -> Running {
    let shelf = Arc::new(Shelf::default());
    books.iter().for_each(|book| shelf.put(book));
    let me = watch::Sender::new(me);
    let peer = Peer::new(config, me.subscribe(), shelf.clone(), peer::Metrics::default());
    let (listener, parent) = listen(name).await;
    let (trigger, drain) = drain::channel();
    let running = tokio::spawn(peer.clone().run(listener, drain));
    Running { parent, peer, shelf, me, drain: trigger, running }
}

/// A parent of cluster `a`.
pub(crate) async fn parent(name: &str, books: &[&Arc<Book>]) -> Running {
    parent_with(name, peer_config(), Some(hello("a", name)), books).await
}

async fn listen(name: &str) -> (TcpListener, Parent) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = ParentAddr(listener.local_addr().unwrap());
    (listener, Parent { node: node(name), addr, complete: true })
}

/// One end of a connection, spoken by hand.
pub(crate) type Wire = Framed<TcpStream, FrameCodec>;

/// A parent that does with each connection what `talk` does.
pub(crate) async fn rogue<F, T>(name: &str, talk: T) -> (Parent, JoinHandle<()>)
where
    T: Fn(Wire) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (listener, parent) = listen(name).await;
    let running = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(talk(Framed::new(stream, FrameCodec::default())));
        }
    });
    (parent, running)
}

/// What a parent says until it has shown that it has everything.
pub(crate) async fn show_all(wire: &mut Wire, me: Hello, layout: Layout) -> Option<()> {
    wire.next().await?.ok()?;
    wire.send(Frame::Hello(me)).await.ok()?;
    wire.next().await?.ok()?;
    wire.send(Frame::Blob { size: layout.size(), media_type: String::new(), whole: true }).await.ok()?;
    wire.send(Frame::Have(BlockSet::full(layout).runs())).await.ok()
}

/// Connects by hand.
pub(crate) async fn dial(addr: SocketAddr) -> Wire {
    Framed::new(TcpStream::connect(addr).await.unwrap(), FrameCodec::default())
}

/// Connects by hand, as node `child` of cluster `a`.
pub(crate) async fn dial_in(addr: SocketAddr) -> Wire {
    let mut wire = dial(addr).await;
    wire.send(Frame::Hello(hello("a", "child"))).await.unwrap();
    assert!(matches!(next(&mut wire).await, Some(Ok(Frame::Hello(_)))));
    wire
}

pub(crate) async fn next(wire: &mut Wire) -> Option<Result<Frame, FrameError>> {
    tokio::time::timeout(BOUND, wire.next()).await.expect("a frame or the end")
}

/// A child of cluster `a` and the sender that moves it.
pub(crate) fn child() -> (Arc<Swarm>, watch::Sender<Option<Hello>>) {
    child_with(swarm::Config::default())
}

pub(crate) fn child_with(config: swarm::Config) -> (Arc<Swarm>, watch::Sender<Option<Hello>>) {
    let me = watch::Sender::new(Some(hello("a", "child")));
    (Swarm::new(config, me.subscribe(), swarm::Metrics::default()), me)
}

/// A fetch that runs.
pub(crate) struct Fetching {
    pub(crate) parents: watch::Sender<Arc<[Parent]>>,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) running: JoinHandle<Result<(), Halt>>,
}

pub(crate) fn fetch(swarm: &Arc<Swarm>, ground: &Arc<Field>, parents: &[&Parent]) -> Fetching {
    let parents: watch::Sender<Arc<[Parent]>> = watch::Sender::new(parents.iter().copied().cloned().collect());
    let (tell, events) = mpsc::channel(1024);
    let (swarm, ground, named) = (swarm.clone(), ground.clone(), parents.subscribe());
    let running = tokio::spawn(async move { swarm.fetch(ground, named, tell).await });
    Fetching { parents, events, running }
}

impl Fetching {
    /// Waits for the end and gives what was reported.
    pub(crate) async fn done(mut self) -> (Result<(), Halt>, Vec<Event>) {
        let end = tokio::time::timeout(BOUND, &mut self.running).await.expect("the fetch ends").unwrap();
        let mut events = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            events.push(event);
        }
        (end, events)
    }

    /// The next time a parent is lost, and why.
    pub(crate) async fn lost(&mut self) -> (NodeId, String) {
        loop {
            match tokio::time::timeout(BOUND, self.events.recv()).await.expect("an event").expect("the fetch goes on") {
                Event::Lost { node, why } => return (node, why),
                Event::Serving { .. } => {}
                Event::Lied { node, block } => panic!("{node} lied about {block}"),
                Event::LiedOfList { node } => panic!("{node} lied about the list"),
            }
        }
    }
}
