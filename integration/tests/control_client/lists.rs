//! Piece lists that control relays: signed by their author, kept by the real control, judged by the real client; and a relay that changes them.

use futures::StreamExt as _;
use futures::stream::BoxStream;
use shoal_proto::control::v1 as wire;
use shoal_proto::statement::{Says, Statement};
use shoal_proto::{BlockIndex, Layout, NodeId};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use wire::find_request::Message as Said;
use wire::find_response::Message as Say;

use super::*;

const SIZE: u64 = 2 * BLOCK;

/// Nodes of cluster a that have joined.
struct Members {
    nodes: Vec<Daemon>,
    states: Vec<tempfile::TempDir>,
}

impl Members {
    async fn of(secured: &Secured, held: &[&[u8]]) -> Self {
        let token = secured.token(held.len() as u32).await;
        let states: Vec<_> = held.iter().map(|_| tempfile::tempdir().unwrap()).collect();
        let start = |(held, state): (&&[u8], &tempfile::TempDir)| {
            started(secured.config(state.path(), "", Some(token.clone())), held)
        };
        let nodes: Vec<Daemon> = held.iter().zip(&states).map(start).collect();
        for node in &nodes {
            node.connected().await;
        }
        Self { nodes, states }
    }
}

async fn sealed(finding: &mut Finding) -> NodeId {
    hear(finding, |news| match news {
        News::Sealed { author, .. } => Some(author),
        News::Refused { author } => panic!("the word of {author} is not believed"),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn i1_a_list_that_control_relays_proves_to_be_its_author_s() {
    let secured = secured(DAY).await;
    let Members { nodes, .. } = Members::of(&secured, &[&[], &[], &[]]).await;
    let (a, b, c) = (&nodes[0], &nodes[1], &nodes[2]);
    let author = a.client.node().clone();
    let mut reads = a.find(3).await;
    let id = permit(&mut reads).await.id;
    let mut follows = b.find(3).await;
    reads.tell.send(Tell::Headers { permit: id, size: SIZE, media_type: "x".into() }).await.unwrap();
    for first in 0..2 {
        reads.tell.send(Tell::Hashes { first, hashes: vec![1; 32].into() }).await.unwrap();
    }
    let head = hear(&mut follows, |news| if let News::Head { author, .. } = news { Some(author) } else { None }).await;
    assert_eq!(head, author);
    let mut late = c.find(3).await;
    for finding in [&mut follows, &mut late] {
        let mut known = 0;
        while known < 2 {
            let of = |news| if let News::Hashes { hashes, .. } = news { Some(hashes.len() / 32) } else { None };
            known += hear(finding, of).await;
        }
    }
    reads.tell.send(Tell::Done { size: SIZE, root: [9; 32], media_type: "x".into() }).await.unwrap();
    assert_eq!(sealed(&mut follows).await, author);
    drop((reads, follows));
    // Another who holds it vouches when the author is gone.
    b.differences
        .send(Difference::Held(Holding { root: [9; 32], media_type: "x".into(), ..holding(3) }))
        .await
        .unwrap();
    eventually("both hold it", || secured.control.swarm.counts().holdings == 2).await;
    secured.control.nodes.expel(&author, "the test says so");
    eventually("the author is gone", || secured.control.swarm.counts().holdings == 1).await;
    assert_eq!(sealed(&mut c.find(3).await).await, *b.client.node());
}

#[tokio::test]
async fn i1_readers_of_runs_believe_each_other_and_who_follows_believes_both() {
    let secured = secured(DAY).await;
    let Members { nodes, .. } = Members::of(&secured, &[&[], &[], &[]]).await;
    let size = 64 << 20;
    let large = || Ask { size: Some(size), ..ask(5) };
    let mut finds = Vec::new();
    let mut grants = Vec::new();
    for node in &nodes[..2] {
        let mut finding = within(node.client.find(large())).await.unwrap();
        grants.push(permit(&mut finding).await);
        finds.push(finding);
    }
    assert!(grants[0].blocks > 0 && grants[1].first >= grants[0].blocks, "{grants:?}");
    let mut follows = within(nodes[2].client.find(Ask { size: None, ..large() })).await.unwrap();
    for (finding, grant) in finds.iter().zip(&grants) {
        finding.tell.send(Tell::Headers { permit: grant.id, size, media_type: "x".into() }).await.unwrap();
        let hashes = vec![grant.first as u8; 32].into();
        finding.tell.send(Tell::Hashes { first: grant.first, hashes }).await.unwrap();
    }
    let part = |of: BlockIndex| {
        move |news| match news {
            News::Hashes { first, .. } if first == of => Some(()),
            News::Refused { author } => panic!("the word of {author} is not believed"),
            _ => None,
        }
    };
    // The first is the author of the list, and is told of no head.
    hear(&mut finds[0], part(grants[1].first)).await;
    hear(&mut finds[1], part(grants[0].first)).await;
    hear(&mut follows, part(grants[0].first)).await;
    hear(&mut follows, part(grants[1].first)).await;
}

#[tokio::test]
async fn i1_what_nodes_hold_is_proven_again_after_a_restart_of_control_and_after_a_move() {
    let Secured { control, identity, dir, store, life } = secured(DAY).await;
    let addr = control.addr;
    let secured = Secured { control, identity, dir, store, life };
    let states = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let token = secured.token(2).await;
    let config = |at: usize| secured.config(states[at].path(), "north", Some(token.clone()));
    let (a, b) = (started(config(0), &[1]), started(config(1), &[]));
    a.connected().await;
    b.connected().await;
    assert_eq!(sealed(&mut b.find(1).await).await, *a.client.node());
    secured.control.clusters.send_replace(set("north"));
    for node in [&a, &b] {
        eventually("it belongs elsewhere", || cluster(node).as_deref() == Some("b")).await;
    }
    let holds = || secured.control.nodes.list().iter().any(|node| node.held_blobs == 1);
    eventually("it has said again what it holds", holds).await;
    // Until control has heard that, what it knows is signed for the old cluster, and is not told as signed.
    let start = Instant::now();
    loop {
        let mut finding = b.find(1).await;
        let proven = hear(&mut finding, |news| match news {
            News::Sealed { .. } => Some(true),
            News::Refused { .. } => Some(false),
            _ => None,
        });
        if proven.await {
            break;
        }
        assert!(start.elapsed() < BOUND);
    }
    secured.control.stop().await;
    eventually("the nodes see that control is gone", || !a.client.is_connected() && !b.client.is_connected()).await;
    let (control, _identity) = on(&addr.to_string(), &secured.dir, &secured.store, secured.life).await;
    control.clusters.send_replace(set("north"));
    eventually("they are there again", || a.client.is_connected() && b.client.is_connected()).await;
    eventually("control knows what is held", || control.swarm.counts().holdings == 1).await;
    eventually("both are where they were", || [&a, &b].iter().all(|n| cluster(n).as_deref() == Some("b"))).await;
    assert_eq!(sealed(&mut b.find(1).await).await, *a.client.node());
}

/// A control whose key is control's own, and that says what the test wants.
#[derive(Clone)]
struct Relay {
    says: Arc<Vec<Say>>,
    hears: mpsc::Sender<Said>,
}

#[tonic::async_trait]
impl wire::control_server::Control for Relay {
    type SessionStream = BoxStream<'static, Result<wire::SessionResponse, Status>>;
    type FindStream = BoxStream<'static, Result<wire::FindResponse, Status>>;

    async fn session(
        &self,
        requests: Request<Streaming<wire::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let assigned = wire::Assigned {
            cluster_id: "a".into(),
            cluster_name: "A".into(),
            epoch: 1,
            session: vec![1; 16],
            heartbeat_ms: 1000,
            ..Default::default()
        };
        let assigned = wire::SessionResponse { message: Some(wire::session_response::Message::Assigned(assigned)) };
        // Nothing more is said, for as long as the node speaks.
        let quiet = requests.into_inner().filter_map(|_| std::future::ready(None));
        Ok(Response::new(futures::stream::iter([Ok(assigned)]).chain(quiet).boxed()))
    }

    async fn find(
        &self,
        requests: Request<Streaming<wire::FindRequest>>,
    ) -> Result<Response<Self::FindStream>, Status> {
        let (mut requests, hears) = (requests.into_inner(), self.hears.clone());
        let (out, answers) = mpsc::channel(100);
        for say in self.says.iter().cloned() {
            out.send(Ok(wire::FindResponse { message: Some(say) })).await.unwrap();
        }
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                if let Some(message) = request.message {
                    let _ = hears.send(message).await;
                }
            }
            drop(out);
        });
        Ok(Response::new(ReceiverStream::new(answers).boxed()))
    }

    async fn was_public(
        &self,
        _: Request<wire::WasPublicRequest>,
    ) -> Result<Response<wire::WasPublicResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn join(&self, _: Request<wire::JoinRequest>) -> Result<Response<wire::Certified>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn certify(&self, _: Request<wire::CertifyRequest>) -> Result<Response<wire::Certified>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

impl Relay {
    /// Serves on loopback, with control's certificate.
    async fn start(secured: &Secured, says: Vec<Say>) -> (SocketAddr, mpsc::Receiver<Said>) {
        let (hears, heard) = mpsc::channel(100);
        let keeper = Keeper::new();
        keeper.trust([secured.identity.authority().certificate()]).unwrap();
        let (chain, key) = secured.identity.authority().own(DAY, std::time::SystemTime::now()).unwrap();
        keeper.show(chain, key).unwrap();
        let acceptor = TlsAcceptor::from(shoal_base::tls::server(&keeper, false, &[b"h2"]));
        let listener = shoal_base::listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let (sockets, incoming) = mpsc::channel(10);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                if let Ok(stream) = acceptor.accept(socket).await {
                    sockets.send(Ok::<_, std::io::Error>(stream)).await.unwrap();
                }
            }
        });
        let relay = wire::control_server::ControlServer::new(Self { says: Arc::new(says), hears });
        let server = tonic::transport::Server::builder().add_service(relay);
        tokio::spawn(server.serve_with_incoming(ReceiverStream::new(incoming)));
        (addr, heard)
    }
}

