//! What is wrong with a value, in words for people rather than for those who know JSON Schema.

use jsonschema::error::{TypeKind, ValidationError, ValidationErrorKind as Kind};
use serde_json::Value;

/// Characters of a value that is repeated.
const MOST_QUOTED: usize = 60;
/// Names that are listed.
const MOST_NAMES: usize = 30;

/// The reason. `quoted`: what was sent may be repeated.
pub(super) fn reason(error: &ValidationError<'_>, quoted: bool) -> String {
    let sent = if quoted { is(error.instance()) } else { kind(error.instance()) };
    match error.kind() {
        Kind::Type { kind: TypeKind::Single(wanted) } => {
            format!("is {sent}, and must be {}", typed(&wanted.to_string()))
        }
        Kind::Type { kind: TypeKind::Multiple(wanted) } => {
            let wanted: Vec<&str> = wanted.iter().map(|one| typed(one.as_str())).collect();
            format!("is {sent}, and must be {}", wanted.join(" or "))
        }
        Kind::Enum { options } => {
            let options: Vec<String> = options.as_array().into_iter().flatten().map(plain).collect();
            format!("is {sent}, and must be one of {}", options.join(", "))
        }
        Kind::Minimum { limit } => format!("is {sent}, and must be at least {limit}"),
        Kind::Maximum { limit } => format!("is {sent}, and must be at most {limit}"),
        Kind::MinLength { limit: 1 } | Kind::MinItems { limit: 1 } => "is empty".to_owned(),
        Kind::MinLength { limit } => format!("has fewer than {limit} characters"),
        Kind::MaxLength { limit } => format!("is longer than {limit} characters"),
        Kind::MinItems { limit } => format!("has fewer than {limit} items"),
        Kind::MaxItems { limit } => format!("has more than {limit} items"),
        _ if quoted => error.to_string(),
        _ => error.masked().to_string(),
    }
}

/// Of a field that there is none of.
pub(super) fn not_known(known: &[&str]) -> String {
    match known {
        [] => "is not known".to_owned(),
        many if many.len() > MOST_NAMES => "is not known".to_owned(),
        known => format!("is not known; there are {}", known.join(", ")),
    }
}

fn typed(name: &str) -> &str {
    match name {
        "string" => "a text",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "true or false",
        "array" => "a list",
        "object" => "an object",
        other => other,
    }
}

fn kind(value: &Value) -> String {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    kind.to_owned()
}

fn is(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "empty".to_owned(),
        Value::Array(_) | Value::Object(_) => kind(value),
        plain if plain.to_string().chars().count() <= MOST_QUOTED => plain.to_string(),
        long => kind(long),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
