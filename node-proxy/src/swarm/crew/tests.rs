use std::collections::BTreeSet;

use proptest::prelude::*;
use shoal_proto::Layout;

use super::super::ParentAddr;
use super::*;

fn parent(node: u16) -> Parent {
    let addr = ParentAddr(([10, 0, 0, 1], 1000 + node).into());
    Parent { node: format!("n{node}").parse().unwrap(), addr, complete: true }
}

fn parents(nodes: &[u16]) -> Vec<Parent> {
    nodes.iter().copied().map(parent).collect()
}

fn board() -> Board {
    Board::new(Layout::of(64 << 20).unwrap(), 32, 7)
}

fn started(crew: &mut Crew, now: Instant) -> Vec<(Seat, String)> {
    let board = board();
    std::iter::from_fn(|| crew.start(now, &board)).map(|start| (start.seat, start.parent.node.to_string())).collect()
}

fn names(nodes: &[(Seat, &str)]) -> Vec<(Seat, String)> {
    nodes.iter().map(|(seat, node)| (*seat, (*node).to_owned())).collect()
}

#[test]
fn seats_are_filled_in_the_order_of_control() {
    let now = Instant::now();
    let mut crew = Crew::new(2);
    assert!(crew.rename(&parents(&[5, 3, 9])).is_empty());
    assert_eq!(started(&mut crew, now), names(&[(0, "n5"), (1, "n3")]));
    assert!(crew.has_spare(now));
    crew.ended(0, Score::default(), How::Lost, now);
    assert_eq!(started(&mut crew, now), names(&[(2, "n9")]));
    assert!(!crew.has_spare(now));
    assert_eq!(crew.due(now), Some(now + Duration::from_secs(1)));
}

#[test]
fn one_that_is_named_no_more_is_retired_and_its_record_stays() {
    let now = Instant::now();
    let mut crew = Crew::new(2);
    crew.rename(&parents(&[1, 2]));
    started(&mut crew, now);
    assert_eq!(crew.rename(&parents(&[2])), [0]);
    crew.ended(0, Score::default(), How::Lied, now);
    crew.rename(&parents(&[1, 2]));
    assert!(started(&mut crew, now).is_empty(), "a liar is not asked again although it is named");
    assert_eq!(crew.due(now), None);
}

#[test]
fn a_node_that_comes_back_at_another_address_starts_anew() {
    let now = Instant::now();
    let mut crew = Crew::new(2);
    crew.rename(&parents(&[1]));
    started(&mut crew, now);
    crew.ended(0, Score::default(), How::Lost, now);
    assert!(started(&mut crew, now).is_empty());
    let mut moved = parent(1);
    moved.addr.0.set_port(7);
    crew.rename(&[moved]);
    assert_eq!(started(&mut crew, now), names(&[(1, "n1")]));
}

#[derive(Debug, Clone)]
enum Step {
    Rename(Vec<u16>),
    Pass(u64),
    End(prop::sample::Index, How),
}

fn step() -> impl Strategy<Value = Step> {
    let how = prop_oneof![
        Just(How::Left),
        Just(How::Useless),
        (0..20_000u64).prop_map(|ms| How::Busy(Duration::from_millis(ms))),
        Just(How::Lost),
        Just(How::Lied),
    ];
    prop_oneof![
        1 => prop::collection::vec(0..8u16, 0..6).prop_map(Step::Rename),
        2 => (1..5_000u64).prop_map(Step::Pass),
        3 => (any::<prop::sample::Index>(), how).prop_map(|(at, how)| Step::End(at, how)),
    ]
}

proptest! {
    #[test]
    fn a_named_parent_that_has_not_lied_is_never_forgotten(
        streams in 1..5usize,
        steps in prop::collection::vec(step(), 0..80),
    ) {
        let (mut crew, mut now) = (Crew::new(streams), Instant::now());
        let (mut seated, mut named, mut liars) = (Vec::<(Seat, String)>::new(), Vec::new(), BTreeSet::new());
        let mut seats = BTreeSet::new();
        for step in steps {
            match step {
                Step::Rename(nodes) => {
                    named = nodes.iter().map(|node| format!("n{node}")).collect();
                    let retired: BTreeSet<Seat> = crew.rename(&parents(&nodes)).into_iter().collect();
                    let gone = seated.iter().filter(|(_, node)| !named.contains(node)).map(|(seat, _)| *seat);
                    prop_assert_eq!(retired, gone.collect::<BTreeSet<Seat>>());
                }
                Step::Pass(ms) => now += Duration::from_millis(ms),
                Step::End(_, _) if seated.is_empty() => {}
                Step::End(at, how) => {
                    let (seat, node) = seated.remove(at.index(seated.len()));
                    if how == How::Lied {
                        liars.insert(node);
                    }
                    crew.ended(seat, Score::default(), how, now);
                }
            }
            for (seat, node) in started(&mut crew, now) {
                prop_assert!(seats.insert(seat), "a seat was given twice");
                prop_assert!(named.contains(&node) && !liars.contains(&node));
                prop_assert!(seated.iter().all(|(_, other)| *other != node), "two seats for one node");
                seated.push((seat, node));
            }
            prop_assert!(seated.len() <= streams);
            prop_assert_eq!(seated.len(), crew.seats());
            let free = named.iter().any(|node| !liars.contains(node) && seated.iter().all(|(_, other)| other != node));
            if free && seated.len() < streams {
                let due = crew.due(now);
                prop_assert!(due.is_some_and(|at| at <= now + Duration::from_secs(30)), "forgotten: {:?}", due);
            }
        }
    }
}
