//! What flies now, for people.

use serde::Serialize;

use super::Engine;
use super::flight::{Flight, From};

/// How far a flight is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// What it fetches.
    pub digest: String,
    /// Bytes of the whole; `None` until somebody has said it.
    pub size: Option<u64>,
    /// Bytes that are verified and on disk.
    pub here: u64,
    /// Of these, from peers in this flight.
    pub from_peers: u64,
    /// Of these, from the registry in this flight; the rest was there before.
    pub from_origin: u64,
    /// Readers on this node that wait for it.
    pub readers: usize,
}

impl Engine {
    /// Every flight, by digest.
    pub fn progress(&self) -> Vec<Progress> {
        let flights: Vec<_> = self.0.flights.lock().values().cloned().collect();
        let mut all: Vec<Progress> =
            flights.iter().filter(|flight| !flight.is_over()).map(|flight| of(flight)).collect();
        all.sort_by(|one, other| one.digest.cmp(&other.digest));
        all
    }
}

fn of(flight: &Flight) -> Progress {
    let (mut here, mut from_peers, mut from_origin) = (0, 0, 0);
    let layout = flight.body(|body| {
        for block in body.have.runs().iter().flat_map(shoal_proto::frame::Run::blocks) {
            let len = body.layout.block_len(block) as u64;
            here += len;
            match body.from(block) {
                Some(From::Peer) => from_peers += len,
                Some(From::Origin) => from_origin += len,
                None => {}
            }
        }
        body.layout
    });
    Progress {
        digest: flight.digest().to_string(),
        size: layout.map(|layout| layout.size()).or(flight.size_hint.get().copied()),
        here,
        from_peers,
        from_origin,
        readers: flight.readers(),
    }
}
