//! Peers of other versions, as bytes. What a newer one says beyond this version is passed over or answered, what an older one leaves out
//! has a safe meaning, and no session ends of either.

use std::convert::Infallible;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use lab::messages::Raw;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use shoal_proto::control::v1 as wire;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::server::{NamedService, StreamingService};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};
use wire::find_response::Message as Said;
use wire::session_request::Message as Up;
use wire::session_response::Message as Down;

use super::*;

/// Numbers that no field of this version has: short and long ones, as they are on the wire.
const STRANGE: [u32; 5] = [31, 100, 2047, 2048, (1 << 29) - 1];

/// A field with something in it.
fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_key(number, WireType::LengthDelimited, &mut bytes);
    encode_varint(content.len() as u64, &mut bytes);
    [bytes, content.to_vec()].concat()
}

/// Fields that this version does not know, of every kind.
fn strange() -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in STRANGE {
        bytes.extend(field(number, &[0xff; 40]));
        for (kind, content) in
            [(WireType::Varint, &[7][..]), (WireType::ThirtyTwoBit, &[7; 4]), (WireType::SixtyFourBit, &[7; 8])]
        {
            encode_key(number, kind, &mut bytes);
            bytes.extend(content);
        }
    }
    bytes
}

/// The message with strange fields beside it and in it: those of one field are merged into what it has.
fn extended(message: &impl prost::Message, variant: u32) -> Bytes {
    [message.encode_to_vec(), field(variant, &strange()), strange()].concat().into()
}

fn up(message: Up) -> wire::SessionRequest {
    wire::SessionRequest { message: Some(message) }
}

fn down(message: Down) -> wire::SessionResponse {
    wire::SessionResponse { message: Some(message) }
}

/// All that a node must say; the rest is what older ones leave out.
fn register(name: &str) -> wire::Register {
    wire::Register {
        node_id: name.into(),
        facts: Some(wire::Facts { ip: "127.0.0.1".into(), ..wire::Facts::default() }),
        peer_port: 5081,
        role: wire::Role::Node.into(),
        ..wire::Register::default()
    }
}

fn find_start(number: u8, session: &[u8]) -> wire::FindStart {
    wire::FindStart {
        digest: digest(number).as_bytes().to_vec(),
        session: session.to_vec(),
        registry: "docker.io".into(),
        repository: "library/debian".into(),
        kind: wire::Kind::Blob.into(),
        may_read_origin: true,
        ..wire::FindStart::default()
    }
}

/// Until control grants permits (I4).
async fn past_the_start() {
    tokio::time::sleep(control::swarm::STARTING + Duration::from_millis(50)).await;
}

/// A node of another version.
struct Other {
    channel: Channel,
    up: mpsc::Sender<Bytes>,
    down: Streaming<Bytes>,
    session: Vec<u8>,
}

async fn call(channel: &Channel, method: &'static str, first: Bytes) -> (mpsc::Sender<Bytes>, Streaming<Bytes>) {
    let (up, stream) = mpsc::channel(64);
    up.send(first).await.unwrap();
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static(method);
    let answer = within(grpc.streaming(Request::new(ReceiverStream::new(stream)), path, Raw)).await.unwrap();
    (up, answer.into_inner())
}

impl Other {
    async fn join(control: &Control, register: Bytes) -> Self {
        let channel = Channel::from_shared(format!("http://{}", control.addr)).unwrap().connect().await.unwrap();
        let (up, down) = call(&channel, "/shoal.control.v1.Control/Session", register).await;
        let mut other = Self { channel, up, down, session: Vec::new() };
        let Down::Assigned(assigned) = other.hear().await else { panic!("no assignment") };
        assert_eq!(assigned.cluster_id, "a");
        other.session = assigned.session;
        other
    }

    async fn say(&self, bytes: impl Into<Bytes>) {
        self.up.send(bytes.into()).await.unwrap();
    }

    async fn hear(&mut self) -> Down {
        let bytes = within(self.down.message()).await.unwrap().expect("the session ended");
        wire::SessionResponse::decode(bytes).unwrap().message.unwrap()
    }

