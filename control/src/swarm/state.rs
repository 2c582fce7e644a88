//! The machine: every event of every node goes in, and out come the words to say.
//!
//! It owns no clock, no socket and no randomness: moments and a seed are passed in. The same events give the same
//! effects, which is what the property tests and a simulator live on.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use shoal_proto::{ClusterId, Digest, NodeId};

use super::around::{Around, Node};
use super::blob::{Blob, Rest, Voucher, pause};
use super::candidates::Dice;
use super::distrust::Distrust;
use super::event::{
    Announced, Ask, At, Cause, Certificate, Effect, Event, Fact, FinderId, FlightChange, Key, Member, Notice, Say,
    Signature, Stop, Tell, Trouble,
};
use super::finder::{Finder, LOST};
use super::holdings::Holdings;
use super::meter::Rates;
use super::permit::Permit;
use super::seeds::Seeds;
use doubts::Contested;

mod doubts;
mod look;
mod progress;
mod seeds;
#[cfg(test)]
mod tests;

/// I4: no permit is granted this long after the start, while nodes say again what they hold and read.
pub const STARTING: At = At::from_secs(2);

/// How much the machine knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Blobs that somebody holds or looks for, counted once per cluster.
    pub blobs: usize,
    /// Open Find streams.
    pub finders: usize,
    /// Permits that are out.
    pub permits: usize,
    /// Whole blobs on nodes, summed over nodes.
    pub holdings: usize,
    /// Live seeds that take orders.
    pub seeds: usize,
}

/// All clusters. A blob's state is kept per cluster, so what one cluster holds can't be named in another (I3).
#[derive(Debug, Default)]
pub struct State {
    nodes: HashMap<NodeId, Node>,
    /// Those that somebody looks for, and those of many holders.
    blobs: HashMap<Key, Box<Blob>>,
    /// Those that are held, and no more.
    rest: HashMap<Key, Rest>,
    finders: HashMap<FinderId, (Key, NodeId)>,
    busy: HashMap<(ClusterId, String), At>,
    distrust: Distrust,
    rates: Rates,
    seeds: Seeds,
    /// Who says that it holds a blob otherwise than who is believed now.
    contested: Contested,
    timers: BTreeMap<At, BTreeSet<Key>>,
    counts: Counts,
    /// What became of flights in the last event.
    flights: Vec<FlightChange>,
}

impl State {
    /// Knows nothing. Its clock starts at zero with control itself.
    pub fn new() -> Self {
        Self::default()
    }

    /// How much it knows.
    pub fn counts(&self) -> Counts {
        let blobs = self.blobs.len() + self.rest.len();
        Counts { blobs, finders: self.finders.len(), seeds: self.seeds.count(), ..self.counts }
    }

    /// How many blobs a node holds whole.
    pub fn held_by(&self, node: &NodeId) -> usize {
        self.nodes.get(node).map_or(0, |node| node.held.len())
    }

    /// Where a node belongs now.
    pub fn cluster_of(&self, node: &NodeId) -> Option<&ClusterId> {
        self.nodes.get(node)?.cluster.as_ref()
    }

    /// When [`Event::Tick`] is due; `None`: not before something else happens.
    pub fn next_tick(&self) -> Option<At> {
        self.timers.first_key_value().map(|(at, _)| *at)
    }

    /// Takes one event. `now` never goes back; `seed` is random.
    pub fn apply(&mut self, now: At, seed: u64, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        self.flights.clear();
        let mut step = Step { now, dice: Dice::new(seed), out: &mut out };
        match event {
            Event::Registered { member, restarted } => self.registered(member, restarted, &mut step),
            Event::Moved { node, cluster } => self.moved(&node, cluster, &mut step),
            Event::Left { node } => self.left(&node, &mut step),
            Event::Load { node, uploads, slots } => {
                if let Some(node) = self.nodes.get_mut(&node) {
                    (node.uploads, node.slots) = (uploads, slots);
                }
            }
            Event::Certified { node, certificate } => self.certified(&node, certificate),
            Event::Announced { node, what } => self.announced(&node, what, &mut step),
            Event::Find { finder, node, ask } => self.find(finder, node, &ask, &mut step),
            Event::Told { finder, tell } => self.told(finder, tell, &mut step),
            Event::Ended { finder, clean } => self.ended(finder, clean, &mut step),
            Event::Answered { seed, number, digest, answer } => {
                self.answered(&seed, number, digest, answer, &mut step);
            }
            Event::Tick => {}
        }
        self.tick(&mut step);
        self.reconsider(&mut step);
        out
    }

