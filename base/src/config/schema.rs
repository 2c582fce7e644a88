//! The shape of a configuration type: its JSON schema, brought into a form that is easy to walk and that is strict.

use std::collections::BTreeMap;

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::paths::LocationSegment;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::faults::Fault;
use super::layers::path_text;

/// How deep types may nest; configuration types are trees, so this is never met by one that works.
const DEPTH: usize = 32;

pub(super) struct Shape {
    pub(super) root: Value,
    validator: Result<jsonschema::Validator, String>,
}

impl Shape {
    pub(super) fn of<T: JsonSchema>() -> Self {
        let settings = SchemaSettings::draft2020_12().for_deserialize().with(|settings| {
            settings.inline_subschemas = true;
            settings.meta_schema = None;
        });
        let mut root = settings.into_generator().into_root_schema_for::<T>().to_value();
        simplify(&mut root, DEPTH);
        let validator = jsonschema::validator_for(&root).map_err(|error| error.to_string());
        Self { root, validator }
    }

    /// Everything that is wrong with a tree's structure.
    pub(super) fn check(&self, tree: &Value) -> Vec<Fault> {
        let validator = match &self.validator {
            Ok(validator) => validator,
            Err(error) => return vec![Fault { key: String::new(), problem: format!("the schema is wrong: {error}") }],
        };
        let mut faults = Vec::new();
        for error in validator.iter_errors(tree) {
            let path: Vec<String> = error.instance_path().segments().fold(Vec::new(), |mut path, segment| {
                match segment {
                    LocationSegment::Property(key) => path.push(key.to_string()),
                    LocationSegment::Index(index) => match path.last_mut() {
                        // Printed as part of the key before it; `at` below undoes it.
                        Some(last) => *last = format!("{last}[{index}]"),
                        None => path.push(format!("[{index}]")),
                    },
                }
                path
            });
            let key = keyed(&path);
            if let ValidationErrorKind::AdditionalProperties { unexpected } = error.kind() {
                for name in unexpected {
                    let mut path = path.clone();
                    path.push(name.clone());
                    faults.push(Fault { key: keyed(&path), problem: self.unknown(&error, name) });
                }
                continue;
            }
            let part = self.part_of(error.schema_path().as_str());
            faults.push(Fault { key, problem: problem(error.kind(), error.instance(), part, &error) });
        }
        faults
    }

    fn part_of(&self, schema_path: &str) -> Option<&Value> {
        let (parent, _) = schema_path.rsplit_once('/')?;
        self.root.pointer(parent)
    }

    fn unknown(&self, error: &jsonschema::ValidationError<'_>, name: &str) -> String {
        let known = self.part_of(error.schema_path().as_str()).and_then(properties);
        let near = known.into_iter().flatten().map(|(key, _)| key).min_by_key(|key| distance(key, name));
        match near.filter(|key| distance(key, name) <= 1 + name.len() / 4) {
            Some(near) => format!("no such key; is `{near}` meant?"),
            None => "no such key".to_owned(),
        }
    }

    /// Names of environment variables, without prefix, and the paths that they set.
    pub(super) fn variables(&self) -> BTreeMap<String, Vec<Vec<String>>> {
        let mut found: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
        walk(&self.root, &mut Vec::new(), &mut |path, leaf| {
            if !is_free_map(leaf) && !is_list_of_tables(leaf) {
                found.entry(variable(path)).or_default().push(path.to_vec());
            }
        });
        found
    }

    /// Text of a variable or flag as the value that its key wants. What can't be converted stays text, and the check
    /// says what is wrong with it.
    pub(super) fn convert(&self, path: &[String], text: &str) -> Result<Value, String> {
        let mut part = &self.root;
        for key in path {
            part = match properties(part).and_then(|known| known.get(key)) {
                Some(below) => below,
                None => match part.get("additionalProperties") {
                    Some(below) if below.is_object() => below,
                    // Unknown: the check reports it with its place.
                    _ => return Ok(Value::String(text.to_owned())),
                },
            };
        }
        if properties(part).is_some() || is_free_map(part) || is_list_of_tables(part) {
            return Err("is a table; set the keys in it".to_owned());
        }
        Ok(converted(part, text))
    }
}

fn keyed(path: &[String]) -> String {
    // A bracket here is an index, not part of a key that wants quotes.
    let plain: Vec<String> = path.iter().map(|key| key.split('[').next().unwrap_or(key).to_owned()).collect();
    let quoted: Vec<String> = plain
        .iter()
        .zip(path)
        .map(|(plain, full)| {
            let index = &full[plain.len()..];
            let is_index = index.starts_with('[')
                && index.ends_with(']')
                && index.chars().all(|c| c.is_ascii_digit() || c == '[' || c == ']');
            if is_index {
                format!(
                    "{}{index}",
                    if plain.is_empty() { String::new() } else { path_text(std::slice::from_ref(plain)) }
                )
            } else {
                path_text(std::slice::from_ref(full))
            }
        })
        .collect();
    quoted.join(".")
}

/// `mirror.first_byte_budget` is `MIRROR_FIRST_BYTE_BUDGET`.
pub(super) fn variable(path: &[String]) -> String {
    path.join("_").replace('-', "_").to_uppercase()
}

pub(super) fn properties(part: &Value) -> Option<&Map<String, Value>> {
    part.get("properties").and_then(Value::as_object)
}

pub(super) fn is_free_map(part: &Value) -> bool {
    properties(part).is_none() && has_type(part, "object")
}

