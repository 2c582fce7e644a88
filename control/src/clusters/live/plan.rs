//! A change that is only thought through: what it would make of the clusters.

use std::sync::Arc;

use super::{By, Change, Edit, Error, difference, edited, found, inserted, new_id};
use crate::clusters::{ClusterSet, ClusterSpec};
use crate::store::ClusterChange;

/// What somebody thinks of doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Planned {
    /// Make a cluster.
    Create(ClusterSpec),
    /// Change one, by id or name.
    Update(String, Edit),
    /// Delete one, by id or name, whatever is in it.
    Delete(String),
}

/// What would come of it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What would change. A new cluster's id is not the one that it will have.
    pub changes: Vec<Change>,
    /// The set that this was decided on.
    pub before: Arc<ClusterSet>,
    /// The set that there would be.
    pub after: Arc<ClusterSet>,
}

impl By<'_> {
    /// Thinks a change through as it would be made, and makes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`], [`Error::Foreign`], [`Error::Beyond`]: as the change itself.
    pub async fn plan(&self, planned: &Planned) -> Result<Plan, Error> {
        let id = new_id();
        let changes = |set: &ClusterSet| {
            Ok(match planned {
                Planned::Create(spec) => inserted(set, &id, spec.clone()),
                Planned::Update(name, edit) => edited(set, found(set, name, None)?, edit.clone()),
                Planned::Delete(name) => vec![ClusterChange::Delete { id: found(set, name, None)?.id.clone() }],
            })
        };
        let (before, after) = self.write(changes, true).await?;
        Ok(Plan { changes: difference(&before, &after), before, after })
    }
}
