//! `shoalctl preheat …`: images brought to nodes, with a bar for each node.

mod login;
mod wait;

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::cli::{Output, PreheatCommand, PreheatCreate, PreheatFilter, PreheatWait};
use super::client::Client;
use super::table::{Table, bytes};
use super::{Error, print, show, understand};
use login::login_for;

/// A preheat, as much of it as is printed.
#[derive(Debug, Deserialize)]
struct Preheat {
    id: String,
    image: String,
    cluster: Option<String>,
    cluster_id: String,
    target: String,
    state: String,
    why: Option<String>,
    version: u64,
    bytes: u64,
    held: u64,
    blobs: Vec<Blob>,
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Blob {
    digest: String,
    size: u64,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    name: String,
    state: String,
    why: Option<String>,
    attempt: u32,
    bytes: u64,
    blobs: Vec<u64>,
}

/// A preheat in a list.
#[derive(Debug, Deserialize)]
struct Brief {
    id: String,
    image: String,
    cluster: Option<String>,
    cluster_id: String,
    state: String,
    created: String,
    bytes: u64,
    held: u64,
    nodes: Count,
}

#[derive(Debug, Deserialize)]
struct Count {
    all: u64,
    done: u64,
}

pub(super) async fn run(client: &Client, command: &PreheatCommand, output: Output) -> Result<String, Error> {
    match command {
        PreheatCommand::Create(args) => create(client, args, output).await,
        PreheatCommand::List(PreheatFilter { cluster, state }) => {
            let query = [("cluster", cluster.as_deref()), ("state", state.as_deref())];
            let query: Vec<(&str, &str)> = query.iter().filter_map(|(key, value)| Some((*key, (*value)?))).collect();
            let preheats = client.list(&["preheats"], &query).await?;
            show(output, &preheats, || Ok(table(&understand::<Vec<Brief>>(&preheats)?)))
        }
        PreheatCommand::Show { preheat, layers: by_layer } => {
            let preheat = client.request(Method::GET, &["preheats", preheat]).send().await?;
            show(output, &preheat, || if *by_layer { layers(&preheat) } else { details(&preheat) })
        }
        PreheatCommand::Wait { preheat, timeout } => {
            finished(&wait::wait(client, preheat, output == Output::Json, *timeout).await?, output)
        }
        PreheatCommand::Cancel { preheat } => {
            let (_, version) = before(client, preheat).await?;
            let request = client.request(Method::POST, &["preheats", preheat, "cancel"]).if_match(Some(&version));
            let preheat = request.send().await?;
            show(output, &preheat, || details(&preheat))
        }
        PreheatCommand::Retry { preheat, login, wait } => {
            let (before, version) = before(client, preheat).await?;
            let login = login_for(login, &before.image)?;
            let request = client.request(Method::POST, &["preheats", preheat, "retry"]).if_match(Some(&version));
            let body = login.map_or_else(|| json!({}), |login| json!({ "login": login }));
            let begun = request.json(&body).send().await?;
            begin(client, &begun, wait, output).await
        }
    }
}

/// A preheat, and the tag of its state.
async fn before(client: &Client, id: &str) -> Result<(Preheat, String), Error> {
    let preheat: Preheat = understand(&client.request(Method::GET, &["preheats", id]).send().await?)?;
    let version = preheat.version.to_string();
    Ok((preheat, version))
}

async fn create(client: &Client, args: &PreheatCreate, output: Output) -> Result<String, Error> {
    let PreheatCreate { image, cluster, seeds, percent, nodes, platforms, login, wait } = args;
    let mut body = json!({ "image": image, "cluster": cluster, "platforms": platforms, "seeds": seeds });
    if let Some(percent) = percent {
        body["percent"] = (*percent).into();
    }
    if !nodes.is_empty() {
        body["nodes"] = json!(nodes);
    }
    if let Some(login) = login_for(login, image)? {
        body["login"] = login;
    }
    let begun = client.request(Method::POST, &["preheats"]).json(&body).send().await?;
    begin(client, &begun, wait, output).await
}

/// Prints what begins, or waits for it.
async fn begin(client: &Client, begun: &Value, wait: &PreheatWait, output: Output) -> Result<String, Error> {
    if !wait.wait {
        return show(output, begun, || details(begun));
    }
    let id = understand::<Preheat>(begun)?.id;
    finished(&wait::wait(client, &id, output == Output::Json, wait.timeout).await?, output)
}

/// What ended is printed; what did not end well is an error too, that says of each node why.
fn finished(value: &Value, output: Output) -> Result<String, Error> {
    let preheat: Preheat = understand(value)?;
    let text = show(output, value, || details(value))?;
    if preheat.state == "done" {
        return Ok(text);
    }
    if output == Output::Json {
        print(&text);
    }
    Err(Error::Failed(format!("preheat {} of {} {}{}", preheat.id, preheat.image, preheat.state, reasons(&preheat))))
}

/// Why nodes failed, those that failed alike together.
fn reasons(preheat: &Preheat) -> String {
    let mut reasons: Vec<(String, Vec<&str>)> = Vec::new();
    for node in preheat.nodes.iter().filter(|node| node.state != "done") {
        let why = node.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let reason = format!("{}{why}", node.state);
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, names)) => names.push(&node.name),
            None => reasons.push((reason, vec![&node.name])),
        }
    }
    let line = |(reason, names): &(String, Vec<&str>)| match names.as_slice() {
        [first, second, third, _, ..] => {
            format!("\n  {first}, {second}, {third} and {} more: {reason}", names.len() - 3)
        }
        few => format!("\n  {}: {reason}", few.join(", ")),
    };
    reasons.iter().map(line).collect()
}

