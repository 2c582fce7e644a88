//! Pages that only show: overview, nodes, blobs, audit, and where a node would belong.

use std::collections::BTreeMap;
use std::convert::Infallible;

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts as Head;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::ask::{Answer, encoded, text};
use super::guard::{Signed, Stop};
use super::view::{self, Cell, Field, Form, Shell};

/// What the address of a page asks for. What is empty was left open in a form.
#[derive(Default)]
pub(super) struct Search(BTreeMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for Search {
    type Rejection = Infallible;

    async fn from_request_parts(head: &mut Head, _: &S) -> Result<Self, Infallible> {
        let asked = Query::<BTreeMap<String, String>>::try_from_uri(&head.uri);
        let mut asked = asked.map(|Query(asked)| asked).unwrap_or_default();
        asked.remove("do");
        Ok(Self(asked).filled())
    }
}

impl Search {
    /// Without what was left open.
    pub(super) fn filled(mut self) -> Self {
        self.0.retain(|_, value| !value.trim().is_empty());
        self
    }

    /// What is said of these names.
    pub(super) fn of(asked: &[(&str, &str)]) -> Self {
        Self(asked.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    pub(super) fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// The address with what is asked for.
    pub(super) fn on(&self, path: &str) -> String {
        let pairs: Vec<String> =
            self.0.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
        if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
    }

    /// The address of the next page; empty: this was the last.
    pub(super) fn next(&self, path: &str, answer: &Answer) -> String {
        let Some(next) = answer.body["next"].as_str() else { return String::new() };
        let mut further = self.0.clone();
        further.insert("after".to_owned(), next.to_owned());
        Self(further).on(path)
    }
}

/// A digest in a table.
pub(super) fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}

fn size(value: &Value) -> String {
    value.as_u64().map_or_else(|| "not known".to_owned(), view::bytes)
}

fn count(answer: &Answer) -> String {
    let more = if answer.body["next"].is_null() { "" } else { " or more" };
    answer.body["total"].as_u64().map_or_else(|| format!("{}{more}", answer.items().len()), |total| total.to_string())
}

pub(super) async fn overview(me: Signed) -> Result<Response, Stop> {
    let summary = me.get("/api/v1/summary").await?;
    let clusters = me.get("/api/v1/clusters").await?;
    let running = me.get("/api/v1/preheats?state=running").await?;
    let traffic = me.get("/api/v1/traffic").await?;
    let of = |key: &str| text(&summary.body[key], "0");
    let sources = [("The origin", "bytes_from_origin"), ("Peers", "bytes_from_peers"), ("Own disk", "bytes_local")];
    let rows = sources.map(|(label, key)| vec![Cell::new(label), Cell::new(size(&summary.body[key]))]);
    let mut live = vec![
        view::facts(
            "Now",
            vec![
                ("Live nodes", of("nodes")),
                ("Connected", of("connected")),
                ("Clusters", of("clusters")),
                ("Live flights", of("flights")),
                ("Running preheats", count(&running)),
            ],
        ),
        view::table("Bytes by source, since the live nodes started", &["Source", "Bytes"], rows.into(), String::new()),
        super::clusters::table(&clusters, Search::default().next("/console/clusters", &clusters)),
    ];
    live.splice(1..1, super::traffic::parts(&traffic.body));
    Ok(view::live(me.shell("Overview", "/console/"), Vec::new(), live, 5).into_response())
}

/// The table of a page of nodes.
pub(super) fn node_table(page: &Answer, more: String) -> String {
    let row = |node: &Value| {
        let state = if node["connected"] == true { "connected" } else { "lost" };
        vec![
            Cell::link(text(&node["name"], ""), format!("/console/nodes/{}", text(&node["id"], ""))),
            Cell::new(text(&node["cluster"], "alone")),
            Cell::of(&node["ip"]),
            Cell::of(&node["role"]),
            Cell::new(state),
            Cell::of(&node["version"]),
            Cell::of(&node["held_blobs"]),
            Cell::of(&node["flights"]),
        ]
    };
    let columns = ["Name", "Cluster", "Address", "Role", "State", "Version", "Blobs", "Flights"];
    view::list("Nodes", &columns, page.items().iter().map(row).collect(), &page.body, more)
}

pub(super) fn choice(values: &[&str]) -> Vec<(String, String)> {
    let any = (String::new(), "any".to_owned());
    std::iter::once(any).chain(values.iter().map(|value| ((*value).to_owned(), (*value).to_owned()))).collect()
}

pub(super) async fn nodes(me: Signed, query: Search) -> Result<Response, Stop> {
    let here = "/console/nodes";
    let answer = me.ask(Method::GET, &query.on("/api/v1/nodes"), None, None).await?;
    let field =
        |kind, name, label, hint| Field::new(kind, name, label, hint).value(query.get(name)).fault(answer.fault(name));
    let form = Form {
        heading: "Filter",
        method: "get",
        action: here.to_owned(),
        fields: vec![
            field("text", "cluster", "Cluster", "Its name or id."),
            field("text", "name", "Name", "How the host name, or the id, begins."),
            field("select", "role", "Role", "What it is for.").options(choice(&["node", "seed"])),
            field("select", "state", "State", "Lost: its lease runs out.").options(choice(&["connected", "lost"])),
            field("text", "version", "Version", "Of the program."),
        ],
        buttons: vec![("filter", "Filter")],
        ..Form::default()
    };
    let error = if answer.status.is_success() { String::new() } else { answer.detail() };
    let table = node_table(&answer, query.next(here, &answer));
    let shell = Shell { error, ..me.shell("Nodes", here) };
    Ok((answer.status, view::live(shell, vec![form.html()], vec![table], 5)).into_response())
}

pub(super) async fn node(me: Signed, Path(id): Path<String>) -> Result<Response, Stop> {
    let answer = me.get(&format!("/api/v1/nodes/{}", encoded(&id))).await?;
    let flights = me.get(&format!("/api/v1/flights?node={}", encoded(&id))).await?;
    let node = &answer.body;
    let mut facts = vec![("Cluster", text(&node["cluster"], "none: it runs alone"))];
    let texts = [
        ("Why", "reason"),
        ("Id", "id"),
        ("Address", "ip"),
        ("Data centre", "idc"),
        ("Location", "location"),
        ("Role", "role"),
        ("Peers reach it at", "peer_addr"),
        ("Version", "version"),
        ("Connected", "connected"),
        ("Since", "connected_since"),
        ("Heard last", "last_heartbeat"),
        ("Whole blobs", "held_blobs"),
        ("Uploads", "uploads"),
    ];
    facts.extend(texts.map(|(label, key)| (label, text(&node[key], "none"))));
    let sizes = [
        ("On its disk", "store_bytes"),
        ("From the origin", "bytes_from_origin"),
        ("From peers", "bytes_from_peers"),
        ("To peers", "bytes_to_peers"),
        ("From its own disk", "bytes_local"),
    ];
    facts.extend(sizes.map(|(label, key)| (label, size(&node[key]))));
    let more = Search::of(&[("node", &id)]).next("/console/flights", &flights);
    let live = vec![view::facts("Now", facts), super::flights::table(flights.items(), more)];
    let title = format!("Node {}", text(&node["name"], &id));
    Ok(view::live(me.shell(&title, "/console/nodes"), Vec::new(), live, 2).into_response())
}

pub(super) async fn blobs(me: Signed, query: Search) -> Result<Response, Stop> {
    let here = "/console/blobs";
    let answer = me.ask(Method::GET, &query.on("/api/v1/blobs"), None, None).await?;
    let field =
        |name, label, hint| Field::new("text", name, label, hint).value(query.get(name)).fault(answer.fault(name));
    let form = Form {
        heading: "Filter",
        method: "get",
        action: here.to_owned(),
        fields: vec![
            field("digest", "Digest", "How it begins, such as sha256:1f."),
            field("cluster", "Cluster", "Its name or id."),
        ],
        buttons: vec![("filter", "Filter")],
        ..Form::default()
    };
    let row = |blob: &Value| {
        let digest = text(&blob["digest"], "");
        vec![
            Cell::link(short(&digest), format!("{here}/{digest}")),
            Cell::of(&blob["cluster"]),
            Cell::new(size(&blob["size"])),
            Cell::new(text(&blob["media_type"], "not known")),
            Cell::of(&blob["holders"]),
            Cell::of(&blob["flights"]),
        ]
    };
    let columns = ["Digest", "Cluster", "Size", "Type", "Holders", "Flights"];
    let rows = answer.items().iter().map(row).collect();
    let error = if answer.status.is_success() { String::new() } else { answer.detail() };
    let table = view::list("Blobs", &columns, rows, &answer.body, query.next(here, &answer));
    let shell = Shell { error, ..me.shell("Blobs", here) };
    Ok((answer.status, view::page(shell, vec![form.html(), table])).into_response())
}

pub(super) async fn blob(me: Signed, Path(digest): Path<String>, query: Search) -> Result<Response, Stop> {
    let path = format!("/api/v1/blobs/{}", encoded(&digest));
    me.get(&path).await?;
    let answer = me.get(&query.on(&format!("{path}/holders"))).await?;
    let row = |holder: &Value| {
        let node = text(&holder["node"], "");
        let share = if holder["complete"] == true { "whole" } else { "in part" };
        vec![
            Cell::link(text(&holder["name"], &node), format!("/console/nodes/{node}")),
            Cell::of(&holder["cluster"]),
            Cell::new(share),
            Cell::new(size(&holder["bytes"])),
        ]
    };
    let rows = answer.items().iter().map(row).collect();
    let more = query.next(&format!("/console/blobs/{}", encoded(&digest)), &answer);
    let table = view::list("Who has it", &["Node", "Cluster", "How much", "Bytes"], rows, &answer.body, more);
    let title = format!("Blob {}", short(&digest));
    Ok(view::live(me.shell(&title, "/console/blobs"), vec![view::words("", &digest)], vec![table], 5).into_response())
}

pub(super) async fn audit(me: Signed, query: Search) -> Result<Response, Stop> {
    let here = "/console/audit";
    let answer = me.ask(Method::GET, &query.on("/api/v1/audit"), None, None).await?;
    if answer.status == StatusCode::FORBIDDEN {
        return Ok(me.failed(answer.status, &answer.detail()));
    }
    let field =
        |name, label, hint| Field::new("text", name, label, hint).value(query.get(name)).fault(answer.fault(name));
    let form = Form {
        heading: "Filter",
        method: "get",
        action: here.to_owned(),
        fields: vec![
            field("who", "Who", "An API token's name, node and its id, or shoal-control."),
            field("action", "What", "Such as cluster.update, or cluster for all about clusters."),
            field(
                "subject",
                "About",
                "A cluster's or API token's name, or the id of a node or a join token, as it was then.",
            ),
            field("since", "Since", "Such as 2026-11-23T12:00:00Z; that moment counts."),
            field("until", "Until", "Such as 2026-11-24T12:00:00Z; that moment does not count."),
        ],
        buttons: vec![("filter", "Filter")],
        ..Form::default()
    };
    let row = |entry: &Value| {
        let keys = ["at", "who", "action", "subject", "before", "after"];
        keys.map(|key| Cell::of(&entry[key])).into()
    };
    let rows = answer.items().iter().map(row).collect();
    let columns = ["When", "Who", "What", "About", "Before", "After"];
    let table = view::list("Changes, the newest first", &columns, rows, &answer.body, query.next(here, &answer));
    let error = if answer.status.is_success() { String::new() } else { answer.detail() };
    let shell = Shell { error, ..me.shell("Audit", here) };
    Ok((answer.status, view::page(shell, vec![form.html(), table])).into_response())
}

pub(super) async fn explain(me: Signed, query: Search) -> Result<Response, Stop> {
    let here = "/console/explain";
    if let Some(why) = me.unfit("To ask where any node would belong", false, true) {
        return Ok(me.page("Explain", here, vec![view::hint(&why)]).into_response());
    }
    let mut error = String::new();
    let mut result = vec![view::words("Answer", "Give an address to see where such a node would belong.")];
    let mut answer = None;
    if !query.0.is_empty() {
        let said = me.ask(Method::GET, &query.on("/api/v1/explain"), None, None).await?;
        if said.status.is_success() {
            let row = |of: &Value| ["cluster", "cidr", "idc", "location"].map(|key| Cell::of(&of[key])).into();
            let rows = said.body["considered"].as_array().into_iter().flatten().map(row).collect();
            let place = text(&said.body["cluster"], "no cluster: it would run alone");
            result = vec![
                view::facts("Answer", vec![("Belongs to", place), ("Why", text(&said.body["reason"], ""))]),
                view::table(
                    "What each cluster matched on",
                    &["Cluster", "Network", "Data centre", "Location"],
                    rows,
                    String::new(),
                ),
            ];
        } else {
            error = said.detail();
            result = vec![view::words("Answer", &error)];
        }
        answer = Some(said);
    }
    let fault = |name: &str| answer.as_ref().map(|answer| answer.fault(name)).unwrap_or_default();
    let field = |name, label, hint| Field::new("text", name, label, hint).value(query.get(name)).fault(fault(name));
    let form = Form {
        heading: "Facts of a node",
        method: "get",
        action: here.to_owned(),
        fields: vec![
            field("ip", "Address", "Such as 10.1.2.3."),
            field("idc", "Data centre", "One, such as w1."),
            field("location", "Location", "A path separated by bars, such as eu|fr."),
            field("pin", "Pinned cluster", "The cluster that its config names, if it does."),
        ],
        buttons: vec![("explain", "Explain")],
        live: true,
        target: "result",
        ..Form::default()
    };
    let status = answer.map_or(StatusCode::OK, |answer| answer.status);
    let shell = Shell { error, ..me.shell("Explain", here) };
    Ok((status, view::page(shell, vec![form.html(), view::fresh("result", &result)])).into_response())
}