    /// Which flights the last event began and ended, in order.
    pub fn flights(&mut self) -> Vec<FlightChange> {
        std::mem::take(&mut self.flights)
    }

    fn tick(&mut self, step: &mut Step<'_>) {
        while let Some(entry) = self.timers.first_entry().filter(|entry| *entry.key() <= step.now) {
            for key in entry.remove() {
                if let Some(blob) = self.blobs.get_mut(&key) {
                    blob.wake = None;
                    self.touch(&key, step, |_, _| ());
                }
            }
        }
    }

    /// Changes one blob, and brings all that follows from it in line.
    fn touch<T>(&mut self, key: &Key, step: &mut Step<'_>, change: impl FnOnce(&mut Blob, &mut Around<'_>) -> T) -> T {
        let said = step.out.len();
        self.contested.touch(key);
        let rested = self.rest.remove(key);
        let blob = self.blobs.entry(key.clone()).or_default();
        let permits = blob.permits.len();
        let mut around = Around {
            now: step.now,
            cluster: &key.0,
            digest: key.1,
            nodes: &self.nodes,
            busy: &self.busy,
            distrust: &self.distrust,
            rates: &self.rates,
            seeds: &mut self.seeds,
            starting: STARTING,
            dice: &mut step.dice,
            out: step.out,
        };
        if let Some(rest) = rested {
            blob.begin(rest, &around);
        }
        let answer = change(blob, &mut around);
        let wake = blob.settle(&mut around);
        self.counts.permits = self.counts.permits + blob.permits.len() - permits;
        if blob.wake != wake {
            if let Some(old) = blob.wake
                && let Some(keys) = self.timers.get_mut(&old)
            {
                keys.remove(key);
                if keys.is_empty() {
                    self.timers.remove(&old);
                }
            }
            blob.wake = wake;
            if let Some(at) = wake {
                self.timers.entry(at).or_default().insert(key.clone());
            }
        }
        if blob.is_over() {
            self.blobs.remove(key);
        } else if let Some(rest) = blob.rest() {
            self.blobs.remove(key);
            self.rest.insert(key.clone(), rest);
        }
        for effect in &step.out[said..] {
            if let Effect::Say(finder, say) = effect
                && say.is_last()
                && let Some((key, id)) = self.finders.remove(finder)
            {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.finders.remove(finder);
                }
                self.flights.push(FlightChange::Ended { node: id, cluster: key.0, digest: key.1, complete: false });
            }
        }
        answer
    }

    /// A blob and what it sees, to be looked at.
    #[cfg(test)]
    fn look(&self, key: &Key, now: At, look: impl FnOnce(&Blob, &Around<'_>)) {
        let (mut dice, mut out, mut seeds) = (Dice::new(0), Vec::new(), self.seeds.clone());
        let around = Around {
            now,
            cluster: &key.0,
            digest: key.1,
            nodes: &self.nodes,
            busy: &self.busy,
            distrust: &self.distrust,
            rates: &self.rates,
            seeds: &mut seeds,
            starting: STARTING,
            dice: &mut dice,
            out: &mut out,
        };
        look(&self.blobs[key], &around);
    }

    fn registered(&mut self, member: Member, restarted: bool, step: &mut Step<'_>) {
        let Member { node: id, cluster, addr, location, seed, orders } = member;
        let location: Arc<[String]> = location.into();
        if let Entry::Vacant(slot) = self.nodes.entry(id.clone()) {
            slot.insert(Node {
                cluster,
                addr,
                location,
                seed,
                orders,
                uploads: 0,
                slots: 0,
                held: Holdings::default(),
                certificate: None,
                stale: None,
                finders: BTreeSet::new(),
            });
            return self.enlist(&id, step);
        }
        self.end_finders(&id, Stop::NoSession, !restarted, step);
        self.moved(&id, cluster, step);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.stale = None;
        let elsewhere = node.addr != addr || node.seed != seed;
        (node.addr, node.location, node.seed, node.orders) = (addr, location, seed, orders);
        if let Some(cluster) = node.cluster.clone().filter(|_| elsewhere) {
            for digest in node.held.digests().collect::<Vec<_>>() {
                let key = (cluster.clone(), digest);
                if !self.rest.contains_key(&key) {
                    self.touch(&key, step, |blob, around| blob.seat(&id, around));
                }
            }
        }
        self.enlist(&id, step);
    }

    fn moved(&mut self, id: &NodeId, cluster: Option<ClusterId>, step: &mut Step<'_>) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        if node.cluster == cluster {
            return;
        }
        self.end_finders(id, Stop::Again("the node was moved to another cluster"), false, step);
        self.drop_all(id, step);
        let Some(node) = self.nodes.get_mut(id) else { return };
        node.cluster.clone_from(&cluster);
        let held = std::mem::take(&mut node.held);
        self.counts.holdings -= held.len();
        for fact in held.into_facts() {
            // What it signed was for its old cluster. It announces all again when it is certified for this one.
            self.hold(id, fact, Signature::new(), step);
        }
        self.enlist(id, step);
    }

    fn certified(&mut self, id: &NodeId, certificate: Arc<Certificate>) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        if node.certificate.as_ref().is_none_or(|known| known.issued < certificate.issued) {
            node.certificate = Some(certificate);
        }
    }

    fn left(&mut self, id: &NodeId, step: &mut Step<'_>) {
        self.end_finders(id, Stop::NoSession, false, step);
        self.drop_all(id, step);
        if let Some(node) = self.nodes.remove(id) {
            self.counts.holdings -= node.held.len();
        }
        self.enlist(id, step);
    }

    /// Takes a node out of the blobs of its cluster; what it holds stays noted at the node, and counted.
    fn drop_all(&mut self, id: &NodeId, step: &mut Step<'_>) {
        self.contested.forget(id, None);
        let Some(node) = self.nodes.get_mut(id) else { return };
        let Some(cluster) = node.cluster.take() else { return };
        for digest in node.held.digests().collect::<Vec<_>>() {
            self.let_go(&(cluster.clone(), digest), id, step);
        }
    }

    /// A node holds a blob no more.
    fn let_go(&mut self, key: &Key, id: &NodeId, step: &mut Step<'_>) {
        let Some(rest) = self.rest.get_mut(key) else {
            return self.touch(key, step, |blob, around| blob.remove_whole(id, around));
        };
        self.contested.touch(key);
        if !rest.let_go(id) {
            self.rest.remove(key);
        }
    }

    /// Ends all Find streams of a node. Its permits are free at once, or, with `grace`, wait for it to come back.
    fn end_finders(&mut self, id: &NodeId, stop: Stop, grace: bool, step: &mut Step<'_>) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        for finder in std::mem::take(&mut node.finders) {
            let Some((key, _)) = self.finders.get(&finder).cloned() else { continue };
            self.touch(&key, step, |blob, around| {
                blob.end(finder, stop, around);
                detach(blob, finder, grace, around);
            });
        }
    }

    /// Notes that a node holds a blob whole, unless that contradicts what others of its cluster hold, or its word on this
    /// blob turned out to be false.
    fn hold(&mut self, id: &NodeId, fact: Arc<Fact>, signature: Signature, step: &mut Step<'_>) -> bool {
        let digest = fact.digest;
        let Some(node) = self.nodes.get_mut(id) else { return false };
        if let Some(cluster) = &node.cluster
            && self.distrust.is_blamed(&(cluster.clone(), digest), id, step.now)
        {
            return false;
        }
        let certificate = node.certificate.clone();
        let taken = match node.cluster.clone() {
            None => Some(fact),
            Some(cluster) => {
                let key = (cluster, digest);
                let rest = self.rest.get_mut(&key);
                let rested = rest.and_then(|rest| rest.take(id, &fact, &signature, certificate.clone()));
                let taken = if rested.is_some() {
                    rested
                } else {
                    self.touch(&key, step, |blob, around| {
                        // One copy of the same facts for all who hold it.
                        let known = blob.seal.as_ref().map(|seal| &seal.meta).filter(|known| **known == fact);
                        let fact = known.unwrap_or(&fact).clone();
                        let vouches = Voucher::new(id, &fact, &signature, certificate);
                        blob.add_whole(id, &fact, vouches, around).then_some(fact)
                    })
                };
                if taken.is_none() {
                    self.contested.insert(key, id.clone(), fact, signature);
                }
                taken
            }
        };
        let (Some(fact), Some(node)) = (taken, self.nodes.get_mut(id)) else { return false };
        self.counts.holdings += usize::from(node.held.insert(fact));
        true
    }

    /// A holder says again what it holds: what it signed before may be of a key or a certificate that counts no more.
    fn vouch_again(&mut self, id: &NodeId, fact: &Arc<Fact>, signature: &Signature, step: &mut Step<'_>) {
        let Some(node) = self.nodes.get(id) else { return };
        let Some(cluster) = node.cluster.clone() else { return };
        if let Some(voucher) = Voucher::new(id, fact, signature, node.certificate.clone()) {
            let key = (cluster, fact.digest);
            match self.rest.get_mut(&key) {
                Some(rest) => rest.vouch(voucher),
                None => self.touch(&key, step, |blob, around| blob.vouch(voucher, around)),
            }
        }
    }

    fn release(&mut self, id: &NodeId, digest: Digest, step: &mut Step<'_>) {
        self.contested.forget(id, Some(digest));
        let Some(node) = self.nodes.get_mut(id) else { return };
        if !node.held.remove(&digest) {
            return;
        }
        self.counts.holdings -= 1;
        if let Some(cluster) = node.cluster.clone() {
            self.let_go(&(cluster, digest), id, step);
        }
    }

    fn announced(&mut self, id: &NodeId, what: Announced, step: &mut Step<'_>) {
        if what.reset {
            self.contested.forget(id, None);
        }
        let Some(node) = self.nodes.get_mut(id) else { return };
        if what.reset {
            node.stale = Some(node.held.digests().collect());
        }
        for (digest, meta, signature) in what.held {
            let Some(node) = self.nodes.get_mut(id) else { return };
            if let Some(stale) = &mut node.stale {
                stale.remove(&digest);
            }
            match node.held.get(&digest) {
                Some(known) if known.meta == meta => {
                    let fact = Arc::clone(known);
                    self.vouch_again(id, &fact, &signature, step);
                    continue;
                }
                Some(_) => self.release(id, digest, step),
                None => {}
            }
            self.hold(id, Arc::new(Fact { digest, meta }), signature, step);
        }
        for digest in what.dropped {
            self.release(id, digest, step);
        }
        if what.complete {
            let stale = self.nodes.get_mut(id).and_then(|node| node.stale.take());
            for digest in stale.unwrap_or_default() {
                self.release(id, digest, step);
            }
        }
    }

    fn find(&mut self, finder: FinderId, id: NodeId, ask: &Ask, step: &mut Step<'_>) {
        let Some(node) = self.nodes.get(&id) else {
            return step.out.push(Effect::Say(finder, Say::Stop(Stop::NoSession)));
        };
        let Some(cluster) = node.cluster.clone() else {
            return step.out.push(Effect::Say(finder, Say::Stop(Stop::Alone)));
        };
        // Who looks for it does not hold it, whatever was said before.
        self.release(&id, ask.digest, step);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.finders.insert(finder);
        }
        let key = (cluster, ask.digest);
        self.finders.insert(finder, (key.clone(), id.clone()));
        self.flights.push(FlightChange::Began {
            node: id.clone(),
            cluster: key.0.clone(),
            digest: key.1,
            size: ask.size,
        });
        let blamed = self.distrust.is_blamed(&key, &id, step.now);
        let outcast = self.distrust.is_outcast(&id, step.now);
        self.touch(&key, step, |blob, around| {
            if let Some(older) = blob.finder_of(&id) {
                blob.end(older, Stop::Invalid("a newer Find of this node took its place"), around);
                detach(blob, older, true, around);
            }
            let mut entry = Finder::new(id.clone(), ask);
            // What it would say of the origin's bytes is not believed: it goes to the registry by itself.
            entry.denied |= blamed || outcast;
            let known = around.rates.of(around.cluster, &ask.registry, &id, around.now);
            let best = around.rates.best_other(around.cluster, &ask.registry, &id, around.now);
            entry.slow = known.zip(best).is_some_and(|(known, best)| known * 4 < best);
            blob.hint = blob.hint.or(ask.size);
            blob.take_in(finder, entry, around);
            if !blamed && !outcast {
                claim(blob, finder, &id, ask, around);
            }
        });
    }

    fn ended(&mut self, finder: FinderId, clean: bool, step: &mut Step<'_>) {
        let Some((key, id)) = self.finders.remove(&finder) else { return };
        if let Some(node) = self.nodes.get_mut(&id) {
            node.finders.remove(&finder);
        }
        let complete = self.touch(&key, step, |blob, around| {
            let complete = blob.let_go(finder, around).is_some_and(|finder| finder.done);
            blob.changed(around.now);
            detach(blob, finder, !clean, around);
            if clean {
                blob.recall_seed(around);
            }
            complete
        });
        self.flights.push(FlightChange::Ended { node: id, cluster: key.0, digest: key.1, complete });
    }

    fn told(&mut self, finder: FinderId, tell: Tell, step: &mut Step<'_>) {
        let Some((key, id)) = self.finders.get(&finder).cloned() else { return };
        match tell {
            // The two that come often change nothing that others wait for, unless they are firsts.
            Tell::Progress { blocks, origin_bytes, fed } => {
                self.fed(finder, &key, fed);
                self.progress(finder, &key, blocks, origin_bytes, step);
            }
            Tell::Hashes { first, hashes, signature } => {
                self.touch(&key, step, |blob, around| blob.hashes(finder, first, &hashes, signature, around));
            }
            Tell::Headers { permit, size, media_type, signature } => self.touch(&key, step, |blob, around| {
                if blob.headers(finder, permit, size, (media_type, signature), around).is_err() {
                    blob.end(finder, Stop::Invalid("size: a blob above 256 GiB can't be cut into blocks"), around);
                    blob.drop_permits(|permit| permit.finder == Some(finder), Cause::GaveUp, around);
                }
            }),
            Tell::Failed { permit, why } => self.failed(finder, &key, permit, why, step),
            Tell::Done(meta, signature) => {
                let permits = self.blobs.get(&key).map_or(0, |blob| blob.permits.len());
                self.quietly(&key, step, |blob, around| {
                    // Not moved: used up. Nobody is granted another before it is known who holds the blob.
                    blob.permits.retain(|permit| permit.finder != Some(finder));
                    blob.change(finder, around, |finder| finder.done = true);
                });
                let left = self.blobs.get(&key).map_or(0, |blob| blob.permits.len());
                self.counts.permits -= permits - left;
                self.hold(&id, Arc::new(Fact { digest: key.1, meta }), signature, step);
                self.touch(&key, step, |blob, around| blob.changed(around.now));
            }
            Tell::Lied { node, block: _ } => {
                // It may have lied before its lease ended, and come again; how much one node may say of others is bounded.
                self.complain(&node, &id, &key, step);
                // Who says so of nodes that are not there fills no finder's memory.
                if !self.nodes.contains_key(&node) {
                    return;
                }
                self.touch(&key, step, |blob, around| {
                    let outcast = around.distrust.is_outcast(&node, around.now);
                    blob.shun(&node, Some(finder).filter(|_| !outcast), around);
                    let Some(entry) = blob.finders.get_mut(&finder) else { return };
                    if entry.liars.insert(node.clone()) {
                        around.notice(Notice::ParentLied { parent: node, reporter: id });
                        blob.review(finder, around);
                        blob.name_again(finder);
                    }
                });
            }
            Tell::Lost { node } => self.touch(&key, step, |blob, around| {
                if !around.nodes.contains_key(&node) {
                    return;
                }
                let until = around.now + LOST;
                blob.change(finder, around, |entry| {
                    entry.lost.insert(node, until);
                });
                blob.name_again(finder);
            }),
            Tell::Mismatch { author } => self.mismatch(finder, &key, &id, author, step),
            Tell::Unproven { author } => {
                self.touch(&key, step, |blob, around| blob.unproven(finder, author, around));
            }
        }
    }

    fn failed(&mut self, finder: FinderId, key: &Key, permit: u64, why: Trouble, step: &mut Step<'_>) {
        let Some(blob) = self.blobs.get(key) else { return };
        if !blob.permits.iter().any(|p| p.id == permit && p.finder == Some(finder)) {
            return;
        }
        let Some(entry) = blob.finders.get(&finder) else { return };
        let registry = Arc::clone(&entry.registry);
        if let Trouble::Busy(asked) = why {
            self.busy.retain(|_, until| *until > step.now);
            self.busy.insert((key.0.clone(), registry.to_string()), step.now + pause(asked));
        }
        self.touch(key, step, |blob, around| {
            let now = around.now;
            let cause = if why == Trouble::Abandoned { Cause::GaveUp } else { Cause::Failed };
            blob.drop_permits(|p| p.id == permit, cause, around);
            // What a registry hides from a seed behind 404 it may show to others.
            let ordered = blob.finders.get(&finder).is_some_and(|entry| entry.ordered);
            blob.note_failure(finder, why, around);
            match why {
                Trouble::Unreachable => blob.change(finder, around, |entry| entry.failed(now)),
                Trouble::NotFound if ordered => blob.change(finder, around, |entry| entry.denied = true),
                Trouble::Denied => blob.change(finder, around, |entry| entry.denied = true),
                Trouble::Abandoned => blob.change(finder, around, |entry| entry.may_read = false),
                Trouble::NotFound => blob.deny_all_like(finder, around),
                Trouble::Busy(_) => {}
            }
        });
    }

    /// A node says that another lied to it: what may be named to the one, or to anybody, changes in every other blob too. `here` is
    /// the blob that it is about, which the caller brings in line.
    fn complain(&mut self, accused: &NodeId, reporter: &NodeId, here: &Key, step: &mut Step<'_>) {
        let outcast = self.distrust.is_outcast(accused, step.now);
        self.distrust.complain(accused, reporter, step.now);
        let finders = self.nodes.get(reporter).map(|node| node.finders.clone()).unwrap_or_default();
        for finder in finders {
            let Some((key, _)) = self.finders.get(&finder).filter(|(key, _)| key != here).cloned() else { continue };
            self.touch(&key, step, |blob, around| blob.shun(accused, Some(finder), around));
        }
        if !outcast && self.distrust.is_outcast(accused, step.now) {
            let Some(node) = self.nodes.get(accused) else { return };
            let Some(cluster) = node.cluster.clone() else { return };
            let sought = node.finders.iter().filter_map(|finder| Some(self.finders.get(finder)?.0.1));
            let keys: BTreeSet<Key> =
                node.held.digests().chain(sought).map(|digest| (cluster.clone(), digest)).collect();
            for key in keys.iter().filter(|key| *key != here) {
                self.touch(key, step, |blob, around| blob.shun(accused, None, around));
            }
        }
    }

    /// Changes what a blob notes, when nothing follows from it that anybody waits for.
    fn quietly(&mut self, key: &Key, step: &mut Step<'_>, change: impl FnOnce(&mut Blob, &mut Around<'_>)) {
        let Some(blob) = self.blobs.get_mut(key) else { return };
        let mut around = Around {
            now: step.now,
            cluster: &key.0,
            digest: key.1,
            nodes: &self.nodes,
            busy: &self.busy,
            distrust: &self.distrust,
            rates: &self.rates,
            seeds: &mut self.seeds,
            starting: STARTING,
            dice: &mut step.dice,
            out: step.out,
        };
        change(blob, &mut around);
    }
}

