//! The socket in front of containerd: its clients work there as they do at containerd's own, registry images come through the
//! mirror, and content that containerd lacks comes from the cluster.
use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use containerd_client::{
    services::v1::{
        InfoRequest, content_client::ContentClient, events_client::EventsClient, version_client::VersionClient,
    },
    with_namespace,
};
use lab::{
    containerd::{
        Ctr,
        content::connect,
        edition::{Edition, Version},
    },
    image::{Image, Plan},
    node::Node,
    registry,
    wait::eventually,
    world::{World, WorldPlan},
};
use tonic::{Code, Request};

use crate::alone;

const REPOSITORY: &str = "lab/socket";
const SOON: Duration = Duration::from_secs(20);

#[test]
fn clients_of_the_machines_own_containerd_work_through_the_socket() {
    alone(work_through_the_socket("own"));
}

#[test]
fn clients_of_containerd_1_7_work_through_the_socket() {
    alone(work_through_the_socket("1.7"));
}

#[test]
fn clients_of_containerd_2_1_work_through_the_socket() {
    alone(work_through_the_socket("2.1"));
}

#[test]
fn clients_of_containerd_2_3_work_through_the_socket() {
    alone(work_through_the_socket("2.3"));
}

fn reference(tag: &str) -> String {
    format!("{}/{REPOSITORY}:{tag}", registry::HOST)
}

/// A lab of two nodes whose containerds know nothing of the mirror: what comes through it was sent there by the socket.
async fn set(edition: Edition, images: &[(&str, &Image)]) -> Result<World> {
    let mut world = World::start(WorldPlan { edition, ..WorldPlan::one_cluster(2) }).await?;
    for (tag, image) in images {
        world.registry.push(image, REPOSITORY, tag).await?;
    }
    world.start_nodes().await?;
    for node in ["a1", "a2"] {
        fs::remove_dir_all(world.node(node)?.containerd.certs().join(registry::HOST))?;
    }
    Ok(world)
}

async fn work_through_the_socket(name: &str) -> Result<()> {
    let edition: Edition = name.parse()?;
    let image = |seed, size| Image::obtain(&Plan::random(seed, vec![size, 1 << 20]));
    let (one, two, three) = (image(61_000, 6 << 20)?, image(61_001, 3 << 20)?, image(61_002, 2 << 20)?);
    let mut world = set(edition, &[("1", &one), ("2", &two), ("3", &three)]).await?;
    let state = world.dirs.state.clone();

    let first = world.node("a1")?;
    let ctr = first.containerd.ctr(&first.socket());
    let log = state.join("events.log");
    let _events = ctr.start(&["events"], &log)?;
    subscribed(first).await?;
    match edition.version {
        // It has no transfer service.
        Version::Own => {}
        Version::V1_7 => by_transfer_without_hosts(&mut world).await?,
        Version::V2_1 | Version::V2_3 => by_transfer(&mut world, &one).await?,
    }
    by_itself(&mut world, edition, &two).await?;
    out_and_in(world.node("a1")?, &ctr, &state).await?;
    by_crictl(world.node("a1")?).await?;
    what_a_peer_has(&mut world, &three).await?;
    eventually(SOON, "events of images", || async {
        let said = fs::read_to_string(&log)?;
        ensure!(said.contains("/images/create") && said.contains(&reference("2")), "{said}");
        Ok(())
    })
    .await?;
    containerd_comes_and_goes(&mut world).await?;
    we_come_and_go(&mut world).await
}

/// Events come to who asked before: a client of ours sees that one is served.
async fn subscribed(node: &Node) -> Result<()> {
    let mut events = EventsClient::new(connect(&node.socket()).await?);
    let request = containerd_client::services::v1::SubscribeRequest { filters: Vec::new() };
    // containerd answers with headers at once, or with its first event.
    let _ = tokio::time::timeout(Duration::from_millis(300), events.subscribe(request)).await;
    Ok(())
}

/// The transfer service: from the origin, then from the peer, with containerd told nothing of us.
async fn by_transfer(world: &mut World, image: &Image) -> Result<()> {
    let whole = image.size() + image.manifest.len() as u64;
    for (node, source, other) in [("a1", "origin", "peer"), ("a2", "peer", "origin")] {
        let node = world.node(node)?;
        node.containerd.ctr(&node.socket()).run(&["images", "pull", &reference("1")]).await?;
        let shoal = node.shoal()?;
        let bytes = shoal.bytes_by_source().await?;
        ensure!(bytes[source] == whole && bytes[other] == 0, "by transfer: {bytes:?} of {whole} bytes");
        let steered = shoal.metric("shoal_containerd_steered_transfers_total").await?;
        ensure!(steered == 1.0, "{steered} transfers were sent to the mirror");
    }
    Ok(())
}

