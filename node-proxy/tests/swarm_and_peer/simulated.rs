//! What the pure parts of child and parent do together, in simulated time.

use std::time::Duration;

use crate::model::{Model, World};

#[test]
#[ignore = "prints the factors of a few runs; for work on the policies"]
fn factors() {
    for (what, world) in [
        ("8", World::default()),
        ("8 x 2048", World { blocks: 2048, ..World::default() }),
        ("8, 20 ms", World { blocks: 2048, delay: Duration::from_millis(20), ..World::default() }),
        ("8 seeded", World { blocks: 2048, seeded: true, ..World::default() }),
        ("8, 25 % slow", World { blocks: 2048, slow: 0.25, ..World::default() }),
        ("60", World { nodes: 60, ..World::default() }),
        ("60 x 2048", World { nodes: 60, blocks: 2048, ..World::default() }),
        ("60 x 2048, 10 % slow", World { nodes: 60, blocks: 2048, slow: 0.1, ..World::default() }),
        ("60 x 2048, 30 % slow", World { nodes: 60, blocks: 2048, slow: 0.3, ..World::default() }),
        ("200 x 1024", World { nodes: 200, blocks: 1024, ..World::default() }),
    ] {
        let outcomes: Vec<_> = (1..4).map(|seed| Model::new(World { seed, ..world.clone() }).run()).collect();
        let factors: Vec<String> = outcomes.iter().map(|o| format!("{:.3}", o.factor)).collect();
        let last = &outcomes[2];
        println!(
            "{what}: {} spare {:.3} copies {:.2} events {}",
            factors.join(" "),
            last.spare,
            last.copies,
            last.events
        );
    }
}
