//! Runs of large blobs, and readers that are slow.

use proptest::prelude::*;
use shoal_proto::BlockIndex;

use super::*;

/// 512 MiB: 2,048 blocks, 256 pieces of 2 MiB.
const LARGE: u64 = 512 << 20;
const PIECE: u32 = 8;
const BLOCKS: u32 = 2048;

/// What a node reads, at a rate that the test gives it.
struct Reader {
    name: String,
    finder: FinderId,
    grants: Vec<Grant>,
    answered: HashMap<u64, At>,
    /// The next block of each grant.
    at: HashMap<u64, BlockIndex>,
    /// Blocks read, in quarters of a second, over all grants.
    origin: u64,
    debt: f64,
    read: Vec<BlockIndex>,
}

/// Some nodes that read as fast as their links and the origin's let them, in steps of 250 ms.
struct Race {
    bench: Bench,
    readers: Vec<Reader>,
    /// Blocks a second: of each node's link, and of the origin's.
    links: Vec<f64>,
    origin: f64,
    hash: fn(BlockIndex) -> u8,
}

impl Race {
    fn new(links: &[f64], origin: f64, size: Option<u64>) -> Self {
        let names: Vec<String> = (0..links.len()).map(|number| format!("n{number}")).collect();
        let mut bench = Bench::with(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let readers = names.into_iter().map(|name| {
            let finder = bench.ask(&name, Ask { size, ..want(1) });
            let (grants, read) = (Vec::new(), Vec::new());
            Reader { name, finder, grants, answered: HashMap::new(), at: HashMap::new(), origin: 0, debt: 0.0, read }
        });
        let readers = readers.collect();
        Self { bench, readers, links: links.to_vec(), origin, hash: |block| (block % 251) as u8 }
    }

    /// Takes what control said.
    fn hear(&mut self) {
        for reader in &mut self.readers {
            for say in self.bench.said.remove(&reader.finder).unwrap_or_default() {
                match say {
                    Say::Permit(grant) => match reader.grants.iter_mut().find(|known| known.id == grant.id) {
                        Some(known) => *known = grant,
                        None => reader.grants.push(grant),
                    },
                    Say::Stop(Stop::Revoked) => reader.grants.clear(),
                    _ => {}
                }
            }
        }
    }

    fn end_of(grant: Grant) -> BlockIndex {
        if grant.blocks == 0 { BLOCKS } else { (grant.first + grant.blocks).min(BLOCKS) }
    }

    /// A quarter of a second: the origin's link is shared by all connections that can use it.
    fn step(&mut self) {
        self.hear();
        self.check_apart();
        (0..self.readers.len()).for_each(|at| self.answer(at));
        let active: Vec<usize> = (0..self.readers.len()).filter(|at| !self.readers[*at].grants.is_empty()).collect();
        let mut share: HashMap<usize, f64> = HashMap::new();
        let (mut left, mut open) = (self.origin, active.clone());
        while !open.is_empty() {
            let fair = left / open.len() as f64;
            let capped: Vec<usize> = open.iter().copied().filter(|at| self.links[*at] <= fair).collect();
            if capped.is_empty() {
                open.iter().for_each(|at| _ = share.insert(*at, fair));
                break;
            }
            for at in capped {
                left -= self.links[at];
                share.insert(at, self.links[at]);
                open.retain(|other| *other != at);
            }
        }
        self.bench.wait(ms(250));
        for at in active {
            let rate = share[&at];
            self.readers[at].debt += rate / 4.0;
            self.read(at);
        }
        self.hear();
    }

    /// The origin's headers come at once.
    fn answer(&mut self, at: usize) {
        for grant in self.readers[at].grants.clone() {
            if !self.readers[at].answered.contains_key(&grant.id) {
                let now = self.bench.now;
                self.readers[at].answered.insert(grant.id, now);
                let media_type = String::new();
                let finder = self.readers[at].finder;
                self.bench.tell(
                    finder,
                    Tell::Headers { permit: grant.id, size: LARGE, media_type, signature: Signature::new() },
                );
            }
        }
    }

    fn read(&mut self, at: usize) {
        self.answer(at);
        while self.readers[at].debt >= 1.0 {
            self.hear();
            let reader = &mut self.readers[at];
            let next = |grant: &Grant| *reader.at.get(&grant.id).unwrap_or(&grant.first);
            let open: Vec<Grant> =
                reader.grants.iter().copied().filter(|grant| next(grant) < Self::end_of(*grant)).collect();
            let Some(grant) = open.get(reader.read.len() % open.len().max(1)).copied() else { break };
            let block = next(&grant);
            reader.at.insert(grant.id, block + 1);
            reader.debt -= 1.0;
            reader.origin += BLOCK;
            reader.read.push(block);
            let (finder, hash) = (reader.finder, (self.hash)(block));
            self.bench.hashes(finder, block, &[hash]);
        }
        let reader = &mut self.readers[at];
        reader.debt = reader.debt.min(1.0);
        reader.grants.retain(|grant| *reader.at.get(&grant.id).unwrap_or(&0) < Self::end_of(*grant));
        let (finder, blocks, origin_bytes) = (reader.finder, reader.read.len() as u32, reader.origin);
        self.bench.tell(finder, Tell::Progress { blocks, origin_bytes, fed: Vec::new() });
    }

    /// No block is covered by two permits.
    fn check_apart(&self) {
        let state = &self.bench.state;
        for (key, blob) in &state.blobs {
            for (at, permit) in blob.permits.iter().enumerate() {
                assert!(blob.permits[at + 1..].iter().all(|other| permit.is_apart(other)), "{:?}", blob.permits);
            }
            state.look(key, self.bench.now, |blob, around| blob.check(around));
        }
    }

    fn known(&self) -> u32 {
        self.bench.state.blobs.values().filter_map(|blob| blob.list.as_ref()).map(|list| list.hashes.known()).sum()
    }

    /// Quarters of a second until all is read.
    fn run(&mut self, most: usize) -> usize {
        for step in 0..most {
            if self.known() == BLOCKS {
                return step;
            }
            self.step();
        }
        panic!("{} of {BLOCKS} blocks are read: {:?}", self.known(), self.bench.notices);
    }

    fn reads_of(&self, block: BlockIndex) -> usize {
        self.readers.iter().map(|reader| reader.read.iter().filter(|read| **read == block).count()).sum()
    }

    /// Who lost permits for that reason, each once however many it had.
    fn moved(&self, cause: Cause) -> BTreeSet<&NodeId> {
        let moved = self.bench.notices.iter().filter_map(|notice| match notice {
            Notice::Moved { node, cause: why } if *why == cause => Some(node),
            _ => None,
        });
        moved.collect()
    }
}

#[test]
fn i6_a_large_blob_is_read_in_runs_and_every_block_once() {
    for size in [None, Some(LARGE)] {
        // 100 blocks a second are 25 MiB/s.
        let mut race = Race::new(&[100.0; 8], 100.0, size);
        let steps = race.run(200);
        assert!((0..BLOCKS).all(|block| race.reads_of(block) == 1));
        // 20.5 s at full speed.
        assert!(steps <= 86, "{steps} quarters of a second");
        let one = race.readers.iter().map(|reader| reader.read.len()).max().unwrap();
        assert!(one > BLOCKS as usize * 8 / 10, "with equal links one reads nearly all: {one}");
        assert!(race.moved(Cause::Slow).is_empty());
    }
}

#[test]
fn i6_more_nodes_read_when_that_is_faster() {
    // The origin gives each connection a fifth of what it has.
    let mut race = Race::new(&[40.0; 8], 200.0, Some(LARGE));
    let steps = race.run(200);
    assert!((0..BLOCKS).all(|block| race.reads_of(block) == 1));
    // One alone would take 205.
    assert!(steps <= 80, "{steps} quarters of a second");
    assert!(race.readers.iter().filter(|reader| reader.read.len() > 200).count() >= 3);
}

#[test]
fn i6c_a_slow_first_reader_is_found_out_within_three_seconds_and_replaced_once() {
    for slow in [&[0][..], &[0, 1], &[1, 5]] {
        let mut links = [100.0; 8];
        slow.iter().for_each(|at| links[*at] = 25.0);
        let mut race = Race::new(&links, 100.0, Some(LARGE));
        let steps = race.run(300);
        assert!((0..BLOCKS).all(|block| race.reads_of(block) == 1), "what it was reading is not read again");
        assert!(steps <= 100, "{slow:?}: {steps} quarters of a second, 82 at full speed");
        let early = race.readers[0].read.len();
        if slow.contains(&0) {
            // 25 a second: three seconds, and another round when the first that is tried beside it is slow as well.
            let most = if slow.contains(&1) { 130 } else { 75 };
            assert!(early <= most, "{slow:?}: the slow first reader read {early} blocks");
        }
        assert!(race.moved(Cause::Slow).len() <= slow.len(), "{:?}", race.moved(Cause::Slow));
    }
}

/// Four readers with a quarter of the rate fill the origin's link, and so do three of them and a fast one: all show the same then.
#[test]
fn i6c_slow_readers_that_fill_the_link_together_do_not_hide_a_fast_one() {
    let mut race = Race::new(&[25.0, 25.0, 25.0, 100.0, 100.0, 100.0], 100.0, Some(LARGE));
    race.run(300);
    assert!((0..BLOCKS).all(|block| race.reads_of(block) == 1));
    let read: Vec<usize> = race.readers.iter().map(|reader| reader.read.len()).collect();
    let slow: usize = read[..3].iter().sum();
    assert!(slow <= BLOCKS as usize / 4, "{read:?}: slow ones have to pass on what they read");
}

#[test]
fn i6c_a_small_blob_moves_to_another_when_the_registry_is_known_to_be_faster() {
    let mut race = Race::new(&[100.0, 100.0, 10.0], 100.0, Some(LARGE));
    race.run(300);
    // The slow one is the only one that wants another blob, at first.
    let slow = race.bench.ask("n2", want(2));
    let permit = race.bench.permit(slow).unwrap();
    race.bench.headers(slow, permit);
    let mut origin_bytes = 0;
    let mut tell = |race: &mut Race, count: usize| {
        for _ in 0..count {
            race.bench.wait(ms(250));
            origin_bytes += 100_000;
            race.bench.tell(slow, Tell::Progress { blocks: 1, origin_bytes, fed: Vec::new() });
        }
    };
    tell(&mut race, 8);
    assert!(!race.bench.take(slow).contains(&Say::Stop(Stop::Revoked)), "nobody else could take it");
    let other = race.bench.ask("n1", want(2));
    tell(&mut race, 2);
    assert!(race.bench.permit(other).is_some());
    assert!(race.bench.take(slow).contains(&Say::Stop(Stop::Revoked)));
    // It does not come back, however slow the other is.
    tell(&mut race, 6);
    assert_eq!(race.bench.permit(slow), None);
}

#[test]
fn who_is_known_to_be_fast_reads_to_the_end_and_who_is_not_shows_it_first() {
    let mut race = Race::new(&[100.0; 3], 100.0, Some(LARGE));
    let covers =
        |said: Vec<Say>| said.into_iter().find_map(|say| if let Say::Permit(grant) = say { Some(grant) } else { None });
    race.run(200);
    let known = race.bench.ask("n0", Ask { size: Some(LARGE), ..want(2) });
    let other = race.bench.ask("n1", Ask { size: Some(LARGE), ..want(2) });
    assert_eq!(covers(race.bench.take(known)).map(|grant| (grant.first, grant.blocks)), Some((0, BLOCKS)));
    assert_eq!(covers(race.bench.take(other)), None);
    race.bench.join("stranger", Some("east"));
    let stranger = race.bench.ask("stranger", Ask { size: Some(LARGE), ..want(3) });
    assert_eq!(covers(race.bench.take(stranger)).map(|grant| grant.blocks), Some(16));
    let beside = race.bench.ask("n1", Ask { size: Some(LARGE), ..want(3) });
    assert_eq!(covers(race.bench.take(beside)).map(|grant| (grant.first, grant.blocks)), Some((16, 16)));
}

#[test]
fn an_older_node_is_given_no_run() {
    let mut bench = Bench::with(&["a", "b"]);
    let a = bench.ask("a", Ask { size: Some(LARGE), runs: false, ..want(1) });
    assert_eq!(
        bench.take(a).iter().find_map(|say| if let Say::Permit(grant) = say { Some(grant.blocks) } else { None }),
        Some(0)
    );
    let b = bench.ask("b", Ask { size: Some(LARGE), ..want(1) });
    assert_eq!(bench.permit(b), None);
}

#[test]
fn i6_who_cannot_use_the_only_holder_of_a_large_blob_reads_it_to_the_end() {
    let mut bench = Bench::with(&["a", "b"]);
    let held = Meta { size: LARGE, ..meta(1) };
    bench.announce("a", Announced { held: vec![(digest(1), held, Signature::new())], ..Announced::default() });
    let finder = bench.ask("b", Ask { size: Some(LARGE), ..want(1) });
    assert_eq!(bench.permit(finder), None);
    bench.tell(finder, Tell::Lied { node: node("a"), block: 0 });
    let granted = grants(&mut bench, finder);
    assert_eq!(granted.iter().map(|grant| (grant.first, grant.blocks)).collect::<Vec<_>>(), [(0, 0)]);
    bench.tell(
        finder,
        Tell::Headers { permit: granted[0].id, size: LARGE, media_type: String::new(), signature: Signature::new() },
    );
    // Its words on what it reads are not added to the sealed list, so the permit may not end with some of them.
    assert_eq!(grants(&mut bench, finder), []);
}

#[test]
fn what_a_reader_took_along_is_read_again() {
    let mut race = Race::new(&[100.0; 3], 100.0, Some(LARGE));
    for _ in 0..20 {
        race.step();
    }
    let at = (0..3).max_by_key(|at| race.readers[*at].read.len()).unwrap();
    let first = race.readers[at].read.len() as u32;
    assert!(first > 100);
    let gone = race.readers[at].finder;
    race.bench.apply(Event::Ended { finder: gone, clean: false });
    race.readers.remove(at);
    race.links.remove(at);
    race.bench.wait(ms(2100));
    race.hear();
    assert!(
        race.bench
            .notices
            .iter()
            .any(|notice| matches!(notice, Notice::ReadAgain { blocks } if *blocks >= first - 2 * PIECE))
    );
    for _ in 0..200 {
        race.step();
    }
    let read: BTreeSet<BlockIndex> = race.readers.iter().flat_map(|reader| reader.read.iter().copied()).collect();
    assert_eq!(read.len(), BLOCKS as usize, "those that are left have all of it");
}

/// The reader goes when another has everything, and that one goes too. Those that are left come back from crashes all the time, and get
/// what is left of the blob again and again.
#[test]
fn what_nobody_has_any_more_is_read_again_although_somebody_gets_blocks_all_the_time() {
    let mut race = Race::new(&[100.0], 100.0, Some(LARGE));
    race.run(200);
    let bench = &mut race.bench;
    let [other, left] = ["other", "left"].map(|name| {
        bench.join(name, Some("east"));
        bench.ask(name, Ask { size: Some(LARGE), ..want(1) })
    });
    bench.tell(other, Tell::Progress { blocks: BLOCKS, origin_bytes: 0, fed: Vec::new() });
    bench.apply(Event::Ended { finder: race.readers[0].finder, clean: false });
    bench.wait(ms(3000));
    bench.apply(Event::Ended { finder: other, clean: false });
    for step in 0..40 {
        bench.tell(left, Tell::Progress { blocks: 100 * (step % 8), origin_bytes: 0, fed: Vec::new() });
        bench.wait(ms(250));
    }
    let again = |notice: &Notice| matches!(notice, Notice::ReadAgain { blocks } if *blocks == BLOCKS);
    assert!(bench.notices.iter().any(again), "{:?}", bench.notices);
    assert!(bench.permit(left).is_some());
}

#[test]
fn i4_after_a_restart_of_control_a_reader_keeps_its_run() {
    let mut bench = Bench::default();
    bench.join("a", Some("east"));
    bench.join("b", Some("east"));
    let permit = Grant { id: 7, first: 64, blocks: 64 };
    let a = bench.ask("a", Ask { size: Some(LARGE), permit, ..want(1) });
    assert!(bench.take(a).contains(&Say::Permit(permit)));
    let other = Grant { id: 8, first: 100, blocks: 64 };
    let b = bench.ask("b", Ask { size: Some(LARGE), permit: other, ..want(1) });
    assert!(bench.take(b).contains(&Say::Stop(Stop::Revoked)), "no block is covered twice");
    let other = Grant { id: 8, first: 128, blocks: 64 };
    let b = bench.ask("b", Ask { size: Some(LARGE), permit: other, ..want(1) });
    assert!(bench.take(b).contains(&Say::Permit(other)));
}

/// Two that read side by side: the first one's answer is there, the second one's is not.
fn two_readers() -> (Bench, FinderId, Grant, FinderId) {
    let mut bench = Bench::with(&["a", "b"]);
    let large = || Ask { size: Some(LARGE), ..want(1) };
    let (a, b) = (bench.ask("a", large()), bench.ask("b", large()));
    let first = grants(&mut bench, a)[0];
    bench.tell(
        a,
        Tell::Headers { permit: first.id, size: LARGE, media_type: String::new(), signature: Signature::new() },
    );
    (bench, a, first, b)
}

fn grants(bench: &mut Bench, finder: FinderId) -> Vec<Grant> {
    let said = bench.take(finder).into_iter();
    said.filter_map(|say| if let Say::Permit(grant) = say { Some(grant) } else { None }).collect()
}

/// A block of the first reader each quarter of a second.
fn read_on(bench: &mut Bench, reader: FinderId, blocks: std::ops::Range<BlockIndex>) {
    for block in blocks {
        bench.wait(ms(250));
        bench.hashes(reader, block, &[(block % 251) as u8]);
        bench.tell(
            reader,
            Tell::Progress { blocks: block + 1, origin_bytes: u64::from(block + 1) * BLOCK, fed: Vec::new() },
        );
    }
}

#[test]
fn i6b_a_second_reader_that_hears_nothing_loses_its_run_after_two_seconds() {
    let (mut bench, a, _, b) = two_readers();
    assert_eq!(grants(&mut bench, b).len(), 1);
    read_on(&mut bench, a, 0..7);
    assert!(!bench.take(b).contains(&Say::Stop(Stop::Revoked)), "1.75 s");
    read_on(&mut bench, a, 7..9);
    assert!(bench.take(b).contains(&Say::Stop(Stop::Revoked)), "{:?}", bench.notices);
    let deaf =
        |notice: &Notice| matches!(notice, Notice::Moved { node, cause: Cause::NoHeaders } if node.as_str() == "b");
    assert!(bench.notices.iter().any(deaf), "{:?}", bench.notices);
    read_on(&mut bench, a, 9..11);
    assert_eq!(grants(&mut bench, b), [], "it may not read for a second");
}

/// Alone it has as long as I6 says: a registry that is slow to answer is no fault of the reader.
#[test]
fn i6b_a_first_reader_that_hears_nothing_keeps_its_run_for_twenty_seconds() {
    let mut bench = Bench::with(&["a", "b"]);
    let large = || Ask { size: Some(LARGE), ..want(1) };
    let (a, _) = (bench.ask("a", large()), bench.ask("b", large()));
    bench.wait(ms(19_900));
    assert!(!bench.take(a).contains(&Say::Stop(Stop::Revoked)));
    bench.wait(ms(200));
    assert!(bench.take(a).contains(&Say::Stop(Stop::Revoked)));
}

#[test]
fn i6_a_reader_whose_run_failed_gets_no_other_before_its_pause_is_over() {
    let (mut bench, a, first, b) = two_readers();
    let second = grants(&mut bench, b)[0];
    bench.tell(
        b,
        Tell::Headers { permit: second.id, size: LARGE, media_type: String::new(), signature: Signature::new() },
    );
    bench.failed(a, first.id, Trouble::Unreachable);
    assert_eq!(grants(&mut bench, a), []);
    let taken = grants(&mut bench, b);
    assert_eq!(
        taken.iter().map(|grant| grant.first).collect::<Vec<_>>(),
        [0],
        "what everybody waits for goes to the other"
    );
    bench.wait(ms(900));
    assert_eq!(grants(&mut bench, a), []);
}

#[test]
fn i6_after_a_restart_nobody_is_compared_before_control_knows_what_was_read() {
    let mut bench = Bench::default();
    ["a", "b"].iter().for_each(|name| bench.join(name, Some("east")));
    let permit = Grant { id: 7, first: 512, blocks: BLOCKS - 512 };
    let large = || Ask { size: Some(LARGE), ..want(1) };
    let (a, b) = (bench.ask("a", Ask { permit, blocks: 512, ..large() }), bench.ask("b", large()));
    bench.wait(STARTING + ms(500));
    assert_eq!(grants(&mut bench, b), [], "it would read what the other has read");
    bench.tell(a, Tell::Headers { permit: 7, size: LARGE, media_type: String::new(), signature: Signature::new() });
    bench.hashes(a, 0, &[7; 255]);
    bench.hashes(a, 255, &[7; 257]);
    bench.wait(ms(300));
    let beside = grants(&mut bench, b);
    assert!(beside.iter().all(|grant| grant.first > 512), "{beside:?}");
    assert_eq!(beside.len(), 1, "{:?}", bench.notices);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Readers of any speed come, go and come back: no block is covered twice, and in the end all of it is read.
    #[test]
    fn runs_never_overlap_and_everything_is_read_whoever_goes(
        links in proptest::collection::vec(10.0f64..200.0, 2..6),
        origin in 50.0f64..300.0,
        known in any::<bool>(),
        ends in proptest::collection::vec((0usize..40, 0usize..6, any::<bool>()), 0..8),
    ) {
        let mut race = Race::new(&links, origin, known.then_some(LARGE));
        for step in 0..1500 {
            if race.known() == BLOCKS && step > 40 {
                break;
            }
            for (_, who, clean) in ends.iter().filter(|(at, ..)| *at == step) {
                let at = who % race.readers.len();
                let old = race.readers[at].finder;
                race.bench.apply(Event::Ended { finder: old, clean: *clean });
                let name = race.readers[at].name.clone();
                let blocks = race.readers[at].read.len() as u32;
                let finder = race.bench.ask(&name, Ask { size: Some(LARGE), blocks, ..want(1) });
                let reader = &mut race.readers[at];
                reader.finder = finder;
                reader.grants.clear();
                reader.answered.clear();
            }
            race.step();
        }
        prop_assert_eq!(race.known(), BLOCKS);
    }
}
