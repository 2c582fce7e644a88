//! What the routes of tokens, members and the audit log share.

pub(super) mod api_tokens;
pub(super) mod audit;
pub(super) mod join_tokens;
pub(super) mod members;

use std::sync::Arc;

use axum::http::StatusCode;
use shoal_proto::ClusterId;

use super::Parts;
use super::nodes::NodeRole;
use super::problem::Problem;
use crate::clusters;
use crate::identity::{AccessError, Error, Identity};

impl From<AccessError> for Problem {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::Refused { field, reason } => Self::field(field, reason),
            AccessError::Store(error) => unavailable(&error),
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused { field, reason } => Self::field(field, reason),
            Error::NoMember(_) => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            Error::Overtaken(_) => {
                Self::new(StatusCode::PRECONDITION_FAILED, format!("{error}; read it again")).about("If-Match")
            }
            other => unavailable(&other),
        }
    }
}

fn unavailable(error: &(dyn std::error::Error + 'static)) -> Problem {
    let cause = error.source().map(ToString::to_string);
    tracing::error!(%error, cause, "a change of tokens or members failed");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, format!("nothing was changed: {error}"))
}

fn identity(parts: &Parts) -> Result<&Arc<Identity>, Problem> {
    let why = "this control service runs with tls = \"off\": nodes have no certificates and need no tokens";
    parts.identity.as_ref().ok_or_else(|| Problem::new(StatusCode::CONFLICT, why))
}

/// The id of a cluster that is named by id or name.
fn cluster_id(parts: &Parts, field: &str, name: &str) -> Result<ClusterId, Problem> {
    let set = parts.clusters.current();
    let found = set.find(name).map(|cluster| cluster.id.clone());
    found.ok_or_else(|| Problem::field(field, clusters::Error::NotFound(name.to_owned()).to_string()))
}

pub(super) fn cluster_name(parts: &Parts, id: &ClusterId) -> String {
    parts.clusters.current().get(id).map_or_else(|| id.to_string(), |cluster| cluster.name.clone())
}

const fn role(seed: bool) -> NodeRole {
    if seed { NodeRole::Seed } else { NodeRole::Node }
}
