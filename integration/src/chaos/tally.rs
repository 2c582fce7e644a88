//! What became of pulls: counted by how the first try went, and everything that must not happen, in words.
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Counts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Pulls that were asked.
    pub asked: u64,
    /// Pulls that ended well.
    pub ended: u64,
    /// Of those: at the first try.
    pub at_once: u64,
    /// Of those: pulls with containerd.
    pub by_containerd: u64,
    /// First tries that failed, by why.
    pub first_failed: BTreeMap<String, u64>,
    /// Later tries that failed, by why.
    pub later_failed: BTreeMap<String, u64>,
    /// What sent a plain client on from the mirror to the registry within a try, by why.
    pub sent_on: BTreeMap<String, u64>,
    /// Bodies that were broken off and went on by Range.
    pub continued: u64,
    /// Bytes through mirrors.
    pub mirror_bytes: u64,
    /// Bytes that plain clients read from the registry past us.
    pub past_us_bytes: u64,
    /// Most tries of one pull.
    pub most_tries: u32,
    /// The longest time until a mirror's headers, in seconds.
    pub slowest_headers: f64,
    /// The longest pull, in seconds.
    pub longest_pull: f64,
    /// What must not happen.
    pub wrong: Vec<String>,
}

/// A tally that all pullers share.
#[derive(Debug, Clone, Default)]
pub struct Shared(Arc<Mutex<Tally>>);

/// What is kept of things that must not happen: the rest is only more of it.
const MOST_WRONG: usize = 50;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy as it is now.
    pub fn now(&self) -> Tally {
        self.lock().clone()
    }

    pub(super) fn asked(&self) {
        self.lock().asked += 1;
    }

    pub(super) fn ended(&self, tries: u32, took: Duration, by_containerd: bool) {
        let mut tally = self.lock();
        tally.ended += 1;
        tally.at_once += u64::from(tries == 1);
        tally.by_containerd += u64::from(by_containerd);
        tally.most_tries = tally.most_tries.max(tries);
        tally.longest_pull = tally.longest_pull.max(took.as_secs_f64());
    }

    pub(super) fn failed(&self, tries: u32, why: String) {
        let mut tally = self.lock();
        let by_why = if tries == 1 { &mut tally.first_failed } else { &mut tally.later_failed };
        *by_why.entry(why).or_default() += 1;
    }

    pub(super) fn sent_on(&self, why: String) {
        *self.lock().sent_on.entry(why).or_default() += 1;
    }

    pub(super) fn continued(&self) {
        self.lock().continued += 1;
    }

    pub(super) fn headers_after(&self, waited: Duration) {
        let mut tally = self.lock();
        tally.slowest_headers = tally.slowest_headers.max(waited.as_secs_f64());
    }

    pub(super) fn got(&self, bytes: u64, past_us: bool) {
        let mut tally = self.lock();
        *(if past_us { &mut tally.past_us_bytes } else { &mut tally.mirror_bytes }) += bytes;
    }

    pub(super) fn wrong(&self, what: String) {
        let mut tally = self.lock();
        if tally.wrong.len() < MOST_WRONG {
            tally.wrong.push(what);
        }
    }
}

impl Tally {
    /// As text.
    pub fn text(&self) -> String {
        let mut out = format!(
            "pulls: {} asked, {} ended, {} of them at the first try, {} by containerd; at most {} tries, {:.1} s\n",
            self.asked, self.ended, self.at_once, self.by_containerd, self.most_tries, self.longest_pull
        );
        let _ = writeln!(
            out,
            "bytes: {:.0} MiB through mirrors, {:.0} MiB past us; {} bodies went on by Range; headers after {:.1} s at most",
            self.mirror_bytes as f64 / f64::from(1 << 20),
            self.past_us_bytes as f64 / f64::from(1 << 20),
            self.continued,
            self.slowest_headers
        );
        for (what, counts) in [
            ("first try failed", &self.first_failed),
            ("later try failed", &self.later_failed),
            ("sent on to the registry", &self.sent_on),
        ] {
            for (why, count) in counts {
                let _ = writeln!(out, "{what}, x{count}: {why}");
            }
        }
        out
    }
}
