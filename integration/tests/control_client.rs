//! The node's client of control against the real control service, over loopback.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control::api::grpc::Gate;
use control::clusters::{Cluster, ClusterSet};
use control::nodes::{self, Nodes};
use control::preheat::Preheats;
use control::swarm::Swarm;
use futures::FutureExt as _;
use node_proxy::control::{Client, Config, Difference, Holding, Load, Metrics, Node, Order, Outcome, Progress};
use node_proxy::swarm::{Ask, FindError, Finding, Grant, News, OriginTrouble, ParentSource as _, Tell};
use shoal_base::drain::{self, Trigger};
use shoal_base::tls::Mode;
use shoal_proto::{Digest, Kind};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

#[path = "control_client/secured.rs"]
mod secured;
#[path = "control_client/versions.rs"]
mod versions;

const BOUND: Duration = Duration::from_secs(10);
const BLOCK: u64 = 256 << 10;

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, future).await.expect("takes longer than 10 s")
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < BOUND, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn set(idc: &str) -> Arc<ClusterSet> {
    let cluster = |id: &str, seq, default, idc: &str| Cluster {
        id: id.parse().unwrap(),
        seq,
        version: 1,
        name: id.to_uppercase(),
        default,
        idc: idc.into(),
        location: String::new(),
        cidrs: Vec::new(),
    };
    Arc::new(ClusterSet::new(1, vec![cluster("a", 0, true, ""), cluster("b", 1, false, idc)]).unwrap())
}

struct Control {
    addr: SocketAddr,
    clusters: watch::Sender<Arc<ClusterSet>>,
    swarm: Arc<Swarm>,
    nodes: Arc<Nodes>,
    preheats: Arc<Preheats>,
    connections: control::api::grpc::Metrics,
    trigger: Trigger,
    server: JoinHandle<std::io::Result<()>>,
}

impl Control {
    async fn start(addr: &str) -> Self {
        let listener = shoal_base::listen::bind(addr.parse().unwrap()).unwrap();
        Self::on(listener)
    }

    fn on(listener: TcpListener) -> Self {
        Self::with(listener, Gate::open())
    }

    fn with(listener: TcpListener, gate: Gate) -> Self {
        let addr = listener.local_addr().unwrap();
        let (clusters, receiver) = watch::channel(set("west"));
        let swarm = Arc::new(Swarm::new(control::swarm::Metrics::default()));
        let metrics = nodes::Metrics::default();
        let nodes = Arc::new(Nodes::new(nodes::Config::default(), receiver, swarm.clone(), metrics));
        let (trigger, drain) = drain::channel();
        tokio::spawn(nodes.clone().run(drain.clone()));
        tokio::spawn(swarm.clone().run(nodes.clone(), drain.clone()));
        let (config, connections) = (control::api::grpc::Config::default(), control::api::grpc::Metrics::default());
        let store = Arc::new(control::store::MemoryStore::default());
        let preheats = Preheats::open(store, nodes.clone(), control::preheat::Metrics::default());
        let preheats = preheats.now_or_never().expect("a store in memory answers at once").unwrap();
        tokio::spawn(preheats.clone().run(drain.clone()));
        let parts = control::api::grpc::Parts {
            nodes: nodes.clone(),
            swarm: swarm.clone(),
            preheats: preheats.clone(),
            gate,
            metrics: connections.clone(),
        };
        let server = tokio::spawn(control::api::grpc::run(listener, config, parts, drain));
        Self { addr, clusters, swarm, nodes, preheats, connections, trigger, server }
    }

    async fn stop(self) {
        self.trigger.fire();
        within(self.server).await.unwrap().unwrap();
    }
}

struct Disk(Vec<Holding>);

impl Node for Disk {
    fn holdings(&self) -> Vec<Holding> {
        self.0.clone()
    }

    fn load(&self) -> Load {
        Load { uploads: 1, upload_slots: 8, from_peers: 42, ..Load::default() }
    }
}

struct Daemon {
    client: Arc<Client>,
    differences: mpsc::Sender<Difference>,
    _trigger: Trigger,
}

fn daemon(addr: SocketAddr, state: &Path, idc: &str, held: &[u8]) -> Daemon {
    started(config(addr, state, idc), held)
}