struct Step<'a> {
    now: At,
    dice: Dice,
    out: &'a mut Vec<Effect>,
}

/// A finder's stream is over: its permits are free, or, with `grace`, wait for it to come back.
fn detach(blob: &mut Blob, finder: FinderId, grace: bool, around: &mut Around<'_>) {
    if !grace {
        blob.drop_permits(|permit| permit.finder == Some(finder), Cause::GaveUp, around);
    }
    for permit in blob.permits.iter_mut().filter(|permit| permit.finder == Some(finder)) {
        (permit.finder, permit.lost) = (None, Some(around.now));
    }
}

/// A node that finds again may keep the permit that it reads under, and learns what became of it.
fn claim(blob: &mut Blob, finder: FinderId, node: &NodeId, ask: &Ask, around: &mut Around<'_>) {
    let waits = |permit: &Permit| permit.node == *node && permit.finder.is_none();
    // It knows nothing of the permit: that flight is over.
    blob.drop_permits(|permit| waits(permit) && permit.id != ask.permit.id, Cause::GaveUp, around);
    if ask.permit.id == 0 {
        return;
    }
    if let Some(permit) = blob.permits.iter_mut().find(|permit| waits(permit)) {
        (permit.finder, permit.lost) = (Some(finder), None);
        permit.touch(around.now);
        around.say(finder, Say::Permit(permit.grant()));
    } else {
        let mut permit = Permit::new(ask.permit.id, node.clone(), finder, around.now);
        if ask.permit.blocks > 0 {
            permit.run = ask.permit.first..ask.permit.first.saturating_add(ask.permit.blocks);
        }
        let clear = blob.permits.iter().all(|other| permit.is_apart(other));
        if !(clear && ask.may_read_origin && blob.whole.is_empty()) {
            return around.say(finder, Say::Stop(Stop::Revoked));
        }
        around.say(finder, Say::Permit(permit.grant()));
        blob.permits.push(permit);
        blob.recount(around);
    }
    blob.review(finder, around);
}
