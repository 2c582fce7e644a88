//! Peers that show certificates, and rogues of every kind: none gets a byte, none plants one, each is counted.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use node_proxy::{peer, swarm};
use prometheus_client::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, SerialNumber};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use shoal_base::tls::{Keeper, Secured};
use shoal_proto::identity::{Known, serial};
use tokio::sync::watch;

use crate::support::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
const ISSUED: u64 = 1000;

/// An authority, as control has one.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let pair = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&pair).unwrap().der().clone();
        Self { issuer: Issuer::new(params, pair), certificate }
    }

    fn show(&self, keeper: &Keeper, name: &str, ends: SystemTime) {
        let pair = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
        params.serial_number = Some(SerialNumber::from_slice(&serial(ISSUED, 7)));
        (params.not_before, params.not_after) = ((SystemTime::now() - DAY).into(), ends.into());
        let certificate = params.signed_by(&pair, &self.issuer).unwrap().der().clone();
        keeper.show(vec![certificate], PrivateKeyDer::Pkcs8(pair.serialize_der().into())).unwrap();
    }
}

/// What one side shows and knows.
struct Identity {
    tls: Secured<Known>,
    known: watch::Sender<Arc<Known>>,
}

impl Identity {
    /// Shows a certificate of `by` with that name, and trusts `ours`.
    fn of(by: &Authority, ours: &Authority, name: &str) -> Self {
        Self::until(by, ours, name, SystemTime::now() + DAY)
    }

    fn until(by: &Authority, ours: &Authority, name: &str, ends: SystemTime) -> Self {
        let this = Self::nobody(ours);
        by.show(&this.tls.keeper, name, ends);
        this
    }

    /// Shows nothing.
    fn nobody(ours: &Authority) -> Self {
        let keeper = Keeper::new();
        keeper.trust([&ours.certificate]).unwrap();
        let domain = Some("shoal".parse().unwrap());
        let known = watch::Sender::new(Arc::new(Known { domain, ..Known::default() }));
        Self { tls: Secured { keeper, known: known.subscribe() }, known }
    }

    fn void(&self, name: &str, before: u64) {
        self.known.send_modify(|known| Arc::make_mut(known).voids.add(node(name), before));
    }
}

fn member(cluster: &str, name: &str) -> String {
    format!("spiffe://shoal/cluster/{cluster}/node/{name}")
}

async fn parent_as(identity: &Identity, book: &Arc<Book>) -> Running {
    let config = peer::Config { tls: Some(identity.tls.clone()), ..peer_config() };
    parent_with("p", config, Some(hello("a", "p")), &[book]).await
}

fn child_as(identity: &Identity) -> (Arc<swarm::Swarm>, Membership) {
    child_with(swarm::Config { tls: Some(identity.tls.clone()), ..swarm::Config::default() })
}

type Membership = watch::Sender<Option<shoal_proto::frame::Hello>>;

fn printed(registry: &Registry) -> String {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    text
}

#[tokio::test]
async fn members_of_a_cluster_exchange_blobs_and_connections_rest_between_them() {
    let authority = Authority::new();
    let blob = Blob::of(300 * BLOCK + 17);
    let (one, other) = (
        Identity::of(&authority, &authority, &member("a", "p")),
        Identity::of(&authority, &authority, &member("a", "child")),
    );
    let parent = parent_as(&one, &Book::whole(&blob)).await;
    let (swarm, _me) = child_as(&other);
    for _ in 0..2 {
        let ground = Field::of(&blob);
        assert_eq!(fetch(&swarm, &ground, &[&parent.parent]).done().await.0, Ok(()));
        assert!(ground.bytes() == blob.bytes);
        eventually("the connection rests", || swarm.resting() == 1).await;
    }
    assert_eq!(parent.connections(), 1);
}

#[tokio::test]
async fn i3_a_rogue_child_gets_nothing_whatever_it_shows() {
    let (ours, foreign) = (Authority::new(), Authority::new());
    let blob = Blob::of(4 * BLOCK);
    let honest = Identity::of(&ours, &ours, &member("a", "p"));
    let over = SystemTime::now() - Duration::from_secs(60);
    let rogues = [
        ("no certificate", Identity::nobody(&ours)),
        ("a foreign authority's", Identity::of(&foreign, &ours, &member("a", "child"))),
        ("one that is over", Identity::until(&ours, &ours, &member("a", "child"), over)),
        ("another cluster's", Identity::of(&ours, &ours, &member("b", "child"))),
        ("another node's", Identity::of(&ours, &ours, &member("a", "other"))),
        ("that of a node without a cluster", Identity::of(&ours, &ours, "spiffe://shoal/node/child")),
        ("control's", Identity::of(&ours, &ours, "spiffe://shoal/control")),
        ("another installation's", Identity::of(&ours, &ours, "spiffe://other/cluster/a/node/child")),
        ("a name that is none", Identity::of(&ours, &ours, "https://shoal/cluster/a/node/child")),
    ];
    for (what, rogue) in rogues {
        let parent = parent_as(&honest, &Book::whole(&blob)).await;
        let mut registry = Registry::default();
        let counted = peer::Metrics::register(&mut registry);
        let config = peer::Config { tls: Some(honest.tls.clone()), ..peer_config() };
        let counting = peer::Peer::new(config, parent.me.subscribe(), parent.shelf.clone(), counted);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = swarm::Parent { addr: swarm::ParentAddr(listener.local_addr().unwrap()), ..parent.parent.clone() };
        let (_end, drain) = shoal_base::drain::channel();
        let running = tokio::spawn(counting.run(listener, drain));
        let (swarm, _me) = child_as(&rogue);
        let ground = Field::of(&blob);
        let lost = fetch(&swarm, &ground, &[&at]).lost().await;
        assert_eq!((lost.0, ground.len()), (node("p"), 0), "{what}: {}", lost.1);
        let text = printed(&registry);
        let refused = |reason: &str| text.contains(&format!("refused_connections_total{{reason=\"{reason}\"}} "));
        assert!(refused("Handshake") || refused("Identity"), "{what} is not counted: {text}");
        assert!(text.contains("served_bytes_total 0"), "{what}: {text}");
        running.abort();
    }
}

