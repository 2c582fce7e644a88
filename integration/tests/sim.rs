//! The simulator on the daemons' own decisions: every run ends, the same seed gives the same run, and the factors over the
//! fluid bound stay within what was measured.

use lab::sim::{Outcome, Plan, run};

const MIB: u64 = 1 << 20;

fn outcome(plan: &Plan) -> Outcome {
    run(plan).unwrap_or_else(|error| panic!("{plan:?}: {error:#}"))
}

/// Everything that can go wrong, at once.
fn rough(seed: u64) -> Plan {
    Plan {
        slow: 0.2,
        crash: 0.02,
        join: 10,
        liars: 3,
        control_restart_s: Some(0.7),
        seed,
        ..Plan::equal(40, 32 * MIB).expect("32 MiB can be cut")
    }
}

#[test]
fn the_same_seed_gives_the_same_events_byte_for_byte() {
    let (first, again) = (outcome(&rough(5)), outcome(&rough(5)));
    assert_eq!(first.fingerprint, again.fingerprint);
    assert_eq!(first.events, again.events);
    assert_eq!(Outcome { wall_s: 0.0, ..first.clone() }, Outcome { wall_s: 0.0, ..again });
    assert_ne!(first.fingerprint, outcome(&rough(6)).fingerprint);
}

#[test]
fn no_node_is_stuck_whatever_goes_wrong() {
    for seed in 1..=10 {
        let outcome = outcome(&rough(seed));
        assert!(outcome.last_s >= outcome.bound_s, "{outcome:?}: faster than light");
        // Control is away when most have begun, and one of the liars may be the reader: still most get it from each other.
        assert!(outcome.origin_ratio < 7.0, "{outcome:?}");
    }
}

#[test]
fn a_lying_parent_costs_its_blocks_and_no_more() {
    let outcome = outcome(&Plan { liars: 5, ..Plan::equal(40, 32 * MIB).expect("32 MiB can be cut") });
    assert!(outcome.lies > 0, "nobody lied: {outcome:?}");
    // Of 128 blocks: what was on its way when a run was cut, or taken from a reader that had lied. 1.023 was measured.
    assert!(outcome.origin_ratio < 1.035, "{outcome:?}");
}

#[test]
fn a_node_alone_is_as_fast_as_its_link() {
    let outcome = outcome(&Plan::equal(1, 64 * MIB).expect("64 MiB can be cut"));
    assert!(outcome.factor < 1.05, "{outcome:?}");
    assert!((outcome.origin_ratio - 1.0).abs() < 1e-9, "{outcome:?}");
}

#[test]
fn one_copy_leaves_the_origin_while_nothing_goes_wrong() {
    for slow in [0.0, 0.1, 0.3] {
        let plan = Plan { slow, ..Plan::equal(100, 64 * MIB).expect("64 MiB can be cut") };
        let outcome = outcome(&plan);
        assert!((outcome.origin_ratio - 1.0).abs() < 1e-9, "{outcome:?}");
        assert_eq!(outcome.outside_reads, 0, "{outcome:?}");
    }
}

/// Yesterday a node pulled it, today all others do: they must take it from each other and not all of it from there. Measured at most:
/// 1.12, 1.17, 1.20 and 1.14; shown everything by the one that has it, the first took 6.7 and the second 32.
#[test]
fn a_crowd_that_starts_at_a_few_holders_is_done_soon_after_the_limit() {
    for (nodes, holders, most) in [(8, 1, 1.2), (100, 1, 1.25), (100, 2, 1.25), (100, 16, 1.2)] {
        for seed in 1..=3 {
            let outcome = outcome(&Plan { holders, seed, ..Plan::equal(nodes, 128 * MIB).expect("it can be cut") });
            assert!(outcome.factor < most, "{:.3} with {:?}", outcome.factor, outcome.plan);
            assert!(outcome.origin_ratio < 1e-9, "{outcome:?}");
        }
    }
}

/// At a twentieth of the rate sixteen blocks at once take longer than a parent may be silent: nodes asked for so many and got none.
#[test]
fn a_very_slow_node_is_done_too() {
    for slow_rate in [0.05, 0.1] {
        let plan = Plan { slow: 0.1, slow_rate, ..Plan::equal(100, 64 * MIB).expect("it can be cut") };
        let outcome = outcome(&plan);
        assert!(outcome.factor < 1.45, "{:.3} with {:?}", outcome.factor, outcome.plan);
    }
}

