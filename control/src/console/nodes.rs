//! The live nodes, and one of them.

use axum::extract::Path;
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::ask::{Answer, encoded, text};
use super::flights;
use super::guard::{Signed, Stop};
use super::search::{Search, choice};
use super::view::{self, Cell, Field, Form, Shell};

/// The table of a page of nodes.
pub(super) fn table(page: &Answer, more: String) -> String {
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

pub(super) async fn list(me: Signed, query: Search) -> Result<Response, Stop> {
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
    let table = table(&answer, query.next(here, &answer));
    let shell = Shell { error, ..me.shell("Nodes", here) };
    Ok((answer.status, view::live(shell, vec![form.html()], vec![table], 5)).into_response())
}

pub(super) async fn show(me: Signed, Path(id): Path<String>) -> Result<Response, Stop> {
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
    facts.extend(sizes.map(|(label, key)| (label, view::size(&node[key]))));
    let more = Search::of(&[("node", &id)]).next("/console/flights", &flights);
    let live = vec![view::facts("Now", facts), flights::table(flights.items(), more)];
    let title = format!("Node {}", text(&node["name"], &id));
    Ok(view::live(me.shell(&title, "/console/nodes"), Vec::new(), live, 2).into_response())
}
