//! Bringing an image to a cluster before anybody pulls it.
//!
//! Owns jobs and the pure rules of their states ([`job`]); [`crate::store`] keeps the jobs, and the work reaches seeds and nodes as fetch
//! orders on their sessions (`FetchOrder` in `shoal.control.v1`). A preheat fetch is an ordinary flight of a node: it has the same permits
//! and the same checks as a pull.
//!
//! What always holds: a job that was acknowledged is on disk, and goes on after a restart; a node is told its order again on each new
//! session until it is settled; a password is kept in memory alone, and with the job (I9).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oci_spec::distribution::Reference;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use shoal_base::drain::Drain;
use shoal_proto::control::v1 as wire;
use shoal_proto::{ClusterId, NodeId};
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;

use crate::nodes::{Nodes, Role, SessionId, Standing};
use crate::store::{self, AuditEntry, PreheatRow};

mod brief;
pub mod job;
mod metrics;
#[cfg(test)]
mod tests;

pub use crate::store::{Outcome, PreheatFilter, Standing as Stored};
pub use brief::Brief;
pub use job::{Blob, Candidate, Heard, Image, Job, Said, State, Target, Work};
pub use metrics::Metrics;

/// How often orders are looked at.
const TICK: Duration = Duration::from_millis(250);
/// A live node says at once that it has an order; one that says nothing for so long will not carry it out.
const ANSWER: Duration = Duration::from_secs(15);
/// A node that runs an order says so twice a second while bytes come, and an attempt ends by itself when none do.
const SILENCE: Duration = Duration::from_secs(300);
/// How long a node may be away before its part has failed.
const AWAY: Duration = Duration::from_secs(60);
/// Jobs that ended and are remembered.
const KEPT: u32 = 1000;
/// Jobs that go on at once.
const MOST: usize = 100;
/// Platforms of a job.
const MOST_PLATFORMS: usize = 16;
/// Changes that somebody may lag behind.
const BEHIND: usize = 256;

/// What somebody wants.
#[derive(Clone)]
pub struct New {
    /// As in a pod's spec: `alpine:3`, `registry.example/app@sha256:…`.
    pub image: String,
    /// `os/architecture[/variant]`; empty: all images of an index.
    pub platforms: Vec<String>,
    /// Which cluster.
    pub cluster: ClusterId,
    /// Its name.
    pub cluster_name: String,
    /// Which nodes of it.
    pub target: Target,
    /// User and password for the registry; `None`: what nodes themselves log in with.
    pub login: Option<(String, String)>,
}

impl std::fmt::Debug for New {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "New({} to {} {:?})", self.image, self.cluster, self.target)
    }
}

