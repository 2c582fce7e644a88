//! The index: one file that spares a start the reading of every held blob's sidecar.
//!
//! It says nothing of its own. A record repeats what the head of one sidecar said, and by which mark that sidecar is
//! known again; the directories alone say what is held. So a record is used if both files of the blob are there and the
//! sidecar still has the mark: the same inode, not changed since, as long as it was. A record that is missing, torn, of
//! a blob that is gone, of another disk or of another version costs the reading of a sidecar and nothing else. That is
//! why the index is never synced, and why nobody minds when it can't be written.
//!
//! ```text
//! shoal-i1, then records: digest (32), size (8), root (32), mark: inode (8), time of change (8), length (8);
//! media type: length (2) and text; the first 8 bytes of BLAKE3 of all before
//! ```
//!
//! Integers are little endian. A later record of a digest replaces an earlier one. Records are appended when a blob
//! becomes held, or when a start had to read its sidecar. The reader stops at the first that is torn, and there the
//! writer goes on. What is of no more use is left out when the index is written anew, which happens when that is more
//! than half.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shoal_proto::{Digest, Hash};

use super::files::{Files, failed};
use super::sidecar::LONGEST_MEDIA_TYPE;
use super::{Info, StoreError};

const MAGIC: &[u8; 8] = b"shoal-i1";
/// Digest, size, root and mark.
const FIXED: usize = 32 + 8 + 32 + 24;
const SUM: usize = 8;
/// Above this the file is not the store's: ten million blobs, and as many records that are of no more use.
const LARGEST: u64 = 4 << 30;
/// So many records of no use are not worth a new index.
const SLACK: u64 = 4096;

/// What one sidecar is known by among all that ever had its name on this disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    inode: u64,
    /// Time of change (not of modification, which anybody may set), in nanoseconds since 1970.
    changed: u64,
    len: u64,
}

impl Mark {
    pub(super) fn of(sidecar: &Metadata) -> Self {
        let seconds = sidecar.ctime().cast_unsigned();
        let changed = seconds.wrapping_mul(1_000_000_000).wrapping_add(sidecar.ctime_nsec().cast_unsigned());
        Self { inode: sidecar.ino(), changed, len: sidecar.len() }
    }
}

/// The record of one blob.
pub(super) fn encode(digest: &Digest, info: &Info, mark: Mark) -> Vec<u8> {
    let mut out = Vec::with_capacity(FIXED + 2 + info.media_type.len() + SUM);
    out.extend_from_slice(digest.as_bytes());
    out.extend_from_slice(&info.size.to_le_bytes());
    out.extend_from_slice(&info.root);
    for number in [mark.inode, mark.changed, mark.len] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    // The store keeps no longer one.
    let text = &info.media_type.as_bytes()[..info.media_type.len().min(LONGEST_MEDIA_TYPE)];
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text);
    let sum = blake3::hash(&out);
    out.extend_from_slice(&sum.as_bytes()[..SUM]);
    out
}

/// An index as it was read.
#[derive(Default)]
pub(super) struct Known {
    bytes: Vec<u8>,
    /// Where records start: by the first byte of the digest, as the directories are; in each by digest, and of one
    /// digest in their order. A whole record is there.
    fans: Vec<Vec<usize>>,
    records: u64,
    /// Where the last whole record ends; 0: there is no index.
    end: usize,
}

