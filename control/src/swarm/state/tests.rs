use std::time::Duration;

use bytes::Bytes;
use shoal_proto::{Layout, PieceList};

use super::super::event::{Grant, Meta, Notice, ParentSaid, Waiting};
use super::super::order::{Order, Reply};
use super::*;

mod liars;
mod random;
mod runs;
mod scale;
mod seeds;
mod signed;

const BLOCK: u64 = 256 << 10;

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn cluster(name: &str) -> ClusterId {
    name.parse().unwrap()
}

fn digest(number: u8) -> Digest {
    Digest::from_bytes([number; 32])
}

fn fact(number: u8, root: u8) -> Arc<Fact> {
    Arc::new(Fact { digest: digest(number), meta: meta(root) })
}

fn meta(root: u8) -> Meta {
    Meta { size: 4 * BLOCK, root: [root; 32], media_type: "text/plain".into() }
}

fn ms(millis: u64) -> At {
    Duration::from_millis(millis)
}

/// The machine, with a clock that is turned by hand and a box for what each finder was told.
#[derive(Default)]
struct Bench {
    state: State,
    now: At,
    last: u64,
    seed: u64,
    said: HashMap<FinderId, Vec<Say>>,
    notices: Vec<Notice>,
    /// Who was told to fetch what, or that it is taken back.
    orders: Vec<(NodeId, Order, bool)>,
}

impl Bench {
    /// A control that has been running for a while, with these nodes in one cluster.
    fn with(nodes: &[&str]) -> Self {
        let mut bench = Self { now: STARTING, ..Self::default() };
        nodes.iter().for_each(|name| bench.join(name, Some("east")));
        bench
    }

    fn apply(&mut self, event: Event) {
        self.seed += 1;
        for effect in self.state.apply(self.now, self.seed, event) {
            match effect {
                Effect::Say(finder, say) => self.said.entry(finder).or_default().push(say),
                Effect::Notice { notice, .. } => self.notices.push(notice),
                Effect::Order { seed, order, back } => self.orders.push((seed, order, back)),
            }
        }
    }

    fn join(&mut self, name: &str, to: Option<&str>) {
        let addr = "10.0.0.1:5081".parse().unwrap();
        let member = Member {
            node: node(name),
            cluster: to.map(cluster),
            addr,
            location: Vec::new(),
            seed: false,
            orders: true,
        };
        self.apply(Event::Registered { member, restarted: false });
    }

    fn ask(&mut self, name: &str, ask: Ask) -> FinderId {
        self.last += 1;
        let finder = FinderId(self.last);
        self.apply(Event::Find { finder, node: node(name), ask });
        finder
    }

    fn find(&mut self, name: &str) -> FinderId {
        self.ask(name, want(1))
    }

    fn tell(&mut self, finder: FinderId, tell: Tell) {
        self.apply(Event::Told { finder, tell });
    }

    /// Time goes by as the shell lets it: with a tick whenever one is due.
    fn wait(&mut self, time: At) {
        let end = self.now + time;
        while let Some(at) = self.state.next_tick().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.apply(Event::Tick);
        }
        self.now = end;
    }

    fn take(&mut self, finder: FinderId) -> Vec<Say> {
        self.said.remove(&finder).unwrap_or_default()
    }

    fn permit(&mut self, finder: FinderId) -> Option<u64> {
        self.take(finder).into_iter().find_map(|say| if let Say::Permit(grant) = say { Some(grant.id) } else { None })
    }

    fn headers(&mut self, finder: FinderId, permit: u64) {
        self.tell(
            finder,
            Tell::Headers { permit, size: 4 * BLOCK, media_type: "text/plain".into(), signature: Signature::new() },
        );
    }

    fn hashes(&mut self, finder: FinderId, first: u32, hashes: &[u8]) {
        let hashes: Vec<u8> = hashes.iter().flat_map(|hash| [*hash; 32]).collect();
        self.tell(finder, Tell::Hashes { first, hashes: hashes.into(), signature: Signature::new() });
    }

    fn failed(&mut self, finder: FinderId, permit: u64, why: Trouble) {
        self.tell(finder, Tell::Failed { permit, why });
    }

    fn announce(&mut self, name: &str, what: Announced) {
        self.apply(Event::Announced { node: node(name), what });
    }

    fn hold(&mut self, name: &str, number: u8, root: u8) {
        self.announce(
            name,
            Announced { held: vec![(digest(number), meta(root), Signature::new())], ..Announced::default() },
        );
    }
}

