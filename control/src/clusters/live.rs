mod plan;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use shoal_proto::ClusterId;
use tokio::sync::{Mutex, watch};

use super::set::ClusterSet;
use super::{Cluster, ClusterSpec, Metrics};
use crate::scope::{ClusterScope, Refusal, Scopes, fold};
use crate::store::{self, AuditEntry, ClusterChange, ClusterTable, Store};

/// How often a write that somebody else overtook is decided again before the caller hears of it. Writes of clusters
/// are rare and short; to lose five in a row means that something loops.
const WRITE_ATTEMPTS: usize = 5;

/// How to open the set.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the default cluster that is made in a store that was never written. Empty: none is made.
    pub default_cluster: String,
}

/// What to change about a cluster; `None` leaves it as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edit {
    /// A new name.
    pub name: Option<String>,
    /// Whether it is the default. Whichever was loses it in the same write.
    pub default: Option<bool>,
    /// Empty: no IDC any more.
    pub idc: Option<String>,
    /// Empty: no location any more.
    pub location: Option<String>,
    /// Replaces all networks.
    pub cidrs: Option<Vec<String>>,
}

impl From<ClusterSpec> for Edit {
    fn from(spec: ClusterSpec) -> Self {
        let ClusterSpec { name, default, idc, location, cidrs } = spec;
        Self { name: Some(name), default: Some(default), idc: Some(idc), location: Some(location), cidrs: Some(cidrs) }
    }
}

/// How a declared set is brought about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ApplyMode {
    /// Delete the clusters that are not declared; otherwise they stay, except that they lose `default` to a declared
    /// cluster that has it.
    pub prune: bool,
    /// Only tell what would change.
    pub dry_run: bool,
    /// Only if the set is of this generation.
    pub generation: Option<u64>,
}

/// What became of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is new. In a dry run its id is not the one it will have.
    Created(Arc<Cluster>),
    /// It is different.
    Updated {
        /// As it was.
        before: Arc<Cluster>,
        /// As it is.
        after: Arc<Cluster>,
    },
    /// It is gone.
    Deleted(Arc<Cluster>),
}

/// A cluster that was made or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// As it is.
    pub cluster: Arc<Cluster>,
    /// The cluster that was the default until this one became it, as it was.
    pub default_from: Option<Arc<Cluster>>,
}

/// The outcome of an apply.
#[derive(Debug, Clone)]
pub struct Applied {
    /// What changed, oldest cluster first.
    pub changes: Vec<Change>,
    /// Clusters that are there and were not declared.
    pub undeclared: Vec<Arc<Cluster>>,
    /// The set that this was decided on.
    pub before: Arc<ClusterSet>,
    /// The set that there is now, or in a dry run the one that there would be.
    pub after: Arc<ClusterSet>,
}

/// Why a change was not made. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller's: the set would not be acceptable.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Refused(Vec<Refusal>),
    /// The caller's: no cluster has this id or name.
    #[error("there is no cluster {0:?}")]
    NotFound(String),
    /// The caller's: the cluster is not as the caller saw it. Read it again.
    #[error("cluster {name} is at version {found}, not {expected}")]
    Stale {
        /// Name of the cluster.
        name: String,
        /// What the caller saw.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// The caller's: the clusters are not as the caller saw them. Read them again.
    #[error("the set of clusters is at {found}, not {expected}")]
    StaleSet {
        /// What the caller saw.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// The caller's: nodes would lose their cluster.
    #[error("cluster {name} has {nodes} live node(s)")]
    InUse {
        /// Name of the cluster.
        name: String,
        /// How many.
        nodes: usize,
    },
    /// The caller's: nodes that match nothing would run alone.
    #[error("cluster {name} is the default")]
    IsDefault {
        /// Name of the cluster.
        name: String,
    },
    /// The caller's: it would reach further than they do.
    #[error(
        "the token is kept to some clusters, and this would move {nodes} live node(s) from or to others: somebody who reaches those must do it"
    )]
    Beyond {
        /// How many nodes would leave or enter a cluster that is not theirs.
        nodes: usize,
    },
    /// The caller's: another cluster would be changed with it, and is not theirs.
    #[error(
        "the token is kept to some clusters, and this would change another one too: the default is taken from whichever cluster has it; \
         somebody who reaches both must do it"
    )]
    Foreign,
    /// Ours: what is stored is not a set that could have been written.
    #[error("the stored clusters are not acceptable: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Stored(Vec<Refusal>),
    /// Ours: the store.
    #[error(transparent)]
    Store(#[from] store::Error),
}

