//! The index against the walk: what is noted of finders and servers must be what looking at all of them gives.

use std::collections::{BTreeMap, BTreeSet};

use shoal_proto::NodeId;

use super::super::around::Around;
use super::super::event::FinderId;
use super::super::finder::Finder;
use super::{Blob, MOST};

impl Blob {
    /// Panics when an index is not what the finders say.
    pub(in super::super) fn check(&self, around: &Around<'_>) {
        let all = |holds: &dyn Fn(&FinderId, &Finder) -> bool| -> BTreeSet<FinderId> {
            self.finders.iter().filter(|(id, finder)| holds(id, finder)).map(|(id, _)| *id).collect()
        };
        let would_read = all(&|_, finder| self.wants(finder, around));
        let noted = self.index.willing.ids();
        // A complaint that is forgotten after ten minutes makes a holder useful again, which is noticed when a permit is granted.
        assert!(would_read.is_subset(&noted), "{would_read:?} would read, {noted:?} are noted: {self:?}");
        let forgotten =
            |id: &FinderId| around.distrust.has_complained(&self.finders[id].node) || !self.whole.is_empty();
        assert!(noted.difference(&would_read).all(forgotten), "{would_read:?} would read, {noted:?} are noted");
        assert_eq!(self.index.bare, all(&|_, finder| finder.is_bare()));
        let few = |finder: &Finder| finder.parents.as_ref().map_or(0, Vec::len) < MOST;
        assert_eq!(self.index.hungry, all(&|_, finder| !finder.done && few(finder)));
        assert_eq!(self.index.denied, all(&|_, finder| finder.denied));
        assert!(self.index.picky.is_superset(&all(&|_, finder| !finder.liars.is_empty())));
        let lost = |(id, finder): (&FinderId, &Finder)| Some((*finder.lost.values().min()?, *id));
        assert_eq!(self.index.lost, self.finders.iter().filter_map(lost).collect());
        assert!(self.index.dirty.is_empty());
        assert_eq!(self.take_none, all(&|_, finder| !finder.runs).len());
        let by_node: BTreeMap<NodeId, FinderId> = self.by_node.iter().map(|(node, id)| (node.clone(), *id)).collect();
        assert_eq!(by_node, self.finders.iter().map(|(id, finder)| (finder.node.clone(), *id)).collect());
        self.check_errand(around);
        self.check_servers(around);
    }

    fn check_errand(&self, around: &Around<'_>) {
        let Some(out) = &self.errand.out else { return };
        assert!(out.due > around.now, "a seed is waited for that is late: {self:?}");
        assert!(self.permits.is_empty() && self.whole.is_empty() && !self.finders.is_empty(), "{self:?}");
        assert!(around.is_seed(&out.seed), "{self:?}");
    }

    fn check_servers(&self, around: &Around<'_>) {
        let finders = self.finders.values().map(|finder| &finder.node);
        let serving = self.whole.iter().chain(finders).filter(|node| self.has(node).is_some());
        let serving: BTreeSet<&NodeId> = serving.collect();
        assert_eq!(self.servers.iter().map(|server| &server.node).collect::<BTreeSet<_>>(), serving);
        for server in self.servers.iter() {
            assert_eq!(Some(server.has), self.has(&server.node));
            let reads = self.permits.iter().any(|permit| permit.node == server.node);
            assert_eq!(server.source, reads || around.is_seed(&server.node), "{self:?}");
            let names = |finder: &Finder| finder.parents.iter().flatten().any(|parent| parent.node == server.node);
            let named = self.finders.iter().filter(|(_, finder)| names(finder)).map(|(id, _)| *id);
            // Somebody who went and came back is named in old sets too, until those are chosen again.
            let again = &self.index.short;
            let named: BTreeSet<FinderId> = named.filter(|id| !again.contains(id)).collect();
            let noted: BTreeSet<FinderId> = server.namers.difference(again).copied().collect();
            assert_eq!(noted, named, "who was told of {}", server.node);
        }
    }
}
