//! Routes of live nodes.

use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use shoal_proto::{ClusterId, NodeId};

use super::Parts;
use super::caller::{Viewer, reaches};
use crate::nodes;

/// A live node. Byte counts are totals since its process started.
#[derive(Debug, Serialize)]
pub(super) struct NodeView {
    id: NodeId,
    name: String,
    ip: IpAddr,
    idc: String,
    location: String,
    role: &'static str,
    /// Name of its cluster; null: it runs alone.
    cluster: Option<String>,
    cluster_id: Option<ClusterId>,
    /// The cluster that its config names.
    pinned_cluster: Option<String>,
    /// Why it belongs there.
    reason: String,
    epoch: u64,
    peer_addr: SocketAddr,
    version: String,
    /// False: its session broke, and its lease is running out.
    connected: bool,
    /// RFC 3339, UTC.
    connected_since: String,
    last_heartbeat: String,
    /// How long ago that was by the clock of control.
    heartbeat_age_seconds: f64,
    held_blobs: u64,
    store_bytes: u64,
    bytes_from_origin: u64,
    bytes_from_peers: u64,
    bytes_to_peers: u64,
    bytes_local: u64,
    uploads: u32,
    flights: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct NodeList {
    nodes: Vec<NodeView>,
}

pub(super) async fn list(Viewer(caller): Viewer, State(parts): State<Parts>) -> Json<NodeList> {
    let now = SystemTime::now();
    let seen = parts.nodes.list().into_iter().filter(|node| reaches(&caller, node.cluster_id.as_ref()).is_ok());
    let mut nodes: Vec<NodeView> = seen.map(|node| view(node, now)).collect();
    nodes.sort_by(|a, b| (&a.cluster, &a.name, &a.id).cmp(&(&b.cluster, &b.name, &b.id)));
    Json(NodeList { nodes })
}

fn view(node: nodes::NodeView, now: SystemTime) -> NodeView {
    NodeView {
        id: node.id,
        name: node.name,
        ip: node.ip,
        idc: node.idc,
        location: node.location,
        role: match node.role {
            nodes::Role::Node => "node",
            nodes::Role::Seed => "seed",
        },
        cluster: node.cluster_name,
        cluster_id: node.cluster_id,
        pinned_cluster: node.pinned_cluster,
        reason: node.reason,
        epoch: node.epoch,
        peer_addr: node.peer_addr,
        version: node.version,
        connected: node.connected,
        connected_since: rfc3339(node.connected_since),
        last_heartbeat: rfc3339(node.last_heartbeat),
        heartbeat_age_seconds: now.duration_since(node.last_heartbeat).unwrap_or_default().as_secs_f64(),
        held_blobs: node.held_blobs,
        store_bytes: node.store_bytes,
        bytes_from_origin: node.bytes_from_origin,
        bytes_from_peers: node.bytes_from_peers,
        bytes_to_peers: node.bytes_to_peers,
        bytes_local: node.bytes_local,
        uploads: node.uploads,
        flights: node.flights,
    }
}

/// `2026-11-23T12:44:10.250Z`. A time before 1970 is a clock that was never set, and is printed as 1970.
pub(super) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second, milli) = (second / 3600, second / 60 % 60, second % 60, since.subsec_millis());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// Days since 1970-01-01 to a date: Howard Hinnant's `civil_from_days`, for days that are not negative. Years start in
/// March there, so that the leap day is a year's last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn prints_times_as_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
