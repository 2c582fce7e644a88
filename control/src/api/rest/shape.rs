//! What the description says of a body or of parameters, ready to be checked.

mod words;

use std::any::TypeId;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jsonschema::Validator;
use jsonschema::error::ValidationErrorKind;
use jsonschema::paths::LocationSegment;
use parking_lot::RwLock;
use serde_json::{Map, Value, json};
use utoipa::openapi::{RefOr, Required, Schema};
use utoipa::{IntoParams, ToSchema};

/// Faults that are told of at once: enough to mend a file by, and no more work than that.
const MOST_FAULTS: usize = 20;
/// Characters of a reason: it may quote what was sent.
const MOST_REASON: usize = 300;
/// The field that holds what a registry wants to know. Nothing of it is quoted, whatever somebody put in its place.
const LOGIN: &str = "login";
/// Schemas within schemas that are looked through for secrets; ours are four deep.
const DEEP: u32 = 32;

/// One part of a request.
pub(super) struct Shape {
    validator: Validator,
    /// What it is made of.
    root: Value,
    /// The JSON type of each parameter, where it is not text.
    types: HashMap<String, String>,
    /// Fields that are a secret, or have one in them: what was sent there is never quoted.
    secrets: BTreeSet<String>,
}

/// Every part that was asked for so far.
#[derive(Default)]
pub struct Shapes(RwLock<HashMap<TypeId, Arc<Shape>>>);

impl Shapes {
    /// That of a body.
    pub(super) fn body<T: ToSchema + 'static>(&self) -> Arc<Shape> {
        self.get::<T>(|| {
            let mut schemas: Vec<(String, RefOr<Schema>)> = Vec::new();
            T::schemas(&mut schemas);
            let root = T::schema();
            let schemas: Map<String, Value> = schemas.into_iter().map(|(name, schema)| (name, json!(schema))).collect();
            Shape::new(json!(root), schemas, HashMap::new())
        })
    }

    /// That of a query string.
    pub(super) fn query<T: IntoParams + 'static>(&self) -> Arc<Shape> {
        self.get::<T>(|| {
            let (mut properties, mut required, mut types) = (Map::new(), Vec::new(), HashMap::new());
            for parameter in T::into_params(|| None) {
                let schema = json!(parameter.schema);
                if let Some(kind) = schema["type"].as_str().filter(|kind| *kind != "string") {
                    types.insert(parameter.name.clone(), kind.to_owned());
                }
                if parameter.required == Required::True {
                    required.push(parameter.name.clone());
                }
                properties.insert(parameter.name, schema);
            }
            let root = json!({
                "type": "object", "properties": properties, "required": required, "additionalProperties": false
            });
            Shape::new(root, Map::new(), types)
        })
    }

    fn get<T: 'static>(&self, make: impl FnOnce() -> Shape) -> Arc<Shape> {
        let id = TypeId::of::<T>();
        if let Some(shape) = self.0.read().get(&id) {
            return Arc::clone(shape);
        }
        let shape = Arc::new(make());
        Arc::clone(self.0.write().entry(id).or_insert(shape))
    }
}

impl Shape {
    fn new(mut root: Value, schemas: Map<String, Value>, types: HashMap<String, String>) -> Self {
        let mut secrets = BTreeSet::new();
        holds_secret(&root, &schemas, &mut secrets, DEEP);
        if let Some(root) = root.as_object_mut() {
            root.insert("components".to_owned(), json!({ "schemas": schemas }));
        }
        let validator = jsonschema::validator_for(&root);
        Self {
            validator: validator.expect("a schema that is derived from a type is one; a test makes them all"),
            root,
            types,
            secrets,
        }
    }

