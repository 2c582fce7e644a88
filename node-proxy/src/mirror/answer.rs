//! Answers: headers and a body.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};

use super::body::{Body, Source};
use super::metrics::Metrics;
use super::refusal::Refusal;
use super::wire::Parts;

/// What a request is answered with.
pub(super) struct Answer {
    response: http::response::Builder,
    status: StatusCode,
    source: Source,
}

impl Answer {
    /// `GET /v2/`. Source: OCI distribution spec, "Determining Support".
    pub(super) fn ping() -> Self {
        Self::json(StatusCode::OK, "{}".into(), HeaderMap::new())
    }

    fn json(status: StatusCode, text: String, mut headers: HeaderMap) -> Self {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(text.len() as u64));
        let mut response = Response::builder().status(status);
        if let Some(all) = response.headers_mut() {
            *all = headers;
        }
        Self { response, status, source: Source::Text(text.into()) }
    }

    /// Content, or only its headers.
    pub(super) fn content(status: StatusCode, headers: HeaderMap, source: Source) -> Self {
        let mut response = Response::builder().status(status);
        if let Some(all) = response.headers_mut() {
            *all = headers;
        }
        Self { response, status, source }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// `parts`: what goes through the connection by way of a [`Wire`](super::wire::Wire), if it has one.
    pub(super) fn into_response(self, span: tracing::Span, metrics: Metrics, parts: Option<Parts>) -> Response<Body> {
        let body = Body::new(self.source, span, metrics, parts);
        self.response.body(body).expect("every header was made from a checked value")
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        let error = serde_json::json!({
            "errors": [{"code": refusal.code.word(), "message": refusal.message, "detail": null}]
        });
        Self::json(refusal.status, error.to_string(), *refusal.headers)
    }
}
