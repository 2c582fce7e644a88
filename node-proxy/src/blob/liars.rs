//! Nodes that have lied to this one: who is not asked as a parent, and who is not believed as an author.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_proto::NodeId;
use tokio::sync::watch;

/// More are not remembered: control shuns them as well.
const MOST: usize = 1024;

/// Remembered as long as a digest that did not match is refused.
#[derive(Default)]
pub(super) struct Liars {
    parents: Mutex<HashMap<NodeId, Instant>>,
    authors: Mutex<HashMap<NodeId, Instant>>,
    changed: watch::Sender<()>,
}

impl Liars {
    /// A parent sent what did not match the list.
    pub(super) fn add_parent(&self, node: &NodeId, life: Duration) {
        note(&self.parents, node, life);
    }

    /// A list did not match its blob: its author is believed nothing more, and not asked either.
    pub(super) fn add_author(&self, node: &NodeId, life: Duration) {
        note(&self.parents, node, life);
        note(&self.authors, node, life);
        self.changed.send_replace(());
    }

    pub(super) fn is_parent(&self, node: &NodeId, life: Duration) -> bool {
        is_noted(&self.parents, node, life)
    }

    pub(super) fn is_author(&self, node: &NodeId, life: Duration) -> bool {
        is_noted(&self.authors, node, life)
    }

    /// Changes when an author is added.
    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

fn note(liars: &Mutex<HashMap<NodeId, Instant>>, node: &NodeId, life: Duration) {
    let mut liars = liars.lock();
    liars.retain(|_, since| since.elapsed() < life);
    if liars.len() < MOST {
        liars.insert(node.clone(), Instant::now());
    }
}

fn is_noted(liars: &Mutex<HashMap<NodeId, Instant>>, node: &NodeId, life: Duration) -> bool {
    liars.lock().get(node).is_some_and(|since| since.elapsed() < life)
}
