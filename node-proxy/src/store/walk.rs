//! What a start finds on disk: reads the directories, and clears away what a kill left half done.
//!
//! A blob is held if its bytes are in `held/`, its sidecar's head can be read, and the length is the one it says. A
//! sidecar that the index knows by its mark need not be read.
//! Bytes without such a sidecar, sidecars without bytes, and partial blobs without a record are of no use and go.
//! What can't be read because the disk fails is left alone and is not held.

use std::collections::HashMap;
use std::fs::{DirEntry, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::UNIX_EPOCH;

use shoal_proto::Digest;

use super::files::{Files, failed};
use super::index::{self, Known, Mark};
use super::ingest::{Labelled, State};
use super::places::{LABELS, LIST, Places, RECENT, STATE, THEIRS, digest_of};
use super::sidecar::{self, Head, LONGEST_HEAD, Torn};
use super::{FileIdentity, Info, StoreError, ingest};

/// More threads than this only wait for the directory's lock or the disk.
const MOST_THREADS: usize = 8;

/// A held blob as found.
pub(super) struct FoundHeld {
    pub(super) digest: Digest,
    pub(super) info: Info,
    /// Last use, in nanoseconds since 1970.
    pub(super) used: u64,
    /// The file has another name besides, or is elsewhere.
    pub(super) shared: bool,
    /// Its name leads to somebody else's file.
    pub(super) elsewhere: bool,
    /// When it became held, in nanoseconds since 1970.
    pub(super) created: u64,
    pub(super) labels: Option<Labelled>,
}

/// What is found in one of the directories of held blobs.
#[derive(Default)]
pub(super) struct Found {
    pub(super) held: Vec<FoundHeld>,
    /// Records for the index, of those whose sidecar had to be read.
    pub(super) records: Vec<u8>,
    /// How many records that is.
    pub(super) read: u64,
}

/// A partial blob that may be resumed.
pub(super) struct FoundPartial {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// Bytes that the file does not take yet.
    pub(super) left: u64,
    pub(super) used: u64,
}

/// Finds the held blobs and gives them away directory by directory, from several threads.
pub(super) fn held(
    places: &Places,
    files: &Files,
    known: &Known,
    give: impl Fn(Found) + Sync,
) -> Result<(), StoreError> {
    let fans: Vec<PathBuf> = places.fans().collect();
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let walk = || {
        while let Some(fan) = fans.get(next.fetch_add(1, Ordering::Relaxed)) {
            give(walk_fan(fan, files, known)?);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let walkers: Vec<_> = (0..threads).map(|_| scope.spawn(walk)).collect();
        walkers.into_iter().try_for_each(|walker| walker.join().expect("the walk does not panic"))
    })
}

fn walk_fan(fan: &Path, files: &Files, known: &Known) -> Result<Found, StoreError> {
    let mut found = Found::default();
    let Some(first) = fan.file_name().and_then(|name| name.to_str()) else { return Ok(found) };
    let (mut lists, mut blobs, mut labels, mut theirs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    each_entry(fan, |name, entry| {
        let (name, extension) = name.split_once('.').unwrap_or((name, ""));
        let kind = match extension {
            "" => &mut blobs,
            LIST => &mut lists,
            LABELS => &mut labels,
            THEIRS => &mut theirs,
            _ => return Ok(()),
        };
        if let Some(digest) = digest_of(first, name) {
            kind.push((digest, entry));
        }
        Ok(())
    })?;
    lists.sort_unstable_by_key(|(digest, _)| *digest);
    blobs.sort_unstable_by_key(|(digest, _)| *digest);
    let mut blobs = blobs.into_iter().peekable();
    let without_a_sidecar = |(_, entry): (Digest, DirEntry)| {
        tracing::debug!(path = %entry.path().display(), "blob without a sidecar goes");
        files.unlink(&entry.path())
    };
    for (digest, list) in lists {
        while let Some(alone) = blobs.next_if(|(next, _)| *next < digest) {
            without_a_sidecar(alone)?;
        }
        let Some((_, entry)) = blobs.next_if(|(next, _)| *next == digest) else {
            tracing::debug!(path = %list.path().display(), "sidecar without a blob goes");
            files.unlink(&list.path())?;
            continue;
        };
        match read_held(&digest, &list, &entry, known, &mut found) {
            Ok(()) => {}
            Err(Unusable::Disk(error)) => {
                tracing::error!(path = %list.path().display(), %error, "blob can't be read and is left alone");
            }
            Err(Unusable::Damaged(why)) => {
                tracing::warn!(path = %entry.path().display(), why, "damaged blob goes");
                files.unlink(&entry.path())?;
                files.unlink(&list.path())?;
            }
        }
    }
    blobs.try_for_each(without_a_sidecar)?;
    // What is of a name that leads nowhere else any more.
    for (digest, entry) in theirs {
        if !found.held.iter().any(|blob| blob.digest == digest && blob.elsewhere) {
            files.unlink(&entry.path())?;
        }
    }
    read_labels(&mut found, labels, files)?;
    Ok(found)
}

/// Few blobs have any: containerd keeps the labels of its namespaces itself.
fn read_labels(found: &mut Found, labels: Vec<(Digest, DirEntry)>, files: &Files) -> Result<(), StoreError> {
    for (digest, entry) in labels {
        let path = entry.path();
        let Some(blob) = found.held.iter_mut().find(|blob| blob.digest == digest) else {
            tracing::debug!(path = %path.display(), "labels without a blob go");
            files.unlink(&path)?;
            continue;
        };
        match Labelled::read(&path) {
            Ok(labels) => blob.labels = Some(labels),
            Err(error) => tracing::warn!(path = %path.display(), %error, "labels can't be read; the blob has none"),
        }
    }
    Ok(())
}

enum Unusable {
    Disk(io::Error),
    Damaged(String),
}

fn read_held(
    digest: &Digest,
    list: &DirEntry,
    entry: &DirEntry,
    known: &Known,
    found: &mut Found,
) -> Result<(), Unusable> {
    // Before the reading: a sidecar that changes in between is then not taken for the one that was read.
    let sidecar = list.metadata().map_err(Unusable::Disk)?;
    let mark = Mark::of(&sidecar);
    let remembered = known.get(digest, mark);
    let is_new = remembered.is_none();
    let info = match remembered {
        Some(info) => info,
        None => {
            let head = read_head(&list.path())?;
            Info { size: head.layout.size(), root: head.root, media_type: head.media_type }
        }
    };
    let mut metadata = entry.metadata().map_err(Unusable::Disk)?;
    let elsewhere = metadata.is_symlink();
    if elsewhere {
        metadata = match std::fs::metadata(entry.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Unusable::Damaged("the file that it was elsewhere is gone".into()));
            }
            there => there.map_err(Unusable::Disk)?,
        };
        if FileIdentity::read(&entry.path().with_extension(THEIRS)) != Some(FileIdentity::of(&metadata)) {
            return Err(Unusable::Damaged("another file is where its own was".into()));
        }
    }
    if metadata.len() != info.size {
        return Err(Unusable::Damaged(format!("it has {} bytes instead of {}", metadata.len(), info.size)));
    }
    if is_new {
        found.records.extend_from_slice(&index::encode(digest, &info, mark));
        found.read += 1;
    }
    let (used, created) = (modified(&metadata), modified(&sidecar));
    let shared = elsewhere || metadata.nlink() > 1;
    found.held.push(FoundHeld { digest: *digest, info, used, created, labels: None, shared, elsewhere });
    Ok(())
}

