//! The body of a sealed piece list, from a parent, checked against the root that control vouches for.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use shoal_proto::frame::Frame;
use shoal_proto::{Digest, Hash, Layout, PieceList};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::wire::{Connection, Loss};
use super::{Event, ListError, Parent, Swarm};

/// Before the next parent is asked beside the one that has not answered: no block can be checked without the list, so one slow
/// parent must not use up the first byte's budget (I8). Reading 256 KiB takes less.
const NEXT_PARENT: Duration = Duration::from_millis(500);

impl Swarm {
    /// Asks the parents, those that hold the blob whole first, until one sends a complete list that hashes to `root`: the next
    /// one when one fails, or beside it when it is slow. Who sent another list is told to `events` at once. Cancel safe.
    ///
    /// # Errors
    /// When none did: that a parent lied if one did, else why the last one could not be asked.
    pub async fn fetch_list(
        &self,
        digest: Digest,
        layout: Layout,
        root: Hash,
        parents: &[Parent],
        events: mpsc::Sender<Event>,
    ) -> Result<PieceList, ListError> {
        let mut worst = ListError::NoParent;
        let whole = parents.iter().filter(|parent| parent.complete);
        let mut left = whole.chain(parents.iter().filter(|parent| !parent.complete));
        let mut asked = FuturesUnordered::new();
        let ask = |parent| self.checked_list_from(parent, digest, layout, root);
        let first = left.next();
        let mut waited = first.map(|parent| &parent.node);
        asked.extend(first.map(ask));
        let mut more = true;
        loop {
            tokio::select! {
                answer = asked.next() => match answer {
                    None => return Err(worst),
                    Some(Ok(list)) => return Ok(list),
                    Some(Err(error)) => {
                        if let ListError::Lied { node } = &error {
                            self.metrics.refused_lists.inc();
                            // A reader that is gone has no use for it.
                            let _ = events.send(Event::LiedOfList { node: node.clone() }).await;
                        }
                        if !matches!(worst, ListError::Lied { .. }) {
                            worst = error;
                        }
                        let next = left.next();
                        waited = next.map(|parent| &parent.node);
                        asked.extend(next.map(ask));
                    }
                },
                () = sleep(NEXT_PARENT), if more => match left.next() {
                    Some(parent) => {
                        self.metrics.late.inc();
                        let node = waited.replace(&parent.node).map(ToString::to_string);
                        tracing::info!(%digest, peer.node = node, "parent is late with what it shows: its piece list");
                        asked.push(ask(parent));
                    }
                    None => more = false,
                },
            }
        }
    }

    async fn checked_list_from(
        &self,
        parent: &Parent,
        digest: Digest,
        layout: Layout,
        root: Hash,
    ) -> Result<PieceList, ListError> {
        let node = parent.node.clone();
        let patience = self.config.patience;
        let answer = timeout(patience, self.list_from(parent, digest, layout)).await;
        match answer.unwrap_or(Err(Loss::Waits(patience))) {
            Ok(list) if list.root() == Some(root) => Ok(list),
            Ok(list) if list.is_complete() || parent.complete => Err(ListError::Lied { node }),
            Ok(_) => Err(ListError::Lost { node, why: "it does not know the whole list".into() }),
            Err(Loss::Lied(_)) => Err(ListError::Lied { node }),
            Err(loss) => {
                self.metrics.count_loss(&loss);
                loss.log(&digest, &node, false);
                Err(ListError::Lost { node, why: loss.to_string() })
            }
        }
    }

    async fn list_from(&self, parent: &Parent, digest: Digest, layout: Layout) -> Result<PieceList, Loss> {
        let open = super::open_frame(digest, 0);
        let (mut connection, served) = match self.open(parent, &open, layout).await? {
            super::Answer::Blob(connection, served) => (connection, served),
            super::Answer::Busy(_, after) => return Err(Loss::Busy(after)),
        };
        if served.size != layout.size() {
            return Err(Loss::Protocol(format!("its blob has {} bytes", served.size)));
        }
        let list = Self::read_list(&mut connection, layout).await?;
        self.rest(parent.clone(), connection);
        Ok(list)
    }

    /// As much of the list as the parent knows of the blob that is open on the connection.
    pub(super) async fn read_list(connection: &mut Connection, layout: Layout) -> Result<PieceList, Loss> {
        connection.send(&Frame::WantList).await?;
        let mut list = PieceList::new(layout);
        let silence = connection.silence;
        let mut heard = Instant::now();
        // Every part but the last carries a hash, and none may repeat, so this ends.
        loop {
            let frame = timeout(silence.saturating_sub(heard.elapsed()), connection.next());
            match frame.await.map_err(|_| Loss::Waits(silence))?? {
                Frame::List { hashes, .. } if hashes.is_empty() => return Ok(list),
                Frame::List { first, hashes } => {
                    let known = list.known();
                    list.set_run(first, &hashes).map_err(|conflict| Loss::Lied(conflict.0))?;
                    if list.known() == known {
                        return Err(Loss::Protocol("a list part repeats what is known".into()));
                    }
                    heard = Instant::now();
                }
                // What it has or waits for says nothing about the list, which it knows or does not.
                Frame::Have(_) | Frame::Wait => {}
                Frame::Gone => return Err(Loss::Gone),
                Frame::Refused(refusal) => return Err(Loss::Refused(refusal)),
                _ => return Err(Loss::Protocol("unexpected frame instead of the list".into())),
            }
        }
    }
}
