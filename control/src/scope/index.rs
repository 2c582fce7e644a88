use std::collections::HashMap;

use super::check::Compiled;
use super::facts::{Facts, Path};
use super::network::bits;

/// Lookup tables, so that a decision costs the same however many clusters there are: ten thousand nodes are decided
/// again at each change of a scope, within the second that a move may take.
///
/// Clusters are positions, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    v4: PrefixTable,
    v6: PrefixTable,
    /// By IDC: among the clusters that name it.
    idcs: HashMap<String, Ladder>,
    /// Among all clusters that have a location.
    locations: Ladder,
    names: HashMap<String, usize>,
    default: Option<usize>,
}

/// What made a cluster win.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    Cidr,
    Idc,
    IdcAndLocation,
    Location,
}

/// The cluster that won, and how many more match equally well but are younger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Won {
    pub(super) cluster: usize,
    pub(super) rule: Rule,
    pub(super) tied: usize,
}

impl Index {
    pub(super) fn build(clusters: &[Compiled]) -> Self {
        let mut index = Self::default();
        for (position, cluster) in clusters.iter().enumerate() {
            for network in &cluster.networks {
                let table = if network.addr().is_ipv4() { &mut index.v4 } else { &mut index.v6 };
                table.insert(bits(network.addr()).0, network.prefix_len(), position);
            }
            for idc in &cluster.idcs {
                index.idcs.entry(idc.key.clone()).or_default().insert(position, &cluster.location);
            }
            index.locations.insert(position, &cluster.location);
            index.names.insert(cluster.name_key.clone(), position);
            if cluster.default {
                index.default = Some(position);
            }
        }
        index
    }

    /// The cluster of that name, in the form that compares.
    pub(super) fn named(&self, key: &str) -> Option<usize> {
        self.names.get(key).copied()
    }

    pub(super) fn default_cluster(&self) -> Option<usize> {
        self.default
    }

    /// The cluster that matches best, if one matches at all.
    pub(super) fn best(&self, facts: &Facts) -> Option<Won> {
        let (address, width) = bits(facts.ip);
        let table = if facts.ip.is_ipv4() { &self.v4 } else { &self.v6 };
        // A network belongs to one cluster, so the longest prefix has no equals to settle.
        if let Some(cluster) = table.longest(address, width) {
            return Some(Won { cluster, rule: Rule::Cidr, tied: 0 });
        }
        if let Some(ladder) = self.idcs.get(&facts.idc_key) {
            if let Some(rung) = ladder.deepest(&facts.path) {
                return Some(rung.won(Rule::IdcAndLocation));
            }
            return ladder.all.map(|rung| rung.won(Rule::Idc));
        }
        self.locations.deepest(&facts.path).map(|rung| rung.won(Rule::Location))
    }
}

/// Networks of one address family by prefix length, the longest first.
#[derive(Debug, Clone, Default)]
struct PrefixTable(Vec<(u8, HashMap<u128, usize>)>);

impl PrefixTable {
    fn insert(&mut self, network: u128, len: u8, cluster: usize) {
        let at = match self.0.binary_search_by(|(other, _)| len.cmp(other)) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, (len, HashMap::new()));
                at
            }
        };
        self.0[at].1.insert(network, cluster);
    }

    fn longest(&self, address: u128, width: u8) -> Option<usize> {
        self.0.iter().find_map(|(len, networks)| {
            let host_bits = u32::from(width - len);
            let network = address.checked_shr(host_bits).unwrap_or(0).checked_shl(host_bits).unwrap_or(0);
            networks.get(&network).copied()
        })
    }
}

/// Clusters by location, for one step of the ranking.
#[derive(Debug, Clone, Default)]
struct Ladder {
    /// Those that are on the ladder, with or without a location.
    all: Option<Rung>,
    /// Those with exactly this location.
    by_path: HashMap<String, Rung>,
}

/// Clusters that are equal at one step: the oldest of them, and how many more.
#[derive(Debug, Clone, Copy)]
struct Rung {
    oldest: usize,
    others: usize,
}

impl Rung {
    fn won(self, rule: Rule) -> Won {
        Won { cluster: self.oldest, rule, tied: self.others }
    }
}

impl Ladder {
    /// Clusters come oldest first, each once.
    fn insert(&mut self, cluster: usize, location: &Path) {
        let alone = Rung { oldest: cluster, others: 0 };
        match &mut self.all {
            Some(rung) => rung.others += 1,
            None => self.all = Some(alone),
        }
        if location.depth() > 0 {
            self.by_path.entry(location.key.clone()).and_modify(|rung| rung.others += 1).or_insert(alone);
        }
    }

    fn deepest(&self, path: &Path) -> Option<Rung> {
        path.prefixes().find_map(|prefix| self.by_path.get(prefix).copied())
    }
}
