//! A port that a firewall closes without a word: packets to it are dropped.
use std::path::Path;

use anyhow::{Context, Result};

use super::Netns;
use crate::process::{find_program, run, run_with_input};

/// The table of rules that closes it.
const TABLE: &str = "shoal_lab_closed";

/// Closed until it is dropped.
#[derive(Debug)]
pub struct ClosedPort(Netns);

impl Netns {
    /// Drops every packet to a TCP port of this machine, of connections that are open too.
    ///
    /// # Errors
    /// When the kernel's rules can't be set.
    pub fn close_port(&self, port: u16) -> Result<ClosedPort> {
        let chain = format!("type filter hook input priority 0; tcp dport {port} drop;");
        let rules = format!("table inet {TABLE} {{\n chain closed {{\n {chain}\n }}\n}}\n");
        let nft = find_program("nft").context("nft is missing: run `make tools`")?;
        run_with_input(self.command(&nft).args(["-f", "-"]), &rules).context("close a port")?;
        Ok(ClosedPort(self.clone()))
    }
}

impl Drop for ClosedPort {
    fn drop(&mut self) {
        let nft = find_program("nft").unwrap_or_else(|| Path::new("nft").to_owned());
        if let Err(error) = run(self.0.command(&nft).args(["delete", "table", "inet", TABLE])) {
            tracing::warn!(error = %format!("{error:#}"), "open a port again");
        }
    }
}
