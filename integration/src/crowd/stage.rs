//! One run: all readers begin at one moment, and what it took is gathered.
use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep_until};

use super::{
    Cast, LINK, SLOWER,
    bound::{Links, alone, payload_rate},
    cpu::Look,
    read::{self, Progress, Wanted},
    report::{Reader, Run},
    site::{REPOSITORY, Site},
};
use crate::{
    http::Client,
    image::{Image, ImageBlob},
    registry,
    wait::eventually,
};

/// Between the order to begin and the beginning, so that every reader has heard it.
const AHEAD: Duration = Duration::from_millis(200);
/// A read that takes so many times the longest that any policy needs is a failure.
const PATIENCE: f64 = 4.0;
/// For the reads of those that hold the blob before the others begin, each.
const WARMING: Duration = Duration::from_secs(300);
/// Until the registry has written a line for each read that it has answered.
const LOGGED: Duration = Duration::from_secs(3);

/// Metrics of nodes that tell what went on, summed over all nodes.
const TOLD: [&str; 7] =
    ["shoal_blob_", "shoal_swarm_", "shoal_peer_", "shoal_origin_", "shoal_store_", "shoal_mirror_", "shoal_control_"];

/// All read through their mirrors, from empty stores.
pub(super) async fn through_shoal(site: &mut Site, image: &Image, cast: &Cast) -> Result<Run> {
    set_links(site, cast)?;
    site.start_daemons().await?;
    let wanted = wanted(site, image, format!("?ns={}", registry::HOST))?;
    let blob = wanted.blob();
    for holder in &cast.holders {
        read::read(&site.at_mirror(*holder)?, &wanted, WARMING).await.context("a holder's own read")?;
    }
    let logged = site.registry.access_log()?.len();
    let readers = (0..site.names().count()).filter(|node| !cast.holders.contains(node));
    let clients = readers.map(|node| Ok((node, site.at_mirror(node)?))).collect::<Result<Vec<_>>>()?;
    let mut run = read_all(site, &wanted, cast, clients).await?;
    let least = if cast.holders.is_empty() { blob.size } else { 0 };
    run.origin_bytes = origin_bytes(site, blob, logged, least).await?;
    run.origin_ratio = run.origin_bytes as f64 / blob.size as f64;
    let names: Vec<&str> = site.names().collect();
    for (node, name) in site.daemons()?.nodes.iter().zip(names) {
        let text = node.admin().get_text("/metrics").await?;
        let found = samples(&text);
        let of = |name: &str| found.get(name).copied().unwrap_or(0.0) as u64;
        if let Some(reader) = run.readers.iter_mut().find(|reader| reader.name == name) {
            reader.from_origin = of("shoal_blob_from_origin_bytes_total");
            reader.from_peers = of("shoal_blob_from_peers_bytes_total");
            reader.served = of("shoal_peer_served_bytes_total");
        }
        for (name, value) in found {
            *run.metrics.entry(name).or_default() += value;
        }
    }
    Ok(run)
}

/// All read at the registry itself.
pub(super) async fn direct(site: &Site, image: &Image, cast: &Cast) -> Result<Run> {
    set_links(site, cast)?;
    let clients =
        (0..site.names().count()).map(|node| Ok((node, site.at_registry(node)?))).collect::<Result<Vec<_>>>()?;
    read_all(site, &wanted(site, image, String::new())?, cast, clients).await
}

fn wanted(site: &Site, image: &Image, query: String) -> Result<Wanted> {
    let token = site.registry.signer().token(REPOSITORY, &["pull"])?;
    Ok(Wanted { repository: format!("/v2/{REPOSITORY}"), query, token, image: image.clone() })
}

fn set_links(site: &Site, cast: &Cast) -> Result<()> {
    (0..site.names().count()).try_for_each(|node| site.shape(node, rate(cast, node)))
}

fn rate(cast: &Cast, node: usize) -> u64 {
    if cast.slow.contains(&node) { LINK / SLOWER } else { LINK }
}

