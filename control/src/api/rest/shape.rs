//! What the description says of a body or of parameters, ready to be checked.

use std::any::TypeId;
use std::collections::HashMap;
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

/// One part of a request.
pub(super) struct Shape {
    validator: Validator,
    /// The JSON type of each parameter, where it is not text.
    types: HashMap<String, String>,
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
        if let Some(root) = root.as_object_mut() {
            root.insert("components".to_owned(), json!({ "schemas": schemas }));
        }
        let validator = jsonschema::validator_for(&root);
        Self {
            validator: validator.expect("a schema that is derived from a type is one; a test makes them all"),
            types,
        }
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

    /// Which fields are wrong, and why. An empty name is the whole.
    pub(super) fn faults(&self, value: &Value) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        for error in self.validator.iter_errors(value) {
            let mut path = String::new();
            for segment in error.instance_path().segments() {
                match segment {
                    LocationSegment::Property(key) => join(&mut path, &key),
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
                    faults.extend(unexpected.iter().map(|name| (shorten(&below(name)), "is not known".to_owned())));
                }
                ValidationErrorKind::Required { property } => {
                    let name = property.as_str().unwrap_or_default();
                    faults.push((below(name), "is missing".to_owned()));
                }
                _ => faults.push((path, shorten(&error.to_string()))),
            }
            if faults.len() >= MOST_FAULTS {
                break;
            }
        }
        faults
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
