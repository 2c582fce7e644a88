//! Errors as RFC 9457 problem documents.

use std::error::Error as _;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::clusters::{BadFact, Error, Refusal};

/// What went wrong (RFC 9457). `type` is left out, which means `about:blank`: the status says what kind it is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// The status in words.
    title: &'static str,
    /// The status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// For people.
    detail: String,
    /// What is wrong field by field; left out when it is not about fields.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<Fault>,
}

/// One field that is wrong.
#[derive(Debug, Serialize, ToSchema)]
struct Fault {
    /// Names of the clusters that it is about; left out when it is about none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    clusters: Vec<String>,
    /// Which: a path into the body such as `cidrs[1]`, within the named clusters if there are any; a parameter; or a header.
    field: String,
    /// What is wrong with it.
    reason: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self { title, status: status.as_u16(), detail: detail.into(), errors: Vec::new() }
    }

    /// Several fields at once, each with its reason.
    pub(super) fn fields(faults: Vec<(String, String)>) -> Self {
        let detail: Vec<String> = faults.iter().map(|(field, reason)| format!("{field}: {reason}")).collect();
        let errors = faults.into_iter().map(|(field, reason)| Fault { clusters: Vec::new(), field, reason });
        Self::new(StatusCode::BAD_REQUEST, detail.join("\n")).with(errors.collect())
    }

    /// The same, said of one field.
    pub(super) fn about(mut self, field: &str) -> Self {
        self.errors = vec![Fault { clusters: Vec::new(), field: field.to_owned(), reason: self.detail.clone() }];
        self
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
        Self::fields(bad.into_iter().map(|BadFact { field, reason }| (field.to_owned(), reason)).collect())
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
            Error::Beyond { .. } | Error::Foreign => Self::new(StatusCode::FORBIDDEN, detail),
            Error::Stale { .. } | Error::StaleSet { .. } => {
                let why = format!("{detail}: it was changed since; read it again");
                Self::new(StatusCode::PRECONDITION_FAILED, why).about("If-Match")
            }
            Error::InUse { .. } => {
                let way = "they would move to where the other scopes put them; say force to do it anyway";
                Self::new(StatusCode::CONFLICT, format!("{detail}; {way}"))
            }
            Error::IsDefault { .. } => {
                let way = "nodes that match nothing would run alone; make another cluster the default first \
                           (shoalctl cluster update OTHER --default), or say force";
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
