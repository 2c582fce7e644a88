//! How far an image is spread over the nodes: of a manifest that is put in, or of a preheat's blobs.

use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::ask::{Answer, text};
use super::guard::{Posted, Signed, Stop};
use super::search::Search;
use super::view::{self, Cell, Field, Form, Shell};

const HERE: &str = "/console/images";
/// Nodes of a page.
const PAGE: &str = "200";

/// The table of what `/api/v1/images/share` answered.
pub(super) fn share(answer: &Answer) -> String {
    let page = &answer.body["nodes"];
    let nodes = page["items"].as_array().into_iter().flatten();
    let all = answer.body["bytes"].as_u64().unwrap_or(0);
    let row = |node: &Value| {
        let id = text(&node["node"], "");
        vec![
            Cell::link(text(&node["name"], &id), format!("/console/nodes/{id}")),
            Cell::of(&node["cluster"]),
            Cell::of(&node["blobs"]),
            Cell::progress(node["bytes"].as_u64().unwrap_or(0), all),
        ]
    };
    let columns = ["Node", "Cluster", "Whole blobs", "Share"];
    view::list("The image over the nodes", &columns, nodes.map(row).collect(), page, String::new())
}

/// The way to the next page of a share: the same question, from there on. Empty: this was the last.
fn further(me: &Signed, answer: &Answer, manifest: &str, cluster: &str) -> String {
    let Some(next) = answer.body["nodes"]["next"].as_str() else { return String::new() };
    Form {
        id: "further",
        method: "post",
        action: HERE.to_owned(),
        csrf: me.csrf(),
        fields: vec![
            Field::hidden("manifest", manifest),
            Field::hidden("cluster", cluster),
            Field::hidden("after", next),
        ],
        buttons: vec![("show", "Next page")],
        ..Form::default()
    }
    .html()
}

/// The blobs that a text names: those of a manifest, or a digest a line. The error is for people.
fn blobs(text: &str) -> Result<Vec<Value>, String> {
    let text = text.trim();
    if !text.starts_with('{') {
        return Ok(text.split_whitespace().map(|digest| json!({ "digest": digest })).collect());
    }
    let manifest: Value = serde_json::from_str(text).map_err(|error| format!("this is no JSON: {error}"))?;
    if manifest["manifests"].is_array() {
        return Err("this is an index: put in the manifest of one platform".to_owned());
    }
    let layers = manifest["layers"].as_array().ok_or("this has no layers: it is no manifest of an image")?;
    let parts = std::iter::once(&manifest["config"]).chain(layers);
    Ok(parts.map(|part| json!({"digest": part["digest"], "size": part["size"]})).collect())
}

fn form(me: &Signed, manifest: &str, cluster: &str, fault: &dyn Fn(&str) -> String) -> String {
    let hint = "The manifest of one platform, as crane manifest prints it, or digests, one a line.";
    Form {
        heading: "Which image",
        method: "post",
        action: HERE.to_owned(),
        csrf: me.csrf(),
        fields: vec![
            Field::new("textarea", "manifest", "Manifest or digests", hint).value(manifest).fault(fault("blobs")),
            Field::new("text", "cluster", "Cluster", "Its name or id; empty: all.")
                .value(cluster)
                .fault(fault("cluster")),
        ],
        buttons: vec![("show", "Show its spread")],
        ..Form::default()
    }
    .html()
}

pub(super) async fn ask(me: Signed) -> Response {
    me.page("Images", HERE, vec![form(&me, "", "", &|_| String::new())]).into_response()
}

pub(super) async fn show(posted: Posted) -> Result<Response, Stop> {
    let (me, manifest, cluster) = (&posted.me, posted.get("manifest"), posted.get("cluster"));
    let answer = match blobs(manifest) {
        Ok(blobs) => {
            let cluster = (!cluster.is_empty()).then_some(cluster);
            let body = json!({"blobs": blobs, "cluster": cluster});
            let more = Search::of(&[("after", posted.get("after")), ("limit", PAGE)]);
            me.ask(Method::POST, &more.filled().on("/api/v1/images/share"), None, Some(body)).await?
        }
        Err(why) => {
            let fault = |field: &str| if field == "blobs" { why.clone() } else { String::new() };
            let shell = Shell { error: why.clone(), ..me.shell("Images", HERE) };
            let parts = vec![form(me, manifest, cluster, &fault)];
            return Ok((StatusCode::UNPROCESSABLE_ENTITY, view::page(shell, parts)).into_response());
        }
    };
    let fault = |field: &str| answer.fault(field);
    let mut parts = vec![form(me, manifest, cluster, &fault)];
    if answer.status.is_success() {
        let unknown = answer.body["unknown"].as_array().map_or(0, Vec::len);
        let facts = vec![
            ("Blobs", text(&answer.body["blobs"], "")),
            ("Bytes together", view::bytes(answer.body["bytes"].as_u64().unwrap_or(0))),
            ("Of unknown size, with nobody", unknown.to_string()),
        ];
        let more = further(me, &answer, manifest, cluster);
        parts.extend([view::facts("It has", facts), share(&answer), more]);
    }
    let error = if answer.status.is_success() { String::new() } else { answer.detail() };
    let shell = Shell { error, ..me.shell("Images", HERE) };
    Ok((answer.status, view::page(shell, parts)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_and_digests_name_blobs_and_what_is_neither_is_refused_in_words() {
        let manifest = r#"{"config":{"digest":"a","size":1},"layers":[{"digest":"b","size":2,"mediaType":"x"}]}"#;
        assert_eq!(blobs(manifest).unwrap(), [json!({"digest":"a","size":1}), json!({"digest":"b","size":2})]);
        assert_eq!(blobs(" a\n b ").unwrap(), [json!({"digest":"a"}), json!({"digest":"b"})]);
        assert!(blobs("").unwrap().is_empty());
        for (text, word) in [("{", "JSON"), ("{}", "layers"), (r#"{"manifests":[]}"#, "index")] {
            assert!(blobs(text).unwrap_err().contains(word), "{text}");
        }
    }
}
