//! Carries out what control orders: images that nobody on this node asked for yet.
//!
//! A fetch of this kind goes through the mirror, as one of containerd's does: the same rights, permits and checks (DESIGN, preheat).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use parking_lot::Mutex;
use shoal_base::drain::Drain;
use shoal_proto::Digest;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::image::{Blob, Fetch, Onlooker, Platform};
use crate::control::{Client, ImageOrder, Order, Outcome, Progress};
use crate::origin::{self, Login, Target};

/// Images that are fetched side by side.
const AT_ONCE: usize = 2;
/// Before another attempt; after the last one the order has failed.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];
/// How often control is told, at most.
const EVERY: Duration = Duration::from_millis(500);
/// How often control hears of an order that waits for a place, or to which nothing comes: well within what it takes for silence.
const ALIVE: Duration = Duration::from_secs(30);
/// Orders whose ids are known; control has ended older ones.
const REMEMBERED: usize = 256;

/// Carries orders out.
pub(super) struct Orders {
    /// The part of control that is told.
    pub(super) control: Arc<Client>,
    /// Where images are fetched from.
    pub(super) mirror: SocketAddr,
    /// How registries are logged in to.
    pub(super) origin: origin::Config,
}

/// One that was heard of.
struct Known {
    cancel: CancellationToken,
    running: Arc<Running>,
}

impl Orders {
    /// Until the signal; what runs then is ordered again from the next process.
    pub(super) async fn run(self, mut orders: mpsc::Receiver<Order>, drain: Drain) {
        let this = Arc::new(self);
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut known: HashMap<String, Known> = HashMap::new();
        loop {
            let order = tokio::select! {
                order = orders.recv() => order,
                () = drain.signalled() => None,
            };
            match order {
                None => return known.values().for_each(|one| one.cancel.cancel()),
                Some(Order::Cancel(id)) => match known.get(&id) {
                    Some(one) => one.cancel.cancel(),
                    None => this.control.tell_order(Running::new(id).progress(Outcome::Cancelled)),
                },
                Some(Order::Image(order)) => {
                    if let Some(one) = known.get(&order.id) {
                        one.running.tell_again(&this.control);
                        continue;
                    }
                    if known.len() >= REMEMBERED {
                        known.retain(|_, one| one.running.is_running());
                    }
                    let (cancel, running) = (CancellationToken::new(), Arc::new(Running::new(order.id.clone())));
                    known.insert(order.id.clone(), Known { cancel: cancel.clone(), running: Arc::clone(&running) });
                    let (this, places) = (Arc::clone(&this), Arc::clone(&places));
                    tokio::spawn(async move { this.carry_out(order, &running, &places, cancel).await });
                }
            }
        }
    }

    async fn carry_out(&self, order: ImageOrder, running: &Running, places: &Semaphore, cancel: CancellationToken) {
        tracing::info!(?order, "ordered to fetch an image");
        running.tell(&self.control, Outcome::Running);
        let fetching = async {
            let _place = places.acquire().await;
            self.fetch(&order, running).await
        };
        let mut fetching = std::pin::pin!(fetching);
        let outcome = loop {
            tokio::select! {
                fetched = &mut fetching => break match fetched {
                    Ok(()) => Outcome::Done,
                    Err(error) => Outcome::Failed(format!("{error:#}")),
                },
                () = cancel.cancelled() => break Outcome::Cancelled,
                () = tokio::time::sleep(ALIVE) => running.tell_again(&self.control),
            }
        };
        tracing::info!(?order, ?outcome, "an ordered image");
        running.tell(&self.control, outcome);
    }

    async fn fetch(&self, order: &ImageOrder, running: &Running) -> anyhow::Result<()> {
        let target = Target {
            registry: order.registry.parse().with_context(|| format!("registry {:?}", order.registry))?,
            repository: order.repository.parse().with_context(|| format!("repository {:?}", order.repository))?,
        };
        let platforms = order.platforms.iter().map(|platform| platform.parse());
        let platforms = platforms.collect::<anyhow::Result<Vec<Platform>>>()?;
        let login = order.login.clone().map(|(user, password)| Login { user, password });
        let fetch = Fetch::new(self.mirror, origin::Config { login, ..self.origin.clone() }, target)?;
        let onlooker = Telling { running, control: &self.control };
        for wait in AGAIN {
            match fetch.image(&order.reference, &platforms, &onlooker).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::info!(?order, error = %format!("{error:#}"), ?wait, "an ordered image did not come; tries again");
                    tokio::time::sleep(wait).await;
                }
            }
        }
        fetch.image(&order.reference, &platforms, &onlooker).await
    }
}

/// How far one order is.
struct Running {
    id: String,
    state: Mutex<State>,
}

struct State {
    outcome: Outcome,
    manifest: Option<Digest>,
    blobs: Vec<(Digest, u64, u64)>,
    told: Option<Instant>,
}

impl Running {
    fn new(id: String) -> Self {
        let state = State { outcome: Outcome::Running, manifest: None, blobs: Vec::new(), told: None };
        Self { id, state: Mutex::new(state) }
    }

    fn is_running(&self) -> bool {
        self.state.lock().outcome == Outcome::Running
    }

    fn progress(&self, outcome: Outcome) -> Progress {
        let state = self.state.lock();
        Progress { id: self.id.clone(), outcome, manifest: state.manifest, blobs: state.blobs.clone() }
    }

    fn tell(&self, control: &Client, outcome: Outcome) {
        {
            let mut state = self.state.lock();
            state.told = Some(Instant::now());
            state.outcome = outcome.clone();
        }
        control.tell_order(self.progress(outcome));
    }

    fn tell_again(&self, control: &Client) {
        let outcome = self.state.lock().outcome.clone();
        control.tell_order(self.progress(outcome));
    }
}

struct Telling<'a> {
    running: &'a Running,
    control: &'a Client,
}

impl Telling<'_> {
    fn now(&self) {
        let due = self.running.state.lock().told.is_none_or(|told| told.elapsed() >= EVERY);
        if due {
            self.running.tell(self.control, Outcome::Running);
        }
    }
}

impl Onlooker for Telling<'_> {
    fn resolved(&self, top: &Digest, blobs: &[Blob]) {
        {
            let mut state = self.running.state.lock();
            state.manifest = Some(*top);
            state.blobs = blobs.iter().map(|blob| (blob.digest, blob.size, 0)).collect();
        }
        self.running.tell(self.control, Outcome::Running);
    }

    fn came(&self, blob: usize, bytes: u64) {
        if let Some(blob) = self.running.state.lock().blobs.get_mut(blob) {
            blob.2 += bytes;
        }
        self.now();
    }

    fn done(&self, blob: usize) {
        if let Some(blob) = self.running.state.lock().blobs.get_mut(blob) {
            blob.2 = blob.1;
        }
        self.now();
    }
}
