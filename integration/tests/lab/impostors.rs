//! Who stands at control's address and is not control: nodes tell it nothing, say so, and go on without control (I9, I4).
use std::{fs, net::Ipv4Addr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{
    forge::{Forge, Time},
    image::{Image, Plan},
    impostor::Impostor,
    liar::Liar,
    wait::eventually,
    world::{World, WorldPlan},
};
use rustls::pki_types::CertificateDer;
use shoal_base::tls::Keeper;

use crate::alone;

const PLACE: &str = "x1";
const REPOSITORY: &str = "lab/impostors";
/// A node tries again at least this often, and a little more.
const SOON: Duration = Duration::from_secs(8);
const CONTROL: &str = "spiffe://shoal/control";
const LINE: &str = "what answers at control.endpoint is not this installation's control";

#[test]
fn i9_who_poses_as_control_is_told_nothing_and_the_log_says_that_it_is_not_control() {
    alone(async {
        let plan = WorldPlan { origin_rate: None, ..WorldPlan::one_cluster(2) };
        let mut world = World::start(plan.with_guest(PLACE, Ipv4Addr::new(10, 77, 1, 200))).await?;
        let images = [1, 2].map(|seed| Image::obtain(&Plan::random(53_000 + seed, vec![2 << 20, 64 << 10])));
        let [first, second] = images;
        let (first, second) = (first?, second?);
        world.registry.push(&first, REPOSITORY, "1").await?;
        world.registry.push(&second, REPOSITORY, "2").await?;
        world.start_nodes().await?;
        world.node("a1")?.pull(REPOSITORY, "1", &first).await?;
        let token = world.token()?.context("this world has certificates")?;
        let member = Liar::join(&world.net.namespace(PLACE)?, world.grpc(), PLACE, Some(&token)).await?;
        let papers = member.papers().context("a member has papers")?.clone();
        drop(member);

        world.control()?.kill();
        let real = Forge::stolen(&world.dirs.state.join("control/state"))?.authority().clone();
        let strangers = shows(&Forge::own()?, CONTROL, &real, false)?;
        // What the real authority certified, but not as control.
        for (what, keeper, says) in [
            ("a certificate of its own authority", &strangers, "not from an authority that is trusted here"),
            ("a member's certificate", &papers.keeper, "not of the control service"),
        ] {
            poses(&mut world, what, keeper, "a1", says).await?;
        }
        world.node("a1")?.pull(REPOSITORY, "2", &second).await.context("a pull without control")?;

        // The first contact: all that the node knows is its token. The impostor shows the real authority too, which is no secret.
        let shoal = world.node("a2")?.shoal()?;
        shoal.kill();
        fs::remove_dir_all(&shoal.state)?;
        let pinned = shows(&Forge::own()?, CONTROL, &real, true)?;
        world.node("a2")?.shoal()?.spawn_again()?;
        poses(&mut world, "a certificate of its own and the real authority's", &pinned, "a2", "").await?;

        world.control()?.start_again().await?;
        world.all_connected().await?;
        let known = world.control_ref()?.nodes().await?;
        ensure!(known.iter().filter(|node| node.connected).any(|node| node.name == "a2"), "a2 did not join: {known:?}");
        world.node("a2")?.pull(REPOSITORY, "1", &first).await?;
        Ok(())
    });
}

/// A keeper that shows what the forge makes of a name, and asks for certificates of the real authority.
fn shows(forge: &Forge, name: &str, real: &CertificateDer<'static>, behind: bool) -> Result<Arc<Keeper>> {
    let keeper = Keeper::new();
    keeper.trust([real])?;
    let chain = [forge.authority().clone(), real.clone()];
    forge.arm(&keeper, name, Time::Now, if behind { &chain } else { &[] })?;
    Ok(keeper)
}

/// Stands in control's place until a node has come to it twice.
async fn poses(world: &mut World, what: &str, keeper: &Arc<Keeper>, node: &str, says: &str) -> Result<()> {
    let log = world.node(node)?.shoal()?.log().to_owned();
    let before = lines(&log, says)?;
    let known = counted(world, node).await.unwrap_or_default();
    let impostor = Impostor::stand(&world.net.namespace("control")?, keeper)?;
    eventually(SOON, "the node to turn away from the impostor", || async {
        let (lines, heard) = (lines(&log, says)?, impostor.heard());
        ensure!(lines >= before + 2, "{what}: {lines} lines in {}, and {heard:?}", log.display());
        Ok(())
    })
    .await?;
    let heard = impostor.heard();
    impostor.leave().await;
    ensure!(heard.bytes.is_empty(), "{what}: {} bytes were told to it in {heard:?}", heard.bytes.len());
    let counted = counted(world, node).await?;
    ensure!(counted >= known + 2.0, "{what}: shoal_control_impostors_total went from {known} to {counted}");
    let connected = world.node(node)?.shoal()?.metric("shoal_control_connected").await?;
    ensure!(connected == 0.0, "{what}: shoal_control_connected is {connected}");
    println!("{what:52} {node} came {} times and said nothing", heard.connections);
    Ok(())
}

/// How many impostors the node has counted since its start.
async fn counted(world: &mut World, node: &str) -> Result<f64> {
    world.node(node)?.shoal()?.metric("shoal_control_impostors_total").await
}

/// Lines that say that it is not control, and why.
fn lines(log: &Path, says: &str) -> Result<usize> {
    let log = fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    Ok(log.lines().filter(|line| line.contains(LINE) && line.contains(says)).count())
}