/// Why it is not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something of the request is wrong.
    #[error("{field}: {why}")]
    Bad {
        /// The field's path, such as `nodes[1]`.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// It can't be done as things are.
    #[error("{0}")]
    Refused(String),
    /// There is no such job.
    #[error("there is no preheat {0}")]
    Unknown(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Hears of jobs that begin, also again, and of those that end. Must be quick, and must not call back.
pub trait Follower: Send + Sync + 'static {
    /// Takes one. A job that has not ended begins.
    fn preheat(&self, job: &Job);
}

/// All jobs.
pub struct Preheats {
    store: Arc<dyn store::Preheats>,
    nodes: Arc<Nodes>,
    metrics: Metrics,
    inner: Mutex<Inner>,
    /// One at a time, so that rows are written in the order in which jobs changed.
    writing: tokio::sync::Mutex<()>,
    dirty: Notify,
    /// The last write of a change failed.
    failing: AtomicBool,
    changes: broadcast::Sender<String>,
    follower: OnceLock<Arc<dyn Follower>>,
}

#[derive(Default)]
struct Inner {
    /// Those that go on, and those whose end is not on disk yet.
    live: BTreeMap<String, Live>,
    /// Jobs that changed since they were written.
    dirty: BTreeSet<String>,
}

struct Live {
    job: Job,
    login: Option<(String, String)>,
    orders: HashMap<NodeId, Sent>,
}

/// What was said to a node, and heard of it.
struct Sent {
    attempt: u32,
    /// The session in which it was said last; `None`: not yet.
    session: Option<SessionId>,
    said: Instant,
    heard: Option<Instant>,
    /// Since when the node is not there.
    away: Option<Instant>,
}

impl Preheats {
    /// Takes up the jobs that go on.
    ///
    /// # Errors
    /// [`store::Error`].
    pub async fn open(
        store: Arc<dyn store::Preheats>,
        nodes: Arc<Nodes>,
        metrics: Metrics,
    ) -> Result<Arc<Self>, store::Error> {
        let mut inner = Inner::default();
        for row in store.running_preheats().await? {
            let live = Live { job: parse(row)?, login: None, orders: HashMap::new() };
            inner.live.insert(live.job.id.clone(), live);
        }
        metrics.running.set(inner.live.len() as i64);
        let (changes, _) = broadcast::channel(BEHIND);
        let (inner, writing, dirty) = (Mutex::new(inner), tokio::sync::Mutex::default(), Notify::new());
        let failing = AtomicBool::new(false);
        let follower = OnceLock::new();
        Ok(Arc::new(Self { store, nodes, metrics, inner, writing, dirty, failing, changes, follower }))
    }

    /// Who hears of what begins and ends from now on; there is one.
    pub fn followed_by(&self, follower: Arc<dyn Follower>) {
        _ = self.follower.set(follower);
    }

    /// Makes a job. It is on disk when this returns.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn create(&self, new: New, by: &str) -> Result<Job, Error> {
        let image = image(&new.image)?;
        platforms(&new.platforms)?;
        match &new.target {
            Target::Percent(0 | 101..) => return Err(bad("target", "a share is 1 to 100 percent".into())),
            Target::Nodes(names) if names.is_empty() => return Err(bad("target", "names no node".into())),
            _ => {}
        }
        fits(new.login.as_ref())?;
        let chosen = job::choose(&new.target, &self.candidates(&new.cluster), rand::random());
        let chosen = chosen.map_err(|nobody| match nobody {
            job::Nobody::Field(field, why) => Error::Bad { field, why },
            job::Nobody::Empty => Error::Refused(format!("cluster {:?} has no live node", new.cluster_name)),
        })?;
        let work = |one: Candidate| (one.id, Work::waiting(one.name));
        let mut job = Job {
            id: hex::encode(rand::random::<[u8; 6]>()),
            image,
            platforms: new.platforms,
            cluster: new.cluster,
            cluster_name: new.cluster_name,
            target: new.target,
            created: now(),
            created_by: by.to_owned(),
            ended: None,
            cancelled: false,
            version: 1,
            scouts: 0,
            manifest: None,
            blobs: Vec::new(),
            nodes: chosen.into_iter().map(work).collect(),
        };
        self.refuse_unfit(&mut job);
        let _writing = self.writing.lock().await;
        if self.inner.lock().live.len() >= MOST {
            return Err(too_many());
        }
        self.write(&job, Some(&entry(by, "preheat.create", None, &job))).await?;
        self.metrics.created.inc();
        tracing::info!(preheat = job.id, image = new.image, nodes = job.nodes.len(), by, "preheat begins");
        self.take_up(job.clone(), new.login);
        // The job is made, whatever becomes of old ones.
        if let Err(error) = self.store.prune_preheats(KEPT).await {
            tracing::warn!(%error, "old preheats can't be forgotten; tries again with the next one");
        }
        Ok(job)
    }

    /// A job as it is now.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Store`].
    pub async fn get(&self, id: &str) -> Result<Job, Error> {
        if let Some(live) = self.inner.lock().live.get(id) {
            return Ok(live.job.clone());
        }
        let row = self.store.preheat(id).await?.ok_or_else(|| Error::Unknown(id.to_owned()))?;
        Ok(parse(row)?)
    }

    /// Jobs of the filter made before that one, in short, newest first.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn list(&self, filter: &PreheatFilter, before: Option<&str>, most: u32) -> Result<Vec<Brief>, Error> {
        let rows = self.store.preheats(filter, before, most).await?;
        let inner = self.inner.lock();
        let fresh = |row: store::PreheatShort| match inner.live.get(&row.id) {
            Some(live) => Ok(live.job.brief()),
            None => Ok(understand(&row.id, row.short)?),
        };
        rows.into_iter().map(fresh).collect()
    }

    /// Takes a job back; what nodes hold of it stays. `check` sees the job as it is then, and may refuse.
    ///
    /// # Errors
    /// [`Error::Refused`] when it has ended, [`Error`], and what `check` says.
    pub async fn cancel<E: From<Error>>(
        &self,
        id: &str,
        by: &str,
        check: impl FnOnce(&Job) -> Result<(), E> + Send,
    ) -> Result<Job, E> {
        let _writing = self.writing.lock().await;
        let before = self.get(id).await?;
        check(&before)?;
        let mut job = before.clone();
        let open: Vec<(NodeId, u32)> = job
            .nodes
            .iter()
            .filter(|(_, work)| !work.state.is_settled())
            .map(|(node, work)| (node.clone(), work.attempt))
            .collect();
        if !job.cancel(now()) {
            return Err(Error::Refused(format!("preheat {id} has ended")).into());
        }
        self.write(&job, Some(&entry(by, "preheat.cancel", Some(&before), &job))).await?;
        self.let_go(&job);
        for (node, attempt) in open {
            let order = wire::FetchOrder { order_id: order_id(id, attempt), cancelled: true, ..Default::default() };
            self.nodes.order(&node, order);
        }
        tracing::info!(preheat = id, by, "preheat cancelled");
        Ok(job)
    }

    /// What failed or was cancelled is tried again, with a login that is sent anew. `check` sees the job as it is then, and may refuse.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is nothing to try again, [`Error`], and what `check` says.
    pub async fn retry<E: From<Error>>(
        &self,
        id: &str,
        login: Option<(String, String)>,
        by: &str,
        check: impl FnOnce(&Job) -> Result<(), E> + Send,
    ) -> Result<Job, E> {
        fits(login.as_ref())?;
        let _writing = self.writing.lock().await;
        let before = self.get(id).await?;
        check(&before)?;
        let mut job = before.clone();
        if job.retry() == 0 {
            let why = if job.ended.is_some() { "nothing of it failed" } else { "it goes on" };
            return Err(Error::Refused(format!("preheat {id}: {why}")).into());
        }
        if self.inner.lock().live.len() >= MOST {
            return Err(too_many().into());
        }
        self.refuse_unfit(&mut job);
        self.write(&job, Some(&entry(by, "preheat.retry", Some(&before), &job))).await?;
        self.take_up(job.clone(), login);
        tracing::info!(preheat = id, by, "preheat begins again");
        Ok(job)
    }

    /// Ids of jobs as they change; progress included.
    pub fn watch(&self) -> broadcast::Receiver<String> {
        self.changes.subscribe()
    }

    /// A node says how far an order is.
    pub fn heard(&self, node: &NodeId, order: &str, said: Said) {
        let Some((id, attempt)) = parse_order(order) else { return };
        let mut inner = self.inner.lock();
        let Some(live) = inner.live.get_mut(id) else {
            drop(inner);
            if !said.state.is_settled() {
                let order_id = order.to_owned();
                self.nodes.order(node, wire::FetchOrder { order_id, cancelled: true, ..Default::default() });
            }
            return;
        };
        if let Some(sent) = live.orders.get_mut(node) {
            sent.heard = Some(Instant::now());
        }
        match live.job.heard(node, attempt, said, now()) {
            Heard::Nothing => return,
            Heard::Progress => {}
            Heard::Settled => {
                let id = id.to_owned();
                inner.dirty.insert(id);
                self.dirty.notify_one();
            }
        }
        drop(inner);
        _ = self.changes.send(id.to_owned());
    }

    /// Sends orders and writes what changed, until drained.
    pub async fn run(self: Arc<Self>, drain: Drain) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = drain.signalled() => return,
                () = self.dirty.notified() => {}
                _ = tick.tick() => self.send_orders(),
            }
            self.flush().await;
        }
    }

    fn candidates(&self, cluster: &ClusterId) -> Vec<Candidate> {
        let here = self.nodes.list().into_iter().filter(|node| node.cluster_id.as_ref() == Some(cluster));
        here.map(|node| Candidate { id: node.id, name: node.name, seed: node.role == Role::Seed }).collect()
    }

    /// Nodes that are there and can't have their order are not waited for.
    fn refuse_unfit(&self, job: &mut Job) {
        let open: Vec<NodeId> = job.open().map(|(node, _)| node.clone()).collect();
        let standing = self.nodes.standing(&job.cluster, open.iter());
        let mut unfit: HashMap<NodeId, String> = HashMap::new();
        for (node, standing) in open.into_iter().zip(standing) {
            if let Standing::Unfit { why, .. } = standing {
                unfit.insert(node, why);
            }
        }
        job.refuse(|node| unfit.remove(node), now());
    }

    fn take_up(&self, job: Job, login: Option<(String, String)>) {
        let mut inner = self.inner.lock();
        let id = job.id.clone();
        // One that has ended when it is made begins all the same.
        let begun = Job { ended: None, ..job.clone() };
        inner.dirty.remove(&id);
        if job.ended.is_some() {
            // No node of it takes orders: there is nothing to wait for.
            inner.dirty.insert(id.clone());
            self.dirty.notify_one();
        }
        inner.live.insert(id.clone(), Live { job, login, orders: HashMap::new() });
        self.metrics.running.set(inner.live.len() as i64);
        drop(inner);
        if let Some(follower) = self.follower.get() {
            follower.preheat(&begun);
        }
        self.send_orders();
        _ = self.changes.send(id);
    }

    fn let_go(&self, job: &Job) {
        let mut inner = self.inner.lock();
        inner.live.remove(&job.id);
        inner.dirty.remove(&job.id);
        self.metrics.running.set(inner.live.len() as i64);
        drop(inner);
        if let Some(follower) = self.follower.get() {
            follower.preheat(job);
        }
        _ = self.changes.send(job.id.clone());
    }

    async fn write(&self, job: &Job, audit: Option<&AuditEntry>) -> Result<(), Error> {
        let short = job.brief();
        let outcome = match short.state {
            State::Cancelled => Outcome::Cancelled,
            State::Failed(_) => Outcome::Failed,
            _ => Outcome::Done,
        };
        let row = PreheatRow {
            id: job.id.clone(),
            created: job.created,
            ended: job.ended.map(|at| (at, outcome)),
            cluster: job.cluster.clone(),
            short: serde_json::to_value(short).unwrap_or_default(),
            job: serde_json::to_value(job).unwrap_or_default(),
        };
        Ok(self.store.put_preheat(&row, audit).await?)
    }

    /// Each node that is due and there has its order, in the session that it has now.
    fn send_orders(&self) {
        let mut inner = self.inner.lock();
        let Inner { live, dirty } = &mut *inner;
        for live in live.values_mut() {
            let failed = live.send_orders(&self.nodes);
            if !failed.is_empty() {
                dirty.insert(live.job.id.clone());
            }
            for (node, why) in failed {
                live.job.fail(&node, why, now());
            }
        }
        if !dirty.is_empty() {
            self.dirty.notify_one();
        }
    }

    /// Writes what changed. What can't be written is tried again.
    async fn flush(&self) {
        let _writing = self.writing.lock().await;
        let dirty: Vec<Job> = {
            let inner = self.inner.lock();
            inner.dirty.iter().filter_map(|id| inner.live.get(id)).map(|live| live.job.clone()).collect()
        };
        for job in dirty {
            if let Err(error) = self.write(&job, None).await {
                // It is tried several times a second, and said once.
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::error!(%error, preheat = job.id, "preheats can't be written; tries again until they can");
                }
                return;
            }
            if self.failing.swap(false, Ordering::Relaxed) {
                tracing::info!("preheats can be written again");
            }
            let mut inner = self.inner.lock();
            // What changed meanwhile is written the next time.
            let unchanged = inner.live.get(&job.id).is_some_and(|live| {
                let states = |job: &Job| job.nodes.values().map(|work| work.state.clone()).collect::<Vec<_>>();
                let known = |job: &Job| (job.manifest, job.scouts);
                known(&live.job) == known(&job) && states(&live.job) == states(&job)
            });
            if unchanged {
                inner.dirty.remove(&job.id);
            }
            drop(inner);
            if unchanged && job.ended.is_some() {
                match job.state() {
                    State::Done => self.metrics.done.inc(),
                    _ => self.metrics.failed.inc(),
                };
                tracing::info!(preheat = job.id, state = ?job.state(), "preheat ended");
                self.let_go(&job);
            }
        }
    }
}

