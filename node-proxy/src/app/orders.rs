//! Carries out what control orders: images, and single blobs, that nobody on this node asked for yet.
//!
//! An image goes through the mirror, as one of containerd's does: the same rights, permits and checks (DESIGN, preheat). A blob that somebody
//! of the cluster looks for is a flight like any other, without a reader outside.

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

use super::image::{Blob, Fetch, Onlooker, Platform, Refused};
use crate::blob::{Engine, Want};
use crate::control::{BlobOrder, Client, ImageOrder, Order, Outcome, Progress};
use crate::origin::{self, Login, Target};

/// Images that are fetched side by side.
const AT_ONCE: usize = 2;
/// Blobs that are fetched side by side. One more is refused: it is the next seed's, or the others'.
const BLOBS_AT_ONCE: usize = 64;
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
    /// By whom blobs are fetched.
    pub(super) engine: Engine,
    /// This node has credentials of its own.
    pub(super) has_own: bool,
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
        let blobs = Arc::new(Blobs::default());
        loop {
            let order = tokio::select! {
                order = orders.recv() => order,
                () = drain.signalled() => None,
            };
            match order {
                None => return known.values().for_each(|one| one.cancel.cancel()),
                Some(Order::Cancel(id)) if blobs.cancel(&id) => {}
                Some(Order::Blob(order)) => Arc::clone(&this).fetch_blob(order, &blobs),
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

    /// Control is told at once whether it begins, and hears no more of it but by its flight, unless it fails.
    fn fetch_blob(self: Arc<Self>, order: BlobOrder, blobs: &Arc<Blobs>) {
        let target = order.registry.parse().ok().zip(order.repository.parse().ok());
        let Some((registry, repository)) = target else {
            return self.control.tell_blob_order(&order.id, Outcome::Failed("registry, repository: are none".into()));
        };
        let Some(cancel) = blobs.enter(&order.id) else {
            return self.control.tell_blob_order(&order.id, Outcome::Failed("too many orders at once".into()));
        };
        self.control.tell_blob_order(&order.id, Outcome::Running);
        let want = Want {
            digest: order.digest,
            target: Target { registry, repository },
            kind: order.kind,
            who: origin::Who::Anybody,
        };
        let blobs = Arc::clone(blobs);
        tokio::spawn(async move {
            tokio::select! {
                fetched = self.engine.fetch(want, self.has_own) => match fetched {
                    Ok(()) => self.control.tell_blob_order(&order.id, Outcome::Done),
                    Err(error) => {
                        tracing::info!(?order, %error, "an ordered blob did not come");
                        self.control.tell_blob_order(&order.id, Outcome::Failed(error.to_string()));
                    }
                },
                () = cancel.cancelled() => {
                    tracing::debug!(?order, "an ordered blob is not wanted any more");
                    self.engine.dismiss(&order.digest);
                }
            }
            blobs.leave(&order.id);
        });
    }

    async fn carry_out(&self, order: ImageOrder, running: &Running, places: &Semaphore, cancel: CancellationToken) {
        tracing::info!(?order, "ordered to fetch an image");
        running.tell(&self.control, Outcome::Running);
        let fetching = async {
            let _place = places.acquire().await;
            self.fetch(&order, running).await
        };
        // Emptied to drop what it does.
        let mut fetching = std::pin::pin!(Some(fetching));
        let outcome = loop {
            let Some(fetch) = fetching.as_mut().as_pin_mut() else { return };
            tokio::select! {
                fetched = fetch => break match fetched {
                    Ok(()) => Outcome::Done,
                    Err(error) => {
                        let why = format!("{error:#}");
                        match error.downcast_ref::<Refused>() {
                            Some(Refused::NotThere(_)) => Outcome::Refused(why),
                            // With a login of its own another node may be let in.
                            Some(Refused::NotForUs(_)) if order.login.is_some() => Outcome::Refused(why),
                            _ => Outcome::Failed(why),
                        }
                    }
                },
                () = cancel.cancelled() => break Outcome::Cancelled,
                () = tokio::time::sleep(ALIVE) => running.tell_again(&self.control),
            }
        };
        tracing::info!(?order, ?outcome, "an ordered image");
        let cancelled = outcome == Outcome::Cancelled;
        running.tell(&self.control, outcome);
        if cancelled {
            fetching.set(None);
            self.dismiss(running).await;
        }
    }

    /// Flights of an order that was taken back read nothing more, unless somebody else waits for them. What was asked of the mirror just
    /// before may reach it just after, hence twice.
    async fn dismiss(&self, running: &Running) {
        let blobs: Vec<Digest> = running.state.lock().blobs.iter().map(|(digest, ..)| *digest).collect();
        for wait in [Duration::ZERO, Duration::from_millis(500)] {
            tokio::time::sleep(wait).await;
            blobs.iter().for_each(|digest| self.engine.dismiss(digest));
        }
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
                // It would say the same again.
                Err(error) if error.is::<Refused>() => return Err(error),
                Err(error) => {
                    tracing::info!(?order, error = %format!("{error:#}"), ?wait, "an ordered image did not come; tries again");
                    tokio::time::sleep(wait).await;
                }
            }
        }
        fetch.image(&order.reference, &platforms, &onlooker).await
    }
}

/// Blobs that are being fetched by order.
#[derive(Default)]
struct Blobs(Mutex<HashMap<String, CancellationToken>>);

impl Blobs {
    /// `None`: there is no room.
    fn enter(&self, id: &str) -> Option<CancellationToken> {
        let mut running = self.0.lock();
        if running.len() >= BLOBS_AT_ONCE {
            return None;
        }
        Some(running.entry(id.to_owned()).or_default().clone())
    }

    fn leave(&self, id: &str) {
        self.0.lock().remove(id);
    }

    /// False: there is no such order.
    fn cancel(&self, id: &str) -> bool {
        self.0.lock().get(id).map(CancellationToken::cancel).is_some()
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