impl Known {
    /// Whatever is not an index is an empty one.
    pub(super) fn read(path: &Path) -> Self {
        let read = std::fs::metadata(path).and_then(|metadata| match metadata.len() {
            0..=LARGEST => std::fs::read(path),
            _ => Err(std::io::ErrorKind::FileTooLarge.into()),
        });
        match read {
            Ok(bytes) => Self::parse(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "index can't be read; every sidecar is");
                Self::default()
            }
        }
    }

    pub(super) fn parse(bytes: Vec<u8>) -> Self {
        if !bytes.starts_with(MAGIC) {
            return Self::default();
        }
        let (mut fans, mut records, mut end) = (vec![Vec::new(); 256], 0, MAGIC.len());
        while let Some(record) = Record::read(&bytes[end..]).filter(Record::is_whole) {
            fans[usize::from(record.digest[0])].push(end);
            records += 1;
            end += record.len;
        }
        for fan in &mut fans {
            // Stable: the last of one digest stays the last.
            fan.sort_by_key(|start| &bytes[*start..*start + 32]);
        }
        Self { bytes, fans, records, end }
    }

    /// What the sidecar with this mark says, if the index knows.
    pub(super) fn get(&self, digest: &Digest, mark: Mark) -> Option<Info> {
        let fan = self.fans.get(usize::from(digest.as_bytes()[0]))?;
        let after = fan.partition_point(|start| self.digest(*start) <= digest.as_bytes().as_slice());
        let record = Record::read(&self.bytes[*fan.get(after.checked_sub(1)?)?..])?;
        (record.digest == digest.as_bytes() && record.mark == mark).then(|| Info {
            size: record.size,
            root: record.root,
            media_type: Arc::from(record.media_type),
        })
    }

    pub(super) fn records(&self) -> u64 {
        self.records
    }

    fn digest(&self, start: usize) -> &[u8] {
        &self.bytes[start..start + 32]
    }

    /// The same without what is of no more use.
    fn compact(&self, is_held: impl Fn(&Digest) -> bool) -> (Vec<u8>, u64) {
        let (mut out, mut records) = (MAGIC.to_vec(), 0);
        for fan in &self.fans {
            // Of one digest the last.
            for same in fan.chunk_by(|one, other| self.digest(*one) == self.digest(*other)) {
                let last = same.last().and_then(|start| Record::read(&self.bytes[*start..]));
                if let Some(record) = last.filter(|record| is_held(&Digest::from_bytes(*record.digest))) {
                    out.extend_from_slice(record.bytes);
                    records += 1;
                }
            }
        }
        (out, records)
    }
}

struct Record<'a> {
    /// All of it.
    bytes: &'a [u8],
    digest: &'a [u8; 32],
    size: u64,
    root: Hash,
    mark: Mark,
    media_type: &'a str,
    len: usize,
}

impl<'a> Record<'a> {
    /// The first record of `bytes`, as long as it says; `None` when there is less.
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (fixed, rest) = bytes.split_first_chunk::<FIXED>()?;
        let (text_len, rest) = rest.split_first_chunk::<2>()?;
        let text_len = usize::from(u16::from_le_bytes(*text_len));
        let (text, rest) = rest.split_at_checked(text_len)?;
        rest.first_chunk::<SUM>()?;
        let len = FIXED + 2 + text_len + SUM;
        let number = |at: usize| fixed[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        Some(Self {
            bytes: &bytes[..len],
            digest: fixed.first_chunk()?,
            size: number(32)?,
            root: *fixed[40..].first_chunk()?,
            mark: Mark { inode: number(72)?, changed: number(80)?, len: number(88)? },
            media_type: str::from_utf8(text).ok()?,
            len,
        })
    }

    /// Whether it is what was written.
    fn is_whole(&self) -> bool {
        let (body, sum) = self.bytes.split_at(self.len - SUM);
        blake3::hash(body).as_bytes()[..SUM] == *sum
    }
}

/// The end of the index that is written.
pub(super) struct Index {
    path: PathBuf,
    /// None: it can't be opened, and this daemon does without.
    file: Option<File>,
    end: u64,
    records: u64,
}

impl Index {
    /// Goes on where `known` ends.
    pub(super) fn open(path: PathBuf, known: &Known, files: &Files) -> Self {
        let mut index = Self { path, file: None, end: known.end as u64, records: known.records() };
        // Left by a kill before it was renamed.
        let opened = files.unlink(&index.new_path()).and_then(|()| match known.end {
            0 => index.begin(files, MAGIC, 0),
            _ => {
                let file = File::options().write(true).open(&index.path).map_err(failed("open", &index.path, 0))?;
                index.file = Some(file);
                Ok(())
            }
        });
        index.tolerate(opened);
        index
    }