    /// The fields that there are at a place.
    fn known(&self, path: &[LocationSegment<'_>]) -> Vec<&str> {
        let mut at = vec![&self.root];
        for segment in path {
            let below = at.iter().flat_map(|schema| self.variants(schema, DEEP)).filter_map(|schema| match segment {
                LocationSegment::Property(key) => schema["properties"].get(key.as_ref()),
                LocationSegment::Index(_) => schema.get("items"),
            });
            at = below.collect();
        }
        let all = at.iter().flat_map(|schema| self.variants(schema, DEEP));
        all.filter_map(|schema| schema["properties"].as_object())
            .flat_map(|all| all.keys().map(String::as_str))
            .collect()
    }

    /// The schema itself, or those that it refers to.
    fn variants<'a>(&'a self, schema: &'a Value, deep: u32) -> Vec<&'a Value> {
        let Some(below) = deep.checked_sub(1) else { return Vec::new() };
        let named = schema["$ref"].as_str().and_then(|name| name.rsplit('/').next());
        if let Some(named) = named.and_then(|name| self.root["components"]["schemas"].get(name)) {
            return self.variants(named, below);
        }
        let choices: Vec<&Value> =
            ["oneOf", "anyOf", "allOf"].iter().filter_map(|key| schema[*key].as_array()).flatten().collect();
        if choices.is_empty() {
            return vec![schema];
        }
        choices.into_iter().flat_map(|choice| self.variants(choice, below)).collect()
    }

    /// The value of a parameter, which comes as text. What is not of its type stays text, and is refused as such.
    pub(super) fn read(&self, name: &str, text: String) -> Value {
        let value = match self.types.get(name).map(String::as_str) {
            Some("integer") => text.parse::<u64>().ok().map(Value::from),
            Some("boolean") => text.parse::<bool>().ok().map(Value::from),
            _ => None,
        };
        value.unwrap_or(Value::String(text))
    }

    fn is_secret(&self, field: &str) -> bool {
        field == LOGIN || self.secrets.contains(field)
    }

    /// Which fields are wrong, and why. An empty name is the whole. A reason quotes what was sent, unless it is a secret or may hold one:
    /// it ends up in logs of whoever asked.
    pub(super) fn faults(&self, value: &Value) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        for error in self.validator.iter_errors(value) {
            let mut path = String::new();
            // A whole that is of a wrong kind may have a secret anywhere.
            let mut quoted = self.secrets.is_empty() || is_plain(error.instance());
            let segments: Vec<LocationSegment<'_>> = error.instance_path().segments().collect();
            for segment in &segments {
                match segment {
                    LocationSegment::Property(key) => {
                        quoted &= !self.is_secret(key);
                        join(&mut path, key);
                    }
                    LocationSegment::Index(index) => path.push_str(&format!("[{index}]")),
                }
            }
            let below = |name: &str| {
                let mut path = path.clone();
                join(&mut path, name);
                path
            };
            match error.kind() {
                ValidationErrorKind::Pattern { .. } | ValidationErrorKind::Format { .. } => {}
                ValidationErrorKind::AdditionalProperties { unexpected } => {
                    let why = words::not_known(&self.known(&segments));
                    faults.extend(unexpected.iter().map(|name| (shorten(&below(name)), why.clone())));
                }
                ValidationErrorKind::Required { property } => {
                    let name = property.as_str().unwrap_or_default();
                    faults.push((below(name), "is missing".to_owned()));
                }
                _ => {
                    quoted &= !path.is_empty() || self.secrets.is_empty();
                    faults.push((path, shorten(&words::reason(&error, quoted))));
                }
            }
            if faults.len() >= MOST_FAULTS {
                break;
            }
        }
        faults
    }
}

fn is_plain(value: &Value) -> bool {
    !value.is_object() && !value.is_array()
}

/// Whether what a schema describes is a secret, or has one in it; the fields that lead there are added to `fields`.
fn holds_secret(schema: &Value, schemas: &Map<String, Value>, fields: &mut BTreeSet<String>, deep: u32) -> bool {
    let Some(below) = deep.checked_sub(1) else { return false };
    match schema {
        Value::Object(parts) => {
            let mut secret = schema["writeOnly"] == true || schema["format"] == "password";
            let name = schema["$ref"].as_str().and_then(|name| name.rsplit('/').next());
            if let Some(named) = name.and_then(|name| schemas.get(name)) {
                secret |= holds_secret(named, schemas, fields, below);
            }
            for (key, part) in parts {
                match part.as_object().filter(|_| key == "properties") {
                    Some(properties) => {
                        for (field, property) in properties {
                            if holds_secret(property, schemas, fields, below) {
                                fields.insert(field.clone());
                                secret = true;
                            }
                        }
                    }
                    None => secret |= holds_secret(part, schemas, fields, below),
                }
            }
            secret
        }
        Value::Array(parts) => {
            // All of them: each may name fields.
            let mut secret = false;
            for part in parts {
                secret |= holds_secret(part, schemas, fields, below);
            }
            secret
        }
        _ => false,
    }
}

fn join(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= MOST_REASON {
        return text.to_owned();
    }
    text.chars().take(MOST_REASON).chain("…".chars()).collect()
}
