//! What a flight tells control, in the words of the wire; with certificates, signed.
//!
//! A signature costs its maker some 25 µs and each of those who follow the list some 80: hashes that come faster than every [`GAP`] are signed
//! together, the first at once. What is told after hashes is sent after them.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_proto::control::v1 as wire;
use shoal_proto::statement::Says;
use shoal_proto::{BlockIndex, Digest, Hash, NodeId};
use tokio::sync::mpsc::error::SendError;
use tokio::time::Instant;
use wire::find_request::Message as Say;

use super::lists::{Signs, held};
use super::{Holding, Outbox};
use crate::swarm::{OriginTrouble, Tell};

/// Between two signed parts of a list: a reader makes at most a hundred a second, which costs a follower less than a hundredth of a core. A block
/// takes as long on a link of 200 Mbit/s.
const GAP: Duration = Duration::from_millis(10);

/// The stream is gone.
type Gone = SendError<wire::FindRequest>;

/// One flight's words.
pub(super) struct Speaker {
    out: Outbox<wire::FindRequest>,
    digest: Digest,
    /// The blob's, when it is known: each part says it.
    size: Option<u64>,
    /// `None`: nothing is signed, and nothing waits.
    signs: Option<Signs>,
    /// Hashes that wait to be signed.
    waits: BTreeMap<BlockIndex, Hash>,
    signed: Option<Instant>,
}

impl Speaker {
    pub(super) fn new(out: Outbox<wire::FindRequest>, digest: Digest, size: Option<u64>, signs: Option<Signs>) -> Self {
        Self { out, digest, size, signs, waits: BTreeMap::new(), signed: None }
    }

    /// Says it, or lets hashes wait.
    pub(super) async fn say(&mut self, tell: Tell) -> Result<(), Gone> {
        let tell = match tell {
            Tell::Hashes { first, hashes } if self.signs.is_some() => {
                for (block, hash) in (first..).zip(hashes.as_chunks::<32>().0) {
                    self.waits.insert(block, *hash);
                }
                let due = self.signed.is_none_or(|signed| signed.elapsed() >= GAP);
                return if due { self.flush().await } else { Ok(()) };
            }
            tell => tell,
        };
        self.flush().await?;
        if let Tell::Headers { size, .. } = &tell {
            self.size = Some(*size);
        }
        let message = self.message(tell);
        self.send(message).await
    }

    /// Control is told that an author's word is not believed. Lost when there is no room: the flight goes on without.
    pub(super) fn doubt(&self, author: &NodeId) {
        let message = Say::Unproven(wire::Unproven { author: author.to_string() });
        let _ = self.out.try_send(wire::FindRequest { message: Some(message) });
    }

    /// Returns when hashes have waited for long enough; never while none wait.
    pub(super) async fn due(&self) {
        match self.signed {
            Some(signed) if !self.waits.is_empty() => tokio::time::sleep_until(signed + GAP).await,
            _ => std::future::pending().await,
        }
    }

    /// Signs what waits, a part for each run of blocks. Not cancel safe.
    pub(super) async fn flush(&mut self) -> Result<(), Gone> {
        if self.waits.is_empty() {
            return Ok(());
        }
        self.signed = Some(Instant::now());
        let mut parts: Vec<(BlockIndex, Vec<u8>)> = Vec::new();
        for (block, hash) in std::mem::take(&mut self.waits) {
            match parts.last_mut().filter(|(first, hashes)| first + (hashes.len() / 32) as u32 == block) {
                Some((_, hashes)) => hashes.extend_from_slice(&hash),
                None => parts.push((block, hash.to_vec())),
            }
        }
        for (first, hashes) in parts {
            let message = self.part(first, hashes);
            self.send(message).await?;
        }
        Ok(())
    }

    fn part(&self, first_block: BlockIndex, hashes: Vec<u8>) -> Say {
        let signature = self.sign(self.size, Says::Part { first: first_block, hashes: &hashes });
        Say::List(wire::ListPart { first_block, hashes, author: String::new(), signature })
    }

    fn sign(&self, size: Option<u64>, says: Says<'_>) -> Vec<u8> {
        let signed = self.signs.as_ref().zip(size).map(|(signs, size)| signs.sign(self.digest, size, says));
        signed.unwrap_or_default()
    }

    async fn send(&self, message: Say) -> Result<(), Gone> {
        self.out.send(wire::FindRequest { message: Some(message) }).await
    }

    fn message(&self, tell: Tell) -> Say {
        match tell {
            Tell::Headers { permit, size, media_type } => {
                let signature = self.sign(Some(size), Says::Head { media_type: &media_type });
                Say::Headers(wire::OriginHeaders { permit_id: permit, size, media_type, signature })
            }
            Tell::Hashes { first, hashes } => self.part(first, hashes.to_vec()),
            Tell::Trouble { permit, why } => {
                let (failure, after) = match why {
                    OriginTrouble::Unreachable => (wire::OriginFailure::Unreachable, 0),
                    OriginTrouble::NotFound => (wire::OriginFailure::NotFound, 0),
                    OriginTrouble::Denied => (wire::OriginFailure::Denied, 0),
                    OriginTrouble::Busy(after) => {
                        (wire::OriginFailure::Busy, after.as_millis().try_into().unwrap_or(u32::MAX))
                    }
                    OriginTrouble::Abandoned => (wire::OriginFailure::Abandoned, 0),
                };
                Say::Failed(wire::OriginFailed { permit_id: permit, failure: failure.into(), retry_after_ms: after })
            }
            Tell::Progress { blocks, origin_bytes } => Say::Progress(wire::Progress { blocks, origin_bytes }),
            Tell::Done { size, root, media_type } => {
                Say::Done(held(Holding { digest: self.digest, size, root, media_type }, self.signs.as_ref()))
            }
            Tell::Lied { node, block } => Say::Lied(wire::Lied { node_id: node.to_string(), block }),
            Tell::Lost { node } => Say::Lost(wire::Lost { node_id: node.to_string() }),
            Tell::Mismatch { author } => Say::Mismatch(wire::Mismatch { author: author.to_string() }),
        }
    }
}
