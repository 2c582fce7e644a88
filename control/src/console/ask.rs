//! Requests to the API, in this process, with the token of whoever looks at the page.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tower::ServiceExt as _;

/// Largest answer that a page is made of: a page of a thousand preheats with their nodes is below it.
const ANSWER_LIMIT: usize = 256 << 20;

/// What the API said.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// As it is put into `If-Match`.
    pub(super) etag: Option<String>,
    /// Null: there was none.
    pub(super) body: Value,
}

impl Answer {
    /// What a form is answered before the API is asked: fields, and what is wrong with them.
    pub(super) fn refused(faults: &[(&str, String)]) -> Self {
        let reasons: Vec<&str> = faults.iter().map(|(_, reason)| reason.as_str()).collect();
        let errors: Vec<Value> =
            faults.iter().map(|(field, reason)| json!({ "field": field, "reason": reason })).collect();
        let body = json!({ "detail": reasons.join("\n"), "errors": errors });
        Self { status: StatusCode::BAD_REQUEST, etag: None, body }
    }

    /// What went wrong, for people.
    pub(super) fn detail(&self) -> String {
        text(&self.body["detail"], self.status.canonical_reason().unwrap_or("it failed"))
    }

    /// What is wrong with a field, or with a part of it.
    pub(super) fn fault(&self, field: &str) -> String {
        let faults = self.body["errors"].as_array().into_iter().flatten();
        let of =
            |name: &str| name == field || name.strip_prefix(field).is_some_and(|rest| rest.starts_with(['[', '.']));
        let faults = faults.filter(|fault| fault["field"].as_str().is_some_and(of));
        let reasons: Vec<&str> = faults.filter_map(|fault| fault["reason"].as_str()).collect();
        reasons.join("\n")
    }

    /// The items of a list.
    pub(super) fn items(&self) -> &[Value] {
        self.body["items"].as_array().map_or(&[], Vec::as_slice)
    }
}

/// A text or a number of an answer; what stands for one that is not there.
pub(super) fn text(value: &Value, none: &str) -> String {
    match value {
        Value::Null => none.to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        other => other.to_string(),
    }
}

/// A value for a path or a query, so that it stays one (RFC 3986 section 2.3).
pub(super) fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// One request, its answer as it comes.
pub(super) async fn send(
    api: &Router,
    token: &str,
    method: Method,
    path: &str,
    if_match: Option<&str>,
    body: Body,
) -> Response {
    let mut request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
    if let Some(tag) = if_match {
        request = request.header(header::IF_MATCH, tag);
    }
    let Ok(mut shown) = HeaderValue::from_str(&format!("Bearer {token}")) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    shown.set_sensitive(true);
    match request.header(header::AUTHORIZATION, shown).body(body) {
        Ok(request) => match api.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}

/// One request, its answer read.
pub(super) async fn ask(
    api: &Router,
    token: &str,
    method: Method,
    path: &str,
    if_match: Option<&str>,
    body: Option<Value>,
) -> Answer {
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    let response = send(api, token, method, path, if_match, body).await;
    let status = response.status();
    let etag = response.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
    let bytes = to_bytes(response.into_body(), ANSWER_LIMIT).await.unwrap_or_default();
    Answer { status, etag, body: serde_json::from_slice(&bytes).unwrap_or_default() }
}
