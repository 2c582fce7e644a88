//! Carries a plan out on a running lab: begins each fault at its time and ends it at its end.
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use nix::sys::signal::Signal;

use super::{
    client::Pushed,
    plan::{Episode, Fault},
};
use crate::{
    disk::Disk,
    fault_proxy::{Injection, What},
    image::ImageBlob,
    liar::{Claim, Liar, Lie, other_bytes},
    net::{CutLink, Parted},
    world::World,
};

/// Smaller than the quota: it fills by itself.
pub(super) const SMALL_DISK: u64 = 24 << 20;
/// SIGTERM leads to an end within this, or the daemon is killed: its own grace is shorter here.
const GRACE: Duration = Duration::from_secs(8);
/// A liar that control does not take within this stays away.
const JOINS: Duration = Duration::from_secs(5);

/// What holds while a fault lasts, and ends when it is dropped.
enum Held {
    Nothing,
    Cut(#[expect(dead_code, reason = "its end is what it is held for")] CutLink),
    Parted(#[expect(dead_code, reason = "its end is what it is held for")] Parted),
    Liar(Liar),
}

/// Who carries it out.
pub(super) struct Actor<'a> {
    world: &'a mut World,
    images: &'a [Pushed],
    held: BTreeMap<usize, Held>,
    /// Faults that began.
    pub(super) begun: usize,
    /// Faults that could not begin, and why: a liar that finds no control.
    pub(super) missed: Vec<String>,
}

/// The names of nodes and liars.
pub(super) fn node_name(number: usize) -> String {
    format!("a{}", number + 1)
}

pub(super) fn liar_name(number: usize) -> String {
    format!("x{}", number + 1)
}

impl<'a> Actor<'a> {
    pub(super) fn new(world: &'a mut World, images: &'a [Pushed]) -> Self {
        Self { world, images, held: BTreeMap::new(), begun: 0, missed: Vec::new() }
    }

    /// Plays all episodes, from now on.
    ///
    /// # Errors
    /// A daemon that does not end, or does not come up again; a fault that can't be made.
    pub(super) async fn play(&mut self, episodes: &[Episode]) -> Result<()> {
        let mut moments: Vec<(Duration, bool, usize)> = Vec::new();
        for (number, episode) in episodes.iter().enumerate() {
            moments.push((episode.from, true, number));
            moments.push((episode.until, false, number));
        }
        // What ends at a moment ends before something else begins.
        moments.sort();
        let start = Instant::now();
        for (at, begins, number) in moments {
            tokio::time::sleep_until((start + at).into()).await;
            let fault = &episodes[number].fault;
            let late = start.elapsed().saturating_sub(at);
            tracing::debug!(%fault, begins, ?late, "chaos");
            let done = if begins { self.begin(number, fault).await } else { self.end(number, fault).await };
            done.with_context(|| {
                format!("{} at {:.2} s: {fault}", if begins { "begin" } else { "end" }, at.as_secs_f64())
            })?;
        }
        Ok(())
    }

