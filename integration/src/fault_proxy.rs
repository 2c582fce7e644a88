//! A proxy before the real registry that breaks some answers: the first few that match, or all that go to our daemons.
//!
//! It speaks TLS with the lab's certificate at the registry's address, HTTP/1.1 only, and hands every request on to the
//! registry, which then stands on loopback of the same machine and takes no TLS. What it does not break passes through as it
//! is. It keeps the access log, since it alone sees who asked and how much of an answer got through; a line is there from the
//! moment its request came, and its bytes grow.
//!
//! Worlds that measure the registry itself have no such proxy: see [`crate::world::WorldPlan::origin`].
use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use http::{Method, StatusCode};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::{
    net::Netns,
    registry::{AccessLine, HOST},
    rights::Rights,
    tls::Authority,
};

mod answer;
mod body;
mod serve;
mod wire;

/// What `User-Agent` of our daemons begins with.
pub const OURS: &str = "shoal-node/";

/// Who has such a URL may read what it names: as storage services sign them, to which registries send their clients. Nobody is
/// there who would take this one.
pub const SIGNATURE: &str = "5f4dcc3b5aa765d61d8327deb882cf99e3b0c44298fc1c149afbf4c8996fb924";

/// What goes wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends by FIN in the middle of the body.
    Fin,
    /// The connection ends by RST in the middle of the body.
    Rst,
    /// Headers of a good answer, then FIN.
    NoByte,
    /// 503 without a word on when to come back.
    Unavailable,
    /// 429, to come back after so many seconds.
    TooMany(u32),
    /// The registry believes no token: 401 with its challenge.
    Unauthorized,
    /// A redirect to a machine that is not there, by a URL that is signed ([`SIGNATURE`]).
    DeadRedirect,
    /// Nothing for so long, then the answer.
    Silent(Duration),
    /// Half of the body, nothing for so long, then the rest.
    Stalled(Duration),
    /// Content-Length and body are of the first half alone.
    TooFewBytes,
    /// Content-Length and body have 64 KiB more than the content.
    TooManyBytes,
    /// The byte in the middle is another; the length is right.
    WrongByte,
    /// The certificate is of another host.
    WrongName,
    /// The certificate is of an authority that nobody trusts.
    Stranger,
}

impl Fault {
    /// Whether it hits connections, not answers.
    fn is_of_tls(self) -> bool {
        matches!(self, Self::WrongName | Self::Stranger)
    }
}

/// Who is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The first so many, whoever asks.
    First(usize),
    /// Every request of our daemons, and nobody else's. Of connections: every client that greets as rustls does, which
    /// containerd does not.
    Ours,
    /// Everything.
    All,
}

/// What is hit. Connections are hit whatever is asked on them later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// GET of these blobs.
    Blobs(Vec<String>),
    /// GET of this manifest, by its digest.
    Manifest(String),
    /// Every request.
    Requests,
}

/// A fault that waits for its victims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    /// What goes wrong.
    pub fault: Fault,
    /// For whom.
    pub who: Who,
    /// With what.
    pub what: What,
}

/// What is asked, as far as it decides who is hit.
struct Asked<'a> {
    method: &'a Method,
    path: &'a str,
    ours: bool,
}

impl Injection {
    fn hits(&self, asked: &Asked<'_>, before: usize) -> bool {
        let matches = match &self.what {
            What::Requests => true,
            What::Blobs(digests) => {
                let wanted = |digest| digests.iter().any(|one| one == digest);
                *asked.method == Method::GET && asked.path.rsplit_once("/blobs/").is_some_and(|(_, last)| wanted(last))
            }
            What::Manifest(digest) => {
                let wanted = |last| last == digest;
                *asked.method == Method::GET
                    && asked.path.rsplit_once("/manifests/").is_some_and(|(_, last)| wanted(last))
            }
        };
        matches && !self.fault.is_of_tls() && self.whom(asked.ours, before)
    }

    fn whom(&self, ours: bool, before: usize) -> bool {
        match self.who {
            Who::First(count) => before < count,
            Who::Ours => ours,
            Who::All => true,
        }
    }
}

/// A line of the log whose bytes still grow.
struct Entry {
    from: IpAddr,
    method: Method,
    path: String,
    agent: String,
    /// 0: not answered yet.
    status: AtomicU64,
    bytes: AtomicU64,
}

impl Entry {
    fn answered(&self, status: StatusCode) {
        self.status.store(status.as_u16().into(), Ordering::Relaxed);
    }

    fn sent(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn line(&self) -> AccessLine {
        AccessLine {
            from: self.from,
            method: self.method.to_string(),
            path: self.path.clone(),
            status: u16::try_from(self.status.load(Ordering::Relaxed)).unwrap_or(0),
            bytes: self.bytes.load(Ordering::Relaxed),
            agent: self.agent.clone(),
        }
    }
}

/// How many were hit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hits {
    /// Requests, or connections, of our daemons.
    pub ours: usize,
    /// All others: containerd's.
    pub others: usize,
}

impl Hits {
    /// Both.
    pub fn all(self) -> usize {
        self.ours + self.others
    }

    fn count(&mut self, ours: bool) {
        *(if ours { &mut self.ours } else { &mut self.others }) += 1;
    }
}

