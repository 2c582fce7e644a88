//! A crowd of thousands at one blob: what is named to whom, and what an event costs.

use std::time::Instant;

use super::*;

/// A crowd at one blob, from its first find until everybody has something.
struct Crowd {
    bench: Bench,
    finders: Vec<FinderId>,
    blocks: u32,
}

impl Crowd {
    fn new(nodes: usize) -> Self {
        let mut bench = Bench { now: STARTING, ..Bench::default() };
        for number in 0..nodes {
            bench.join(&format!("n{number}"), Some("east"));
        }
        let finders: Vec<FinderId> = (0..nodes).map(|number| bench.find(&format!("n{number}"))).collect();
        let permit = bench.permit(finders[0]).unwrap();
        bench.headers(finders[0], permit);
        bench.hashes(finders[0], 0, &[1, 2, 3]);
        Self { bench, finders, blocks: 0 }
    }

    /// More and more of them have something: in a wave, as it goes in a real one.
    fn spread(&mut self) {
        let mut reached = 1;
        while reached < self.finders.len() {
            let next = (reached * 3).min(self.finders.len());
            for at in reached..next {
                self.bench.tell(self.finders[at], Tell::Progress { blocks: 1, origin_bytes: 0, fed: Vec::new() });
            }
            reached = next;
            self.bench.wait(ms(100));
            self.keep_the_permit();
        }
        self.bench.wait(ms(1900));
        self.keep_the_permit();
        self.bench.wait(ms(1000));
    }

    fn keep_the_permit(&mut self) {
        self.blocks += 1;
        let origin_bytes = u64::from(self.blocks);
        self.bench.tell(self.finders[0], Tell::Progress { blocks: 1, origin_bytes, fed: Vec::new() });
    }

    /// The last set of each.
    fn sets(&self) -> Vec<Vec<ParentSaid>> {
        let set = |finder: &FinderId| last_parents(&self.bench.said[finder]).unwrap_or_default();
        self.finders.iter().map(set).collect()
    }
}

/// However far away the next look at everybody is.
#[test]
fn who_loses_a_parent_is_named_another_within_a_tenth_of_a_second() {
    let mut crowd = Crowd::new(40);
    crowd.spread();
    for gone in 10..15 {
        let sets = crowd.sets();
        let name = format!("n{gone}");
        let losers: Vec<usize> =
            (0..40).filter(|at| *at != gone && names(&sets[*at]).contains(&name.as_str())).collect();
        assert!(!losers.is_empty(), "{name} is named to nobody");
        crowd.bench.apply(Event::Ended { finder: crowd.finders[gone], clean: true });
        crowd.bench.wait(ms(110));
        let sets = crowd.sets();
        for at in losers.into_iter().filter(|at| !(10..=gone).contains(at)) {
            assert!(!names(&sets[at]).contains(&name.as_str()), "n{at} is still told of {name}");
        }
        crowd.bench.wait(ms(40));
    }
}

#[test]
fn a_crowd_of_a_thousand_is_one_well_mixed_graph() {
    let mut crowd = Crowd::new(1000);
    crowd.spread();
    let sets = crowd.sets();
    let mut named: HashMap<&str, usize> = HashMap::new();
    for set in &sets[1..] {
        assert_eq!(set.len(), 16);
        set.iter().for_each(|parent| *named.entry(parent.node.as_str()).or_default() += 1);
    }
    let most = named.iter().max_by_key(|(_, count)| **count).unwrap();
    assert!(*most.1 <= 36, "{most:?}");
    assert!(named["n0"] <= 32 && named["n0"] >= 8, "the reader of the origin is named {} times", named["n0"]);
    assert!(named.len() > 990, "only {} are named at all", named.len());
    // From the reader a block comes to everybody in as many steps as a random graph of that degree needs.
    let mut reached: HashMap<&str, u32> = HashMap::from([("n0", 0)]);
    for step in 1..8 {
        let before: Vec<&str> = reached.keys().copied().collect();
        for (at, set) in sets.iter().enumerate() {
            let child = crowd.bench.state.finders[&crowd.finders[at]].1.as_str();
            if set.iter().any(|parent| before.contains(&parent.node.as_str())) {
                reached.entry(child).or_insert(step);
            }
        }
    }
    assert_eq!(reached.len(), 1000);
    assert!(reached.values().all(|steps| *steps <= 5), "{:?}", reached.values().max());
}