fn config(addr: SocketAddr, state: &Path, idc: &str) -> Config {
    Config {
        endpoint: Some(format!("http://{addr}").parse().unwrap()),
        tls: Mode::Off,
        join: None,
        state_dir: state.to_owned(),
        name: "host".into(),
        advertise: None,
        idc: idc.into(),
        location: String::new(),
        pinned: String::new(),
        seed: false,
        peer_port: 5081,
    }
}

fn started(config: Config, held: &[u8]) -> Daemon {
    let client = Client::open(config, Metrics::default()).unwrap();
    let (differences, receiver) = mpsc::channel(16);
    let (trigger, drain) = drain::channel();
    let disk = Disk(held.iter().map(|number| holding(*number)).collect());
    tokio::spawn(client.clone().run(Arc::new(disk), receiver, drain));
    Daemon { client, differences, _trigger: trigger }
}

fn digest(number: u8) -> Digest {
    Digest::from_bytes([number; 32])
}

fn holding(number: u8) -> Holding {
    Holding { digest: digest(number), size: 2 * BLOCK, root: [7; 32], media_type: "text/plain".into() }
}

fn ask(number: u8) -> Ask {
    Ask {
        digest: digest(number),
        size: None,
        registry: "docker.io".into(),
        repository: "library/debian".into(),
        kind: Kind::Blob,
        may_read_origin: true,
        blocks_held: 0,
        permit: None,
        takes_runs: true,
    }
}

impl Daemon {
    async fn connected(&self) {
        eventually("the node is connected", || self.client.is_connected()).await;
    }

    async fn find(&self, number: u8) -> Finding {
        within(self.client.find(ask(number))).await.unwrap()
    }
}

/// The first news that `of` takes; what comes before is passed over.
async fn hear<T>(finding: &mut Finding, of: impl Fn(News) -> Option<T>) -> T {
    within(async {
        loop {
            let news = finding.news.recv().await.expect("control is gone");
            if let Some(heard) = of(news) {
                return heard;
            }
        }
    })
    .await
}

async fn permit(finding: &mut Finding) -> Grant {
    hear(finding, |news| if let News::Permit(grant) = news { Some(grant) } else { None }).await
}

async fn parents(finding: &mut Finding) -> Vec<String> {
    let names =
        |parents: Vec<node_proxy::swarm::Parent>| parents.iter().map(|parent| parent.node.to_string()).collect();
    hear(finding, |news| if let News::Parents(parents) = news { Some(names(parents)) } else { None }).await
}

#[tokio::test]
async fn nodes_find_each_other_s_blobs_and_follow_the_one_that_reads_the_origin() {
    let control = Control::start("127.0.0.1:0").await;
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (daemon(control.addr, one.path(), "", &[1]), daemon(control.addr, two.path(), "", &[]));
    a.connected().await;
    b.connected().await;
    let me = a.client.node().to_string();
    eventually("control knows what is held", || control.swarm.counts().holdings == 1).await;
    assert_eq!(parents(&mut b.find(1).await).await, std::slice::from_ref(&me));
    a.differences.send(Difference::Held(holding(2))).await.unwrap();
    a.differences.send(Difference::Dropped(digest(1))).await.unwrap();
    eventually("control hears of differences", || control.nodes.list().iter().any(|node| node.held_blobs == 1)).await;
    assert_eq!(parents(&mut b.find(2).await).await, std::slice::from_ref(&me));
    eventually("heartbeats carry the load", || control.nodes.list().iter().all(|node| node.bytes_from_peers == 42))
        .await;

    let mut reads = a.find(3).await;
    let id = permit(&mut reads).await.id;
    let mut follows = b.find(3).await;
    let at_origin = |news| if let News::Waiting { at_origin, .. } = news { Some(at_origin) } else { None };
    assert!(hear(&mut follows, at_origin).await, "a request is out at the origin");
    reads.tell.send(Tell::Headers { permit: id, size: 2 * BLOCK, media_type: "x".into() }).await.unwrap();
    reads.tell.send(Tell::Hashes { first: 0, hashes: vec![1; 32].into() }).await.unwrap();
    let head =
        hear(&mut follows, |news| if let News::Head { author, size, .. } = news { Some((author, size)) } else { None });
    assert_eq!(head.await, (me.parse().unwrap(), 2 * BLOCK));
    reads.tell.send(Tell::Done { size: 2 * BLOCK, root: [9; 32], media_type: "x".into() }).await.unwrap();
    drop(reads);
    let root = hear(&mut follows, |news| if let News::Sealed { root, .. } = news { Some(root) } else { None }).await;
    assert_eq!(root, [9; 32]);

    let mut missing = b.find(4).await;
    let permit = permit(&mut missing).await.id;
    let mut waits = a.find(4).await;
    missing.tell.send(Tell::Trouble { permit, why: OriginTrouble::NotFound }).await.unwrap();
    hear(&mut waits, |news| (news == News::NotFound).then_some(())).await;
}

