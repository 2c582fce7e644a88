use async_trait::async_trait;
use parking_lot::Mutex;

use super::{AuditEntry, Cluster, ClusterChange, ClusterSpec, ClusterTable, Error, PreheatRow, Store};

mod identities;
mod preheats;

/// A store that ends with the process. Passes the same suite as the durable ones.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
    identities: Mutex<identities::State>,
    /// Oldest first.
    preheats: Mutex<Vec<PreheatRow>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    table: ClusterTable,
    last_seq: u64,
}

#[async_trait]
impl Store for MemoryStore {
    async fn clusters(&self) -> Result<ClusterTable, Error> {
        Ok(self.state.lock().table.clone())
    }

    async fn change_clusters(
        &self,
        generation: u64,
        changes: &[ClusterChange],
        audit: &[AuditEntry],
    ) -> Result<ClusterTable, Error> {
        let mut state = self.state.lock();
        if state.table.generation != generation {
            return Err(Error::Conflict);
        }
        let mut next = state.clone();
        next.table.generation += 1;
        for change in super::deletions_first(changes) {
            next.change(change)?;
        }
        *state = next;
        let mut identities = self.identities.lock();
        identities.keep_clusters(&state.table);
        audit.iter().for_each(|entry| identities.write_audit(entry));
        Ok(state.table.clone())
    }

    async fn probe(&self) -> Result<(), Error> {
        Ok(())
    }
}

impl State {
    fn change(&mut self, change: &ClusterChange) -> Result<(), Error> {
        match change {
            ClusterChange::Insert { id, spec } => {
                self.refuse_taken(&spec.name, None)?;
                self.last_seq += 1;
                let ClusterSpec { name, default, idc, location, cidrs } = spec.clone();
                let (id, seq) = (id.clone(), self.last_seq);
                self.table.clusters.push(Cluster { id, seq, version: 1, name, default, idc, location, cidrs });
            }
            ClusterChange::Update { id, spec } => {
                self.refuse_taken(&spec.name, Some(id))?;
                let cluster = self
                    .table
                    .clusters
                    .iter_mut()
                    .find(|cluster| cluster.id == *id)
                    .ok_or_else(|| Error::NoCluster(id.clone()))?;
                let ClusterSpec { name, default, idc, location, cidrs } = spec.clone();
                let (id, seq, version) = (id.clone(), cluster.seq, cluster.version + 1);
                *cluster = Cluster { id, seq, version, name, default, idc, location, cidrs };
            }
            ClusterChange::Delete { id } => {
                let before = self.table.clusters.len();
                self.table.clusters.retain(|cluster| cluster.id != *id);
                if self.table.clusters.len() == before {
                    return Err(Error::NoCluster(id.clone()));
                }
            }
        }
        Ok(())
    }

    fn refuse_taken(&self, name: &str, by: Option<&shoal_proto::ClusterId>) -> Result<(), Error> {
        let taken = self.table.clusters.iter().any(|cluster| cluster.name == name && Some(&cluster.id) != by);
        if taken { Err(Error::NameTaken(name.into())) } else { Ok(()) }
    }
}
