//! `shoalctl cluster …`

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::apply;
use super::cli::{ClusterCommand, Create, Delete, Output, Update};
use super::client::Client;
use super::table::Table;
use super::{Error, show, understand};

/// A cluster, as much of it as is printed.
#[derive(Debug, Deserialize)]
pub(super) struct Cluster {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) version: u64,
    pub(super) default: bool,
    pub(super) idc: String,
    pub(super) location: String,
    pub(super) cidrs: Vec<String>,
    pub(super) nodes: u64,
    /// Which cluster lost the default to it just now.
    #[serde(default)]
    pub(super) default_from: Option<String>,
}

pub(super) async fn run(client: &Client, command: ClusterCommand, output: Output) -> Result<String, Error> {
    match command {
        ClusterCommand::Create(args) => {
            let Create { name, default, idc, location, cidrs } = args;
            let body = json!({ "name": name, "default": default, "idc": idc, "location": location, "cidrs": cidrs });
            let made = client.request(Method::POST, &["clusters"]).json(&body).send().await?;
            show(output, &made, || changed(&made))
        }
        ClusterCommand::List => {
            let clusters = client.list(&["clusters"], &[]).await?;
            show(output, &clusters, || Ok(table(&understand::<Vec<Cluster>>(&clusters)?)))
        }
        ClusterCommand::Show(named) => {
            let cluster = client.request(Method::GET, &["clusters", &named.cluster]).send().await?;
            show(output, &cluster, || one(&cluster))
        }
        ClusterCommand::Update(args) => {
            let body = patch(&args)?;
            let tag = tag(client, &args.cluster, args.if_version.as_deref()).await?;
            let request = client.request(Method::PATCH, &["clusters", &args.cluster]).if_match(tag.as_deref());
            if args.dry_run {
                let answer = request.query(&[("dry_run", "true")]).json(&body).send().await?;
                return show(output, &answer, || apply::describe(&answer));
            }
            let cluster = request.json(&body).send().await?;
            show(output, &cluster, || changed(&cluster))
        }
        ClusterCommand::Delete(Delete { cluster, force, if_version, dry_run }) => {
            let tag = tag(client, &cluster, if_version.as_deref()).await?;
            let request = client.request(Method::DELETE, &["clusters", &cluster]).if_match(tag.as_deref());
            if dry_run {
                let answer = request.query(&[("dry_run", "true")]).send().await?;
                return show(output, &answer, || apply::describe(&answer));
            }
            let force: &[(&str, &str)] = if force { &[("force", "true")] } else { &[] };
            request.query(force).send().await?;
            let done = json!({ "deleted": cluster });
            show(output, &done, || Ok(format!("deleted {cluster}")))
        }
    }
}

/// The ETag that a version of a cluster has; one that is given as it is stays.
async fn tag(client: &Client, cluster: &str, version: Option<&str>) -> Result<Option<String>, Error> {
    match version {
        Some(number) if number.parse::<u64>().is_ok() => {
            let now = client.request(Method::GET, &["clusters", cluster]).send().await?;
            Ok(Some(format!("{}.{number}", understand::<Cluster>(&now)?.id)))
        }
        given => Ok(given.map(|tag| tag.trim_matches('"').to_owned())),
    }
}

fn patch(args: &Update) -> Result<Value, Error> {
    let mut body = Map::new();
    let texts = [("name", &args.name), ("idc", &args.idc), ("location", &args.location)];
    for (key, value) in texts {
        if let Some(value) = value {
            body.insert(key.to_owned(), json!(value));
        }
    }
    if let Some(default) = args.default {
        body.insert("default".to_owned(), json!(default));
    }
    if args.no_cidrs || !args.cidrs.is_empty() {
        body.insert("cidrs".to_owned(), json!(args.cidrs));
    }
    if body.is_empty() {
        return Err(Error::Refused(
            "nothing to update: give --name, --default, --idc, --location or --cidr".to_owned(),
        ));
    }
    Ok(Value::Object(body))
}

/// A cluster that was just written, and what became of another with it.
fn changed(cluster: &Value) -> Result<String, Error> {
    let cluster: Cluster = understand(cluster)?;
    if let Some(from) = &cluster.default_from {
        eprintln!("{} is the default now, and {from} is no more", cluster.name);
    }
    Ok(table(&[cluster]))
}

fn one(cluster: &Value) -> Result<String, Error> {
    Ok(table(&[understand::<Cluster>(cluster)?]))
}

fn table(clusters: &[Cluster]) -> String {
    let mut table = Table::new(&["name", "default", "idc", "location", "cidrs", "nodes", "version", "id"]);
    for cluster in clusters {
        table.row([
            cluster.name.clone(),
            if cluster.default { "yes".to_owned() } else { String::new() },
            cluster.idc.clone(),
            cluster.location.clone(),
            cluster.cidrs.join(","),
            cluster.nodes.to_string(),
            cluster.version.to_string(),
            cluster.id.clone(),
        ]);
    }
    table.print()
}