/// What an author says of blob 3, signed as its daemon does.
struct Author<'a>(&'a Daemon);

impl Author<'_> {
    fn sign(&self, says: Says<'_>) -> Vec<u8> {
        let cluster = "a".parse().unwrap();
        let (digest, layout) = (digest(3), Layout::of(SIZE).unwrap());
        let statement = Statement { cluster: &cluster, author: self.0.client.node(), digest, layout, says };
        self.0.client.secured().unwrap().keeper.sign(&statement.bytes()).unwrap()
    }

    fn name(&self) -> String {
        self.0.client.node().to_string()
    }

    fn certificate(&self) -> Say {
        let certificate = self.0.client.secured().unwrap().keeper.certificate().unwrap().to_vec();
        Say::Author(wire::Author { node_id: self.name(), certificate })
    }

    fn head(&self) -> wire::ListHead {
        let signature = self.sign(Says::Head { media_type: "x" });
        wire::ListHead { author: self.name(), size: SIZE, media_type: "x".into(), signature }
    }

    fn part(&self) -> wire::ListPart {
        let hashes = vec![1; 64];
        let signature = self.sign(Says::Part { first: 0, hashes: &hashes });
        wire::ListPart { first_block: 0, hashes, author: self.name(), signature }
    }

    fn seal(&self) -> wire::Sealed {
        let signature = self.sign(Says::Whole { root: &[9; 32], media_type: "x" });
        wire::Sealed { author: self.name(), root: vec![9; 32], size: SIZE, media_type: "x".into(), signature }
    }
}

