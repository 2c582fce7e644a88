//! The lab: clusters of real nodes on one machine.
//!
//! Each node is a network namespace with its own containerd and its own `shoal-node`; one more holds the control service, one
//! the origin (`docker-registry` behind a token server, on a shaped link), one the switch between them. Nothing is mocked.
//! The lab judges the daemons from outside: by the origin's access log, by counters in the kernel, by containerd's own log and
//! content store, by exported traces. It imports neither daemon, only their wire contracts; the one exception is the
//! simulator ([`sim`]), which drives their pure decisions in simulated time.
//!
//! Everything is named after the run ([`run`]), and taken down when the run ends; what a crashed run left is found by that
//! name and removed by the next ([`sweep`]).

pub mod aftermath;
pub mod bench;
pub mod browser;
pub mod chaos;
pub mod check;
pub mod clock;
pub mod conditions;
pub mod containerd;
pub mod control;
pub mod cri;
pub mod crowd;
pub mod demo;
pub mod disk;
pub mod facts;
pub mod fault_proxy;
pub mod faults;
pub mod flood;
pub mod forge;
pub mod http;
pub mod image;
pub mod impostor;
pub mod liar;
pub mod memory;
pub mod messages;
pub mod mirror;
pub mod net;
pub mod node;
pub mod otlp;
pub mod papers;
pub mod process;
pub mod progress;
pub mod raw;
pub mod registry;
pub mod report;
pub mod resets;
pub mod rights;
pub mod run;
pub mod secrets;
pub mod sim;
pub mod sweep;
pub mod tls;
pub mod token;
pub mod tools;
pub mod wait;
pub mod world;
