//! A real process on a real file system, killed 200 times by a real SIGKILL.
//!
//! Each time this test's own program is started again as a daemon that works on one store, killed, and what it left is
//! looked at: by what it had said before it died, and by the SHA-256 of every held blob. Three of four die by a step of
//! their own that the seed names, alone with their work and on a store of their own, so that the same seed plays the same
//! deaths again; the fourth does three things at once and is killed from outside, at a moment that no seed can fix.
//!
//! `SHOAL_SEED=…` plays a printed seed, `SHOAL_KILLS=…` another number of kills.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};

use super::Machine;
use crate::store::suite::{BLOCK, Sample, set};
use crate::store::{Disk, Store, StoreError};

const KILLS: u64 = 200;
const SAMPLES: u8 = 12;
/// What the child is told, in the order of [`Life`].
const TOLD: &str = "SHOAL_KILLS_CHILD";

fn samples() -> Vec<Sample> {
    let blocks = [1, 2, 3, 5, 1, 4, 2, 6, 1, 3, 2, 4];
    (0..SAMPLES).map(|at| Sample::new(at, blocks[usize::from(at)] * BLOCK - u64::from(at) * 1000)).collect()
}

/// One daemon's life.
#[derive(Debug, Clone)]
struct Life {
    dir: String,
    seed: u64,
    /// It dies at this step by its own hand; 0: somebody else kills it.
    steps: i64,
    /// Things that it does at once.
    tasks: u64,
    quota: u64,
}

/// One of four.
fn is_from_outside(number: u64) -> bool {
    number % 4 == 3
}

impl Life {
    /// Everything about the n-th life follows from the seed.
    fn of(dir: &str, seed: u64, number: u64) -> (Self, Duration) {
        let mut random = SmallRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let outside = is_from_outside(number);
        // Some die while they open: their first step is a new index or a leftover that goes.
        let steps = if random.random_bool(0.2) { random.random_range(1..8) } else { random.random_range(1..120) };
        let life = Self {
            dir: dir.to_owned(),
            seed: random.random(),
            steps: if outside { 0 } else { steps },
            tasks: if outside { 3 } else { 1 },
            quota: if number % 3 == 2 { 16 * BLOCK } else { 0 },
        };
        (life, Duration::from_micros(random.random_range(0..60_000)))
    }

    fn told(&self) -> String {
        let Self { dir, seed, steps, tasks, quota } = self;
        format!("{seed} {steps} {tasks} {quota} {dir}")
    }

    fn from_environment() -> Self {
        let told = std::env::var(TOLD).expect("started by the other test");
        let mut words = told.splitn(5, ' ');
        let mut word = || words.next().expect("five words");
        let mut number = || word().parse().expect("a number");
        let (seed, steps, tasks, quota) = (number(), number() as i64, number(), number());
        Self { dir: word().to_owned(), seed, steps, tasks, quota }
    }
}

/// Tells the one who watches. One write, so that a kill leaves no half of it.
fn say(line: std::fmt::Arguments<'_>) {
    std::io::stdout().write_all(format!("\n~{line}\n").as_bytes()).unwrap();
}

#[test]
#[ignore = "is killed: survives_two_hundred_kills starts it"]
fn a_daemon_that_is_killed() {
    let life = Life::from_environment();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut machine = Machine::at(life.dir.as_ref());
        (machine.quota, machine.sync_every) = (life.quota, 2 * BLOCK);
        machine.faults.for_real.store(true, Ordering::SeqCst);
        if life.steps > 0 {
            machine.faults.kill_after(life.steps);
        }
        let disk = machine.try_open().await.unwrap();
        say(format_args!("open"));
        let mut works = tokio::task::JoinSet::new();
        let removals = Arc::new(Removals::default());
        for task in 0..life.tasks {
            let random = SmallRng::seed_from_u64(life.seed.wrapping_add(task));
            works.spawn(work(Arc::clone(&disk), random, Arc::clone(&removals), life.tasks == 1));
        }
        while let Some(ended) = works.join_next().await {
            ended.unwrap();
        }
    });
}

/// Of each sample: removals that were begun, and those that are under way. One task must not say that it holds what another
/// removed between its commit and its word.
#[derive(Default)]
struct Removals(Mutex<BTreeMap<usize, (u64, u64)>>);

impl Removals {
    /// How many were begun; `None` while one is under way.
    fn begun(&self, at: usize) -> Option<u64> {
        let (begun, under_way) = self.0.lock().get(&at).copied().unwrap_or_default();
        (under_way == 0).then_some(begun)
    }

    fn begin(&self, at: usize) {
        let mut all = self.0.lock();
        let (begun, under_way) = all.entry(at).or_default();
        (*begun, *under_way) = (*begun + 1, *under_way + 1);
        say(format_args!("unsure {at}"));
    }