#[tokio::test]
async fn i3_a_rogue_parent_is_asked_for_nothing_whatever_it_shows() {
    let (ours, foreign) = (Authority::new(), Authority::new());
    let blob = Blob::of(4 * BLOCK);
    let honest = Identity::of(&ours, &ours, &member("a", "child"));
    let over = SystemTime::now() - Duration::from_secs(60);
    for (what, rogue) in [
        ("a foreign authority's", Identity::of(&foreign, &ours, &member("a", "p"))),
        ("one that is over", Identity::until(&ours, &ours, &member("a", "p"), over)),
        ("another cluster's", Identity::of(&ours, &ours, &member("b", "p"))),
        ("another node's", Identity::of(&ours, &ours, &member("a", "other"))),
        ("control's", Identity::of(&ours, &ours, "spiffe://shoal/control")),
    ] {
        let parent = parent_as(&rogue, &Book::whole(&blob)).await;
        let mut registry = Registry::default();
        let metrics = swarm::Metrics::register(&mut registry);
        let me = watch::Sender::new(Some(hello("a", "child")));
        let config = swarm::Config { tls: Some(honest.tls.clone()), ..swarm::Config::default() };
        let swarm = swarm::Swarm::new(config, me.subscribe(), metrics);
        let ground = Field::of(&blob);
        let lost = fetch(&swarm, &ground, &[&parent.parent]).lost().await;
        assert!(lost.1.contains("certificate"), "{what}: {}", lost.1);
        assert_eq!((ground.len(), parent.peer.served_bytes()), (0, 0), "{what}");
        let text = printed(&registry);
        assert!(text.contains("lost_parents_total{reason=\"Identity\"} 1"), "{what}: {text}");
    }
}

#[tokio::test]
async fn plain_peers_and_secured_ones_do_not_meet() {
    let authority = Authority::new();
    let blob = Blob::of(4 * BLOCK);
    let one = Identity::of(&authority, &authority, &member("a", "p"));
    let secured = parent_as(&one, &Book::whole(&blob)).await;
    let (plain, _me) = child();
    let ground = Field::of(&blob);
    fetch(&plain, &ground, &[&secured.parent]).lost().await;
    assert_eq!((ground.len(), secured.peer.served_bytes()), (0, 0));

    let parent = parent("p", &[&Book::whole(&blob)]).await;
    let (swarm, _me) = child_as(&Identity::of(&authority, &authority, &member("a", "child")));
    let ground = Field::of(&blob);
    fetch(&swarm, &ground, &[&parent.parent]).lost().await;
    assert_eq!((ground.len(), parent.peer.served_bytes()), (0, 0));
}

#[tokio::test]
async fn what_is_declared_void_ends_connections_of_both_sides_at_once_and_is_not_taken_again() {
    let authority = Authority::new();
    let blob = Blob::of(4 * BLOCK);
    for by_parent in [true, false] {
        let (one, other) = (
            Identity::of(&authority, &authority, &member("a", "p")),
            Identity::of(&authority, &authority, &member("a", "child")),
        );
        // Nothing to give yet: the child waits.
        let parent = parent_as(&one, &Book::empty(&blob)).await;
        let (swarm, _me) = child_as(&other);
        let ground = Field::of(&blob);
        let mut fetching = fetch(&swarm, &ground, &[&parent.parent]);
        eventually("the child is there", || parent.connections() == 1).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        // Of others, and of certificates from before: nothing happens.
        one.void("someone", u64::MAX);
        one.void("child", ISSUED);
        other.void("p", ISSUED);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(parent.connections(), 1);
        let since = std::time::Instant::now();
        match by_parent {
            true => one.void("child", ISSUED + 1),
            false => other.void("p", ISSUED + 1),
        }
        fetching.lost().await;
        eventually("the connection is gone", || parent.connections() == 0).await;
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
        // Again, and refused.
        assert!(fetching.lost().await.1.contains("ertificate") || by_parent);
        assert_eq!(ground.len(), 0);
    }
}

#[tokio::test]
async fn a_connection_does_not_outlive_the_certificate_that_it_was_made_with() {
    let authority = Authority::new();
    let blob = Blob::of(4 * BLOCK);
    let ends = SystemTime::now() + Duration::from_secs(2);
    let one = Identity::of(&authority, &authority, &member("a", "p"));
    let other = Identity::until(&authority, &authority, &member("a", "child"), ends);
    let parent = parent_as(&one, &Book::empty(&blob)).await;
    let (swarm, _me) = child_as(&other);
    let mut fetching = fetch(&swarm, &Field::of(&blob), &[&parent.parent]);
    eventually("the child is there", || parent.connections() == 1).await;
    fetching.lost().await;
    assert!(SystemTime::now() >= ends - Duration::from_secs(1), "it ended before its time");
}
