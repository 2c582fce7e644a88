//! The same over mutual TLS: joining, renewing, moving, coming back and being thrown out.

use std::path::PathBuf;

use control::identity::{self, Authority, Identity, NewJoinToken, Reason};
use control::store::MemoryStore;
use node_proxy::control::JoinBy;
use shoal_base::tls::Keeper;
use shoal_proto::identity::Known;

use super::*;

#[path = "lists.rs"]
mod lists;

#[path = "accounts.rs"]
mod accounts;

/// A control service that certifies.
struct Secured {
    control: Control,
    identity: Arc<Identity>,
    dir: tempfile::TempDir,
    store: Arc<MemoryStore>,
    life: Duration,
}

async fn secured(life: Duration) -> Secured {
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::default()));
    let (control, identity) = on("127.0.0.1:0", &dir, &store, life).await;
    Secured { control, identity, dir, store, life }
}

async fn on(addr: &str, dir: &tempfile::TempDir, store: &Arc<MemoryStore>, life: Duration) -> (Control, Arc<Identity>) {
    let authority = Authority::open(dir.path(), "shoal".parse().unwrap()).unwrap();
    let kubernetes = accounts::configured(dir.path());
    let config = identity::Config { life, kubernetes };
    let identity = Identity::open(config, authority, store.clone(), identity::Metrics::default()).await.unwrap();
    let (identity, keeper) = (Arc::new(identity), Keeper::new());
    keeper.trust([identity.authority().certificate()]).unwrap();
    // However short certificates of nodes count.
    let (chain, key) = identity.authority().own(DAY, std::time::SystemTime::now()).unwrap();
    keeper.show(chain, key).unwrap();
    let listener = shoal_base::listen::bind(addr.parse().unwrap()).unwrap();
    (Control::with(listener, Gate::secured(identity.clone(), &keeper)), identity)
}

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Secured {
    /// A file with a token for that many nodes.
    async fn token(&self, uses: u32) -> PathBuf {
        let new = NewJoinToken { cluster: None, seed: false, life: Duration::from_secs(60), uses };
        let (row, token) = self.identity.make_token(new, "test").await.unwrap();
        let path = self.dir.path().join(format!("token-{}", row.id));
        std::fs::write(&path, token.reveal()).unwrap();
        path
    }

    fn config(&self, state: &Path, idc: &str, token: Option<PathBuf>) -> Config {
        let endpoint = Some(format!("https://{}", self.control.addr).parse().unwrap());
        Config { endpoint, tls: Mode::On, join: token.map(JoinBy::Token), ..config(self.control.addr, state, idc) }
    }

    fn refused(&self, reason: Reason) -> u64 {
        self.identity.metrics().refusals(reason)
    }
}

fn known(daemon: &Daemon) -> Arc<Known> {
    daemon.client.secured().unwrap().known.borrow().clone()
}

fn cluster(daemon: &Daemon) -> Option<String> {
    daemon.client.membership().borrow().as_ref().map(|hello| hello.cluster.to_string())
}

