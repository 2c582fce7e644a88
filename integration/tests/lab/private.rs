//! Private images (I10): who may read a repository gets from the cluster what the cluster holds, and the registry is asked for its
//! word, not for bytes; who may not gets not a byte of what lies on the very disk that he asks.
//!
//! Everything is played on a registry of Bearer tokens and on one of Basic. Who asks a mirror by hand here stands in the node's own
//! namespace, as any program of that machine may.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{
    aftermath,
    containerd::edition::Edition,
    image::Image,
    registry::{AccessLine, Login},
    world::WorldPlan,
};

use crate::alone;

#[path = "private/scene.rs"]
mod scene;

use scene::{Caller, OPEN, OTHER, PRIVATE, Scene, plan_of};

/// What a registry says to whom it does not let read.
const NO: [u16; 3] = [401, 403, 404];
/// A yes of the registry's is remembered for less than this.
const FORGOTTEN: i64 = 301;

fn plan(login: Login) -> WorldPlan {
    WorldPlan::one_cluster(2).with_login(login)
}

#[test]
fn i10_a_private_image_is_read_of_the_registry_once_and_then_given_within_the_cluster_by_bearer() {
    alone(given_within_the_cluster(Login::Bearer));
}

#[test]
fn i10_a_private_image_is_read_of_the_registry_once_and_then_given_within_the_cluster_by_basic() {
    alone(given_within_the_cluster(Login::Basic));
}

async fn given_within_the_cluster(login: Login) -> Result<()> {
    for edition in Edition::from_env(&Edition::RELEASES)? {
        let scene = Scene::set(WorldPlan { edition, ..plan(login) }).await?;
        once_then_from_the_peer(scene).await.with_context(|| format!("{login}, containerd {edition}"))?;
    }
    Ok(())
}

/// Ann pulls on one node, ben on the other; then both ask again for what is there.
async fn once_then_from_the_peer(mut scene: Scene) -> Result<()> {
    let version = scene.world.node("a1")?.containerd.version().await?;
    let whole = scene.private.size() + scene.private.manifest.len() as u64;
    scene.ann_pulls("a1").await?;
    let fetched = scene.world.node("a1")?.shoal()?.bytes_by_source().await?;
    ensure!(fetched["origin"] == whole && fetched["peer"] == 0, "a1 fetched {fetched:?} of {whole} bytes");
    let log = scene.world.registry.access_log()?;
    let mut reads: Vec<&str> = log.iter().filter(|line| line.is_read()).filter_map(AccessLine::digest).collect();
    let all = reads.len();
    reads.sort_unstable();
    reads.dedup();
    ensure!(all == reads.len(), "the registry gave something twice: {:?}", scene.read_of("a1", &log));

    let (ben, private) = (scene.ben.clone(), scene.private.clone());
    scene.world.node("a2")?.pull_as(&ben, PRIVATE, "1", &private).await?;
    let fetched = scene.world.node("a2")?.shoal()?.bytes_by_source().await?;
    ensure!(fetched["peer"] == whole && fetched["origin"] == 0, "a2 fetched {fetched:?} of {whole} bytes");
    let asked = scene.read_of("a2", &scene.world.registry.access_log()?);
    ensure!(asked.is_empty(), "a2 asked the registry for what a1 holds: {asked:#?}");

    // What a node has on its own disk is given to another who may read it, after a word of the registry's.
    let before = scene.world.registry.access_log()?.len();
    for (node, user) in [("a1", &scene.ben), ("a2", &scene.ann)] {
        let shows = scene.shows(Some(user), PRIVATE)?;
        scene.gets_all(node, shows.as_deref()).await.with_context(|| format!("{} on {node}", user.name))?;
    }
    let log = scene.world.registry.access_log()?;
    for node in ["a1", "a2"] {
        let read: Vec<_> = log[before..].iter().filter(|line| line.is_read()).collect();
        ensure!(read.is_empty(), "{node} read what it holds: {read:?}");
    }
    println!("{:8} {version}: {whole} bytes once from the registry, then from the peer", scene.login());
    aftermath::check(&mut scene.world).await
}

#[test]
fn i10_who_may_not_read_a_repository_gets_not_a_byte_of_what_the_node_holds_by_bearer() {
    alone(outsiders_get_nothing(Login::Bearer));
}

#[test]
fn i10_who_may_not_read_a_repository_gets_not_a_byte_of_what_the_node_holds_by_basic() {
    alone(outsiders_get_nothing(Login::Basic));
}