impl Live {
    /// The answer is who can't do its part, and why.
    fn send_orders(&mut self, nodes: &Nodes) -> Vec<(NodeId, String)> {
        let Self { job, login, orders } = self;
        let now = Instant::now();
        let mut failed = Vec::new();
        let mut here: HashMap<&NodeId, SessionId> = HashMap::new();
        let standing = nodes.standing(&job.cluster, job.open().map(|(node, _)| node));
        for ((node, work), standing) in job.open().zip(standing) {
            let sent = orders.entry(node.clone()).or_insert_with(|| Sent::new(work.attempt, now));
            if sent.attempt != work.attempt {
                *sent = Sent::new(work.attempt, now);
            }
            match standing {
                Standing::Away if now - *sent.away.get_or_insert(now) > AWAY => {
                    failed.push((node.clone(), format!("it was away for {} s", AWAY.as_secs())));
                }
                Standing::Away => {}
                Standing::Here(session) => {
                    sent.away = None;
                    here.insert(node, session);
                }
                Standing::Unfit { session, why } => {
                    if session.is_some() && sent.session == session {
                        // It was told while it was there.
                        let order_id = order_id(&job.id, work.attempt);
                        nodes.order(node, wire::FetchOrder { order_id, cancelled: true, ..Default::default() });
                    }
                    failed.push((node.clone(), why));
                }
            }
        }
        for (node, attempt) in job.due(|node| here.contains_key(node)) {
            let (Some(session), Some(sent)) = (here.get(&node), orders.get_mut(&node)) else { continue };
            if sent.session != Some(*session) {
                if nodes.order(&node, order(job, login.as_ref(), attempt)) {
                    (sent.session, sent.said) = (Some(*session), now);
                }
                continue;
            }
            match sent.heard {
                None if now - sent.said > ANSWER => failed.push((node, "it does not answer to orders".into())),
                Some(heard) if now - heard > SILENCE => {
                    failed.push((node, format!("it was silent for {} s", SILENCE.as_secs())));
                }
                _ => {}
            }
        }
        failed
    }
}

