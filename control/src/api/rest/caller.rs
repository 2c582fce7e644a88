//! Who asks: the API token of a request, and what it lets its bearer do.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts as Head;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use shoal_proto::ClusterId;

use super::Parts;
use super::problem::Problem;
use crate::identity::{Caller, Role};

/// Lets a request through whose token is known, and notes whose it is. Everything below `/api` passes here.
pub(super) async fn known(State(parts): State<Parts>, mut request: Request, next: Next) -> Response {
    let header = request.headers().get(header::AUTHORIZATION);
    let token = header.and_then(|value| value.to_str().ok()).and_then(bearer);
    let Some(caller) = token.and_then(|token| parts.access.caller(token)) else {
        let why = match (header, token) {
            (None, _) => "an API token is needed: Authorization: Bearer <token>",
            (Some(_), None) => "Authorization is not Bearer <token>",
            (Some(_), Some(_)) => "the API token is not known, or its time is over",
        };
        let mut response = Problem::new(StatusCode::UNAUTHORIZED, why).into_response();
        let challenge = HeaderValue::from_static("Bearer realm=\"shoal-control\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        return response;
    };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// The scheme is read without regard to case (RFC 9110 section 11.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn at_least(head: &Head, role: Role) -> Result<Caller, Problem> {
    // Without the layer above a route would be nobody's, not everybody's.
    let caller = head.extensions.get::<Caller>().cloned();
    let caller = caller.ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, "an API token is needed"))?;
    if caller.role < role {
        let why =
            format!("the token {:?} is that of a {}; this needs {}", caller.name, caller.role.as_str(), role.as_str());
        return Err(Problem::new(StatusCode::FORBIDDEN, why));
    }
    Ok(caller)
}

macro_rules! role {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub(super) struct $name(pub(super) Caller);

        impl<S: Send + Sync> FromRequestParts<S> for $name {
            type Rejection = Problem;

            async fn from_request_parts(head: &mut Head, _: &S) -> Result<Self, Problem> {
                at_least(head, Role::$name).map(Self)
            }
        }
    };
}

role! {
    /// Somebody who may read.
    Viewer
}
role! {
    /// Somebody who may change clusters and nodes.
    Operator
}
role! {
    /// Somebody who may make tokens.
    Admin
}

/// Refuses a caller who is kept to some clusters.
pub(super) fn reaches_all(caller: &Caller) -> Result<(), Problem> {
    if caller.reaches_all() {
        return Ok(());
    }
    let why = format!("the token {:?} is kept to some clusters, and this is about all of them", caller.name);
    Err(Problem::new(StatusCode::FORBIDDEN, why))
}

/// Refuses a caller who does not reach that cluster, or any of no cluster.
pub(super) fn reaches(caller: &Caller, cluster: Option<&ClusterId>) -> Result<(), Problem> {
    match cluster {
        Some(cluster) if caller.reaches(cluster) => Ok(()),
        Some(_) => {
            let why = format!("the token {:?} does not reach this cluster", caller.name);
            Err(Problem::new(StatusCode::FORBIDDEN, why))
        }
        None => reaches_all(caller),
    }
}
