//! Finding a blob without control: the parents that are known are asked, all at once, for a blob that one holds whole.

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use shoal_proto::{Digest, Layout};

use super::wire::Loss;
use super::{Answer, Located, Parent, Sighting, Swarm};

/// So many are asked at once; more would be a broadcast.
const MOST: usize = 16;

impl Swarm {
    /// Asks parents that may know nothing of the blob, and gives what the first one says that holds it whole, with a complete
    /// list. What a parent has only in part it can't vouch for (I1). Cancel safe.
    pub async fn locate(&self, digest: Digest, parents: &[Parent]) -> Sighting {
        let mut asked: FuturesUnordered<_> =
            parents.iter().take(MOST).map(|parent| self.located_at(parent, digest)).collect();
        let mut seen = Sighting::Nowhere;
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(Some(located)) => return Sighting::Whole(located),
                Ok(None) => seen = Sighting::Part,
                Err((parent, loss)) => {
                    tracing::debug!(%digest, peer.node = %parent.node, error = %loss, "not located there");
                }
            }
        }
        seen
    }

    async fn located_at<'a>(&self, parent: &'a Parent, digest: Digest) -> Result<Option<Located>, (&'a Parent, Loss)> {
        self.located(parent, digest).await.map_err(|loss| (parent, loss))
    }

    /// `None`: it has the blob in part.
    async fn located(&self, parent: &Parent, digest: Digest) -> Result<Option<Located>, Loss> {
        // No block is asked for, so the smallest bound on blocks will do.
        let smallest = Layout::of(1).expect("a blob of one byte has a layout");
        let (mut connection, served) = match self.open(parent, &super::open_frame(digest, 0), smallest).await? {
            Answer::Blob(connection, served) => (connection, served),
            Answer::Busy(connection, after) => {
                self.rest(parent.clone(), connection);
                return Err(Loss::Busy(after));
            }
        };
        if !served.whole {
            self.rest(parent.clone(), connection);
            return Ok(None);
        }
        let layout = Layout::of(served.size).map_err(|error| Loss::Protocol(error.to_string()))?;
        let list = Self::read_list(&mut connection, layout).await?;
        self.rest(parent.clone(), connection);
        if !list.is_complete() {
            return Err(Loss::Protocol("it holds the blob whole and does not know its whole list".into()));
        }
        Ok(Some(Located { parent: parent.clone(), size: served.size, media_type: served.media_type, list }))
    }
}