pub use plan::{Plan, Planned};

/// How many live nodes a cluster has: asked before one is deleted. To force a deletion, say 0.
pub type NodesOf<'a> = &'a (dyn Fn(&ClusterId) -> usize + Sync);

/// How far somebody reaches. It is asked of the very set that is written.
#[derive(Clone, Copy)]
pub struct Reach<'a> {
    /// Whether a cluster is theirs to change.
    pub has: &'a (dyn Fn(&ClusterId) -> bool + Sync),
    /// How many live nodes such clusters would move from or to where they have no say.
    pub beyond: &'a (dyn Fn(&ClusterSet) -> usize + Sync),
}

/// The clusters of this control service: reads come from memory, changes are checked, stored, then published.
pub struct Clusters {
    store: Arc<dyn Store>,
    /// Held from reading the set to publishing the next, so that sets are published in the order of their generations.
    writing: Mutex<()>,
    live: watch::Sender<Arc<ClusterSet>>,
    metrics: Metrics,
}

impl Clusters {
    /// Reads the stored clusters. In a store that was never written it makes the default cluster.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Stored`]; [`Error::Refused`] for the configured name.
    pub async fn open(store: Arc<dyn Store>, config: &Config, metrics: Metrics) -> Result<Self, Error> {
        let set = compile(store.clusters().await?)?;
        metrics.published(&set);
        let clusters = Self { store, writing: Mutex::new(()), live: watch::Sender::new(Arc::new(set)), metrics };
        if clusters.current().generation() == 0 && !config.default_cluster.is_empty() {
            let spec = ClusterSpec { name: config.default_cluster.clone(), default: true, ..ClusterSpec::default() };
            let made = clusters.by("shoal-control").create(spec).await?.cluster;
            tracing::info!(cluster = made.name, id = %made.id, "made the default cluster in a new store");
        }
        Ok(clusters)
    }

    /// Follows the set: every change is published here within milliseconds of being stored.
    pub fn watch(&self) -> watch::Receiver<Arc<ClusterSet>> {
        self.live.subscribe()
    }

    /// The set that is in force.
    pub fn current(&self) -> Arc<ClusterSet> {
        self.live.borrow().clone()
    }

    /// The clusters in somebody's hands: who is named in the audit log for what they change.
    pub const fn by<'a>(&'a self, who: &'a str) -> By<'a> {
        By { clusters: self, who, reach: None }
    }

    /// Whether clusters can be read and changed right now.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn probe(&self) -> Result<(), Error> {
        Ok(self.store.probe().await?)
    }

    fn publish(&self, table: ClusterTable) -> Result<Arc<ClusterSet>, Error> {
        let set = Arc::new(compile(table)?);
        self.metrics.published(&set);
        self.live.send_replace(set.clone());
        Ok(set)
    }
}

/// The clusters in somebody's hands.
#[derive(Clone, Copy)]
pub struct By<'a> {
    clusters: &'a Clusters,
    who: &'a str,
    reach: Option<Reach<'a>>,
}

impl<'a> By<'a> {
    /// Refuses every change, also one that is only thought through, of what they do not reach: of another cluster, and one that moves
    /// live nodes from or to where they have no say.
    pub const fn within(self, reach: Reach<'a>) -> Self {
        Self { reach: Some(reach), ..self }
    }

    /// Makes a cluster. If it is to be the default, whichever was loses that in the same write.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Foreign`], [`Error::Store`].
    pub async fn create(&self, spec: ClusterSpec) -> Result<Changed, Error> {
        let id = new_id();
        let changes = |set: &ClusterSet| Ok(inserted(set, &id, spec.clone()));
        let (before, after) = self.write(changes, false).await?;
        changed(&before, &after, &id).ok_or_else(|| Error::NotFound(spec.name.clone()))
    }

    /// Changes a cluster, named by id or name. With `version`, only if it is at that version. An edit that changes
    /// nothing writes nothing. If it becomes the default, whichever was loses that in the same write.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Stale`], [`Error::Refused`], [`Error::Foreign`], [`Error::Beyond`], [`Error::Store`].
    pub async fn update(&self, id_or_name: &str, version: Option<u64>, edit: Edit) -> Result<Changed, Error> {
        let changes = |set: &ClusterSet| Ok(edited(set, found(set, id_or_name, version)?, edit.clone()));
        let (before, after) = self.write(changes, false).await?;
        let id = &found(&before, id_or_name, None)?.id;
        changed(&before, &after, id).ok_or_else(|| Error::NotFound(id_or_name.into()))
    }

