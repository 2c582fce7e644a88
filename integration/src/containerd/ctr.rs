//! The real `ctr`, at any socket.
use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    net::Netns,
    process::{Daemon, output},
};

/// Calls `ctr`; many may at once.
#[derive(Debug, Clone)]
pub struct Ctr {
    pub(super) program: PathBuf,
    pub(super) ns: Netns,
    pub(super) socket: PathBuf,
    pub(super) root_ca: PathBuf,
}

impl Ctr {
    /// Runs it to its end and gives what it printed, byte for byte.
    ///
    /// # Errors
    /// What `ctr` said.
    pub async fn run(&self, args: &[&str]) -> Result<Vec<u8>> {
        let mut command = self.command(args);
        let done = tokio::task::spawn_blocking(move || output(&mut command)).await??;
        if !done.status.success() {
            bail!("ctr {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr).trim());
        }
        Ok(done.stdout)
    }

    /// The same, as text.
    ///
    /// # Errors
    /// What `ctr` said, or that it printed no text.
    pub async fn text(&self, args: &[&str]) -> Result<String> {
        String::from_utf8(self.run(args).await?).with_context(|| format!("what ctr {} printed", args.join(" ")))
    }

    /// Starts one that goes on; what it says goes to `log`.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(&self, args: &[&str], log: &Path) -> Result<Daemon> {
        Daemon::spawn("ctr", self.command(args), log)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.ns.command(&self.program);
        command.arg("--address").arg(&self.socket).args(["--namespace", "k8s.io"]).args(args);
        command.env("SSL_CERT_FILE", &self.root_ca);
        command
    }
}