async fn outsiders_get_nothing(login: Login) -> Result<()> {
    let mut scene = Scene::set(plan(login)).await?;
    scene.ann_pulls("a1").await?;
    // The one node holds it, the other would have it from its peer.
    for node in ["a1", "a2"] {
        for (who, shows) in scene.outsiders()? {
            scene.gets_nothing(node, who, Caller::of(PRIVATE, shows.as_deref()), &NO).await?;
        }
    }
    let held = scene.world.node("a2")?.shoal()?.held()?;
    let got: Vec<_> = scene.private.blobs().filter(|blob| held.contains(&blob.digest)).collect();
    ensure!(got.is_empty(), "a2 fetched for an outsider: {got:?}");
    // Nor does what was refused stand in the way of who may.
    let shows = scene.shows(Some(&scene.ben), PRIVATE)?;
    scene.gets_all("a2", shows.as_deref()).await?;
    // containerd with a wrong password has nothing either.
    let (mistyped, image) = (scene.ann.mistyped(), scene.private.clone());
    let pulled = scene.world.node("a2")?.pull_as(&mistyped, PRIVATE, "1", &image).await;
    ensure!(pulled.is_err(), "a pull with a wrong password succeeded");
    let content = scene.world.node("a2")?.containerd.held();
    ensure!(scene.private.blobs().all(|blob| !content.contains(&blob.digest)), "containerd has {content:?}");
    aftermath::check(&mut scene.world).await
}

#[test]
fn i10_a_blob_is_given_out_of_no_repository_that_it_is_not_in_by_bearer() {
    alone(out_of_another_repository(Login::Bearer));
}

#[test]
fn i10_a_blob_is_given_out_of_no_repository_that_it_is_not_in_by_basic() {
    alone(out_of_another_repository(Login::Basic));
}

async fn out_of_another_repository(login: Login) -> Result<()> {
    let mut scene = Scene::set(plan(login)).await?;
    scene.ann_pulls("a1").await?;
    // Eve has pulled what is hers: the node knows what belongs there.
    let (eve, others) = (scene.eve.clone(), Image::obtain(&plan_of(OTHER))?);
    scene.world.node("a1")?.pull_as(&eve, OTHER, "1", &others).await?;
    let mut callers = vec![("eve, out of what is hers", OTHER, scene.shows(Some(&eve), OTHER)?)];
    if login == Login::Bearer {
        callers.push(("nobody, out of what is open", OPEN, scene.shows(None, OPEN)?));
        callers.push(("eve, out of what is open", OPEN, scene.shows(Some(&eve), OPEN)?));
    }
    for node in ["a1", "a2"] {
        for (who, repository, shows) in &callers {
            scene.gets_nothing(node, who, Caller::of(repository, shows.as_deref()), &[404]).await?;
        }
    }
    // What is in both is given out of both: the registry says so, and gives no byte.
    let both = scene.private.clone();
    scene.world.registry.push(&both, OTHER, "both").await?;
    let before = scene.world.registry.access_log()?.len();
    let (asker, shows) = (scene.asker("a1")?, scene.shows(Some(&eve), OTHER)?);
    // Until then the node may remember that it is not there.
    let layer = &both.layers[0];
    let got = lab::wait::eventually(Duration::from_secs(40), "the node to ask again", || async {
        asker.gets("blobs", OTHER, layer, shows.as_deref()).await
    });
    got.await.context("a blob of both repositories")?;
    let log = scene.world.registry.access_log()?;
    let read: Vec<_> = log[before..].iter().filter(|line| line.is_read() && line.is_blob()).collect();
    ensure!(read.is_empty(), "a1 read what it holds: {read:?}");
    aftermath::check(&mut scene.world).await
}

#[test]
fn i10_a_right_that_was_taken_away_is_gone_with_the_next_token() {
    alone(async {
        let mut scene = Scene::set(plan(Login::Bearer)).await?;
        scene.ann_pulls("a1").await?;
        let ann = scene.ann.clone();
        scene.world.registry.rights().take_away(&ann, PRIVATE);
        for node in ["a1", "a2"] {
            let shows = scene.shows(Some(&ann), PRIVATE)?;
            let caller = Caller::of(PRIVATE, shows.as_deref());
            scene.gets_nothing(node, "ann, with the token of who lost the right", caller, &NO).await?;
        }
        may_pull_no_more(&mut scene).await
    });
}

#[test]
fn i10_a_right_that_was_taken_away_is_gone_where_nobody_asked_and_within_five_minutes_everywhere() {
    alone(async {
        let mut scene = Scene::set(plan(Login::Basic)).await?;
        let clock = scene.own_time("a1").await?;
        scene.ann_pulls("a1").await?;
        let (ann, basic) = (scene.ann.clone(), scene.ann.basic());
        scene.world.registry.rights().take_away(&ann, PRIVATE);
        let caller = Caller::of(PRIVATE, Some(&basic));
        scene.gets_nothing("a2", "ann, who lost the right, where nobody asked for her", caller, &NO).await?;
        clock.set(FORGOTTEN)?;
        scene.gets_nothing("a1", "ann, who lost the right, five minutes later", caller, &NO).await?;
        may_pull_no_more(&mut scene).await
    });
}

