//! How the world reaches control: nodes by gRPC, people and programs by REST.
//!
//! Owns addresses, wire types and the translation of errors; decides nothing. Rules are in [`crate::clusters`],
//! [`crate::nodes`] and [`crate::swarm`].

pub mod grpc;
pub mod rest;
