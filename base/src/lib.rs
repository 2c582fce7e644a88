//! What both daemons need and what has no domain noun: configuration, telemetry, metrics, listeners, TLS, limits, privileges, drain,
//! back-off and units. Knows nothing of blobs, nodes or clusters, and imports no other crate of the workspace.

pub mod backoff;
pub mod config;
pub mod drain;
pub mod few;
pub mod limit;
pub mod listen;
pub mod metrics;
pub mod pages;
pub mod privileges;
pub mod sparse;
pub mod telemetry;
pub mod tls;
pub mod units;
