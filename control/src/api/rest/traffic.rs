//! Bytes by source over time.

use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Parts;
use super::caller::Viewer;
use super::document::Reading;
use super::extract::Query;
use super::problem::Problem;
use super::time::rfc3339;
use crate::nodes::{STEP, STEPS};

/// Minutes that are shown unless asked otherwise, and at most.
const MINUTES: u32 = (STEPS * STEP.as_secs() / 60) as u32;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TrafficQuery {
    /// Of this cluster alone: its id or name.
    cluster: Option<String>,
    /// Of so many minutes.
    #[param(minimum = 1, maximum = 60, default = 60)]
    minutes: Option<u32>,
}

/// What nodes said that they fetched or gave, in steps. Steps from before control started are not there.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TrafficView {
    /// How long a step is.
    #[schema(minimum = 1)]
    step_seconds: u64,
    /// The oldest first; the last one is not over.
    steps: Vec<StepView>,
}

/// Bytes of one step.
#[derive(Debug, Serialize, ToSchema)]
struct StepView {
    /// When it began.
    #[schema(format = DateTime)]
    at: String,
    /// Read from the origin.
    #[schema(minimum = 0)]
    bytes_from_origin: u64,
    /// Read from peers.
    #[schema(minimum = 0)]
    bytes_from_peers: u64,
    /// Served from the nodes' own disks.
    #[schema(minimum = 0)]
    bytes_local: u64,
}

/// Bytes by source in the last hour, of all clusters that the caller reaches
#[utoipa::path(get, path = "/api/v1/traffic", operation_id = "get_traffic", tag = "nodes", security(("token" = [])), params(TrafficQuery),
    responses((status = 200, description = "Steps of some seconds.", body = TrafficView), Reading))]
pub(super) async fn show(
    Viewer(caller): Viewer,
    State(parts): State<Parts>,
    Query(query): Query<TrafficQuery>,
) -> Result<Json<TrafficView>, Problem> {
    let minutes = query.minutes.unwrap_or(MINUTES);
    if !(1..=MINUTES).contains(&minutes) {
        return Err(Problem::field("minutes", format!("{minutes} is not from 1 to {MINUTES}")));
    }
    let wanted = query.cluster.as_deref().map(|name| parts.filter(&caller, name)).transpose()?;
    let steps = parts.nodes.traffic(u64::from(minutes) * 60 / STEP.as_secs(), |cluster| match (&wanted, cluster) {
        (Some(wanted), cluster) => cluster == Some(wanted),
        (None, Some(cluster)) => caller.reaches(cluster),
        (None, None) => caller.reaches_all(),
    });
    let (now, count) = (SystemTime::now(), u32::try_from(steps.len()).unwrap_or(u32::MAX));
    let step = |(at, bytes): (u32, crate::nodes::Bytes)| StepView {
        at: rfc3339(now - STEP * (count - at)),
        bytes_from_origin: bytes.origin,
        bytes_from_peers: bytes.peers,
        bytes_local: bytes.local,
    };
    let steps = (0..).zip(steps).map(step).collect();
    Ok(Json(TrafficView { step_seconds: STEP.as_secs(), steps }))
}