fn want(number: u8) -> Ask {
    Ask {
        digest: digest(number),
        size: None,
        registry: "docker.io".into(),
        repository: "library/debian".into(),
        kind: shoal_proto::Kind::Blob,
        may_read_origin: true,
        blocks: 0,
        permit: Grant::default(),
        runs: true,
    }
}

/// A permit to the end.
fn whole(id: u64) -> Grant {
    Grant { id, first: 0, blocks: 0 }
}

fn names(parents: &[ParentSaid]) -> Vec<&str> {
    parents.iter().map(|parent| parent.node.as_str()).collect()
}

fn last_parents(said: &[Say]) -> Option<Vec<ParentSaid>> {
    said.iter().rev().find_map(|say| if let Say::Parents(parents) = say { Some(parents.clone()) } else { None })
}

fn hash_run(hashes: &[u8]) -> Bytes {
    hashes.iter().flat_map(|hash| [*hash; 32]).collect::<Vec<u8>>().into()
}

#[test]
fn i6_one_of_many_finders_reads_the_origin_and_the_others_follow_it() {
    let mut bench = Bench::with(&["a", "b", "c"]);
    let (a, b) = (bench.find("a"), bench.find("b"));
    let permit = bench.permit(a).unwrap();
    assert_eq!(bench.take(b), [Say::Waiting(Waiting::HolderWaits)]);
    bench.headers(a, permit);
    let said = bench.take(b);
    assert!(matches!(&said[0], Say::Head { author, size, .. } if author.as_str() == "a" && *size == 4 * BLOCK));
    assert_eq!(names(&last_parents(&said).unwrap()), ["a"]);
    bench.hashes(a, 0, &[1, 2]);
    assert_eq!(bench.take(b), [Say::Hashes { first: 0, hashes: hash_run(&[1, 2]), proof: None }]);
    // A late finder gets what there is of the list.
    let c = bench.find("c");
    let said = bench.take(c);
    assert!(said.contains(&Say::Hashes { first: 0, hashes: hash_run(&[1, 2]), proof: None }), "{said:?}");
    assert!(!said.iter().any(|say| matches!(say, Say::Permit(_))));
    // Held makes it a parent of the whole, and the list is sealed.
    bench.hashes(a, 2, &[3, 4]);
    let mut list = PieceList::new(Layout::of(4 * BLOCK).unwrap());
    list.set_run(0, &hash_run(&[1, 2, 3, 4])).unwrap();
    let root = list.root().unwrap();
    bench.tell(a, Tell::Done(Meta { root, ..meta(0) }, Signature::new()));
    bench.wait(ms(100));
    let said = bench.take(c);
    assert!(
        said.iter()
            .any(|say| matches!(say, Say::Sealed { author, meta, .. } if author.as_str() == "a" && meta.root == root))
    );
    assert!(last_parents(&said).unwrap()[0].complete);
    assert_eq!(bench.state.counts(), Counts { blobs: 1, finders: 3, permits: 0, holdings: 1, seeds: 0 });
    assert!(bench.notices.iter().all(|notice| matches!(notice, Notice::Granted { .. })), "{:?}", bench.notices);
}

#[test]
fn i4_nothing_is_granted_in_the_first_two_seconds_but_a_permit_from_before_is_kept() {
    let mut bench = Bench::default();
    bench.join("a", Some("east"));
    bench.join("b", Some("east"));
    let a = bench.find("a");
    assert_eq!(bench.take(a), [Say::Waiting(Waiting::Starting { left: STARTING })]);
    bench.wait(ms(500));
    let b = bench.ask("b", Ask { permit: whole(77), blocks: 3, ..want(1) });
    assert_eq!(bench.permit(b), Some(77));
    assert_eq!(names(&last_parents(&bench.take(a)).unwrap()), ["b"]);
    bench.wait(ms(1600));
    assert_eq!(bench.permit(a), None);

    let mut bench = Bench::default();
    bench.join("a", Some("east"));
    let a = bench.find("a");
    bench.wait(ms(1999));
    assert_eq!(bench.permit(a), None);
    bench.wait(ms(1));
    assert!(bench.permit(a).is_some());
}

