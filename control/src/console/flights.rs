//! Live flights, as a picture of who feeds whom and as a table.

use std::collections::BTreeMap;

use askama::Template;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::ask::text;
use super::guard::{Signed, Stop};
use super::pages::{Search, short};
use super::view::{self, Cell};

const HERE: &str = "/console/flights";
/// Places in the picture. More are no picture any more; the table has them all.
const MOST_PLACES: usize = 60;
const LABEL: usize = 22;

struct Place {
    label: String,
    x: usize,
    y: usize,
}

struct Edge {
    x1: usize,
    y1: usize,
    x2: usize,
    y2: usize,
    dashed: bool,
}

#[derive(Template)]
#[template(path = "flights.html")]
struct Picture {
    height: usize,
    nodes: Vec<Place>,
    edges: Vec<Edge>,
    note: &'static str,
}

/// Who is how far from the origin: origin, those who feed and do not fetch, those who fetch.
fn column(origin: bool, fetches: bool) -> usize {
    match (origin, fetches) {
        (true, _) => 0,
        (false, false) => 1,
        (false, true) => 2,
    }
}

fn picture(flights: &[Value]) -> Picture {
    let mut places: BTreeMap<String, (String, usize)> = BTreeMap::new();
    let mut ways: BTreeMap<(String, String), bool> = BTreeMap::new();
    let mut note = "";
    let named = |value: &Value| {
        let label = text(&value["name"], &text(&value["node"], ""));
        if label.chars().count() > LABEL { label.chars().take(LABEL - 1).chain(['…']).collect() } else { label }
    };
    for flight in flights {
        let node = text(&flight["node"], "");
        if places.len() >= MOST_PLACES && !places.contains_key(&node) {
            note = "There are more than fit; the table has them all.";
            continue;
        }
        places.insert(node.clone(), (named(flight), column(false, true)));
        for parent in flight["parents"].as_array().into_iter().flatten() {
            let id = text(&parent["node"], "");
            if places.len() >= MOST_PLACES && !places.contains_key(&id) {
                note = "There are more than fit; the table has them all.";
                continue;
            }
            places.entry(id.clone()).or_insert_with(|| (named(parent), column(false, false)));
            ways.insert((id, node.clone()), parent["complete"] != true);
        }
        if flight["reads_origin"] == true {
            places.insert(String::new(), ("origin".to_owned(), column(true, false)));
            ways.insert((String::new(), node), false);
        }
    }
    let mut heights = [0; 3];
    let mut at = BTreeMap::new();
    let mut nodes = Vec::new();
    for (id, (label, column)) in places {
        let (x, y) = (10 + column * 350, 10 + heights[column] * 44);
        heights[column] += 1;
        at.insert(id, (x, y));
        nodes.push(Place { label, x, y });
    }
    let edge = |((from, to), dashed): ((String, String), bool)| {
        let ((x1, y1), (x2, y2)) = (*at.get(&from)?, *at.get(&to)?);
        // Between nodes that both fetch it runs on their right.
        let x2 = if x1 == x2 { x2 + 180 } else { x2 };
        Some(Edge { x1: x1 + 180, y1: y1 + 14, x2, y2: y2 + 14, dashed })
    };
    let edges = ways.into_iter().filter_map(edge).collect();
    Picture { height: 20 + heights.iter().max().unwrap_or(&0) * 44, nodes, edges, note }
}

/// The table of some flights.
pub(super) fn table(flights: &[Value], more: String) -> String {
    let row = |flight: &Value| {
        let parents = flight["parents"].as_array().into_iter().flatten();
        let mut from: Vec<String> = parents.map(|parent| text(&parent["name"], &text(&parent["node"], ""))).collect();
        if flight["reads_origin"] == true {
            from.push("the origin".to_owned());
        }
        let from = if from.is_empty() { text(&flight["waiting"], "nobody") } else { from.join(", ") };
        let node = text(&flight["node"], "");
        let digest = text(&flight["digest"], "");
        let size = flight["size"].as_u64().unwrap_or(0);
        vec![
            Cell::link(text(&flight["name"], &node), format!("/console/nodes/{node}")),
            Cell::of(&flight["cluster"]),
            Cell::link(short(&digest), format!("/console/blobs/{digest}")),
            Cell::of(&flight["repository"]),
            Cell::progress(flight["bytes"].as_u64().unwrap_or(0), size),
            Cell::new(from),
        ]
    };
    let columns = ["Node", "Cluster", "Blob", "Repository", "Progress", "From"];
    view::table("Live flights", &columns, flights.iter().map(row).collect(), more)
}

pub(super) async fn show(me: Signed, query: Search) -> Result<Response, Stop> {
    let answer = me.get(&query.on("/api/v1/flights")).await?;
    let picture = picture(answer.items()).render().unwrap_or_default();
    let live = vec![picture, table(answer.items(), query.next(HERE, &answer))];
    Ok(view::live(me.shell("Flights", HERE), Vec::new(), live, 2).into_response())
}