impl Sent {
    const fn new(attempt: u32, now: Instant) -> Self {
        Self { attempt, session: None, said: now, heard: None, away: None }
    }
}

fn order(job: &Job, login: Option<&(String, String)>, attempt: u32) -> wire::FetchOrder {
    let (user, password) = login.cloned().unwrap_or_default();
    let (reference, platforms) = (job.reference(), job.platforms.clone());
    wire::FetchOrder {
        order_id: order_id(&job.id, attempt),
        registry: job.image.registry.clone(),
        repository: job.image.repository.clone(),
        image: Some(wire::OrderedImage { reference, platforms, user, password }),
        ..wire::FetchOrder::default()
    }
}

fn order_id(job: &str, attempt: u32) -> String {
    format!("{job}/{attempt}")
}

fn parse_order(order: &str) -> Option<(&str, u32)> {
    let (job, attempt) = order.split_once('/')?;
    Some((job, attempt.parse().ok()?))
}

fn parse(row: PreheatRow) -> Result<Job, store::Error> {
    understand(&row.id, row.job)
}

fn understand<T: DeserializeOwned>(id: &str, value: serde_json::Value) -> Result<T, store::Error> {
    serde_json::from_value(value)
        .map_err(|error| store::Error::Failed { doing: format!("read preheat {id}"), source: Box::new(error) })
}