#[tokio::test]
async fn i1_a_list_that_control_or_somebody_between_changes_is_not_believed_and_control_is_told() {
    let secured = secured(DAY).await;
    let Members { mut nodes, states } = Members::of(&secured, &[&[], &[]]).await;
    let reader = nodes.pop().unwrap();
    drop(reader);
    let author = Author(&nodes[0]);
    let mut hashes = author.part().hashes;
    hashes[0] ^= 1;
    let head = Say::Head(author.head());
    let cases: Vec<(Vec<Say>, bool)> = vec![
        (vec![author.certificate(), head.clone(), Say::List(author.part())], true),
        (vec![author.certificate(), Say::Sealed(author.seal())], true),
        (vec![author.certificate(), head.clone(), Say::List(wire::ListPart { hashes, ..author.part() })], false),
        (vec![author.certificate(), Say::Sealed(wire::Sealed { root: vec![8; 32], ..author.seal() })], false),
        (vec![author.certificate(), Say::Head(wire::ListHead { size: SIZE - 1, ..author.head() })], false),
        // Without a certificate, and without a signature: never as if there were no TLS.
        (vec![head.clone()], false),
        (vec![author.certificate(), Say::Sealed(wire::Sealed { signature: Vec::new(), ..author.seal() })], false),
    ];
    for (at, (says, good)) in cases.into_iter().enumerate() {
        let last = says.len() - 1;
        let (addr, mut heard) = Relay::start(&secured, says).await;
        let endpoint = Some(format!("https://{addr}").parse().unwrap());
        let node = started(Config { endpoint, ..secured.config(states[1].path(), "", None) }, &[]);
        node.connected().await;
        let mut finding = node.find(3).await;
        let mut believed = 0;
        let refused = hear(&mut finding, |news| match news {
            News::Refused { author } => Some(Some(author)),
            News::Head { .. } if last > 1 => None,
            News::Head { .. } | News::Hashes { .. } | News::Sealed { .. } => Some(None),
            _ => None,
        })
        .await;
        believed += usize::from(refused.is_none());
        assert_eq!(believed == 1, good, "case {at}");
        if !good {
            assert_eq!(refused.as_ref(), Some(nodes[0].client.node()), "case {at}");
            let doubts = within(async {
                loop {
                    if let Said::Unproven(wire::Unproven { author }) = heard.recv().await.unwrap() {
                        return author;
                    }
                }
            });
            assert_eq!(doubts.await, author.name());
        }
    }
}
