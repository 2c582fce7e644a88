//! `shoalctl preheat …`: images brought to nodes, with a bar for each node.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Read as _};
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::cli::{Output, PreheatCommand, PreheatCreate, PreheatFilter, PreheatLogin};
use super::client::Client;
use super::table::{Table, bytes};
use super::{Error, show, understand};

/// How often a preheat is looked at while somebody waits for it.
const EVERY: Duration = Duration::from_millis(500);
const BAR: &str = "{prefix:>16} [{bar:30}] {bytes}/{total_bytes} {msg}";

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
    created: String,
    bytes: u64,
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    name: String,
    state: String,
    why: Option<String>,
    attempt: u32,
    bytes: u64,
}

/// Of docker's `config.json`.
#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, Auth>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
}

pub(super) async fn run(client: &Client, command: &PreheatCommand, output: Output) -> Result<String, Error> {
    match command {
        PreheatCommand::Create(args) => create(client, args, output).await,
        PreheatCommand::List(PreheatFilter { cluster, state }) => {
            let query = [("cluster", cluster.as_deref()), ("state", state.as_deref())];
            let query: Vec<(&str, &str)> = query.iter().filter_map(|(key, value)| Some((*key, (*value)?))).collect();
            let preheats = client.list(&["preheats"], &query).await?;
            show(output, &preheats, || Ok(table(&understand::<Vec<Preheat>>(&preheats)?)))
        }
        PreheatCommand::Show { preheat } => {
            let preheat = client.request(Method::GET, &["preheats", preheat]).send().await?;
            show(output, &preheat, || details(&preheat))
        }
        PreheatCommand::Wait { preheat } => {
            let ended = wait(client, preheat, output).await?;
            finished(&ended, output)
        }
        PreheatCommand::Cancel { preheat } => {
            let preheat = client.request(Method::POST, &["preheats", preheat, "cancel"]).send().await?;
            show(output, &preheat, || details(&preheat))
        }
        PreheatCommand::Retry { preheat, login, wait: waits } => {
            let before = client.request(Method::GET, &["preheats", preheat]).send().await?;
            let login = login_for(login, before["image"].as_str().unwrap_or_default())?;
            let request = client.request(Method::POST, &["preheats", preheat, "retry"]);
            let body = login.map_or_else(|| json!({}), |login| json!({ "login": login }));
            let begun = request.json(&body).send().await?;
            if *waits {
                return finished(&wait(client, preheat, output).await?, output);
            }
            show(output, &begun, || details(&begun))
        }
    }
}

async fn create(client: &Client, args: &PreheatCreate, output: Output) -> Result<String, Error> {
    let PreheatCreate { image, cluster, seeds, percent, nodes, platforms, login, wait: waits } = args;
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
    if !waits {
        return show(output, &begun, || details(&begun));
    }
    let id = understand::<Preheat>(&begun)?.id;
    finished(&wait(client, &id, output).await?, output)
}

