//! Which fields a part of a body knows, for whoever wrote one that it does not.

use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa::openapi::{RefOr, Schema};

/// What is said of a field that is not known.
const UNKNOWN: &str = "is not known";

/// Says beside each field of a body that is not known which are.
pub(super) fn of_body<T: ToSchema>(faults: Vec<(String, String)>) -> Vec<(String, String)> {
    if faults.iter().all(|(_, reason)| reason != UNKNOWN) {
        return faults;
    }
    let mut schemas: Vec<(String, RefOr<Schema>)> = Vec::new();
    T::schemas(&mut schemas);
    let schemas: Map<String, Value> = schemas.into_iter().map(|(name, schema)| (name, json!(schema))).collect();
    let root = json!(T::schema());
    let known = |path: &str| {
        let above = path.rsplit_once('.').map_or("", |(above, _)| above);
        let names = below(&root, &schemas, above)?["properties"].as_object()?.keys().cloned().collect::<Vec<_>>();
        Some(names)
    };
    told(faults, known)
}

/// The same of the parameters of a query.
pub(super) fn of_query(faults: Vec<(String, String)>, names: impl Fn() -> Vec<String>) -> Vec<(String, String)> {
    if faults.iter().all(|(_, reason)| reason != UNKNOWN) {
        return faults;
    }
    told(faults, |_| Some(names()))
}

fn told(faults: Vec<(String, String)>, known: impl Fn(&str) -> Option<Vec<String>>) -> Vec<(String, String)> {
    let tell = |(path, reason): (String, String)| {
        let names = if reason == UNKNOWN { known(&path).filter(|names| !names.is_empty()) } else { None };
        let reason = names.map_or(reason, |names| format!("{UNKNOWN}; known are {}", names.join(", ")));
        (path, reason)
    };
    faults.into_iter().map(tell).collect()
}

/// The schema of what is at a path such as `clusters[2].scope` of a body. `None`: the path leads through what is not described.
fn below<'a>(root: &'a Value, schemas: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    let mut here = resolved(root, schemas)?;
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let (name, indices) =
            part.split_once('[').map_or((part, 0), |(name, rest)| (name, 1 + rest.matches('[').count()));
        here = resolved(here["properties"].get(name)?, schemas)?;
        for _ in 0..indices {
            here = resolved(here.get("items")?, schemas)?;
        }
    }
    Some(here)
}

/// A schema with its reference followed; of what may also be null, the part that is not.
fn resolved<'a>(schema: &'a Value, schemas: &'a Map<String, Value>) -> Option<&'a Value> {
    let parts = ["oneOf", "anyOf", "allOf"].iter().filter_map(|key| schema[*key].as_array()).flatten();
    let mut all = std::iter::once(schema).chain(parts);
    match all.find_map(|part| part["$ref"].as_str()) {
        Some(reference) => schemas.get(reference.rsplit('/').next()?),
        None => Some(schema),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(ToSchema)]
    #[allow(dead_code, reason = "its shape is what counts")]
    struct Outer {
        name: String,
        rows: Vec<Inner>,
        one: Option<Inner>,
    }

    #[derive(ToSchema)]
    #[allow(dead_code, reason = "its shape is what counts")]
    struct Inner {
        size: u64,
        text: String,
    }

    #[test]
    fn what_is_known_is_said_where_something_is_not() {
        let faults = |paths: &[&str]| paths.iter().map(|path| ((*path).to_owned(), UNKNOWN.to_owned())).collect();
        let said = of_body::<Outer>(faults(&["nam", "rows[12].siz", "one.siz", "name.x", "nowhere.at.all"]));
        let reasons: Vec<&str> = said.iter().map(|(_, reason)| reason.as_str()).collect();
        let inner = "is not known; known are size, text";
        assert_eq!(reasons, ["is not known; known are name, one, rows", inner, inner, UNKNOWN, UNKNOWN]);
        let other = vec![("name".to_owned(), "is missing".to_owned())];
        assert_eq!(of_body::<Outer>(other.clone()), other);
        let query = of_query(faults(&["colour"]), || vec!["limit".to_owned(), "after".to_owned()]);
        assert_eq!(query[0].1, "is not known; known are limit, after");
    }
}
