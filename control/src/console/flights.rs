//! Live flights, as a picture of who feeds whom and as a table.

use std::collections::BTreeMap;

use askama::Template;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::ask::text;
use super::guard::{Signed, Stop};
use super::search::{Search, short};
use super::view::{self, Cell};

const HERE: &str = "/console/flights";
/// Places in the picture. More are no picture any more; the table has them all.
const MOST_PLACES: usize = 60;
const LABEL: usize = 22;
/// Width of a place, and how far apart columns and rows begin. Right of the last column there is room for bows.
const WIDTH: usize = 180;
const COLUMN: usize = 300;
const ROW: usize = 44;

struct Place {
    label: String,
    x: usize,
    y: usize,
}

struct Edge {
    /// As SVG writes it.
    path: String,
    title: String,
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

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// What fits into a place.
fn label(name: &str) -> String {
    if name.chars().count() > LABEL { name.chars().take(LABEL - 1).chain(['…']).collect() } else { name.to_owned() }
}

/// The way from one place to another. Between nodes that both fetch it is a bow on their right, the wider the more rows are
/// between them, so that none lies on another: it leaves a node above its middle and comes to one below it.
fn way((x1, y1): (usize, usize), (x2, y2): (usize, usize)) -> String {
    let from = x1 + WIDTH;
    if x1 != x2 {
        return format!("M{from} {} L{x2} {}", y1 + 14, y2 + 14);
    }
    let rows = y1.abs_diff(y2) / ROW;
    // Never as much as 140; a bow is three quarters of that wide, and the picture ends 110 right of the places.
    let bend = from + 24 + 116 * rows / (rows + 6);
    let (y1, y2) = (y1 + 9, y2 + 19);
    format!("M{from} {y1} C{bend} {y1} {bend} {y2} {from} {y2}")
}

fn picture(flights: &[Value]) -> Picture {
    let mut places: BTreeMap<String, (String, usize)> = BTreeMap::new();
    // Bytes that came that way.
    let mut ways: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut note = "";
    let named = |value: &Value| text(&value["name"], &text(&value["node"], ""));
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
            *ways.entry((id, node.clone())).or_default() += number(&parent["bytes"]);
        }
        let from_origin = number(&flight["origin_bytes"]);
        if flight["reads_origin"] == true || from_origin > 0 {
            places.insert(String::new(), ("origin".to_owned(), column(true, false)));
            *ways.entry((String::new(), node)).or_default() += from_origin;
        }
    }
    let mut heights = [0; 3];
    let mut at = BTreeMap::new();
    let mut nodes = Vec::new();
    for (id, (name, column)) in places {
        let (x, y) = (10 + column * COLUMN, 10 + heights[column] * ROW);
        heights[column] += 1;
        nodes.push(Place { label: label(&name), x, y });
        at.insert(id, ((x, y), name));
    }
    let edge = |((from, to), came): ((String, String), u64)| {
        let ((start, feeder), (end, fed)) = (at.get(&from)?, at.get(&to)?);
        let title = match came {
            0 => format!("{feeder} may feed {fed}"),
            came => format!("{feeder} feeds {fed}: {}", view::bytes(came)),
        };
        Some(Edge { path: way(*start, *end), title, dashed: came == 0 })
    };
    let edges = ways.into_iter().filter_map(edge).collect();
    Picture { height: 20 + heights.iter().max().unwrap_or(&0) * ROW, nodes, edges, note }
}

/// The table of some flights.
pub(super) fn table(flights: &[Value], more: String) -> String {
    let row = |flight: &Value| {
        let given = |name: String, came: u64| if came > 0 { format!("{name} ({})", view::bytes(came)) } else { name };
        let parents = flight["parents"].as_array().into_iter().flatten();
        let parent =
            |parent: &Value| given(text(&parent["name"], &text(&parent["node"], "")), number(&parent["bytes"]));
        let mut from: Vec<String> = parents.map(parent).collect();
        let from_origin = number(&flight["origin_bytes"]);
        if flight["reads_origin"] == true || from_origin > 0 {
            from.push(given("the origin".to_owned(), from_origin));
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ways_between_fetching_nodes_lie_apart_and_say_who_feeds_whom() {
        let parent = |name: &str, bytes: u64| json!({"node": name, "name": name, "complete": true, "bytes": bytes});
        let flights = [
            json!({"node": "a", "name": "a", "parents": [parent("b", 0), parent("c", 2)], "reads_origin": true}),
            json!({"node": "b", "name": "b", "parents": [parent("a", 1024), parent("whole", 1)], "origin_bytes": 5}),
            json!({"node": "b", "name": "b", "parents": [parent("a", 1024)]}),
            json!({"node": "c", "name": "c", "parents": [parent("a", 0), parent("b", 7)]}),
        ];
        let picture = picture(&flights);
        let mut titles: Vec<&str> = picture.edges.iter().map(|edge| edge.title.as_str()).collect();
        titles.sort_unstable();
        let ways = [
            "a feeds b: 2048 B",
            "a may feed c",
            "b feeds c: 7 B",
            "b may feed a",
            "c feeds a: 2 B",
            "origin feeds b: 5 B",
            "origin may feed a",
            "whole feeds b: 1 B",
        ];
        assert_eq!(titles, ways);
        assert!(picture.edges.iter().all(|edge| edge.dashed == edge.title.contains("may")));
        let mut paths: Vec<&str> = picture.edges.iter().map(|edge| edge.path.as_str()).collect();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), ways.len(), "{paths:?}");
        let page = picture.render().unwrap();
        assert!(page.contains("<title>b feeds c: 7 B</title>"), "{page}");
    }

    #[test]
    fn a_bow_grows_with_the_rows_between_its_ends_and_stays_in_the_picture() {
        let x = 10 + 2 * COLUMN;
        let bend = |rows: usize| -> usize {
            let path = way((x, 10), (x, 10 + rows * ROW));
            path.split_once('C').unwrap().1.split(' ').next().unwrap().parse().unwrap()
        };
        assert!(bend(1) < bend(2) && bend(2) < bend(3) && bend(3) < bend(10));
        assert!(x + WIDTH + (bend(MOST_PLACES) - x - WIDTH) * 3 / 4 <= 900);
    }
}