fn bad(field: &'static str, why: String) -> Error {
    Error::Bad { field: field.to_owned(), why }
}

fn too_many() -> Error {
    Error::Refused(format!("{MOST} preheats go on; wait for one, or cancel it"))
}

/// A login that can be shown to a registry.
fn fits(login: Option<&(String, String)>) -> Result<(), Error> {
    let Some((user, password)) = login else { return Ok(()) };
    let text = |text: &str| text.len() <= 4096 && !text.chars().any(char::is_control);
    let (field, why) = match () {
        () if user.is_empty() => ("login.user", "is empty"),
        () if user.contains(':') => ("login.user", "has a colon, which no user of a registry has"),
        () if !text(user) => ("login.user", "has more than 4096 bytes, or a control character"),
        () if !text(password) => ("login.password", "has more than 4096 bytes, or a control character"),
        () => return Ok(()),
    };
    Err(bad(field, why.into()))
}

fn image(text: &str) -> Result<Image, Error> {
    if text.len() > 1024 {
        return Err(bad("image", "longer than 1024 bytes".into()));
    }
    // The text is not repeated: somebody may have put a password before the registry's name.
    let parsed: Reference = text.parse().map_err(|error| bad("image", format!("names no image: {error}")))?;
    let reference = parsed.digest().or(parsed.tag()).unwrap_or("latest").to_owned();
    Ok(Image { registry: parsed.registry().to_owned(), repository: parsed.repository().to_owned(), reference })
}

