//! What control costs with ten thousand nodes: sessions with heartbeats, `Find` against many holders, and a scope that changes.
//!
//! The nodes are simulated; control is the program itself, a child of this one, on loopback. Each node has one TCP connection and speaks gRPC
//! as `shoal-node` does, without certificates. A `Find` counts from the moment at which it is due, so that a control that falls behind shows it.
use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;
use tokio::sync::mpsc;

use super::{MIB, cpu};
use crate::memory::own_now;

mod child;
mod crowd;
mod echo;

use child::Child;
use crowd::{Moved, Peer};
use echo::Echo;

/// Nodes that connect at once: control takes that many handshakes at a time.
const AT_ONCE: usize = 64;
/// After everything was said: the allocator gives back what it needed for the rush.
const REST: Duration = Duration::from_secs(3);
/// Between two nodes that say what they hold: ten thousand do so within ten seconds, as after a restart of control.
const GAP: Duration = Duration::from_millis(1);
/// How often a scope is changed.
const CHANGES: usize = 5;
/// Nodes in the network that moves.
const MOVE: usize = 16;

/// What is measured with.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Plan {
    pub(super) sessions: usize,
    pub(super) digests: usize,
    pub(super) holders: usize,
    pub(super) clusters: usize,
    /// By the second.
    pub(super) finds: u64,
    pub(super) seconds: u64,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Measured {
    #[serde(flatten)]
    plan: Plan,
    find_p50_ms: f64,
    find_p99_ms: f64,
    find_max_ms: f64,
    /// Of those times, what went by before the bench, on the same cores, came to ask.
    late_p99_ms: f64,
    /// What a byte to another thread and back took meanwhile, since it was due: that of the machine, not of control.
    echo_p99_ms: f64,
    /// Of control, while it was asked.
    cpu_cores: f64,
    /// What the process has for itself at the end.
    rss_mib: f64,
    /// Before anybody came.
    idle_mib: f64,
    /// What a session takes that holds nothing.
    bytes_per_session: f64,
    /// What one more holder of a blob takes.
    bytes_per_holding: f64,
    connect_s: f64,
    announce_s: f64,
    /// All nodes decided again: a change that is only thought through.
    redecide_ms: f64,
    /// From the request that changes a scope to the last word to a node that it moves.
    scope_change_ms: f64,
    moved_nodes: usize,
}

/// Measures once.
///
/// # Errors
/// When control can't be started, or does not answer as it should.
pub(super) async fn measure(plan: Plan) -> Result<Measured> {
    shoal_base::listen::raise_open_files().context("raise the limit of open files")?;
    let dir = tempfile::tempdir().context("make a directory")?;
    let control = Child::start(dir.path(), plan.sessions).await?;
    control.make_clusters(plan.clusters).await?;
    let idle = own_now(control.pid())?;
    let (moved, mut moves) = mpsc::unbounded_channel();
    let since = Instant::now();
    let peers = Arc::new(connect(&plan, control.grpc, &moved).await?);
    let connect_s = since.elapsed().as_secs_f64();
    tokio::time::sleep(REST).await;
    let sessions = own_now(control.pid())?;

    let since = Instant::now();
    announce(&plan, &peers).await?;
    control.holds((plan.digests * plan.holders) as u64).await?;
    let announce_s = since.elapsed().as_secs_f64();
    tokio::time::sleep(REST).await;
    let holdings = own_now(control.pid())?;

    let (before, since) = (cpu::spent(control.pid())?, Instant::now());
    let echo = Echo::start()?;
    let (mut times, mut late) = ask(&plan, &peers).await?;
    let echoes = echo.times()?;
    let cpu_cores = (cpu::spent(control.pid())? - before).as_secs_f64() / since.elapsed().as_secs_f64();
    times.sort_unstable();
    late.sort_unstable();
    let rss = own_now(control.pid())?;
    control.has_all(plan.sessions as u64).await?;
    let of = |times: &[Duration], share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;

    while moves.try_recv().is_ok() {}
    let (redecide, change) = rescope(&control, &mut moves).await?;
    let each = |bytes: u64, before: u64, count: usize| bytes.saturating_sub(before) as f64 / count.max(1) as f64;
    Ok(Measured {
        find_p50_ms: of(&times, 0.5),
        find_p99_ms: of(&times, 0.99),
        find_max_ms: of(&times, 1.0),
        late_p99_ms: of(&late, 0.99),
        echo_p99_ms: of(&echoes, 0.99),
        cpu_cores,
        rss_mib: rss as f64 / MIB,
        idle_mib: idle as f64 / MIB,
        bytes_per_session: each(sessions, idle, plan.sessions),
        bytes_per_holding: each(holdings, sessions, plan.digests * plan.holders),
        connect_s,
        announce_s,
        redecide_ms: redecide.as_secs_f64() * 1000.0,
        scope_change_ms: change.as_secs_f64() * 1000.0,
        moved_nodes: MOVE,
        plan,
    })
}

