//! Pages that only show: overview, blobs, audit, and where a node would belong.

use axum::extract::Path;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::ask::{Answer, encoded, text};
use super::guard::{Signed, Stop};
use super::search::{Search, short};
use super::view::{self, Cell, Field, Form, Shell};

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
    let rows = sources.map(|(label, key)| vec![Cell::new(label), Cell::new(view::size(&summary.body[key]))]);
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
            Cell::new(view::size(&blob["size"])),
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
            Cell::new(view::size(&holder["bytes"])),
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
    if !query.is_empty() {
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
