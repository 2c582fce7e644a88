use std::cmp::Reverse;

use ipnet::IpNet;
use serde::Serialize;

use super::check::{Compiled, Scopes};
use super::facts::Facts;
use super::index::{Rule, Won};
use super::text::fold;

/// Where a node belongs, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Position in [`Scopes::clusters`]; `None`: the node runs alone and reads the origin.
    pub cluster: Option<usize>,
    /// One sentence for people: what matched, or why nothing did.
    pub reason: String,
}

/// A decision with everything that it was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Name of the cluster; `None`: alone.
    pub cluster: Option<String>,
    /// As in [`Decision`].
    pub reason: String,
    /// Every cluster of the set, the best match first, those that match on nothing last. The first is not the winner
    /// where a pin or the default decides.
    pub considered: Vec<Considered>,
}

/// What a cluster matched on, each as the cluster's scope has it; `None`: it did not match on that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Considered {
    /// Name.
    pub cluster: String,
    /// Longest of its networks that holds the node's address.
    pub cidr: Option<String>,
    /// The alternative that is the node's IDC.
    pub idc: Option<String>,
    /// Its location path, a prefix of the node's.
    pub location: Option<String>,
}

impl Scopes {
    /// Decides for one node. A blank `pin` is none. Costs the same however many clusters there are.
    pub fn decide(&self, facts: &Facts, pin: Option<&str>) -> Decision {
        if let Some(pin) = pin.map(str::trim).filter(|pin| !pin.is_empty()) {
            return self.pinned(pin);
        }
        match (self.index.best(facts), self.index.default_cluster()) {
            (Some(won), _) => Decision { cluster: Some(won.cluster), reason: self.reason(won, facts) },
            (None, Some(default)) => {
                let reason = format!("no scope matches; {} is the default", self.clusters[default].name);
                Decision { cluster: Some(default), reason }
            }
            (None, None) => {
                let reason = "no scope matches and there is no default cluster; the node runs alone".into();
                Decision { cluster: None, reason }
            }
        }
    }

    /// Decides, and tells of every cluster what it matched on. Costs a look at every scope: for people, not for sweeps.
    pub fn explain(&self, facts: &Facts, pin: Option<&str>) -> Explanation {
        let Decision { cluster, reason } = self.decide(facts, pin);
        let considered = self
            .ranked(facts)
            .into_iter()
            .map(|(position, matched)| {
                let cluster = &self.clusters[position];
                Considered {
                    cluster: cluster.name.clone(),
                    cidr: matched.cidr.map(|network| network.to_string()),
                    idc: matched.idc.map(|i| cluster.idcs[i].shown.clone()),
                    location: (matched.depth > 0).then(|| cluster.location.shown.clone()),
                }
            })
            .collect();
        Explanation { cluster: cluster.map(|position| self.clusters[position].name.clone()), reason, considered }
    }

    fn pinned(&self, pin: &str) -> Decision {
        let cluster = self.index.named(&fold(pin));
        let reason = match cluster {
            Some(position) => format!("pinned to {} by the node's config", self.clusters[position].name),
            None => {
                format!("pinned to {pin:?} by the node's config, and there is no such cluster; the node runs alone")
            }
        };
        Decision { cluster, reason }
    }

    fn reason(&self, won: Won, facts: &Facts) -> String {
        let cluster = &self.clusters[won.cluster];
        let name = &cluster.name;
        let mut reason = match won.rule {
            Rule::Cidr => match cluster.longest(facts) {
                Some(network) => format!("{} is in {network} of {name}", facts.ip),
                None => format!("{} is in a network of {name}", facts.ip),
            },
            Rule::Idc => format!("{name} names IDC {}", facts.idc()),
            Rule::IdcAndLocation => {
                format!("{name} names IDC {} and location {}", facts.idc(), cluster.location.shown)
            }
            Rule::Location => format!("{name} names location {}", cluster.location.shown),
        };
        match won.tied {
            0 => {}
            1 => reason.push_str("; another cluster matches equally well and is younger"),
            n => reason.push_str(&format!("; {n} other clusters match equally well and are younger")),
        }
        reason
    }

    /// The rules of DESIGN section 6 as they are written there: every cluster is looked at and they are sorted. This is
    /// what [`super::index::Index`] must agree with.
    pub(super) fn ranked(&self, facts: &Facts) -> Vec<(usize, Matched)> {
        let mut ranked: Vec<(usize, Matched)> =
            self.clusters.iter().map(|cluster| cluster.matched(facts)).enumerate().collect();
        ranked.sort_by_key(|(position, matched)| (Reverse(matched.strength()), *position));
        ranked
    }
}

/// What one cluster matched on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matched {
    pub(super) cidr: Option<IpNet>,
    /// Which alternative.
    pub(super) idc: Option<usize>,
    /// Elements of the location path, 0 for no match.
    pub(super) depth: usize,
}

impl Matched {
    fn strength(&self) -> (Option<u8>, bool, usize) {
        (self.cidr.map(|network| network.prefix_len()), self.idc.is_some(), self.depth)
    }

    /// Whether there is anything that ties the node to the cluster.
    #[cfg(test)]
    pub(super) fn on_anything(&self) -> bool {
        self.strength() != (None, false, 0)
    }
}

impl Compiled {
    fn matched(&self, facts: &Facts) -> Matched {
        Matched {
            cidr: self.longest(facts),
            idc: self.idcs.iter().position(|idc| idc.key == facts.idc_key),
            depth: if self.location.is_prefix_of(&facts.path) { self.location.depth() } else { 0 },
        }
    }

    fn longest(&self, facts: &Facts) -> Option<IpNet> {
        self.networks.iter().filter(|network| network.contains(&facts.ip)).max_by_key(|n| n.prefix_len()).copied()
    }
}
