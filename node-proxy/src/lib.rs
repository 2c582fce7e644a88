//! `shoal-node`: gives containerd a local source of image bytes that reads from peers instead of the registry.
//!
//! The rooms, in the order in which a pull walks through them, and who may import whom, are in `docs/architecture.md`;
//! `integration/tests/import_rules.rs` holds them.

pub mod admin;
pub mod app;
pub mod blob;
pub mod config;
pub mod containerd;
pub mod control;
pub mod install;
pub mod mirror;
pub mod origin;
pub mod peer;
pub mod store;
pub mod swarm;
