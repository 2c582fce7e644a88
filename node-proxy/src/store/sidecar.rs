//! The two small files beside a blob's bytes, as bytes. Pure.
//!
//! Integers are little endian. A text is its length and its UTF-8: one byte of length for ids, two for media types.
//!
//! Held (`.list`): magic `shoal-h1`, size (8), root (32), author, media type, BLAKE3 of all before (32), then the hash
//! of every block (32 each). The head is small, so that a start reads little; the root covers the hashes.
//!
//! Partial (`.state`, `.recent`): magic `shoal-p1`, size (8), boot id, author, media type, bitmap of known hashes,
//! the known hashes in order (32 each), bitmap of the written mark, bitmap of the durable mark, BLAKE3 of all before.
//!
//! What is torn, cut or grown is recognised: by the checksum, by the root, or by its length.

use std::sync::Arc;

use shoal_proto::{BlockSet, Hash, Layout, NodeId, PieceList};

use super::Notes;

const HELD: &[u8; 8] = b"shoal-h1";
const PARTIAL: &[u8; 8] = b"shoal-p1";
const SUM: usize = 32;
/// Media types are under 128 characters (RFC 6838 section 4.2) and have few parameters. What is longer is not kept.
pub(super) const LONGEST_MEDIA_TYPE: usize = 1024;
/// The longest head of a held sidecar: reading this much reads the head whole.
pub(super) const LONGEST_HEAD: usize = 8 + 8 + 32 + (1 + 64) + (2 + LONGEST_MEDIA_TYPE) + SUM;

/// Why bytes are not a sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Torn {
    #[error("is not a sidecar of this version")]
    Magic,
    #[error("is cut short or too long")]
    Length,
    #[error("does not match its checksum")]
    Checksum,
    #[error("holds a field that makes no sense")]
    Field,
}

/// What the head of a held sidecar says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) layout: Layout,
    pub(super) root: Hash,
    pub(super) author: NodeId,
    pub(super) media_type: Arc<str>,
}

/// What the sidecar of a partial blob says.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) boot_id: String,
    pub(super) notes: Notes,
    pub(super) written: BlockSet,
    pub(super) durable: BlockSet,
}

/// The media type as it is kept: none when it is longer than any can be.
pub(super) fn kept_media_type(media_type: &Arc<str>) -> Arc<str> {
    if media_type.len() > LONGEST_MEDIA_TYPE { Arc::from("") } else { Arc::clone(media_type) }
}

/// `None` while the list is not complete.
pub(super) fn encode_held(notes: &Notes) -> Option<Vec<u8>> {
    let root = notes.list.root()?;
    let mut out = Vec::with_capacity(LONGEST_HEAD + notes.list.known() as usize * 32);
    out.extend_from_slice(HELD);
    out.extend_from_slice(&notes.list.layout().size().to_le_bytes());
    out.extend_from_slice(&root);
    put_id(&mut out, notes.author.as_str());
    put_media_type(&mut out, &notes.media_type);
    put_sum(&mut out);
    put_hashes(&mut out, &notes.list);
    Some(out)
}

/// Reads the head from the first [`LONGEST_HEAD`] bytes or more. The second value is where the hashes begin.
pub(super) fn decode_head(bytes: &[u8]) -> Result<(Head, usize), Torn> {
    let mut input = Input { bytes, at: 0 };
    if input.take(8)? != HELD {
        return Err(Torn::Magic);
    }
    let size = input.u64()?;
    let root = input.hash()?;
    let author = input.id()?;
    let media_type = input.media_type()?;
    input.sum()?;
    let layout = Layout::of(size).map_err(|_| Torn::Field)?;
    let author = author.parse().map_err(|_| Torn::Field)?;
    Ok((Head { layout, root, author, media_type: media_type.into() }, input.at))
}

/// Reads a held sidecar whole, and checks the hashes against the root.
pub(super) fn decode_held(bytes: &[u8]) -> Result<(Head, PieceList), Torn> {
    let (head, at) = decode_head(bytes)?;
    let hashes = &bytes[at..];
    if hashes.len() != head.layout.blocks() as usize * 32 {
        return Err(Torn::Length);
    }
    let mut list = PieceList::new(head.layout);
    list.set_run(0, hashes).map_err(|_| Torn::Length)?;
    if list.root() != Some(head.root) {
        return Err(Torn::Checksum);
    }
    Ok((head, list))
}

