use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const EVERY: Duration = Duration::from_millis(50);

fn layout(blocks: u32) -> Layout {
    Layout::of(u64::from(blocks) * (256 << 10)).unwrap()
}

fn set(layout: Layout, blocks: impl IntoIterator<Item = BlockIndex>) -> BlockSet {
    let mut set = BlockSet::empty(layout);
    blocks.into_iter().for_each(|block| assert!(set.insert(block)));
    set
}

fn shown(show: &mut Show, child: Child, have: &BlockSet, own: Option<&BlockSet>, now: Instant) -> Vec<BlockIndex> {
    show.show(child, have, own, now).iter().flat_map(Run::blocks).collect()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn growth_is_shown_at_once_when_it_is_much_and_else_when_it_is_time() {
    let (layout, now) = (layout(100), Instant::now());
    let mut show = Show::new(layout, EVERY);
    let child = show.join(Opening::default(), now);
    assert_eq!(shown(&mut show, child, &set(layout, [3, 5]), None, now), [3, 5]);
    assert_eq!(show.due(child), None);
    show.wanted(child, Run { first: 3, count: 1 }, now);
    assert!(shown(&mut show, child, &set(layout, [3, 5, 6]), None, now).is_empty());
    assert_eq!(show.due(child), Some(now + EVERY));
    let then = now + EVERY;
    assert_eq!(shown(&mut show, child, &set(layout, [3, 5, 6]), None, then), [6]);
    let much = shown(&mut show, child, &set(layout, 3..23), None, then);
    assert_eq!(much, [4].into_iter().chain(7..23).collect::<Vec<_>>());
    show.gave(child, 3, then);
    assert!(shown(&mut show, child, &set(layout, 3..24), None, then).is_empty());
    assert_eq!(show.due(child), Some(then + EVERY / IDLE_SOONER), "sooner when it waits for nothing");
}

#[test]
fn a_child_that_is_alone_is_shown_everything() {
    let (layout, now) = (layout(40), Instant::now());
    let mut show = Show::new(layout, EVERY);
    let (child, whole) = (show.join(Opening::default(), now), BlockSet::full(layout));
    assert_eq!(shown(&mut show, child, &whole, Some(&whole), now).len(), 40);
}

#[test]
fn who_held_the_blob_before_its_children_came_lends_it_as_a_source_does() {
    let (layout, now) = (layout(40), Instant::now());
    for (opening, children, lends) in [
        (Opening { holders: 1, whole: true }, 2, true),
        (Opening { holders: 0, whole: true }, 2, true),
        (Opening { holders: 2, whole: true }, 8, false),
        (Opening { holders: 2, whole: true }, 9, true),
        (Opening { holders: 1, whole: false }, 9, false),
    ] {
        let mut show = Show::new(layout, EVERY);
        for _ in 0..children {
            show.join(opening, now);
        }
        assert_eq!(show.lends_all(), lends, "{opening:?}, {children} children");
    }
    // It became whole while it served: that changes nothing for those who are there.
    let mut show = Show::new(layout, EVERY);
    let first = show.join(Opening::default(), now);
    show.join(Opening { holders: 1, whole: true }, now);
    assert!(!show.lends_all());
    show.leave(first, false, now);
}

#[test]
fn blocks_that_go_out_together_took_the_same_time_each() {
    let (layout, begin) = (layout(64), Instant::now());
    let mut show = Show::new(layout, EVERY);
    let child = show.join(Opening::default(), begin);
    assert_eq!(show.at_once(child), LEAST_LOAN, "nothing is known of it");
    show.wanted(child, Run { first: 0, count: 8 }, begin);
    show.gave_run(child, Run { first: 0, count: 8 }, begin + ms(800));
    assert_eq!(show.at_once(child), 5, "100 ms each");
    show.wanted(child, Run { first: 8, count: 1 }, begin + ms(800));
    for block in 0..20 {
        show.gave(child, 8 + block, begin + ms(800) + ms(3_000) * (block + 1));
    }
    assert_eq!(show.at_once(child), 1, "it takes seconds for one");
}

#[test]
fn a_source_leaves_what_came_from_peers_to_them_while_first_copies_wait() {
    let (layout, now) = (layout(100), Instant::now());
    let mut show = Show::new(layout, EVERY);
    let children = [show.join(Opening::default(), now), show.join(Opening::default(), now)];
    let own = set(layout, 0..20);
    let have = set(layout, 0..40);
    let second_hand = |blocks: Vec<BlockIndex>| blocks.into_iter().filter(|block| *block >= 20).count();
    let [one, other] = children;
    assert_eq!(second_hand(shown(&mut show, one, &have, Some(&own), now)), 0, "it has just come");
    let later = now + ms(150);
    show.wanted(one, Run { first: 0, count: 1 }, later);
    let late = later + LEFT_TO_PEERS;
    assert_eq!(second_hand(shown(&mut show, other, &have, Some(&own), late)), 0, "the uplink is busy");
    show.gave(one, 0, late);
    assert_eq!(
        second_hand(shown(&mut show, other, &have, Some(&own), late)),
        20,
        "it is not, and peers had their time"
    );
    show.wanted(one, Run { first: 1, count: 1 }, late);
    assert_eq!(second_hand(shown(&mut show, one, &have, Some(&own), late)), 0);
    assert_eq!(second_hand(shown(&mut show, one, &have, Some(&own), now + HELD_BACK)), 20, "it may know nobody else");
    show.gave(one, 1, late);
    let younger = set(layout, 0..60);
    assert_eq!(second_hand(shown(&mut show, other, &younger, Some(&own), late)), 0);
    assert_eq!(
        second_hand(shown(&mut show, other, &younger, Some(&own), late + QUIET)),
        20,
        "nobody asks for anything"
    );
}

#[test]
fn what_a_slow_child_passed_over_is_lent_to_a_quick_one_and_not_to_the_next_slow_one() {
    let (layout, now) = (layout(200), Instant::now());
    let mut show = Show::new(layout, EVERY);
    let [slow, slow_too, quick] =
        [show.join(Opening::default(), now), show.join(Opening::default(), now), show.join(Opening::default(), now)];
    let own = set(layout, 0..12);
    let give = |show: &mut Show, child, first, asked: Instant, took| {
        show.wanted(child, Run { first, count: 1 }, asked);
        show.gave(child, first, asked + took);
    };
    // All are lent two. The slow ones get theirs sooner: it is the uplink that was busy.
    for (child, took) in [(slow, ms(10)), (slow_too, ms(10)), (quick, ms(400))] {
        let lent = shown(&mut show, child, &own, Some(&own), now);
        assert_eq!(lent.len(), 2);
        give(&mut show, child, lent[0], now, took);
        give(&mut show, child, lent[1], now, took);
    }
    // Both slow ones are lent more, and ask for none of it.
    let begin = now + ms(500);
    let one = shown(&mut show, slow, &own, Some(&own), begin);
    let other = shown(&mut show, slow_too, &own, Some(&own), begin);
    assert_eq!((one.len(), other.len()), (2, 2));
    for step in 0..5 {
        // The uplink is never quiet, and the quick one is far ahead.
        give(&mut show, quick, 100 + step, begin + ms(100) * step, ms(10));
    }
    let late = begin + UNASKED;
    assert!(shown(&mut show, slow, &own, Some(&own), late).iter().all(|block| !other.contains(block)));
    let lent: BTreeSet<_> = shown(&mut show, quick, &own, Some(&own), late).into_iter().collect();
    assert!(one.iter().chain(&other).any(|block| lent.contains(block)), "{one:?} {other:?} {lent:?}");
}

/// The last blocks of a blob: all others are with everybody, and a slow child comes to them in seconds.
#[test]
fn a_quick_child_without_work_gets_what_one_far_behind_has_not_asked_for() {
    let (layout, begin) = (layout(200), Instant::now());
    let mut show = Show::new(layout, EVERY);
    let [slow, quick] = [show.join(Opening::default(), begin), show.join(Opening::default(), begin)];
    let own = set(layout, 0..4);
    let lent = shown(&mut show, slow, &own, Some(&own), begin);
    assert_eq!(lent.len(), 2);
    for block in shown(&mut show, quick, &own, Some(&own), begin) {
        show.wanted(quick, Run { first: block, count: 1 }, begin);
        show.gave(quick, block, begin + ms(10));
    }
    // The quick one is far ahead with its other parents, and the slow one waits for something else of ours.
    show.wanted(quick, Run { first: 150, count: 1 }, begin + ms(20));
    show.gave(quick, 150, begin + ms(30));
    show.wanted(slow, Run { first: 20, count: 1 }, begin + ms(40));
    assert!(shown(&mut show, quick, &own, Some(&own), begin + QUIET / 2).is_empty(), "its hash may be on the way");
    let got = shown(&mut show, quick, &own, Some(&own), begin + QUIET + ms(1));
    assert_eq!(got, lent);
    assert!(shown(&mut show, slow, &own, Some(&own), begin + QUIET + ms(60)).is_empty(), "it knows of them");
}

/// A slow child that was lent many takes one of them now and then: that alone must not keep the others for good.
#[test]
fn a_first_copy_that_a_child_never_asks_for_goes_back_although_it_takes_others() {
    let (layout, begin) = (layout(400), Instant::now());
    let mut show = Show::new(layout, EVERY);
    let [slow, other] = [show.join(Opening::default(), begin), show.join(Opening::default(), begin)];
    let own = BlockSet::full(layout);
    let mut owed = shown(&mut show, slow, &own, Some(&own), begin);
    let left = owed.remove(0);
    let mut back = None;
    for step in 1..40 {
        let now = begin + ms(100) * step;
        owed.extend(shown(&mut show, slow, &own, Some(&own), now));
        let mut taken: Vec<_> = owed.pop().map(|block| (slow, block)).into_iter().collect();
        let lent = shown(&mut show, other, &own, Some(&own), now);
        if lent.contains(&left) {
            back.get_or_insert(now - begin);
        }
        taken.extend(lent.into_iter().map(|block| (other, block)));
        for (child, block) in taken {
            show.wanted(child, Run { first: block, count: 1 }, now);
            show.gave(child, block, now + ms(1));
        }
    }
    let back = back.expect("it goes to the other");
    assert!((NOT_YET..NOT_YET + ms(500)).contains(&back), "{back:?}");
}

#[test]
fn first_hand_blocks_go_to_one_child_each_until_all_were_given() {
    let (layout, now) = (layout(8), Instant::now());
    let (mut show, whole) = (Show::new(layout, EVERY), BlockSet::full(layout));
    let children = [show.join(Opening::default(), now), show.join(Opening::default(), now)];
    let mut given = Vec::new();
    let mut told = [Vec::new(), Vec::new()];
    while given.len() < 8 {
        let lent = children.map(|child| shown(&mut show, child, &whole, Some(&whole), now));
        for (at, child) in children.into_iter().enumerate() {
            for block in lent[at].iter().copied() {
                assert!(!told[1 - at].contains(&block), "{block} was shown to both");
                told[at].push(block);
                show.wanted(child, Run { first: block, count: 1 }, now);
                show.gave(child, block, now);
                given.push(block);
            }
        }
    }
    assert_eq!(told.each_ref().map(Vec::len), [4, 4]);
    for (at, child) in children.into_iter().enumerate() {
        assert_eq!(shown(&mut show, child, &whole, Some(&whole), now + EVERY), told[1 - at], "now the rest");
    }
}

#[test]
fn what_a_child_does_not_take_goes_to_another() {
    let (layout, now) = (layout(4), Instant::now());
    let (mut show, whole) = (Show::new(layout, EVERY), BlockSet::full(layout));
    let (idle, busy) = (show.join(Opening::default(), now), show.join(Opening::default(), now));
    assert_eq!(shown(&mut show, idle, &whole, Some(&whole), now), [0, 1]);
    assert_eq!(shown(&mut show, busy, &whole, Some(&whole), now), [2, 3]);
    show.wanted(busy, Run { first: 2, count: 2 }, now);
    let mut then = now;
    let mut more = Vec::new();
    // It asks on and on, so that the uplink is never quiet.
    while more.is_empty() {
        then += ms(100);
        assert!(then < now + ms(1000), "the loan is not called in");
        show.gave(busy, 2, then);
        show.wanted(busy, Run { first: 2, count: 1 }, then);
        show.loan_of(busy).iter().for_each(|block| assert!([2, 3].contains(block)));
        if then > now + ms(200) {
            show.gave(busy, 3, then);
            show.wanted(busy, Run { first: 3, count: 1 }, then);
            show.children.get_mut(busy).unwrap().loan = BlockSet::empty(layout);
        }
        more = shown(&mut show, busy, &whole, Some(&whole), then);
    }
    assert_eq!(more, [0, 1]);
}

/// A slow child asks for what is at the start of its window, and never for what it was lent from the end of the blob.
#[test]
fn a_child_that_is_busy_with_other_blocks_keeps_neither_its_loan_nor_its_turn() {
    let (layout, now) = (layout(64), Instant::now());
    let (mut show, whole) = (Show::new(layout, EVERY), BlockSet::full(layout));
    let (slow, fast) = (show.join(Opening::default(), now), show.join(Opening::default(), now));
    let (mut then, mut got) = (now, BlockSet::empty(layout));
    for second in 0..20 {
        let _ = shown(&mut show, slow, &whole, Some(&whole), then);
        if second > 0 {
            show.gave(slow, 64 - second, then);
        }
        show.wanted(slow, Run { first: 63 - second, count: 1 }, then);
        for _ in 0..20 {
            then += ms(50);
            for block in shown(&mut show, fast, &whole, Some(&whole), then) {
                show.wanted(fast, Run { first: block, count: 1 }, then);
                show.gave(fast, block, then);
                got.insert(block);
            }
        }
    }
    let lacks: Vec<_> = (0..64).filter(|block| !got.contains(*block) && !show.given.contains(*block)).collect();
    assert_eq!(lacks, Vec::<BlockIndex>::new(), "on loan to the slow one, or nobody's: {:?}", show.loan_of(slow));
}

#[test]
fn second_copies_are_shown_when_the_uplink_has_nothing_to_do() {
    let (layout, now) = (layout(64), Instant::now());
    let (mut show, part) = (Show::new(layout, EVERY), set(layout, 0..4));
    let (one, two) = (show.join(Opening::default(), now), show.join(Opening::default(), now));
    assert_eq!(shown(&mut show, one, &part, Some(&part), now), [0, 1]);
    assert_eq!(shown(&mut show, two, &part, Some(&part), now), [2, 3]);
    for (child, first) in [(one, 0), (two, 2)] {
        show.wanted(child, Run { first, count: 2 }, now);
        (first..first + 2).for_each(|block| {
            show.gave(child, block, now);
        });
    }
    let soon = now + QUIET / 2;
    assert!(shown(&mut show, one, &part, Some(&part), soon).is_empty());
    assert!(show.due(one).is_some_and(|at| at > soon && at <= now + QUIET + EVERY));
    assert_eq!(shown(&mut show, one, &part, Some(&part), now + QUIET), [2, 3]);
}

#[test]
fn what_a_broken_child_got_counts_as_not_given() {
    let (layout, now) = (layout(64), Instant::now());
    let (mut show, part) = (Show::new(layout, EVERY), set(layout, 0..2));
    let (one, two) = (show.join(Opening::default(), now), show.join(Opening::default(), now));
    let three = show.join(Opening::default(), now);
    assert_eq!(shown(&mut show, one, &part, Some(&part), now), [0, 1]);
    show.wanted(one, Run { first: 0, count: 2 }, now);
    show.gave(one, 0, now);
    assert!(shown(&mut show, two, &part, Some(&part), now).is_empty(), "it gets that from the other child");
    show.leave(one, true, now);
    assert_eq!(shown(&mut show, three, &part, Some(&part), now), [0]);
    assert_eq!(shown(&mut show, two, &part, Some(&part), now), [1]);
}

#[test]
fn blocks_that_come_one_by_one_go_to_all_children_in_turn() {
    let (layout, now) = (layout(64), Instant::now());
    let mut show = Show::new(layout, EVERY);
    let children: Vec<Child> = (0..4).map(|_| show.join(Opening::default(), now)).collect();
    let mut got = [0; 4];
    for read in 1..=32 {
        let have = set(layout, 0..read);
        // The first is the fastest: it always looks first, and takes at once what it is shown.
        for (child, got) in children.iter().zip(&mut got) {
            for block in shown(&mut show, *child, &have, Some(&have), now) {
                show.wanted(*child, Run { first: block, count: 1 }, now);
                show.gave(*child, block, now);
                *got += 1;
            }
        }
    }
    assert_eq!(got, [8; 4]);
}

#[test]
fn who_comes_late_is_shown_what_others_got_before_only_after_a_while() {
    let (layout, now) = (layout(64), Instant::now());
    let mut show = Show::new(layout, EVERY);
    let (one, _two) = (show.join(Opening::default(), now), show.join(Opening::default(), now));
    let mut have = set(layout, 0..2);
    assert_eq!(shown(&mut show, one, &have, Some(&have), now), [0, 1]);
    show.wanted(one, Run { first: 0, count: 2 }, now);
    show.gave(one, 0, now);
    let late = show.join(Opening::default(), now);
    have = set(layout, 0..10);
    let told = shown(&mut show, late, &have, Some(&have), now);
    assert!(!told.is_empty() && !told.contains(&0), "{told:?}");
    show.wanted(late, Run { first: told[0], count: 1 }, now);
    assert!(show.due(late).is_some_and(|at| at <= now + EARLIER_AFTER));
    // It asks on, so that the uplink is never quiet.
    let then = now + EARLIER_AFTER;
    show.wanted(late, Run { first: told[0], count: 1 }, then);
    assert!(shown(&mut show, late, &have, Some(&have), then).contains(&0));
}

impl Show {
    fn loan_of(&self, child: Child) -> Vec<BlockIndex> {
        blocks(&self.children.get(child).unwrap().loan).collect()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Join,
    Leave(prop::sample::Index, bool),
    Read(u32),
    Want(prop::sample::Index, u32),
    Give(prop::sample::Index),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let child = any::<prop::sample::Index>;
    prop_oneof![
        1 => Just(Step::Join),
        1 => (child(), any::<bool>()).prop_map(|(at, broken)| Step::Leave(at, broken)),
        4 => (1..6u32).prop_map(Step::Read),
        6 => (child(), 1..4u32).prop_map(|(at, count)| Step::Want(at, count)),
        8 => child().prop_map(Step::Give),
        3 => (1..400u64).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Whatever children do: nothing is shown that is not here, nothing twice, and in the end everything to everybody.
    #[test]
    fn every_child_is_shown_every_block_in_the_end(
        blocks in 1..50u32,
        mixed: bool,
        steps in prop::collection::vec(step(), 0..150),
    ) {
        let layout = layout(blocks);
        let (mut show, mut now) = (Show::new(layout, EVERY), Instant::now());
        let (mut have, mut own) = (BlockSet::empty(layout), BlockSet::empty(layout));
        // For each child what it was shown, and what it asked for and did not get.
        let mut children: Vec<(Child, BlockSet, Vec<BlockIndex>)> = Vec::new();
        let look = |show: &mut Show, children: &mut Vec<(Child, BlockSet, Vec<BlockIndex>)>, have: &BlockSet, own: &BlockSet, now| {
            for (child, told, _) in children {
                for block in show.show(*child, have, Some(own), now).iter().flat_map(Run::blocks) {
                    prop_assert!(have.contains(block), "{} is not here", block);
                    prop_assert!(told.insert(block), "{} was shown twice", block);
                }
                prop_assert!(show.due(*child).is_none_or(|at| at > now), "due at once, again");
                prop_assert!(told.len() == have.len() || show.due(*child).is_some(), "never looked at again");
            }
            Ok(())
        };
        for step in steps {
            match step {
                Step::Join => children.push((show.join(Opening::default(), now), BlockSet::empty(layout), Vec::new())),
                Step::Read(count) => {
                    let first = have.first_missing(0);
                    for block in first..(first + count).min(blocks) {
                        have.insert(block);
                        if !mixed || block % 3 != 0 {
                            own.insert(block);
                        }
                    }
                }
                Step::Pass(by) => now += ms(by),
                _ if children.is_empty() => {}
                Step::Leave(at, broken) => {
                    let (child, ..) = children.swap_remove(at.index(children.len()));
                    show.leave(child, broken, now);
                }
                Step::Want(at, count) => {
                    let at = at.index(children.len());
                    let (child, told, wants) = &mut children[at];
                    let next = told.runs().into_iter().flat_map(|run| run.blocks()).find(|block| !wants.contains(block));
                    if let Some(first) = next {
                        let count = (first..first + count).take_while(|block| told.contains(*block)).count() as u32;
                        show.wanted(*child, Run { first, count }, now);
                        wants.extend(first..first + count);
                    }
                }
                Step::Give(at) => {
                    let at = at.index(children.len());
                    let (child, _, wants) = &mut children[at];
                    if !wants.is_empty() {
                        show.gave(*child, wants.remove(0), now);
                    }
                }
            }
            look(&mut show, &mut children, &have, &own, now)?;
        }
        for _ in 0..200 {
            now += ms(50);
            look(&mut show, &mut children, &have, &own, now)?;
        }
        for (_, told, _) in &children {
            prop_assert_eq!(told.len(), have.len());
        }
    }
}
