//! Chaos: everything that can break does, for minutes, while images are pulled all the time; then it must all have been nothing.
//!
//! What breaks and what is pulled follows from a seed ([`plan`]); when exactly what meets what does not, since real daemons run.
//! Bytes through mirrors are checked by whoever pulls. When the faults are over, every pull that was asked must end, stores must
//! be right, daemons idle, and nothing of the lab's left over.
use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    containerd::edition::Edition,
    image::{Image, Plan},
    registry::Front,
    world::{World, WorldPlan},
};

mod actor;
pub mod cli;
mod client;
mod judge;
pub mod plan;
mod pullers;
pub mod tally;

use actor::{Actor, liar_name, node_name};
use client::{PlainClient, Pushed};
use judge::AtTheEnd;
use plan::{Episode, Extent, episodes};
use pullers::{Pullers, With};
use tally::{Shared, Tally};

/// Nodes; each has two plain clients that pull.
const NODES: u8 = 5;
/// Of those: nodes on which containerd pulls too.
const WITH_CONTAINERD: usize = 2;
const PLAIN_EACH: usize = 2;
const LIARS: u8 = 2;
const IMAGES: usize = 20;
/// Images are the same whatever the seed, so that they are built once.
const IMAGE_SEED: u64 = 0xc4a0_5000;
/// Two to five images: what is pulled was evicted, as a rule.
const QUOTA: &str = "\"56MiB\"";
/// containerd keeps what it got wrong, from the registry itself as from us, and fails every later pull of it without asking
/// anybody until it collects garbage (CONTAINERD 16): so it collects when a failed pull's lease is gone.
const COLLECT_AT_ONCE: &str = "[plugins.\"io.containerd.gc.v1.scheduler\"]\ndeletion_threshold = 1";
/// Bits per second.
const NODE_RATE: u64 = 200_000_000;
/// Every pull that was asked ends within this after the last fault: rests between tries, and one try at its worst.
const AFTERWARDS: Duration = Duration::from_secs(120);

/// What a run found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Found {
    /// Its seed.
    pub seed: u64,
    /// How long faults went on, in seconds.
    pub seconds: f64,
    /// Faults in the plan.
    pub planned: usize,
    /// Faults that began.
    pub begun: usize,
    /// Faults that could not begin, and why.
    pub missed: Vec<String>,
    /// What became of pulls.
    pub tally: Tally,
    /// How daemons are at the end.
    pub end: AtTheEnd,
}

impl Found {
    /// As text.
    pub fn text(&self) -> String {
        let mut out = format!(
            "chaos, seed {}: {:.0} s, {} of {} faults\n{}",
            self.seed,
            self.seconds,
            self.begun - self.missed.len(),
            self.planned,
            self.tally.text()
        );
        for (level, lines) in [("ERROR", &self.end.errors), ("WARN", &self.end.warnings)] {
            for (line, count) in lines {
                out.push_str(&format!("{level} x{count}: {line}\n"));
            }
        }
        let most = self.end.peak_bytes.values().max().copied().unwrap_or(0) as f64 / f64::from(1 << 20);
        let descriptors = self.end.descriptors.values().max().copied().unwrap_or(0);
        out.push_str(&format!("nodes at the end: at most {descriptors} descriptors, {most:.1} MiB at their peak\n"));
        out
    }
}

fn extent(time: Duration) -> Extent {
    Extent { nodes: usize::from(NODES), liars: usize::from(LIARS), images: IMAGES, time }
}

/// The plan of a seed, as [`run`] plays it.
pub fn plan_of(seed: u64, time: Duration) -> Vec<Episode> {
    episodes(seed, extent(time))
}

/// Plays the plan of a seed, with faults for so long; takes one or two minutes more.
///
/// # Errors
/// Everything that must not happen, with the seed and its plan.
pub async fn run(seed: u64, time: Duration) -> Result<Found> {
    let plan = plan_of(seed, time);
    let replay = || {
        let minutes = time.as_secs_f64() / 60.0;
        format!(
            "chaos fails; play it again by `lab chaos --seed {seed} --minutes {minutes}`; its faults:\n{}",
            plan::text(&plan)
        )
    };
    let played = play(seed, time, &plan).await;
    let (found, wrong) = played.with_context(replay)?;
    if wrong.is_empty() {
        return Ok(found);
    }
    let text = found.text();
    Err(anyhow::anyhow!("{}\n{text}", wrong.join("\n")).context(replay()))
}

