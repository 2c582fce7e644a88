//! The walk-through: two clusters of two nodes pull one image; the first pull of each reads the origin, the second its peer.
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    facts::{BlobFacts, ClusterFacts, Facts, ImageFacts, LinkFacts, PullFacts},
    image::{Image, Plan},
    net::measure_rate,
    otlp::{BlobTrace, blob_trace},
    progress::Progress,
    registry::{self, reads_by_digest},
    world::{World, WorldPlan},
};

/// Where the image is pushed.
pub const REPOSITORY: &str = "lab/demo";
const TAG: &str = "1";

/// Runs the walk-through with an image and gives what it found.
///
/// # Errors
/// When a part can't be started or a pull fails. Figures that are not as they should be are no errors: see
/// [`crate::check::judge`].
pub async fn walk_through(image_plan: &Plan, plan: WorldPlan, progress: &Progress) -> Result<Facts> {
    let image = {
        let _step = progress.step("making the image out of this machine's programs (once)");
        let image_plan = image_plan.clone();
        tokio::task::spawn_blocking(move || Image::obtain(&image_plan)).await??
    };
    let mut world = {
        let _step = progress.step("starting network, origin and control");
        World::start(plan).await?
    };
    {
        let _step = progress.step("pushing the image to the origin");
        world.registry.push(&image, REPOSITORY, TAG).await?;
    }
    {
        let _step = progress.step("creating cluster b for IDC cluster-2 and starting four nodes");
        world.control()?.ctl(&["cluster", "create", "b", "--idc", "cluster-2"]).await?;
        world.start_nodes().await?;
    }
    let clusters = clusters_of(&mut world).await?;
    let mut found = Vec::new();
    for (name, nodes) in &clusters {
        let mut pulls = Vec::new();
        for node in nodes {
            let step = progress.step(&format!("crictl pull on {node} (cluster {name})"));
            pulls.push(pull(&mut world, node, &image).await?);
            step.done_with(&pulls.last().map(|pull| format!("{:.2} s", pull.seconds())).unwrap_or_default());
        }
        found.push(ClusterFacts { name: name.clone(), pulls });
    }
    gather(&world, &image, found, progress).await
}

/// Nodes by cluster, as control assigned them, in the order of their names.
async fn clusters_of(world: &mut World) -> Result<Vec<(String, Vec<String>)>> {
    let mut clusters: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in world.control()?.nodes().await? {
        let cluster = node.cluster.with_context(|| format!("control gave {} no cluster", node.name))?;
        clusters.entry(cluster).or_default().push(node.name);
    }
    let mut ordered: Vec<_> = clusters.into_iter().collect();
    // The default cluster has a1: it goes first, whatever its name.
    ordered.sort_by(|one, two| one.1.cmp(&two.1));
    Ok(ordered)
}

async fn pull(world: &mut World, name: &str, image: &Image) -> Result<PullFacts> {
    let node = world.node(name)?;
    let before = node.shoal()?.bytes_by_source().await?;
    let timing = node.pull(REPOSITORY, TAG, image).await?;
    let after = node.shoal()?.bytes_by_source().await?;
    let fetched_bytes =
        after.into_iter().map(|(source, sum)| (source.clone(), sum - before.get(&source).unwrap_or(&0))).collect();
    Ok(PullFacts {
        node: name.to_owned(),
        first_head: timing.first_head,
        last_commit: timing.last_commit,
        fetched_bytes,
        origin_bytes: 0,
    })
}

async fn gather(world: &World, image: &Image, mut clusters: Vec<ClusterFacts>, progress: &Progress) -> Result<Facts> {
    // Counted before links are measured, so that nothing but pulls is in the counters.
    let pairs = world.net.pair_counts()?;
    let log = world.registry.access_log()?;
    for pull in clusters.iter_mut().flat_map(|cluster| &mut cluster.pulls) {
        let by_node = log.iter().filter(|line| world.name_of(line.from).as_deref() == Some(&pull.node));
        pull.origin_bytes = by_node.filter(|line| line.is_read() && line.is_blob()).map(|line| line.bytes).sum();
    }
    let links = {
        let _step = progress.step("measuring links");
        measure_links(world, &clusters).await?
    };
    let traces = {
        let _step = progress.step("collecting traces");
        collect_traces(world, image).await?
    };
    let blob = |digest: &str, size: u64| BlobFacts { digest: digest.to_owned(), size };
    Ok(Facts {
        versions: crate::tools::Tools::locate()?.versions()?,
        image: ImageFacts {
            reference: format!("{}/{REPOSITORY}:{TAG}", registry::HOST),
            manifest: blob(&image.digest, image.manifest.len() as u64),
            config: blob(&image.config.digest, image.config.size),
            layers: image.layers.iter().map(|layer| blob(&layer.digest, layer.size)).collect(),
        },
        clusters,
        origin_reads: reads_by_digest(&log, |address| world.name_of(address)),
        pairs,
        links,
        traces,
    })
}

async fn measure_links(world: &World, clusters: &[ClusterFacts]) -> Result<LinkFacts> {
    let span = Duration::from_millis(500);
    let mut peers_measured = BTreeMap::new();
    for cluster in clusters {
        let [first, second] = cluster.pulls.as_slice() else { continue };
        let (from, to) = (world.net.namespace(&first.node)?, world.net.namespace(&second.node)?);
        peers_measured.insert(cluster.name.clone(), measure_rate(&from, &to, span).await?);
    }
    let some_node = clusters.first().and_then(|cluster| cluster.pulls.first()).context("nobody pulled")?;
    let (origin, node) = (world.net.namespace("registry")?, world.net.namespace(&some_node.node)?);
    Ok(LinkFacts {
        shaped: world.net.link_rates()?,
        origin_measured: measure_rate(&origin, &node, span).await?,
        peers_measured,
    })
}

/// Waits until the spans of every layer on every node are in (daemons export in batches), at most fifteen seconds, then takes
/// what there is: what is missing fails the check, by name.
async fn collect_traces(world: &World, image: &Image) -> Result<Vec<BlobTrace>> {
    let nodes: Vec<&String> = world.nodes().keys().collect();
    let wanted = nodes.len() * image.layers.len();
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        let spans = world.spans().await?;
        let of_node = |node: &&String| {
            let of_layer = |digest: &str| blob_trace(&spans, node, REPOSITORY, digest);
            image.layers.iter().filter_map(|layer| of_layer(&layer.digest)).collect::<Vec<_>>()
        };
        let found: Vec<BlobTrace> = nodes.iter().flat_map(of_node).collect();
        let whole = found.iter().filter(|trace| !(trace.origin_readers.is_empty() && trace.serving_peers.is_empty()));
        if whole.count() >= wanted || Instant::now() > end {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