pub(super) fn is_list_of_tables(part: &Value) -> bool {
    part.get("items").is_some_and(|items| has_type(items, "object"))
}

pub(super) fn has_type(part: &Value, name: &str) -> bool {
    match part.get("type") {
        Some(Value::String(one)) => one == name,
        Some(Value::Array(several)) => several.iter().any(|one| one == name),
        _ => false,
    }
}

/// Visits every key that is not a table of known keys.
pub(super) fn walk(part: &Value, path: &mut Vec<String>, visit: &mut impl FnMut(&[String], &Value)) {
    match properties(part) {
        Some(known) => {
            for (key, below) in known {
                path.push(key.clone());
                walk(below, path, visit);
                path.pop();
            }
        }
        None => visit(path, part),
    }
}

fn converted(part: &Value, text: &str) -> Value {
    let trimmed = text.trim();
    if has_type(part, "string") || part.get("enum").is_some() {
        return Value::String(text.to_owned());
    }
    if has_type(part, "boolean")
        && let Ok(truth) = trimmed.parse::<bool>()
    {
        return Value::Bool(truth);
    }
    if has_type(part, "integer") || has_type(part, "number") {
        if let Ok(number) = trimmed.parse::<u64>() {
            return Value::from(number);
        }
        if let Ok(number) = trimmed.parse::<i64>() {
            return Value::from(number);
        }
        if let Ok(number) = trimmed.parse::<f64>()
            && has_type(part, "number")
        {
            return Value::from(number);
        }
    }
    if has_type(part, "array") {
        let none = Value::Null;
        let items = part.get("items").unwrap_or(&none);
        let parts = trimmed.split(',').map(str::trim).filter(|part| !part.is_empty());
        return Value::Array(parts.map(|part| converted(items, part)).collect());
    }
    Value::String(text.to_owned())
}

/// TOML has no null, so what is optional is simply left out; a choice between named values is an `enum`; and a table
/// with known keys takes no others.
fn simplify(part: &mut Value, depth: usize) {
    if depth == 0 {
        return;
    }
    match part {
        Value::Array(parts) => parts.iter_mut().for_each(|part| simplify(part, depth - 1)),
        Value::Object(map) => {
            flatten_optional(map);
            flatten_choice(map);
            if map.contains_key("properties") {
                map.entry("additionalProperties").or_insert(Value::Bool(false));
            }
            for (key, below) in map.iter_mut() {
                // A default is a value, not a schema.
                if key != "default" && key != "enum" && key != "const" {
                    simplify(below, depth - 1);
                }
            }
        }
        _ => {}
    }
}

fn flatten_optional(map: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = map.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            map.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(values)) = map.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    if let Some(Value::Array(parts)) = map.get_mut("anyOf") {
        parts.retain(|part| part.get("type").is_none_or(|name| name != "null"));
        if let [Value::Object(only)] = parts.as_slice() {
            let only = only.clone();
            map.remove("anyOf");
            for (key, value) in only {
                // The field's own words are nearer than its type's.
                map.entry(key).or_insert(value);
            }
        }
    }
}

fn flatten_choice(map: &mut Map<String, Value>) {
    let Some(Value::Array(parts)) = map.get("oneOf") else { return };
    let values: Option<Vec<Value>> = parts
        .iter()
        .map(|part| match (part.get("const"), part.get("enum")) {
            (Some(value), _) => Some(vec![value.clone()]),
            (None, Some(Value::Array(values))) => Some(values.clone()),
            _ => None,
        })
        .collect::<Option<Vec<Vec<Value>>>>()
        .map(|lists| lists.concat());
    if let Some(values) = values {
        map.remove("oneOf");
        map.insert("enum".to_owned(), Value::Array(values));
        map.entry("type").or_insert_with(|| Value::String("string".to_owned()));
    }
}

fn problem(
    kind: &ValidationErrorKind,
    found: &Value,
    part: Option<&Value>,
    error: &jsonschema::ValidationError<'_>,
) -> String {
    let expected = part.and_then(|part| part.get("x-expected")).and_then(Value::as_str);
    if let Some(expected) = expected {
        return format!("{found} is not {expected}");
    }
    match kind {
        // The value is left out: text in a wrong place may be a credential.
        ValidationErrorKind::Type { kind } => {
            let wanted = match kind {
                TypeKind::Single(one) => one.to_string(),
                TypeKind::Multiple(several) => {
                    several.iter().map(|one| one.to_string()).collect::<Vec<_>>().join(" or ")
                }
            };
            format!("wants {}, not {}", in_words(&wanted), in_words(name_of(found)))
        }
        ValidationErrorKind::Enum { options } => {
            let options: Vec<String> = options.as_array().into_iter().flatten().map(Value::to_string).collect();
            format!("{found} is none of {}", options.join(", "))
        }
        ValidationErrorKind::Minimum { limit } => format!("{found} is below {limit}"),
        ValidationErrorKind::Maximum { limit } => format!("{found} is above {limit}"),
        ValidationErrorKind::Required { property } => format!("the key {property} is missing"),
        _ => error.masked().to_string(),
    }
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// JSON's names of types as TOML's readers know them.
fn in_words(name: &str) -> String {
    name.replace("array", "a list")
        .replace("object", "a table")
        .replace("boolean", "true or false")
        .replace("integer", "a whole number")
        .replace("number", "a number")
        .replace("whole a number", "whole number")
        .replace("string", "text")
}

/// Levenshtein's distance, to guess what was meant.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
