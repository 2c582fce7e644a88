//! What goes wrong, and when: all of it follows from a seed. Pure.
//!
//! Whatever can break is a lane: each daemon, each link, control, the registry, each liar. Within a lane one fault follows the
//! other after a pause; lanes know nothing of each other, so that faults meet in every way. All are over when the time is.
use std::{fmt, time::Duration};

use rand::{RngExt, SeedableRng, rngs::SmallRng, seq::IndexedRandom};

use crate::{
    fault_proxy::{Fault as Breaking, Who},
    liar::Lie,
};

/// Something that is wrong for a while. Nodes and images are given by their number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The node's daemon was killed, and is started again at the end.
    Killed(usize),
    /// The node's daemon was asked to end, and is started again at the end.
    Stopped(usize),
    /// The node's daemon stands still.
    Frozen(usize),
    /// The node's daemon runs on a small disk; `filled`: nothing more fits from the start.
    SmallDisk {
        /// Which.
        node: usize,
        /// Whether the lab fills it.
        filled: bool,
    },
    /// The node's link is down.
    Cut(usize),
    /// The node's link has this rate, bits per second.
    Slowed(usize, u64),
    /// Two nodes do not hear each other.
    Apart(usize, usize),
    /// Control was killed.
    ControlKilled,
    /// Control was asked to end.
    ControlStopped,
    /// Control stands still.
    ControlFrozen,
    /// The registry breaks answers.
    Answers(Breaking, Who),
    /// Nobody listens at the registry's ports.
    RegistryGone,
    /// The registry's link is down.
    RegistryCut,
    /// A node of the cluster says that it holds an image, and lies.
    Lies {
        /// Which liar.
        liar: usize,
        /// About which image.
        image: usize,
        /// How it serves it. [`Lie::None`]: bytes and list are of another blob, as those of an author who lies.
        lie: Lie,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A fault with its time, from the beginning of the run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Episode {
    /// It begins.
    pub from: Duration,
    /// It is over.
    pub until: Duration,
    /// What.
    pub fault: Fault,
}

/// How much there is that can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Nodes; two at least.
    pub nodes: usize,
    /// Liars.
    pub liars: usize,
    /// Images; one at least.
    pub images: usize,
    /// All faults are over by then.
    pub time: Duration,
}

/// What a lane is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Daemon(usize),
    Link(usize),
    Control,
    Registry,
    Liar(usize),
}

/// The episodes of a seed, by their beginning: the same ones every time.
pub fn episodes(seed: u64, extent: Extent) -> Vec<Episode> {
    let daemons = (0..extent.nodes).map(Lane::Daemon);
    let links = (0..extent.nodes).map(Lane::Link);
    let liars = (0..extent.liars).map(Lane::Liar);
    let lanes = daemons.chain(links).chain([Lane::Control, Lane::Registry]).chain(liars);
    let mut all = Vec::new();
    for (number, lane) in lanes.enumerate() {
        // A lane's own numbers: a lane more changes nothing of the others.
        let mut random = SmallRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9).wrapping_add(number as u64));
        let mut at = between(&mut random, lane.pause()) / 2;
        loop {
            let (fault, lasts) = lane.fault(&mut random, extent);
            let until = at + between(&mut random, lasts);
            if until > extent.time {
                break;
            }
            all.push(Episode { from: at, until, fault });
            at = until + between(&mut random, lane.pause());
        }
    }
    all.sort_by_key(|episode| (episode.from, episode.until));
    all
}

/// Least and most, in milliseconds.
type Range = (u64, u64);

fn between(random: &mut SmallRng, (least, most): Range) -> Duration {
    Duration::from_millis(random.random_range(least..=most))
}

/// Until a lease ends, and beyond.
const SHORT: Range = (300, 6_000);
/// Long enough that pulls give up waiting.
const LONG: Range = (1_000, 12_000);
/// As long as a liar stays.
const STAY: Range = (5_000, 20_000);

impl Lane {
    fn pause(self) -> Range {
        match self {
            Self::Daemon(_) => (6_000, 30_000),
            Self::Link(_) => (8_000, 40_000),
            Self::Control => (8_000, 25_000),
            Self::Registry => (4_000, 15_000),
            Self::Liar(_) => (2_000, 10_000),
        }
    }

    fn fault(self, random: &mut SmallRng, extent: Extent) -> (Fault, Range) {
        match self {
            Self::Daemon(node) => match random.random_range(0..10) {
                0..=4 => (Fault::Killed(node), SHORT),
                5..=6 => (Fault::Stopped(node), SHORT),
                7 => (Fault::Frozen(node), SHORT),
                _ => (Fault::SmallDisk { node, filled: random.random() }, STAY),
            },
            Self::Link(node) => match random.random_range(0..6) {
                0..=1 => (Fault::Cut(node), LONG),
                2..=3 => {
                    let other = (node + random.random_range(1..extent.nodes)) % extent.nodes;
                    (Fault::Apart(node, other), LONG)
                }
                _ => (Fault::Slowed(node, random.random_range(2..=20) * 1_000_000), STAY),
            },
            Self::Control => match random.random_range(0..4) {
                0..=1 => (Fault::ControlKilled, LONG),
                2 => (Fault::ControlStopped, SHORT),
                _ => (Fault::ControlFrozen, SHORT),
            },
            Self::Registry => match random.random_range(0..8) {
                0 => (Fault::RegistryGone, LONG),
                1 => (Fault::RegistryCut, LONG),
                _ => (Fault::Answers(breaking(random), who(random)), LONG),
            },
            Self::Liar(liar) => {
                let image = random.random_range(0..extent.images);
                (Fault::Lies { liar, image, lie: lie(random) }, STAY)
            }
        }
    }
}