/// Ann can pull no more, and ben can.
async fn may_pull_no_more(scene: &mut Scene) -> Result<()> {
    let (ann, image) = (scene.ann.clone(), scene.private.clone());
    let pulled = scene.world.node("a2")?.pull_as(&ann, PRIVATE, "1", &image).await;
    ensure!(pulled.is_err(), "ann pulled what she has no right to any more");
    let shows = scene.shows(Some(&scene.ben), PRIVATE)?;
    for node in ["a1", "a2"] {
        scene.gets_all(node, shows.as_deref()).await.with_context(|| format!("ben on {node}"))?;
    }
    aftermath::check(&mut scene.world).await
}

/// What says who reads what is private while the registry is down.
const WHEN_DOWN: &str = "origin.private_when_down";
/// What a mirror says when nobody can be asked.
const NO_WORD: [u16; 5] = [401, 403, 404, 502, 503];

/// Ann has pulled on a1; then the registry went down, and five minutes passed at a1.
async fn down(login: Login, wanted: Option<&str>) -> Result<(Scene, Option<String>)> {
    let plan = plan(login).only(1);
    let plan = match wanted {
        Some(wanted) => plan.with_setting(WHEN_DOWN, &format!("{wanted:?}")),
        None => plan,
    };
    let mut scene = Scene::set(plan).await?;
    let clock = scene.own_time("a1").await?;
    scene.ann_pulls("a1").await?;
    let shows = scene.shows(Some(&scene.ann), PRIVATE)?;
    scene.gets_all("a1", shows.as_deref()).await.context("before the registry is down")?;
    scene.world.registry.go_away().await;
    scene.up = false;
    clock.set(FORGOTTEN)?;
    Ok((scene, shows))
}

#[test]
fn i10_with_the_registry_down_what_is_private_is_refused_by_bearer() {
    alone(refused_while_it_is_down(Login::Bearer));
}

#[test]
fn i10_with_the_registry_down_what_is_private_is_refused_by_basic() {
    alone(refused_while_it_is_down(Login::Basic));
}

/// As it comes: the registry is down, and what it said a while ago counts no more.
async fn refused_while_it_is_down(login: Login) -> Result<()> {
    let (mut scene, ann) = down(login, None).await?;
    let ben = scene.shows(Some(&scene.ben), PRIVATE)?;
    for (who, shows) in [("ben, for whom nobody asked in time", ben), ("ann, long after the registry's last word", ann)]
    {
        scene.gets_nothing("a1", who, Caller::of(PRIVATE, shows.as_deref()), &NO_WORD).await?;
    }
    outsiders_get_nothing_of_a1(&mut scene).await
}

#[test]
fn i10_with_the_registry_down_only_a_credential_that_it_let_in_gets_what_is_held_where_the_operator_wants_it_by_bearer()
{
    alone(the_same_credential(Login::Bearer));
}

#[test]
fn i10_with_the_registry_down_only_a_credential_that_it_let_in_gets_what_is_held_where_the_operator_wants_it_by_basic()
{
    alone(the_same_credential(Login::Basic));
}

async fn the_same_credential(login: Login) -> Result<()> {
    let (mut scene, ann) = down(login, Some("same_credential")).await?;
    scene.gets_all("a1", ann.as_deref()).await.context("ann, with what the registry took before")?;
    println!("{login:8} a1: ann gets everything in the outage");
    let ben = scene.shows(Some(&scene.ben), PRIVATE)?;
    let caller = Caller::of(PRIVATE, ben.as_deref());
    scene.gets_nothing("a1", "ben, for whom nobody asked in time", caller, &NO_WORD).await?;
    outsiders_get_nothing_of_a1(&mut scene).await
}

async fn outsiders_get_nothing_of_a1(scene: &mut Scene) -> Result<()> {
    for (who, shows) in scene.outsiders()? {
        scene.gets_nothing("a1", who, Caller::of(PRIVATE, shows.as_deref()), &NO_WORD).await?;
    }
    aftermath::check(&mut scene.world).await
}

#[test]
fn with_the_registry_down_anyone_gets_what_is_held_where_the_operator_wants_it() {
    alone(async {
        let (mut scene, _) = down(Login::Basic, Some("anyone")).await?;
        scene.gets_all("a1", None).await.context("nobody in particular")?;
        aftermath::check(&mut scene.world).await
    });
}
