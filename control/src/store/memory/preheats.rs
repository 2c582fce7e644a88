use async_trait::async_trait;

use super::super::{AuditEntry, Error, PreheatFilter, PreheatRow, PreheatShort, Preheats, Standing};
use super::MemoryStore;

#[async_trait]
impl Preheats for MemoryStore {
    async fn put_preheat(&self, row: &PreheatRow, audit: Option<&AuditEntry>) -> Result<(), Error> {
        let mut rows = self.preheats.lock();
        match rows.iter_mut().find(|known| known.id == row.id) {
            Some(known) => *known = row.clone(),
            None => rows.push(row.clone()),
        }
        if let Some(entry) = audit {
            self.identities.lock().write_audit(entry);
        }
        Ok(())
    }

    async fn preheat(&self, id: &str) -> Result<Option<PreheatRow>, Error> {
        Ok(self.preheats.lock().iter().find(|row| row.id == id).cloned())
    }

    async fn preheats(
        &self,
        filter: &PreheatFilter,
        before: Option<&str>,
        most: u32,
    ) -> Result<Vec<PreheatShort>, Error> {
        let rows = self.preheats.lock();
        let end = match before {
            Some(id) => rows.iter().position(|row| row.id == id).unwrap_or(0),
            None => rows.len(),
        };
        let meant = |row: &&PreheatRow| {
            let standing = match filter.standing {
                Standing::Any => true,
                Standing::Open => row.ended.is_none(),
                Standing::Ended(outcome) => row.ended.is_some_and(|(_, how)| how == outcome),
            };
            standing && filter.clusters.as_ref().is_none_or(|clusters| clusters.contains(&row.cluster))
        };
        let short = |row: &PreheatRow| PreheatShort { id: row.id.clone(), short: row.short.clone() };
        Ok(rows[..end].iter().rev().filter(meant).take(most as usize).map(short).collect())
    }

    async fn running_preheats(&self) -> Result<Vec<PreheatRow>, Error> {
        Ok(self.preheats.lock().iter().filter(|row| row.ended.is_none()).cloned().collect())
    }

    async fn prune_preheats(&self, keep: u32) -> Result<u64, Error> {
        let mut rows = self.preheats.lock();
        let ended = rows.iter().filter(|row| row.ended.is_some()).count();
        let mut surplus = ended.saturating_sub(keep as usize);
        let before = rows.len();
        rows.retain(|row| {
            let goes = row.ended.is_some() && surplus > 0;
            surplus -= usize::from(goes);
            !goes
        });
        Ok((before - rows.len()) as u64)
    }
}
