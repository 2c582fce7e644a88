//! Every containerd that is named, pulling through us: that each is what it is called, that it pulls in the way that is meant,
//! and that its bytes come from the origin once and then from the peer.
use anyhow::{Context, Result, ensure};
use lab::{
    aftermath,
    containerd::{
        edition::{Edition, Version},
        requests::exchanges,
    },
    image::{Image, Plan},
    registry::reads_by_digest,
    world::{World, WorldPlan},
};

use crate::alone;

macro_rules! each_edition {
    ($($test:ident => $edition:literal),+ $(,)?) => {
        $(
            #[test]
            fn $test() {
                alone(pulls_as_it_is_called($edition));
            }
        )+

        const NAMED: &[&str] = &[$($edition),+];
    };
}

each_edition! {
    the_machines_own_containerd_pulls => "own",
    containerd_1_7_pulls => "1.7",
    containerd_2_1_pulls_by_transfer => "2.1",
    containerd_2_1_pulls_by_transfer_with_a_buffer => "2.1-buffer",
    containerd_2_1_pulls_by_itself => "2.1-local",
    containerd_2_1_pulls_by_itself_with_a_buffer => "2.1-local-buffer",
    containerd_2_3_pulls_by_transfer => "2.3",
    containerd_2_3_pulls_by_transfer_with_a_buffer => "2.3-buffer",
    containerd_2_3_pulls_by_itself => "2.3-local",
    containerd_2_3_pulls_by_itself_with_a_buffer => "2.3-local-buffer",
}

#[test]
fn every_edition_is_among_those_that_pull() {
    let all: Vec<String> = Edition::all().iter().map(Edition::to_string).collect();
    assert_eq!(NAMED, all);
}

async fn pulls_as_it_is_called(name: &str) -> Result<()> {
    let edition: Edition = name.parse()?;
    let mut world = World::start(WorldPlan { edition, ..WorldPlan::one_cluster(2) }).await?;
    let image = Image::obtain(&Plan::random(41_000, vec![8 << 20, 3 << 20, 1 << 20]))?;
    world.registry.push(&image, "lab/editions", "1").await?;
    world.start_nodes().await?;
    let version = is_what_it_is_called(&mut world, edition).await?;
    let whole = image.size() + image.manifest.len() as u64;
    for (node, source, other) in [("a1", "origin", "peer"), ("a2", "peer", "origin")] {
        let timing = world.node(node)?.pull("lab/editions", "1", &image).await?;
        let bytes = world.node(node)?.shoal()?.bytes_by_source().await?;
        ensure!(bytes[source] == whole && bytes[other] == 0, "{node} fetched {bytes:?}, the image has {whole} bytes");
        asked_us_alone(&mut world, node, edition, &image).with_context(|| format!("containerd of {node}"))?;
        println!("{name} ({version}): {node} took {whole} bytes from the {source} in {:.2} s", timing.seconds());
    }
    let reads = reads_by_digest(&world.registry.access_log()?, |address| world.name_of(address));
    for blob in image.blobs() {
        let by_node = reads.get(&blob.digest).with_context(|| format!("nobody read {}", blob.digest))?;
        let once =
            by_node.len() == 1 && by_node.get("a1").is_some_and(|read| read.requests == 1 && read.bytes == blob.size);
        ensure!(once, "{} was read {by_node:?}", blob.digest);
    }
    // Digests of what lies in both stores of both nodes.
    aftermath::check(&mut world).await
}

/// What it says of itself and of its configuration.
async fn is_what_it_is_called(world: &mut World, edition: Edition) -> Result<String> {
    let containerd = &world.node("a1")?.containerd;
    let says = containerd.version().await?;
    let version = says.trim_start_matches("containerd ").trim_start_matches('v').to_owned();
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or_default());
    let numbers = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let fits = match edition.version {
        // Whatever the machine has: 1.6 on bookworm.
        Version::Own => numbers >= (1, 6),
        Version::V1_7 => numbers == (1, 7),
        // It moves with Debian sid; what it is now is printed here and on the page of faults.
        Version::V2_1 => numbers >= (2, 1),
        Version::V2_3 => numbers == (2, 3),
    };
    ensure!(fits, "containerd {edition} says that it is {says}");
    if matches!(edition.version, Version::Own | Version::V1_7) {
        return Ok(version);
    }
    let dump = containerd.config_dump()?;
    let plugin =
        |name: &str| dump.get("plugins").and_then(|all| all.get(name)).with_context(|| format!("no plugin {name}"));
    let (images, transfer) = (plugin("io.containerd.cri.v1.images")?, plugin("io.containerd.transfer.v1.local")?);
    ensure!(images["use_local_image_pull"].as_bool() == Some(edition.local), "use_local_image_pull: {images}");
    let certs = images["registry"]["config_path"].as_str().context("no config_path")?;
    ensure!(
        transfer["config_path"].as_str() == Some(certs) && !certs.contains(':'),
        "config_path: {images} {transfer}"
    );
    for plugin in [images, transfer] {
        let chunk = plugin["concurrent_layer_fetch_buffer"].as_integer().context("no concurrent_layer_fetch_buffer")?;
        ensure!((chunk > 0) == edition.buffer, "concurrent_layer_fetch_buffer: {plugin}");
    }
    Ok(version)
}

/// How it pulled, by its own log: in the way that is meant, each blob by one request, and nothing past us.
fn asked_us_alone(world: &mut World, node: &str, edition: Edition, image: &Image) -> Result<()> {
    let log = std::fs::read_to_string(world.node(node)?.containerd.log())?;
    let new = matches!(edition.version, Version::V2_1 | Version::V2_3);
    for (line, wanted) in [
        ("using transfer service", new && !edition.local),
        ("using client.Pull()", new && edition.local),
        // CONTAINERD 18: our 200 to `bytes=0-` keeps it on one stream.
        ("ignored content range", edition.buffer),
    ] {
        ensure!(log.contains(line) == wanted, "a line with {line:?} is there: {}", !wanted);
    }
    let asked = exchanges(&log);
    if let Some(past) = asked.iter().find(|exchange| !exchange.at_us()) {
        anyhow::bail!("it asked the registry: {past:?}");
    }
    let range = edition.buffer.then_some("bytes=0-");
    for layer in &image.layers {
        let of_layer: Vec<_> = asked.iter().filter(|exchange| exchange.path().ends_with(&layer.digest)).collect();
        let as_meant =
            |one: &lab::containerd::requests::Exchange| one.status() == Some(200) && one.range.as_deref() == range;
        ensure!(of_layer.len() == 1 && as_meant(of_layer[0]), "a layer was asked for so: {of_layer:?}");
    }
    Ok(())
}