    /// Deletes a cluster that no live node is in and that is not the default; with `force`, any. Its nodes are decided
    /// again at once.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Stale`], [`Error::InUse`], [`Error::IsDefault`], [`Error::Store`].
    pub async fn delete(
        &self,
        id_or_name: &str,
        version: Option<u64>,
        force: bool,
        nodes_of: NodesOf<'_>,
    ) -> Result<Arc<Cluster>, Error> {
        let changes = |set: &ClusterSet| {
            let cluster = found(set, id_or_name, version)?;
            if !force {
                if cluster.default {
                    return Err(Error::IsDefault { name: cluster.name.clone() });
                }
                refuse_in_use(cluster, nodes_of)?;
            }
            Ok(vec![ClusterChange::Delete { id: cluster.id.clone() }])
        };
        let (before, _) = self.write(changes, false).await?;
        found(&before, id_or_name, None).cloned()
    }

    /// Makes the clusters be as declared; clusters are told apart by name. A second call with the same set changes
    /// nothing. Deleting what is not declared asks `nodes_of` first; a declared set may leave no default.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::InUse`], [`Error::StaleSet`], [`Error::Store`].
    pub async fn apply(
        &self,
        declared: Vec<ClusterSpec>,
        mode: ApplyMode,
        nodes_of: NodesOf<'_>,
    ) -> Result<Applied, Error> {
        // First by itself, so that a fault in it is not mixed with faults against what is there.
        let ranked = (0..).zip(&declared).map(|(rank, spec)| scope_from(rank, spec)).collect();
        Scopes::check(ranked).map_err(Error::Refused)?;
        let has_default = declared.iter().any(|spec| spec.default);
        let names: HashSet<String> = declared.iter().map(|spec| fold(spec.name.trim()).into_owned()).collect();
        let undeclared = |cluster: &&Arc<Cluster>| !names.contains(fold(&cluster.name).as_ref());
        let new_ids: Vec<ClusterId> = declared.iter().map(|_| new_id()).collect();

        let changes = |set: &ClusterSet| {
            if let Some(expected) = mode.generation.filter(|expected| *expected != set.generation()) {
                return Err(Error::StaleSet { expected, found: set.generation() });
            }
            let mut changes = Vec::new();
            for cluster in set.clusters().iter().filter(undeclared) {
                let id = cluster.id.clone();
                if mode.prune {
                    refuse_in_use(cluster, nodes_of)?;
                    changes.push(ClusterChange::Delete { id });
                } else if cluster.default && has_default {
                    changes.push(ClusterChange::Update { id, spec: ClusterSpec { default: false, ..cluster.spec() } });
                }
            }
            for (spec, new_id) in declared.iter().zip(&new_ids) {
                let spec = spec.clone();
                changes.push(match set.named(&spec.name) {
                    Some(cluster) => ClusterChange::Update { id: cluster.id.clone(), spec },
                    None => ClusterChange::Insert { id: new_id.clone(), spec },
                });
            }
            Ok(changes)
        };
        let (before, after) = self.write(changes, mode.dry_run).await?;
        Ok(Applied {
            changes: difference(&before, &after),
            undeclared: after.clusters().iter().filter(undeclared).cloned().collect(),
            before,
            after,
        })
    }

