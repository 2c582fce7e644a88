//! One job, and the rules of its states. Pure: moments are passed in, and whoever asks does what comes of it.
//!
//! ```text
//! of a node:  waiting → running → done | failed | cancelled      retry: failed | cancelled → waiting
//! of the job: running while a node waits or runs; else cancelled, if it was; else failed, if a node did; else done
//! ```

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use shoal_proto::{ClusterId, Digest, NodeId};

use crate::store::Seconds;

/// Nodes that may fail to find out what a reference leads to, before the others are not asked any more.
const MOST_SCOUTS: u32 = 5;

/// An image, by names that were checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Host, with its port if it has one: `docker.io`, `registry.example:5000`.
    pub registry: String,
    /// Its path: `library/alpine`.
    pub repository: String,
    /// A tag, or a digest.
    pub reference: String,
}

/// Which nodes of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Its seeds.
    Seeds,
    /// So many of a hundred of its nodes, at least one.
    Percent(u8),
    /// These, by id or name.
    Nodes(Vec<String>),
}

/// How far a node, or a job, is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not begun.
    Waiting,
    /// The node has begun.
    Running,
    /// All of the image is held.
    Done,
    /// Why not.
    Failed(String),
    /// Somebody took the job back.
    Cancelled,
}

impl State {
    /// Nothing more happens without a retry.
    pub const fn is_settled(&self) -> bool {
        !matches!(self, Self::Waiting | Self::Running)
    }
}

/// A configuration, a layer, or a manifest of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Which.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// One node's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// The node's name when the job was made.
    pub name: String,
    /// Grows with each retry.
    pub attempt: u32,
    /// How far it is.
    pub state: State,
    /// Bytes of each blob that came: of those that were said last. Not kept over a restart.
    #[serde(skip)]
    pub bytes: BTreeMap<Digest, u64>,
    /// All of them together.
    #[serde(skip)]
    pub has: u64,
}

impl Work {
    /// The first attempt of a node, not begun.
    pub const fn waiting(name: String) -> Self {
        Self { name, attempt: 1, state: State::Waiting, bytes: BTreeMap::new(), has: 0 }
    }
}

/// One job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Never given twice.
    pub id: String,
    /// What is fetched.
    pub image: Image,
    /// `os/architecture[/variant]`; empty: all images of an index.
    pub platforms: Vec<String>,
    /// Where.
    pub cluster: ClusterId,
    /// The cluster's name when the job was made; empty in a job of 0.1.0.
    #[serde(default)]
    pub cluster_name: String,
    /// Onto which nodes of it.
    pub target: Target,
    /// When it was made.
    pub created: Seconds,
    /// By which API token.
    pub created_by: String,
    /// When the last of its nodes was settled.
    pub ended: Option<Seconds>,
    /// Somebody took it back.
    pub cancelled: bool,
    /// Starts at 1 and grows by 1 with each cancel and each retry; what nodes say does not count.
    #[serde(default = "first")]
    pub version: u64,
    /// Nodes that could not find out what the reference leads to, since it was begun or tried again.
    #[serde(default)]
    pub scouts: u32,
    /// What the reference led the first node to; the others fetch this.
    pub manifest: Option<Digest>,
    /// What is fetched for it.
    pub blobs: Vec<Blob>,
    /// Its nodes.
    pub nodes: BTreeMap<NodeId, Work>,
}

const fn first() -> u64 {
    1
}

/// What a node says of its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// How far it is.
    pub state: State,
    /// With [`State::Failed`]: the registry's answer is final, and what goes wrong does not lie with this node.
    pub refused: bool,
    /// What the reference led to, once that is known.
    pub manifest: Option<Digest>,
    /// All blobs, with the bytes that came.
    pub blobs: Vec<(Blob, u64)>,
}

/// What a word of a node changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Nothing: it is of an earlier attempt, or of a node that is settled.
    Nothing,
    /// More bytes, or it has begun.
    Progress,
    /// Something that must outlive this process: a node is settled, or the manifest is known.
    Settled,
}

