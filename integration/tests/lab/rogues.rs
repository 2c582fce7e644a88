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
    forge::{Forge, Time},
    image::{Image, Plan},
    liar::Liar,
    node::labelled,
    papers::{self, Papers},
    wait::eventually,
    world::{World, WorldPlan},
};
use shoal_base::tls::{self, Keeper, Wire};
use shoal_proto::{
    Digest,
    control::v1::{self as wire, control_client::ControlClient},
    frame::{Frame, FrameCodec, Hello},
};
use tokio_util::codec::Framed;

use crate::alone;

const PLACE: &str = "x1";
/// Stands in another cluster.
const ELSEWHERE: &str = "x2";
const PEER_PORT: u16 = 5081;
const REPOSITORY: &str = "lab/rogues";
/// Within this everybody knows of a revocation.
const EVERYWHERE: Duration = Duration::from_secs(5);
/// What a node logs of a child that it refuses.
const REFUSED: &str = "refused a child";

/// What a rogue asks for, and says of itself.
struct Scene {
    world: World,
    at: SocketAddr,
    hello: Hello,
    digest: Digest,
}

/// How a daemon calls what a rogue is refused for.
struct Named<'a> {
    /// The label of its metric.
    reason: &'a str,
    /// What its log says.
    says: &'a str,
    /// The line in which it says that.
    line: &'a str,
}

impl<'a> Named<'a> {
    fn new(reason: &'a str, says: &'a str) -> Self {
        Self { reason, says, line: REFUSED }
    }
}

impl Scene {
    async fn counted(&mut self, reason: &str) -> Result<u64> {
        let metrics = self.world.node("a1")?.shoal()?.admin().get_text("/metrics").await?;
        Ok(labelled(&metrics, "shoal_peer_refused_connections_total", "reason").get(reason).copied().unwrap_or(0))
    }

    async fn served(&mut self) -> Result<u64> {
        let metrics = self.world.node("a1")?.shoal()?.admin().get_text("/metrics").await?;
        let served = metrics.lines().find_map(|line| line.strip_prefix("shoal_peer_served_bytes_total ")?.parse().ok());
        served.context("no counter of served bytes")
    }