#[test]
fn i6a_the_permit_moves_two_seconds_after_the_stream_broke_and_at_once_when_it_was_closed() {
    let mut bench = Bench::with(&["a", "b"]);
    let (a, b) = (bench.find("a"), bench.find("b"));
    bench.apply(Event::Ended { finder: a, clean: false });
    assert_eq!(bench.take(b), [Say::Waiting(Waiting::HolderWaits), Say::Waiting(Waiting::HolderConnects)]);
    bench.wait(ms(1999));
    assert_eq!(bench.permit(b), None);
    bench.wait(ms(1));
    assert!(bench.permit(b).is_some());
    let a = bench.find("a");
    bench.apply(Event::Ended { finder: b, clean: true });
    assert!(bench.permit(a).is_some());
}

#[test]
fn a_node_that_comes_back_in_time_keeps_its_permit_and_one_that_comes_late_loses_it() {
    let mut bench = Bench::with(&["a", "b"]);
    let (a, b) = (bench.find("a"), bench.find("b"));
    let permit = bench.permit(a).unwrap();
    bench.apply(Event::Ended { finder: a, clean: false });
    bench.wait(ms(1500));
    let a = bench.ask("a", Ask { permit: whole(permit), ..want(1) });
    assert_eq!(bench.permit(a), Some(permit));
    bench.wait(ms(3000));
    assert_eq!(bench.permit(b), None);
    bench.apply(Event::Ended { finder: a, clean: false });
    bench.wait(ms(2000));
    assert!(bench.permit(b).is_some());
    let a = bench.ask("a", Ask { permit: whole(permit), ..want(1) });
    assert!(bench.take(a).contains(&Say::Stop(Stop::Revoked)));
}

#[test]
fn i6_a_silent_reader_loses_the_permit_to_whoever_waits_and_only_then() {
    let mut bench = Bench::with(&["a", "b"]);
    let a = bench.find("a");
    let permit = bench.permit(a).unwrap();
    bench.headers(a, permit);
    bench.wait(ms(60_000));
    assert_eq!(bench.take(a), [], "nobody else wants it");
    let b = bench.find("b");
    assert!(bench.permit(b).is_some());
    assert!(bench.take(a).contains(&Say::Stop(Stop::Revoked)));
}

#[test]
fn i6a_without_a_byte_for_two_seconds_after_the_headers_the_permit_moves() {
    let mut bench = Bench::with(&["a", "b"]);
    let (a, b) = (bench.find("a"), bench.find("b"));
    let permit = bench.permit(a).unwrap();
    bench.headers(a, permit);
    bench.wait(ms(1900));
    bench.tell(a, Tell::Progress { blocks: 1, origin_bytes: BLOCK, fed: Vec::new() });
    bench.wait(ms(1900));
    bench.hashes(a, 1, &[2]);
    bench.wait(ms(1999));
    // The same count again is no byte.
    bench.tell(a, Tell::Progress { blocks: 1, origin_bytes: BLOCK, fed: Vec::new() });
    assert_eq!(bench.permit(b), None);
    bench.wait(ms(1));
    assert!(bench.permit(b).is_some());
    assert!(bench.notices.contains(&Notice::Moved { node: node("a"), cause: Cause::Silent }));
}

#[test]
fn i6b_without_headers_for_twenty_seconds_the_permit_moves() {
    let mut bench = Bench::with(&["a", "b"]);
    let (a, b) = (bench.find("a"), bench.find("b"));
    bench.wait(ms(19_999));
    assert_eq!(bench.permit(b), None);
    bench.wait(ms(1));
    assert!(bench.permit(b).is_some());
    assert!(bench.notices.contains(&Notice::Moved { node: node("a"), cause: Cause::NoHeaders }));
    assert!(bench.take(a).contains(&Say::Stop(Stop::Revoked)));
}

#[test]
fn a_reader_that_has_read_everything_gets_time_to_sync() {
    let mut bench = Bench::with(&["a", "b"]);
    let (a, b) = (bench.find("a"), bench.find("b"));
    let permit = bench.permit(a).unwrap();
    bench.headers(a, permit);
    bench.hashes(a, 0, &[1, 2, 3, 4]);
    bench.wait(ms(10_000));
    assert_eq!(bench.permit(b), None);
}

