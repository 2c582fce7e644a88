use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const BLOCK: u64 = 256 << 10;

fn layout(blocks: u32) -> Layout {
    Layout::of(u64::from(blocks) * BLOCK).unwrap()
}

fn all(layout: Layout) -> Vec<Run> {
    vec![Run { first: 0, count: layout.blocks() }]
}

/// A board whose list is known, with `seats` parents that have everything.
fn board(blocks: u32, window: u32, seats: u32) -> Board {
    let layout = layout(blocks);
    let mut board = Board::new(layout, window, 7);
    for block in 0..blocks {
        board.set_known(block, true);
    }
    for seat in 0..seats {
        board.join(seat);
        board.show(seat, &all(layout));
    }
    board
}

#[test]
fn one_parent_is_asked_in_order_from_the_focus() {
    let mut board = board(10, 32, 1);
    board.set_focuses(&[7]);
    let order: Vec<u32> = std::iter::from_fn(|| board.ask(0)).flat_map(|run| run.blocks()).collect();
    assert_eq!(order, [7, 8, 9, 0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn who_is_retired_before_it_has_answered_is_asked_nothing_then() {
    let mut board = board(4, 1, 0);
    board.retire(7);
    for seat in [7, 8] {
        board.join(seat);
        board.show(seat, &[Run { first: 0, count: 4 }]);
    }
    assert!(board.is_retired(7) && board.ask(7).is_none());
    assert!(!board.is_retired(8) && board.ask(8).is_some());
}

#[test]
fn a_piece_is_asked_as_one_run() {
    // 1 GiB: pieces of 4 MiB, 16 blocks.
    let mut board = board(4096, 32, 1);
    assert_eq!(board.ask(0), Some(Run { first: 0, count: 16 }));
    board.set_focuses(&[40]);
    assert_eq!(board.ask(0), Some(Run { first: 40, count: 8 }));
    assert_eq!(board.ask(0), Some(Run { first: 32, count: 8 }));
}

#[test]
fn the_focus_goes_first_then_the_rarest_of_the_window() {
    let mut board = board(100, 8, 3);
    board.join(3);
    board.show(3, &[Run { first: 0, count: 4 }, Run { first: 6, count: 94 }]);
    assert_eq!(board.ask(0), Some(Run { first: 0, count: 1 }), "focus");
    assert_eq!(board.holders[4], 3);
    let next: BTreeSet<u32> = [board.ask(0).unwrap().first, board.ask(1).unwrap().first].into();
    assert_eq!(next, BTreeSet::from([4, 5]), "rarest");
    let rest: BTreeSet<u32> = std::iter::from_fn(|| board.ask(2)).map(|run| run.first).collect();
    assert_eq!(rest, BTreeSet::from([1, 2, 3, 6, 7]), "inside the window");
}

#[test]
fn nodes_with_another_salt_ask_in_another_order() {
    let orders: BTreeSet<Vec<u32>> = (0..4)
        .map(|salt| {
            let mut board = board(32, 32, 2);
            board.salt = salt;
            std::iter::from_fn(|| board.ask(0)).map(|run| run.first).collect()
        })
        .collect();
    assert_eq!(orders.len(), 4);
}

#[test]
fn the_slowest_is_helped_only_when_all_that_is_missing_is_asked() {
    let mut board = board(4, 32, 3);
    board.set_rate(0, 10.0);
    board.set_rate(1, 1.0);
    let (a, b) = (board.ask(0).unwrap(), board.ask(1).unwrap());
    assert_ne!(a, b);
    for _ in 0..2 {
        assert_eq!(board.ask(2).map(|run| run.count), Some(1));
    }
    assert_eq!(board.ask(2), None, "busy itself");
    board.settle(2, true);
    board.settle(2, true);
    assert_eq!(board.ask(2), Some(b), "the slowest first");
    assert!(board.land(2));
    assert!(!board.land(1), "the copy that comes second is not written");
    board.settle(1, false);
    assert!(!board.is_done());
    board.settle(2, true);
    board.settle(0, true);
    assert!(board.is_done());
}

#[test]
fn a_block_whose_writer_left_can_be_written_again() {
    let mut board = board(1, 32, 2);
    assert!(board.ask(0).is_some() && board.ask(1).is_some());
    assert!(board.land(0));
    board.leave(0);
    assert!(board.land(1));
}

#[test]
fn a_seat_that_was_retired_and_never_taken_leaves_nothing() {
    let mut board = board(1, 32, 0);
    board.retire(7);
    board.leave(7);
    assert!(board.retired_early.is_empty());
}

#[test]
fn a_hole_in_the_window_that_nobody_can_fill_does_not_stop_the_rest() {
    let mut board = board(40, 2, 0);
    board.join(0);
    board.show(0, &[Run { first: 20, count: 5 }]);
    assert_eq!(board.ask(0), Some(Run { first: 20, count: 1 }));
}

/// What may happen to a board, in any order.
#[derive(Debug, Clone)]
enum Step {
    Join,
    Leave(prop::sample::Index),
    Retire(prop::sample::Index),
    Show(prop::sample::Index, u32, u32),
    Known(u32),
    Unknown(u32),
    DoneElsewhere(u32),
    Focus(u32),
    Ask(prop::sample::Index),
    Arrive(prop::sample::Index, bool),
    Late(prop::sample::Index, bool),
    Idle(prop::sample::Index, bool),
    Rate(prop::sample::Index, u32),
    Missing(u32),
    Most(Option<u32>),
}

fn step(blocks: u32) -> impl Strategy<Value = Step> {
    let seat = any::<prop::sample::Index>;
    prop_oneof![
        2 => Just(Step::Join),
        1 => seat().prop_map(Step::Leave),
        1 => seat().prop_map(Step::Retire),
        4 => (seat(), 0..blocks, 1..9u32).prop_map(|(s, first, count)| Step::Show(s, first, count)),
        4 => (0..blocks).prop_map(Step::Known),
        1 => (0..blocks).prop_map(Step::Unknown),
        1 => (0..blocks).prop_map(Step::DoneElsewhere),
        1 => (0..blocks).prop_map(Step::Focus),
        12 => seat().prop_map(Step::Ask),
        6 => (seat(), any::<bool>()).prop_map(|(s, right)| Step::Arrive(s, right)),
        2 => (seat(), any::<bool>()).prop_map(|(s, late)| Step::Late(s, late)),
        1 => (seat(), any::<bool>()).prop_map(|(s, idle)| Step::Idle(s, idle)),
        2 => (seat(), 0..50u32).prop_map(|(s, rate)| Step::Rate(s, rate)),
        1 => (0..blocks).prop_map(Step::Missing),
        1 => prop::option::of(0..6u32).prop_map(Step::Most),
    ]
}

/// Checks one answer against what the board knew before.
fn check(board: &mut Board, seat: Seat) -> Result<Option<Run>, TestCaseError> {
    let (flying, done, known) = (board.flying.clone(), board.done.clone(), board.known.clone());
    let end_game = board.missing().all(|block| flying[block as usize] > 0);
    let side = board.seats.get(seat).unwrap();
    let (mine, have) = (side.asked.clone(), side.have.clone());
    let room = board.most.map_or(u32::MAX, |most| most.saturating_sub(board.on_their_way()));
    let looked = board.pick(seat).filter(|_| room > 0).map(|run| Run { count: run.count.min(room), ..run });
    let asked = board.ask(seat);
    prop_assert_eq!(asked, looked, "it was not looked at although there is something");
    let Some(run) = asked else { return Ok(None) };
    prop_assert!(run.count > 0);
    for block in run.blocks() {
        prop_assert!(have.contains(block), "{block} is not had");
        prop_assert!(known.contains(block), "{block} has no known hash");
        prop_assert!(!done.contains(block), "{block} is done");
        prop_assert!(!mine.contains(&block), "{block} is asked here already");
        prop_assert!(flying[block as usize] <= u8::from(end_game), "{block} is asked twice");
        prop_assert_eq!(board.layout.piece_of(block), board.layout.piece_of(run.first));
    }
    Ok(Some(run))
}

proptest! {
    #[test]
    fn asks_only_what_is_had_known_missing_and_not_asked(
        blocks in 1..60u32,
        window in 1..12u32,
        salt: u64,
        steps in (1..60u32).prop_flat_map(|blocks| prop::collection::vec(step(blocks), 0..300)),
    ) {
        let mut board = Board::new(layout(blocks), window, salt);
        let (mut seats, mut next): (Vec<Seat>, Seat) = (Vec::new(), 0);
        for step in steps {
            match step {
                Step::Join => { board.join(next); seats.push(next); next += 1; }
                Step::Known(block) => board.set_known(block % blocks, true),
                Step::Unknown(block) => board.set_known(block % blocks, false),
                Step::DoneElsewhere(block) => board.set_done(block % blocks),
                Step::Focus(block) => board.set_focuses(&[block % blocks]),
                Step::Missing(block) => board.set_missing(block % blocks),
                Step::Most(most) => board.set_most(most),
                _ if seats.is_empty() => {}
                Step::Leave(at) => { let at = at.index(seats.len()); board.leave(seats.remove(at)); }
                Step::Retire(at) => {
                    let seat = *at.get(&seats);
                    board.retire(seat);
                    prop_assert_eq!(board.ask(seat), None);
                }
                Step::Show(at, first, count) => board.show(*at.get(&seats), &[Run { first, count }]),
                Step::Ask(at) => { check(&mut board, *at.get(&seats))?; }
                Step::Late(at, late) => board.set_late(*at.get(&seats), late),
                Step::Idle(at, idle) => board.set_idle(*at.get(&seats), idle),
                Step::Rate(at, rate) => board.set_rate(*at.get(&seats), f64::from(rate)),
                Step::Arrive(at, right) => {
                    let seat = *at.get(&seats);
                    let before = board.awaited(seat).filter(|_| right && board.land(seat));
                    board.settle(seat, before.is_some());
                    prop_assert!(before.is_none_or(|block| board.done.contains(block)));
                }
            }
            let mut flying = vec![0u8; blocks as usize];
            let mut holders = vec![0u16; blocks as usize];
            for side in board.seats.values() {
                // What a parent is late with may be asked of another, in the end game of two others.
                side.asked.iter().filter(|_| !side.late).for_each(|block| flying[*block as usize] += 1);
                side.have.runs().iter().flat_map(Run::blocks).for_each(|block| holders[block as usize] += 1);
            }
            prop_assert_eq!(&flying, &board.flying);
            prop_assert_eq!(&holders, &board.holders);
            prop_assert!(flying.iter().all(|count| *count <= 2), "asked at three");
        }
    }

    #[test]
    fn a_fetch_ends_when_the_bytes_exist_somewhere(
        blocks in 1..80u32,
        window in 1..8u32,
        salt: u64,
        // For each parent: where its part starts, how fast it shows more, how many blocks it sends before it dies.
        parents in prop::collection::vec((0..80u32, 1..8u32, prop::option::of(0..30u32)), 1..6),
        list_speed in 1..8u32,
    ) {
        let layout = layout(blocks);
        let mut board = Board::new(layout, window, salt);
        // The last parent has everything and stays; it alone makes the end certain.
        let last = parents.len() as u32;
        board.join(last);
        board.show(last, &all(layout));
        let mut sent = vec![0; parents.len()];
        (0..last).for_each(|seat| board.join(seat));
        let mut rounds = 0;
        while !board.is_done() {
            rounds += 1;
            prop_assert!(rounds < 4 * blocks + 100, "no end in sight");
            for block in 0..(rounds * list_speed).min(blocks) {
                board.set_known(block, true);
            }
            let focus = board.missing().next().unwrap();
            board.set_focuses(&[focus]);
            for (seat, (from, speed, dies)) in parents.iter().enumerate() {
                board.show(seat as u32, &[Run { first: from % blocks, count: rounds * speed }]);
                if dies.is_some_and(|after| sent[seat] >= after) {
                    board.leave(seat as u32);
                }
            }
            for seat in 0..=last {
                while board.seats.get(seat).is_some() && board.outstanding(seat) < 2 && check(&mut board, seat)?.is_some() {}
                if board.awaited(seat).is_some() {
                    let fresh = board.land(seat);
                    board.settle(seat, fresh);
                    if let Some(sent) = sent.get_mut(seat as usize) {
                        *sent += 1;
                    }
                }
            }
        }
    }
}

#[test]
fn no_more_is_asked_than_may_be_on_its_way() {
    // 1 GiB: pieces of 16 blocks.
    let mut board = board(4096, 32, 2);
    board.set_most(Some(10));
    assert_eq!(board.ask(0).map(|run| run.count), Some(10));
    assert_eq!(board.ask(1), None);
    assert!(board.land(0));
    board.settle(0, true);
    assert_eq!(board.ask(1).map(|run| run.count), Some(1));
    board.set_most(None);
    assert!(board.ask(1).is_some_and(|run| run.count > 1), "the rest of a piece");
}

#[test]
fn what_a_parent_owes_that_only_waits_does_not_keep_others_from_being_asked() {
    let mut board = board(100, 32, 2);
    board.set_most(Some(2));
    board.ask(0).unwrap();
    board.ask(0).unwrap();
    assert_eq!(board.ask(1), None, "two are on their way");
    board.set_late(0, true);
    assert_eq!(board.ask(1), None, "they come, late: the link is slow");
    board.set_idle(0, true);
    assert_eq!(board.ask(1), Some(Run { first: 0, count: 1 }), "nothing comes of them");
}

#[test]
fn what_a_parent_is_late_with_is_asked_of_another_before_all_else() {
    let mut board = board(100, 32, 2);
    assert_eq!(board.ask(0), Some(Run { first: 0, count: 1 }), "the focus");
    let other = board.ask(1).unwrap();
    assert_ne!(other.first, 0);
    board.set_late(0, true);
    assert_eq!(board.ask(1), Some(Run { first: 0, count: 1 }), "the focus again, elsewhere");
    assert_ne!(board.ask(0).map(|run| run.first), Some(0), "not twice of the same");
    // Both copies come; the counts go back to nothing.
    assert!(board.land(1));
    board.settle(1, true);
    board.set_late(0, false);
    assert!(board.land(0) || board.awaited(0) == Some(0));
    board.leave(0);
    board.leave(1);
    assert!(board.flying.iter().all(|count| *count == 0), "{:?}", board.flying);
}
