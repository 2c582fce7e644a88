//! `shoalctl node …`, `shoalctl explain` and `shoalctl summary`

use reqwest::Method;
use serde::Deserialize;

use super::cli::{NodeCommand, NodeFilter, NodeRole, Output, Place, SummaryArgs};
use super::client::Client;
use super::table::{Table, bytes};
use super::{Error, show, understand};

/// A node, as much of it as is printed.
#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    name: String,
    ip: String,
    idc: String,
    location: String,
    role: String,
    cluster: Option<String>,
    reason: String,
    version: String,
    connected: bool,
    heartbeat_age_seconds: f64,
    held_blobs: u64,
    store_bytes: u64,
    bytes_from_origin: u64,
    bytes_from_peers: u64,
    bytes_to_peers: u64,
}

#[derive(Debug, Deserialize)]
struct Explanation {
    cluster: Option<String>,
    reason: String,
    considered: Vec<Considered>,
}

#[derive(Debug, Deserialize)]
struct Considered {
    cluster: String,
    cidr: Option<String>,
    idc: Option<String>,
    location: Option<String>,
}

pub(super) async fn run(client: &Client, command: &NodeCommand, output: Output) -> Result<String, Error> {
    match command {
        NodeCommand::List(filter) => {
            let NodeFilter { cluster, name, role, state } = filter;
            let role = role.map(NodeRole::as_str);
            let query = [
                ("cluster", cluster.as_deref()),
                ("name", name.as_deref()),
                ("role", role),
                ("state", state.as_deref()),
            ];
            let query: Vec<(&str, &str)> = query.iter().filter_map(|(key, value)| Some((*key, (*value)?))).collect();
            let nodes = client.list(&["nodes"], &query).await?;
            show(output, &nodes, || Ok(table(&understand::<Vec<Node>>(&nodes)?)))
        }
        NodeCommand::Show { node } => {
            let node = client.request(Method::GET, &["nodes", node]).send().await?;
            show(output, &node, || Ok(table(&[understand::<Node>(&node)?])))
        }
    }
}

fn table(nodes: &[Node]) -> String {
    let mut table = Table::new(&[
        "cluster", "node", "ip", "idc", "location", "role", "heard", "blobs", "store", "origin", "peers", "given",
        "version", "id", "reason",
    ]);
    for node in nodes {
        let heard = format!("{:.1}s ago", node.heartbeat_age_seconds);
        table.row([
            node.cluster.clone().unwrap_or_else(|| "(alone)".to_owned()),
            node.name.clone(),
            node.ip.clone(),
            node.idc.clone(),
            node.location.clone(),
            node.role.clone(),
            if node.connected { heard } else { format!("{heard}, lost") },
            node.held_blobs.to_string(),
            bytes(node.store_bytes),
            bytes(node.bytes_from_origin),
            bytes(node.bytes_from_peers),
            bytes(node.bytes_to_peers),
            node.version.clone(),
            node.id.clone(),
            node.reason.clone(),
        ]);
    }
    table.print()
}

/// What there is of everything.
#[derive(Debug, Deserialize)]
struct Summary {
    clusters: u64,
    nodes: u64,
    connected: u64,
    seeds: u64,
    alone: u64,
    flights: u64,
    blobs: u64,
    store_bytes: u64,
    bytes_from_origin: u64,
    bytes_from_peers: u64,
    bytes_to_peers: u64,
    bytes_local: u64,
}

pub(super) async fn summary(client: &Client, args: &SummaryArgs, output: Output) -> Result<String, Error> {
    let query: Vec<(&str, &str)> = args.cluster.iter().map(|cluster| ("cluster", cluster.as_str())).collect();
    let answer = client.request(Method::GET, &["summary"]).query(&query).send().await?;
    show(output, &answer, || {
        let all: Summary = understand(&answer)?;
        let counts = [
            ("clusters", all.clusters),
            ("live nodes", all.nodes),
            ("connected", all.connected),
            ("seeds", all.seeds),
            ("alone", all.alone),
            ("flights", all.flights),
            ("blobs", all.blobs),
        ];
        let sums = [
            ("on disk", all.store_bytes),
            ("origin", all.bytes_from_origin),
            ("peers", all.bytes_from_peers),
            ("given", all.bytes_to_peers),
            ("own disk", all.bytes_local),
        ];
        let mut table = Table::new(&["of", "now"]);
        counts.iter().for_each(|(name, count)| table.row([(*name).to_owned(), count.to_string()]));
        sums.iter().for_each(|(name, sum)| table.row([(*name).to_owned(), bytes(*sum)]));
        Ok(table.print())
    })
}

pub(super) async fn explain(client: &Client, place: &Place, output: Output) -> Result<String, Error> {
    let mut query = vec![("ip", place.ip.as_str()), ("idc", &place.idc), ("location", &place.location)];
    query.extend(place.pin.as_deref().map(|pin| ("pin", pin)));
    let answer = client.request(Method::GET, &["explain"]).query(&query).send().await?;
    show(output, &answer, || {
        let Explanation { cluster, reason, considered } = understand(&answer)?;
        let mut table = Table::new(&["considered", "cidr", "idc", "location"]);
        for Considered { cluster, cidr, idc, location } in considered {
            table.row([cluster, cidr.unwrap_or_default(), idc.unwrap_or_default(), location.unwrap_or_default()]);
        }
        let cluster = cluster.unwrap_or_else(|| "none, the node runs alone".to_owned());
        Ok(format!("cluster: {cluster}\nreason:  {reason}\n\n{}", table.print()))
    })
}
