//! Machines in the network that are no members, or no more: real daemons give them nothing, and say so in log and metrics.
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::{SinkExt, StreamExt};
use lab::{
    image::{Image, Plan},
    liar::Liar,
    papers::Papers,
    wait::eventually,
    world::{World, WorldPlan},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use shoal_base::tls::{self, Keeper, Wire};
use shoal_proto::{
    Digest,
    frame::{Frame, FrameCodec, Hello},
};
use tokio_util::codec::Framed;

use crate::alone;

const PLACE: &str = "x1";
const PEER_PORT: u16 = 5081;
const REPOSITORY: &str = "lab/rogues";
/// Within this everybody knows of a revocation.
const EVERYWHERE: Duration = Duration::from_secs(5);

/// What a rogue asks for, and says of itself.
struct Scene {
    world: World,
    at: SocketAddr,
    hello: Hello,
    digest: Digest,
}

impl Scene {
    async fn counted(&mut self, reason: &str) -> Result<u64> {
        let metrics = self.world.node("a1")?.shoal()?.admin().get_text("/metrics").await?;
        let key = format!("shoal_peer_refused_connections_total{{reason=\"{reason}\"}} ");
        Ok(metrics.lines().find_map(|line| line.strip_prefix(&key)?.parse().ok()).unwrap_or(0))
    }

    async fn served(&mut self) -> Result<u64> {
        let metrics = self.world.node("a1")?.shoal()?.admin().get_text("/metrics").await?;
        let served = metrics.lines().find_map(|line| line.strip_prefix("shoal_peer_served_bytes_total ")?.parse().ok());
        served.context("no counter of served bytes")
    }

    fn logged(&mut self, line: &str) -> Result<usize> {
        let log = fs::read_to_string(self.world.node("a1")?.shoal()?.log())?;
        Ok(log.lines().filter(|one| one.contains(line)).count())
    }

    /// Connects as the keeper would, or without TLS, says hello and opens the blob. What came back; `None`: the end.
    async fn try_for(&self, keeper: Option<&Arc<Keeper>>) -> Result<Option<Frame>> {
        let stream = self.world.net.namespace(PLACE)?.connect(self.at).await?;
        let client = keeper.map(|keeper| tls::client(keeper, None, &[]));
        let talk = async {
            let Ok(stream) = Wire::connect(stream, client).await else { return None };
            let mut wire = Framed::new(stream, FrameCodec::default());
            wire.send(Frame::Hello(self.hello.clone())).await.ok()?;
            let open = Frame::Open { digest: self.digest, traceparent: String::new(), holders: 1 };
            wire.send(open).await.ok()?;
            let mut last = None;
            while let Some(Ok(frame)) = wire.next().await {
                let ends = matches!(frame, Frame::Blob { .. } | Frame::Refused(_));
                last = Some(frame);
                if ends {
                    break;
                }
            }
            last
        };
        tokio::time::timeout(EVERYWHERE, talk).await.context("neither an answer nor the end")
    }

    /// A rogue that must get nothing, and be counted and logged.
    async fn refused(&mut self, what: &str, keeper: Option<&Arc<Keeper>>, reason: &str) -> Result<()> {
        let before = (self.counted(reason).await?, self.logged("refused a child")?, self.served().await?);
        let got = self.try_for(keeper).await?;
        ensure!(matches!(got, None | Some(Frame::Refused(_))), "{what}: the node answered {got:?}");
        let after = (self.counted(reason).await?, self.logged("refused a child")?, self.served().await?);
        ensure!(after.0 == before.0 + 1, "{what}: {reason} was counted {} times, and {} before", after.0, before.0);
        ensure!(after.1 == before.1 + 1, "{what}: no line \"refused a child\" in the log");
        ensure!(after.2 == before.2, "{what}: it was given {} bytes", after.2 - before.2);
        println!("{what:50} refused, counted as {reason}");
        Ok(())
    }
}

/// A certificate with a member's name, by an authority that nobody trusts.
fn forged(name: &str, trusts: &Papers) -> Result<Arc<Keeper>> {
    let (authority, pair) = (KeyPair::generate()?, KeyPair::generate()?);
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = Issuer::new(params, authority);
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::URI(name.try_into()?)];
    let certificate: CertificateDer<'static> = leaf.signed_by(&pair, &issuer)?.der().clone();
    // It believes the real node: what stops it is the node.
    let keeper = trusts.stranger();
    keeper.show(vec![certificate], PrivateKeyDer::Pkcs8(pair.serialize_der().into()))?;
    Ok(keeper)
}

