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
            Tell::Progress { blocks, origin_bytes, fed } => {
                let fed = fed.into_iter().map(|(node, bytes)| wire::Fed { node_id: node.to_string(), bytes }).collect();
                Say::Progress(wire::Progress { blocks, origin_bytes, fed })
            }
            Tell::Done { size, root, media_type } => {
                Say::Done(held(Holding { digest: self.digest, size, root, media_type }, self.signs.as_ref()))
            }
            Tell::Lied { node, block } => Say::Lied(wire::Lied { node_id: node.to_string(), block }),
            Tell::Lost { node } => Say::Lost(wire::Lost { node_id: node.to_string() }),
            Tell::Mismatch { author } => Say::Mismatch(wire::Mismatch { author: author.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::mpsc;

    use super::super::identity::Identity;
    use super::super::identity::tests::{Authority, DAY};
    use super::*;

    const BLOCKS: u32 = 2048;

    fn digest() -> Digest {
        Digest::from_bytes([1; 32])
    }

    fn signs(state: &std::path::Path) -> Signs {
        let identity = Arc::new(Identity::open(state).unwrap());
        let id = "spiffe://shoal/cluster/c1/node/n1";
        identity.take(Authority::new().certify(&identity.request().unwrap(), id, DAY)).unwrap();
        Signs { identity, node: "n1".parse().unwrap(), cluster: "c1".parse().unwrap() }
    }

    fn hash(block: u32) -> Tell {
        Tell::Hashes { first: block, hashes: vec![block as u8; 32].into() }
    }

    fn taken(said: &mut mpsc::Receiver<wire::FindRequest>) -> Vec<Say> {
        std::iter::from_fn(|| said.try_recv().ok()?.message).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn hashes_that_come_fast_are_signed_together_and_none_is_lost() {
        let state = tempfile::tempdir().unwrap();
        let (out, mut said) = mpsc::channel(10_000);
        let mut speaker = Speaker::new(out, digest(), None, Some(signs(state.path())));
        let size = u64::from(BLOCKS) * (256 << 10);
        speaker.say(Tell::Headers { permit: 1, size, media_type: "x".into() }).await.unwrap();
        let begin = Instant::now();
        // As fast as a link of 10 Gbit/s, in two runs next to each other.
        for block in 0..BLOCKS / 2 {
            speaker.say(hash(block)).await.unwrap();
            speaker.say(hash(block + BLOCKS / 2)).await.unwrap();
            tokio::time::advance(Duration::from_micros(400)).await;
        }
        let least = begin.elapsed().as_millis() / GAP.as_millis();
        speaker.say(Tell::Done { size, root: [9; 32], media_type: "x".into() }).await.unwrap();
        let said = taken(&mut said);
        assert!(matches!(&said[0], Say::Headers(head) if !head.signature.is_empty()));
        assert!(matches!(said.last(), Some(Say::Done(held)) if !held.signature.is_empty()));
        let parts: Vec<_> =
            said.iter().filter_map(|say| if let Say::List(part) = say { Some(part) } else { None }).collect();
        assert_eq!((parts[0].first_block, parts[0].hashes.len()), (0, 32), "the first at once");
        assert!(parts.len() as u128 <= 2 * (least + 2), "{} parts in {least} gaps", parts.len());
        let mut known = vec![false; BLOCKS as usize];
        for part in parts {
            assert!(!part.signature.is_empty());
            for (block, hash) in (part.first_block..).zip(part.hashes.chunks(32)) {
                assert_eq!(hash, [block as u8; 32]);
                assert!(!std::mem::replace(&mut known[block as usize], true));
            }
        }
        assert!(known.iter().all(|known| *known), "what waited was said before that it is done");
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_due_after_the_gap() {
        let state = tempfile::tempdir().unwrap();
        let (out, mut said) = mpsc::channel(10);
        let mut speaker = Speaker::new(out, digest(), Some(512 << 10), Some(signs(state.path())));
        speaker.say(hash(0)).await.unwrap();
        speaker.say(hash(1)).await.unwrap();
        assert_eq!(taken(&mut said).len(), 1);
        let begin = Instant::now();
        speaker.due().await;
        assert!(begin.elapsed() <= GAP + Duration::from_millis(1));
        speaker.flush().await.unwrap();
        assert_eq!(taken(&mut said).len(), 1);
        assert!(tokio::time::timeout(Duration::from_secs(1), speaker.due()).await.is_err(), "nothing waits");
    }

    #[tokio::test]
    async fn without_certificates_each_hash_is_said_as_it_comes() {
        let (out, mut said) = mpsc::channel(10);
        let mut speaker = Speaker::new(out, digest(), None, None);
        for block in 0..3 {
            speaker.say(hash(block)).await.unwrap();
        }
        let said = taken(&mut said);
        assert_eq!(said.len(), 3);
        assert!(said.iter().all(|say| matches!(say, Say::List(part) if part.signature.is_empty())));
    }
}