fn platforms(all: &[String]) -> Result<(), Error> {
    if all.len() > MOST_PLATFORMS {
        return Err(bad("platforms", format!("more than {MOST_PLATFORMS}")));
    }
    let word = |word: &str| {
        !word.is_empty()
            && word.len() <= 32
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    match all.iter().find(|text| !((2..=3).contains(&text.split('/').count()) && text.split('/').all(word))) {
        Some(text) => Err(bad("platforms", format!("{text:?} is not os/architecture or os/architecture/variant"))),
        None => Ok(()),
    }
}

fn entry(by: &str, action: &str, before: Option<&Job>, after: &Job) -> AuditEntry {
    let short = |job: &Job| {
        let Image { registry, repository, reference } = &job.image;
        serde_json::json!({
            "image": format!("{registry}/{repository}:{reference}"),
            "cluster": if job.cluster_name.is_empty() { job.cluster.as_str() } else { &job.cluster_name },
            "cluster_id": job.cluster,
            "target": job.target,
            "nodes": job.nodes.len(),
            "state": job.state(),
        })
    };
    let (before, after_short) = (before.map(short), Some(short(after)));
    let (who, action, subject) = (by.to_owned(), action.to_owned(), after.id.clone());
    AuditEntry { at: now(), who, action, subject, before, after: after_short }
}

/// Seconds since 1970.
fn now() -> store::Seconds {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