    async fn begin(&mut self, number: usize, fault: &Fault) -> Result<()> {
        let mut held = Held::Nothing;
        match fault {
            Fault::Killed(node) => self.world.node(&node_name(*node))?.shoal()?.kill(),
            Fault::Stopped(node) => drop(self.world.node(&node_name(*node))?.shoal()?.signal(Signal::SIGTERM)),
            Fault::Frozen(node) => self.world.node(&node_name(*node))?.shoal()?.signal(Signal::SIGSTOP)?,
            Fault::SmallDisk { node, filled } => {
                let shoal = self.world.node(&node_name(*node))?.shoal()?;
                shoal.kill();
                shoal.move_to(|at| Disk::in_memory(at, SMALL_DISK)).await?;
                if *filled {
                    shoal.disk()?.fill()?;
                }
            }
            Fault::Cut(node) => held = Held::Cut(self.world.net.cut(&node_name(*node))?),
            Fault::Slowed(node, rate) => self.world.net.reshape(&node_name(*node), *rate)?,
            Fault::Apart(one, other) => {
                let other = self.world.net.namespace(&node_name(*other))?.address;
                held = Held::Parted(self.world.net.namespace(&node_name(*one))?.part_from(other)?);
            }
            Fault::ControlKilled => self.world.control()?.kill(),
            Fault::ControlStopped => drop(self.world.control()?.signal(Signal::SIGTERM)),
            Fault::ControlFrozen => self.world.control()?.signal(Signal::SIGSTOP)?,
            Fault::Answers(fault, who) => {
                self.world.registry.proxy()?.inject(Injection { fault: *fault, who: *who, what: What::Requests });
            }
            Fault::RegistryGone => self.world.registry.go_away().await,
            Fault::RegistryCut => held = Held::Cut(self.world.net.cut("registry")?),
            Fault::Lies { liar, image, lie } => match self.lie(number, *liar, *image, *lie).await {
                Ok(liar) => held = Held::Liar(liar),
                // Control may be away.
                Err(error) => self.missed.push(format!("{fault}: {error:#}")),
            },
        }
        self.begun += 1;
        self.held.insert(number, held);
        Ok(())
    }

    async fn end(&mut self, number: usize, fault: &Fault) -> Result<()> {
        if let Some(Held::Liar(liar)) = self.held.remove(&number) {
            // Whether control hears it or not: its connections end.
            let _ = liar.leave().await;
        }
        match fault {
            Fault::Stopped(node) => {
                let shoal = self.world.node(&node_name(*node))?.shoal()?;
                if shoal.ended(GRACE).await.is_err() {
                    shoal.kill();
                }
                shoal.revive().await
            }
            Fault::Killed(node) | Fault::Frozen(node) => self.world.node(&node_name(*node))?.shoal()?.revive().await,
            Fault::SmallDisk { node, .. } => self.world.node(&node_name(*node))?.shoal()?.revive().await,
            Fault::Slowed(node, _) => {
                let rate = self.world.plan().node_rate.context("links of nodes have no rate")?;
                self.world.net.reshape(&node_name(*node), rate)
            }
            Fault::ControlKilled | Fault::ControlFrozen => self.world.control()?.revive().await,
            Fault::ControlStopped => {
                let control = self.world.control()?;
                control.stop(GRACE).await;
                control.revive().await
            }
            Fault::Answers(..) => {
                self.world.registry.proxy()?.clear();
                Ok(())
            }
            Fault::RegistryGone => self.world.registry.revive().await,
            Fault::Cut(_) | Fault::Apart(..) | Fault::RegistryCut | Fault::Lies { .. } => Ok(()),
        }
    }

    /// A liar that says it holds every blob of an image.
    async fn lie(&self, number: usize, liar: usize, image: usize, lie: Lie) -> Result<Liar> {
        let ns = self.world.net.namespace(&liar_name(liar))?;
        // A name that sorts before those of real nodes: control takes it first when it has no other reason.
        let name = format!("0-liar-{number}");
        let token = self.world.token()?;
        let joining = Liar::join(&ns, self.world.grpc(), &name, token.as_deref());
        let Ok(joined) = tokio::time::timeout(JOINS, joining).await else { bail!("control does not answer the liar") };
        let joined = joined?;
        let claims = self.images[image].image.blobs().map(|blob| claim(blob, lie)).collect::<Result<Vec<_>>>()?;
        joined.announce(claims).await?;
        Ok(joined)
    }
}

/// An author's lie is other bytes with their own list; a parent's is in how it serves the right ones.
fn claim(blob: &ImageBlob, lie: Lie) -> Result<Claim> {
    let right = std::fs::read(&blob.file).with_context(|| format!("read {}", blob.file.display()))?;
    let bytes = if lie == Lie::None { other_bytes(&right) } else { Bytes::from(right) };
    let digest = blob.digest.parse().with_context(|| format!("understand {}", blob.digest))?;
    Ok(Claim { digest, bytes, media_type: "application/octet-stream".to_owned(), lie })
}
