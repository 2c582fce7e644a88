//! Ending in order: one signal that everybody hears, and a count of the work that is still going on.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Makes a trigger and what it drains.
#[must_use]
pub fn channel() -> (Trigger, Drain) {
    let drain = Drain { token: CancellationToken::new(), tracker: TaskTracker::new() };
    (Trigger { drain: drain.clone() }, drain)
}

/// Held by everything that lives long. Clones share one signal and one count.
#[derive(Debug, Clone)]
pub struct Drain {
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Drain {
    /// Returns once the signal came, at once if it came before. Cancel safe.
    pub async fn signalled(&self) {
        self.token.cancelled().await;
    }

    /// Whether the signal came.
    #[must_use]
    pub fn is_signalled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// How much work is going on.
    #[must_use]
    pub fn working(&self) -> usize {
        self.tracker.len()
    }

    /// Counts as work until it is dropped: the process does not end before, within its grace.
    #[must_use]
    pub fn guard(&self) -> Guard {
        Guard { _counted: self.tracker.token() }
    }
}

/// Work that is going on.
#[derive(Debug, Clone)]
pub struct Guard {
    _counted: TaskTrackerToken,
}

/// The other end: says that it is time to end. Dropping it says nothing.
#[derive(Debug)]
pub struct Trigger {
    drain: Drain,
}

impl Trigger {
    /// Gives the signal. Twice is the same as once.
    pub fn fire(&self) {
        self.drain.token.cancel();
    }

    /// Gives the signal, if it was not given, and waits until no work is going on. False: `grace` was over first.
    pub async fn drained(self, grace: Duration) -> bool {
        self.fire();
        self.drain.tracker.close();
        tokio::time::timeout(grace, self.drain.tracker.wait()).await.is_ok()
    }
}

/// SIGTERM and SIGINT, by which a process is asked to end: once for in order, twice for at once.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens from now on; without this the first one kills the process.
    ///
    /// # Errors
    /// When the process can't listen for signals.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Returns at the next one, with its name. Cancel safe.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// SIGHUP, by which a process is asked to read its settings again.
#[derive(Debug)]
pub struct Hangups(Signal);

impl Hangups {
    /// Listens from now on; without this one kills the process.
    ///
    /// # Errors
    /// When the process can't listen for signals.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// Returns at the next one. Cancel safe.
    pub async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            // The runtime is ending, and none will come.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_work_and_no_longer() {
        let (trigger, drain) = channel();
        let guard = drain.guard();
        let worker = tokio::spawn({
            let drain = drain.clone();
            async move {
                drain.signalled().await;
                tokio::time::sleep(Duration::from_secs(3)).await;
                drop(guard);
            }
        });
        let start = tokio::time::Instant::now();
        assert!(trigger.drained(Duration::from_secs(60)).await);
        assert_eq!(start.elapsed().as_secs(), 3);
        assert!(drain.is_signalled());
        worker.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn gives_up_when_grace_is_over() {
        let (trigger, drain) = channel();
        let guard = drain.guard();
        assert_eq!(drain.working(), 1);
        assert!(!drain.is_signalled());
        assert!(!trigger.drained(Duration::from_secs(5)).await);
        drop(guard);
    }

    #[tokio::test(start_paused = true)]
    async fn ends_at_once_without_work() {
        let (trigger, drain) = channel();
        drop(drain.guard());
        trigger.fire();
        drain.signalled().await;
        assert!(trigger.drained(Duration::ZERO).await);
    }
}
