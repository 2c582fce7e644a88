//! Bringing an image to a cluster before anybody pulls it.
//!
//! Owns jobs and the pure rules of their states ([`job`]); [`crate::store`] keeps the jobs, and the work reaches seeds and nodes as fetch
//! orders on their sessions (`FetchOrder` in `shoal.control.v1`). A preheat fetch is an ordinary flight of a node: it has the same permits
//! and the same checks as a pull.
//!
//! What always holds: a job that was acknowledged is on disk, and goes on after a restart; a node is told its order again on each new
//! session until it is settled; a password is kept in memory alone, and with the job (I9).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oci_spec::distribution::Reference;
use parking_lot::Mutex;
use shoal_base::drain::Drain;
use shoal_proto::control::v1 as wire;
use shoal_proto::{ClusterId, NodeId};
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;

use crate::nodes::{Nodes, Role, SessionId};
use crate::store::{self, AuditEntry, PreheatRow};

pub mod job;
mod metrics;
#[cfg(test)]
mod tests;

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
        /// The field's name.
        field: &'static str,
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
        Ok(Arc::new(Self { store, nodes, metrics, inner, writing, dirty, failing, changes }))
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
        if let Some((user, password)) = &new.login {
            let fits = |text: &str| text.len() <= 4096 && !text.chars().any(char::is_control);
            if user.is_empty() || user.contains(':') || !fits(user) || !fits(password) {
                return Err(bad("login", "a user has no colon, and neither control characters nor 4096 bytes".into()));
            }
        }
        let chosen =
            job::choose(&new.target, &self.candidates(&new.cluster), rand::random()).map_err(Error::Refused)?;
        let work = |one: Candidate| {
            (one.id, Work { name: one.name, attempt: 1, state: State::Waiting, bytes: BTreeMap::new() })
        };
        let mut job = Job {
            id: hex::encode(rand::random::<[u8; 6]>()),
            image,
            platforms: new.platforms,
            cluster: new.cluster,
            target: new.target,
            created: now(),
            created_by: by.to_owned(),
            ended: None,
            cancelled: false,
            manifest: None,
            blobs: Vec::new(),
            nodes: chosen.into_iter().map(work).collect(),
        };
        let cluster = job.cluster.clone();
        job.refuse(|node| self.cannot(&cluster, node), now());
        let _writing = self.writing.lock().await;
        if self.inner.lock().live.len() >= MOST {
            return Err(Error::Refused(format!("{MOST} preheats go on; wait for one, or cancel it")));
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

    /// Jobs made before that one, newest first.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn list(&self, before: Option<&str>, most: u32) -> Result<Vec<Job>, Error> {
        let rows = self.store.preheats(before, most).await?;
        let inner = self.inner.lock();
        let fresh = |row: PreheatRow| match inner.live.get(&row.id) {
            Some(live) => Ok(live.job.clone()),
            None => Ok(parse(row)?),
        };
        rows.into_iter().map(fresh).collect()
    }

    /// Takes a job back; what nodes hold of it stays.
    ///
    /// # Errors
    /// [`Error::Refused`] when it has ended, [`Error`].
    pub async fn cancel(&self, id: &str, by: &str) -> Result<Job, Error> {
        let _writing = self.writing.lock().await;
        let before = self.get(id).await?;
        let mut job = before.clone();
        let open: Vec<(NodeId, u32)> = job
            .nodes
            .iter()
            .filter(|(_, work)| !work.state.is_settled())
            .map(|(node, work)| (node.clone(), work.attempt))
            .collect();
        if !job.cancel(now()) {
            return Err(Error::Refused(format!("preheat {id} has ended")));
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

    /// What failed or was cancelled is tried again, with a login that is sent anew.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is nothing to try again, [`Error`].
    pub async fn retry(&self, id: &str, login: Option<(String, String)>, by: &str) -> Result<Job, Error> {
        let _writing = self.writing.lock().await;
        let before = self.get(id).await?;
        let mut job = before.clone();
        if job.retry() == 0 {
            let why = if job.ended.is_some() { "nothing of it failed" } else { "it goes on" };
            return Err(Error::Refused(format!("preheat {id}: {why}")));
        }
        let cluster = job.cluster.clone();
        job.refuse(|node| self.cannot(&cluster, node), now());
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

    /// Why a live node is not given an order: a job does not follow whoever has moved, and an old node would not answer.
    fn cannot(&self, cluster: &ClusterId, node: &NodeId) -> Option<String> {
        match self.nodes.cluster_of(node) {
            Some(now) if now != *cluster => return Some("it is in another cluster now".into()),
            None if self.nodes.session_of(node).is_some() => return Some("it is in no cluster now".into()),
            _ => {}
        }
        let version = self.nodes.without_orders(node)?;
        Some(format!("its shoal-node, version {version}, is an older one that takes no orders: upgrade it, then retry"))
    }

    fn take_up(&self, job: Job, login: Option<(String, String)>) {
        let mut inner = self.inner.lock();
        let id = job.id.clone();
        inner.dirty.remove(&id);
        if job.ended.is_some() {
            // No node of it takes orders: there is nothing to wait for.
            inner.dirty.insert(id.clone());
            self.dirty.notify_one();
        }
        inner.live.insert(id.clone(), Live { job, login, orders: HashMap::new() });
        self.metrics.running.set(inner.live.len() as i64);
        drop(inner);
        self.send_orders();
        _ = self.changes.send(id);
    }

    fn let_go(&self, job: &Job) {
        let mut inner = self.inner.lock();
        inner.live.remove(&job.id);
        inner.dirty.remove(&job.id);
        self.metrics.running.set(inner.live.len() as i64);
        drop(inner);
        _ = self.changes.send(job.id.clone());
    }

    async fn write(&self, job: &Job, audit: Option<&AuditEntry>) -> Result<(), Error> {
        let row = PreheatRow {
            id: job.id.clone(),
            created: job.created,
            ended: job.ended,
            job: serde_json::to_value(job).unwrap_or_default(),
        };
        Ok(self.store.put_preheat(&row, audit).await?)
    }

    /// Each node that is due and there has its order, in the session that it has now.
    fn send_orders(&self) {
        let mut inner = self.inner.lock();
        let Inner { live, dirty } = &mut *inner;
        let (now, seconds) = (Instant::now(), now());
        for Live { job, login, orders } in live.values_mut() {
            let mut failed = Vec::new();
            for (node, attempt) in job.due() {
                let sent = orders.entry(node.clone()).or_insert_with(|| Sent::new(attempt, now));
                if sent.attempt != attempt {
                    *sent = Sent::new(attempt, now);
                }
                let Some(session) = self.nodes.session_of(&node) else {
                    if now - *sent.away.get_or_insert(now) > AWAY {
                        failed.push((node, format!("it was away for {} s", AWAY.as_secs())));
                    }
                    continue;
                };
                sent.away = None;
                if let Some(why) = self.cannot(&job.cluster, &node) {
                    if sent.session == Some(session) {
                        // It was told while it was there.
                        let order_id = order_id(&job.id, attempt);
                        self.nodes.order(&node, wire::FetchOrder { order_id, cancelled: true, ..Default::default() });
                    }
                    failed.push((node, why));
                    continue;
                }
                if sent.session == Some(session) {
                    match sent.heard {
                        None if now - sent.said > ANSWER => {
                            failed.push((node, "it does not answer to orders".into()));
                        }
                        Some(heard) if now - heard > SILENCE => {
                            failed.push((node, format!("it was silent for {} s", SILENCE.as_secs())));
                        }
                        _ => {}
                    }
                } else if self.nodes.order(&node, order(job, login.as_ref(), attempt)) {
                    (sent.session, sent.said) = (Some(session), now);
                }
            }
            for (node, why) in failed {
                job.fail(&node, why, seconds);
                dirty.insert(job.id.clone());
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
                live.job.manifest == job.manifest && states(&live.job) == states(&job)
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
    let PreheatRow { id, job, .. } = row;
    serde_json::from_value(job)
        .map_err(|error| store::Error::Failed { doing: format!("read preheat {id}"), source: Box::new(error) })
}

fn bad(field: &'static str, why: String) -> Error {
    Error::Bad { field, why }
}

fn image(text: &str) -> Result<Image, Error> {
    let wrong = |why: String| bad("image", format!("{text:?} names no image: {why}"));
    if text.len() > 1024 {
        return Err(bad("image", "longer than 1024 bytes".into()));
    }
    let parsed: Reference = text.parse().map_err(|error| wrong(format!("{error}")))?;
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
            "cluster": job.cluster,
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