/// Begins all reads at one moment, those of the late ones at half of the bound. Time counts from the first request for the blob.
async fn read_all(site: &Site, wanted: &Wanted, cast: &Cast, clients: Vec<(usize, Client)>) -> Result<Run> {
    let blob = wanted.blob();
    let nodes: Vec<usize> = clients.iter().map(|(node, _)| *node).collect();
    let links: Vec<u64> = nodes.iter().map(|node| payload_rate(rate(cast, *node))).collect();
    let source = payload_rate(LINK);
    let fast = alone(blob.size, source, payload_rate(LINK));
    let all = Links { source, readers: links.iter().map(|link| (*link, *link)).collect() };
    // Nobody is slower than everybody in turn from one source.
    let slowest = alone(blob.size, source, payload_rate(LINK / SLOWER)) * clients.len() as f64;
    let bound = Duration::from_secs_f64(slowest * PATIENCE + 20.0);
    let pids: Vec<u32> =
        site.daemons().map_or(Vec::new(), |daemons| daemons.nodes.iter().map(|node| node.pid()).collect());
    let control = site.daemons().ok().map(|daemons| daemons.control.pid());
    let before = Look::take(&pids, control)?;
    let begin = Instant::now() + AHEAD;
    let half = fast / 2.0;
    let reads = clients.into_iter().map(|(node, client)| {
        let after = if cast.late.contains(&node) { half } else { 0.0 };
        let (wanted, at) = (wanted.clone(), begin + Duration::from_secs_f64(after));
        tokio::spawn(async move {
            sleep_until(at).await;
            read::read(&client, &wanted, bound).await
        })
    });
    let mut progress: Vec<(std::time::Instant, Progress)> = Vec::new();
    let names: Vec<&str> = site.names().collect();
    for (read, node) in futures::future::join_all(reads).await.into_iter().zip(&nodes) {
        progress.push(read?.with_context(|| format!("the reader of {}", names[*node]))?);
    }
    let first = progress.iter().map(|(began, _)| *began).min().context("nobody read")?;
    let after = Look::take(&pids, control)?;
    let readers: Vec<Reader> = progress
        .into_iter()
        .zip(nodes.iter().zip(&links))
        .map(|((began, progress), (node, link))| Reader {
            name: names[*node].to_owned(),
            slow: cast.slow.contains(node),
            late: cast.late.contains(node),
            began: (began - first).as_secs_f64(),
            factor: progress.end / alone(blob.size, source, *link),
            progress,
            from_origin: 0,
            from_peers: 0,
            served: 0,
        })
        .collect();
    let seconds = last(readers.iter());
    let fast_seconds = last(readers.iter().filter(|one| !one.slow && !one.late));
    let bound_seconds =
        if cast.late.is_empty() { all.seconds(blob.size) } else { all.seconds(blob.size).max(half + fast) };
    Ok(Run {
        seconds,
        bound_seconds,
        factor: seconds / bound_seconds,
        fast_factor: fast_seconds / fast,
        late_factor: readers.iter().filter(|one| one.late).map(|one| one.factor).reduce(f64::max),
        origin_bytes: 0,
        origin_ratio: 0.0,
        cpu: before.until(&after, blob.size * readers.len() as u64),
        readers,
        metrics: BTreeMap::new(),
    })
}

/// When the last of them is done, since the first began.
fn last<'a>(readers: impl Iterator<Item = &'a Reader>) -> f64 {
    readers.map(|one| one.began + one.progress.end).fold(0.0, f64::max)
}

/// What nodes read of the blob since a line of the registry's log, once it is all written.
async fn origin_bytes(site: &Site, blob: &ImageBlob, since: usize, least: u64) -> Result<u64> {
    let read = || -> Result<u64> {
        let log = site.registry.access_log()?;
        let ours = log.iter().skip(since).filter(|line| line.is_read() && site.is_of_a_node(line));
        Ok(ours.filter(|line| line.digest() == Some(blob.digest.as_str())).map(|line| line.bytes).sum())
    };
    eventually(LOGGED, "the registry's log", || async {
        let bytes = read()?;
        ensure!(bytes >= least, "{bytes} bytes of {} are in the registry's log", blob.size);
        Ok(())
    })
    .await?;
    // A read that was given up is logged a moment later.
    tokio::time::sleep(Duration::from_millis(300)).await;
    read()
}

/// Samples that are told, but not those of histograms.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let told = |line: &&str| TOLD.iter().any(|start| line.starts_with(start));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        let value: f64 = value.parse().ok()?;
        (value != 0.0 && !name.contains("_bucket{")).then(|| (name.to_owned(), value))
    };
    text.lines().filter(told).filter_map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moved_is_told_and_histograms_are_not() {
        let text = "# TYPE shoal_blob_flights gauge\nshoal_blob_flights 0\nshoal_peer_served_bytes_total 7\n\
                    shoal_store_write_seconds_bucket{le=\"1\"} 9\nprocess_start_time_seconds 5\n";
        assert_eq!(samples(text), [("shoal_peer_served_bytes_total".to_owned(), 7.0)].into());
    }
}
