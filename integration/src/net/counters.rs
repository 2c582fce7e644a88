//! Counters of the switch, kept by the kernel: one for every ordered pair of nodes, over all protocols of IPv4 (a lone SYN
//! counts) and ARP, where each frame comes in, so that dropped ones count too.
use std::{fmt::Write as _, net::Ipv4Addr};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::process::{command, run, run_with_input};

/// What one node sent to another.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct PairCount {
    /// The sender's short name.
    pub from: String,
    /// The receiver's short name.
    pub to: String,
    /// Packets, ARP included.
    pub packets: u64,
    /// Bytes, ARP included.
    pub bytes: u64,
}

/// Puts the counters in.
pub(super) fn install(switch: &str, nodes: &[(&str, Ipv4Addr)]) -> Result<()> {
    run_with_input(&mut command("ip", ["netns", "exec", switch, "nft", "-f", "-"]), &rules(nodes))
        .map(drop)
        .context("put counters into the switch (needs nftables: apt-get install nftables)")
}

fn rules(nodes: &[(&str, Ipv4Addr)]) -> String {
    let mut counters = String::new();
    let mut rules = String::new();
    for ((from, source), (to, target)) in pairs(nodes) {
        let _ = writeln!(counters, "  counter {from}_{to} {{ }}");
        let _ = writeln!(rules, "    ip saddr {source} ip daddr {target} counter name {from}_{to}");
        let _ = writeln!(rules, "    arp saddr ip {source} arp daddr ip {target} counter name {from}_{to}");
    }
    format!(
        "table bridge lab {{\n{counters}  chain seen {{\n    type filter hook prerouting priority -300; policy accept;\n\
         {rules}  }}\n}}\n"
    )
}

type Pair<'a> = ((&'a str, Ipv4Addr), (&'a str, Ipv4Addr));

fn pairs<'a>(nodes: &'a [(&'a str, Ipv4Addr)]) -> impl Iterator<Item = Pair<'a>> {
    nodes.iter().flat_map(move |from| nodes.iter().filter(move |to| *to != from).map(move |to| (*from, *to)))
}

/// Reads the counters.
pub(super) fn read(switch: &str, nodes: &[(&str, Ipv4Addr)]) -> Result<Vec<PairCount>> {
    let text = run(&mut command("ip", ["netns", "exec", switch, "nft", "-j", "list", "counters", "table", "bridge", "lab"]))?;
    parse(&text, nodes)
}

fn parse(text: &str, nodes: &[(&str, Ipv4Addr)]) -> Result<Vec<PairCount>> {
    let shown: serde_json::Value = serde_json::from_str(text).context("parse nft's answer")?;
    let list = shown["nftables"].as_array().context("nft's answer holds no list")?;
    pairs(nodes)
        .map(|((from, _), (to, _))| {
            let name = format!("{from}_{to}");
            let counter = list
                .iter()
                .map(|item| &item["counter"])
                .find(|counter| counter["name"] == name.as_str())
                .ok_or_else(|| anyhow!("the kernel has no counter {name}"))?;
            let value = |key: &str| counter[key].as_u64().with_context(|| format!("counter {name} has no {key}"));
            Ok(PairCount { from: from.into(), to: to.into(), packets: value("packets")?, bytes: value("bytes")? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: [(&str, Ipv4Addr); 2] = [("a1", Ipv4Addr::new(10, 77, 1, 1)), ("b1", Ipv4Addr::new(10, 77, 2, 1))];

    #[test]
    fn every_ordered_pair_is_counted_whatever_the_protocol() {
        let rules = rules(&NODES);
        assert!(rules.contains("ip saddr 10.77.1.1 ip daddr 10.77.2.1 counter name a1_b1"));
        assert!(rules.contains("arp saddr ip 10.77.2.1 arp daddr ip 10.77.1.1 counter name b1_a1"));
        assert!(!rules.contains("tcp"));
    }

    #[test]
    fn a_missing_counter_is_an_error_and_not_a_zero() {
        let answer = r#"{"nftables":[{"metainfo":{}},{"counter":{"name":"a1_b1","packets":3,"bytes":180}}]}"#;
        assert!(parse(answer, &NODES).unwrap_err().to_string().contains("b1_a1"));
    }
}