/// Until it has ended, with a bar for each node on a terminal.
async fn wait(client: &Client, id: &str, output: Output) -> Result<Value, Error> {
    let bars = (output == Output::Table && std::io::stderr().is_terminal()).then(MultiProgress::new);
    let mut shown: HashMap<String, ProgressBar> = HashMap::new();
    loop {
        let answer = client.request(Method::GET, &["preheats", id]).send().await;
        let value = match answer {
            Ok(value) => value,
            // It goes on without us; a restart of the server is no reason to give up.
            Err(Error::Unreachable { .. } | Error::Server(_)) => {
                tokio::time::sleep(EVERY).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let preheat: Preheat = understand(&value)?;
        if let Some(bars) = &bars {
            for node in &preheat.nodes {
                let bar = shown.entry(node.id.clone()).or_insert_with(|| {
                    let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
                    let bar = bars.add(ProgressBar::new(0).with_style(style.progress_chars("#>-")));
                    bar.set_prefix(node.name.clone());
                    bar
                });
                bar.set_length(preheat.bytes);
                bar.set_position(node.bytes);
                bar.set_message(node.why.clone().unwrap_or_else(|| node.state.clone()));
            }
        }
        if !matches!(preheat.state.as_str(), "waiting" | "running") {
            shown.values().for_each(ProgressBar::abandon);
            return Ok(value);
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// What ended well is printed; what did not is an error that says of each node why.
fn finished(value: &Value, output: Output) -> Result<String, Error> {
    let preheat: Preheat = understand(value)?;
    if preheat.state == "done" {
        return show(output, value, || details(value));
    }
    let node = |node: &Node| {
        let why = node.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        format!("\n  {}: {}{why}", node.name, node.state)
    };
    let nodes: String = preheat.nodes.iter().filter(|node| node.state != "done").map(node).collect();
    Err(Error::Failed(format!("preheat {} of {} {}{nodes}", preheat.id, preheat.image, preheat.state)))
}

fn table(preheats: &[Preheat]) -> String {
    let mut table = Table::new(&["preheat", "image", "cluster", "nodes", "state", "has", "of", "made"]);
    for preheat in preheats {
        let done = preheat.nodes.iter().filter(|node| node.state == "done").count();
        let has: u64 = preheat.nodes.iter().map(|node| node.bytes).sum();
        table.row([
            preheat.id.clone(),
            preheat.image.clone(),
            preheat.cluster.clone().unwrap_or_else(|| format!("({})", preheat.cluster_id)),
            format!("{done} of {}", preheat.nodes.len()),
            preheat.state.clone(),
            bytes(has),
            bytes(preheat.bytes * preheat.nodes.len() as u64),
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
        "preheat: {}\nimage:   {}, {}\nto:      {} of {cluster}\nstate:   {}{why}\n\n{}",
        preheat.id,
        preheat.image,
        bytes(preheat.bytes),
        preheat.target,
        preheat.state,
        table.print()
    ))
}

/// What is sent along for the registry. Passwords come from files and pipes, never from an argument, which everybody on the machine may
/// read.
fn login_for(login: &PreheatLogin, image: &str) -> Result<Option<Value>, Error> {
    if let Some(user) = &login.user {
        let mut password = String::new();
        let read = std::io::stdin().read_to_string(&mut password);
        read.map_err(|error| Error::Refused(format!("--password-stdin: {error}")))?;
        return Ok(Some(json!({ "user": user, "password": password.trim_end_matches(['\r', '\n']) })));
    }
    let Some(path) = &login.docker_config else { return Ok(None) };
    let (user, password) = from_docker_config(path, registry(image))
        .map_err(|why| Error::Refused(format!("--docker-config {}: {why}", path.display())))?;
    Ok(Some(json!({ "user": user, "password": password })))
}

/// The registry of an image: its first part, if that is a host.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

fn from_docker_config(path: &Path, registry: &str) -> Result<(String, String), String> {
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    // The parser's own words could quote what it did not understand.
    let config: DockerConfig = serde_json::from_slice(&text)
        .map_err(|error| format!("is not a docker config (line {}, column {})", error.line(), error.column()))?;
    let means = |key: &str| {
        let host = key.trim_start_matches("https://").trim_start_matches("http://").split('/').next();
        host == Some(registry) || (registry == "docker.io" && host == Some("index.docker.io"))
    };
    let found = config.auths.into_iter().find(|(key, _)| means(key));
    let (key, auth) =
        found.ok_or_else(|| format!("has no `auths` of {registry}; credential helpers are not asked here"))?;
    if !auth.username.is_empty() {
        return Ok((auth.username, auth.password));
    }
    let text = BASE64_STANDARD.decode(auth.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = text.as_deref().and_then(|text| text.split_once(':'));
    let (user, password) = pair.ok_or_else(|| format!("auths.{key:?}.auth is not the base64 of user:password"))?;
    Ok((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_found_by_the_registry_of_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let auth = BASE64_STANDARD.encode("hub:p:w");
        let text = json!({ "auths": {
            "https://index.docker.io/v1/": { "auth": auth },
            "registry.example:5000": { "username": "u", "password": "p" },
            "broken.example": { "auth": "%%%" },
        }});
        std::fs::write(&path, text.to_string()).unwrap();
        let login = |image: &str| from_docker_config(&path, registry(image));
        assert_eq!(login("alpine:3"), Ok(("hub".into(), "p:w".into())));
        assert_eq!(login("library/alpine"), Ok(("hub".into(), "p:w".into())));
        assert_eq!(login("registry.example:5000/a/b:1"), Ok(("u".into(), "p".into())));
        assert!(login("other.example/a").unwrap_err().contains("other.example"));
        assert!(login("broken.example/a").unwrap_err().contains("base64"));
        std::fs::write(&path, "{ \"auths\": planted-secret").unwrap();
        let why = login("alpine").unwrap_err();
        assert!(why.contains("line 1") && !why.contains("planted-secret"), "{why}");
    }
}