pub(super) fn encode_record(boot_id: &str, notes: &Notes, written: &BlockSet, durable: &BlockSet) -> Vec<u8> {
    let layout = notes.list.layout();
    let mut out = Vec::with_capacity(LONGEST_HEAD + notes.list.known() as usize * 32 + 3 * bitmap_len(layout));
    out.extend_from_slice(PARTIAL);
    out.extend_from_slice(&layout.size().to_le_bytes());
    put_id(&mut out, boot_id);
    put_id(&mut out, notes.author.as_str());
    put_media_type(&mut out, &notes.media_type);
    put_bitmap(&mut out, layout, |block| notes.list.get(block).is_some());
    put_hashes(&mut out, &notes.list);
    put_bitmap(&mut out, layout, |block| written.contains(block));
    put_bitmap(&mut out, layout, |block| durable.contains(block));
    put_sum(&mut out);
    out
}

pub(super) fn decode_record(bytes: &[u8]) -> Result<Record, Torn> {
    let mut input = Input { bytes, at: 0 };
    if input.take(8)? != PARTIAL {
        return Err(Torn::Magic);
    }
    let layout = Layout::of(input.u64()?).map_err(|_| Torn::Field)?;
    let boot_id = input.id()?.to_owned();
    let author = input.id()?.parse().map_err(|_| Torn::Field)?;
    let media_type = input.media_type()?.into();
    let known = input.bitmap(layout)?;
    let mut list = PieceList::new(layout);
    for block in (0..layout.blocks()).filter(|block| known.contains(*block)) {
        list.set(block, input.hash()?).map_err(|_| Torn::Field)?;
    }
    let written = input.bitmap(layout)?;
    let durable = input.bitmap(layout)?;
    input.sum()?;
    if input.at != bytes.len() {
        return Err(Torn::Length);
    }
    Ok(Record { boot_id, notes: Notes { list, author, media_type }, written, durable })
}

fn bitmap_len(layout: Layout) -> usize {
    layout.blocks().div_ceil(8) as usize
}

fn put_id(out: &mut Vec<u8>, id: &str) {
    // Ids have at most 64 characters; a boot id is cut to that when the store opens.
    let id = &id.as_bytes()[..id.len().min(64)];
    out.push(id.len() as u8);
    out.extend_from_slice(id);
}

