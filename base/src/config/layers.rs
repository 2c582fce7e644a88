//! File, environment and flags, merged into one tree, with a note of who set what.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::Faults;
use super::schema::Shape;

#[derive(Debug)]
pub(super) struct Layers {
    /// The tree so far.
    pub(super) merged: Value,
    /// Key path to who set it, for what did not come from the file.
    sources: BTreeMap<String, String>,
    file: Option<String>,
}

impl Default for Layers {
    fn default() -> Self {
        Self { merged: Value::Object(Map::new()), sources: BTreeMap::new(), file: None }
    }
}

impl Layers {
    pub(super) fn file(&mut self, path: &Path, faults: &mut Faults) {
        let name = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => return faults.push(name, format!("can't be read: {error}")),
        };
        match text.parse::<toml::Table>() {
            Ok(table) => self.merged = json_of(toml::Value::Table(table)),
            Err(error) => {
                let place = error.span().map(|span| place_of(&text, span.start)).unwrap_or_default();
                faults.push(format!("{name}{place}"), error.message().to_owned());
            }
        }
        self.file = Some(name);
    }

    pub(super) fn environment(
        &mut self,
        shape: &Shape,
        prefix: &str,
        env: impl Iterator<Item = (String, String)>,
        faults: &mut Faults,
    ) {
        let prefix = format!("{}_", prefix.trim_end_matches('_'));
        let known = shape.variables();
        // The environment has no order; faults should have one.
        let ours: BTreeMap<String, String> = env.filter(|(name, _)| name.starts_with(&prefix)).collect();
        for (name, text) in ours {
            let rest = &name[prefix.len()..];
            match known.get(rest).map(Vec::as_slice) {
                Some([path]) => self.set(shape, path, &text, &name, faults),
                Some(_) => faults.push(name, "names more than one key; set it in the file"),
                None if rest == "CONFIG" || is_service_link(rest) => {}
                None => faults.push(name, "no key has this name"),
            }
        }
    }

    pub(super) fn flags(&mut self, shape: &Shape, sets: &[(String, String)], faults: &mut Faults) {
        for (key, text) in sets {
            match parse_path(key) {
                Some(path) => self.set(shape, &path, text, "a flag", faults),
                None => faults.push(key, "is no key path, such as mirror.listen or origin.registry.\"docker.io\".ca"),
            }
        }
    }

    fn set(&mut self, shape: &Shape, path: &[String], text: &str, source: &str, faults: &mut Faults) {
        let key = path_text(path);
        let value = match shape.convert(path, text) {
            Ok(value) => value,
            Err(problem) => return faults.push(key, format!("{problem} (set by {source})")),
        };
        let mut at = &mut self.merged;
        for step in path {
            if !at.is_object() {
                // The file has a plain value here, and the flag says that there are keys below it: the stronger wins,
                // and checking the tree tells if that was nonsense.
                *at = Value::Object(Map::new());
            }
            let Some(table) = at.as_object_mut() else { return };
            at = table.entry(step.clone()).or_insert(Value::Null);
        }
        *at = value;
        self.sources.insert(key, source.to_owned());
    }

    /// The problem, and who set the key that has it.
    pub(super) fn with_source(&self, key: &str, problem: &str) -> String {
        let source = self.sources.iter().find(|(set, _)| {
            key == set.as_str() || key.strip_prefix(set.as_str()).is_some_and(|rest| rest.starts_with(['.', '[']))
        });
        match (source, &self.file) {
            (Some((_, source)), _) => format!("{problem} (set by {source})"),
            (None, Some(file)) => format!("{problem} (in {file})"),
            (None, None) => problem.to_owned(),
        }
    }
}

