//! What the pure parts of child and parent do together, in simulated time.

use std::time::Duration;

use proptest::prelude::*;

use crate::model::{Model, World};

fn world() -> impl Strategy<Value = World> {
    let links = (0..40u64, prop_oneof![Just(0.0), Just(0.3)], 1..17usize, 1..9usize);
    let trouble = (prop_oneof![Just(0.0), 0.1..2.0], prop_oneof![Just(0.0), 0.05..1.0], 0..1500u64, 0..300u64);
    ((2..9usize, 1..70u32, any::<bool>(), any::<u64>()), links, trouble).prop_map(
        |((nodes, blocks, seeded, seed), (delay, slow, neighbours, streams), (crashes, breaks, join, gossip))| World {
            nodes,
            blocks,
            rate: 25e6,
            delay: Duration::from_millis(delay),
            slow,
            neighbours,
            crashes,
            breaks,
            join: Duration::from_millis(join),
            gossip: Duration::from_millis(gossip),
            seeded,
            streams,
            seed,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever joins, crashes and breaks, and however late hashes are: every node that stays gets every block, none is asked
    /// twice outside the end game, and what a reader waits for is asked as soon as somebody shows it. The model asserts it.
    #[test]
    fn every_node_gets_every_block(world in world()) {
        let outcome = Model::new(world).run();
        prop_assert!(outcome.spare <= 0.5, "{outcome:?}");
    }
}

/// The figures are those of SWARM's table for a swarm of this size, with a margin.
#[test]
fn eight_nodes_are_done_soon_after_the_first_copy_is_out() {
    for seed in 1..3 {
        let outcome = Model::new(World { streams: 16, seed, ..World::default() }).run();
        assert!(outcome.factor < 1.2, "{outcome:?}");
        assert!(outcome.copies < 1.2, "{outcome:?}");
    }
}

#[test]
#[ignore = "prints the factors of a few runs; for work on the policies"]
fn factors() {
    let chosen = std::env::var("WORLDS").unwrap_or_default();
    for (what, world) in [
        ("8", World { streams: 16, ..World::default() }),
        ("8 slow", World { streams: 16, slow: 0.25, ..World::default() }),
        ("60", World { nodes: 60, streams: 16, ..World::default() }),
        ("60 slow", World { nodes: 60, streams: 16, slow: 0.3, ..World::default() }),
        ("60, 8 streams", World { nodes: 60, streams: 8, ..World::default() }),
    ] {
        if !what.contains(&chosen) {
            continue;
        }
        for seed in 1..3 {
            let o = Model::new(World { seed, ..world.clone() }).run();
            println!(
                "{what} #{seed}: {:.3} half {:.3} most {:.3} spare {:.3} copies {:.2} events {}",
                o.factor, o.half, o.most, o.spare, o.copies, o.events
            );
        }
    }
}
