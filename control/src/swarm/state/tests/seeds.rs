//! Seeds: whom control orders to fetch before all others, and how long others wait for that.

use super::super::super::event::Skip;
use super::*;

impl Bench {
    fn seed(&mut self, name: &str, orders: bool) {
        let addr = "10.0.0.2:5081".parse().unwrap();
        let to = Some(cluster("east"));
        let member = Member { node: node(name), cluster: to, addr, location: Vec::new(), seed: true, orders };
        self.apply(Event::Registered { member, restarted: false });
    }

    /// The one order that was given since it was asked last.
    fn order(&mut self) -> (NodeId, Order) {
        let mut given: Vec<_> = std::mem::take(&mut self.orders).into_iter().filter(|(_, _, back)| !back).collect();
        assert_eq!(given.len(), 1, "{given:?}");
        let (seed, order, _) = given.remove(0);
        (seed, order)
    }

    fn reply(&mut self, (seed, order): &(NodeId, Order), answer: Reply) {
        let (seed, number, digest) = (seed.clone(), order.number, order.digest);
        self.apply(Event::Answered { seed, number, digest, answer });
    }

    fn skips(&self) -> Vec<Skip> {
        let why = |notice: &Notice| if let Notice::SeedSkipped { why, .. } = notice { Some(*why) } else { None };
        self.notices.iter().filter_map(why).collect()
    }

    fn with_seeds(seeds: &[&str]) -> Self {
        let mut bench = Self::with(&["a", "b", "c"]);
        seeds.iter().for_each(|seed| bench.seed(seed, true));
        bench
    }
}

#[test]
fn a_seed_is_ordered_first_and_reads_before_those_who_asked() {
    let mut bench = Bench::with_seeds(&["s"]);
    let (a, b) = (bench.find("a"), bench.find("b"));
    let order = bench.order();
    assert_eq!((order.0.as_str(), order.1.digest), ("s", digest(1)));
    assert_eq!((order.1.registry.as_str(), order.1.repository.as_str()), ("docker.io", "library/debian"));
    assert_eq!(bench.take(a), [Say::Waiting(Waiting::Seed { left: ms(500) })]);
    assert!(matches!(bench.take(b)[..], [Say::Waiting(Waiting::Seed { .. })]));
    bench.reply(&order, Reply::Begins);
    bench.wait(ms(1900));
    let s = bench.find("s");
    let permit = bench.permit(s).unwrap();
    assert_eq!(bench.take(a), [Say::Waiting(Waiting::HolderWaits)]);
    bench.headers(s, permit);
    bench.hashes(s, 0, &[1]);
    assert!(bench.take(b).iter().any(|say| matches!(say, Say::Head { author, .. } if author.as_str() == "s")));
    bench.wait(ms(1000));
    assert!(bench.skips().is_empty());
    assert_eq!(bench.permit(a), None);
    // What somebody holds is no seed's matter, nor what a seed looks for itself.
    bench.hold("c", 2, 7);
    bench.ask("a", want(2));
    let own = bench.ask("s", want(3));
    assert!(bench.permit(own).is_some());
    assert!(bench.orders.is_empty());
}

#[test]
fn a_silent_seed_is_skipped_for_the_next_within_half_a_second_and_nobody_waits_longer_than_two() {
    let mut bench = Bench::with_seeds(&["s", "t"]);
    let a = bench.find("a");
    let (first, _) = bench.order();
    bench.wait(ms(499));
    assert!(bench.orders.is_empty());
    bench.wait(ms(1));
    let taken_back = bench.orders.iter().filter(|(seed, _, back)| *back && *seed == first).count();
    assert_eq!(taken_back, 1);
    let second = bench.order();
    assert_ne!(second.0, first);
    bench.reply(&second, Reply::Begins);
    bench.wait(ms(1499));
    assert_eq!(bench.permit(a), None);
    bench.wait(ms(1));
    assert!(bench.permit(a).is_some(), "two seconds after it asked");
    assert_eq!(bench.skips(), [Skip::Silent, Skip::Late]);
    // Both are left alone for a while, and then tried with one blob.
    let b = bench.ask("b", want(2));
    assert!(bench.permit(b).is_some());
    bench.wait(ms(15_000));
    bench.orders.clear();
    let others: Vec<FinderId> = (3..30).map(|number| bench.ask("c", want(number))).collect();
    let tried: BTreeSet<NodeId> = bench.orders.iter().map(|(seed, ..)| seed.clone()).collect();
    assert_eq!((bench.orders.len(), tried.len()), (2, 2), "each with one");
    let reads = others.into_iter().filter(|finder| bench.permit(*finder).is_some()).count();
    assert_eq!(reads, 25);
}

#[test]
fn who_refuses_or_goes_is_skipped_at_once_and_an_old_one_is_never_asked() {
    let mut bench = Bench::with_seeds(&["s", "t"]);
    let a = bench.find("a");
    let first = bench.order();
    bench.reply(&first, Reply::Refuses);
    let second = bench.order();
    bench.apply(Event::Left { node: second.0.clone() });
    assert!(bench.permit(a).is_some(), "in the same moment");
    assert_eq!(bench.skips(), [Skip::Refused, Skip::Gone]);
    // A word of an order that is settled is nothing.
    bench.reply(&first, Reply::Refuses);
    // Who refused one is asked for the next.
    bench.ask("b", want(2));
    assert_eq!(bench.order().0, first.0);

    let mut bench = Bench::with(&["a"]);
    bench.seed("old", false);
    let a = bench.find("a");
    assert!(bench.permit(a).is_some());
    assert!(bench.orders.is_empty());
}