#[derive(Default)]
struct State {
    injection: Option<Injection>,
    hits: Hits,
    log: Vec<Arc<Entry>>,
}

/// What all connections share.
struct Shared {
    state: Mutex<State>,
    /// Grows when idle connections are to end.
    round: watch::Sender<u64>,
    ns: Netns,
    registry: SocketAddr,
    certificates: wire::Certificates,
    gate: Option<Rights>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fault of this request, counted; and its line in the log.
    fn judge(&self, from: SocketAddr, asked: &Asked<'_>, agent: &str) -> (Option<Fault>, Arc<Entry>) {
        let entry = Arc::new(Entry {
            from: from.ip(),
            method: asked.method.clone(),
            path: asked.path.to_owned(),
            agent: agent.to_owned(),
            status: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let mut state = self.state();
        state.log.push(entry.clone());
        let before = state.hits.all();
        let hit = state.injection.as_ref().filter(|injection| injection.hits(asked, before)).map(|one| one.fault);
        if hit.is_some() {
            state.hits.count(asked.ours);
        }
        (hit, entry)
    }

    /// The fault of this connection, counted.
    fn judge_connection(&self, ours: bool) -> Option<Fault> {
        let mut state = self.state();
        let before = state.hits.all();
        let of_tls = state.injection.as_ref().filter(|injection| injection.fault.is_of_tls());
        let hit = of_tls.filter(|injection| injection.whom(ours, before)).map(|injection| injection.fault);
        if hit.is_some() {
            state.hits.count(ours);
        }
        hit
    }
}

/// The proxy; dropped, it ends with all its connections.
pub struct FaultProxy {
    shared: Arc<Shared>,
    /// `None`: closed.
    accepting: Option<JoinHandle<()>>,
}

impl FaultProxy {
    /// Serves on the listener, for a registry without TLS that stands at `registry` in the same namespace. `dir` is for the
    /// authority that nobody trusts. With a `gate`, users are denied what is not theirs, before the registry is asked.
    ///
    /// # Errors
    /// When a certificate can't be made.
    pub fn spawn(
        listener: TcpListener,
        ns: &Netns,
        registry: SocketAddr,
        (dir, authority): (&Path, &Authority),
        gate: Option<Rights>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            round: watch::Sender::new(0),
            ns: ns.clone(),
            registry,
            certificates: wire::Certificates::make(HOST, dir, authority)?,
            gate,
        });
        let mut proxy = Self { shared, accepting: None };
        proxy.open(listener);
        Ok(proxy)
    }

    /// Serves on the listener, after it was closed.
    pub fn open(&mut self, listener: TcpListener) {
        self.accepting = Some(serve::accept(self.shared.clone(), listener));
    }

    /// Ends every connection and the listener. The log stays.
    pub async fn close(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            // Aborted, not failed: there is nothing to learn from its end.
            let _ = accepting.await;
        }
    }

    /// Whether it listens.
    pub fn is_open(&self) -> bool {
        self.accepting.is_some()
    }

    /// Breaks what matches from now on. Connections that stand idle are ended first, so that clients make new ones.
    pub fn inject(&self, injection: Injection) {
        let mut state = self.shared.state();
        state.injection = Some(injection);
        state.hits = Hits::default();
        drop(state);
        self.shared.round.send_modify(|round| *round += 1);
    }

    /// Breaks nothing more. What is broken already stays so.
    pub fn clear(&self) {
        self.shared.state().injection = None;
    }

    /// How many were hit since the last injection.
    pub fn hits(&self) -> Hits {
        self.shared.state().hits
    }

    /// The requests so far, in the order in which they came. Status 0: not answered yet.
    pub fn access_log(&self) -> Vec<AccessLine> {
        self.shared.state().log.iter().map(|entry| entry.line()).collect()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked<'a>(method: &'a Method, path: &'a str, ours: bool) -> Asked<'a> {
        Asked { method, path, ours }
    }

    #[test]
    fn the_first_that_match_are_hit_and_no_others() {
        let blobs = What::Blobs(vec!["sha256:aa".into()]);
        let first = Injection { fault: Fault::Fin, who: Who::First(2), what: blobs.clone() };
        let get = Method::GET;
        assert!(first.hits(&asked(&get, "/v2/a/b/blobs/sha256:aa", false), 1));
        assert!(!first.hits(&asked(&get, "/v2/a/b/blobs/sha256:aa", false), 2));
        assert!(!first.hits(&asked(&get, "/v2/a/b/blobs/sha256:ab", false), 0));
        assert!(!first.hits(&asked(&get, "/v2/a/b/manifests/sha256:aa", false), 0));
        assert!(!first.hits(&asked(&Method::HEAD, "/v2/a/b/blobs/sha256:aa", false), 0));
        let ours = Injection { fault: Fault::Fin, who: Who::Ours, what: blobs };
        assert!(ours.hits(&asked(&get, "/v2/a/b/blobs/sha256:aa", true), 99));
        assert!(!ours.hits(&asked(&get, "/v2/a/b/blobs/sha256:aa", false), 0));
    }

    #[test]
    fn a_fault_of_connections_hits_no_request() {
        let all = Injection { fault: Fault::Stranger, who: Who::All, what: What::Requests };
        assert!(!all.hits(&asked(&Method::GET, "/v2/", true), 0));
        assert!(all.whom(false, 9));
    }
}
