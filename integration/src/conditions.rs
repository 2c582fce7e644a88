//! What a daemon is started under for one scene, beside its settings: another boot of the machine, a clock of its own, a
//! setting that only this scene wants.
use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{clock::Clock, net::Netns};

/// Conditions of one start. The default is: none.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    /// A file that stands for `/proc/sys/kernel/random/boot_id`: the machine was booted anew.
    pub boot_id: Option<PathBuf>,
    /// The wall clock that the daemon sees.
    pub clock: Option<Clock>,
    /// More settings, `key.path=value`.
    pub settings: Vec<String>,
}

impl Conditions {
    /// Whether there are none.
    pub fn are_usual(&self) -> bool {
        self.boot_id.is_none() && self.clock.is_none() && self.settings.is_empty()
    }

    /// A command that runs inside the namespace, under these conditions.
    pub(crate) fn command(&self, ns: &Netns, program: &Path, args: &[&str]) -> Command {
        let mut command = match &self.boot_id {
            None => ns.command(program),
            Some(file) => {
                // `ip netns exec` gives the process a mount namespace of its own.
                let over = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
                let mut shell = ns.command(Path::new("/bin/sh"));
                shell.args(["-c", over]).arg(file).arg(program);
                shell
            }
        };
        command.args(args);
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        if let Some(clock) = &self.clock {
            command.envs(clock.environment());
        }
        command
    }
}