fn read_head(list: &Path) -> Result<Head, Unusable> {
    let mut bytes = [0; LONGEST_HEAD];
    let mut len = 0;
    let mut file = File::open(list).map_err(Unusable::Disk)?;
    loop {
        let more = match file.read(&mut bytes[len..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(Unusable::Disk)?,
        };
        len += more;
        // The first read nearly always has all of it.
        match sidecar::decode_head(&bytes[..len]) {
            Err(Torn::Length) if more > 0 => {}
            decoded => {
                break decoded.map(|(head, _)| head).map_err(|torn| Unusable::Damaged(format!("its sidecar {torn}")));
            }
        }
    }
}

/// Of a blob it is the last use.
fn modified(metadata: &std::fs::Metadata) -> u64 {
    let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Finds the partial blobs; those that are held besides go.
pub(super) fn partial(
    places: &Places,
    files: &Files,
    is_held: impl Fn(&Digest) -> bool,
) -> Result<Vec<FoundPartial>, StoreError> {
    let dir = places.partial_dir();
    let mut blobs = HashMap::new();
    let mut records: HashMap<Digest, Vec<PathBuf>> = HashMap::new();
    each_entry(&dir, |name, entry| {
        let (stem, extension) = name.split_once('.').unwrap_or((name, ""));
        match (digest_of("", stem), extension) {
            (Some(digest), "") => drop(blobs.insert(digest, entry)),
            (Some(digest), STATE | RECENT) => records.entry(digest).or_default().push(entry.path()),
            // Written, and never renamed.
            (Some(_), _) => files.unlink(&entry.path())?,
            (None, _) => tracing::warn!(path = %entry.path().display(), "not a file of the store, left alone"),
        }
        Ok(())
    })?;
    let mut found = Vec::new();
    for (digest, entry) in blobs {
        if is_held(&digest) || !records.contains_key(&digest) {
            tracing::debug!(%digest, "partial blob that can't be resumed goes");
            files.unlink(&entry.path())?;
            continue;
        }
        let metadata = entry.metadata().map_err(failed("stat", &entry.path(), 0))?;
        let left = metadata.len().saturating_sub(metadata.blocks() * 512);
        found.push(FoundPartial { digest, size: metadata.len(), left, used: modified(&metadata) });
        records.remove(&digest);
    }
    for path in records.into_values().flatten() {
        tracing::debug!(path = %path.display(), "record without a partial blob goes");
        files.unlink(&path)?;
    }
    Ok(found)
}

/// What containerd was writing.
pub(super) struct FoundIngest {
    pub(super) state: State,
    pub(super) dir: PathBuf,
    /// Bytes that can be trusted.
    pub(super) offset: u64,
    /// When it was written last, in nanoseconds since 1970.
    pub(super) updated: u64,
}

/// Finds the ingests. What a power cut may have torn is cut off: only what is durable is trusted after another boot.
pub(super) fn ingests(places: &Places, files: &Files, boot_id: &str) -> Result<Vec<FoundIngest>, StoreError> {
    let mut found = Vec::new();
    each_entry(&places.ingests_dir(), |name, entry| {
        let dir = entry.path();
        if digest_of("", name).is_none() {
            tracing::warn!(path = %dir.display(), "not a file of the store, left alone");
            return Ok(());
        }
        match read_ingest(&dir, files, boot_id) {
            Ok(one) => {
                // Written, and never renamed.
                files.unlink(&dir.join(ingest::NEW))?;
                found.push(one);
            }
            Err(why) => {
                tracing::info!(path = %dir.display(), why, "ingest that can't be resumed goes");
                for file in [ingest::DATA, ingest::STATE, ingest::NEW] {
                    files.unlink(&dir.join(file))?;
                }
                files.remove_dir(&dir)?;
            }
        }
        Ok(())
    })?;
    Ok(found)
}

fn read_ingest(dir: &Path, files: &Files, boot_id: &str) -> Result<FoundIngest, String> {
    let state = State::read(&dir.join(ingest::STATE)).map_err(|error| error.to_string())?;
    let path = dir.join(ingest::DATA);
    let file = File::options().write(true).open(&path).map_err(|error| error.to_string())?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    let trusted = if state.boot_id == boot_id { metadata.len() } else { state.durable.min(metadata.len()) };
    if trusted < metadata.len() {
        files.truncate(&file, &path, trusted).map_err(|error| error.to_string())?;
    }
    Ok(FoundIngest { state, dir: dir.to_owned(), offset: trusted, updated: modified(&metadata) })
}

fn each_entry(dir: &Path, mut each: impl FnMut(&str, DirEntry) -> Result<(), StoreError>) -> Result<(), StoreError> {
    for entry in std::fs::read_dir(dir).map_err(failed("read", dir, 0))? {
        let entry = entry.map_err(failed("read", dir, 0))?;
        // The store writes ASCII names only.
        if let Some(name) = entry.file_name().to_str() {
            each(name, entry)?;
        }
    }
    Ok(())
}