#[test]
fn the_successor_is_who_has_most_and_goes_on_with_the_same_list() {
    let mut bench = Bench::with(&["a", "b", "c", "d"]);
    let (a, b, c) = (bench.find("a"), bench.find("b"), bench.find("c"));
    let permit = bench.permit(a).unwrap();
    bench.headers(a, permit);
    bench.hashes(a, 0, &[1, 2]);
    bench.tell(c, Tell::Progress { blocks: 2, origin_bytes: 0, fed: Vec::new() });
    bench.apply(Event::Ended { finder: a, clean: true });
    assert_eq!(bench.permit(b), None);
    let permit = bench.permit(c).unwrap();
    bench.headers(c, permit);
    bench.take(b);
    bench.hashes(c, 2, &[3]);
    assert_eq!(bench.take(b), [Say::Hashes { first: 2, hashes: hash_run(&[3]), proof: None }]);
    let d = bench.find("d");
    let said = bench.take(d);
    assert!(said.iter().any(|say| matches!(say, Say::Head { author, .. } if author.as_str() == "a")), "{said:?}");
    assert!(said.contains(&Say::Hashes { first: 0, hashes: hash_run(&[1, 2, 3]), proof: None }), "{said:?}");
    // A mismatch names both who wrote.
    bench.tell(d, Tell::Mismatch { author: node("a") });
    let writers = vec![node("a"), node("c")];
    assert!(bench.notices.contains(&Notice::AuthorLied { author: node("a"), writers, reporter: node("d") }));
    assert!(bench.permit(b).is_some(), "the reader that wrote is not trusted with it any more");
}

#[test]
fn readers_that_contradict_each_other_start_a_new_list() {
    let mut bench = Bench::with(&["a", "b", "c"]);
    let (a, b, c) = (bench.find("a"), bench.find("b"), bench.find("c"));
    let permit = bench.permit(a).unwrap();
    bench.headers(a, permit);
    bench.hashes(a, 0, &[1, 2]);
    bench.apply(Event::Ended { finder: a, clean: true });
    let permit = bench.permit(b).unwrap();
    bench.headers(b, permit);
    bench.hashes(b, 1, &[9]);
    assert!(bench.notices.contains(&Notice::ReadersDiffer { first: node("a"), later: node("b") }));
    assert!(matches!(bench.take(b).last(), Some(Say::Stop(Stop::Again(_)))));
    bench.take(c);
    let b = bench.ask("b", Ask { permit: whole(permit), ..want(1) });
    assert_eq!(bench.permit(b), Some(permit));
    bench.headers(b, permit);
    bench.hashes(b, 0, &[8, 9]);
    let said = bench.take(c);
    assert!(said.iter().any(|say| matches!(say, Say::Head { author, .. } if author.as_str() == "b")), "{said:?}");
    assert!(said.contains(&Say::Hashes { first: 0, hashes: hash_run(&[8, 9]), proof: None }), "{said:?}");
}

#[test]
fn what_the_origin_does_not_have_is_not_found_for_all_who_ask_there_and_tried_elsewhere() {
    let mut bench = Bench::with(&["a", "b", "c"]);
    let (a, b) = (bench.find("a"), bench.find("b"));
    let c = bench.ask("c", Ask { repository: "mine/debian".into(), ..want(1) });
    let permit = bench.permit(a).unwrap();
    bench.failed(a, permit, Trouble::NotFound);
    assert_eq!(bench.permit(b), None);
    let permit = bench.permit(c).unwrap();
    bench.failed(c, permit, Trouble::NotFound);
    for finder in [a, b, c] {
        assert_eq!(bench.take(finder).last(), Some(&Say::Stop(Stop::NotFound)));
    }
    assert_eq!(bench.state.counts(), Counts::default());
}

