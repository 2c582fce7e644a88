use std::collections::BTreeMap;

use async_trait::async_trait;
use shoal_proto::{ClusterId, NodeId};

use super::super::identities::{admits, is_new};
use super::super::{
    Admission, ApiTokenRow, AuditEntry, AuditFilter, AuditRow, ClusterTable, Error, Identities, JoinTokenFilter,
    JoinTokenRow, Joining, Member, MemberFilter, Seconds, Void,
};
use super::MemoryStore;

#[derive(Debug, Default)]
pub(super) struct State {
    join_tokens: Vec<JoinTokenRow>,
    members: BTreeMap<NodeId, Member>,
    voids: BTreeMap<NodeId, Void>,
    api_tokens: Vec<ApiTokenRow>,
    audit: Vec<AuditEntry>,
}

impl State {
    pub(super) fn write_audit(&mut self, entry: &AuditEntry) {
        self.audit.push(entry.clone());
    }

    /// Tokens of clusters that are gone are gone.
    pub(super) fn keep_clusters(&mut self, table: &ClusterTable) {
        let is_there = |id: &ClusterId| table.clusters.iter().any(|cluster| cluster.id == *id);
        self.join_tokens.retain(|token| token.cluster.as_ref().is_none_or(is_there));
    }

    fn void(&mut self, void: &Void) {
        let known = self.voids.entry(void.node.clone()).or_insert_with(|| void.clone());
        (known.before, known.forget) = (known.before.max(void.before), known.forget.max(void.forget));
    }

    fn removed(&mut self, before: usize, after: usize, audit: &AuditEntry) -> bool {
        if before == after {
            return false;
        }
        self.write_audit(audit);
        true
    }
}

#[async_trait]
impl Identities for MemoryStore {
    async fn add_join_token(&self, token: &JoinTokenRow, audit: &AuditEntry) -> Result<(), Error> {
        if let Some(id) = &token.cluster
            && !self.state.lock().table.clusters.iter().any(|cluster| cluster.id == *id)
        {
            return Err(Error::NoCluster(id.clone()));
        }
        let mut state = self.identities.lock();
        state.join_tokens.push(token.clone());
        state.join_tokens.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        state.write_audit(audit);
        Ok(())
    }

    async fn join_tokens_of(&self, filter: &JoinTokenFilter) -> Result<Vec<JoinTokenRow>, Error> {
        Ok(self.identities.lock().join_tokens.iter().filter(|token| filter.leaves(token)).cloned().collect())
    }

    async fn remove_join_token(&self, id: &str, audit: &AuditEntry) -> Result<bool, Error> {
        let mut state = self.identities.lock();
        let before = state.join_tokens.len();
        state.join_tokens.retain(|token| token.id != id);
        let after = state.join_tokens.len();
        Ok(state.removed(before, after, audit))
    }

    async fn join(&self, by: &Joining, audit: &AuditEntry) -> Result<Admission, Error> {
        let mut state = self.identities.lock();
        let known = state.members.get(&by.node).cloned();
        let token = state.join_tokens.iter_mut().find(|token| token.id == by.token);
        let is_new = match admits(by, token.as_deref(), known.as_ref()) {
            Ok(is_new) => is_new,
            Err(refused) => return Ok(refused),
        };
        let (Some(token), true) = (token, is_new) else {
            return Ok(known.map_or(Admission::BadToken, Admission::Known));
        };
        token.uses_left -= 1;
        let member = by.member(token);
        state.members.insert(member.node.clone(), member.clone());
        state.write_audit(audit);
        Ok(Admission::Admitted(member))
    }

    async fn admit(&self, member: &Member, audit: &AuditEntry) -> Result<Admission, Error> {
        let mut state = self.identities.lock();
        let known = state.members.get(&member.node).cloned();
        match is_new(known.as_ref(), &member.key) {
            Ok(true) => {}
            Ok(false) => return Ok(Admission::Known(known.unwrap_or_else(|| member.clone()))),
            Err(refused) => return Ok(refused),
        }
        state.members.insert(member.node.clone(), member.clone());
        state.write_audit(audit);
        Ok(Admission::Admitted(member.clone()))
    }

    async fn member(&self, node: &NodeId) -> Result<Option<Member>, Error> {
        Ok(self.identities.lock().members.get(node).cloned())
    }

    async fn members_of(&self, filter: &MemberFilter) -> Result<Vec<Member>, Error> {
        Ok(self.identities.lock().members.values().filter(|member| filter.leaves(member)).cloned().collect())
    }

    async fn revoke(
        &self,
        node: &NodeId,
        seen: Option<&Member>,
        at: Seconds,
        void: &Void,
        audit: &AuditEntry,
    ) -> Result<bool, Error> {
        let mut state = self.identities.lock();
        let Some(member) = state.members.get_mut(node) else { return Ok(false) };
        if seen.is_some_and(|seen| seen != member) {
            return Ok(false);
        }
        member.revoked.get_or_insert(at);
        state.void(void);
        state.write_audit(audit);
        Ok(true)
    }

    async fn remove_member(&self, node: &NodeId, seen: Option<&Member>, audit: &AuditEntry) -> Result<bool, Error> {
        let mut state = self.identities.lock();
        if seen.is_some_and(|seen| state.members.get(node) != Some(seen)) {
            return Ok(false);
        }
        let before = state.members.len();
        state.members.remove(node);
        let after = state.members.len();
        Ok(state.removed(before, after, audit))
    }

    async fn void(&self, voids: &[Void]) -> Result<(), Error> {
        let mut state = self.identities.lock();
        voids.iter().for_each(|void| state.void(void));
        Ok(())
    }

    async fn voids(&self, now: Seconds) -> Result<Vec<Void>, Error> {
        let mut state = self.identities.lock();
        state.voids.retain(|_, void| void.forget > now);
        Ok(state.voids.values().cloned().collect())
    }

    async fn add_api_token(&self, token: &ApiTokenRow, audit: &AuditEntry) -> Result<(), Error> {
        let mut state = self.identities.lock();
        if state.api_tokens.iter().any(|known| known.name == token.name) {
            return Err(Error::NameTaken(token.name.clone()));
        }
        state.api_tokens.push(token.clone());
        state.api_tokens.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        state.write_audit(audit);
        Ok(())
    }

    async fn api_tokens(&self) -> Result<Vec<ApiTokenRow>, Error> {
        Ok(self.identities.lock().api_tokens.clone())
    }

    async fn remove_api_token(&self, id: &str, audit: &AuditEntry) -> Result<bool, Error> {
        let mut state = self.identities.lock();
        let before = state.api_tokens.len();
        state.api_tokens.retain(|token| token.id != id);
        let after = state.api_tokens.len();
        Ok(state.removed(before, after, audit))
    }

    async fn audit_of(&self, filter: &AuditFilter, most: u32) -> Result<Vec<AuditRow>, Error> {
        let state = self.identities.lock();
        let rows = (1..).zip(&state.audit).filter(|(seq, entry)| filter.leaves(*seq, entry));
        let rows: Vec<AuditRow> = rows.map(|(seq, entry)| AuditRow { seq, entry: entry.clone() }).collect();
        Ok(rows.into_iter().rev().take(most as usize).collect())
    }
}
