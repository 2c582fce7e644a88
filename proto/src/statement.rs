//! What the author of a piece list signs: the bytes that stand for a head, a part, or a whole list. Pure: no keys are used here.
//!
//! What always holds: two statements that differ in anything have different bytes, and none has the bytes of anything else that a node's
//! key signs (a handshake of TLS 1.3 begins with spaces, a request for a certificate with 0x30).

use crate::{BlockIndex, ClusterId, Digest, Hash, Layout, NodeId};

/// Begins every statement. It may never change; another encoding gets another one.
const CONTEXT: &[u8] = b"shoal 2026-11 piece list statement v1\0";

/// What a node says of the piece list of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement<'a> {
    /// Where it counts.
    pub cluster: &'a ClusterId,
    /// Who says so.
    pub author: &'a NodeId,
    /// Of which blob.
    pub digest: Digest,
    /// How large that is, and so how it is cut.
    pub layout: Layout,
    /// What.
    pub says: Says<'a>,
}

/// What a statement says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says<'a> {
    /// The blob is read from the origin, which says so of it; a list begins.
    Head {
        /// Content-Type as the origin gave it.
        media_type: &'a str,
    },
    /// Hashes of some blocks.
    Part {
        /// The block of the first.
        first: BlockIndex,
        /// n times 32 bytes.
        hashes: &'a [u8],
    },
    /// The whole list, of a blob whose SHA-256 the author checked.
    Whole {
        /// Its root.
        root: &'a Hash,
        /// Content-Type as the origin gave it.
        media_type: &'a str,
    },
}

impl Statement<'_> {
    /// The bytes that are signed: context, kind (1), cluster, author, digest (32), size (8), block size (8), and what the kind has. Numbers
    /// are big endian; what has no fixed length has it before it (4).
    pub fn bytes(&self) -> Vec<u8> {
        let Self { cluster, author, digest, layout, says } = self;
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(CONTEXT);
        out.push(match says {
            Says::Head { .. } => 1,
            Says::Part { .. } => 2,
            Says::Whole { .. } => 3,
        });
        put(&mut out, cluster.as_str().as_bytes());
        put(&mut out, author.as_str().as_bytes());
        out.extend_from_slice(digest.as_bytes());
        out.extend_from_slice(&layout.size().to_be_bytes());
        out.extend_from_slice(&layout.block_size().to_be_bytes());
        match says {
            Says::Head { media_type } => put(&mut out, media_type.as_bytes()),
            Says::Part { first, hashes } => {
                out.extend_from_slice(&first.to_be_bytes());
                put(&mut out, hashes);
            }
            Says::Whole { root, media_type } => {
                out.extend_from_slice(*root);
                put(&mut out, media_type.as_bytes());
            }
        }
        out
    }
}

/// Lengths above 32 bits do not occur: a list has at most 8,192 hashes, and a message of control far less than 4 GiB.
fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A statement with its parts, so that it can be made at random and compared.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Owned {
        cluster: ClusterId,
        author: NodeId,
        digest: [u8; 32],
        size: u64,
        kind: u8,
        first: u32,
        bytes: Vec<u8>,
        text: String,
    }

    impl Owned {
        fn bytes(&self) -> Vec<u8> {
            let root = &Hash::try_from(&self.bytes[..32]).unwrap();
            let says = match self.kind {
                1 => Says::Head { media_type: &self.text },
                2 => Says::Part { first: self.first, hashes: &self.bytes },
                _ => Says::Whole { root, media_type: &self.text },
            };
            let layout = Layout::of(self.size).unwrap();
            let digest = Digest::from_bytes(self.digest);
            Statement { cluster: &self.cluster, author: &self.author, digest, layout, says }.bytes()
        }

        /// The same without what its kind does not say.
        fn said(mut self) -> Self {
            match self.kind {
                1 => (self.first, self.bytes) = (0, vec![0; 32]),
                2 => self.text.clear(),
                _ => {
                    self.first = 0;
                    self.bytes.truncate(32);
                }
            }
            self
        }
    }

    fn one(kind: u8) -> Owned {
        Owned {
            cluster: "c1".parse().unwrap(),
            author: "n1".parse().unwrap(),
            digest: [1; 32],
            size: 5 << 20,
            kind,
            first: 3,
            bytes: vec![7; 64],
            text: "a/b".into(),
        }
    }

    #[test]
    fn every_field_changes_what_is_signed() {
        for kind in [1, 2, 3] {
            let base = one(kind);
            let mut others = vec![
                Owned { cluster: "c2".parse().unwrap(), ..base.clone() },
                Owned { author: "n2".parse().unwrap(), ..base.clone() },
                Owned { digest: [2; 32], ..base.clone() },
                Owned { size: (5 << 20) + 1, ..base.clone() },
                Owned { kind: kind % 3 + 1, ..base.clone() },
            ];
            if kind != 2 {
                others.push(Owned { text: "a/c".into(), ..base.clone() });
                others.push(Owned { text: String::new(), ..base.clone() });
            }
            if kind == 2 {
                others.push(Owned { first: 4, ..base.clone() });
                others.push(Owned { bytes: vec![7; 32], ..base.clone() });
            }
            if kind != 1 {
                others.push(Owned { bytes: vec![8; 64], ..base.clone() });
            }
            for other in others {
                assert_ne!(other.bytes(), base.bytes(), "{other:?}");
            }
        }
        // Ids that say the same when they are put together.
        let (one, other) = (
            Owned { cluster: "c1".parse().unwrap(), author: "1n".parse().unwrap(), ..one(1) },
            Owned { cluster: "c11".parse().unwrap(), author: "n".parse().unwrap(), ..one(1) },
        );
        assert_ne!(one.bytes(), other.bytes());
    }

    #[test]
    fn the_bytes_are_what_they_were() {
        // Nodes of different versions must agree on them.
        let expected =
            "73686f616c20323032362d3131207069656365206c6973742073746174656d656e742076310002000000026331000000026e31";
        let bytes = one(2).bytes();
        let rest =
            [&[1; 32][..], &(5u64 << 20).to_be_bytes(), &(256u64 << 10).to_be_bytes(), &[0, 0, 0, 3, 0, 0, 0, 64]];
        assert_eq!(hex::encode(&bytes), expected.to_owned() + &hex::encode([&rest.concat()[..], &[7; 64]].concat()));
    }

    fn any() -> impl Strategy<Value = Owned> {
        // Few and short values, so that whole fields are often alike.
        let ids = ("[ab]{1,3}", "[ab]{1,3}", "[ab]{0,2}");
        (ids, 0u8..2, 0u64..3, 1u8..4, 0u32..2, proptest::collection::vec(0u8..2, 1..3)).prop_map(
            |((cluster, author, text), digest, size, kind, first, hashes)| {
                let bytes = hashes.iter().flat_map(|byte| [*byte; 32]).collect();
                let (cluster, author) = (cluster.parse().unwrap(), author.parse().unwrap());
                Owned { cluster, author, digest: [digest; 32], size, kind, first, bytes, text }
            },
        )
    }

    proptest! {
        #[test]
        fn no_two_statements_have_the_same_bytes(one in any(), other in any()) {
            prop_assert_eq!(one.bytes() == other.bytes(), one.said() == other.said());
        }
    }
}
