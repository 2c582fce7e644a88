//! Real clients and a real server on loopback.

use std::net::SocketAddr;
use std::time::Instant;

use shoal_base::drain::{self, Trigger};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;
use wire::control_client::ControlClient;
use wire::find_request::Message as Tell;
use wire::find_response::Message as Said;
use wire::session_request::Message as Up;
use wire::session_response::Message as Down;

use super::*;

mod seeds;
use crate::clusters::Cluster;
use crate::clusters::ClusterSet;
use crate::nodes;
use crate::preheat;
use crate::swarm;

const BOUND: Duration = Duration::from_secs(10);
const BLOCK: u64 = 256 << 10;

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, future).await.expect("takes longer than 10 s")
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

struct Running {
    addr: SocketAddr,
    clusters: watch::Sender<Arc<ClusterSet>>,
    nodes: Arc<Nodes>,
    swarm: Arc<Swarm>,
    preheats: Arc<Preheats>,
    metrics: Metrics,
    trigger: Trigger,
}

async fn start(allow: Vec<IpNet>) -> Running {
    start_with(Config { allow, ..Config::default() }).await
}

async fn start_with(config: Config) -> Running {
    let (clusters, receiver) = watch::channel(set("west"));
    let swarm = Arc::new(Swarm::new(swarm::Metrics::default()));
    let nodes = Nodes::new(nodes::Config::default(), receiver, swarm.clone(), nodes::Metrics::default());
    let nodes = Arc::new(nodes);
    let (trigger, drain) = drain::channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(nodes.clone().run(drain.clone()));
    tokio::spawn(swarm.clone().run(nodes.clone(), drain.clone()));
    let metrics = Metrics::default();
    let store = Arc::new(crate::store::MemoryStore::default());
    let preheats = Preheats::open(store, nodes.clone(), preheat::Metrics::default()).await.unwrap();
    tokio::spawn(preheats.clone().run(drain.clone()));
    let (gate, counted) = (Gate::open(), metrics.clone());
    let parts =
        Parts { nodes: nodes.clone(), swarm: swarm.clone(), preheats: preheats.clone(), gate, metrics: counted };
    tokio::spawn(run(listener, config, parts, drain));
    Running { addr, clusters, nodes, swarm, preheats, metrics, trigger }
}

/// A node that says what the test wants.
struct Fake {
    grpc: ControlClient<Channel>,
    up: mpsc::Sender<wire::SessionRequest>,
    down: Streaming<wire::SessionResponse>,
    session: Vec<u8>,
    cluster: String,
    epoch: u64,
}

fn register(node: &str, idc: &str) -> wire::Register {
    wire::Register {
        node_id: node.into(),
        instance: 1,
        name: node.into(),
        version: "0".into(),
        facts: Some(wire::Facts { ip: "127.0.0.1".into(), idc: idc.into(), location: String::new() }),
        peer_port: 5081,
        pinned_cluster: String::new(),
        role: wire::Role::Node.into(),
        takes_blob_orders: true,
    }
}

async fn open(
    addr: SocketAddr,
    register: wire::Register,
) -> Result<(ControlClient<Channel>, mpsc::Sender<wire::SessionRequest>, Streaming<wire::SessionResponse>), Status> {
    let mut grpc =
        ControlClient::connect(format!("http://{addr}")).await.map_err(|e| Status::unavailable(e.to_string()))?;
    let (up, stream) = mpsc::channel(16);
    up.send(wire::SessionRequest { message: Some(Up::Register(register)) }).await.unwrap();
    let down = grpc.session(ReceiverStream::new(stream)).await?.into_inner();
    Ok((grpc, up, down))
}

impl Fake {
    async fn join(running: &Running, node: &str, idc: &str) -> Self {
        let (grpc, up, down) = within(open(running.addr, register(node, idc))).await.unwrap();
        let mut fake = Self { grpc, up, down, session: Vec::new(), cluster: String::new(), epoch: 0 };
        fake.assigned().await;
        fake
    }

    async fn assigned(&mut self) {
        let Some(Down::Assigned(to)) = within(self.down.message()).await.unwrap().unwrap().message else {
            panic!("no assignment")
        };
        assert_eq!(to.session.len(), 16);
        (self.session, self.cluster, self.epoch) = (to.session, to.cluster_id, to.epoch);
    }

    async fn say(&self, message: Up) {
        self.up.send(wire::SessionRequest { message: Some(message) }).await.unwrap();
    }

