//! The tables, and judging a crate by its table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::{files, has_extension, lexer, paths};

/// Who may import whom in one crate. Beside that everybody may import `config`, and `app` and `config` everybody else:
/// the one puts the rooms together, the other fills what they declare. Circles are refused in any case.
#[derive(Clone, Copy)]
pub(crate) struct House {
    /// The crate's name in paths of its binaries.
    pub(crate) name: &'static str,
    pub(crate) rooms: &'static [(&'static str, &'static [&'static str])],
    /// File of a binary, below `src`, and what it may import.
    pub(crate) binaries: &'static [(&'static str, &'static [&'static str])],
}

pub(crate) const NODE_PROXY: House = House {
    name: "node_proxy",
    rooms: &[
        ("mirror", &["blob", "origin"]),
        ("containerd", &["blob", "store"]),
        ("peer", &["blob"]),
        ("blob", &["store", "origin", "swarm"]),
        ("control", &["swarm"]),
        ("store", &[]),
        ("origin", &[]),
        ("swarm", &[]),
        ("admin", &[]),
        ("install", &[]),
    ],
    binaries: &[("main.rs", &["app"])],
};

pub(crate) const CONTROL: House = House {
    name: "control",
    rooms: &[
        ("api", &["clusters", "nodes", "swarm", "preheat", "identity"]),
        ("console", &["clusters", "nodes", "swarm", "preheat", "identity"]),
        ("preheat", &["swarm", "nodes", "store"]),
        ("swarm", &["nodes"]),
        ("nodes", &["clusters"]),
        ("clusters", &["scope", "store"]),
        ("identity", &["store"]),
        ("scope", &[]),
        ("store", &[]),
        ("ctl", &[]),
    ],
    binaries: &[("main.rs", &["app"]), ("bin/shoalctl.rs", &["ctl"])],
};

/// What was seen, so that a test can tell "nothing wrong" from "nothing read".
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) faults: Vec<String>,
    pub(crate) files: usize,
}

pub(crate) fn check(src: &Path, house: &House) -> Seen {
    let mut seen = Seen::default();
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut unknown = BTreeSet::new();
    for path in files(src).into_iter().filter(|path| has_extension(path, &["rs"])) {
        let inside = path.strip_prefix(src).expect("it was found there").with_extension("");
        seen.files += 1;
        let mut module: Vec<String> = inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        let tokens = lexer::tokens(&fs::read_to_string(&path).expect("source is readable text"));
        let file = path.strip_prefix(src).unwrap_or(&path).to_string_lossy().into_owned();
        let shown = path.display();
        if file == "lib.rs" {
            let uses = tokens.iter().filter(|token| token.text == "use");
            seen.faults
                .extend(uses.map(|token| format!("{shown}:{}: the crate's root only declares rooms", token.line)));
            continue;
        }
        let room = module[0].clone();
        let binary = house.binaries.iter().find(|(name, _)| *name == file);
        let allowed = match (binary, house.rooms.iter().find(|(name, _)| *name == room)) {
            (Some((_, allowed)), _) | (None, Some((_, allowed))) => Some(*allowed),
            (None, None) if room == "app" || room == "config" => None,
            (None, None) => {
                if unknown.insert(room.clone()) {
                    seen.faults.push(format!("{shown}:1: room `{room}` is not in the table"));
                }
                continue;
            }
        };
        let below = module.iter().skip(1).any(|part| part == "tests").then(|| rests_on(house, &room));
        let importer = if binary.is_some() { module.last().cloned().unwrap_or_default() } else { room };
        for named in paths::named(&tokens, &module, binary.map(|_| house.name)) {
            let Some(item) = named.item else {
                seen.faults.push(format!("{shown}:{}: `{importer}` takes the whole crate; name the room", named.line));
                continue;
            };
            if item == importer && binary.is_none() {
                continue;
            }
            if below.as_ref().is_some_and(|below| below.contains(item.as_str())) {
                continue;
            }
            let free = binary.is_none() && (item == "config" || (allowed.is_none() && item != "app"));
            if !free && !allowed.is_some_and(|allowed| allowed.contains(&item.as_str())) {
                let may =
                    allowed.filter(|allowed| !allowed.is_empty()).map_or("nothing".to_owned(), |all| all.join(", "));
                let line = named.line;
                seen.faults.push(format!("{shown}:{line}: `{importer}` must not import `{item}`; it may import {may}"));
            } else if binary.is_none() {
                graph.entry(importer.clone()).or_default().insert(item);
            }
        }
        if binary.is_none() {
            graph.entry(importer).or_default();
        }
    }
    seen.faults
        .extend(circle(&graph).map(|rooms| format!("rooms import each other in a circle: {}", rooms.join(" -> "))));
    seen
}

/// What a room rests on, through however many others. Files of tests (`tests.rs`, `tests/`) may import it, since they
/// start the rooms that theirs imports for real. It cannot make a circle.
fn rests_on(house: &House, room: &str) -> BTreeSet<&'static str> {
    let mut found = BTreeSet::new();
    let mut rooms = vec![room];
    while let Some(room) = rooms.pop() {
        let Some((_, imported)) = house.rooms.iter().find(|(name, _)| *name == room) else { continue };
        for &below in *imported {
            if found.insert(below) {
                rooms.push(below);
            }
        }
    }
    found
}

/// A circle in the graph, its first room again at the end.
fn circle(graph: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn visit(
        graph: &BTreeMap<String, BTreeSet<String>>,
        room: &str,
        trail: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        if let Some(at) = trail.iter().position(|earlier| earlier == room) {
            return Some(trail[at..].iter().cloned().chain([room.to_owned()]).collect());
        }
        if !done.insert(room.to_owned()) {
            return None;
        }
        trail.push(room.to_owned());
        for next in graph.get(room).into_iter().flatten() {
            if let Some(found) = visit(graph, next, trail, done) {
                return Some(found);
            }
        }
        trail.pop();
        None
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|room| visit(graph, room, &mut Vec::new(), &mut done))
}
