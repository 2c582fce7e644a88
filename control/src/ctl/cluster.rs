//! `shoalctl cluster …`

use ipnet::{IpNet, Ipv4Net};
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
            let Create { name, default, idc, location, cidrs, dry_run } = args;
            let body = json!({ "name": name, "default": default, "idc": idc, "location": location, "cidrs": cidrs });
            let request = client.request(Method::POST, &["clusters"]).json(&body);
            if dry_run {
                let answer = request.dry_run().send().await?;
                return show(output, &answer, || apply::describe(&answer));
            }
            let made = request.send().await?;
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
            let mut body = patch(&args)?;
            let (now, tag) = held_to(client, &args.cluster, args.if_version.as_deref()).await?;
            if let Some(cidrs) = networks(&now, &args.add_cidrs, &args.remove_cidrs)? {
                body.insert("cidrs".to_owned(), json!(cidrs));
            }
            let body = Value::Object(body);
            let request = client.request(Method::PATCH, &["clusters", &args.cluster]).if_match(tag.as_deref());
            if args.dry_run {
                let answer = request.dry_run().json(&body).send().await?;
                return show(output, &answer, || apply::describe(&answer));
            }
            let cluster = request.json(&body).send().await?;
            show(output, &cluster, || changed(&cluster))
        }
        ClusterCommand::Delete(Delete { cluster, force, if_version, dry_run }) => {
            let (_, tag) = held_to(client, &cluster, if_version.as_deref()).await?;
            let request = client.request(Method::DELETE, &["clusters", &cluster]).if_match(tag.as_deref());
            if dry_run {
                let answer = request.dry_run().send().await?;
                return show(output, &answer, || apply::describe(&answer));
            }
            let force: &[(&str, &str)] = if force { &[("force", "true")] } else { &[] };
            request.query(force).send().await?;
            let done = json!({ "deleted": cluster });
            show(output, &done, || Ok(format!("deleted {cluster}")))
        }
    }
}

/// A cluster, and the tag that a change of it is held to: that of this state, so that what somebody else does meanwhile is not undone.
/// No tag: whatever it is like, if `version` is `*`.
///
/// # Errors
/// [`Error::Conflict`] if it is not at the version that is given.
async fn held_to(client: &Client, cluster: &str, version: Option<&str>) -> Result<(Cluster, Option<String>), Error> {
    let (now, tag) = client.seen(&["clusters", cluster]).await?;
    let now: Cluster = understand(&now)?;
    match version.map(|version| version.trim_matches('"')) {
        Some("*") => Ok((now, None)),
        Some(given) if given != tag && given != now.version.to_string() => Err(Error::Conflict(format!(
            "cluster {} is at version {} ({tag}), not {given}: it was changed since; nothing was done",
            now.name, now.version
        ))),
        _ => Ok((now, Some(tag))),
    }
}

/// The networks of a cluster with some more and some less; `None`: nothing of that is asked for.
fn networks(now: &Cluster, add: &[String], remove: &[String]) -> Result<Option<Vec<String>>, Error> {
    if add.is_empty() && remove.is_empty() {
        return Ok(None);
    }
    let mut cidrs = now.cidrs.clone();
    for text in remove {
        let gone = network(text)
            .ok_or_else(|| Error::Refused(format!("--remove-cidr: {text:?} is not a CIDR like 10.1.0.0/16")))?;
        let before = cidrs.len();
        cidrs.retain(|cidr| network(cidr) != Some(gone));
        if cidrs.len() == before {
            let has = if now.cidrs.is_empty() { "none".to_owned() } else { now.cidrs.join(", ") };
            return Err(Error::Refused(format!(
                "--remove-cidr: cluster {} does not have {gone}; it has {has}",
                now.name
            )));
        }
    }
    // What is wrong with one of these the server says.
    cidrs.extend_from_slice(add);
    Ok(Some(cidrs))
}

/// A network as the server writes it: host bits masked, IPv4 that is written as IPv6 as IPv4.
fn network(text: &str) -> Option<IpNet> {
    let net: IpNet = text.trim().parse().ok()?;
    let IpNet::V6(six) = net else { return Some(net.trunc()) };
    match (six.addr().to_ipv4_mapped(), six.prefix_len().checked_sub(96)) {
        (Some(four), Some(len)) => Ipv4Net::new(four, len).ok().map(|four| IpNet::V4(four).trunc()),
        _ => Some(net.trunc()),
    }
}

fn patch(args: &Update) -> Result<Map<String, Value>, Error> {
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
    if body.is_empty() && args.add_cidrs.is_empty() && args.remove_cidrs.is_empty() {
        return Err(Error::Refused(
            "nothing to update: give --name, --default, --idc, --location, --cidr, --add-cidr or --remove-cidr"
                .to_owned(),
        ));
    }
    Ok(body)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_networks_are_added_and_removed_however_they_are_written() {
        let now = Cluster {
            id: "1".into(),
            name: "b".into(),
            version: 1,
            default: false,
            idc: String::new(),
            location: String::new(),
            cidrs: vec!["10.1.0.0/16".into(), "fd00:1::/32".into()],
            nodes: 0,
            default_from: None,
        };
        let of = |add: &[&str], remove: &[&str]| {
            let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
            networks(&now, &own(add), &own(remove)).map_err(|error| error.to_string())
        };
        assert_eq!(of(&[], &[]), Ok(None));
        let some = |cidrs: &[&str]| Ok(Some(cidrs.iter().map(|cidr| (*cidr).to_owned()).collect::<Vec<_>>()));
        assert_eq!(of(&["10.2.0.0/16"], &[]), some(&["10.1.0.0/16", "fd00:1::/32", "10.2.0.0/16"]));
        for same in ["10.1.0.0/16", " 10.1.2.3/16", "::ffff:10.1.9.9/112"] {
            assert_eq!(of(&[], &[same]), some(&["fd00:1::/32"]), "{same}");
        }
        assert_eq!(of(&["10.1.4.0/24"], &["10.1.0.0/16", "fd00:1::/32"]), some(&["10.1.4.0/24"]));
        let missing = of(&[], &["10.1.0.0/17"]).unwrap_err();
        assert!(missing.contains("does not have 10.1.0.0/17; it has 10.1.0.0/16, fd00:1::/32"), "{missing}");
        assert!(of(&[], &["10.1.0.0"]).unwrap_err().contains("is not a CIDR"));
    }
}
