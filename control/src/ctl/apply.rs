//! `shoalctl apply`

use std::io::Read as _;
use std::path::Path;

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::cli::{Apply, Output};
use super::client::Client;
use super::cluster::Cluster;
use super::{DIFFERENT, Error, Said, show, understand};

#[derive(Debug, Deserialize)]
struct Difference {
    dry_run: bool,
    changes: Vec<Change>,
    undeclared: Vec<String>,
    /// What it was decided on; an earlier server does not say it.
    #[serde(default)]
    version: Option<String>,
    moves: Option<Moves>,
}

/// Live nodes that would move.
#[derive(Debug, Deserialize)]
struct Moves {
    between: Vec<Between>,
    nodes: Vec<Move>,
}

#[derive(Debug, Deserialize)]
struct Between {
    from: Option<String>,
    to: Option<String>,
    nodes: u64,
}

#[derive(Debug, Deserialize)]
struct Move {
    name: String,
    node: String,
    from: Option<String>,
    to: Option<String>,
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
enum Change {
    Create { after: Cluster },
    Update { before: Cluster, after: Cluster },
    Delete { before: Cluster },
}

pub(super) async fn run(client: &Client, args: &Apply, output: Output) -> Result<Said, Error> {
    let name = args.file.display();
    let text = read(&args.file).map_err(|error| Error::Refused(format!("{name}: {error}")))?;
    let body = json!({ "clusters": declared(&text).map_err(|reason| Error::Refused(format!("{name}: {reason}")))? });
    let flags = [("prune", args.prune), ("force", args.force)];
    let query: Vec<(&str, &str)> = flags.iter().filter(|(_, set)| *set).map(|(key, _)| (*key, "true")).collect();
    let tag = args.if_version.as_deref().map(|tag| tag.trim_matches('"')).filter(|tag| *tag != "*");
    let request = client.request(Method::PUT, &["clusters"]).if_match(tag).query(&query).json(&body);
    let answer = if args.dry_run { request.dry_run() } else { request }.send().await?;
    let difference: Difference = understand(&answer)?;
    // The server does not hold what is only thought through to a version.
    if let (true, Some(wanted), Some(found)) = (args.dry_run, tag, &difference.version)
        && wanted != found
    {
        return Err(Error::Conflict(format!(
            "the clusters are at version {found}, not {wanted}: they were changed since"
        )));
    }
    let text = show(output, &answer, || {
        if !args.prune {
            left_out(&difference).iter().for_each(|line| eprintln!("not in {name}, {line} (--prune deletes)"));
        }
        Ok(summary(&difference))
    })?;
    let differs = args.detailed_exitcode && !difference.changes.is_empty();
    Ok(Said { text, code: if differs { DIFFERENT } else { 0 } })
}

fn read(path: &Path) -> std::io::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(path)
}

/// The list of clusters as it stands in the file. What a cluster may have is the server's to judge, so that there is
/// one judge.
fn declared(text: &str) -> Result<Value, String> {
    let mut file: toml::Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    let clusters = file.remove("cluster");
    if let Some(key) = file.keys().next() {
        return Err(format!("unknown key {key:?}: a clusters file has [[cluster]] only"));
    }
    match clusters {
        Some(clusters @ toml::Value::Array(_)) => serde_json::to_value(clusters).map_err(|error| error.to_string()),
        Some(_) => Err("\"cluster\" is not a list: write [[cluster]]".to_owned()),
        None => Err("has no [[cluster]]".to_owned()),
    }
}

/// What is said of clusters that the file does not have: those that stay as they are, and those that lose the default to one of it.
fn left_out(Difference { dry_run, changes, undeclared, .. }: &Difference) -> Vec<String> {
    let changes_too = |name: &&String| {
        changes.iter().any(|change| matches!(change, Change::Update { before, .. } if before.name == **name))
    };
    let (changed, alone): (Vec<&String>, Vec<&String>) = undeclared.iter().partition(changes_too);
    let list = |names: &[&String]| names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    let mut lines = Vec::new();
    if !alone.is_empty() {
        lines.push(format!("and left alone: {}", list(&alone)));
    }
    if !changed.is_empty() {
        let becomes = if *dry_run { "and would be the default no more" } else { "and the default no more" };
        lines.push(format!("{becomes}: {}", list(&changed)));
    }
    lines
}

/// What a change did, or would do and which live nodes it would move.
pub(super) fn describe(answer: &Value) -> Result<String, Error> {
    Ok(summary(&understand(answer)?))
}

/// Nodes that are named one by one.
const MOST_MOVES: usize = 20;

