//! Errors as RFC 9457 problem documents, and the extractors that speak them.

use std::error::Error as _;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, OptionalFromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clusters::{BadFact, Error, Refusal};

/// `application/problem+json`. `type` is left out, which means `about:blank`: the status says what kind it is.
#[derive(Debug, Serialize)]
pub(super) struct Problem {
    title: &'static str,
    status: u16,
    detail: String,
    /// What is wrong field by field; empty when it is not about fields.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Fault>,
}

#[derive(Debug, Serialize)]
struct Fault {
    /// Names of the clusters that it is about.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    clusters: Vec<String>,
    field: String,
    reason: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self { title, status: status.as_u16(), detail: detail.into(), errors: Vec::new() }
    }

    fn with(mut self, errors: Vec<Fault>) -> Self {
        self.errors = errors;
        self
    }

    pub(super) fn field(field: &str, reason: String) -> Self {
        let fault = Fault { clusters: Vec::new(), field: field.to_owned(), reason };
        Self::new(StatusCode::BAD_REQUEST, format!("{field}: {}", fault.reason)).with(vec![fault])
    }

    fn refused(refusals: Vec<Refusal>) -> Self {
        let detail: Vec<String> = refusals.iter().map(ToString::to_string).collect();
        let errors = refusals.into_iter().map(|Refusal { clusters, field, reason }| Fault { clusters, field, reason });
        Self::new(StatusCode::BAD_REQUEST, detail.join("\n")).with(errors.collect())
    }

    /// Facts of a node that can't be.
    pub(super) fn facts(bad: Vec<BadFact>) -> Self {
        let detail: Vec<String> = bad.iter().map(ToString::to_string).collect();
        let errors = bad.into_iter().map(|BadFact { field, reason }| Fault {
            clusters: Vec::new(),
            field: field.to_owned(),
            reason,
        });
        Self::new(StatusCode::BAD_REQUEST, detail.join("\n")).with(errors.collect())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let detail = error.to_string();
        match error {
            Error::Refused(refusals) => Self::refused(refusals),
            Error::NotFound(_) => Self::new(StatusCode::NOT_FOUND, detail),
            Error::Stale { .. } => {
                Self::new(StatusCode::PRECONDITION_FAILED, format!("{detail}: it was changed since"))
            }
            Error::InUse { .. } => {
                let way = "they would move to where the other scopes put them; say force to do it anyway";
                Self::new(StatusCode::CONFLICT, format!("{detail}; {way}"))
            }
            Error::IsDefault { .. } => {
                let way =
                    "nodes that match nothing would run alone; make another cluster the default first, or say force";
                Self::new(StatusCode::CONFLICT, format!("{detail}; {way}"))
            }
            Error::Stored(_) | Error::Store(_) => {
                tracing::error!(%error, cause = cause(&error), "a change of clusters failed");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("nothing was changed: {detail}"))
            }
        }
    }
}

/// What is behind an error, for the log.
pub(super) fn cause(error: &Error) -> String {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(error) = next {
        causes.push(error.to_string());
        next = error.source();
    }
    causes.join(": ")
}

/// A JSON body, refused as a problem that names the field.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(JsonRejection::JsonDataError(error)) => {
                // "path.to[0].field: what is wrong at line 1 column 2"
                let text = error.source().map_or_else(|| error.body_text(), innermost);
                Err(match text.split_once(": ") {
                    Some((field, reason)) if !field.contains(' ') => Problem::field(field, reason.to_owned()),
                    _ => Problem::new(StatusCode::BAD_REQUEST, text),
                })
            }
            Err(other) => Err(Problem::new(other.status(), other.body_text())),
        }
    }
}

/// The path is in the error that axum wraps, not in what that one wraps.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    error.to_string()
}

/// A query string, refused as a problem.
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(QueryRejection::FailedToDeserializeQueryString(error)) => {
                let text = error.source().map_or_else(|| error.body_text(), innermost);
                Err(Problem::new(StatusCode::BAD_REQUEST, format!("query: {text}")))
            }
            Err(other) => Err(Problem::new(StatusCode::BAD_REQUEST, other.body_text())),
        }
    }
}

/// A part of the path, refused as a problem.
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match <axum::extract::Path<T> as FromRequestParts<S>>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(part)) => Ok(Self(part)),
            Err(error) => Err(Problem::new(error.status(), error.body_text())),
        }
    }
}

/// The version in `If-Match`; without the header, or with `*`, any.
pub(super) struct IfMatch(pub(super) u64);

impl<S: Send + Sync> OptionalFromRequestParts<S> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Problem> {
        let Some(value) = parts.headers.get(header::IF_MATCH) else { return Ok(None) };
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(None);
        }
        let version = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).and_then(|text| text.parse().ok());
        match version {
            Some(version) => Ok(Some(Self(version))),
            None => Err(Problem::field("If-Match", "is not an ETag of a cluster, such as \"3\"".to_owned())),
        }
    }
}