    async fn announce(&self, digests: &[u8]) {
        let held = digests.iter().map(|number| held(*number)).collect();
        self.say(Up::Announce(wire::Announce { reset: true, held, dropped: Vec::new(), complete: true })).await;
    }

    async fn find(&self, number: u8, permit_id: u64) -> Flight {
        let (tell, stream) = mpsc::channel(16);
        let start = wire::FindStart {
            digest: vec![number; 32],
            session: self.session.clone(),
            size: 0,
            registry: "docker.io".into(),
            repository: "library/debian".into(),
            kind: wire::Kind::Blob.into(),
            may_read_origin: true,
            blocks_held: 0,
            permit_id,
            permit_first_block: 0,
            permit_blocks: 0,
            takes_runs: true,
            certificate: Vec::new(),
        };
        tell.send(wire::FindRequest { message: Some(Tell::Start(start)) }).await.unwrap();
        let said = within(self.grpc.clone().find(ReceiverStream::new(stream))).await.unwrap().into_inner();
        Flight { tell, said }
    }
}

fn held(number: u8) -> wire::Held {
    wire::Held {
        digest: vec![number; 32],
        size: 2 * BLOCK,
        root: vec![7; 32],
        media_type: "text/plain".into(),
        signature: Vec::new(),
    }
}

struct Flight {
    tell: mpsc::Sender<wire::FindRequest>,
    said: Streaming<wire::FindResponse>,
}

impl Flight {
    async fn tell(&self, message: Tell) {
        self.tell.send(wire::FindRequest { message: Some(message) }).await.unwrap();
    }

    /// The first word that `of` takes; what comes before is passed over.
    async fn hear<T>(&mut self, of: impl Fn(Said) -> Option<T>) -> T {
        within(async {
            loop {
                let message = self.said.message().await.unwrap().expect("the stream ended").message.unwrap();
                if let Some(heard) = of(message) {
                    return heard;
                }
            }
        })
        .await
    }

    async fn permit(&mut self) -> u64 {
        self.hear(|said| if let Said::Permit(permit) = said { Some(permit.permit_id) } else { None }).await
    }

    async fn parents(&mut self) -> Vec<String> {
        let names = |parents: wire::Parents| parents.parents.into_iter().map(|parent| parent.node_id).collect();
        self.hear(|said| if let Said::Parents(parents) = said { Some(names(parents)) } else { None }).await
    }