#[test]
fn a_denied_reader_is_not_asked_again_and_when_all_are_denied_it_is_not_found() {
    let mut bench = Bench::with(&["a", "b"]);
    let (a, b) = (bench.find("a"), bench.find("b"));
    let permit = bench.permit(a).unwrap();
    bench.failed(a, permit, Trouble::Denied);
    let permit = bench.permit(b).unwrap();
    bench.failed(b, permit, Trouble::Denied);
    assert_eq!(bench.take(a).last(), Some(&Say::Stop(Stop::NotFound)));
    assert_eq!(bench.take(b).last(), Some(&Say::Stop(Stop::NotFound)));
}

#[test]
fn a_busy_origin_is_left_alone_by_the_whole_cluster_for_every_blob() {
    let mut bench = Bench::with(&["a", "b"]);
    bench.join("far", Some("west"));
    let (a, b) = (bench.find("a"), bench.find("b"));
    let permit = bench.permit(a).unwrap();
    bench.take(b);
    bench.failed(a, permit, Trouble::Busy(ms(5000)));
    assert_eq!(bench.take(b), [Say::Waiting(Waiting::Busy { left: ms(5000) })]);
    let other = bench.ask("b", want(2));
    assert_eq!(bench.take(other), [Say::Waiting(Waiting::Busy { left: ms(5000) })]);
    let elsewhere = bench.ask("b", Ask { registry: "ghcr.io".into(), ..want(3) });
    assert!(bench.permit(elsewhere).is_some());
    let far = bench.find("far");
    assert!(bench.permit(far).is_some());
    bench.wait(ms(4999));
    assert_eq!((bench.permit(a), bench.permit(b)), (None, None));
    bench.wait(ms(1));
    assert!(bench.permit(a).is_some());
    assert!(bench.permit(other).is_some());
}

#[test]
fn an_unreachable_origin_is_tried_by_the_next_and_again_after_a_pause() {
    let mut bench = Bench::with(&["a", "b"]);
    let (a, b) = (bench.find("a"), bench.find("b"));
    let permit = bench.permit(a).unwrap();
    bench.failed(a, permit, Trouble::Unreachable);
    let permit = bench.permit(b).unwrap();
    bench.failed(b, permit, Trouble::Unreachable);
    assert!(matches!(bench.take(a).last(), Some(Say::Waiting(Waiting::Busy { .. }))));
    bench.wait(ms(1000));
    assert!(bench.permit(a).is_some());
}

#[test]
fn who_must_not_read_the_origin_is_told_that_nobody_has_it() {
    let mut bench = Bench::with(&["a", "b"]);
    let a = bench.ask("a", Ask { may_read_origin: false, ..want(1) });
    assert_eq!(bench.take(a), [Say::Waiting(Waiting::Nobody)]);
    bench.hold("b", 1, 1);
    let said = bench.take(a);
    assert!(matches!(said[0], Say::Sealed { .. }), "{said:?}");
    assert_eq!(names(&last_parents(&said).unwrap()), ["b"]);
}

#[test]
fn i3_a_node_that_moves_takes_its_blobs_along_and_its_flights_find_again() {
    let mut bench = Bench::with(&["a", "b", "c"]);
    bench.join("w", Some("west"));
    bench.hold("a", 1, 1);
    let b = bench.find("b");
    let w = bench.find("w");
    assert_eq!(names(&last_parents(&bench.take(b)).unwrap()), ["a"]);
    assert!(bench.permit(w).is_some());
    let a = bench.ask("a", want(2));
    bench.apply(Event::Moved { node: node("a"), cluster: Some(cluster("west")) });
    assert!(matches!(bench.take(a).last(), Some(Say::Stop(Stop::Again(_)))));
    bench.wait(ms(100));
    let said = bench.take(b);
    assert_eq!(last_parents(&said), Some(vec![]), "{said:?}");
    assert!(said.iter().any(|say| matches!(say, Say::Permit(_))), "{said:?}");
    assert_eq!(names(&last_parents(&bench.take(w)).unwrap()), ["a"]);
    assert_eq!(bench.state.held_by(&node("a")), 1);
}

