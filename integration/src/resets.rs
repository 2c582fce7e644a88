//! RSTs that a port sends, counted by the kernel inside a node's namespace: containerd fails a pull on one.
use anyhow::{Context, Result};

use crate::{
    net::Netns,
    process::{command, run, run_with_input},
};

/// A counter of what a port of a namespace sends with RST set. A connection refused counts as well: only while the port is
/// listened on does the number speak of the listener.
pub struct Resets {
    ns: String,
}

impl Resets {
    /// Counts from now on, from 0.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn of_port(ns: &Netns, port: u16) -> Result<Self> {
        let rules = format!(
            "table ip resets {{ }}\ndelete table ip resets\ntable ip resets {{\n  counter sent {{ }}\n  chain out {{\n    type filter hook \
             output priority 0; policy accept;\n    tcp sport {port} tcp flags & rst == rst counter name sent\n  }}\n}}\n"
        );
        let nft = ["netns", "exec", &ns.full_name, "nft", "-f", "-"];
        run_with_input(&mut command("ip", nft), &rules).context("count resets (needs nftables)")?;
        Ok(Self { ns: ns.full_name.clone() })
    }

    /// How many were sent so far.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn sent(&self) -> Result<u64> {
        let nft = ["netns", "exec", &self.ns, "nft", "-j", "list", "counter", "ip", "resets", "sent"];
        let text = run(&mut command("ip", nft))?;
        let shown: serde_json::Value = serde_json::from_str(&text).context("parse nft's answer")?;
        let list = shown["nftables"].as_array().context("nft's answer holds no list")?;
        list.iter().find_map(|item| item["counter"]["packets"].as_u64()).context("nft's answer holds no counter")
    }
}
