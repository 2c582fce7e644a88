//! The reference page of a configuration: generated, so that it can't lag behind.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::layers::path_text;
use super::schema::{Shape, has_type, is_free_map, is_list_of_tables, properties};

/// A Markdown page with every key, its type, its default and its words, in alphabetical order. The same type gives the
/// same page.
#[must_use]
pub fn reference<T: Default + Serialize + JsonSchema>(title: &str) -> String {
    let shape = Shape::of::<T>();
    let defaults = serde_json::to_value(T::default()).unwrap_or(Value::Null);
    let mut page = format!("# {title}\n");
    if let Some(words) = shape.root.get("description").and_then(Value::as_str) {
        let _ = write!(page, "\n{words}\n");
    }
    section(&mut page, &shape.root, Some(&defaults), &mut Vec::new());
    page
}

/// One table of keys, then the tables below it.
fn section(page: &mut String, part: &Value, defaults: Option<&Value>, path: &mut Vec<String>) {
    let Some(known) = properties(part) else { return };
    if !path.is_empty() {
        let _ = write!(page, "\n## `{}`\n", heading(path));
        if let Some(words) = part.get("description").and_then(Value::as_str) {
            let _ = write!(page, "\n{words}\n");
        }
    }
    let default_of = |key: &str, below: &Value| {
        defaults.and_then(|table| table.get(key)).or_else(|| below.get("default")).cloned().unwrap_or(Value::Null)
    };
    let plain: Vec<_> = known.iter().filter(|(_, below)| below_of(below).is_none()).collect();
    if !plain.is_empty() {
        page.push_str("\n| Key | Type | Default | Meaning |\n|---|---|---|---|\n");
        for (key, below) in plain {
            let words = below.get("description").and_then(Value::as_str).unwrap_or_default();
            let _ = writeln!(
                page,
                "| `{}` | {} | {} | {} |",
                path_text(std::slice::from_ref(key)),
                kind(below),
                default_text(&default_of(key, below)),
                cell(words)
            );
        }
    }
    for (key, below) in known {
        let Some((inner, free)) = below_of(below) else { continue };
        path.push(key.clone());
        match free {
            None => section(page, inner, Some(&default_of(key, below)), path),
            Some(placeholder) => {
                path.push(placeholder.to_owned());
                // The map's own words stand where the map does; its entries have no defaults but the type's.
                let mut entry = inner.clone();
                if let (Some(words), Some(entry)) = (below.get("description"), entry.as_object_mut()) {
                    entry.insert("description".to_owned(), words.clone());
                }
                section(page, &entry, None, path);
                path.pop();
            }
        }
        path.pop();
    }
}

/// The table below a key: a plain one, or the entries of a free map or of a list of tables.
fn below_of(part: &Value) -> Option<(&Value, Option<&'static str>)> {
    if properties(part).is_some() {
        return Some((part, None));
    }
    if is_free_map(part) {
        let entry = part.get("additionalProperties")?;
        return properties(entry).map(|_| (entry, Some("<name>")));
    }
    if is_list_of_tables(part) {
        let entry = part.get("items")?;
        return properties(entry).map(|_| (entry, Some("[]")));
    }
    None
}

fn heading(path: &[String]) -> String {
    let steps: Vec<String> = path
        .iter()
        .map(|step| if step.starts_with(['<', '[']) { step.clone() } else { path_text(std::slice::from_ref(step)) })
        .collect();
    steps.join(".").replace(".[]", "[]")
}

fn kind(part: &Value) -> String {
    if let Some(name) = part.get("x-type").and_then(Value::as_str) {
        return name.to_owned();
    }
    if let Some(options) = part.get("enum").and_then(Value::as_array) {
        let options: Vec<String> = options.iter().map(|option| format!("`{option}`")).collect();
        return options.join(" or ");
    }
    if has_type(part, "array") {
        return match part.get("items") {
            Some(items) => format!("list of {}", kind(items)),
            None => "list".to_owned(),
        };
    }
    if has_type(part, "object") {
        return match part.get("additionalProperties") {
            Some(entry) if entry.is_object() => format!("table of {}", kind(entry)),
            _ => "table".to_owned(),
        };
    }
    match part.get("type") {
        Some(Value::String(name)) if name == "boolean" => "true or false".to_owned(),
        Some(Value::String(name)) if name == "integer" => "whole number".to_owned(),
        Some(Value::String(name)) if name == "string" => "text".to_owned(),
        Some(Value::String(name)) => name.clone(),
        _ => "any".to_owned(),
    }
}

fn default_text(value: &Value) -> String {
    match value {
        Value::Null => "not set".to_owned(),
        Value::Array(items) if items.is_empty() => "empty".to_owned(),
        Value::Object(table) if table.is_empty() => "empty".to_owned(),
        value => format!("`{}`", cell(&value.to_string())),
    }
}

/// Text that fits a cell: one line, no bars.
fn cell(text: &str) -> String {
    text.split("\n\n")
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join("<br>")
        .replace('|', "\\|")
}