impl Job {
    /// The whole of it.
    pub fn state(&self) -> State {
        let works = || self.nodes.values();
        if works().any(|work| !work.state.is_settled()) {
            return if works().all(|work| work.state == State::Waiting) { State::Waiting } else { State::Running };
        }
        if self.cancelled {
            return State::Cancelled;
        }
        let failed = works().filter(|work| matches!(work.state, State::Failed(_))).count();
        match failed {
            0 => State::Done,
            failed => State::Failed(format!("{failed} of {} nodes", self.nodes.len())),
        }
    }

    /// Bytes of the image, and how many of them each node has.
    pub fn size(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.size).sum()
    }

    /// Bytes that a node has of it.
    pub fn bytes_of(&self, work: &Work) -> u64 {
        if work.state == State::Done { self.size() } else { work.has }
    }

    /// What a node is to fetch: once the manifest is known, that, so that all have the same image whatever becomes of a tag.
    pub fn reference(&self) -> String {
        self.manifest.map_or_else(|| self.image.reference.clone(), |manifest| manifest.to_string())
    }

    /// It is known which manifest nodes are to fetch.
    pub fn is_resolved(&self) -> bool {
        self.manifest.is_some() || self.image.reference.parse::<Digest>().is_ok()
    }

    /// Nodes that are not settled, each with its attempt.
    pub fn open(&self) -> impl Iterator<Item = (&NodeId, &Work)> {
        self.nodes.iter().filter(|(_, work)| !work.state.is_settled())
    }

    /// Nodes that are to have their orders. Until one of them has found out what the reference leads to, that one alone: the one
    /// that has begun if it is `here`, else the first that is.
    pub fn due(&self, here: impl Fn(&NodeId) -> bool) -> Vec<(NodeId, u32)> {
        let due = |(node, work): (&NodeId, &Work)| (node.clone(), work.attempt);
        if self.is_resolved() {
            return self.open().map(due).collect();
        }
        let present = || self.open().filter(|(node, _)| here(node));
        let runs = |(_, work): &(&NodeId, &Work)| work.state == State::Running;
        present().find(runs).or_else(|| present().next()).map(due).into_iter().collect()
    }

    /// A node said something of an attempt.
    pub fn heard(&mut self, node: &NodeId, attempt: u32, said: Said, now: Seconds) -> Heard {
        let Some(work) = self.nodes.get_mut(node) else { return Heard::Nothing };
        if work.attempt != attempt || work.state.is_settled() || said.state == State::Waiting {
            return Heard::Nothing;
        }
        let mut heard = Heard::Progress;
        if let Some(manifest) = said.manifest
            && !said.blobs.is_empty()
        {
            if self.manifest.is_none() {
                self.manifest = Some(manifest);
                self.blobs = said.blobs.iter().map(|(blob, _)| blob.clone()).collect();
                heard = Heard::Settled;
            }
            work.bytes = said.blobs.into_iter().map(|(blob, bytes)| (blob.digest, bytes)).collect();
            let of = |blob: &Blob| work.bytes.get(&blob.digest).copied().unwrap_or(0).min(blob.size);
            work.has = self.blobs.iter().map(of).sum();
        }
        work.state = said.state;
        if work.state.is_settled() {
            heard = Heard::Settled;
        }
        let failed = match &work.state {
            State::Failed(why) => Some((work.name.clone(), why.clone())),
            _ => None,
        };
        if let Some((name, why)) = failed.filter(|_| !self.is_resolved()) {
            self.scout_failed(&name, &why, said.refused);
        }
        self.end(now);
        heard
    }

    /// A node said that it failed before anybody knew what the reference leads to. Nobody else is asked once the registry has refused it, or
    /// once so many could not find out: each of thousands would fail alike, one after the other.
    fn scout_failed(&mut self, name: &str, why: &str, refused: bool) {
        self.scouts += 1;
        let others = match self.scouts {
            _ if refused => format!("not asked: {name} was refused: {why}"),
            MOST_SCOUTS.. => {
                let (scouts, reference) = (self.scouts, &self.image.reference);
                format!("not asked: {scouts} nodes could not find out what {reference} is; {name}: {why}")
            }
            _ => return,
        };
        for work in self.nodes.values_mut().filter(|work| !work.state.is_settled()) {
            work.state = State::Failed(others.clone());
        }
    }

    /// A node can't do its part.
    pub fn fail(&mut self, node: &NodeId, why: String, now: Seconds) {
        if let Some(work) = self.nodes.get_mut(node)
            && !work.state.is_settled()
        {
            work.state = State::Failed(why);
        }
        self.end(now);
    }

    /// Nodes that can't do their part, and why, before anything is asked of them.
    pub fn refuse(&mut self, mut why: impl FnMut(&NodeId) -> Option<String>, now: Seconds) {
        for (node, work) in self.nodes.iter_mut().filter(|(_, work)| !work.state.is_settled()) {
            if let Some(why) = why(node) {
                work.state = State::Failed(why);
            }
        }
        self.end(now);
    }

    /// Takes it back. False: it has ended.
    pub fn cancel(&mut self, now: Seconds) -> bool {
        if self.ended.is_some() {
            return false;
        }
        self.cancelled = true;
        self.version += 1;
        for work in self.nodes.values_mut().filter(|work| !work.state.is_settled()) {
            work.state = State::Cancelled;
        }
        self.end(now);
        true
    }

    /// What failed or was taken back begins anew. The answer is how many nodes that are; nothing while it goes on.
    pub fn retry(&mut self) -> usize {
        if self.ended.is_none() {
            return 0;
        }
        let again = |work: &&mut Work| matches!(work.state, State::Failed(_) | State::Cancelled);
        let mut count = 0;
        for work in self.nodes.values_mut().filter(again) {
            work.attempt += 1;
            work.state = State::Waiting;
            work.bytes.clear();
            work.has = 0;
            count += 1;
        }
        if count > 0 {
            (self.ended, self.cancelled, self.scouts) = (None, false, 0);
            self.version += 1;
        }
        count
    }

    fn end(&mut self, now: Seconds) {
        if self.ended.is_none() && self.nodes.values().all(|work| work.state.is_settled()) {
            self.ended = Some(now);
        }
    }
}

