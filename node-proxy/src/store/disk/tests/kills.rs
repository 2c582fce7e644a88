//! A real process on a real file system, killed 200 times by a real SIGKILL.
//!
//! Each time this test's own program is started again as a daemon that works on one store, killed, and what it left is
//! looked at: by what it had said before it died, and by the SHA-256 of every held blob. Three of four die by a step of
//! their own that the seed names, alone with their work, so that the same seed plays the same death again; the fourth
//! does three things at once and is killed from outside, at a moment that no seed can fix.
//!
//! `SHOAL_SEED=…` plays a printed seed, `SHOAL_KILLS=…` another number of kills.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

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

impl Life {
    /// Everything about the n-th life follows from the seed.
    fn of(dir: &str, seed: u64, number: u64) -> (Self, Duration) {
        let mut random = SmallRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let outside = number % 4 == 3;
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
        for task in 0..life.tasks {
            let random = SmallRng::seed_from_u64(life.seed.wrapping_add(task));
            works.spawn(work(Arc::clone(&disk), random, life.tasks == 1));
        }
        while let Some(ended) = works.join_next().await {
            ended.unwrap();
        }
    });
}

/// Works until it is killed.
async fn work(disk: Arc<Disk>, mut random: SmallRng, alone: bool) {
    let samples = samples();
    loop {
        let at = random.random_range(0..samples.len());
        match random.random_range(0..10) {
            0 => {
                say(format_args!("unsure {at}"));
                match disk.remove(&samples[at].digest).await {
                    Ok(_) | Err(StoreError::InUse(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            1 => {
                if let Some(held) = disk.open(&samples[at].digest).await.unwrap() {
                    assert!(held.read_at(0, usize::MAX).await.unwrap() == samples[at].bytes);
                }
            }
            _ => fly(&*disk, at, &samples[at], &mut random, alone).await,
        }
    }
}

async fn fly(disk: &dyn Store, at: usize, sample: &Sample, random: &mut SmallRng, alone: bool) {
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
        partial.commit(&sample.notes).await.unwrap();
        say(format_args!("held {at}"));
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

#[tokio::test(flavor = "multi_thread")]
async fn survives_two_hundred_kills() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("SHOAL_SEED").unwrap_or_else(rand::random);
    let kills = number("SHOAL_KILLS").unwrap_or(KILLS);
    println!("SHOAL_SEED={seed} plays these {kills} kills again");
    let machine = Machine::new(0);
    let samples = samples();
    let mut sure = BTreeMap::new();
    let (mut in_open, mut from_outside, mut resumed, mut hashed) = (0, 0, 0, 0);
    for kill in 0..kills {
        let (life, delay) = Life::of(machine.dir.to_str().unwrap(), seed, kill);
        let context = format!("SHOAL_SEED={seed}, kill {kill}: {life:?}");
        let heard = tokio::task::block_in_place(|| live_and_die(&life, delay, &context));
        in_open += u32::from(heard.is_empty());
        from_outside += u32::from(life.steps == 0);
        for line in &heard {
            hear(line, &mut sure);
        }
        if life.quota > 0 {
            // Anything may have gone to make room.
            sure.clear();
        }

        machine.wait_until_unlocked().await;
        let disk = machine.open().await;
        for (at, sample) in samples.iter().enumerate() {
            let held = disk.held(&sample.digest).is_some();
            let must = sure.remove(&at).unwrap_or_default();
            if held {
                sample.assert_held(&*disk).await;
                let bytes = std::fs::read(disk.inner.places.held(&sample.digest)).unwrap();
                assert_eq!(<[u8; 32]>::from(Sha256::digest(&bytes)), *sample.digest.as_bytes(), "{context}");
                hashed += 1;
                sure.insert(at, Sure::Held);
                continue;
            }
            assert_ne!(must, Sure::Held, "lost held blob {at}: {context}");
            if !disk.partials().iter().any(|(digest, _)| *digest == sample.digest) {
                assert_eq!(must, Sure::Nothing, "lost partial blob {at}: {context}");
                continue;
            }
            let partial = sample.begin(&*disk).await.unwrap();
            let have = partial.resumed().map_or_else(|| set(sample.layout, []), |resumed| resumed.have.clone());
            let blocks: BTreeSet<u32> = (0..sample.layout.blocks()).filter(|block| have.contains(*block)).collect();
            for block in &blocks {
                let range = sample.layout.block_range(*block);
                let bytes = partial.read_at(range.start, sample.layout.block_len(*block)).await.unwrap();
                assert!(bytes == sample.block(*block), "block {block} of {at} is wrong: {context}");
            }
            if let Sure::Blocks(must) = must {
                assert!(must.is_subset(&blocks), "of {at} only {blocks:?} of {must:?} are left: {context}");
            }
            resumed += blocks.len();
            if partial.resumed().is_some() {
                sure.insert(at, Sure::Blocks(blocks));
            }
        }
        machine.assert_tidy(&disk);
    }
    println!(
        "{kills} kills, {from_outside} from outside, {in_open} before it was open: {hashed} times a held blob had its \
         SHA-256, {resumed} times a block was resumed and right"
    );
    assert!(
        kills < KILLS || (in_open > 5 && resumed > 100 && hashed > 500),
        "the lives are too short to mean something"
    );
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
