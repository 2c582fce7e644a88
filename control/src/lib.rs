//! The control service of Shoal: which nodes belong together, and who gives a blob to whom.
//!
//! Rooms, and who may import whom: [`app`] everything; [`api`] and [`console`] import [`clusters`], [`nodes`], [`swarm`],
//! [`preheat`] and [`identity`]; [`preheat`] imports [`swarm`], [`nodes`] and [`store`]; [`swarm`] imports [`nodes`];
//! [`nodes`] imports [`clusters`]; [`clusters`] imports [`scope`] and [`store`]; [`identity`] imports [`store`];
//! [`scope`], [`store`] and [`ctl`] import no other room. Durable things are in the store; who holds what is in memory,
//! and nodes say it again when control restarts. Whoever has settings gets them from [`config`].

pub mod api;
pub mod app;
pub mod clusters;
pub mod config;
pub mod console;
pub mod ctl;
pub mod identity;
pub mod nodes;
pub mod preheat;
pub mod scope;
pub mod store;
pub mod swarm;
