//! Links that are cut, and machines that do not hear each other.
use std::{net::Ipv4Addr, path::Path};

use anyhow::{Context, Result};

use super::{Net, Netns};
use crate::process::{command, find_program, run, run_with_input};

/// A link that is down until it is dropped.
#[derive(Debug)]
pub struct CutLink {
    switch: String,
    port: String,
}

impl Net {
    /// Takes the link of a machine down, as a cable that is pulled: both ends lose their carrier.
    ///
    /// # Errors
    /// When there is no such machine, or `ip` fails.
    pub fn cut(&self, name: &str) -> Result<CutLink> {
        self.namespace(name)?;
        run(&mut command("ip", ["-n", &self.switch, "link", "set", name, "down"])).context("cut a link")?;
        Ok(CutLink { switch: self.switch.clone(), port: name.to_owned() })
    }
}

impl Drop for CutLink {
    fn drop(&mut self) {
        if let Err(error) = run(&mut command("ip", ["-n", &self.switch, "link", "set", &self.port, "up"])) {
            tracing::warn!(error = %format!("{error:#}"), "mend a link");
        }
    }
}

/// Two machines that do not hear each other until it is dropped; all others hear both.
#[derive(Debug)]
pub struct Parted {
    ns: Netns,
    table: String,
}

impl Netns {
    /// Drops every packet from and to an address, of connections that are open too.
    ///
    /// # Errors
    /// When the kernel's rules can't be set.
    pub fn part_from(&self, other: Ipv4Addr) -> Result<Parted> {
        let table = format!("shoal_lab_parted_{}", other.to_bits());
        let chain = |hook: &str, rule: &str| {
            format!(" chain {hook} {{\n type filter hook {hook} priority 0; {rule} drop;\n }}\n")
        };
        let (from, to) = (format!("ip saddr {other}"), format!("ip daddr {other}"));
        let rules = format!("table inet {table} {{\n{}{}}}\n", chain("input", &from), chain("output", &to));
        let nft = find_program("nft").context("nft is missing: run `make tools`")?;
        run_with_input(self.command(&nft).args(["-f", "-"]), &rules).context("part two machines")?;
        Ok(Parted { ns: self.clone(), table })
    }
}

impl Drop for Parted {
    fn drop(&mut self) {
        let nft = find_program("nft").unwrap_or_else(|| Path::new("nft").to_owned());
        if let Err(error) = run(self.ns.command(&nft).args(["delete", "table", "inet", &self.table])) {
            tracing::warn!(error = %format!("{error:#}"), "let two machines hear each other again");
        }
    }
}