fn put_media_type(out: &mut Vec<u8>, media_type: &Arc<str>) {
    let text = kept_media_type(media_type);
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_hashes(out: &mut Vec<u8>, list: &PieceList) {
    for block in 0..list.layout().blocks() {
        if let Some(hash) = list.get(block) {
            out.extend_from_slice(hash);
        }
    }
}

fn put_bitmap(out: &mut Vec<u8>, layout: Layout, contains: impl Fn(u32) -> bool) {
    let start = out.len();
    out.resize(start + bitmap_len(layout), 0);
    for block in (0..layout.blocks()).filter(|block| contains(*block)) {
        out[start + block as usize / 8] |= 1 << (block % 8);
    }
}

fn put_sum(out: &mut Vec<u8>) {
    let sum = blake3::hash(out);
    out.extend_from_slice(sum.as_bytes());
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Torn> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..len)).ok_or(Torn::Length)?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Torn> {
        self.take(N)?.try_into().map_err(|_| Torn::Length)
    }

    fn u64(&mut self) -> Result<u64, Torn> {
        self.array().map(u64::from_le_bytes)
    }

    fn hash(&mut self) -> Result<Hash, Torn> {
        self.array()
    }

    fn id(&mut self) -> Result<&'a str, Torn> {
        let [len] = self.array()?;
        str::from_utf8(self.take(len.into())?).map_err(|_| Torn::Field)
    }

    fn media_type(&mut self) -> Result<&'a str, Torn> {
        let len = usize::from(u16::from_le_bytes(self.array()?));
        if len > LONGEST_MEDIA_TYPE {
            return Err(Torn::Field);
        }
        str::from_utf8(self.take(len)?).map_err(|_| Torn::Field)
    }

    fn bitmap(&mut self, layout: Layout) -> Result<BlockSet, Torn> {
        let bytes = self.take(bitmap_len(layout))?;
        let mut set = BlockSet::empty(layout);
        for block in (0..layout.blocks()).filter(|block| bytes[*block as usize / 8] >> (block % 8) & 1 == 1) {
            set.insert(block);
        }
        Ok(set)
    }

    /// Checks the checksum of everything before it.
    fn sum(&mut self) -> Result<(), Torn> {
        let sum = blake3::hash(&self.bytes[..self.at]);
        if self.take(SUM)? == sum.as_bytes() { Ok(()) } else { Err(Torn::Checksum) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn notes(blocks: u64, known: &[u32], media_type: &str) -> Notes {
        let mut list = PieceList::new(Layout::of(blocks * (256 << 10)).unwrap());
        for block in known {
            let _ = list.set(*block, [*block as u8; 32]);
        }
        Notes { list, author: "node-1".parse().unwrap(), media_type: media_type.into() }
    }

    fn set(layout: Layout, blocks: &[u32]) -> BlockSet {
        let mut set = BlockSet::empty(layout);
        for block in blocks {
            set.insert(*block);
        }
        set
    }

    #[test]
    fn reads_back_a_held_sidecar_and_its_head_alone() {
        let notes = notes(3, &[0, 1, 2], "application/x");
        let bytes = encode_held(&notes).unwrap();
        let (head, list) = decode_held(&bytes).unwrap();
        assert_eq!(list, notes.list);
        assert_eq!(head.root, notes.list.root().unwrap());
        assert_eq!((&*head.media_type, head.author.as_str()), ("application/x", "node-1"));
        assert_eq!(decode_head(&bytes[..bytes.len() - 96]).unwrap().0, head);
        assert_eq!(encode_held(&self::notes(3, &[0, 2], "")), None);
    }

    #[test]
    fn the_longest_head_fits_what_is_read_at_start() {
        let mut notes = notes(0, &[], &"m".repeat(LONGEST_MEDIA_TYPE));
        notes.author = "a".repeat(64).parse().unwrap();
        assert_eq!(encode_held(&notes).unwrap().len(), LONGEST_HEAD);
        notes.media_type = "m".repeat(LONGEST_MEDIA_TYPE + 1).into();
        assert_eq!(&*decode_held(&encode_held(&notes).unwrap()).unwrap().0.media_type, "");
    }

    proptest! {
        #[test]
        fn reads_back_a_record(
            blocks in 0u64..40,
            known in proptest::collection::vec(0u32..40, 0..40),
            written in proptest::collection::vec(0u32..40, 0..40),
            durable in proptest::collection::vec(0u32..40, 0..40),
        ) {
            let notes = notes(blocks, &known, "a/b");
            let (written, durable) = (set(notes.list.layout(), &written), set(notes.list.layout(), &durable));
            let record = decode_record(&encode_record("boot", &notes, &written, &durable)).unwrap();
            prop_assert_eq!(record.boot_id, "boot");
            prop_assert_eq!(record.notes.list, notes.list);
            prop_assert_eq!((record.written, record.durable), (written, durable));
        }

        #[test]
        fn recognises_what_is_torn(cut in 0usize..1000, flip in 0usize..1000, bit in 0u8..8) {
            let notes = notes(5, &[0, 1, 2, 3, 4], "a/b");
            let marks = set(notes.list.layout(), &[1, 3]);
            for bytes in [encode_record("boot", &notes, &marks, &marks), encode_held(&notes).unwrap()] {
                let mut flipped = bytes.clone();
                flipped[flip % bytes.len()] ^= 1 << bit;
                let mut zeroed = bytes.clone();
                zeroed[cut % bytes.len()..].fill(0);
                let longer = [&bytes[..], &[0]].concat();
                for bad in [&bytes[..cut % bytes.len()], &flipped, &longer] {
                    prop_assert!(decode_record(bad).is_err() && decode_held(bad).is_err());
                }
                prop_assert!(zeroed == bytes || (decode_record(&zeroed).is_err() && decode_held(&zeroed).is_err()));
            }
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), held: bool) {
            let bytes = [if held { &HELD[..] } else { &PARTIAL[..] }, &bytes].concat();
            let _ = (decode_record(&bytes), decode_held(&bytes));
        }
    }
}