    /// Decides on changes, checks the set that they lead to, writes and publishes it; again if somebody else was
    /// faster. Gives the sets before and after. A dry run stops before writing.
    async fn write(
        &self,
        decide: impl Fn(&ClusterSet) -> Result<Vec<ClusterChange>, Error>,
        dry_run: bool,
    ) -> Result<(Arc<ClusterSet>, Arc<ClusterSet>), Error> {
        let clusters = self.clusters;
        let _writing = clusters.writing.lock().await;
        let mut attempts = WRITE_ATTEMPTS;
        loop {
            let before = clusters.current();
            let (changes, candidate) = candidate(&before, decide(&before)?)?;
            if changes.is_empty() {
                return Ok((before.clone(), before));
            }
            if let Some(reach) = self.reach {
                if changes.iter().any(|change| before.get(change.id()).is_some_and(|old| !(reach.has)(&old.id))) {
                    return Err(Error::Foreign);
                }
                match (reach.beyond)(&candidate) {
                    0 => {}
                    nodes => return Err(Error::Beyond { nodes }),
                }
            }
            if dry_run {
                return Ok((before, Arc::new(candidate)));
            }
            attempts -= 1;
            let audit: Vec<AuditEntry> =
                difference(&before, &candidate).iter().map(|change| audit(self.who, change)).collect();
            match clusters.store.change_clusters(before.generation(), &changes, &audit).await {
                Ok(table) => {
                    let after = clusters.publish(table)?;
                    for change in difference(&before, &after) {
                        log(self.who, &change);
                        clusters.metrics.changed(&change);
                    }
                    return Ok((before, after));
                }
                Err(store::Error::Conflict) if attempts > 0 => {
                    clusters.publish(clusters.store.clusters().await?)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn compile(table: ClusterTable) -> Result<ClusterSet, Error> {
    ClusterSet::new(table.generation, table.clusters).map_err(Error::Stored)
}

/// The set that changes lead to, and the changes with what they write in canonical form, without those that change
/// nothing.
fn candidate(before: &ClusterSet, changes: Vec<ClusterChange>) -> Result<(Vec<ClusterChange>, ClusterSet), Error> {
    let mut clusters: Vec<Cluster> = before.clusters().iter().map(|cluster| Cluster::clone(cluster)).collect();
    let mut next_seq = clusters.last().map_or(0, |cluster| cluster.seq + 1);
    for change in &changes {
        match change {
            ClusterChange::Delete { id } => clusters.retain(|cluster| cluster.id != *id),
            ClusterChange::Update { id, spec } => {
                for cluster in clusters.iter_mut().filter(|cluster| cluster.id == *id) {
                    *cluster = with_spec(cluster.id.clone(), cluster.seq, cluster.version + 1, spec);
                }
            }
            ClusterChange::Insert { id, spec } => {
                clusters.push(with_spec(id.clone(), next_seq, 1, spec));
                next_seq += 1;
            }
        }
    }
    let set = ClusterSet::new(before.generation() + 1, clusters).map_err(Error::Refused)?;
    let canonical: Vec<Cluster> = set
        .clusters()
        .iter()
        .zip(set.canonical())
        .map(|(cluster, scope)| {
            let next = with_spec(cluster.id.clone(), cluster.seq, cluster.version, &spec_of(scope));
            match before.get(&next.id) {
                Some(old) if old.spec() == next.spec() => Cluster::clone(old),
                _ => next,
            }
        })
        .collect();
    let set = ClusterSet::new(before.generation() + 1, canonical).map_err(Error::Refused)?;
    let changes = changes
        .into_iter()
        .filter_map(|change| match change {
            ClusterChange::Delete { .. } => Some(change),
            ClusterChange::Insert { id, .. } => {
                let spec = set.get(&id)?.spec();
                Some(ClusterChange::Insert { id, spec })
            }
            ClusterChange::Update { id, .. } => {
                let spec = set.get(&id)?.spec();
                let same = before.get(&id).is_some_and(|old| old.spec() == spec);
                (!same).then_some(ClusterChange::Update { id, spec })
            }
        })
        .collect();
    Ok((changes, set))
}

/// What takes the default from whichever cluster has it, for the one with that id.
fn handed_over(set: &ClusterSet, to: &ClusterId) -> Option<ClusterChange> {
    let cluster = set.clusters().iter().find(|cluster| cluster.default && cluster.id != *to)?;
    let spec = ClusterSpec { default: false, ..cluster.spec() };
    Some(ClusterChange::Update { id: cluster.id.clone(), spec })
}

fn inserted(set: &ClusterSet, id: &ClusterId, spec: ClusterSpec) -> Vec<ClusterChange> {
    let taken = if spec.default { handed_over(set, id) } else { None };
    taken.into_iter().chain([ClusterChange::Insert { id: id.clone(), spec }]).collect()
}

fn edited(set: &ClusterSet, cluster: &Cluster, edit: Edit) -> Vec<ClusterChange> {
    let Edit { name, default, idc, location, cidrs } = edit;
    let spec = ClusterSpec {
        name: name.unwrap_or_else(|| cluster.name.clone()),
        default: default.unwrap_or(cluster.default),
        idc: idc.unwrap_or_else(|| cluster.idc.clone()),
        location: location.unwrap_or_else(|| cluster.location.clone()),
        cidrs: cidrs.unwrap_or_else(|| cluster.cidrs.clone()),
    };
    let taken = if spec.default { handed_over(set, &cluster.id) } else { None };
    taken.into_iter().chain([ClusterChange::Update { id: cluster.id.clone(), spec }]).collect()
}

/// A cluster after a write, and which one lost the default to it.
fn changed(before: &ClusterSet, after: &ClusterSet, id: &ClusterId) -> Option<Changed> {
    let lost = |old: &&Arc<Cluster>| old.default && after.get(&old.id).is_some_and(|new| !new.default);
    let cluster = after.get(id)?.clone();
    let from = before.clusters().iter().find(lost).filter(|old| cluster.default && old.id != *id);
    Some(Changed { cluster, default_from: from.cloned() })
}

fn with_spec(id: ClusterId, seq: u64, version: u64, spec: &ClusterSpec) -> Cluster {
    let ClusterSpec { name, default, idc, location, cidrs } = spec.clone();
    Cluster { id, seq, version, name, default, idc, location, cidrs }
}

fn spec_of(scope: &ClusterScope) -> ClusterSpec {
    let ClusterScope { rank: _, name, default, idc, location, cidrs } = scope.clone();
    ClusterSpec { name, default, idc, location, cidrs }
}

fn scope_from(rank: u64, spec: &ClusterSpec) -> ClusterScope {
    let ClusterSpec { name, default, idc, location, cidrs } = spec.clone();
    ClusterScope { rank, name, default, idc, location, cidrs }
}

fn found<'a>(set: &'a ClusterSet, id_or_name: &str, version: Option<u64>) -> Result<&'a Arc<Cluster>, Error> {
    let cluster = set.find(id_or_name).ok_or_else(|| Error::NotFound(id_or_name.into()))?;
    match version {
        Some(expected) if expected != cluster.version => {
            Err(Error::Stale { name: cluster.name.clone(), expected, found: cluster.version })
        }
        _ => Ok(cluster),
    }
}

fn refuse_in_use(cluster: &Cluster, nodes_of: NodesOf<'_>) -> Result<(), Error> {
    match nodes_of(&cluster.id) {
        0 => Ok(()),
        nodes => Err(Error::InUse { name: cluster.name.clone(), nodes }),
    }
}

fn new_id() -> ClusterId {
    uuid::Uuid::new_v4().to_string().parse().expect("a UUID has 36 characters out of 0-9, a-f and the hyphen")
}

fn difference(before: &ClusterSet, after: &ClusterSet) -> Vec<Change> {
    let left = before.clusters().iter().filter_map(|old| match after.get(&old.id) {
        None => Some(Change::Deleted(old.clone())),
        Some(new) if new.spec() != old.spec() => Some(Change::Updated { before: old.clone(), after: new.clone() }),
        Some(_) => None,
    });
    let made = after.clusters().iter().filter(|new| before.get(&new.id).is_none());
    left.chain(made.map(|new| Change::Created(new.clone()))).collect()
}

/// What the audit log keeps of a change.
fn audit(who: &str, change: &Change) -> AuditEntry {
    let spec = |cluster: &Arc<Cluster>| {
        let ClusterSpec { name, default, idc, location, cidrs } = cluster.spec();
        json!({ "id": cluster.id, "name": name, "default": default, "idc": idc, "location": location, "cidrs": cidrs })
    };
    let (action, name, before, after) = match change {
        Change::Created(cluster) => ("cluster.create", &cluster.name, None, Some(spec(cluster))),
        Change::Updated { before, after } => ("cluster.update", &before.name, Some(spec(before)), Some(spec(after))),
        Change::Deleted(cluster) => ("cluster.delete", &cluster.name, Some(spec(cluster)), None),
    };
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    AuditEntry { at, who: who.to_owned(), action: action.to_owned(), subject: name.clone(), before, after }
}

fn log(who: &str, change: &Change) {
    match change {
        Change::Created(cluster) => tracing::info!(cluster = cluster.name, id = %cluster.id, who, "created a cluster"),
        Change::Updated { before, after } => {
            tracing::info!(cluster = after.name, id = %after.id, was = ?before.spec(), is = ?after.spec(), who, "changed a cluster");
        }
        Change::Deleted(cluster) => tracing::info!(cluster = cluster.name, id = %cluster.id, who, "deleted a cluster"),
    }
}