/// All sessions, a few at a time.
async fn connect(plan: &Plan, grpc: SocketAddr, moved: &mpsc::UnboundedSender<Moved>) -> Result<Vec<Peer>> {
    use futures::{StreamExt as _, TryStreamExt as _};
    let joining = (0..plan.sessions).map(|number| Peer::join(grpc, number, moved.clone()));
    futures::stream::iter(joining).buffered(AT_ONCE).try_collect().await
}

/// Who holds a digest: far from each other, and each node as many.
fn holder(plan: &Plan, digest: usize, holder: usize) -> usize {
    (digest * 7919 + holder * (plan.sessions / plan.holders.max(1)) + holder) % plan.sessions
}

async fn announce(plan: &Plan, peers: &[Peer]) -> Result<()> {
    let mut held: Vec<Vec<usize>> = vec![Vec::new(); peers.len()];
    for digest in 0..plan.digests {
        (0..plan.holders).for_each(|one| held[holder(plan, digest, one)].push(digest));
    }
    let mut pace = tokio::time::interval(GAP);
    for (peer, digests) in peers.iter().zip(held) {
        pace.tick().await;
        peer.announce(&digests).await?;
    }
    Ok(())
}

/// So many by the second, each by a node that does not hold it: how long each took since it was due, and how late it was asked.
async fn ask(plan: &Plan, peers: &Arc<Vec<Peer>>) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let mut random = StdRng::seed_from_u64(1);
    let (done, mut times) = mpsc::unbounded_channel();
    let gap = Duration::from_secs(1) / u32::try_from(plan.finds)?;
    let (begin, count) = (tokio::time::Instant::now(), plan.finds * plan.seconds);
    for number in 0..count {
        let due = begin + gap * u32::try_from(number)?;
        tokio::time::sleep_until(due).await;
        let digest = random.random_range(0..plan.digests);
        let asker = loop {
            let asker = random.random_range(0..peers.len());
            if (0..plan.holders).all(|one| holder(plan, digest, one) != asker) {
                break asker;
            }
        };
        let (peers, done, holders) = (Arc::clone(peers), done.clone(), plan.holders);
        tokio::spawn(async move {
            let late = due.elapsed();
            let named = peers[asker].find(digest).await;
            let _ = done.send(named.map(|named| (named, due.elapsed(), late, holders)));
        });
    }
    drop(done);
    let (mut all, mut lates) =
        (Vec::with_capacity(usize::try_from(count)?), Vec::with_capacity(usize::try_from(count)?));
    while let Some(found) = times.recv().await {
        let (named, took, late, holders) = found?;
        ensure!(named == holders.min(16), "{named} parents were named of {holders} holders");
        all.push(took);
        lates.push(late);
    }
    ensure!(all.len() as u64 == count, "{} answers to {count} questions", all.len());
    Ok((all, lates))
}

/// A scope that takes some nodes in, and lets them go: the median of how long it takes to decide all nodes, and to change it.
async fn rescope(control: &Child, moves: &mut mpsc::UnboundedReceiver<Moved>) -> Result<(Duration, Duration)> {
    let (mut decides, mut changes) = (Vec::new(), Vec::new());
    for turn in 0..CHANGES {
        let network = if turn % 2 == 0 { crowd::network(MOVE) } else { child::nowhere(1) };
        decides.push(control.rescope(1, &network, true).await?);
        let since = Instant::now();
        control.rescope(1, &network, false).await?;
        let mut last = since;
        for _ in 0..MOVE {
            let moved = tokio::time::timeout(Duration::from_secs(10), moves.recv()).await;
            last = last.max(moved.context("a node was not moved within 10 s")?.context("no node is left")?.at);
        }
        changes.push(last - since);
    }
    decides.sort_unstable();
    changes.sort_unstable();
    Ok((decides[CHANGES / 2], changes[CHANGES / 2]))
}

impl Measured {
    /// As a table.
    pub(super) fn table(&self) -> String {
        let Plan { sessions, digests, holders, clusters, finds, seconds } = &self.plan;
        format!(
            "{sessions} sessions with a heartbeat a second, {finds} Find a second for {seconds} s over {digests} digests with {holders} holders each, {clusters} clusters\n\
             find_p50_ms {:.2}, find_p99_ms {:.2} (aim: below 10), most {:.2}; asked late_p99_ms {:.2}, meanwhile echo_p99_ms {:.2}\n\
             cpu_cores {:.2} (aim: below 1), rss_mib {:.0} (aim: below 400), idle {:.0}\n\
             bytes_per_session {:.0}, bytes_per_holding {:.0}; connected in {:.1} s, announced in {:.1} s\n\
             redecide_ms {:.1} (aim: below 200), a scope that moves {} nodes: {:.1} ms to the last of them\n",
            self.find_p50_ms,
            self.find_p99_ms,
            self.find_max_ms,
            self.late_p99_ms,
            self.echo_p99_ms,
            self.cpu_cores,
            self.rss_mib,
            self.idle_mib,
            self.bytes_per_session,
            self.bytes_per_holding,
            self.connect_s,
            self.announce_s,
            self.redecide_ms,
            self.moved_nodes,
            self.scope_change_ms,
        )
    }
}

/// A file's text in a directory of the bench.
fn write(dir: &Path, name: &str, text: &str) -> Result<std::path::PathBuf> {
    let path = dir.join(name);
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}