fn world_plan() -> WorldPlan {
    let mut plan = WorldPlan {
        edition: Edition::OWN,
        node_rate: Some(NODE_RATE),
        origin_rate: Some(NODE_RATE),
        origin: Front::Proxy,
        ..WorldPlan::one_cluster(NODES)
    };
    for liar in 0..LIARS {
        plan = plan.with_guest(&liar_name(liar.into()), Ipv4Addr::new(10, 77, 1, 200 + liar));
    }
    plan.with_setting("store.reserve", "\"1MiB\"").with_setting("store.quota", QUOTA).with_setting("grace", "\"5s\"")
}

/// Sizes from a few KiB to some MiB, the same for the same number. One layer in six images is read in runs (decision 006).
fn layers(image: usize) -> Vec<u64> {
    let n = image as u64;
    let first = if n % 6 == 1 { 24 } else { 3 + n % 5 * 3 };
    vec![first << 20, (1 + n % 3) << 20, (8 + n * 37 % 500) << 10]
}

async fn push_all(world: &World) -> Result<Vec<Pushed>> {
    let mut all = Vec::new();
    // One more, for the last pull.
    for number in 0..=IMAGES {
        let plan = Plan::random(IMAGE_SEED + number as u64, layers(number));
        let image = tokio::task::spawn_blocking(move || Image::obtain(&plan)).await??;
        let repository = format!("lab/chaos-{number}");
        world.registry.push(&image, &repository, "1").await?;
        all.push(Pushed { image, repository });
    }
    Ok(all)
}

/// What was found, and what must not have happened.
async fn play(seed: u64, time: Duration, plan: &[Episode]) -> Result<(Found, Vec<String>)> {
    let mut world = World::start(world_plan()).await?;
    let mut images = push_all(&world).await?;
    let last = images.pop().context("no image for the last pull")?;
    let images = Arc::new(images);
    world.start_nodes().await?;
    for number in 0..WITH_CONTAINERD {
        world.node(&node_name(number))?.containerd.reconfigure(COLLECT_AT_ONCE).await?;
    }
    let tally = Shared::default();
    let clients = (0..usize::from(NODES)).map(|node| client(&world, node, &tally)).collect::<Result<Vec<_>>>()?;
    let mut all: Vec<With> = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        all.extend((0..PLAIN_EACH).map(|_| With::Plain(Box::new(client.clone()))));
        if number < WITH_CONTAINERD {
            let node = node_name(number);
            all.push(With::Containerd { puller: world.node(&node)?.containerd.puller(), node });
        }
    }
    let pullers = Pullers::start(seed, images.clone(), all, &tally);
    let mut actor = Actor::new(&mut world, &images);
    let played = actor.play(plan).await;
    let (begun, missed) = (actor.begun, std::mem::take(&mut actor.missed));
    drop(actor);
    played?;
    judge::bring_back(&mut world).await.context("bring everything back")?;
    let mut wrong = Vec::new();
    let mut note = |ended: Result<()>| wrong.extend(ended.err().map(|error| format!("{error:#}")));
    note(pullers.finish(AFTERWARDS).await);
    note(judge::all_is_well(&clients, &last).await);
    let end = match judge::look(&mut world).await {
        Ok(end) => end,
        Err(error) => {
            note(Err(error));
            AtTheEnd::default()
        }
    };
    let tally = tally.now();
    wrong.extend(tally.wrong.iter().cloned());
    if tally.ended == 0 {
        wrong.push("no pull ended well".to_owned());
    }
    let seconds = time.as_secs_f64();
    Ok((Found { seed, seconds, planned: plan.len(), begun, missed, tally, end }, wrong))
}

fn client(world: &World, node: usize, tally: &Shared) -> Result<PlainClient> {
    let ns = world.net.namespace(&node_name(node))?;
    let registry = world.net.namespace("registry")?.address;
    Ok(PlainClient::new(&ns, registry, world.registry.tls()?, world.registry.signer().clone(), tally.clone()))
}

/// Fails for a time in which nothing would happen.
pub(crate) fn minutes(minutes: f64) -> Result<Duration> {
    ensure!(minutes.is_finite() && (0.2..=1440.0).contains(&minutes), "from 0.2 to 1440 minutes, not {minutes}");
    Ok(Duration::from_secs_f64(minutes * 60.0))
}
