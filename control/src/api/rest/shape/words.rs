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
        known => format!("is not known; known are {}", known.join(", ")),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_is_said_without_words_of_json_schema() {
        let schema = json!({"properties": {
            "percent": {"type": "integer", "minimum": 1, "maximum": 100},
            "name": {"type": ["string", "null"], "minLength": 1, "maxLength": 9},
            "state": {"type": "string", "enum": ["waiting", "done"]},
            "nodes": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "string"}},
        }});
        let validator = jsonschema::validator_for(&schema).unwrap();
        let said = |value: Value, quoted: bool| {
            let error = validator.iter_errors(&value).next().unwrap();
            reason(&error, quoted)
        };
        let cases = [
            (json!({"percent": "x"}), "is \"x\", and must be a whole number"),
            (json!({"percent": ""}), "is empty, and must be a whole number"),
            (json!({"percent": 1.5}), "is 1.5, and must be a whole number"),
            (json!({"percent": 0}), "is 0, and must be at least 1"),
            (json!({"percent": 101}), "is 101, and must be at most 100"),
            (json!({"percent": [1]}), "is a list, and must be a whole number"),
            (json!({"name": ""}), "is empty"),
            (json!({"name": "0123456789"}), "is longer than 9 characters"),
            (json!({"state": "gone"}), "is \"gone\", and must be one of waiting, done"),
            (json!({"nodes": []}), "is empty"),
            (json!({"nodes": ["a", "b", "c"]}), "has more than 2 items"),
            (json!({"nodes": [null]}), "is null, and must be a text"),
        ];
        for (value, wanted) in cases {
            assert_eq!(said(value.clone(), true), wanted, "{value}");
        }
        let name = said(json!({"name": 5}), true);
        assert!(name.starts_with("is 5, and must be ") && name.contains("a text") && name.contains("null"), "{name}");
        assert_eq!(said(json!({"percent": "planted-secret"}), false), "is a text, and must be a whole number");
        let long = said(json!({"percent": "x".repeat(99)}), true);
        assert_eq!(long, "is a text, and must be a whole number");
    }
}