#[test]
fn a_seed_that_its_registry_refuses_costs_nothing_the_second_time() {
    for why in [Trouble::Denied, Trouble::NotFound] {
        let mut bench = Bench::with_seeds(&["s"]);
        let a = bench.find("a");
        let order = bench.order();
        bench.reply(&order, Reply::Begins);
        let s = bench.find("s");
        let permit = bench.permit(s).unwrap();
        bench.failed(s, permit, why);
        assert!(bench.permit(a).is_some(), "the others are not refused with it: {why:?}");
        let b = bench.ask("b", want(2));
        assert!(bench.permit(b).is_some());
        assert!(bench.orders.is_empty());
        let c = bench.ask("c", Ask { repository: "other".into(), ..want(3) });
        bench.order();
        assert_eq!(bench.permit(c), None);
    }
}

#[test]
fn i6_a_seed_that_stops_in_the_middle_is_followed_by_a_node_and_not_asked_for_the_next() {
    let mut bench = Bench::with_seeds(&["s"]);
    let a = bench.find("a");
    let order = bench.order();
    bench.reply(&order, Reply::Begins);
    let s = bench.find("s");
    let permit = bench.permit(s).unwrap();
    bench.headers(s, permit);
    bench.hashes(s, 0, &[1]);
    bench.wait(ms(2000));
    assert!(bench.permit(a).is_some());
    let b = bench.ask("b", want(2));
    assert!(bench.permit(b).is_some());
    assert!(bench.orders.is_empty());
}

#[test]
fn whoever_has_a_part_reads_on_and_a_search_that_ends_asks_nobody_for_longer() {
    let mut bench = Bench::with_seeds(&["s"]);
    let a = bench.ask("a", Ask { blocks: 2, ..want(1) });
    assert!(bench.permit(a).is_some());
    let b = bench.ask("b", want(2));
    let order = bench.order();
    bench.apply(Event::Ended { finder: b, clean: true });
    assert!(bench.skips().is_empty());
    assert_eq!(std::mem::take(&mut bench.orders), [(order.0.clone(), order.1.clone(), true)], "nobody waits for it");
    bench.wait(ms(5000));
    // A seed that did not hear of that yet is one that looks for it, and the next finds what it began.
    bench.reply(&order, Reply::Begins);
    let s = bench.ask("s", want(2));
    assert!(bench.permit(s).is_some());
    let c = bench.ask("c", want(2));
    assert_eq!(bench.permit(c), None);
}

#[test]
fn what_a_seed_reads_for_others_is_taken_back_when_none_of_them_waits_any_more() {
    let mut bench = Bench::with_seeds(&["s"]);
    let (a, b) = (bench.find("a"), bench.find("b"));
    let order = bench.order();
    bench.reply(&order, Reply::Begins);
    let s = bench.find("s");
    let permit = bench.permit(s).unwrap();
    bench.headers(s, permit);
    bench.hashes(s, 0, &[1]);
    bench.apply(Event::Ended { finder: a, clean: true });
    assert!(bench.orders.is_empty(), "b waits");
    // Its connection broke: it will come back.
    bench.apply(Event::Ended { finder: b, clean: false });
    assert!(bench.orders.is_empty());
    let b = bench.find("b");
    bench.apply(Event::Ended { finder: b, clean: true });
    assert_eq!(std::mem::take(&mut bench.orders), [(order.0, order.1, true)]);
    bench.apply(Event::Ended { finder: s, clean: true });
    assert!(bench.orders.is_empty());
    // What somebody got as a whole a seed may have too.
    let a = bench.ask("a", want(2));
    let order = bench.order();
    bench.reply(&order, Reply::Begins);
    let s = bench.ask("s", want(2));
    bench.permit(s).unwrap();
    bench.hold("b", 2, 7);
    bench.apply(Event::Ended { finder: a, clean: true });
    assert!(bench.orders.is_empty());
}

/// Two seeds of which one is slow: it is found out by what the other measured, and the faster reads for all.
#[test]
fn i6c_a_slow_seed_is_asked_no_more_while_that_is_known() {
    let mut bench = Bench::with_seeds(&["s", "t"]);
    let mut number = 0;
    // Each reads one, the one ten times as fast as the other.
    let mut read: BTreeSet<NodeId> = BTreeSet::new();
    while read.len() < 2 {
        number += 1;
        bench.ask("a", want(number));
        let order = bench.order();
        if read.contains(&order.0) {
            bench.reply(&order, Reply::Refuses);
            bench.orders.clear();
            continue;
        }
        bench.reply(&order, Reply::Begins);
        let reader = bench.ask(order.0.as_str(), want(number));
        let permit = bench.permit(reader).unwrap();
        bench.headers(reader, permit);
        let rate = if order.0.as_str() == "s" { BLOCK } else { 10 * BLOCK };
        for step in 1..=4 {
            bench.wait(ms(250));
            bench.tell(reader, Tell::Progress { blocks: 1, origin_bytes: step * rate, fed: Vec::new() });
        }
        bench.apply(Event::Ended { finder: reader, clean: true });
        read.insert(order.0);
    }
    for number in 100..120 {
        bench.ask("b", want(number));
        assert_eq!(bench.order().0.as_str(), "t");
    }
}