fn summary(Difference { dry_run, changes, undeclared: _, version, moves }: &Difference) -> String {
    if changes.is_empty() {
        return "no difference".to_owned();
    }
    let mut lines: Vec<String> = changes
        .iter()
        .map(|change| match change {
            Change::Create { after } => format!("+ {}{}", after.name, fields(None, after)),
            Change::Update { before, after } => {
                format!("~ {}{}", before.name, fields(Some(before), after))
            }
            Change::Delete { before } => format!("- {}", before.name),
        })
        .collect();
    let name = |cluster: &Option<String>| cluster.clone().unwrap_or_else(|| "(alone)".to_owned());
    for Between { from, to, nodes } in moves.iter().flat_map(|moves| &moves.between) {
        lines.push(format!("> {nodes} node(s): {} -> {}", name(from), name(to)));
    }
    for moved in moves.iter().flat_map(|moves| &moves.nodes).take(MOST_MOVES) {
        let Move { name: host, node, from, to, reason } = moved;
        lines.push(format!("    {host} ({node}): {} -> {}: {reason}", name(from), name(to)));
    }
    if *dry_run {
        let just_this =
            version.as_ref().map(|version| format!("; to do just this and no other: --if-version {version}"));
        lines.push(format!("nothing was changed (--dry-run){}", just_this.unwrap_or_default()));
    }
    lines.join("\n")
}

/// What differs, or for a new cluster what it has.
fn fields(before: Option<&Cluster>, after: &Cluster) -> String {
    let values = |cluster: &Cluster| {
        [
            ("name", format!("{:?}", cluster.name)),
            ("default", cluster.default.to_string()),
            ("idc", format!("{:?}", cluster.idc)),
            ("location", format!("{:?}", cluster.location)),
            ("cidrs", format!("[{}]", cluster.cidrs.join(", "))),
        ]
    };
    let blank = [("name", String::new()), ("default", "false".to_owned()), ("idc", "\"\"".to_owned())]
        .into_iter()
        .chain([("location", "\"\"".to_owned()), ("cidrs", "[]".to_owned())]);
    let old: Vec<(&str, String)> = before.map_or_else(|| blank.collect(), |before| values(before).to_vec());
    let mut text = String::new();
    for ((key, old), (_, new)) in old.iter().zip(values(after)) {
        if *old == new || (before.is_none() && *key == "name") {
            continue;
        }
        text.push_str(&match before {
            Some(_) => format!("\n    {key}: {old} -> {new}"),
            None => format!("\n    {key}: {new}"),
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_passed_on_as_it_stands() {
        let body = declared("[[cluster]]\nname = \"a\"\nidcs = 3\n[[cluster]]\n").unwrap();
        assert_eq!(body, json!([{ "name": "a", "idcs": 3 }, {}]));
    }

    #[test]
    fn what_is_no_clusters_file_is_refused_with_its_line() {
        assert!(declared("[[cluster]]\nname = \n").unwrap_err().contains("line 2"), "a syntax error");
        assert!(declared("[[clusters]]\nname = \"a\"").unwrap_err().contains("\"clusters\""));
        assert!(declared("[cluster]\nname = \"a\"").unwrap_err().contains("[[cluster]]"));
        // With --prune, an empty file would delete everything.
        assert!(declared("").unwrap_err().contains("no [[cluster]]"));
    }

    fn cluster(name: &str, idc: &str) -> Cluster {
        Cluster {
            id: "1".into(),
            name: name.into(),
            version: 1,
            default: false,
            idc: idc.into(),
            location: String::new(),
            cidrs: vec!["10.0.0.0/8".into()],
            nodes: 0,
            default_from: None,
        }
    }

    #[test]
    fn what_loses_the_default_is_not_said_to_be_left_alone() {
        let before = Cluster { default: true, ..cluster("old", "") };
        let changes = vec![Change::Update { before, after: cluster("old", "") }];
        let undeclared = vec!["old".to_owned(), "other".to_owned()];
        let mut difference = Difference { dry_run: false, changes, undeclared, version: None, moves: None };
        assert_eq!(left_out(&difference), ["and left alone: other", "and the default no more: old"]);
        difference.dry_run = true;
        assert_eq!(left_out(&difference)[1], "and would be the default no more: old");
        assert_eq!(left_out(&Difference { undeclared: Vec::new(), ..difference }), Vec::<String>::new());
    }

    #[test]
    fn a_difference_reads_like_a_diff() {
        let changes = [
            Change::Create { after: cluster("a", "") },
            Change::Update { before: cluster("b", "x"), after: cluster("b", "y") },
            Change::Delete { before: cluster("c", "") },
        ];
        let moved = |name: &str| Move {
            name: name.into(),
            node: "n1".into(),
            from: Some("b".into()),
            to: None,
            reason: "no scope matches".into(),
        };
        let between = vec![Between { from: Some("b".into()), to: None, nodes: 1 }];
        let moves = Some(Moves { between, nodes: vec![moved("host")] });
        let version = Some("12".to_owned());
        let text =
            summary(&Difference { dry_run: true, changes: changes.into(), undeclared: Vec::new(), version, moves });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["+ a", "    cidrs: [10.0.0.0/8]"]);
        assert_eq!(lines[2..5], ["~ b", "    idc: \"x\" -> \"y\"", "- c"]);
        assert_eq!(lines[5..7], ["> 1 node(s): b -> (alone)", "    host (n1): b -> (alone): no scope matches"]);
        assert_eq!(lines[7], "nothing was changed (--dry-run); to do just this and no other: --if-version 12");
        let none =
            Difference { dry_run: false, changes: Vec::new(), undeclared: Vec::new(), version: None, moves: None };
        assert_eq!(summary(&none), "no difference");
    }
}
