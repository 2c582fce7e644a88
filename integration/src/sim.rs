//! The simulator: one blob to many nodes in simulated time.
//!
//! Decisions are those of the daemons themselves: `control::swarm::State` names candidates and grants permits,
//! `node_proxy::swarm`'s crew and board choose parents and pieces, `node_proxy::peer::show` chooses what a parent shows.
//! What is modelled here is what lies between them: links with rate and delay, the origin, crashes, and the plain steps
//! that the daemons' loops take around their decisions (`flight`, `child` and `parent`; each names its counterpart).
//!
//! What always holds: one thread, no clock and no randomness but the plan's seed, so that a plan gives the same events
//! byte for byte; their hash is part of the outcome. A run in which a node gets stuck is an error that names the node.
//!
//! This is the only module of the lab that sees the daemons' code; the rest judges them from outside.

mod child;
mod cli;
mod event;
mod fate;
mod flight;
mod hub;
mod links;
mod moment;
mod node;
mod outcome;
mod parent;
mod plan;
mod queue;
mod world;

use std::time::Instant;

use anyhow::Result;

pub use cli::{Options, simulate};
pub use moment::Moment;
pub use outcome::Outcome;
pub use plan::{Plan, Rate, quarter_piece};

/// Simulates one plan, to the end of the last node.
///
/// # Errors
/// A plan that makes no sense, or a node that never is done: its state is in the error.
pub fn run(plan: &Plan) -> Result<Outcome> {
    play(plan, false)
}

/// The same. `watched`: [`Outcome::timeline`] is filled, which takes a look at all blocks of all nodes twenty times.
fn play(plan: &Plan, watched: bool) -> Result<Outcome> {
    let began = Instant::now();
    let mut world = world::World::new(plan)?;
    world.watched = watched;
    world.run()?;
    Ok(Outcome::of(world, began.elapsed().as_secs_f64()))
}
