//! Scenarios on real parts. Each needs root and the lab's tools, and fails (it never skips) without them: the message tells the
//! command. One at a time: they measure.
#![allow(missing_docs, reason = "tests")]

use std::{fs, future::Future};

use anyhow::{Context, Result};
use lab::{aftermath::Ground, run::lab_dir};
use nix::fcntl::{Flock, FlockArg};

#[path = "lab/answers.rs"]
mod answers;
#[path = "lab/bad_input.rs"]
mod bad_input;
#[path = "lab/browser.rs"]
mod browser;
#[path = "lab/chaos.rs"]
mod chaos;
#[path = "lab/commands.rs"]
mod commands;
#[path = "lab/content_faults.rs"]
mod content_faults;
#[path = "lab/content_moves.rs"]
mod content_moves;
#[path = "lab/content_plugin.rs"]
mod content_plugin;
#[path = "lab/control_faults.rs"]
mod control_faults;
#[path = "lab/drain.rs"]
mod drain;
#[path = "lab/editions.rs"]
mod editions;
#[path = "lab/ground.rs"]
mod ground;
#[path = "lab/impostors.rs"]
mod impostors;
#[path = "lab/interrupted.rs"]
mod interrupted;
#[path = "lab/liars.rs"]
mod liars;
#[path = "lab/limits.rs"]
mod limits;
#[path = "lab/many_held.rs"]
mod many_held;
#[path = "lab/one_copy.rs"]
mod one_copy;
#[path = "lab/origin_faults.rs"]
mod origin_faults;
#[path = "lab/own_faults.rs"]
mod own_faults;
#[path = "lab/preheat.rs"]
mod preheat;
#[path = "lab/private.rs"]
mod private;
#[path = "lab/rogues.rs"]
mod rogues;
#[path = "lab/scope.rs"]
mod scope;
#[path = "lab/secrets.rs"]
mod secrets;
#[path = "lab/seeds.rs"]
mod seeds;
#[path = "lab/socket.rs"]
mod socket;
#[path = "lab/versions.rs"]
mod versions;
#[path = "lab/walk.rs"]
mod walk;

/// Runs a scenario alone on this machine, and looks for what it leaves.
fn alone(scenario: impl Future<Output = Result<()>>) {
    fs::create_dir_all(lab_dir()).expect("make the lab's directory");
    let file = fs::File::create(lab_dir().join("lock")).expect("make the lab's lock");
    let _lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).expect("take the lab's lock");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("start the runtime");
    let ended = runtime.block_on(async {
        let ground = Ground::take()?;
        scenario.await?;
        ground.is_restored().await.context("after the scenario")
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    if let Err(error) = ended {
        panic!("{error:#}");
    }
}