/// Two of eight are slow, and one of them is the first reader of the origin in some of the runs: without another one beside it, that
/// took four times the limit. Measured: at most 1.25 and 1.14.
#[test]
fn a_slow_first_reader_does_not_hold_up_the_others() {
    for (mib, most) in [(64, 1.35), (512, 1.2)] {
        for seed in 1..=8 {
            let plan = Plan { slow: 0.25, seed, ..Plan::equal(8, mib * MIB).expect("it can be cut") };
            let outcome = outcome(&plan);
            assert!(outcome.factor < most, "{:.3} with {:?}", outcome.factor, outcome.plan);
            assert!(outcome.origin_ratio < 1.02, "{outcome:?}");
        }
    }
}

/// Simulated time is the same on every machine, so this is a figure and not a race. Measured at most: 1.33, 1.05, 1.29, 1.36 and 1.27.
#[test]
fn a_crowd_is_done_soon_after_the_limit() {
    let crowd = |nodes, mib| Plan::equal(nodes, mib * MIB).expect("it can be cut");
    let near = |plan: Plan| Plan { delay_s: 0.0005, ..plan };
    for (plan, most) in [
        (crowd(100, 64), 1.35),
        (near(crowd(12, 128)), 1.15),
        (near(crowd(100, 64)), 1.35),
        (Plan { slow: 0.1, ..crowd(100, 128) }, 1.45),
        (Plan { slow: 0.3, ..crowd(100, 512) }, 1.35),
    ] {
        for seed in 1..=3 {
            let outcome = outcome(&Plan { seed, ..plan.clone() });
            assert!(outcome.factor < most, "{:.3} with {:?}", outcome.factor, outcome.plan);
        }
    }
}

/// Blocks that went with the only nodes that had them are read again soon, although somebody gets something all the time. Measured: 1.14
/// to 1.64.
#[test]
fn what_crashes_take_along_is_read_again_soon() {
    for seed in 1..=4 {
        let plan = Plan { crash: 0.01, seed, ..Plan::equal(100, 512 * MIB).expect("it can be cut") };
        let outcome = outcome(&plan);
        assert!(outcome.factor < 1.8, "{:.3} with seed {seed}", outcome.factor);
        assert!(outcome.origin_ratio < 1.1, "{:.3} with seed {seed}", outcome.origin_ratio);
    }
}

/// Seeds read for all, and each sends little more than one copy: 1.19 at most was measured, with factors of 1.22. Three deaf ones cost two
/// seconds together.
#[test]
fn seeds_read_for_a_crowd_and_are_not_its_hot_spot() {
    for (nodes, seeds, deaf_seeds) in [(12, 1, 0), (100, 1, 0), (100, 3, 0), (100, 2, 1), (100, 3, 3)] {
        for seed in 1..=3 {
            let plan = Plan { seeds, deaf_seeds, seed, ..Plan::equal(nodes, 64 * MIB).expect("it can be cut") };
            let outcome = outcome(&plan);
            assert!((outcome.origin_ratio - 1.0).abs() < 1e-9, "{outcome:?}");
            let reads = if deaf_seeds < seeds { 1.0 } else { 0.0 };
            assert!((outcome.seed_origin_ratio - reads).abs() < 1e-9, "{outcome:?}");
            assert!(outcome.seed_copies < 1.3, "{outcome:?}");
            let waits = if deaf_seeds > 0 { 2.0 / outcome.bound_s } else { 0.0 };
            assert!(outcome.factor < 1.35 + waits, "{:.3} with {:?}", outcome.factor, outcome.plan);
        }
    }
}

/// Seeds crash as others do, before they were told anything, in the middle, and after.
#[test]
fn seeds_that_crash_hold_nobody_up() {
    for seed in 1..=10 {
        let plan = Plan { seeds: 4, deaf_seeds: 1, ..rough(seed) };
        let outcome = outcome(&plan);
        assert!(outcome.origin_ratio < 7.0, "{outcome:?}");
    }
}

/// Measured: 1.33.
#[test]
fn a_thousand_nodes_are_done_soon_after_the_limit() {
    let outcome = outcome(&Plan::equal(1000, 64 * MIB).expect("64 MiB can be cut"));
    assert!(outcome.factor < 1.45, "{:.3}", outcome.factor);
    assert!((outcome.origin_ratio - 1.0).abs() < 1e-9, "{outcome:?}");
}
