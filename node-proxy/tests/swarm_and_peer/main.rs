//! Both ends of the peer protocol against each other, over TCP on loopback. Bytes are in memory.
#![allow(clippy::unwrap_used, missing_docs)]

mod fetching;
mod files;
mod limits;
mod model;
mod refusing;
mod secured;
mod serving;
mod simulated;
mod support;