/// The transfer service of 1.7 knows no directory of hosts: what it does not know it passes over, and reads the registry.
async fn by_transfer_without_hosts(world: &mut World) -> Result<()> {
    let node = world.node("a1")?;
    node.containerd.ctr(&node.socket()).run(&["images", "pull", &reference("1")]).await?;
    let bytes = node.shoal()?.bytes_by_source().await?;
    ensure!(bytes["origin"] == 0 && bytes["peer"] == 0, "it knows hosts now: {bytes:?}");
    Ok(())
}

/// `ctr` fetches by itself, and writes the content through the socket.
async fn by_itself(world: &mut World, edition: Edition, image: &Image) -> Result<()> {
    let own = edition.version == Version::Own;
    let whole = image.size() + image.manifest.len() as u64;
    for (node, source) in [("a1", "origin"), ("a2", "peer")] {
        let node = world.node(node)?;
        let before = node.shoal()?.bytes_by_source().await?[source];
        let hosts = node.shoal()?.state.join("hosts").display().to_string();
        let reference = reference("2");
        let mut args = vec!["images", "pull", "--hosts-dir", &hosts];
        // 1.6 knows no other way.
        args.extend((!own).then_some("--local"));
        args.push(&reference);
        node.containerd.ctr(&node.socket()).run(&args).await?;
        let bytes = node.shoal()?.bytes_by_source().await?[source] - before;
        ensure!(bytes == whole, "by itself: {bytes} of {whole} bytes from the {source}");
        node.containerd.last_commit(image.blobs().map(|blob| blob.digest.as_str()))?;
    }
    Ok(())
}

/// An image goes into an archive, is removed, and comes back.
async fn out_and_in(node: &Node, ctr: &Ctr, state: &Path) -> Result<()> {
    let (archive, reference) = (state.join("image.tar").display().to_string(), reference("2"));
    ctr.run(&["images", "export", &archive, &reference]).await?;
    ensure!(fs::metadata(&archive)?.len() > 3 << 20, "the archive is too small");
    ctr.run(&["images", "rm", "--sync", &reference]).await?;
    ensure!(!ctr.text(&["images", "ls", "-q"]).await?.contains(&reference), "it was removed");
    ctr.run(&["images", "import", &archive]).await?;
    let listed = ctr.text(&["images", "ls", "-q"]).await?;
    ensure!(listed.contains(&reference), "imported, and {listed:?} is listed");
    // The same at containerd's own socket: nothing is kept on the way.
    let direct = node.containerd.ctr(node.containerd.socket()).text(&["images", "ls", "-q"]).await?;
    ensure!(direct == listed, "{listed:?} through the socket, {direct:?} at containerd");
    Ok(())
}

async fn by_crictl(node: &Node) -> Result<()> {
    let puller = node.containerd.puller_at(&node.socket());
    puller.pull(&reference("3")).await?;
    ensure!(
        node.containerd.ctr(&node.socket()).text(&["images", "ls", "-q"]).await?.contains(&reference("3")),
        "listed"
    );
    puller.remove(&reference("3")).await
}

/// A blob that only a peer has, by its digest alone; one that nobody has; a range of one.
async fn what_a_peer_has(world: &mut World, image: &Image) -> Result<()> {
    let blob = image.layers[0].clone();
    world.reader("a1")?.read(REPOSITORY, &blob, Duration::ZERO).await?;
    let node = world.node("a2")?;
    let ctr = node.containerd.ctr(&node.socket());
    ensure!(!node.containerd.held().contains(&blob.digest), "containerd has it already");
    let mut content = ContentClient::new(connect(&node.socket()).await?);
    let mut info = async |digest: &str| {
        let request = InfoRequest { digest: digest.to_owned() };
        content.info(with_namespace!(request, "k8s.io")).await
    };
    let said = info(&blob.digest).await?.into_inner().info.context("an answer without info")?;
    ensure!(said.size == i64::try_from(blob.size)?, "{said:?}");
    ensure!(said.labels.get("shoal/source").is_some_and(|source| source == "cluster"), "{said:?}");
    let nobody = format!("sha256:{}", "0".repeat(64));
    let refused = info(&nobody).await.err().context("there is no such blob")?;
    ensure!(refused.code() == Code::NotFound, "{refused:?}");
    let bytes = ctr.run(&["content", "get", &blob.digest]).await?;
    ensure!(bytes == fs::read(&blob.file)?, "{} bytes that are not the blob's", bytes.len());
    let refused = ctr.run(&["content", "get", &nobody]).await.err().context("there is no such blob")?;
    ensure!(format!("{refused:#}").contains("not found"), "{refused:#}");
    let shoal = node.shoal()?;
    ensure!(shoal.bytes_by_source().await?["origin"] == 0, "the registry was asked");
    let counted = shoal.metric("shoal_containerd_from_cluster_bytes_total").await?;
    ensure!(counted == blob.size as f64, "{counted} bytes were counted as from the cluster");
    ensure!(!node.containerd.held().contains(&blob.digest), "nothing was written into containerd");
    // What containerd holds is its own to describe.
    let own = fs::read_dir(node.containerd.content())?.flatten().next().context("containerd holds nothing")?;
    let own = format!("sha256:{}", own.file_name().to_string_lossy());
    let said = info(&own).await?.into_inner().info.context("an answer without info")?;
    ensure!(!said.labels.contains_key("shoal/source"), "{said:?}");
    Ok(())
}

