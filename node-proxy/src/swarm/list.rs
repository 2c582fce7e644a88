//! The body of a sealed piece list, from a parent, checked against the root that control vouches for.

use shoal_proto::frame::Frame;
use shoal_proto::{Digest, Hash, Layout, PieceList};

use super::wire::{Connection, Loss};
use super::{ListError, Parent, Swarm};

impl Swarm {
    /// Asks the parents in turn, those that hold the blob whole first, until one sends a complete list that hashes to
    /// `root`. Cancel safe.
    ///
    /// # Errors
    /// When none did: that a parent lied if one did, else why the last one could not be asked.
    pub async fn fetch_list(
        &self,
        digest: Digest,
        layout: Layout,
        root: Hash,
        parents: &[Parent],
    ) -> Result<PieceList, ListError> {
        let mut worst = ListError::NoParent;
        let whole = parents.iter().filter(|parent| parent.complete);
        for parent in whole.chain(parents.iter().filter(|parent| !parent.complete)) {
            let node = parent.node.clone();
            let error = match self.list_from(parent, digest, layout).await {
                Ok(list) if list.root() == Some(root) => return Ok(list),
                Ok(list) if list.is_complete() || parent.complete => ListError::Lied { node },
                Ok(_) => ListError::Lost { node, why: "it does not know the whole list".into() },
                Err(Loss::Lied(_)) => ListError::Lied { node },
                Err(loss) => {
                    self.metrics.count_loss(&loss);
                    ListError::Lost { node, why: loss.to_string() }
                }
            };
            tracing::debug!(%digest, error = %error, "piece list not had");
            if !matches!(worst, ListError::Lied { .. }) {
                worst = error;
            }
        }
        Err(worst)
    }

    async fn list_from(&self, parent: &Parent, digest: Digest, layout: Layout) -> Result<PieceList, Loss> {
        let open = super::open_frame(digest);
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
        // Every part but the last carries a hash, and none may repeat, so this ends.
        loop {
            match connection.next_in_time().await? {
                Frame::List { hashes, .. } if hashes.is_empty() => return Ok(list),
                Frame::List { first, hashes } => {
                    let known = list.known();
                    list.set_run(first, &hashes).map_err(|conflict| Loss::Lied(conflict.0))?;
                    if list.known() == known {
                        return Err(Loss::Protocol("a list part repeats what is known".into()));
                    }
                }
                Frame::Have(_) | Frame::Wait => {}
                Frame::Gone => return Err(Loss::Gone),
                Frame::Refused(refusal) => return Err(Loss::Refused(refusal)),
                _ => return Err(Loss::Protocol("unexpected frame instead of the list".into())),
            }
        }
    }
}
