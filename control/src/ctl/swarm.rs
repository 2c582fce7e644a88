//! `shoalctl blob`, `flight`, `image`: who has what, and who fetches it from whom.

use std::io::Read as _;
use std::path::Path;

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::cli::{BlobCommand, BlobFilter, FlightCommand, FlightFilter, ImageCommand, Output, ShareArgs, TrafficArgs};
use super::client::Client;
use super::table::{Table, bytes};
use super::{Error, show, understand};

#[derive(Debug, Deserialize)]
struct Blob {
    digest: String,
    cluster: String,
    size: Option<u64>,
    media_type: Option<String>,
    holders: u64,
    flights: u64,
}

#[derive(Debug, Deserialize)]
struct Detail {
    clusters: Vec<Blob>,
}

#[derive(Debug, Deserialize)]
struct Holder {
    node: String,
    name: Option<String>,
    cluster: String,
    complete: bool,
    bytes: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Flight {
    node: String,
    name: Option<String>,
    cluster: String,
    digest: String,
    registry: String,
    repository: String,
    size: Option<u64>,
    bytes: Option<u64>,
    origin_bytes: u64,
    reads_origin: bool,
    parents: Vec<Parent>,
    waiting: Option<String>,
    seed: Option<Parent>,
}

#[derive(Debug, Deserialize)]
struct LiveNode {
    id: String,
    name: String,
}

#[derive(Debug, Deserialize)]
struct Parent {
    node: String,
    name: Option<String>,
    /// A seed that is waited for has given nothing.
    #[serde(default)]
    bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Traffic {
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
struct Step {
    at: String,
    bytes_from_origin: u64,
    bytes_from_peers: u64,
    bytes_local: u64,
}

impl Step {
    /// Date and time without seconds.
    fn minute(&self) -> &str {
        self.at.get(..16).unwrap_or(&self.at)
    }
}

fn given<'a>(query: &[(&'a str, Option<&'a str>)]) -> Vec<(&'a str, &'a str)> {
    query.iter().filter_map(|(key, value)| Some((*key, (*value)?))).collect()
}

fn size(size: Option<u64>) -> String {
    size.map_or_else(|| "?".to_owned(), bytes)
}

pub(super) async fn blob(client: &Client, command: &BlobCommand, output: Output) -> Result<String, Error> {
    match command {
        BlobCommand::List(BlobFilter { cluster, digest }) => {
            let query = given(&[("cluster", cluster.as_deref()), ("digest", digest.as_deref())]);
            let answer = client.list(&["blobs"], &query).await?;
            show(output, &answer, || Ok(blobs(&understand::<Vec<Blob>>(&answer)?)))
        }
        BlobCommand::Show { digest } => {
            let mut answer = client.request(Method::GET, &["blobs", digest]).send().await?;
            answer["holders"] = client.list(&["blobs", digest, "holders"], &[]).await?;
            show(output, &answer, || {
                let Detail { clusters } = understand(&answer)?;
                let mut table = Table::new(&["cluster", "node", "id", "has"]);
                for holder in understand::<Vec<Holder>>(&answer["holders"])? {
                    let has = if holder.complete { "all".to_owned() } else { size(holder.bytes) };
                    table.row([holder.cluster, holder.name.unwrap_or_default(), holder.node, has]);
                }
                Ok(format!("{}\n\n{}", blobs(&clusters), table.print()))
            })
        }
    }
}

fn blobs(blobs: &[Blob]) -> String {
    let mut table = Table::new(&["digest", "cluster", "size", "holders", "flights", "media type"]);
    for blob in blobs {
        table.row([
            blob.digest.clone(),
            blob.cluster.clone(),
            size(blob.size),
            blob.holders.to_string(),
            blob.flights.to_string(),
            blob.media_type.clone().unwrap_or_default(),
        ]);
    }
    table.print()
}

/// One line a minute: steps that began in the same one.
pub(super) async fn traffic(client: &Client, args: &TrafficArgs, output: Output) -> Result<String, Error> {
    let minutes = args.minutes.to_string();
    let query = given(&[("cluster", args.cluster.as_deref()), ("minutes", Some(&minutes))]);
    let answer = client.request(Method::GET, &["traffic"]).query(&query).send().await?;
    show(output, &answer, || {
        let Traffic { steps } = understand(&answer)?;
        let mut table = Table::new(&["minute (utc)", "from origin", "from peers", "from own disk"]);
        for minute in steps.chunk_by(|one, next| one.minute() == next.minute()) {
            let of: [fn(&Step) -> u64; 3] =
                [|step| step.bytes_from_origin, |step| step.bytes_from_peers, |step| step.bytes_local];
            let sums = of.map(|of| bytes(minute.iter().map(of).fold(0, u64::saturating_add)));
            let at = minute.first().map(Step::minute).unwrap_or_default().replace('T', " ");
            table.row(std::iter::once(at).chain(sums));
        }
        Ok(table.print())
    })
}

/// The id of a live node that is named by id or name.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Refused`] for a name that several have.
async fn node_id(client: &Client, id_or_name: &str) -> Result<String, Error> {
    if id_or_name.is_empty() {
        return Err(Error::Refused("--node is empty".to_owned()));
    }
    // Those whose name or id begins so.
    let nodes: Vec<LiveNode> = understand(&client.list(&["nodes"], &[("name", id_or_name)]).await?)?;
    if nodes.iter().any(|node| node.id == id_or_name) {
        return Ok(id_or_name.to_owned());
    }
    let ids: Vec<String> = nodes.into_iter().filter(|node| node.name == id_or_name).map(|node| node.id).collect();
    match ids.as_slice() {
        [] => Err(Error::NotFound(format!("there is no live node {id_or_name:?}"))),
        [one] => Ok(one.clone()),
        several => Err(Error::Refused(format!(
            "--node: several live nodes are named {id_or_name:?}; say which by its id: {}",
            several.join(", ")
        ))),
    }
}

pub(super) async fn flight(client: &Client, command: &FlightCommand, output: Output) -> Result<String, Error> {
    let FlightCommand::List(FlightFilter { cluster, node, digest }) = command;
    let node = match node {
        Some(node) => Some(node_id(client, node).await?),
        None => None,
    };
    let query = given(&[("cluster", cluster.as_deref()), ("node", node.as_deref()), ("digest", digest.as_deref())]);
    let answer = client.list(&["flights"], &query).await?;
    show(output, &answer, || {
        let mut table = Table::new(&[
            "cluster",
            "node",
            "digest",
            "of",
            "has",
            "from origin",
            "reads origin",
            "fed by",
            "may fetch from",
            "image",
            "waits",
        ]);
        for flight in understand::<Vec<Flight>>(&answer)? {
            let (mut fed_by, mut others) = (Vec::new(), Vec::new());
            for Parent { node, name, bytes: came } in flight.parents {
                let name = name.unwrap_or(node);
                match came {
                    0 => others.push(name),
                    came => fed_by.push(format!("{name} ({})", bytes(came))),
                }
            }
            table.row([
                flight.cluster,
                flight.name.unwrap_or(flight.node),
                flight.digest,
                size(flight.size),
                size(flight.bytes),
                bytes(flight.origin_bytes),
                if flight.reads_origin { "yes".to_owned() } else { String::new() },
                fed_by.join(", "),
                others.join(", "),
                format!("{}/{}", flight.registry, flight.repository),
                match (flight.waiting, flight.seed) {
                    (Some(why), Some(seed)) => format!("{why}: {}", seed.name.unwrap_or(seed.node)),
                    (why, _) => why.unwrap_or_default(),
                },
            ]);
        }
        Ok(table.print())
    })
}

/// An image manifest (OCI image-spec, manifest.md), as much of it as counts.
#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
}

#[derive(Debug, Deserialize)]
struct Share {
    node: String,
    name: Option<String>,
    cluster: String,
    blobs: u64,
    bytes: u64,
    share: f64,
}

pub(super) async fn image(client: &Client, command: &ImageCommand, output: Output) -> Result<String, Error> {
    let ImageCommand::Share(ShareArgs { manifest, digests, cluster }) = command;
    let mut blobs: Vec<Value> = digests.iter().map(|digest| json!({ "digest": digest })).collect();
    if let Some(path) = manifest {
        let refused = |why: String| Error::Refused(format!("--manifest {}: {why}", path.display()));
        let text = read(path).map_err(|error| refused(error.to_string()))?;
        let Manifest { config, layers } = serde_json::from_str(&text)
            .map_err(|error| refused(format!("{error}; an index is none: name the manifest of one platform")))?;
        let parts = std::iter::once(config).chain(layers);
        blobs.extend(parts.map(|part| json!({ "digest": part.digest, "size": part.size })));
    }
    let body = json!({ "blobs": blobs, "cluster": cluster });
    let (mut nodes, mut after) = (Vec::new(), None::<String>);
    let mut answer = loop {
        let mut request = client.request(Method::POST, &["images", "share"]).query(&[("limit", "1000")]).only_asks();
        if let Some(after) = &after {
            request = request.query(&[("after", after)]);
        }
        let mut answer = request.json(&body).send().await?;
        nodes.append(&mut understand(&answer["nodes"]["items"])?);
        match answer["nodes"]["next"].as_str() {
            Some(next) => after = Some(next.to_owned()),
            None => {
                answer["nodes"] = Value::Null;
                break answer;
            }
        }
    };
    answer["nodes"] = Value::Array(nodes);
    show(output, &answer, || {
        let mut table = Table::new(&["cluster", "node", "id", "blobs", "has", "share"]);
        for share in understand::<Vec<Share>>(&answer["nodes"])? {
            let percent = format!("{:.0} %", share.share * 100.0);
            table.row([
                share.cluster,
                share.name.unwrap_or_default(),
                share.node,
                share.blobs.to_string(),
                bytes(share.bytes),
                percent,
            ]);
        }
        let (count, total) = (&answer["blobs"], answer["bytes"].as_u64().unwrap_or_default());
        Ok(format!("{count} blob(s), {}\n\n{}", bytes(total), table.print()))
    })
}

fn read(path: &Path) -> std::io::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(path)
}