/// Kubernetes tells every pod of a namespace about its services by variables: a service called `shoal-node` or
/// `shoal-node-peers` gives names that start as ours do. Source: Kubernetes, "Accessing the Service", environment
/// variables; the older half of them has the form of Docker links.
fn is_service_link(rest: &str) -> bool {
    let rest = format!("_{rest}");
    if rest.ends_with("_SERVICE_HOST") || rest.ends_with("_SERVICE_PORT") || rest.ends_with("_PORT") {
        return true;
    }
    if rest.contains("_SERVICE_PORT_") {
        return true;
    }
    let Some((_, link)) = rest.rsplit_once("_PORT_").or_else(|| {
        // The name ends in _PORT itself: X_PORT_5081_TCP_PORT.
        rest.strip_suffix("_PORT").and_then(|shorter| shorter.rsplit_once("_PORT_"))
    }) else {
        return false;
    };
    let mut parts = link.split('_');
    parts.next().is_some_and(|port| port.parse::<u16>().is_ok())
        && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
        && matches!(parts.next(), None | Some("ADDR" | "PORT" | "PROTO"))
        && parts.next().is_none()
}

/// A key path as TOML writes it.
pub(super) fn path_text(path: &[String]) -> String {
    let bare = |key: &str| !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let steps: Vec<String> = path.iter().map(|key| if bare(key) { key.clone() } else { format!("{key:?}") }).collect();
    steps.join(".")
}

/// Reads `a.b."c.d"`.
fn parse_path(text: &str) -> Option<Vec<String>> {
    // TOML's own parser knows keys; a table with one leaf gives the path back.
    if text.contains(['\n', '=', '[', '#']) {
        return None;
    }
    let mut at = toml::Value::Table(format!("{text} = 0").parse::<toml::Table>().ok()?);
    let mut path = Vec::new();
    while let toml::Value::Table(table) = at {
        let (key, below) = table.into_iter().next()?;
        path.push(key);
        at = below;
    }
    Some(path)
}

/// Visits what is neither a table nor empty; a list counts as one leaf.
pub(super) fn for_each_leaf(value: &Value, path: &mut Vec<String>, visit: &mut impl FnMut(&[String], &Value)) {
    match value {
        Value::Object(table) => {
            for (key, below) in table {
                path.push(key.clone());
                for_each_leaf(below, path, visit);
                path.pop();
            }
        }
        leaf => visit(path, leaf),
    }
}

fn json_of(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Float(number) => Value::from(number),
        toml::Value::Boolean(truth) => Value::Bool(truth),
        toml::Value::Datetime(time) => Value::String(time.to_string()),
        toml::Value::Array(items) => Value::Array(items.into_iter().map(json_of).collect()),
        toml::Value::Table(table) => {
            Value::Object(table.into_iter().map(|(key, value)| (key, json_of(value))).collect())
        }
    }
}

/// `:line:column`, counted from 1.
fn place_of(text: &str, offset: usize) -> String {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!(":{line}:{column}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_kubernetes_sets_for_a_service() {
        for rest in [
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_GRPC",
            "PORT",
            "PORT_6080_TCP",
            "PORT_6080_TCP_PROTO",
            "PORT_6080_TCP_PORT",
            "PORT_6080_TCP_ADDR",
            "PEERS_SERVICE_HOST",
            "PEERS_PORT_5081_UDP_PORT",
        ] {
            assert!(is_service_link(rest), "{rest}");
        }
        for rest in ["MIRROR_LISTEN", "PORT_X_TCP", "PORT_6080_TCP_WHAT", "MIRROR_PORTS"] {
            assert!(!is_service_link(rest), "{rest}");
        }
    }

    #[test]
    fn a_key_path_is_read_and_printed_the_same_way() {
        for text in ["mirror.listen", "origin.registry.\"docker.io\".ca", "a"] {
            assert_eq!(path_text(&parse_path(text).unwrap()), text);
        }
        for text in ["", ".", "a.", "a b", "a = 1\nb", "[a]", "a#"] {
            assert_eq!(parse_path(text), None, "{text:?}");
        }
    }
}
