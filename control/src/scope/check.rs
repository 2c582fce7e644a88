use std::collections::HashMap;
use std::fmt;

use ipnet::IpNet;

use super::facts::Path;
use super::index::Index;
use super::network::parse_network;
use super::text::{fold, parts};

/// Longest cluster name, in characters: it is a column in tables and a part of addresses.
const MAX_NAME: usize = 128;

/// What ties nodes to one cluster, as an operator writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterScope {
    /// Age, lower is older, and the older cluster wins a tie: the store's sequence, or the position in a file.
    pub rank: u64,
    /// Unique without regard to case, 1 to 128 characters once trimmed.
    pub name: String,
    /// Whether nodes that match nothing come here.
    pub default: bool,
    /// Alternatives separated by bars; empty for none.
    pub idc: String,
    /// A path separated by bars; empty for none.
    pub location: String,
    /// Networks; host bits don't count.
    pub cidrs: Vec<String>,
}

/// Why a set of clusters is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The clusters that it is about, the older first.
    pub clusters: Vec<String>,
    /// `name`, `default`, `idc`, `location` or `cidrs[i]`; of the last of `clusters`.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.clusters.as_slice() {
            [one] => write!(f, "cluster {one}: {}: {}", self.field, self.reason),
            _ => write!(f, "{}: {}", self.field, self.reason),
        }
    }
}

/// A set of clusters that was accepted, ready to decide.
#[derive(Debug, Clone, Default)]
pub struct Scopes {
    /// Oldest first.
    pub(super) clusters: Vec<Compiled>,
    pub(super) index: Index,
    canonical: Vec<ClusterScope>,
}

/// One accepted cluster in the form that compares.
#[derive(Debug, Clone)]
pub(super) struct Compiled {
    pub(super) name: String,
    pub(super) name_key: String,
    pub(super) default: bool,
    pub(super) idcs: Vec<Alternative>,
    pub(super) location: Path,
    pub(super) networks: Vec<IpNet>,
}

/// One alternative of an IDC scope.
#[derive(Debug, Clone)]
pub(super) struct Alternative {
    pub(super) shown: String,
    pub(super) key: String,
}

impl Scopes {
    /// Accepts a set of clusters, in any order, or says everything that is wrong with it.
    ///
    /// # Errors
    /// Names that are empty or taken, a bad CIDR, an empty alternative or element, one network in two clusters (after
    /// masking), a second default.
    pub fn check(mut scopes: Vec<ClusterScope>) -> Result<Self, Vec<Refusal>> {
        scopes.sort_by_key(|scope| scope.rank);
        let mut refusals = Vec::new();
        let clusters: Vec<Compiled> =
            scopes.iter().enumerate().map(|(i, scope)| compile(i, scope, &mut refusals)).collect();
        refuse_shared(&clusters, &mut refusals);
        if !refusals.is_empty() {
            return Err(refusals);
        }
        let canonical = scopes.iter().zip(&clusters).map(|(scope, compiled)| compiled.canonical(scope.rank)).collect();
        Ok(Self { index: Index::build(&clusters), clusters, canonical })
    }

    /// The clusters, oldest first, as they are understood: trimmed, host bits masked, a network written twice once.
    /// Positions are those that [`super::Decision::cluster`] speaks of.
    pub fn clusters(&self) -> &[ClusterScope] {
        &self.canonical
    }
}

impl Compiled {
    fn canonical(&self, rank: u64) -> ClusterScope {
        ClusterScope {
            rank,
            name: self.name.clone(),
            default: self.default,
            idc: self.idcs.iter().map(|idc| idc.shown.as_str()).collect::<Vec<_>>().join("|"),
            location: self.location.shown.clone(),
            cidrs: self.networks.iter().map(ToString::to_string).collect(),
        }
    }
}

fn compile(position: usize, scope: &ClusterScope, refusals: &mut Vec<Refusal>) -> Compiled {
    let name = scope.name.trim().to_owned();
    // A cluster without a name is named by its place, so that the reason still leads to it.
    let label = if name.is_empty() { format!("number {}", position + 1) } else { name.clone() };
    let mut refuse =
        |field: String, reason: String| refusals.push(Refusal { clusters: vec![label.clone()], field, reason });

    if name.is_empty() {
        refuse("name".into(), "is empty".into());
    } else if name.chars().count() > MAX_NAME {
        refuse("name".into(), format!("longer than {MAX_NAME} characters"));
    } else if name.chars().any(char::is_control) {
        refuse("name".into(), "has a control character in it".into());
    }
    let mut idcs: Vec<Alternative> = Vec::new();
    match parts(&scope.idc) {
        Some(alternatives) => {
            for shown in alternatives {
                let key = fold(shown);
                if !idcs.iter().any(|idc| idc.key == key) {
                    idcs.push(Alternative { shown: shown.into(), key: key.into_owned() });
                }
            }
        }
        None => refuse("idc".into(), format!("{:?} has an empty alternative", scope.idc)),
    }
    let location = Path::parse(&scope.location).unwrap_or_else(|| {
        refuse("location".into(), format!("{:?} has an empty element", scope.location));
        Path::none()
    });
    let mut networks = Vec::with_capacity(scope.cidrs.len());
    for (i, text) in scope.cidrs.iter().enumerate() {
        match parse_network(text) {
            // Written twice in one cluster it is the same fact twice.
            Ok(network) if networks.contains(&network) => {}
            Ok(network) => networks.push(network),
            Err(reason) => refuse(format!("cidrs[{i}]"), reason),
        }
    }
    Compiled { name_key: fold(&name).into_owned(), name, default: scope.default, idcs, location, networks }
}

/// What can't be shared between two clusters: a name, the default, a network.
fn refuse_shared(clusters: &[Compiled], refusals: &mut Vec<Refusal>) {
    let mut refuse = |first: &Compiled, second: &Compiled, field: &str, reason: String| {
        let clusters = vec![first.name.clone(), second.name.clone()];
        refusals.push(Refusal { clusters, field: field.into(), reason });
    };
    let mut names: HashMap<&str, &Compiled> = HashMap::new();
    let mut networks: HashMap<IpNet, &Compiled> = HashMap::new();
    let mut default: Option<&Compiled> = None;
    for cluster in clusters {
        if !cluster.name.is_empty()
            && let Some(first) = names.insert(&cluster.name_key, cluster)
        {
            let reason = if first.name == cluster.name {
                format!("two clusters are named {}", cluster.name)
            } else {
                format!("{} and {} are the same name: case does not count", first.name, cluster.name)
            };
            refuse(first, cluster, "name", reason);
        }
        if cluster.default {
            match default {
                Some(first) => {
                    refuse(first, cluster, "default", format!("{} and {} are both default", first.name, cluster.name));
                }
                None => default = Some(cluster),
            }
        }
        for network in &cluster.networks {
            match networks.get(network) {
                Some(first) => {
                    let reason = format!("{} and {} both claim {network}", first.name, cluster.name);
                    refuse(first, cluster, "cidrs", reason);
                }
                None => {
                    networks.insert(*network, cluster);
                }
            }
        }
    }
}
