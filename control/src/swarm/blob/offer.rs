//! Who is named to whom, and when again.
//!
//! A finder without candidates is told of some at once. All else is gathered for a tenth of a second, and then only those are
//! looked at who lack somebody, or have somebody in their set that is named too often.

use std::collections::BTreeSet;
use std::sync::Arc;

use shoal_proto::NodeId;

use super::super::around::Around;
use super::super::candidates::{MOST, Wish};
use super::super::event::{At, FinderId, ParentSaid, Say};
use super::Blob;

/// A finder's set is not changed for a better mix again before this: a connection that serves is worth something too.
const MIX: At = At::from_millis(500);
/// Who lags is seen at least this often, although nobody comes or goes.
const LOOK: At = At::from_secs(1);

impl Blob {
    /// Names candidates: at once to who has none yet, to others when what changed has been gathered.
    pub(super) fn offer(&mut self, around: &mut Around<'_>) {
        let due = self.flush.is_some_and(|at| at <= around.now);
        let mut ids: BTreeSet<FinderId> = if std::mem::take(&mut self.gained.0) {
            self.index.bare.clone()
        } else {
            self.index.dirty.intersection(&self.index.bare).copied().collect()
        };
        ids.append(&mut self.index.urgent);
        let mut mix = BTreeSet::new();
        if due {
            self.flush = None;
            self.servers.refresh(|node| around.facts(node));
            let (by_node, finders) = (&self.by_node, &self.finders);
            let many = finders.len() > MOST;
            self.servers.weigh(|node| if many { Some(finders.get(by_node.get(node)?)?.blocks) } else { None });
            ids.append(&mut self.index.short);
            if std::mem::take(&mut self.gained.1) {
                ids.extend(&self.index.hungry);
            }
            mix = self.mixed(around);
            ids.extend(&mix);
            if self.finders.len() > MOST {
                self.flush.get_or_insert(around.now + LOOK);
            }
        }
        for id in ids {
            self.name(id, mix.contains(&id), around);
        }
    }

    /// Whose set is due for a better mix now; others are looked at again when theirs is.
    fn mixed(&mut self, around: &mut Around<'_>) -> BTreeSet<FinderId> {
        let lags = |id| self.finders.get(&id).is_none_or(|finder| self.servers.lags(&finder.node));
        let surplus = self.servers.surplus(self.finders.len(), lags, around.dice);
        let (now, later): (BTreeSet<_>, BTreeSet<_>) =
            surplus.into_iter().partition(|id| self.finders.get(id).is_some_and(|finder| finder.mix_at <= around.now));
        let next = later.iter().filter_map(|id| self.finders.get(id)).map(|finder| finder.mix_at).min();
        if let Some(at) = next {
            self.flush = Some(at.max(around.now + super::GATHER));
        }
        now
    }

    fn name(&mut self, id: FinderId, mix: bool, around: &mut Around<'_>) {
        let Some(finder) = self.finders.get(&id).filter(|finder| !finder.done) else { return };
        let nowhere: Arc<[String]> = Arc::from([]);
        let location = around.nodes.get(&finder.node).map_or(nowhere, |node| Arc::clone(&node.location));
        let avoid = |node: &NodeId| finder.lost.contains_key(node) || !around.may_name(node, finder);
        let current = finder.parents.as_deref().unwrap_or_default();
        let finders = self.finders.len();
        let lags = self.servers.lags(&finder.node);
        let wish = Wish { node: &finder.node, location: &location, avoid: &avoid, current, mix, finders, lags };
        let mut dice = around.dice.clone();
        let chosen = self.servers.choose(&wish, &mut dice);
        let news = !same(&chosen, current);
        *around.dice = dice;
        self.servers.told(id, current, &chosen);
        let Some(finder) = self.finders.get_mut(&id) else { return };
        if mix {
            finder.mix_at = around.now + MIX;
        }
        if !news {
            return;
        }
        if !chosen.is_empty() {
            finder.waiting = None;
        }
        finder.parents = Some(chosen.clone());
        around.say(id, Say::Parents(chosen));
        self.review(id, around);
    }
}

fn same(chosen: &[ParentSaid], current: &[ParentSaid]) -> bool {
    chosen.len() == current.len() && chosen.iter().all(|parent| current.contains(parent))
}