fn table(preheats: &[Brief]) -> String {
    let mut table = Table::new(&["preheat", "image", "cluster", "nodes", "state", "has", "of", "made"]);
    for preheat in preheats {
        table.row([
            preheat.id.clone(),
            preheat.image.clone(),
            preheat.cluster.clone().unwrap_or_else(|| format!("({})", preheat.cluster_id)),
            format!("{} of {}", preheat.nodes.done, preheat.nodes.all),
            preheat.state.clone(),
            bytes(preheat.held),
            bytes(preheat.bytes.saturating_mul(preheat.nodes.all)),
            preheat.created.clone(),
        ]);
    }
    table.print()
}

fn details(value: &Value) -> Result<String, Error> {
    let preheat: Preheat = understand(value)?;
    let mut table = Table::new(&["node", "id", "state", "has", "attempt", "why"]);
    for node in &preheat.nodes {
        table.row([
            node.name.clone(),
            node.id.clone(),
            node.state.clone(),
            bytes(node.bytes),
            node.attempt.to_string(),
            node.why.clone().unwrap_or_default(),
        ]);
    }
    let cluster = preheat.cluster.unwrap_or(preheat.cluster_id);
    let why = preheat.why.map(|why| format!(" ({why})")).unwrap_or_default();
    Ok(format!(
        "preheat: {}\nimage:   {}, {} in {} blobs\nto:      {} of {cluster}\nstate:   {}{why}\n\n{}",
        preheat.id,
        preheat.image,
        bytes(preheat.bytes),
        preheat.blobs.len(),
        preheat.target,
        preheat.state,
        table.print()
    ))
}

/// What each node has of each blob.
fn layers(value: &Value) -> Result<String, Error> {
    let preheat: Preheat = understand(value)?;
    let mut table = Table::new(&["node", "state", "blob", "has", "of"]);
    for node in &preheat.nodes {
        for (blob, has) in preheat.blobs.iter().zip(&node.blobs) {
            table.row([node.name.clone(), node.state.clone(), blob.digest.clone(), bytes(*has), bytes(blob.size)]);
        }
    }
    Ok(table.print())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preheat(states: &[(&str, Option<&str>)]) -> Value {
        let node = |(at, (state, why)): (usize, &(&str, Option<&str>))| {
            json!({"id": format!("id{at}"), "name": format!("n{at}"), "state": state, "why": why, "attempt": 1,
                "bytes": 3, "blobs": [1, 2]})
        };
        let nodes: Vec<Value> = states.iter().enumerate().map(node).collect();
        json!({"id": "p", "image": "r/a:1", "cluster": "one", "cluster_id": "c1", "target": "all nodes", "state": "failed",
            "why": null, "version": 1, "bytes": 9, "held": 6, "nodes": nodes,
            "blobs": [{"digest": "sha256:aa", "size": 4}, {"digest": "sha256:bb", "size": 5}]})
    }

    #[test]
    fn nodes_that_failed_alike_are_told_of_together() {
        let mut states = vec![("done", None), ("failed", Some("disk full"))];
        states.extend([("failed", Some("not asked")); 9]);
        let error = finished(&preheat(&states), Output::Table).unwrap_err().to_string();
        assert_eq!(
            error,
            "preheat p of r/a:1 failed\n  n1: failed: disk full\n  n2, n3, n4 and 6 more: failed: not asked"
        );
    }

    #[test]
    fn each_node_is_shown_with_each_of_its_layers() {
        let text = layers(&preheat(&[("done", None), ("running", None)])).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[4], ["n1", "running", "sha256:bb", "2", "B", "5", "B"]);
    }
}