#[test]
fn i3_who_is_no_member_gets_nothing_of_a_real_node_and_a_revoked_one_loses_what_it_has_within_five_seconds() {
    alone(async {
        let plan = WorldPlan { origin_rate: None, ..WorldPlan::one_cluster(2) };
        let mut world = World::start(plan.with_guest(PLACE, Ipv4Addr::new(10, 77, 1, 200))).await?;
        let image = Image::obtain(&Plan::small())?;
        world.registry.push(&image, REPOSITORY, "1").await?;
        world.start_nodes().await?;
        let layer = image.layers.iter().max_by_key(|layer| layer.size).context("an image has layers")?.clone();
        world.reader("a1")?.read(REPOSITORY, &layer, Duration::ZERO).await?;

        let token = world.token()?.context("this world has certificates")?;
        let member = Liar::join(&world.net.namespace(PLACE)?, world.grpc(), "x1", Some(&token)).await?;
        let papers = member.papers().context("a member has papers")?.clone();
        let at = SocketAddr::from((world.net.namespace("a1")?.address, PEER_PORT));
        let (hello, digest) = (member.hello(), layer.digest.parse()?);
        let mut scene = Scene { world, at, hello, digest };

        let got = scene.try_for(Some(&papers.keeper)).await?;
        ensure!(matches!(got, Some(Frame::Blob { .. })), "a member is answered {got:?}");

        scene.refused("without a certificate", Some(&papers.stranger()), "Handshake").await?;
        let name = format!("spiffe://shoal/cluster/{}/node/x1", scene.hello.cluster);
        scene.refused("with that of a foreign authority", Some(&forged(&name, &papers)?), "Handshake").await?;
        let (served, plain) = (scene.served().await?, scene.try_for(None).await?);
        ensure!(plain.is_none() && scene.served().await? == served, "without TLS the node answered {plain:?}");
        let own = scene.hello.clone();
        scene.hello.node = "somebody-else".parse()?;
        scene.refused("under another node's name", Some(&papers.keeper), "Identity").await?;
        scene.hello = Hello { cluster: "another".parse()?, ..own.clone() };
        let got = scene.try_for(Some(&papers.keeper)).await?;
        ensure!(matches!(got, Some(Frame::Refused(_))), "for another cluster the node answered {got:?}");
        scene.hello = own;

        revoked(&mut scene, &papers).await?;
        drop(member);
        scene.world.node("a2")?.pull(REPOSITORY, "1", &image).await?;
        Ok(())
    });
}

/// A member that is connected is revoked: its connection ends, it is refused from then on, and control names it.
async fn revoked(scene: &mut Scene, papers: &Papers) -> Result<()> {
    let stream = scene.world.net.namespace(PLACE)?.connect(scene.at).await?;
    let stream = Wire::connect(stream, Some(tls::client(&papers.keeper, None, &[]))).await?;
    let mut wire = Framed::new(stream, FrameCodec::default());
    wire.send(Frame::Hello(scene.hello.clone())).await?;
    ensure!(matches!(wire.next().await, Some(Ok(Frame::Hello(_)))), "the member was not let in");
    let since = Instant::now();
    scene.world.control()?.ctl(&["member", "revoke", "x1"]).await?;
    let ended = tokio::time::timeout(EVERYWHERE, async { while let Some(Ok(_)) = wire.next().await {} }).await;
    ensure!(ended.is_ok(), "its connection is there {EVERYWHERE:?} after it was revoked");
    println!("{:50} its connection ended after {:.2} s", "a member that is revoked", since.elapsed().as_secs_f64());
    scene.refused("a member that was revoked", Some(&papers.keeper), "Identity").await?;
    let log = fs::read_to_string(scene.world.control()?.log())?;
    ensure!(log.contains("node revoked"), "control's log does not name it");
    eventually(EVERYWHERE, "control to forget it", || async {
        let nodes = scene.world.control_ref()?.nodes().await?;
        if nodes.iter().any(|node| node.id == "x1") {
            bail!("it is live: {nodes:?}");
        }
        Ok(())
    })
    .await?;
    let token = scene.world.token()?.context("this world has certificates")?;
    let again = Liar::join(&scene.world.net.namespace(PLACE)?, scene.world.grpc(), "x1", Some(&token)).await;
    ensure!(again.is_err(), "it joined again");
    Ok(())
}