    fn end(&self, at: usize) {
        self.0.lock().entry(at).or_default().1 -= 1;
    }

    /// Says that it is held, unless somebody began to remove it since `before`.
    fn say_held(&self, at: usize, before: Option<u64>) {
        let all = self.0.lock();
        if before == Some(all.get(&at).copied().unwrap_or_default().0) {
            say(format_args!("held {at}"));
        }
    }
}

/// Works until it is killed.
async fn work(disk: Arc<Disk>, mut random: SmallRng, removals: Arc<Removals>, alone: bool) {
    let samples = samples();
    loop {
        let at = random.random_range(0..samples.len());
        match random.random_range(0..10) {
            0 => {
                removals.begin(at);
                match disk.remove(&samples[at].digest).await {
                    Ok(_) | Err(StoreError::InUse(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                removals.end(at);
            }
            1 => {
                if let Some(held) = disk.open(&samples[at].digest).await.unwrap() {
                    assert!(held.read_at(0, usize::MAX).await.unwrap() == samples[at].bytes);
                }
            }
            _ => fly(&*disk, at, &samples[at], &mut random, &removals, alone).await,
        }
    }
}

async fn fly(disk: &dyn Store, at: usize, sample: &Sample, random: &mut SmallRng, removals: &Removals, alone: bool) {
    let partial = match sample.begin(disk).await {
        Ok(partial) => partial,
        Err(StoreError::Busy(_) | StoreError::Full { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    let mut have = partial.resumed().map_or_else(|| set(sample.layout, []), |resumed| resumed.have.clone());
    let (far, mut recorded) = (random.random_bool(0.7), partial.resumed().is_some());
    for block in 0..sample.layout.blocks() {
        if have.contains(block) || !(far || random.random_bool(0.5)) {
            continue;
        }
        partial.write(block, sample.block(block)).await.unwrap();
        have.insert(block);
        if random.random_bool(0.5) {
            partial.checkpoint(&sample.notes).await.unwrap();
            recorded = true;
            let blocks: Vec<String> =
                (0..sample.layout.blocks()).filter(|b| have.contains(*b)).map(|b| b.to_string()).collect();
            say(format_args!("recorded {at} {}", blocks.join(",")));
        }
    }
    if have.is_full() {
        let before = removals.begun(at);
        partial.commit(&sample.notes).await.unwrap();
        removals.say_held(at, before);
    } else if random.random_bool(0.1) || (alone && !recorded) {
        // What is left without a record goes in the background, at a step that no seed could name.
        say(format_args!("unsure {at}"));
        partial.discard().await.unwrap();
    }
}

/// What must be there of a sample after a kill, by what was said before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Sure {
    #[default]
    Nothing,
    Blocks(BTreeSet<u32>),
    Held,
}

fn hear(line: &str, sure: &mut BTreeMap<usize, Sure>) {
    let words: Vec<&str> = line.split(' ').collect();
    let at = || words[1].parse::<usize>().unwrap();
    match words[0] {
        "open" => {}
        "unsure" => drop(sure.insert(at(), Sure::Nothing)),
        "held" => drop(sure.insert(at(), Sure::Held)),
        // A second flight of what is held proves nothing about it.
        "recorded" if sure.get(&at()) != Some(&Sure::Held) => {
            let blocks = words[2].split(',').map(|block| block.parse().unwrap()).collect();
            sure.insert(at(), Sure::Blocks(blocks));
        }
        "recorded" => {}
        _ => panic!("{line:?}"),
    }
}

/// One store, and the lives on it.
struct Story {
    machine: Machine,
    samples: Vec<Sample>,
    sure: BTreeMap<usize, Sure>,
    seed: u64,
    /// How often a held blob had its SHA-256, and a resumed block was right.
    hashed: usize,
    resumed: usize,
}

impl Story {
    fn new(seed: u64) -> Self {
        Self { machine: Machine::new(0), samples: samples(), sure: BTreeMap::new(), seed, hashed: 0, resumed: 0 }
    }

    /// The n-th life and death. What was said, after what is left was found to be right.
    async fn go_on(&mut self, number: u64) -> Vec<String> {
        let (life, delay) = Life::of(self.machine.dir.to_str().unwrap(), self.seed, number);
        let context = format!("SHOAL_SEED={}, kill {number}: {life:?}", self.seed);
        let heard = tokio::task::block_in_place(|| live_and_die(&life, delay, &context));
        for line in &heard {
            hear(line, &mut self.sure);
        }
        if life.quota > 0 {
            // Anything may have gone to make room.
            self.sure.clear();
        }
        self.machine.wait_until_unlocked().await;
        let disk = self.machine.open().await;
        for at in 0..self.samples.len() {
            let must = self.sure.remove(&at).unwrap_or_default();
            let is = self.look_at(at, &disk, &context).await;
            match (&must, &is) {
                (Sure::Held, is) => assert_eq!(*is, Sure::Held, "lost held blob {at}: {context}"),
                (Sure::Blocks(must), Sure::Blocks(is)) => {
                    assert!(must.is_subset(is), "of {at} only {is:?} of {must:?} are left: {context}");
                }
                (Sure::Blocks(_), is) => assert_ne!(*is, Sure::Nothing, "lost partial blob {at}: {context}"),
                (Sure::Nothing, _) => {}
            }
            self.sure.insert(at, is);
        }
        self.machine.assert_tidy(&disk);
        drop(disk);
        self.machine.wait_until_unlocked().await;
        heard
    }

    /// What is there of a sample. Whatever is there is right.
    async fn look_at(&mut self, at: usize, disk: &Disk, context: &str) -> Sure {
        let sample = &self.samples[at];
        if disk.held(&sample.digest).is_some() {
            sample.assert_held(disk).await;
            let bytes = std::fs::read(disk.inner.places.held(&sample.digest)).unwrap();
            assert_eq!(<[u8; 32]>::from(Sha256::digest(&bytes)), *sample.digest.as_bytes(), "{context}");
            self.hashed += 1;
            return Sure::Held;
        }
        if !disk.partials().iter().any(|(digest, _)| *digest == sample.digest) {
            return Sure::Nothing;
        }
        let partial = sample.begin(disk).await.unwrap();
        let Some(resumed) = partial.resumed() else { return Sure::Nothing };
        let blocks: BTreeSet<u32> = (0..sample.layout.blocks()).filter(|block| resumed.have.contains(*block)).collect();
        for block in &blocks {
            let range = sample.layout.block_range(*block);
            let bytes = partial.read_at(range.start, sample.layout.block_len(*block)).await.unwrap();
            assert!(bytes == sample.block(*block), "block {block} of {at} is wrong: {context}");
        }
        self.resumed += blocks.len();
        Sure::Blocks(blocks)
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn survives_two_hundred_kills() {
    let seed = number("SHOAL_SEED").unwrap_or_else(rand::random);
    let kills = number("SHOAL_KILLS").unwrap_or(KILLS);
    println!("SHOAL_SEED={seed} plays these {kills} kills again");
    // Apart, so that what no seed can fix does not change what it can.
    let (mut by_step, mut from_outside) = (Story::new(seed), Story::new(seed));
    let (mut early, mut outside) = (0, 0);
    for kill in 0..kills {
        let story = if is_from_outside(kill) { &mut from_outside } else { &mut by_step };
        early += u32::from(story.go_on(kill).await.is_empty());
        outside += u32::from(is_from_outside(kill));
    }
    let (hashed, resumed) = (by_step.hashed + from_outside.hashed, by_step.resumed + from_outside.resumed);
    println!(
        "{kills} kills, {outside} from outside, {early} before it was open: {hashed} times a held blob had its SHA-256, \
         {resumed} times a block was resumed and right"
    );
    let meant = early > 5 && resumed > 50 && hashed > 300;
    assert!(kills < KILLS || meant, "the lives are too short to mean something");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_plays_the_same_kills_again() {
    let seed = number("SHOAL_SEED").unwrap_or_else(rand::random);
    println!("SHOAL_SEED={seed}");
    let (mut one, mut other) = (Story::new(seed), Story::new(seed));
    for kill in (0..16).filter(|kill| !is_from_outside(*kill)) {
        assert_eq!(one.go_on(kill).await, other.go_on(kill).await, "kill {kill}");
        assert_eq!(one.sure, other.sure, "kill {kill}");
    }
}

/// What it said until it was killed.
fn live_and_die(life: &Life, delay: Duration, context: &str) -> Vec<String> {
    let this = "store::disk::tests::kills::a_daemon_that_is_killed";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", this, "--nocapture", "--test-threads=1"])
        .env(TOLD, life.told())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    if life.steps == 0 {
        // The clock starts with its first word, or with its first breath when it is to die early.
        if delay > Duration::from_millis(10) {
            let opened = lines.by_ref().map(Result::unwrap).find(|line| line.starts_with('~'));
            said.extend(opened);
        }
        std::thread::sleep(delay);
        child.kill().unwrap();
    }
    said.extend(lines.map(Result::unwrap).filter(|line| line.starts_with('~')));
    let mut complaint = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut complaint).unwrap();
    let ended = child.wait().unwrap();
    assert_eq!(ended.signal(), Some(9), "it ended by itself: {complaint}\n{context}");
    said.iter().map(|line| line[1..].to_owned()).collect()
}
