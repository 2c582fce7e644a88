//! What handlers take from a request. Each part is checked against the schema that the API's description gives for it, so that the
//! description can't promise what is not kept.
//!
//! Patterns and formats are in the description and are not checked here: whoever understands the text says better what is wrong with it.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::HttpBody as _;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, OptionalFromRequest, OptionalFromRequestParts, Request};
use axum::http::request::Parts as Head;
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::Parts;
use super::problem::Problem;

/// A JSON body, refused as a problem that names every field at fault.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned + ToSchema + 'static> FromRequest<Parts> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, parts: &Parts) -> Result<Self, Problem> {
        let mut value = match <Json<Value> as FromRequest<Parts>>::from_request(request, parts).await {
            Ok(Json(value)) => value,
            Err(JsonRejection::JsonDataError(error)) => {
                return Err(Problem::new(StatusCode::BAD_REQUEST, error.body_text()));
            }
            Err(other) => return Err(Problem::new(other.status(), other.body_text())),
        };
        make_whole(&mut value);
        understand(parts.shapes.body::<T>().faults(&value), value).map(Self)
    }
}

impl<T: DeserializeOwned + ToSchema + 'static> OptionalFromRequest<Parts> for Body<T> {
    type Rejection = Problem;

    /// `None`: there is no body.
    async fn from_request(request: Request, parts: &Parts) -> Result<Option<Self>, Problem> {
        let is_json = request.headers().contains_key(header::CONTENT_TYPE);
        if !is_json && request.body().size_hint().exact() == Some(0) {
            return Ok(None);
        }
        <Self as FromRequest<Parts>>::from_request(request, parts).await.map(Some)
    }
}

/// A query string, refused as a problem that names every parameter at fault.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned + IntoParams + 'static> FromRequestParts<Parts> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(head: &mut Head, parts: &Parts) -> Result<Self, Problem> {
        let pairs = axum::extract::Query::<Vec<(String, String)>>::from_request_parts(head, parts).await;
        let axum::extract::Query(pairs) =
            pairs.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.body_text()))?;
        let shape = parts.shapes.query::<T>();
        let (mut value, mut twice) = (Map::new(), BTreeMap::new());
        for (name, text) in pairs {
            let read = shape.read(&name, text);
            if value.insert(name.clone(), read).is_some() {
                twice.insert(name, "is given twice".to_owned());
            }
        }
        let value = Value::Object(value);
        let faults = shape.faults(&value).into_iter().chain(twice);
        understand(faults.collect(), value).map(Self)
    }
}

/// A number without a fraction is a whole one however it is written (JSON Schema 2020-12, validation, section 6.1.1): `20.0` is 20.
fn make_whole(value: &mut Value) {
    /// Up to here every whole number has a double of its own.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) if number.is_f64() => {
            let whole = number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < EXACT);
            if let Some(whole) = whole {
                *value = Value::from(whole as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(make_whole),
        Value::Object(fields) => fields.values_mut().for_each(make_whole),
        _ => {}
    }
}

fn understand<T: DeserializeOwned>(faults: Vec<(String, String)>, value: Value) -> Result<T, Problem> {
    let (named, whole): (Vec<_>, Vec<_>) = faults.into_iter().partition(|(field, _)| !field.is_empty());
    if !named.is_empty() {
        return Err(Problem::fields(named));
    }
    if let Some((_, reason)) = whole.into_iter().next() {
        return Err(Problem::new(StatusCode::BAD_REQUEST, reason));
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        Problem::fields(vec![(path, error.into_inner().to_string())])
    })
}

/// A part of the path, refused as a problem.
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Head, state: &S) -> Result<Self, Problem> {
        match <axum::extract::Path<T> as FromRequestParts<S>>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(part)) => Ok(Self(part)),
            Err(error) => Err(Problem::new(error.status(), error.body_text())),
        }
    }
}

/// What `If-Match` says (RFC 9110 section 13.1.1): on which state of a thing a change was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum IfMatch {
    /// `*`: whatever it is like now, said openly.
    Any,
    /// One of these.
    Tags(Vec<String>),
}

impl IfMatch {
    /// Lets a change through that was decided on the state that there is.
    pub(super) fn check(given: Option<&Self>, what: &str, current: &str) -> Result<(), Problem> {
        match given {
            None => {
                let why = format!(
                    "say which state of {what} this is about: If-Match with the ETag that was read, or * for any; \
                     two people must not overwrite each other"
                );
                Err(Problem::new(StatusCode::PRECONDITION_REQUIRED, why).about("If-Match"))
            }
            Some(Self::Any) => Ok(()),
            Some(Self::Tags(tags)) if tags.iter().any(|tag| tag == current) => Ok(()),
            Some(Self::Tags(_)) => {
                let why = format!("{what} is at \"{current}\" now: it was changed since; read it again");
                Err(Problem::new(StatusCode::PRECONDITION_FAILED, why).about("If-Match"))
            }
        }
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Head, _: &S) -> Result<Option<Self>, Problem> {
        let mut tags = Vec::new();
        let mut given = false;
        for value in parts.headers.get_all(header::IF_MATCH) {
            given = true;
            let text = value.to_str().unwrap_or_default().trim();
            if text == "*" {
                return Ok(Some(Self::Any));
            }
            for tag in text.split(',') {
                let tag = tag.trim();
                // A weak one never matches here (RFC 9110 section 13.1.1).
                if tag.strip_prefix("W/").and_then(quoted).is_some() {
                    continue;
                }
                let Some(tag) = quoted(tag) else {
                    return Err(Problem::field("If-Match", "is no ETag, such as \"3\", and not *".to_owned()));
                };
                tags.push(tag.to_owned());
            }
        }
        Ok(given.then_some(Self::Tags(tags)))
    }
}

fn quoted(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    (!inner.contains('"')).then_some(inner)
}
