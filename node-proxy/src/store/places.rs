//! Where everything is below the store's directory, and the right to be there: the lock and the version.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use shoal_proto::Digest;

use super::StoreError;
use super::files::{Files, failed};

/// The version of everything below the directory. A change that an older daemon can't read makes it larger.
const VERSION: u32 = 1;

/// How far the name of a held sidecar reaches beyond its blob's.
pub(super) const LIST: &str = "list";
/// The labels beside a held blob.
pub(super) const LABELS: &str = "labels";
/// Beside a held blob whose name leads to a file of somebody else's: by what that is known again.
pub(super) const THEIRS: &str = "theirs";
/// The record that was synced together with a durable mark.
pub(super) const STATE: &str = "state";
/// The record since then, not synced: worth something until the machine stops.
pub(super) const RECENT: &str = "recent";

/// The paths of one store.
#[derive(Debug, Clone)]
pub(super) struct Places {
    dir: PathBuf,
}

impl Places {
    /// Makes what is not there, takes the lock, and checks the version. The lock lasts as long as the file.
    pub(super) fn open(dir: &Path, files: &Files) -> Result<(Self, File), StoreError> {
        let places = Self { dir: dir.to_owned() };
        make_dir(dir)?;
        let lock = places.lock()?;
        places.check_version(files)?;
        make_dir(&places.partial_dir())?;
        make_dir(&places.held_dir())?;
        make_dir(&places.ingests_dir())?;
        for fan in places.fans() {
            make_dir(&fan)?;
        }
        files.sync_dir(&places.held_dir())?;
        files.sync_dir(dir)?;
        Ok((places, lock))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn held_dir(&self) -> PathBuf {
        self.dir.join("held")
    }

    pub(super) fn partial_dir(&self) -> PathBuf {
        self.dir.join("partial")
    }

    /// What containerd is writing: a directory each.
    pub(super) fn ingests_dir(&self) -> PathBuf {
        self.dir.join("ingests")
    }

    /// What spares a start the reading of sidecars.
    pub(super) fn index(&self) -> PathBuf {
        self.dir.join("index")
    }

    /// The 256 directories of held blobs, by the first byte of the digest: small enough to be read and synced quickly.
    pub(super) fn fans(&self) -> impl Iterator<Item = PathBuf> {
        let held = self.held_dir();
        (0..=255u8).map(move |byte| held.join(hex::encode([byte])))
    }

    /// The bytes of a held blob.
    pub(super) fn held(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.held_dir().join(&hex[..2]).join(&hex[2..])
    }

    /// The sidecar of a held blob.
    pub(super) fn held_list(&self, digest: &Digest) -> PathBuf {
        self.held(digest).with_extension(LIST)
    }

    /// The labels of a held blob, if it has any.
    pub(super) fn held_labels(&self, digest: &Digest) -> PathBuf {
        self.held(digest).with_extension(LABELS)
    }

    /// What is known of the file that a held blob's name leads to, if it is somebody else's.
    pub(super) fn held_theirs(&self, digest: &Digest) -> PathBuf {
        self.held(digest).with_extension(THEIRS)
    }

    /// The bytes of a partial blob.
    pub(super) fn partial(&self, digest: &Digest) -> PathBuf {
        self.partial_dir().join(digest.hex())
    }

    /// A file beside the bytes of a partial blob.
    pub(super) fn beside_partial(&self, digest: &Digest, what: &str) -> PathBuf {
        self.partial(digest).with_extension(what)
    }

    fn lock(&self) -> Result<File, StoreError> {
        let path = self.dir.join("lock");
        let mut lock =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(failed("open", &path, 0))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(failed("lock", &path, 0)(error)),
            Err(TryLockError::WouldBlock) => {
                let holder = std::fs::read_to_string(&path).unwrap_or_default();
                let why = format!("another shoal-node uses this store (process {})", holder.trim());
                return Err(failed("lock", &path, 0)(io::Error::new(io::ErrorKind::WouldBlock, why)));
            }
        }
        // For people only: the lock is the kernel's.
        let said = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        said.map_err(failed("write", &path, 16))?;
        Ok(lock)
    }

    fn check_version(&self, files: &Files) -> Result<(), StoreError> {
        let path = self.dir.join("version");
        match std::fs::read_to_string(&path) {
            Ok(text) => check_version(&text).map_err(|why| StoreError::Damaged(format!("{}: {why}", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.held_dir().exists() {
                    let why = "is missing, though there are blobs; remove the directory to start anew";
                    return Err(StoreError::Damaged(format!("{} {why}", path.display())));
                }
                let new = path.with_extension("new");
                files.write_new(&new, format!("shoal-store {VERSION}\n").as_bytes(), true)?;
                files.rename(&new, &path)?;
                files.sync_dir(&self.dir)
            }
            Err(error) => Err(failed("read", &path, 0)(error)),
        }
    }
}

fn check_version(text: &str) -> Result<(), String> {
    match text.strip_prefix("shoal-store ").and_then(|version| version.trim_end().parse::<u32>().ok()) {
        Some(VERSION) => Ok(()),
        Some(newer) if newer > VERSION => Err(format!(
            "the store has version {newer}, this shoal-node knows {VERSION}: run the newer shoal-node, or remove the \
             directory"
        )),
        _ => Err(format!("{text:?} is not a store's version; remove the directory to start anew")),
    }
}

fn make_dir(path: &Path) -> Result<(), StoreError> {
    // Only root reads what was pulled.
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create", path, 0))
}

/// The digest that 64 lower-case hex digits name, given in two parts: a directory of held blobs, and a name in it. A
/// start does this for every file, hence not by several passes.
pub(super) fn digest_of(first: &str, rest: &str) -> Option<Digest> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        // The store writes small letters.
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if first.len() + rest.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in first.bytes().chain(rest.bytes()).enumerate() {
        bytes[at / 2] = bytes[at / 2] << 4 | digit(byte)?;
    }
    Some(Digest::from_bytes(bytes))
}