/// A client stays connected while containerd goes and comes.
async fn containerd_comes_and_goes(world: &mut World) -> Result<()> {
    let node = world.node("a1")?;
    let mut version = VersionClient::new(connect(&node.socket()).await?);
    version.version(Request::new(())).await?;
    node.containerd.kill();
    for _ in 0..3 {
        let refused = version.version(Request::new(())).await.err().context("containerd is dead")?;
        ensure!(refused.code() == Code::Unavailable, "{refused:?}");
    }
    node.containerd.restart().await?;
    version.version(Request::new(())).await.context("after containerd came back")?;
    Ok(())
}

#[test]
fn a_pull_through_the_socket_ends_clearly_when_containerd_goes_and_a_client_that_goes_leaves_nothing() {
    alone(async {
        for edition in Edition::from_env(&Edition::RELEASES)? {
            cut_in_the_middle(edition).await.with_context(|| format!("containerd {edition}"))?;
        }
        Ok(())
    });
}

async fn cut_in_the_middle(edition: Edition) -> Result<()> {
    let image = Image::obtain(&Plan::random(61_003, vec![24 << 20, 1 << 20]))?;
    let plan = WorldPlan { edition, origin_rate: Some(64_000_000), ..WorldPlan::one_cluster(1) };
    let mut world = World::start(plan).await?;
    world.registry.push(&image, REPOSITORY, "1").await?;
    world.start_nodes().await?;
    let state = world.dirs.state.clone();
    let node = world.node("a1")?;
    let (ctr, reference) = (node.containerd.ctr(&node.socket()), reference("1"));
    let log = state.join("ctr.log");
    // The client goes: its streams end at containerd too, and nobody counts it.
    let mut pulling = ctr.start(&["images", "pull", &reference], &log)?;
    in_the_middle(node).await?;
    pulling.kill();
    eventually(SOON, "a client that went to be forgotten", || async {
        let clients = node.shoal_ref()?.metric("shoal_containerd_clients").await?;
        ensure!(clients == 0.0, "{clients} clients");
        Ok(())
    })
    .await?;
    // containerd goes: its client hears so.
    let mut pulling = ctr.start(&["images", "pull", &reference], &log)?;
    in_the_middle(node).await?;
    node.containerd.kill();
    eventually(SOON, "the pull to end", || {
        let ended = !pulling.is_running();
        async move {
            ensure!(ended, "it still runs");
            Ok(())
        }
    })
    .await?;
    let said = fs::read_to_string(&log)?;
    // Some versions of ctr end with the EOF of their stream, and log our words beside it.
    ensure!(said.contains("containerd at ") && said.contains("ctr: "), "ctr said {said}");
    node.containerd.restart().await?;
    ctr.run(&["images", "pull", &reference]).await.context("the next pull")?;
    node.containerd.last_commit(image.blobs().map(|blob| blob.digest.as_str()))?;
    Ok(())
}

/// A pull has begun to write the large layer, and has not ended.
async fn in_the_middle(node: &Node) -> Result<()> {
    eventually(SOON, "a pull to be in the middle", || async {
        let written = node.containerd.ingesting();
        ensure!(written > 1 << 20, "{written} bytes are written");
        Ok(())
    })
    .await
}

/// containerd goes on while we are restarted, and its clients are served again.
async fn we_come_and_go(world: &mut World) -> Result<()> {
    let node = world.node("a1")?;
    let pid = node.containerd.pid();
    let socket = node.socket();
    node.shoal()?.kill();
    ensure!(socket.exists(), "a daemon that was killed leaves its socket");
    node.shoal()?.start_again().await?;
    ensure!(node.containerd.pid() == pid, "containerd was restarted");
    let ctr = node.containerd.ctr(&socket);
    ctr.run(&["images", "ls"]).await?;
    ensure!(node.shoal()?.stop(SOON).await, "it did not end");
    ensure!(!socket.exists(), "the socket goes with the daemon");
    node.containerd.ctr(node.containerd.socket()).run(&["images", "ls"]).await?;
    Ok(())
}
