//! One run of the lab: its name and its directories.
//!
//! The name says who owns what the run makes (`shoal-<pid>t<start time>n<count>-…`), so that a later run can tell the
//! leftovers of a crash from things in use. What is big lives under `.lab` in the checkout (or `SHOAL_LAB_DIR`), what must
//! have a short path (sockets) under `/run/shoal-lab`.
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result};

/// Starts the name of every namespace the lab makes.
pub const PREFIX: &str = "shoal-";

/// Sockets of all runs.
pub const RUNTIME_ROOT: &str = "/run/shoal-lab";

/// Where the lab keeps tools, images and the state of runs.
pub fn lab_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("SHOAL_LAB_DIR").filter(|dir| !dir.is_empty()) {
        return PathBuf::from(dir);
    }
    checkout().join(".lab")
}

/// The checkout that this binary was built from, or the current directory when that is gone.
pub fn checkout() -> PathBuf {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    if built_in.is_dir() { built_in.to_owned() } else { PathBuf::from(".") }
}

/// The name of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunId {
    pid: u32,
    start: u64,
    count: u32,
}

impl RunId {
    /// A name that no other run of this process and no other live process has.
    ///
    /// # Errors
    /// When `/proc` can't be read.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        let start = start_time(pid).context("read own start time from /proc")?;
        Ok(Self { pid, start, count: COUNT.fetch_add(1, Ordering::Relaxed) })
    }

    /// The name at the start of `text`, which ends there or goes on with `-`.
    pub fn parse(text: &str) -> Option<Self> {
        let id = text.split('-').next()?;
        let (pid, rest) = id.split_once('t')?;
        let (start, count) = rest.split_once('n')?;
        Some(Self { pid: pid.parse().ok()?, start: start.parse().ok()?, count: count.parse().ok()? })
    }

    /// Whether this process made the run.
    pub fn is_of_this_process(&self) -> bool {
        self.pid == std::process::id() && self.owner_lives()
    }

    /// Whether the process that made this run still lives.
    pub fn owner_lives(&self) -> bool {
        start_time(self.pid) == Some(self.start)
    }
}

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}t{}n{}", self.pid, self.start, self.count)
    }
}

/// Field 22 of `/proc/<pid>/stat`: when the process started, in ticks since boot. `None` when there is no such process, or
/// only its zombie.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = &stat[stat.rfind(')')? + 2..];
    let mut fields = after_name.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The directories of a run; both are removed when it is dropped, unless it was told to keep the state.
#[derive(Debug)]
pub struct RunDirs {
    /// Whose directories these are.
    pub id: RunId,
    /// State: stores, logs, configs.
    pub state: PathBuf,
    /// Sockets.
    pub runtime: PathBuf,
    keep: bool,
}

impl RunDirs {
    /// Makes the directories of a new run.
    ///
    /// # Errors
    /// When they can't be made.
    pub fn create() -> Result<Self> {
        let id = RunId::new()?;
        let state = runs_dir().join(id.to_string());
        let runtime = Path::new(RUNTIME_ROOT).join(id.to_string());
        for dir in [&state, &runtime] {
            fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        Ok(Self { id, state, runtime, keep: std::env::var_os("SHOAL_LAB_KEEP").is_some() })
    }

    /// Leaves state and logs on disk for a look afterwards (`SHOAL_LAB_KEEP` does the same).
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for RunDirs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.runtime);
        if self.keep {
            eprintln!("lab: kept {}", self.state.display());
        } else if let Err(error) = fs::remove_dir_all(&self.state) {
            tracing::warn!(dir = %self.state.display(), %error, "remove state of the run");
        }
    }
}

/// Where the states of runs are.
pub(crate) fn runs_dir() -> PathBuf {
    lab_dir().join("run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_found_again_in_the_name_of_its_namespace() {
        let id = RunId::new().unwrap();
        assert_eq!(RunId::parse(&format!("{id}-a1")), Some(id.clone()));
        assert!(id.owner_lives());
    }

    #[test]
    fn a_run_whose_pid_was_given_to_another_process_is_dead() {
        let id = RunId { pid: std::process::id(), start: 1, count: 0 };
        assert!(!id.owner_lives());
        assert_eq!(RunId::parse("something-else"), None);
    }
}