    /// Appends encoded records, `count` of them. One that is torn is overwritten by the next.
    pub(super) fn append(&mut self, files: &Files, records: &[u8], count: u64) {
        let Some(file) = &self.file else { return };
        let written = files.write_at(file, &self.path, records, self.end);
        if written.is_ok() {
            self.end += records.len() as u64;
            self.records += count;
        }
        self.tolerate(written);
    }

    /// Writes it anew when more than half of it is of no use.
    pub(super) fn compact(&mut self, files: &Files, held: u64, is_held: impl Fn(&Digest) -> bool) {
        if self.file.is_none() || self.records <= 2 * held + SLACK {
            return;
        }
        let (bytes, records) = Known::read(&self.path).compact(is_held);
        tracing::debug!(was = self.records, records, "index is written anew");
        let begun = self.begin(files, &bytes, records);
        if begun.is_err() {
            // Tried again after as many records, not at each.
            self.records = held;
        }
        self.tolerate(begun);
    }

    /// Puts a new file in its place.
    fn begin(&mut self, files: &Files, bytes: &[u8], records: u64) -> Result<(), StoreError> {
        let new = self.new_path();
        files.write_new(&new, bytes, false)?;
        let file = File::options().write(true).open(&new).map_err(failed("open", &new, 0))?;
        files.rename(&new, &self.path)?;
        (self.file, self.end, self.records) = (Some(file), bytes.len() as u64, records);
        Ok(())
    }

    fn new_path(&self) -> PathBuf {
        self.path.with_extension("new")
    }

