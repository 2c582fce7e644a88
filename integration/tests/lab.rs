//! Scenarios on real parts. Each needs root and the lab's tools, and fails (it never skips) without them: the message tells the
//! command. One at a time: they measure.
#![allow(missing_docs, reason = "tests")]

use std::{fs, future::Future};

use anyhow::Result;
use lab::run::lab_dir;
use nix::fcntl::{Flock, FlockArg};

#[path = "lab/ground.rs"]
mod ground;
#[path = "lab/limits.rs"]
mod limits;
#[path = "lab/scope.rs"]
mod scope;
#[path = "lab/walk.rs"]
mod walk;

/// Runs a scenario alone on this machine.
fn alone(scenario: impl Future<Output = Result<()>>) {
    fs::create_dir_all(lab_dir()).unwrap();
    let file = fs::File::create(lab_dir().join("lock")).unwrap();
    let _lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if let Err(error) = runtime.block_on(scenario) {
        panic!("{error:#}");
    }
}
