//! The description and what it describes: neither has what the other has not, and every answer in these tests is as described.

use std::collections::{BTreeMap, BTreeSet};

use jsonschema::Validator;

use super::*;

/// The description, ready to check answers by.
pub(super) struct Described {
    pub(super) api: Value,
    /// By template, method, status and media type.
    answers: BTreeMap<(String, String, String, String), Validator>,
}

impl Described {
    pub(super) fn new() -> Self {
        let api = serde_json::to_value(openapi()).unwrap();
        let mut answers = BTreeMap::new();
        for (path, method, operation) in operations(&api) {
            for (status, answer) in operation["responses"].as_object().unwrap() {
                let bodies = answer["content"].as_object().cloned().unwrap_or_default();
                for (kind, body) in bodies {
                    let mut schema = body["schema"].clone();
                    schema["components"] = api["components"].clone();
                    let validator = jsonschema::options().should_validate_formats(true).build(&schema);
                    answers.insert((path.clone(), method.clone(), status.clone(), kind), validator.unwrap());
                }
                if answer["content"].is_null() {
                    answers.insert(
                        (path.clone(), method.clone(), status.clone(), String::new()),
                        jsonschema::validator_for(&json!({})).unwrap(),
                    );
                }
            }
        }
        Self { api, answers }
    }

    /// The template that an address is of.
    pub(super) fn template(&self, path: &str) -> Option<String> {
        let fits = |template: &&String| {
            let (a, b): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
            a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a == b || (a.starts_with('{') && !b.is_empty()))
        };
        self.api["paths"].as_object().unwrap().keys().find(fits).cloned()
    }

    pub(super) fn check(&self, method: &Method, path: &str, answer: &Answer) {
        let Some(template) = self.template(path) else { return };
        // What the description does not speak of is told as a problem all the same.
        if answer.status == 405 {
            assert_eq!(answer.kind, "application/problem+json");
            return;
        }
        let key = (template, method.as_str().to_lowercase(), answer.status.to_string(), answer.kind.clone());
        let validator = self.answers.get(&key);
        let validator = validator.unwrap_or_else(|| panic!("{key:?} is not described: {}", answer.text));
        if !answer.kind.is_empty() {
            let value = answer.json();
            let faults: Vec<String> =
                validator.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect();
            assert!(faults.is_empty(), "{key:?}: {faults:#?}\n{}", answer.text);
        }
    }
}

pub(super) fn operations(api: &Value) -> Vec<(String, String, Value)> {
    let mut operations = Vec::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            operations.push((path.clone(), method.clone(), operation.clone()));
        }
    }
    operations
}

/// The addresses that the router knows, as it prints itself.
fn routed(router: &Router) -> BTreeSet<String> {
    let text = format!("{router:?}");
    let addresses = text.split('"').filter(|part| part.starts_with('/') && *part != "/" && !part.contains("__private"));
    addresses.map(str::to_owned).collect()
}

#[tokio::test]
async fn every_route_is_described_and_everything_described_is_a_route() {
    let rest = rest().await;
    let api = &rest.described.api;
    assert!(api["openapi"].as_str().unwrap().starts_with("3.1."), "{}", api["openapi"]);
    let described: BTreeSet<String> = api["paths"].as_object().unwrap().keys().cloned().collect();
    let mut routed = routed(&rest.router);
    for open in ["/livez", "/readyz", "/metrics"] {
        assert!(routed.remove(open), "{open} is not among {routed:?}: does the router print itself otherwise now?");
    }
    assert_eq!(routed, described);
    for path in &described {
        let address = path.replace("{digest}", "x").replace(['{', '}'], "");
        let request = Request::builder().method(Method::TRACE).uri(&address).body(Body::empty()).unwrap();
        let response = rest.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 405);
        let allowed = response.headers()[header::ALLOW].to_str().unwrap();
        let allowed: BTreeSet<String> =
            allowed.split(',').filter(|method| *method != "HEAD").map(str::to_lowercase).collect();
        let methods: BTreeSet<String> = api["paths"][path].as_object().unwrap().keys().cloned().collect();
        assert_eq!(allowed, methods, "{path}");
    }
}

#[tokio::test]
async fn the_description_is_served_without_a_token_and_is_the_one_that_is_checked() {
    let mut rest = rest().await;
    rest.token = String::new();
    let answer = rest.get(document::ADDRESS).await;
    assert_eq!((answer.status, answer.json()), (200, rest.described.api.clone()));
}

#[test]
fn every_operation_says_how_it_fails_and_every_reference_leads_somewhere() {
    let api = serde_json::to_value(openapi()).unwrap();
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations(&api) {
        let at = format!("{method} {path}");
        assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{at}: its id is taken");
        assert!(!operation["summary"].as_str().unwrap_or_default().is_empty(), "{at} says nothing of itself");
        if path == document::ADDRESS {
            continue;
        }
        assert_eq!(operation["security"], json!([{ "token": [] }]), "{at}");
        for status in ["400", "401", "403"] {
            let body = &operation["responses"][status]["content"]["application/problem+json"]["schema"]["$ref"];
            assert_eq!(body, "#/components/schemas/Problem", "{at}: {status}");
        }
        let has = |status: &str| !operation["responses"][status].is_null();
        assert_eq!(has("404"), path.contains('{') && !path.ends_with("/holders"), "{at}: 404");
        assert_eq!(has("415") && has("413"), !operation["requestBody"].is_null(), "{at}: a body that is none");
        let changes = matches!(method.as_str(), "put" | "patch" | "delete")
            || path.ends_with("/revoke")
            || (method == "post" && path.starts_with("/api/v1/preheats/{"));
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        assert_eq!(parameters.iter().any(|one| one["name"] == "If-Match"), changes, "{at}: If-Match");
        assert_eq!(has("412") && has("428"), changes, "{at}: 412 and 428");
        for parameter in parameters {
            assert!(parameter["description"].as_str().is_some_and(|text| !text.is_empty()), "{at}: {parameter}");
        }
    }
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    references(&api, &mut found);
    for reference in found {
        assert!(api.pointer(&reference[1..]).is_some(), "{reference} leads nowhere");
    }
}

#[test]
fn what_takes_no_unknown_fields_says_so() {
    let api = serde_json::to_value(openapi()).unwrap();
    for name in ["Declared", "DeclaredSet", "Patch", "AskJoinToken", "AskApiToken", "AskShare", "AskBlob"] {
        let schema = &api["components"]["schemas"][name];
        assert_eq!(schema["additionalProperties"], false, "{name}: {schema}");
    }
}