#[tokio::test]
async fn a_node_joins_by_a_token_once_and_comes_again_without() {
    let secured = secured(DAY).await;
    let state = tempfile::tempdir().unwrap();
    let token = secured.token(1).await;
    let node = started(secured.config(state.path(), "", Some(token.clone())), &[1]);
    node.connected().await;
    assert_eq!(cluster(&node).as_deref(), Some("a"));
    assert_eq!(known(&node).domain.as_ref().unwrap().as_str(), "shoal");
    eventually("control knows what is held", || secured.control.swarm.counts().holdings == 1).await;
    drop(node);
    // The token is used up, and gone.
    std::fs::remove_file(token).unwrap();
    let again = started(secured.config(state.path(), "", None), &[1]);
    again.connected().await;
    assert_eq!(secured.identity.members().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_token_that_does_not_count_lets_nobody_in() {
    let secured = secured(DAY).await;
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let token = secured.token(1).await;
    started(secured.config(one.path(), "", Some(token.clone())), &[]).connected().await;
    let late = started(secured.config(two.path(), "", Some(token)), &[]);
    eventually("control refuses it", || secured.refused(Reason::BadToken) > 0).await;
    assert!(!late.client.is_connected() && cluster(&late).is_none());
    assert_eq!(secured.identity.members().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_control_that_is_not_the_one_of_the_token_gets_no_token_and_no_node() {
    let (real, impostor) = (secured(DAY).await, secured(DAY).await);
    let state = tempfile::tempdir().unwrap();
    let token = real.token(1).await;
    let node = started(impostor.config(state.path(), "", Some(token.clone())), &[]);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!node.client.is_connected());
    assert_eq!(impostor.refused(Reason::BadToken), 0, "the token was not shown to it");
    drop(node);
    // Nor does a node that has joined talk to it.
    let node = started(real.config(state.path(), "", Some(token)), &[]);
    node.connected().await;
    drop(node);
    let lured = started(impostor.config(state.path(), "", None), &[]);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!lured.client.is_connected());
}

#[tokio::test]
async fn a_certificate_is_renewed_before_its_time_is_over() {
    let secured = secured(Duration::from_secs(3)).await;
    let state = tempfile::tempdir().unwrap();
    let token = secured.token(1).await;
    let node = started(secured.config(state.path(), "", Some(token)), &[]);
    node.connected().await;
    let kept = || std::fs::read_to_string(state.path().join("identity.json")).unwrap();
    let first = kept();
    tokio::time::sleep(secured.life + Duration::from_secs(1)).await;
    assert!(node.client.is_connected() && cluster(&node).is_some());
    assert_ne!(kept(), first, "it has another certificate");
    drop(node);
    started(secured.config(state.path(), "", None), &[]).connected().await;
}

#[tokio::test]
async fn a_node_that_was_away_for_longer_than_its_certificate_counts_comes_back_by_its_key() {
    let secured = secured(Duration::from_secs(1)).await;
    let state = tempfile::tempdir().unwrap();
    let token = secured.token(1).await;
    let node = started(secured.config(state.path(), "", Some(token)), &[]);
    node.connected().await;
    drop(node);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    started(secured.config(state.path(), "", None), &[]).connected().await;
}

#[tokio::test]
async fn a_node_that_is_moved_is_certified_anew_and_all_hear_that_what_it_had_is_void() {
    let secured = secured(DAY).await;
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let token = secured.token(2).await;
    let moves = started(secured.config(one.path(), "north", Some(token.clone())), &[]);
    let stays = started(secured.config(two.path(), "", Some(token)), &[]);
    moves.connected().await;
    stays.connected().await;
    assert_eq!(cluster(&moves).as_deref(), Some("a"));
    let start = Instant::now();
    secured.control.clusters.send_replace(set("north"));
    eventually("it belongs elsewhere", || cluster(&moves).as_deref() == Some("b")).await;
    let node = moves.client.node().clone();
    eventually("the other hears of it", || known(&stays).voids.cover(&node, 1)).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(cluster(&stays).as_deref(), Some("a"));
}

#[tokio::test]
async fn a_revoked_node_loses_its_session_and_all_hear_of_it() {
    let secured = secured(DAY).await;
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let token = secured.token(2).await;
    let bad = started(secured.config(one.path(), "", Some(token.clone())), &[1]);
    let good = started(secured.config(two.path(), "", Some(token)), &[]);
    bad.connected().await;
    good.connected().await;
    let node = bad.client.node().clone();
    let start = Instant::now();
    secured.identity.revoke(&node, "test").await.unwrap().unwrap();
    secured.control.nodes.expel(&node, "it was revoked");
    eventually("it has no session", || !bad.client.is_connected()).await;
    eventually("the other hears of it", || known(&good).voids.cover(&node, 1)).await;
    eventually("it is refused when it comes again", || secured.refused(Reason::Revoked) > 0).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(secured.control.swarm.counts().holdings, 0);
    assert!(!bad.client.is_connected() && good.client.is_connected());
}

#[tokio::test]
async fn members_and_voids_outlive_control() {
    let Secured { control, identity, dir, store, life } = secured(DAY).await;
    let addr = control.addr;
    let secured = Secured { control, identity, dir, store, life };
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let token = secured.token(2).await;
    let node = started(secured.config(one.path(), "", Some(token.clone())), &[]);
    let bad = started(secured.config(two.path(), "", Some(token)), &[]);
    node.connected().await;
    bad.connected().await;
    let revoked = bad.client.node().clone();
    secured.identity.revoke(&revoked, "test").await.unwrap().unwrap();
    drop(bad);
    secured.control.stop().await;
    eventually("the node sees that control is gone", || !node.client.is_connected()).await;
    let (control, _identity) = on(&addr.to_string(), &secured.dir, &secured.store, secured.life).await;
    eventually("it is there again", || node.client.is_connected()).await;
    assert!(known(&node).voids.cover(&revoked, 1));
    control.stop().await;
}

#[tokio::test]
async fn one_node_s_certificate_is_of_no_use_for_another_s_name() {
    let secured = secured(DAY).await;
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let token = secured.token(1).await;
    let node = started(secured.config(one.path(), "", Some(token)), &[]);
    node.connected().await;
    drop(node);
    // Its whole identity is stolen, and shown under another name.
    std::fs::create_dir_all(two.path()).unwrap();
    std::fs::copy(one.path().join("identity.json"), two.path().join("identity.json")).unwrap();
    let thief = started(secured.config(two.path(), "", None), &[]);
    eventually("control refuses it", || secured.refused(Reason::Name) > 0).await;
    assert!(!thief.client.is_connected());
}

#[tokio::test]
async fn the_old_key_of_a_node_that_joined_anew_opens_no_session_in_its_name() {
    let secured = secured(DAY).await;
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let token = secured.token(2).await;
    let node = started(secured.config(old.path(), "", Some(token.clone())), &[]);
    node.connected().await;
    let id = node.client.node().clone();
    drop(node);
    secured.identity.remove(&id, "test").await.unwrap().unwrap();
    std::fs::copy(old.path().join("node-id"), new.path().join("node-id")).unwrap();
    let anew = started(secured.config(new.path(), "", Some(token)), &[]);
    anew.connected().await;
    assert_eq!(*anew.client.node(), id);
    let thief = started(secured.config(old.path(), "", None), &[]);
    eventually("control refuses it", || secured.refused(Reason::OtherKey) > 0).await;
    assert!(!thief.client.is_connected() && anew.client.is_connected());
}

#[tokio::test]
async fn who_shows_no_certificate_may_join_and_nothing_else() {
    use shoal_proto::control::v1 as wire;
    let secured = secured(DAY).await;
    let token = std::fs::read_to_string(secured.token(1).await).unwrap();
    let token: shoal_proto::identity::JoinToken = token.parse().unwrap();
    let tls = shoal_base::tls::client(&Keeper::new(), Some(token.ca), &[b"h2"]);
    let addr = secured.control.addr;
    let connector = tower::service_fn(move |_: http::Uri| {
        let tls = tls.clone();
        async move {
            let stream = tokio::net::TcpStream::connect(addr).await?;
            let wire = shoal_base::tls::Wire::connect(stream, Some(tls)).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(wire))
        }
    });
    let channel = tonic::transport::Endpoint::from_static("http://control").connect_with_connector(connector).await;
    let mut grpc = wire::control_client::ControlClient::new(channel.unwrap());
    let refused = [
        grpc.session(tokio_stream::iter([])).await.map(drop).unwrap_err(),
        grpc.find(tokio_stream::iter([])).await.map(drop).unwrap_err(),
        grpc.was_public(wire::WasPublicRequest::default()).await.map(drop).unwrap_err(),
        grpc.certify(wire::CertifyRequest::default()).await.map(drop).unwrap_err(),
    ];
    for status in refused {
        assert_eq!(status.code(), tonic::Code::Unauthenticated, "{status}");
    }
    assert_eq!(secured.refused(Reason::NoCertificate), 4);
    let bad = grpc.join(wire::JoinRequest::default()).await.unwrap_err();
    assert!(bad.code() == tonic::Code::InvalidArgument && bad.message().starts_with("node_id"), "{bad}");
    let request = wire::JoinRequest { node_id: "n1".into(), signing_request: vec![1; 9], token: token.reveal() };
    let bad = grpc.join(request).await.unwrap_err();
    assert!(bad.code() == tonic::Code::InvalidArgument && bad.message().starts_with("signing_request"), "{bad}");
}

/// A connection of somebody without a certificate, after its handshake.
async fn stranger(secured: &Secured) -> std::io::Result<shoal_base::tls::Wire> {
    let tls = shoal_base::tls::client(&Keeper::new(), Some(secured.identity.authority().pin()), &[b"h2"]);
    let stream = tokio::net::TcpStream::connect(secured.control.addr).await?;
    shoal_base::tls::Wire::connect(stream, Some(tls)).await
}

#[tokio::test]
async fn who_has_no_certificate_sends_no_more_than_joining_takes() {
    use control::api::grpc::Reason::Overstayed;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let secured = secured(DAY).await;
    let (mut read, mut write) = tokio::io::split(stranger(&secured).await.unwrap());
    // The preface, and then frames of a type that nobody knows, which are to be passed over (RFC 9113, 4.1).
    write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let unknown = [&[0, 0x10, 0, 0xee, 0, 0, 0, 0, 0][..], &[0; 0x1000]].concat();
    let sending = async { while write.write_all(&unknown).await.is_ok() {} };
    let mut heard = Vec::new();
    let _ = within(async { tokio::join!(sending, read.read_to_end(&mut heard)) }).await;
    eventually("it is counted", || secured.control.connections.refusals(Overstayed) == 1).await;
}

#[tokio::test]
async fn strangers_do_not_keep_nodes_out() {
    use control::api::grpc::Reason::Strangers;
    let secured = secured(DAY).await;
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let token = secured.token(2).await;
    let member = started(secured.config(one.path(), "", Some(token.clone())), &[]);
    member.connected().await;
    drop(member);
    let mut strangers = Vec::new();
    while secured.control.connections.refusals(Strangers) == 0 {
        assert!(strangers.len() < 1000, "there is no bound");
        strangers.push(stranger(&secured).await);
        tokio::task::yield_now().await;
    }
    // Whoever has a certificate is let in; whoever has none waits for a place.
    started(secured.config(one.path(), "", None), &[]).connected().await;
    let newcomer = started(secured.config(two.path(), "", Some(token)), &[]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!newcomer.client.is_connected());
    strangers.clear();
    newcomer.connected().await;
}