    async fn stop(&mut self) -> wire::stop::Reason {
        self.hear(|said| if let Said::Stop(stop) = said { Some(stop.reason()) } else { None }).await
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < BOUND, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn every_bad_field_of_a_registration_is_named() {
    let running = start(Vec::new()).await;
    let bad = wire::Register {
        node_id: "Not An Id".into(),
        facts: Some(wire::Facts { ip: "10.0.0".into(), idc: "a|b".into(), location: "a||b".into() }),
        peer_port: 70_000,
        role: 0,
        ..register("n", "")
    };
    let status = within(open(running.addr, bad)).await.map(|_| ()).unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    for field in ["node_id", "facts.ip", "facts.idc", "facts.location", "peer_port", "role"] {
        assert!(status.message().contains(field), "{field} in {}", status.message());
    }
    assert!(running.nodes.list().is_empty());
}

#[tokio::test]
async fn a_changed_scope_moves_a_live_node_and_its_flights_within_a_second() {
    let running = start(Vec::new()).await;
    let mut moves = Fake::join(&running, "moves", "north").await;
    let stays = Fake::join(&running, "stays", "").await;
    assert_eq!(moves.cluster, "a");
    moves.announce(&[1]).await;
    eventually("the announcement is known", || running.swarm.counts().holdings == 1).await;
    let mut wants = stays.find(1, 0).await;
    assert_eq!(wants.parents().await, ["moves"]);
    let mut flight = moves.find(2, 0).await;
    let (start, epoch) = (Instant::now(), moves.epoch);
    running.clusters.send_replace(set("north"));
    moves.assigned().await;
    assert_eq!((moves.cluster.as_str(), moves.epoch), ("b", epoch + 1));
    assert_eq!(flight.stop().await, wire::stop::Reason::Moved);
    assert_eq!(wants.parents().await, [""; 0], "the old cluster's nodes drop it");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let newcomer = Fake::join(&running, "newcomer", "north").await;
    assert_eq!(newcomer.find(1, 0).await.parents().await, ["moves"], "and the new cluster's find it");
}

#[tokio::test]
async fn one_reads_the_origin_others_get_the_list_and_the_permit_moves_when_it_goes() {
    let running = start(Vec::new()).await;
    let (a, b, c) = (
        Fake::join(&running, "node-a", "").await,
        Fake::join(&running, "node-b", "").await,
        Fake::join(&running, "node-c", "").await,
    );
    let (mut first, mut second) = (a.find(1, 0).await, b.find(1, 0).await);
    let permit_id = first.permit().await;
    first
        .tell(Tell::Headers(wire::OriginHeaders {
            permit_id,
            size: 2 * BLOCK,
            media_type: "x".into(),
            signature: Vec::new(),
        }))
        .await;
    first.tell(Tell::List(wire::ListPart { first_block: 0, hashes: vec![1; 32], ..Default::default() })).await;
    assert_eq!(second.parents().await, ["node-a"]);
    let mut late = c.find(1, 0).await;
    let author = late.hear(|said| if let Said::Head(head) = said { Some(head.author) } else { None }).await;
    assert_eq!(author, "node-a");
    let part = late.hear(|said| if let Said::List(part) = said { Some(part) } else { None }).await;
    assert_eq!((part.first_block, part.hashes), (0, vec![1; 32]));
    // The reader's flight is closed on purpose; the next goes on.
    drop(first);
    let permit_id = second.permit().await;
    second
        .tell(Tell::Headers(wire::OriginHeaders {
            permit_id,
            size: 2 * BLOCK,
            media_type: "x".into(),
            signature: Vec::new(),
        }))
        .await;
    second.tell(Tell::List(wire::ListPart { first_block: 1, hashes: vec![2; 32], ..Default::default() })).await;
    let part = late.hear(|said| if let Said::List(part) = said { Some(part) } else { None }).await;
    assert_eq!(part.first_block, 1);
    second.tell(Tell::Done(held(1))).await;
    let sealed = late.hear(|said| if let Said::Sealed(sealed) = said { Some(sealed) } else { None }).await;
    assert_eq!((sealed.author.as_str(), sealed.root), ("node-b", vec![7; 32]));
    eventually("the reader holds it", || running.swarm.counts().holdings == 1).await;
    assert_eq!(running.swarm.counts().permits, 0);
}

#[tokio::test]
async fn i4_after_a_restart_control_knows_again_what_nodes_hold_and_read() {
    let running = start(Vec::new()).await;
    let a = Fake::join(&running, "node-a", "").await;
    a.announce(&[1]).await;
    let permit = a.find(2, 0).await.permit().await;
    let other = start(Vec::new()).await;
    running.trigger.fire();
    let mut a_session = a.down;
    assert!(within(a_session.message()).await.is_err(), "the old control said that it ends");
    let started = Instant::now();
    let (a, b) = (Fake::join(&other, "node-a", "").await, Fake::join(&other, "node-b", "").await);
    a.announce(&[1]).await;
    let mut again = a.find(2, permit).await;
    assert_eq!(again.permit().await, permit);
    let mut waits = b.find(2, 0).await;
    assert_eq!(b.find(1, 0).await.parents().await, ["node-a"]);
    assert!(started.elapsed() < Duration::from_secs(5));
    drop(again);
    // Only now, and never both.
    let next = waits.permit().await;
    assert_ne!(next, permit);
    assert!(other.swarm.counts().permits == 1);
}

#[tokio::test]
async fn a_find_without_a_live_session_is_told_so() {
    let running = start(Vec::new()).await;
    let mut a = Fake::join(&running, "node-a", "").await;
    a.session = vec![9; 16];
    assert_eq!(a.find(1, 0).await.stop().await, wire::stop::Reason::NoSession);
}

#[tokio::test]
async fn a_second_session_of_a_node_ends_the_first() {
    let running = start(Vec::new()).await;
    let mut first = Fake::join(&running, "node-a", "").await;
    let second = Fake::join(&running, "node-a", "").await;
    assert_eq!(within(first.down.message()).await.unwrap_err().code(), Code::Aborted);
    assert_eq!(running.nodes.list().len(), 1);
    drop(second.up);
    eventually("a node that closes its session is gone", || running.nodes.list().is_empty()).await;
}

#[tokio::test]
async fn a_message_that_makes_no_sense_ends_its_stream_alone() {
    let running = start(Vec::new()).await;
    let a = Fake::join(&running, "node-a", "").await;
    let mut flight = a.find(1, 0).await;
    flight.permit().await;
    flight.tell(Tell::List(wire::ListPart { first_block: 0, hashes: vec![1; 33], ..Default::default() })).await;
    let status = within(async {
        loop {
            match flight.said.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a reason"),
                Err(status) => return status,
            }
        }
    });
    assert_eq!(status.await.code(), Code::InvalidArgument);
    assert!(a.find(2, 0).await.permit().await > 0);
}

#[tokio::test]
async fn strangers_are_not_served() {
    let running = start(vec!["10.0.0.0/8".parse().unwrap()]).await;
    assert!(within(open(running.addr, register("n", ""))).await.is_err());
    assert!(running.nodes.list().is_empty());
}

#[test]
fn an_ipv4_address_in_ipv6_clothes_is_matched_as_ipv4() {
    let allow: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
    assert!(admits(&allow, "::ffff:10.1.2.3".parse().unwrap()));
    assert!(!admits(&allow, "::ffff:11.1.2.3".parse().unwrap()));
    assert!(admits(&[], "::1".parse().unwrap()));
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_counted_and_a_place_that_is_free_again_is_given() {
    let running = start_with(Config { max_connections: 2, ..Config::default() }).await;
    let one = Fake::join(&running, "n1", "").await;
    let _two = Fake::join(&running, "n2", "").await;
    assert!(within(open(running.addr, register("n3", ""))).await.is_err());
    // The client's library tries more than once.
    assert!(running.metrics.refusals(Reason::Connections) > 0);
    drop(one);
    let start = Instant::now();
    while within(open(running.addr, register("n3", ""))).await.is_err() {
        assert!(start.elapsed() < BOUND, "nobody is let in any more");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn who_is_in_no_listed_network_or_speaks_something_else_is_counted() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listed = start(vec!["10.0.0.0/8".parse().unwrap()]).await;
    assert!(within(open(listed.addr, register("n1", ""))).await.is_err());
    assert!(listed.metrics.refusals(Reason::Network) > 0);
    let running = start(Vec::new()).await;
    let mut stream = tokio::net::TcpStream::connect(running.addr).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let _ = within(stream.read_to_end(&mut Vec::new())).await;
    assert_eq!(running.metrics.refusals(Reason::Handshake), 1);
}

#[tokio::test]
async fn a_node_is_told_what_to_fetch_and_says_how_far_it_is() {
    let running = start(Vec::new()).await;
    let mut one = Fake::join(&running, "one", "").await;
    let new = preheat::New {
        image: "registry.test/app:1".into(),
        platforms: Vec::new(),
        cluster: one.cluster.parse().unwrap(),
        cluster_name: "default".into(),
        target: preheat::Target::Nodes(vec!["one".into()]),
        login: None,
    };
    let job = running.preheats.create(new, "admin").await.unwrap();
    let Some(Down::Fetch(order)) = within(one.down.message()).await.unwrap().unwrap().message else {
        panic!("no order")
    };
    assert_eq!(order.image.unwrap().reference, "1");
    let progress = |state: wire::order_progress::State, bytes| {
        Up::Order(wire::OrderProgress {
            order_id: order.order_id.clone(),
            state: state.into(),
            detail: String::new(),
            manifest: vec![1; 32],
            blobs: vec![wire::BlobProgress { digest: vec![2; 32], size: 9, bytes }],
            refused: false,
        })
    };
    let becomes = async |state: preheat::State, bytes| {
        within(async {
            loop {
                let job = running.preheats.get(&job.id).await.unwrap();
                let (_, work) = job.nodes.iter().next().unwrap();
                if (&job.state(), job.bytes_of(work)) == (&state, bytes) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    };
    one.say(progress(wire::order_progress::State::Running, 4)).await;
    becomes(preheat::State::Running, 4).await;
    one.say(progress(wire::order_progress::State::Done, 9)).await;
    becomes(preheat::State::Done, 9).await;
    // What makes no sense ends the session, and the field is named.
    let wrong = wire::OrderProgress { order_id: "x/1".into(), manifest: vec![1], ..wire::OrderProgress::default() };
    one.say(Up::Order(wrong)).await;
    let refused = within(one.down.message()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("state: ") && refused.message().contains("manifest: "), "{refused:?}");
}