#[tokio::test]
async fn a_changed_scope_moves_the_node_and_its_flights_find_again() {
    let control = Control::start("127.0.0.1:0").await;
    let state = tempfile::tempdir().unwrap();
    let node = daemon(control.addr, state.path(), "north", &[]);
    node.connected().await;
    let mut membership = node.client.membership();
    let before = membership.borrow_and_update().clone().unwrap();
    assert_eq!(before.cluster.as_str(), "a");
    let mut flight = node.find(1).await;
    let start = Instant::now();
    control.clusters.send_replace(set("north"));
    within(membership.changed()).await.unwrap();
    let after = membership.borrow().clone().unwrap();
    assert_eq!((after.cluster.as_str(), after.epoch), ("b", before.epoch + 1));
    hear(&mut flight, |news| (news == News::Again).then_some(())).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn i4_a_node_outlives_control_and_says_again_what_it_holds_and_reads() {
    let control = Control::start("127.0.0.1:0").await;
    let addr = control.addr;
    let state = tempfile::tempdir().unwrap();
    let node = daemon(addr, state.path(), "", &[1]);
    node.connected().await;
    let mut flight = node.find(2).await;
    let held = permit(&mut flight).await;
    let hello = node.client.membership().borrow().clone();
    control.stop().await;
    within(async { while flight.news.recv().await.is_some() {} }).await;
    eventually("the node sees that control is gone", || !node.client.is_connected()).await;
    let start = Instant::now();
    assert!(matches!(node.client.find(ask(2)).await, Err(FindError::Unreachable(_))));
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    assert_eq!(*node.client.membership().borrow(), hello, "the node keeps its cluster");

    let start = Instant::now();
    let control = Control::start(&addr.to_string()).await;
    eventually("control knows what is held", || control.swarm.counts().holdings == 1).await;
    let mut again = within(node.client.find(Ask { permit: Some(held), ..ask(2) })).await.unwrap();
    assert_eq!(permit(&mut again).await, held);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let after = node.client.membership().borrow().clone().unwrap();
    assert!(after.epoch >= hello.unwrap().epoch);
}

#[tokio::test]
async fn an_order_comes_to_the_node_again_after_a_break_and_its_end_to_control() {
    let (control, state) = (Control::start("127.0.0.1:0").await, tempfile::tempdir().unwrap());
    let (addr, preheats) = (control.addr, control.preheats.clone());
    let node = daemon(addr, state.path(), "", &[]);
    node.connected().await;
    let mut orders = node.client.orders().unwrap();
    let new = control::preheat::New {
        image: "registry.test/app:1".into(),
        platforms: vec!["linux/amd64".into()],
        cluster: "a".parse().unwrap(),
        cluster_name: "a".into(),
        target: control::preheat::Target::Percent(100),
        login: Some(("user".into(), "password".into())),
    };
    let job = preheats.create(new, "admin").await.unwrap();
    let Some(Order::Image(order)) = within(orders.recv()).await else { panic!("no image is ordered") };
    assert_eq!((order.repository.as_str(), order.reference.as_str()), ("app", "1"));
    assert_eq!(order.login, Some(("user".into(), "password".into())));
    let says = |outcome| {
        let (id, blobs) = (order.id.clone(), vec![(digest(2), 9, 9)]);
        node.client.tell_order(Progress { id, outcome, manifest: Some(digest(1)), blobs });
    };
    says(Outcome::Running);
    let ended = async || preheats.get(&job.id).await.unwrap().ended.is_some();
    // The session breaks; in the next one the order is said again, and what the node says meanwhile is not lost.
    assert!(control.nodes.expel(node.client.node(), "a test"));
    says(Outcome::Done);
    within(async {
        while !ended().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(preheats.get(&job.id).await.unwrap().state(), control::preheat::State::Done);
    control.stop().await;
}