    async fn find(&self, start: Bytes) -> (mpsc::Sender<Bytes>, Streaming<Bytes>) {
        call(&self.channel, "/shoal.control.v1.Control/Find", start).await
    }

    async fn nothing_more_is_said(&mut self) {
        let more = tokio::time::timeout(Duration::from_millis(300), self.down.message()).await;
        assert!(more.is_err(), "{more:?}");
    }
}

async fn permitted(said: &mut Streaming<Bytes>) -> wire::Permit {
    within(async {
        loop {
            let word = wire::FindResponse::decode(said.message().await.unwrap().expect("the stream ended")).unwrap();
            if let Some(Said::Permit(permit)) = word.message {
                return permit;
            }
        }
    })
    .await
}

fn preheat(reference: Digest) -> control::preheat::New {
    control::preheat::New {
        image: format!("registry.test/app@{reference}"),
        platforms: Vec::new(),
        cluster: "a".parse().unwrap(),
        cluster_name: "a".into(),
        target: control::preheat::Target::Nodes(vec!["other".into()]),
        login: None,
    }
}

#[tokio::test]
async fn a_newer_node_is_understood_as_far_as_this_control_goes() {
    let (control, state) = (Control::start("127.0.0.1:0").await, tempfile::tempdir().unwrap());
    let known = daemon(control.addr, state.path(), "", &[]);
    known.connected().await;
    let newer = wire::Register { takes_blob_orders: true, ..register("other") };
    let mut other = Other::join(&control, extended(&up(Up::Register(newer)), 1)).await;
    for number in STRANGE {
        other.say(field(number, &[0xff; 100])).await;
    }
    other.say(Bytes::new()).await;
    other.say(extended(&up(Up::Heartbeat(wire::Heartbeat { flights: 3, ..wire::Heartbeat::default() })), 2)).await;
    let held = wire::Held { digest: vec![1; 32], size: 2 * BLOCK, root: vec![7; 32], ..wire::Held::default() };
    let announce = wire::Announce { reset: true, held: vec![held], complete: true, ..wire::Announce::default() };
    other.say(extended(&up(Up::Announce(announce)), 3)).await;
    eventually("what is known of it counts", || {
        let nodes = control.nodes.list();
        nodes.iter().any(|node| node.id.as_str() == "other" && node.flights == 3 && node.held_blobs == 1)
    })
    .await;

    // A state of an order that is none of ours is neither its end nor the session's.
    let job = control.preheats.create(preheat(digest(9)), "admin").await.unwrap();
    let Down::Fetch(order) = other.hear().await else { panic!("no order") };
    let says = |state: i32| {
        let progress = wire::OrderProgress { order_id: order.order_id.clone(), state, ..Default::default() };
        extended(&up(Up::Order(progress)), 6)
    };
    let of = async || control.preheats.get(&job.id).await.unwrap().state();
    other.say(says(99)).await;
    within(async {
        while of().await != control::preheat::State::Running {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    other.say(says(wire::order_progress::State::Done.into())).await;
    within(async {
        while of().await != control::preheat::State::Done {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;

    // It reads, and fails in a way that is none of ours: another reads.
    past_the_start().await;
    let start = wire::find_request::Message::Start(find_start(3, &other.session));
    let (tell, mut said) = other.find(extended(&wire::FindRequest { message: Some(start) }, 1)).await;
    let permit_id = permitted(&mut said).await.permit_id;
    let mut waits = known.find(3).await;
    for number in STRANGE {
        tell.send(field(number, &[0xff; 100]).into()).await.unwrap();
    }
    let failed = wire::OriginFailed { permit_id, failure: 99, retry_after_ms: 0 };
    let failed = wire::FindRequest { message: Some(wire::find_request::Message::Failed(failed)) };
    tell.send(failed.encode_to_vec().into()).await.unwrap();
    permit(&mut waits).await;
    other.nothing_more_is_said().await;
}

#[tokio::test]
async fn what_an_older_node_leaves_out_has_a_safe_meaning() {
    let control = Control::start("127.0.0.1:0").await;
    let mut other = Other::join(&control, up(Up::Register(register("other"))).encode_to_vec().into()).await;
    other.say(up(Up::Heartbeat(wire::Heartbeat::default())).encode_to_vec()).await;
    let held = wire::Held { digest: vec![1; 32], size: 2 * BLOCK, root: vec![7; 32], ..wire::Held::default() };
    let announce = wire::Announce { reset: true, held: vec![held], ..wire::Announce::default() };
    other.say(up(Up::Announce(announce)).encode_to_vec()).await;
    eventually("what it holds is known", || control.swarm.counts().holdings == 1).await;
    // A permit is for all of a blob, however large: it did not say that it takes runs.
    past_the_start().await;
    let start = wire::FindStart { size: 1 << 30, ..find_start(3, &other.session) };
    let start = wire::FindRequest { message: Some(wire::find_request::Message::Start(start)) };
    let (_tell, mut said) = other.find(start.encode_to_vec().into()).await;
    let permit = permitted(&mut said).await;
    assert_eq!((permit.first_block, permit.blocks), (0, 0));
    // Nor orders: a preheat says so at once, and the node hears nothing.
    let job = control.preheats.create(preheat(digest(9)), "admin").await.unwrap();
    let state = &job.nodes.values().next().unwrap().state;
    assert!(matches!(state, control::preheat::State::Failed(why) if why.contains("takes no orders")), "{state:?}");
    other.nothing_more_is_said().await;
}

/// A control of another version, which says the same on each stream.
#[derive(Clone)]
struct Says {
    session: Vec<Bytes>,
    find: Vec<Bytes>,
    hears: mpsc::Sender<Bytes>,
}

impl Says {
    async fn start(session: Vec<Bytes>, find: Vec<Bytes>) -> (SocketAddr, mpsc::Receiver<Bytes>) {
        let listener = shoal_base::listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (addr, (hears, heard)) = (listener.local_addr().unwrap(), mpsc::channel(1000));
        let incoming = futures::stream::unfold(listener, |listener| async move {
            let socket = listener.accept().await.map(|(socket, _)| socket);
            Some((socket, listener))
        });
        tokio::spawn(Server::builder().add_service(Self { session, find, hears }).serve_with_incoming(incoming));
        (addr, heard)
    }
}

impl NamedService for Says {
    const NAME: &'static str = "shoal.control.v1.Control";
}

impl tower::Service<http::Request<tonic::body::Body>> for Says {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let is_find = request.uri().path().ends_with("/Find");
        let hears = (!is_find).then(|| self.hears.clone());
        let words = Words(if is_find { self.find.clone() } else { self.session.clone() }, hears);
        async move { Ok(tonic::server::Grpc::new(Raw).streaming(words, request).await) }.boxed()
    }
}

/// What is said on one stream, and who hears what comes.
struct Words(Vec<Bytes>, Option<mpsc::Sender<Bytes>>);

impl StreamingService<Bytes> for Words {
    type Response = Bytes;
    type ResponseStream = BoxStream<'static, Result<Bytes, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (said, hears) = (std::mem::take(&mut self.0), self.1.take());
        let quiet = request.into_inner().filter_map(move |heard| {
            if let (Ok(heard), Some(hears)) = (heard, &hears) {
                _ = hears.try_send(heard);
            }
            std::future::ready(None)
        });
        let stream = futures::stream::iter(said.into_iter().map(Ok)).chain(quiet).boxed();
        std::future::ready(Ok(Response::new(stream))).boxed()
    }
}

/// What the node says on its session.
async fn next(heard: &mut mpsc::Receiver<Bytes>) -> Up {
    let bytes = within(heard.recv()).await.expect("the node is gone");
    wire::SessionRequest::decode(bytes).unwrap().message.unwrap()
}

fn assigned() -> wire::Assigned {
    wire::Assigned { cluster_id: "a".into(), session: vec![1; 16], ..wire::Assigned::default() }
}

fn said(message: Said) -> wire::FindResponse {
    wire::FindResponse { message: Some(message) }
}

#[tokio::test]
async fn a_newer_control_is_understood_as_far_as_this_node_goes() {
    let variants = || STRANGE.map(|number| Bytes::from(field(number, &[0xff; 100])));
    let mut session: Vec<Bytes> = variants().into();
    session.push(extended(&down(Down::Assigned(wire::Assigned { heartbeat_ms: 100, ..assigned() })), 1));
    session.extend(variants());
    // Neither an image nor a blob, but something else.
    let order = wire::FetchOrder { order_id: "of another kind".into(), ..wire::FetchOrder::default() };
    session.push(extended(&down(Down::Fetch(order)), 2));
    let mut find: Vec<Bytes> = variants().into();
    let waiting = wire::Waiting { reason: 99, retry_after_ms: 0 };
    let permit_id = 5;
    find.push(extended(&said(Said::Waiting(waiting)), 6));
    find.push(extended(&said(Said::Permit(wire::Permit { permit_id, ..wire::Permit::default() })), 5));
    find.push(extended(&said(Said::Stop(wire::Stop { reason: 99, detail: String::new() })), 7));
    let ((addr, mut heard), state) = (Says::start(session, find).await, tempfile::tempdir().unwrap());
    let node = daemon(addr, state.path(), "", &[]);
    node.connected().await;
    assert!(matches!(next(&mut heard).await, Up::Register(_)));
    let (mut beats, mut refused) = (0, None);
    while beats < 5 || refused.is_none() {
        match next(&mut heard).await {
            Up::Heartbeat(_) => beats += 1,
            Up::Order(order) => refused = Some(order),
            Up::Register(_) => panic!("the session ended"),
            _ => {}
        }
    }
    let refused = refused.unwrap();
    assert_eq!((refused.order_id.as_str(), refused.state()), ("of another kind", wire::order_progress::State::Failed));
    assert!(refused.detail.contains("knows no such order"), "{}", refused.detail);

    let mut flight = node.find(3).await;
    let at_origin = |news| if let News::Waiting { at_origin, .. } = news { Some(at_origin) } else { None };
    assert!(!hear(&mut flight, at_origin).await, "nobody is known to read");
    assert_eq!(permit(&mut flight).await.id, permit_id);
    // It ends for a reason that is none of ours: it is looked for again.
    hear(&mut flight, |news| (news == News::Again).then_some(())).await;
}

#[tokio::test]
async fn what_an_older_control_leaves_out_has_a_safe_meaning() {
    let session = vec![down(Down::Assigned(assigned())).encode_to_vec().into()];
    let parent = wire::Parent { node_id: "p".into(), addr: "127.0.0.1:9".into(), ..wire::Parent::default() };
    let find = [
        Said::Parents(wire::Parents { parents: vec![parent] }),
        Said::Waiting(wire::Waiting::default()),
        Said::Permit(wire::Permit { permit_id: 5, ..wire::Permit::default() }),
    ];
    let find = find.map(|message| said(message).encode_to_vec().into());
    let ((addr, mut heard), state) = (Says::start(session, find.into()).await, tempfile::tempdir().unwrap());
    let node = daemon(addr, state.path(), "", &[1]);
    node.connected().await;
    let since = Instant::now();
    let mut beats = 0;
    while beats < 3 {
        match next(&mut heard).await {
            Up::Heartbeat(_) => beats += 1,
            Up::Order(order) => panic!("it was ordered nothing: {order:?}"),
            _ => {}
        }
    }
    // It did not say how often: once a second, the first at once.
    assert!((1000..4000).contains(&since.elapsed().as_millis()), "{:?}", since.elapsed());
    let mut flight = node.find(3).await;
    let complete = |news| if let News::Parents(parents) = news { Some(parents[0].complete) } else { None };
    assert!(!hear(&mut flight, complete).await, "a parent that was not called complete");
    let grant = permit(&mut flight).await;
    assert_eq!((grant.id, grant.first, grant.blocks), (5, 0, 0), "a permit without a range is for all of it");
}