#[test]
fn a_seed_is_named_to_few_when_others_can_serve() {
    let mut bench = Bench::with(&["a", "b", "c", "d", "e", "f"]);
    let addr = "10.0.0.1:5081".parse().unwrap();
    let member = Member {
        node: node("seed"),
        cluster: Some(cluster("east")),
        addr,
        location: Vec::new(),
        seed: true,
        orders: false,
    };
    bench.apply(Event::Registered { member, restarted: false });
    bench.hold("seed", 1, 1);
    let f = bench.find("f");
    assert_eq!(names(&last_parents(&bench.take(f)).unwrap()), ["seed"]);
    for number in 0..40 {
        let name = format!("h{number}");
        bench.join(&name, Some("east"));
        bench.hold(&name, 1, 1);
    }
    bench.wait(ms(200));
    assert_eq!(last_parents(&bench.take(f)).unwrap().len(), 16);
    let mut told = 0;
    for number in 0..100 {
        let name = format!("g{number}");
        bench.join(&name, Some("east"));
        let finder = bench.ask(&name, Ask { may_read_origin: false, ..want(1) });
        told += usize::from(names(&last_parents(&bench.take(finder)).unwrap()).contains(&"seed"));
    }
    assert!((8..=32).contains(&told), "{told}");
}

/// Prints what events cost in a crowd of ten thousand. For people: `cargo test -- --ignored what_events_cost --nocapture`.
#[test]
#[ignore = "prints times, asserts none"]
fn what_events_cost_in_a_crowd_of_ten_thousand() {
    let start = Instant::now();
    let mut crowd = Crowd::new(10_000);
    println!("10,000 finds and the headers: {:?}", start.elapsed());
    let start = Instant::now();
    crowd.spread();
    println!("growing from 1 to 10,000 who serve, all flushes: {:?}", start.elapsed());
    let each = |what: &str, crowd: &mut Crowd, act: &mut dyn FnMut(&mut Crowd, usize)| {
        let start = Instant::now();
        for at in 1..10_000 {
            act(crowd, at);
        }
        println!("{what}: {:?} each", start.elapsed() / 9_999);
    };
    each("progress", &mut crowd, &mut |crowd, at| {
        let finder = crowd.finders[at];
        crowd.bench.tell(finder, Tell::Progress { blocks: 2, origin_bytes: 0, fed: Vec::new() });
    });
    each("load", &mut crowd, &mut |crowd, at| {
        crowd.bench.apply(Event::Load { node: node(&format!("n{at}")), uploads: 3, slots: 64 });
    });
    each("lost", &mut crowd, &mut |crowd, at| {
        let finder = crowd.finders[at];
        crowd.bench.now += At::from_nanos(1);
        crowd.bench.tell(finder, Tell::Lost { node: node(&format!("n{}", (at + 7) % 10_000)) });
    });
    crowd.keep_the_permit();
    let start = Instant::now();
    for at in 1..100 {
        let finder = crowd.finders[at];
        crowd.bench.apply(Event::Ended { finder, clean: false });
    }
    println!("100 leave: {:?}", start.elapsed());
    let start = Instant::now();
    crowd.bench.wait(ms(100));
    println!("the flush after it: {:?}", start.elapsed());
    crowd.keep_the_permit();
    let start = Instant::now();
    let block = crowd.finders[0];
    crowd.bench.hashes(block, 3, &[4]);
    println!("a hash to all: {:?}", start.elapsed());
    // Whose word contradicts what is read now is heard again at every change of the blob.
    each("a hundredth contradicts, and progress", &mut crowd, &mut |crowd, at| {
        let tell = if at % 100 == 7 {
            Tell::Done(meta(9), Signature::new())
        } else {
            Tell::Progress { blocks: 3, origin_bytes: 0, fed: Vec::new() }
        };
        crowd.bench.tell(crowd.finders[at], tell);
    });
    let start = Instant::now();
    crowd.bench.tell(crowd.finders[0], Tell::Done(meta(7), Signature::new()));
    println!("the reader is done: {:?}", start.elapsed());
    each("done", &mut crowd, &mut |crowd, at| {
        let finder = crowd.finders[at];
        crowd.bench.tell(finder, Tell::Done(meta(7), Signature::new()));
    });
}