/// A live node that could be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: NodeId,
    /// Its name, not unique.
    pub name: String,
    /// Its job is to fetch first.
    pub seed: bool,
}

/// Why a target means no node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nobody {
    /// What was asked for is at fault: the field and what is wrong with it.
    Field(String, String),
    /// The cluster has no live node at all.
    Empty,
}

/// The nodes of a cluster that a target means. `lot` is another number for each job, so that shares fall on all nodes in turn.
///
/// # Errors
/// Why there is none, naming what is not there.
pub fn choose(target: &Target, live: &[Candidate], lot: u64) -> Result<Vec<Candidate>, Nobody> {
    if live.is_empty() {
        return Err(Nobody::Empty);
    }
    match target {
        Target::Seeds => {
            let seeds: Vec<_> = live.iter().filter(|one| one.seed).cloned().collect();
            let none = || Nobody::Field("seeds".into(), "the cluster has no live seed".into());
            if seeds.is_empty() { Err(none()) } else { Ok(seeds) }
        }
        Target::Percent(percent) => {
            let mut all = live.to_vec();
            all.sort_by_key(|one| rank(lot, &one.id));
            all.truncate((live.len() * usize::from(*percent)).div_ceil(100));
            Ok(all)
        }
        Target::Nodes(names) => {
            let mut by_name: HashMap<&str, Vec<&Candidate>> = HashMap::new();
            for one in live {
                by_name.entry(one.id.as_str()).or_default().push(one);
                by_name.entry(&one.name).or_default().push(one);
            }
            let mut chosen: BTreeMap<NodeId, Candidate> = BTreeMap::new();
            for (at, name) in names.iter().enumerate() {
                let field = || format!("nodes[{at}]");
                match by_name.get(name.as_str()).map_or(&[][..], Vec::as_slice) {
                    [one] => _ = chosen.insert(one.id.clone(), (*one).clone()),
                    [one, same] if one.id == same.id => _ = chosen.insert(one.id.clone(), (*one).clone()),
                    [] => {
                        let why = format!("{name:?} is neither id nor name of a live node of the cluster");
                        return Err(Nobody::Field(field(), why));
                    }
                    several => {
                        let why = format!("{} live nodes are called {name:?}: name one by its id", several.len());
                        return Err(Nobody::Field(field(), why));
                    }
                }
            }
            Ok(chosen.into_values().collect())
        }
    }
}

