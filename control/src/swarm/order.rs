//! An order to a seed: fetch this digest, which somebody of your cluster looks for.

use shoal_proto::control::v1 as wire;
use shoal_proto::{Digest, Kind};

/// Tells the ids of these orders from those of preheats, which begin with a job's.
const PREFIX: &str = "seed/";

/// What a seed is to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Its number; never 0.
    pub number: u64,
    /// The content.
    pub digest: Digest,
    /// Blob or manifest.
    pub kind: Kind,
    /// Which registry has it.
    pub registry: String,
    /// In which repository.
    pub repository: String,
}

/// What a seed says of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// It begins.
    Begins,
    /// It holds it.
    Holds,
    /// It can't.
    Refuses,
    /// It could not be told.
    Untold,
}

impl Order {
    /// The id that the node echoes.
    fn id(&self) -> String {
        format!("{PREFIX}{:016x}/{}", self.number, hex::encode(self.digest.as_bytes()))
    }

    /// The number and the digest of an order with that id; `None`: it is no order of this kind.
    pub fn of_id(id: &str) -> Option<(u64, Digest)> {
        let (number, digest) = id.strip_prefix(PREFIX)?.split_once('/')?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(digest, &mut bytes).ok()?;
        Some((u64::from_str_radix(number, 16).ok()?, Digest::from_bytes(bytes)))
    }

    /// As its node is told; `cancelled`: it is taken back.
    pub(super) fn to_wire(&self, cancelled: bool) -> wire::FetchOrder {
        let kind = match self.kind {
            Kind::Blob => wire::Kind::Blob,
            Kind::Manifest => wire::Kind::Manifest,
        };
        wire::FetchOrder {
            digest: self.digest.as_bytes().to_vec(),
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            kind: kind.into(),
            order_id: self.id(),
            image: None,
            cancelled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_leads_back_to_number_and_digest_and_others_are_none() {
        let digest = Digest::from_bytes([7; 32]);
        let (registry, repository) = ("r.test".to_owned(), "a".to_owned());
        let order = Order { number: u64::MAX - 1, digest, kind: Kind::Blob, registry, repository };
        assert_eq!(Order::of_id(&order.to_wire(false).order_id), Some((order.number, digest)));
        for other in ["0123456789ab/1", "seed/", "seed/1/", "seed/x/07", "seed/1/07"] {
            assert_eq!(Order::of_id(other), None, "{other}");
        }
    }
}
