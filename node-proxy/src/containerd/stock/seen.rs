//! Files of containerd's that are not held here: which are still to be hashed, and which were found wrong.
//!
//! A file is known again by device, inode, size and time of change. What was found is kept in a file of lines, so that a start
//! does not read wrong blobs again; a line that can't be read is as good as none.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use shoal_proto::Digest;

use crate::store::FileIdentity;

/// Wrong files that are remembered; a disk with more has other troubles.
const MOST: usize = 10_000;

pub(super) struct Seen {
    path: PathBuf,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    wrong: HashMap<Digest, FileIdentity>,
    queue: VecDeque<Digest>,
    changed: bool,
}

impl Seen {
    /// What an earlier run found.
    pub(super) fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = |line: &str| {
            let (digest, identity) = line.split_once(' ')?;
            Some((digest.parse().ok()?, identity.parse().ok()?))
        };
        let wrong = text.lines().filter_map(line).take(MOST).collect();
        Self { path: path.to_owned(), books: Mutex::new(Books { wrong, ..Books::default() }) }
    }

    /// Keeps it, if there is anything new.
    pub(super) fn write(&self) {
        let text: String = {
            let mut books = self.books.lock();
            if !std::mem::take(&mut books.changed) {
                return;
            }
            books.wrong.iter().map(|(digest, identity)| format!("{digest} {identity}\n")).collect()
        };
        let new = self.path.with_extension("new");
        if let Err(error) = fs::write(&new, text).and_then(|()| fs::rename(&new, &self.path)) {
            tracing::warn!(path = %self.path.display(), %error, "keep which files of containerd's are wrong");
        }
    }

    /// Whether nothing bad is known of the file at a path.
    pub(super) fn is_new(&self, digest: &Digest, path: &Path) -> bool {
        let Some(known) = self.books.lock().wrong.get(digest).copied() else { return true };
        fs::metadata(path).is_ok_and(|there| FileIdentity::of(&there) != known)
    }

    /// Remembers a file as wrong. False: it was known.
    pub(super) fn differs(&self, digest: &Digest, path: &Path) -> bool {
        let Ok(there) = fs::metadata(path) else { return false };
        let (identity, is_new) = (FileIdentity::of(&there), self.is_new(digest, path));
        self.is_bad(*digest, identity);
        is_new
    }

    pub(super) fn is_bad(&self, digest: Digest, identity: FileIdentity) {
        let mut books = self.books.lock();
        if books.wrong.len() < MOST || books.wrong.contains_key(&digest) {
            books.changed |= books.wrong.insert(digest, identity) != Some(identity);
        }
    }

    /// These are to be hashed, in this order, instead of what was.
    pub(super) fn want(&self, digests: Vec<Digest>) {
        self.books.lock().queue = digests.into();
    }

    /// The next to be hashed.
    pub(super) fn next(&self) -> Option<Digest> {
        self.books.lock().queue.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_file_is_known_again_until_it_is_another_after_a_restart_too() {
        let dir = tempfile::tempdir().unwrap();
        let (book, path) = (dir.path().join("hashed"), dir.path().join("blob"));
        fs::write(&path, "wrong").unwrap();
        let digest = Digest::from_bytes([7; 32]);
        let seen = Seen::read(&book);
        assert!(seen.is_new(&digest, &path));
        assert!(seen.differs(&digest, &path));
        assert!(!seen.differs(&digest, &path), "known");
        seen.write();
        let again = Seen::read(&book);
        assert!(!again.is_new(&digest, &path));
        fs::remove_file(&path).unwrap();
        fs::write(dir.path().join("another"), "right").unwrap();
        fs::rename(dir.path().join("another"), &path).unwrap();
        assert!(again.is_new(&digest, &path));
    }

    #[test]
    fn lines_that_nobody_wrote_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let book = dir.path().join("hashed");
        let good = format!("{} 1 2 3 -4", Digest::from_bytes([7; 32]));
        fs::write(&book, format!("nonsense\n{good}\n{} 1 2\n", Digest::from_bytes([8; 32]))).unwrap();
        assert_eq!(Seen::read(&book).books.lock().wrong.len(), 1);
        assert!(Seen::read(&dir.path().join("none")).books.lock().wrong.is_empty());
    }
}