#[test]
fn a_node_without_a_cluster_runs_alone_and_brings_its_blobs_when_it_gets_one() {
    let mut bench = Bench::with(&["b"]);
    bench.join("a", None);
    bench.hold("a", 1, 1);
    let a = bench.ask("a", want(2));
    assert_eq!(bench.take(a), [Say::Stop(Stop::Alone)]);
    let b = bench.ask("b", Ask { may_read_origin: false, ..want(1) });
    bench.take(b);
    bench.apply(Event::Moved { node: node("a"), cluster: Some(cluster("east")) });
    assert_eq!(names(&last_parents(&bench.take(b)).unwrap()), ["a"]);
    let unknown = bench.find("nobody");
    assert_eq!(bench.take(unknown), [Say::Stop(Stop::NoSession)]);
}

#[test]
fn a_full_list_after_a_reconnect_replaces_what_was_known() {
    let mut bench = Bench::with(&["a"]);
    bench.hold("a", 1, 1);
    bench.hold("a", 2, 1);
    bench.join("a", Some("east"));
    let held = vec![(digest(2), meta(1), Signature::new()), (digest(3), meta(1), Signature::new())];
    bench.announce("a", Announced { reset: true, held, ..Announced::default() });
    assert_eq!(bench.state.held_by(&node("a")), 3, "still known until the list is complete");
    bench.announce("a", Announced { complete: true, ..Announced::default() });
    assert_eq!(bench.state.held_by(&node("a")), 2);
    bench.announce("a", Announced { dropped: vec![digest(2), digest(3)], ..Announced::default() });
    assert_eq!(bench.state.counts(), Counts::default());
}

#[test]
fn who_contradicts_the_holders_is_refused() {
    let mut bench = Bench::with(&["a", "b", "c"]);
    bench.hold("a", 1, 1);
    bench.hold("b", 1, 2);
    assert_eq!(bench.notices, [Notice::RootsDiffer { first: node("a"), later: node("b") }]);
    let c = bench.find("c");
    assert_eq!(names(&last_parents(&bench.take(c)).unwrap()), ["a"]);
}

#[test]
fn who_lost_its_only_parent_reads_the_origin_and_is_told_of_it_again_after_a_while() {
    let mut bench = Bench::with(&["a", "b", "c"]);
    bench.hold("a", 1, 1);
    let (b, c) = (bench.find("b"), bench.find("c"));
    bench.take(b);
    bench.take(c);
    bench.tell(b, Tell::Lost { node: node("a") });
    let said = bench.take(b);
    assert_eq!(last_parents(&said), Some(vec![]));
    assert!(said.iter().any(|say| matches!(say, Say::Permit(_))), "it has nobody else: {said:?}");
    bench.wait(ms(200));
    assert_eq!(last_parents(&bench.take(c)), None, "c keeps its parent");
    bench.wait(LOST);
    let again = last_parents(&bench.take(b)).expect("it is told anew");
    assert_eq!(names(&again), ["a", "c"], "the one that has it, and the one that fetches it too");
}

#[test]
fn who_lost_one_of_two_parents_keeps_the_other_and_reads_nothing() {
    let mut bench = Bench::with(&["a", "b", "c"]);
    bench.hold("a", 1, 1);
    bench.hold("c", 1, 1);
    let b = bench.find("b");
    bench.take(b);
    bench.tell(b, Tell::Lost { node: node("a") });
    let said = bench.take(b);
    let left = last_parents(&said).expect("it is told anew");
    assert_eq!(names(&left), ["c"]);
    assert!(!said.iter().any(|say| matches!(say, Say::Permit(_))), "{said:?}");
}

#[test]
fn with_silent_readers_everybody_gets_a_turn() {
    let names = ["a", "b", "c", "d", "e"];
    let mut bench = Bench::with(&names);
    let finders = names.map(|name| bench.find(name));
    bench.wait(ms(20_000 * 6));
    for finder in finders {
        assert!(bench.permit(finder).is_some());
    }
}

#[test]
fn a_node_that_left_is_forgotten() {
    let mut bench = Bench::with(&["a", "b"]);
    bench.hold("a", 1, 1);
    let (a, b) = (bench.ask("a", want(2)), bench.ask("b", want(2)));
    bench.apply(Event::Left { node: node("a") });
    assert_eq!(bench.take(a).last(), Some(&Say::Stop(Stop::NoSession)));
    assert!(bench.permit(b).is_some());
    bench.apply(Event::Left { node: node("b") });
    assert_eq!(bench.state.counts(), Counts::default());
    assert_eq!(bench.state.next_tick(), None);
}
