//! Who pulls all the time: plain clients on every node, and containerd on some. A pull that fails is asked again, as kubelet does,
//! until it ends well.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tokio::task::JoinHandle;

use super::{
    client::{PlainClient, Pushed},
    plan::pulls,
    tally::Shared,
};
use crate::containerd::Puller;

/// Before the second try, doubled before each later one, as kubelet's but faster.
const REST: Duration = Duration::from_millis(500);
const LONGEST_REST: Duration = Duration::from_secs(5);
/// `crictl` may not hang on one try for longer: all that can go wrong at once takes less.
const CRICTL_TRY: Duration = Duration::from_secs(240);

/// What pulls.
pub(super) enum With {
    Plain(Box<PlainClient>),
    Containerd { puller: Puller, node: String },
}

/// All that pull. Dropped, they are ended in the middle of what they do.
pub(super) struct Pullers {
    running: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Pullers {
    /// Starts them.
    pub(super) fn start(seed: u64, images: Arc<Vec<Pushed>>, all: Vec<With>, tally: &Shared) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let running = all.into_iter().enumerate().map(|(number, with)| {
            let (images, tally, stop) = (images.clone(), tally.clone(), stop.clone());
            tokio::spawn(async move {
                for (image, rest) in pulls(seed, number, images.len()) {
                    tokio::time::sleep(rest).await;
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    until_it_ends(&with, &images[image], &tally).await;
                }
            })
        });
        Self { running: running.collect(), stop }
    }

    /// Lets nothing new be asked, and waits until what was asked has ended.
    ///
    /// # Errors
    /// When a pull has not ended after `bound`.
    pub(super) async fn finish(mut self, bound: Duration) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = tokio::time::timeout(bound, futures::future::join_all(&mut self.running)).await;
        let late = self.running.iter().filter(|one| !one.is_finished()).count();
        ensure!(ended.is_ok(), "{late} pulls that were asked have not ended {bound:?} after the last fault");
        Ok(())
    }
}

impl Drop for Pullers {
    fn drop(&mut self) {
        self.running.iter().for_each(JoinHandle::abort);
    }
}

async fn until_it_ends(with: &With, image: &Pushed, tally: &Shared) {
    tally.asked();
    let since = Instant::now();
    let mut rest = REST;
    for tries in 1.. {
        match with.one_try(image, tally).await {
            Ok(()) => {
                tally.ended(tries, since.elapsed(), matches!(with, With::Containerd { .. }));
                break;
            }
            Err(why) => tally.failed(tries, why),
        }
        tokio::time::sleep(rest).await;
        rest = (rest * 2).min(LONGEST_REST);
    }
    with.forget(image).await;
}

impl With {
    async fn one_try(&self, image: &Pushed, tally: &Shared) -> Result<(), String> {
        match self {
            Self::Plain(client) => client.pull(image).await,
            Self::Containerd { puller, node } => {
                match tokio::time::timeout(CRICTL_TRY, puller.pull(&image.name())).await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(error)) => Err(in_short(&format!("{error:#}"))),
                    Err(_) => {
                        tally.wrong(format!("{node}: crictl pull {} ran for {CRICTL_TRY:?}", image.name()));
                        Err("crictl hung".to_owned())
                    }
                }
            }
        }
    }

    /// So that the next pull of it comes to us again.
    async fn forget(&self, image: &Pushed) {
        if let Self::Containerd { puller, .. } = self {
            // It may be gone already, with a containerd that was just started.
            let _ = puller.remove(&image.name()).await;
        }
    }
}

/// What `crictl` says, without what differs from pull to pull.
fn in_short(said: &str) -> String {
    let reasons = [
        ("wrong digest", &["unexpected commit digest"][..]),
        ("wrong size", &["unexpected commit size", "failed size validation"]),
        ("reset", &["connection reset"]),
        ("refused", &["connection refused"]),
        ("no route", &["no route to host", "network is unreachable"]),
        ("timed out", &["i/o timeout", "deadline exceeded", "timed out", "Client.Timeout", "timeout awaiting"]),
        ("bad certificate", &["x509", "certificate"]),
        ("401", &["401"]),
        ("429", &["429"]),
        ("503", &["503"]),
        ("not found", &["not found"]),
        ("unexpected EOF", &["unexpected EOF", "EOF"]),
    ];
    let found = reasons.iter().find(|(_, marks)| marks.iter().any(|mark| said.contains(mark)));
    match found {
        Some((reason, _)) => format!("crictl: {reason}"),
        None => format!(
            "crictl: {}",
            said.chars().rev().take(160).collect::<Vec<_>>().into_iter().rev().collect::<String>()
        ),
    }
}