fn breaking(random: &mut SmallRng) -> Breaking {
    let seconds = random.random_range(1..=3);
    let pause = Duration::from_millis(random.random_range(500..=8_000));
    let all = [
        Breaking::Fin,
        Breaking::Rst,
        Breaking::NoByte,
        Breaking::Unavailable,
        Breaking::TooMany(seconds),
        Breaking::Unauthorized,
        Breaking::DeadRedirect,
        Breaking::Silent(pause),
        Breaking::Stalled(pause),
        Breaking::TooFewBytes,
        Breaking::TooManyBytes,
        Breaking::WrongByte,
        Breaking::WrongName,
        Breaking::Stranger,
    ];
    *all.choose(random).expect("there are some")
}

fn who(random: &mut SmallRng) -> Who {
    match random.random_range(0..4) {
        0..=1 => Who::First(random.random_range(1..=8)),
        2 => Who::Ours,
        _ => Who::All,
    }
}

fn lie(random: &mut SmallRng) -> Lie {
    let all = [
        Lie::None,
        Lie::OtherBytes,
        Lie::LongBlocks,
        Lie::ShortBlocks,
        Lie::UnaskedBlocks,
        Lie::OtherList,
        Lie::NoList,
        Lie::Ends,
        Lie::FallsSilent,
        Lie::Waits,
        Lie::Drips,
        Lie::OtherSize,
    ];
    *all.choose(random).expect("there are some")
}

/// What a puller pulls, one after the other for ever: the image, and how long it rests before it.
pub fn pulls(seed: u64, puller: usize, images: usize) -> impl Iterator<Item = (usize, Duration)> {
    let mut random = SmallRng::seed_from_u64(seed.wrapping_mul(0x85eb_ca6b) ^ ((puller as u64 + 1) << 40));
    std::iter::repeat_with(move || {
        // Half of the pulls are of a few images, so that nodes want the same at once.
        let among = if random.random() { images } else { images.min(4) };
        (random.random_range(0..among), between(&mut random, (0, 1_500)))
    })
}

/// The episodes as text, one a line.
pub fn text(episodes: &[Episode]) -> String {
    let line = |one: &Episode| {
        format!("{:>7.2} s to {:>7.2} s  {}\n", one.from.as_secs_f64(), one.until.as_secs_f64(), one.fault)
    };
    episodes.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn extent(seconds: u64) -> Extent {
        Extent { nodes: 5, liars: 2, images: 16, time: Duration::from_secs(seconds) }
    }

    /// What may have one fault at a time.
    fn lane(fault: &Fault) -> String {
        match fault {
            Fault::Killed(node) | Fault::Stopped(node) | Fault::Frozen(node) | Fault::SmallDisk { node, .. } => {
                format!("daemon {node}")
            }
            Fault::Cut(node) | Fault::Slowed(node, _) | Fault::Apart(node, _) => format!("link {node}"),
            Fault::ControlKilled | Fault::ControlStopped | Fault::ControlFrozen => "control".into(),
            Fault::Answers(..) | Fault::RegistryGone | Fault::RegistryCut => "registry".into(),
            Fault::Lies { liar, .. } => format!("liar {liar}"),
        }
    }

    proptest! {
        #[test]
        fn the_same_seed_gives_the_same_plan(seed in any::<u64>(), seconds in 0_u64..4000) {
            prop_assert_eq!(episodes(seed, extent(seconds)), episodes(seed, extent(seconds)));
            let some = |puller| pulls(seed, puller, 16).take(50).collect::<Vec<_>>();
            prop_assert_eq!(some(3), some(3));
            prop_assert_ne!(some(3), some(4));
        }

        #[test]
        fn every_fault_ends_in_time_and_no_lane_has_two_at_once(seed in any::<u64>(), seconds in 0_u64..4000) {
            let mut ends: BTreeMap<String, Duration> = BTreeMap::new();
            let mut begun = Duration::ZERO;
            for episode in episodes(seed, extent(seconds)) {
                prop_assert!(begun <= episode.from && episode.from < episode.until);
                prop_assert!(episode.until <= Duration::from_secs(seconds));
                begun = episode.from;
                if let Fault::Apart(one, other) = episode.fault {
                    prop_assert!(one != other && other < 5);
                }
                let before = ends.insert(lane(&episode.fault), episode.until);
                prop_assert!(before.is_none_or(|end| end < episode.from), "{:?} overlaps in its lane", episode);
            }
        }

        #[test]
        fn a_longer_run_of_a_seed_begins_as_the_shorter_one(seed in any::<u64>()) {
            let short = episodes(seed, extent(120));
            let long = episodes(seed, extent(600));
            let early: Vec<_> = long.into_iter().filter(|one| one.until <= Duration::from_secs(120)).collect();
            prop_assert_eq!(short, early);
        }
    }

    #[test]
    fn two_minutes_hit_every_kind_of_lane() {
        let lanes: std::collections::BTreeSet<String> =
            episodes(1, extent(120)).iter().map(|one| lane(&one.fault)).collect();
        assert_eq!(lanes.len(), 5 + 5 + 1 + 1 + 2, "{lanes:?}");
    }

    #[test]
    fn other_seeds_give_other_plans() {
        assert_ne!(episodes(1, extent(120)), episodes(2, extent(120)));
    }
}