/// FNV-1a: spread, not secrecy.
fn rank(lot: u64, node: &NodeId) -> u64 {
    let bytes = lot.to_be_bytes().into_iter().chain(node.as_str().bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(number: u16) -> NodeId {
        format!("00000000-0000-4000-8000-00000000{number:04x}").parse().unwrap()
    }

    fn digest(byte: u8) -> Digest {
        Digest::from_bytes([byte; 32])
    }

    fn job(nodes: u16, reference: &str) -> Job {
        let work = |number| (node(number), Work::waiting(format!("n{number}")));
        Job {
            id: "j".into(),
            image: Image { registry: "r.test".into(), repository: "a/b".into(), reference: reference.into() },
            platforms: Vec::new(),
            cluster: "c1".parse().unwrap(),
            cluster_name: "One".into(),
            target: Target::Percent(100),
            created: 1,
            created_by: "admin".into(),
            ended: None,
            cancelled: false,
            version: 1,
            scouts: 0,
            manifest: None,
            blobs: Vec::new(),
            nodes: (0..nodes).map(work).collect(),
        }
    }

    fn said(state: State, bytes: u64) -> Said {
        let blob = Blob { digest: digest(2), size: 100 };
        Said { state, refused: false, manifest: Some(digest(1)), blobs: vec![(blob, bytes)] }
    }

    /// Of a node that does not know what the reference leads to.
    fn blind(state: State, refused: bool) -> Said {
        Said { state, refused, manifest: None, blobs: Vec::new() }
    }

    fn due(job: &Job) -> Vec<(NodeId, u32)> {
        job.due(|_| true)
    }

    fn failed() -> State {
        State::Failed("no".into())
    }

    #[test]
    fn one_node_finds_out_what_a_tag_is_and_the_others_fetch_that() {
        let mut job = job(3, "1");
        assert_eq!(due(&job), [(node(0), 1)]);
        assert_eq!(job.heard(&node(0), 1, blind(State::Running, false), 5), Heard::Progress);
        assert_eq!(due(&job).len(), 1);
        assert_eq!(job.heard(&node(0), 1, said(State::Running, 7), 5), Heard::Settled);
        assert_eq!(due(&job).len(), 3);
        assert_eq!(job.reference(), digest(1).to_string());
        assert_eq!((job.size(), job.bytes_of(&job.nodes[&node(0)])), (100, 7));
        assert_eq!(job.state(), State::Running);
        // With a digest there is nothing to find out.
        assert_eq!(due(&super::tests::job(3, &digest(9).to_string())).len(), 3);
    }

    #[test]
    fn a_first_node_that_fails_leaves_it_to_the_next() {
        let mut job = job(2, "1");
        job.fail(&node(0), "away".into(), 4);
        assert_eq!(due(&job), [(node(1), 1)]);
        assert_eq!(job.ended, None);
        job.heard(&node(1), 1, said(State::Done, 100), 6);
        assert_eq!((job.state(), job.ended), (State::Failed("1 of 2 nodes".into()), Some(6)));
    }

    #[test]
    fn a_first_node_that_is_away_leaves_it_to_the_next_and_takes_it_up_when_it_is_back() {
        let mut job = job(3, "1");
        job.heard(&node(0), 1, blind(State::Running, false), 4);
        assert_eq!(job.due(|one| *one != node(0)), [(node(1), 1)]);
        assert_eq!(job.due(|_| false), []);
        assert_eq!(due(&job), [(node(0), 1)]);
    }

    #[test]
    fn what_a_registry_refuses_ends_the_job_and_says_so_at_each_node() {
        let mut job = job(3000, "1");
        assert_eq!(job.heard(&node(0), 1, blind(State::Failed("404: no such tag".into()), true), 5), Heard::Settled);
        assert_eq!(job.ended, Some(5));
        assert_eq!(job.nodes[&node(0)].state, State::Failed("404: no such tag".into()));
        assert_eq!(job.nodes[&node(2999)].state, State::Failed("not asked: n0 was refused: 404: no such tag".into()));
        // The tag was pushed: all of them try again.
        assert_eq!(job.retry(), 3000);
        job.heard(&node(0), 2, said(State::Running, 1), 6);
        // What one node is refused once the manifest is known is that node's.
        job.heard(&node(1), 2, blind(State::Failed("403".into()), true), 7);
        assert_eq!((job.open().count(), job.ended), (2999, None));
    }

    #[test]
    fn a_few_nodes_that_cannot_find_out_what_a_tag_is_speak_for_all() {
        let mut job = job(3000, "1");
        // Those that were not asked do not count.
        for number in 0..100 {
            job.fail(&node(number), "it was away".into(), 1);
        }
        for number in 100..104 {
            job.heard(&node(number), 1, blind(State::Failed("502".into()), false), 2);
            assert_eq!(due(&job), [(node(number + 1), 1)]);
        }
        job.heard(&node(104), 1, blind(State::Failed("502".into()), false), 3);
        assert_eq!(job.ended, Some(3));
        let State::Failed(why) = &job.nodes[&node(2999)].state else { panic!("{:?}", job.nodes[&node(2999)]) };
        assert!(why.contains("5 nodes") && why.contains("n104: 502"), "{why}");
    }

    #[test]
    fn each_cancel_and_each_retry_is_another_version_and_words_of_nodes_are_not() {
        let mut job = job(1, "1");
        job.heard(&node(0), 1, said(State::Running, 1), 2);
        assert_eq!(job.version, 1);
        assert!(job.cancel(3) && !job.cancel(4));
        assert_eq!((job.version, job.retry(), job.version), (2, 1, 3));
        assert_eq!((job.retry(), job.version), (0, 3));
    }

    #[test]
    fn what_failed_is_tried_again_and_what_is_done_is_not() {
        let mut job = job(3, "1");
        job.heard(&node(0), 1, said(State::Done, 100), 5);
        job.heard(&node(1), 1, said(failed(), 10), 5);
        assert_eq!(job.retry(), 0, "it goes on");
        job.heard(&node(2), 1, said(State::Cancelled, 10), 5);
        assert_eq!(job.retry(), 2);
        assert_eq!((job.ended, due(&job)), (None, vec![(node(1), 2), (node(2), 2)]));
        // A late word of the first attempt.
        assert_eq!(job.heard(&node(1), 1, said(State::Done, 100), 6), Heard::Nothing);
        job.heard(&node(1), 2, said(State::Done, 100), 7);
        job.heard(&node(2), 2, said(State::Done, 100), 8);
        assert_eq!((job.state(), job.ended), (State::Done, Some(8)));
        assert_eq!(job.retry(), 0);
    }

    #[test]
    fn a_job_that_was_cancelled_is_that_whatever_nodes_say_later() {
        let mut job = job(2, "1");
        job.heard(&node(0), 1, said(State::Done, 100), 5);
        assert!(job.cancel(6));
        assert_eq!((job.state(), job.ended), (State::Cancelled, Some(6)));
        assert_eq!(job.heard(&node(1), 1, said(State::Done, 100), 7), Heard::Nothing);
        assert!(!job.cancel(8));
        assert!(due(&job).is_empty());
        assert_eq!((job.retry(), job.cancelled), (1, false));
    }

    #[test]
    fn nodes_are_chosen_by_role_share_or_name() {
        let one = |number: u16, name: &str, seed| Candidate { id: node(number), name: name.into(), seed };
        let live = [one(0, "a", false), one(1, "b", true), one(2, "twin", false), one(3, "twin", true)];
        let names = |target: Target| -> Result<Vec<NodeId>, Nobody> {
            Ok(choose(&target, &live, 7)?.into_iter().map(|one| one.id).collect())
        };
        assert_eq!(names(Target::Seeds).unwrap(), [node(1), node(3)]);
        assert_eq!(
            names(Target::Nodes(vec!["b".into(), node(2).to_string(), "b".into()])).unwrap(),
            [node(1), node(2)]
        );
        let refused = |target: Target, live: &[Candidate]| match choose(&target, live, 0).unwrap_err() {
            Nobody::Field(field, why) => (field, why),
            Nobody::Empty => panic!("{target:?} of {live:?}"),
        };
        let (field, why) = refused(Target::Nodes(vec!["b".into(), "twin".into()]), &live);
        assert!(field == "nodes[1]" && why.contains("2 live nodes"), "{field}: {why}");
        let (field, why) = refused(Target::Nodes(vec!["c".into()]), &live);
        assert!(field == "nodes[0]" && why.contains("\"c\""), "{field}: {why}");
        assert_eq!(refused(Target::Seeds, &live[..1]).0, "seeds");
        assert_eq!(choose(&Target::Percent(50), &[], 0), Err(Nobody::Empty));
    }

    proptest! {
        #[test]
        fn a_share_is_as_large_as_was_asked_and_falls_on_others_each_time(nodes in 1_u16..60, percent in 1_u8..=100) {
            let live: Vec<_> = (0..nodes).map(|number| Candidate { id: node(number), name: "n".into(), seed: false }).collect();
            let chosen = choose(&Target::Percent(percent), &live, 1).unwrap();
            let exact = f64::from(nodes) * f64::from(percent) / 100.0;
            prop_assert!(!chosen.is_empty() && (chosen.len() as f64 - exact) < 1.0 && chosen.len() as f64 >= exact);
            let firsts: std::collections::BTreeSet<_> =
                (0..50).map(|lot| choose(&Target::Percent(1), &live, lot).unwrap()[0].id.clone()).collect();
            prop_assert!(nodes < 4 || firsts.len() > 1);
        }

        #[test]
        fn whatever_comes_a_job_ends_when_all_its_nodes_have_and_never_before(
            words in prop::collection::vec((0_u16..3, 1_u32..3, 0_u8..6), 0..40)
        ) {
            let mut job = job(3, "1");
            for (at, (number, attempt, word)) in words.into_iter().enumerate() {
                let now = at as u64;
                match word {
                    0 => _ = job.heard(&node(number), attempt, said(State::Running, now), now),
                    1 => _ = job.heard(&node(number), attempt, said(State::Done, 100), now),
                    2 => _ = job.heard(&node(number), attempt, said(failed(), 1), now),
                    3 => job.fail(&node(number), "away".into(), now),
                    4 => _ = job.cancel(now),
                    _ => _ = job.retry(),
                }
                let settled = job.nodes.values().all(|work| work.state.is_settled());
                prop_assert_eq!(job.ended.is_some(), settled);
                prop_assert_eq!(due(&job).is_empty(), settled);
                prop_assert!(job.state().is_settled() == settled);
                let kept: Job = serde_json::from_value(serde_json::to_value(&job).unwrap()).unwrap();
                prop_assert_eq!(kept.state(), job.state());
            }
        }
    }
}