    fn tolerate(&self, done: Result<(), StoreError>) {
        if let Err(error) = done {
            tracing::debug!(%error, "index was not written; a later start reads more sidecars");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc as Shared;

    use super::*;
    use crate::store::files::Faults;
    use proptest::prelude::*;

    fn digest(number: u8) -> Digest {
        Digest::from_bytes([number; 32])
    }

    fn info(number: u8) -> Info {
        Info { size: u64::from(number), root: [number; 32], media_type: "a/b".repeat(usize::from(number % 3)).into() }
    }

    fn mark(number: u64) -> Mark {
        Mark { inode: number, changed: number << 40, len: 100 + number }
    }

    fn record(number: u8) -> Vec<u8> {
        encode(&digest(number), &info(number), mark(number.into()))
    }

    fn knows(known: &Known, number: u8) -> bool {
        match known.get(&digest(number), mark(number.into())) {
            Some(found) => found == info(number),
            None => false,
        }
    }

    #[test]
    fn knows_a_sidecar_by_its_whole_mark_and_no_other() {
        let known = Known::parse([MAGIC.to_vec(), record(7), record(3)].concat());
        assert!(knows(&known, 3) && knows(&known, 7) && !knows(&known, 5));
        for other in [Mark { inode: 8, ..mark(7) }, Mark { changed: 0, ..mark(7) }, Mark { len: 1, ..mark(7) }, mark(3)]
        {
            assert_eq!(known.get(&digest(7), other), None, "{other:?}");
        }
    }

    #[test]
    fn the_last_record_of_a_digest_counts() {
        let newer = encode(&digest(7), &info(9), mark(70));
        let known = Known::parse([MAGIC.to_vec(), record(7), record(1), newer].concat());
        assert_eq!(known.get(&digest(7), mark(7)), None);
        assert_eq!(known.get(&digest(7), mark(70)), Some(info(9)));
        assert_eq!(known.records(), 3);
    }

    #[test]
    fn goes_on_where_the_whole_records_end() {
        let dir = tempfile::tempdir().unwrap();
        let (path, files) = (dir.path().join("index"), Files::default());
        for torn in [0, 1, 40, 100] {
            let bytes = [MAGIC.to_vec(), record(1), record(2)[..torn.min(record(2).len() - 1)].to_vec()].concat();
            std::fs::write(&path, bytes).unwrap();
            let mut index = Index::open(path.clone(), &Known::read(&path), &files);
            index.append(&files, &record(3), 1);
            let known = Known::read(&path);
            assert!(knows(&known, 1) && !knows(&known, 2) && knows(&known, 3), "{torn}");
        }
        for foreign in [&b""[..], b"shoal", b"shoal-i2 and more", &[0; 200]] {
            std::fs::write(&path, foreign).unwrap();
            let mut index = Index::open(path.clone(), &Known::read(&path), &files);
            index.append(&files, &record(3), 1);
            assert!(knows(&Known::read(&path), 3), "{foreign:?}");
        }
    }

    #[test]
    fn a_full_disk_costs_records_and_leaves_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let faults = Shared::new(Faults::default());
        let (path, files) = (dir.path().join("index"), Files { faults: Shared::clone(&faults) });
        let mut index = Index::open(path.clone(), &Known::default(), &files);
        index.append(&files, &record(1), 1);
        faults.full.store(true, std::sync::atomic::Ordering::SeqCst);
        index.append(&files, &record(2), 1);
        faults.full.store(false, std::sync::atomic::Ordering::SeqCst);
        index.append(&files, &record(3), 1);
        let known = Known::read(&path);
        assert!(knows(&known, 1) && !knows(&known, 2) && knows(&known, 3));
    }

    /// What was committed and went again, many times over.
    #[test]
    fn stays_in_proportion_to_what_is_held_whenever_it_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        for steps in 0.. {
            let faults = Shared::new(Faults::default());
            let files = Files { faults: Shared::clone(&faults) };
            _ = std::fs::remove_file(&path);
            let mut index = Index::open(path.clone(), &Known::default(), &files);
            for number in 0..=200 {
                index.append(&files, &record(number), 1);
            }
            let many = record(201).repeat(SLACK as usize);
            index.append(&files, &many, SLACK);
            faults.kill_after(steps);
            let held = |digest: &Digest| digest.as_bytes()[0] < 50;
            index.compact(&files, 50, held);
            let (killed, len) = (faults.killed(), std::fs::metadata(&path).unwrap().len());
            let known = Known::read(&path);
            assert!((0..50).all(|number| knows(&known, number)), "after {steps} steps");
            if !killed {
                assert!(!knows(&known, 50) && !knows(&known, 201));
                assert_eq!(len, (0..50).map(|number| record(number).len() as u64).sum::<u64>() + 8);
                assert!(steps >= 3, "only {steps} steps");
                let mut again = Index::open(path.clone(), &known, &Files::default());
                again.append(&Files::default(), &record(77), 1);
                assert!(knows(&Known::read(&path), 77), "goes on in the new file");
                index.append(&Files::default(), &record(78), 1);
                assert!(knows(&Known::read(&path), 78), "so does the one that wrote it");
                break;
            }
            let again = Index::open(path.clone(), &known, &Files::default());
            assert_eq!(again.end, known.end as u64);
            assert!(!again.new_path().exists());
        }
    }

    proptest! {
        #[test]
        fn gives_what_was_written_or_nothing(
            numbers in proptest::collection::vec(0u8..20, 0..12),
            cut in 0usize..2000, flip in 0usize..2000, bit in 0u8..8, zero in 0usize..2000,
        ) {
            let bytes = [MAGIC.to_vec(), numbers.iter().flat_map(|number| record(*number)).collect()].concat();
            let mut flipped = bytes.clone();
            flipped[flip % bytes.len()] ^= 1 << bit;
            let mut zeroed = bytes.clone();
            zeroed[zero % bytes.len()..].fill(0);
            for bad in [bytes[..cut % bytes.len()].to_vec(), flipped, zeroed] {
                let known = Known::parse(bad);
                for number in 0..20 {
                    if let Some(found) = known.get(&digest(number), mark(number.into())) {
                        prop_assert_eq!(found, info(number));
                        prop_assert!(numbers.contains(&number));
                    }
                }
            }
            let known = Known::parse(bytes);
            prop_assert!(numbers.iter().all(|number| knows(&known, *number)));
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let known = Known::parse([MAGIC.to_vec(), bytes].concat());
            let _ = (known.get(&digest(0), mark(0)), known.compact(|_| true));
        }
    }
}
