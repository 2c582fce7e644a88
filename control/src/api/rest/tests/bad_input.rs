//! Bad input, made from the description: every field of every call at its limits, beyond them, and of every other kind. What the
//! description refuses is refused with the field's name; nothing is answered with 5xx.

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop};
use proptest::prop_oneof;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use super::*;

/// A schema with its reference followed.
fn resolve<'a>(api: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => resolve(api, api.pointer(&reference[1..]).unwrap()),
        None => schema,
    }
}

fn types(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// Some value that the schema takes.
fn good(api: &Value, schema: &Value) -> Value {
    let schema = resolve(api, schema);
    if let Some(example) = schema["examples"].as_array().and_then(|all| all.first()) {
        return example.clone();
    }
    if let Some(one) = schema["enum"].as_array().and_then(|all| all.first()) {
        return one.clone();
    }
    match types(schema).first().copied() {
        // The name of a cluster that is there.
        Some("string") => json!("default"),
        Some("boolean") => json!(false),
        Some("integer") => schema["minimum"].clone(),
        Some("array") => json!([good(api, &schema["items"])]),
        Some("object") => {
            let properties = schema["properties"].as_object().unwrap();
            properties
                .iter()
                .map(|(name, schema)| (name.clone(), good(api, schema)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        }
        other => panic!("{other:?}: {schema}"),
    }
}

/// Values that the schema does not take, and where in the value the fault is, below the field itself.
fn bad(api: &Value, schema: &Value) -> Vec<(Value, String)> {
    let schema = resolve(api, schema);
    let types = types(schema);
    let mut found = Vec::new();
    let others = [
        ("null", json!(null)),
        ("boolean", json!(true)),
        ("integer", json!(7)),
        ("number", json!(0.5)),
        ("string", json!("good")),
        ("array", json!([])),
        ("object", json!({})),
    ];
    for (kind, value) in others {
        if !types.contains(&kind) {
            found.push((value, String::new()));
        }
    }
    let mut here = |value: Value| found.push((value, String::new()));
    let number = |key: &str| schema[key].as_u64().map(|n| usize::try_from(n).unwrap());
    if types.contains(&"string") {
        if let Some(most) = number("maxLength") {
            here(json!("x".repeat(most + 1)));
            here(json!("ü".repeat(most + 1)));
        }
        if let Some(least) = number("minLength").filter(|least| *least > 0) {
            here(json!("x".repeat(least - 1)));
        }
        if !schema["enum"].is_null() {
            here(json!("none of these"));
            here(json!(""));
        }
        if schema["pattern"].is_string() {
            let validator = jsonschema::validator_for(schema).unwrap();
            let candidates =
                ["", " ", "|", "a||b", "\u{0}", "a\u{7f}b", "a\u{200b}b", " a", "1 h", "-1h", "sha256:x", "\n", "A!"];
            candidates.iter().map(|text| json!(text)).filter(|text| !validator.is_valid(text)).for_each(&mut here);
        }
    }
    if types.contains(&"integer") {
        for (key, step) in [("minimum", -1), ("maximum", 1)] {
            if let Some(limit) = schema[key].as_i64() {
                here(json!(i128::from(limit) + i128::from(step)));
                here(json!(i128::from(limit) + i128::from(step) * 1_000_000));
            }
        }
        here(json!(1e300));
        here(json!(-1));
        here(json!(1.5));
    }
    if types.contains(&"array") {
        let item = good(api, schema)[0].clone();
        if let Some(most) = number("maxItems") {
            here(json!(vec![item.clone(); most + 1]));
        }
        if number("minItems").is_some_and(|least| least > 0) {
            here(json!([]));
        }
        for (value, below) in bad(api, &schema["items"]) {
            found.push((json!([item, value]), format!("[1]{below}")));
        }
    }
    if types.contains(&"object") {
        let whole = good(api, schema);
        for (name, property) in schema["properties"].as_object().unwrap() {
            for (value, below) in bad(api, property) {
                let mut with = whole.clone();
                with[name] = value;
                found.push((with, format!(".{name}{below}")));
            }
        }
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let mut without = whole.clone();
            without.as_object_mut().unwrap().remove(name);
            found.push((without, format!(".{name}")));
        }
        if schema["additionalProperties"] == false {
            let mut more = whole;
            more["colour"] = json!(1);
            found.push((more, ".colour".to_owned()));
        }
    }
    found
}

/// An address with every part filled in.
fn address(path: &str) -> String {
    let digest = format!("sha256:{}", "0".repeat(64));
    path.replace("{digest}", &digest)
        .replace("{cluster}", "default")
        .replace("{token}", "ci")
        .replace("{node}", "n1")
        .replace("{id}", "x")
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// In a set of clusters what the scopes refuse is named within the clusters that the fault names.
fn names(named: &str, field: &str) -> bool {
    named == field || (field.starts_with("clusters[") && field.ends_with(&format!("].{named}")))
}

struct Call {
    method: Method,
    path: String,
    parameters: Vec<Value>,
    body: Option<Value>,
}

fn calls(api: &Value) -> Vec<Call> {
    let call = |(path, method, operation): (String, String, Value)| Call {
        method: method.to_uppercase().parse().unwrap(),
        path,
        parameters: operation["parameters"].as_array().cloned().unwrap_or_default(),
        body: operation.pointer("/requestBody/content/application~1json/schema").cloned(),
    };
    described::operations(api).into_iter().map(call).collect()
}

impl Call {
    /// The query with every parameter that must be there, but for one.
    fn query(&self, but: &str) -> Vec<String> {
        let needed =
            self.parameters.iter().filter(|one| one["in"] == "query" && one["required"] == true && one["name"] != but);
        needed
            .map(|one| format!("{}={}", one["name"].as_str().unwrap(), one["example"].as_str().unwrap_or("10.0.0.1")))
            .collect()
    }

    fn at(&self, query: &[String]) -> String {
        let path = address(&self.path);
        if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
    }
}

#[tokio::test]
async fn every_field_of_every_body_is_refused_beyond_its_limits_and_named() {
    let rest = rest().await;
    let api = rest.described.api.clone();
    let mut tried = 0;
    for call in calls(&api) {
        let Some(schema) = &call.body else { continue };
        for (body, field) in bad(&api, schema) {
            let answer = rest.ask(call.method.clone(), &call.at(&call.query("")), None, &body).await;
            let at = format!("{} {} {field}: {:.200}: {:.300}", call.method, call.path, body.to_string(), answer.text);
            // A set of clusters that is too large does not fit into a body either.
            assert!(answer.status == 400 || answer.status == 413, "{at}");
            let field = field.trim_start_matches('.');
            if !field.is_empty() && answer.status == 400 {
                let faults = answer.faults();
                assert!(faults.iter().any(|named| names(named, field)), "{faults:?}: {at}");
            }
            tried += 1;
        }
    }
    assert!(tried > 300, "{tried}");
    assert_eq!(rest.get(CLUSTERS).await.json()["items"].as_array().unwrap().len(), 1, "nothing was made");
}

#[tokio::test]
async fn every_parameter_is_refused_beyond_its_limits_and_named() {
    let rest = rest().await;
    rest.token("ci", "viewer", None).await;
    let api = rest.described.api.clone();
    let mut tried = 0;
    for call in calls(&api) {
        let body = call.body.as_ref().map_or(json!(null), |schema| good(&api, schema));
        let mut queries = vec![("colour".to_owned(), "1".to_owned())];
        for parameter in call.parameters.iter().filter(|one| one["in"] == "query") {
            let (name, schema) = (parameter["name"].as_str().unwrap().to_owned(), &parameter["schema"]);
            let texts = bad(&api, schema).into_iter().filter_map(|(value, _)| match value {
                Value::String(text) => Some(text),
                Value::Number(number) if types(schema) != ["string"] => Some(number.to_string()),
                _ => None,
            });
            queries.extend(texts.map(|text| (name.clone(), text)));
            if parameter["required"] == true {
                let answer = rest.ask(call.method.clone(), &call.at(&call.query(&name)), None, &body).await;
                assert_eq!((answer.status, answer.faults()), (400, vec![name.clone()]), "without {name}");
            }
        }
        for (name, text) in queries {
            if call.path == document::ADDRESS {
                continue;
            }
            let mut query = call.query(&name);
            query.push(format!("{name}={}", encoded(&text)));
            let answer = rest.ask(call.method.clone(), &call.at(&query), None, &body).await;
            let at = format!("{} {} {query:?}: {:.300}", call.method, call.path, answer.text);
            // What takes no query at all does not look at one.
            if call.parameters.iter().all(|one| one["in"] != "query") {
                assert!(answer.status < 500, "{at}");
                continue;
            }
            assert_eq!((answer.status, answer.faults()), (400, vec![name]), "{at}");
            tried += 1;
        }
    }
    assert!(tried > 100, "{tried}");
}

/// Any JSON, not too deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "[a-z0-9|./:, -]{0,40}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{0,8}", inner, 0..6)
                .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

#[test]
fn no_value_of_any_field_is_answered_with_a_failure_of_ours() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rest = runtime.block_on(rest());
    let api = rest.described.api.clone();
    let config = ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let calls = calls(&api);
    let strategy = (prop::collection::vec(any_json(), 12), any::<String>(), any::<String>());
    let ran = runner.run(&strategy, |(values, text, tag)| {
        for call in &calls {
            if call.path.ends_with("/events") {
                continue;
            }
            let mut body = call.body.as_ref().map_or(json!(null), |schema| good(&api, schema));
            let mut values = values.iter().cycle();
            if let Some(fields) = body.as_object_mut() {
                for (field, value) in fields.iter_mut().zip(&mut values) {
                    *field.1 = value.clone();
                }
            }
            let mut query: Vec<String> = Vec::new();
            for parameter in call.parameters.iter().filter(|one| one["in"] == "query") {
                let value = values.next().unwrap();
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                query.push(format!("{}={}", parameter["name"].as_str().unwrap(), encoded(&text)));
            }
            let part = encoded(&text);
            let path = call
                .path
                .split('/')
                .map(|segment| if segment.starts_with('{') && !part.is_empty() { &part } else { segment });
            let path = path.collect::<Vec<_>>().join("/").replace(['{', '}'], "");
            let tag: String = tag.chars().filter(|c| (' '..'\u{7f}').contains(c)).collect();
            let address = if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) };
            let answer = runtime.block_on(rest.ask(call.method.clone(), &address, Some(&tag), &body));
            assert!(answer.status < 500, "{} {address} {body}: {}", call.method, answer.text);
        }
        Ok(())
    });
    ran.unwrap();
}