    fn logged(&mut self, named: &Named<'_>) -> Result<usize> {
        let log = fs::read_to_string(self.world.node("a1")?.shoal()?.log())?;
        Ok(log.lines().filter(|line| line.contains(named.line) && line.contains(named.says)).count())
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

    /// A rogue that must get nothing, and be named in the log and among the metrics.
    async fn refused(&mut self, what: &str, keeper: Option<&Arc<Keeper>>, named: Named<'_>) -> Result<()> {
        let Named { reason, says, line } = named;
        let before = (self.counted(reason).await?, self.logged(&named)?, self.served().await?);
        let got = self.try_for(keeper).await?;
        ensure!(matches!(got, None | Some(Frame::Refused(_))), "{what}: the node answered {got:?}");
        // It says so when it has answered.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let after = (self.counted(reason).await?, self.logged(&named)?, self.served().await?);
        ensure!(after.0 == before.0 + 1, "{what}: {reason} was counted {} times, and {} before", after.0, before.0);
        ensure!(after.1 == before.1 + 1, "{what}: no line {line:?} in the log that says {says:?}");
        ensure!(after.2 == before.2, "{what}: it was given {} bytes", after.2 - before.2);
        println!("{what:52} refused, counted as {reason}, {says:?}");
        Ok(())
    }

    /// A rogue that calls control, which must name it in its log and among its metrics.
    async fn refused_by_control(&mut self, what: &str, keeper: &Arc<Keeper>, named: Named<'_>) -> Result<()> {
        let before = self.at_control(&named).await?;
        let called = async {
            let ns = self.world.net.namespace(PLACE)?;
            let channel = papers::channel(&ns, self.world.grpc(), Some((keeper, None))).await?;
            let nothing = wire::CertifyRequest { session: Vec::new(), signing_request: Vec::new() };
            anyhow::Ok(ControlClient::new(channel).certify(nothing).await?)
        };
        let called = tokio::time::timeout(EVERYWHERE, called).await.context("neither an answer nor the end")?;
        ensure!(called.is_err(), "{what}: control answered {called:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (after, Named { reason, says, line }) = (self.at_control(&named).await?, named);
        ensure!(after.0 > before.0, "{what}: control did not count {reason}");
        ensure!(after.1 > before.1, "{what}: no line {line:?} in control's log that says {says:?}");
        println!("{what:52} refused by control, counted as {reason}, {says:?}");
        Ok(())
    }

    async fn at_control(&mut self, named: &Named<'_>) -> Result<(u64, usize)> {
        let control = self.world.control()?;
        let metrics = control.rest().get_text("/metrics").await?;
        let counted = labelled(&metrics, "shoal_identity_refused_total", "reason");
        let log = fs::read_to_string(control.log())?;
        let logged = log.lines().filter(|line| line.contains(named.line) && line.contains(named.says)).count();
        Ok((counted.get(named.reason).copied().unwrap_or(0), logged))
    }

    async fn join(&self, place: &str) -> Result<Liar> {
        let token = self.world.token()?.context("this world has certificates")?;
        Liar::join(&self.world.net.namespace(place)?, self.world.grpc(), place, Some(&token)).await
    }
}

/// The name of a member of the scene's cluster.
fn name(hello: &Hello) -> String {
    format!("spiffe://shoal/cluster/{}/node/{}", hello.cluster, hello.node)
}

/// What a member trusts, and shows what the forge makes of its name. It believes the real node: what stops it is the node.
fn armed(papers: &Papers, forge: &Forge, name: &str, time: Time) -> Result<Arc<Keeper>> {
    let keeper = papers.stranger();
    forge.arm(&keeper, name, time, &[])?;
    Ok(keeper)
}

#[test]
fn i3_who_is_no_member_gets_nothing_of_a_real_node_and_a_revoked_one_loses_what_it_has_within_five_seconds() {
    alone(async {
        let mut scene = set().await?;
        let member = scene.join(PLACE).await?;
        let papers = member.papers().context("a member has papers")?.clone();
        scene.hello = member.hello();
        let got = scene.try_for(Some(&papers.keeper)).await?;
        ensure!(matches!(got, Some(Frame::Blob { .. })), "a member is answered {got:?}");

        let (own, stolen) = (Forge::own()?, Forge::stolen(&scene.world.dirs.state.join("control/state"))?);
        let name = name(&scene.hello);
        let stranger = papers.stranger();
        let foreign = armed(&papers, &own, &name, Time::Now)?;
        let expired = armed(&papers, &stolen, &name, Time::Over)?;
        // Or the expired one would be refused for something else.
        let good = armed(&papers, &stolen, &name, Time::Now)?;
        let got = scene.try_for(Some(&good)).await?;
        ensure!(matches!(got, Some(Frame::Blob { .. })), "who has the authority's key is answered {got:?}");

        let handshake = |says| Named::new("Handshake", says);
        scene.refused("without TLS", None, handshake("does not speak TLS 1.3")).await?;
        scene.refused("without a certificate", Some(&stranger), handshake("showed no certificate")).await?;
        scene.refused("with that of a foreign authority", Some(&foreign), handshake("not from an authority")).await?;
        scene.refused("with one that has expired", Some(&expired), handshake("time is over")).await?;
        of_others(&mut scene, &papers).await?;

        let line = "refused a node";
        let named = |reason, says| Named { reason, says, line };
        for (what, keeper, named) in [
            ("without a certificate", &stranger, named("NoCertificate", "a certificate is needed")),
            ("with that of a foreign authority", &foreign, named("Foreign", "not from an authority")),
            ("with one that has expired", &expired, named("Expired", "time is over")),
        ] {
            scene.refused_by_control(what, keeper, named).await?;
        }

        revoked(&mut scene, &papers).await?;
        drop(member);
        let image = Image::obtain(&Plan::small())?;
        scene.world.node("a2")?.pull(REPOSITORY, "1", &image).await?;
        Ok(())
    });
}

/// Two nodes, of which the first holds the blob that is asked for.
async fn set() -> Result<Scene> {
    let plan = WorldPlan { origin_rate: None, ..WorldPlan::one_cluster(2) }
        .with_guest(PLACE, Ipv4Addr::new(10, 77, 1, 200))
        .with_guest(ELSEWHERE, Ipv4Addr::new(10, 77, 2, 200))
        // What comes of a child that names another cluster stands there.
        .with_setting("telemetry.log", "\"info,node_proxy::peer=debug\"");
    let mut world = World::start(plan).await?;
    let image = Image::obtain(&Plan::small())?;
    world.registry.push(&image, REPOSITORY, "1").await?;
    world.control()?.ctl(&["cluster", "create", "elsewhere", "--cidr", "10.77.2.0/24"]).await?;
    world.start_nodes().await?;
    let layer = image.layers.iter().max_by_key(|layer| layer.size).context("an image has layers")?.clone();
    world.reader("a1")?.read(REPOSITORY, &layer, Duration::ZERO).await?;
    let at = SocketAddr::from((world.net.namespace("a1")?.address, PEER_PORT));
    let nobody = Hello { cluster: "nobody".parse()?, node: "nobody".parse()?, epoch: 1 };
    Ok(Scene { world, at, hello: nobody, digest: layer.digest.parse()? })
}

/// Real certificates in wrong hands, or shown at the wrong place.
async fn of_others(scene: &mut Scene, papers: &Papers) -> Result<()> {
    let own = scene.hello.clone();
    scene.hello.node = "somebody-else".parse()?;
    let stolen = Named::new("Identity", "it says that it is node somebody-else, and its certificate names x1");
    scene.refused("that of another node", Some(&papers.keeper), stolen).await?;
    scene.hello = own.clone();

    let other = scene.join(ELSEWHERE).await?;
    let theirs = other.papers().context("a member has papers")?.clone();
    ensure!(other.hello().cluster != own.cluster, "{ELSEWHERE} is of the same cluster");
    scene.hello = Hello { cluster: own.cluster.clone(), ..other.hello() };
    let posing = Named::new("Identity", "its certificate is of cluster");
    scene.refused("another cluster's, posing as one of this", Some(&theirs.keeper), posing).await?;
    scene.hello = other.hello();
    let frank = Named { reason: "Cluster", says: "refused: Cluster", line: "child's connection ended" };
    scene.refused("another cluster's, as what it is", Some(&theirs.keeper), frank).await?;
    scene.hello = own;
    other.leave().await
}

/// A member that is connected is revoked: its connection ends, it is refused from then on, and control names it.
async fn revoked(scene: &mut Scene, papers: &Papers) -> Result<()> {
    let stream = scene.world.net.namespace(PLACE)?.connect(scene.at).await?;
    let stream = Wire::connect(stream, Some(tls::client(&papers.keeper, None, &[]))).await?;
    let mut wire = Framed::new(stream, FrameCodec::default());
    wire.send(Frame::Hello(scene.hello.clone())).await?;
    ensure!(matches!(wire.next().await, Some(Ok(Frame::Hello(_)))), "the member was not let in");
    let since = Instant::now();
    scene.world.control()?.ctl(&["member", "revoke", PLACE]).await?;
    let ended = tokio::time::timeout(EVERYWHERE, async { while let Some(Ok(_)) = wire.next().await {} }).await;
    ensure!(ended.is_ok(), "its connection is there {EVERYWHERE:?} after it was revoked");
    println!("{:52} its connection ended after {:.2} s", "a member that is revoked", since.elapsed().as_secs_f64());
    let void = Named::new("Identity", "was declared void");
    scene.refused("a member that was revoked", Some(&papers.keeper), void).await?;
    let log = fs::read_to_string(scene.world.control()?.log())?;
    ensure!(log.contains("node revoked"), "control's log does not name it");
    eventually(EVERYWHERE, "control to forget it", || async {
        let nodes = scene.world.control_ref()?.nodes().await?;
        if nodes.iter().any(|node| node.id == PLACE) {
            bail!("it is live: {nodes:?}");
        }
        Ok(())
    })
    .await?;
    ensure!(scene.join(PLACE).await.is_err(), "it joined again");
    let (metrics, log) = {
        let control = scene.world.control()?;
        (control.rest().get_text("/metrics").await?, fs::read_to_string(control.log())?)
    };
    let counted = labelled(&metrics, "shoal_identity_refused_total", "reason");
    ensure!(counted.get("Revoked").is_some_and(|count| *count > 0), "control did not count it: {counted:?}");
    ensure!(log.lines().any(|line| line.contains("refused a node") && line.contains("revoked")), "nor name it");
    Ok(())
}
