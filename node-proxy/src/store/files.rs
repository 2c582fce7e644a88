//! The few file operations that change the disk, each with an error that names its path.
//!
//! One door, so that a test can stand behind a kill at any step, a power cut, a full or a failing disk: see [`Faults`].

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::StoreError;

/// All that writes below the store's directory.
#[derive(Debug, Clone, Default)]
pub(super) struct Files {
    #[cfg(test)]
    pub(super) faults: std::sync::Arc<Faults>,
}

/// Gives an error of the system its path, and tells a full disk from a broken one.
pub(super) fn failed(action: &'static str, path: &Path, need: u64) -> impl FnOnce(io::Error) -> StoreError {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StoreError::Full { need, why: "the file system is full" }
        }
        _ => StoreError::Io { action, path: path.to_owned(), source },
    }
}

impl Files {
    /// Writes a small file, replacing what is there. One that could not be written whole goes. What is there may be one more name of
    /// somebody else's file, or lead to it: it is never written into.
    pub(super) fn write_new(&self, path: &Path, bytes: &[u8], sync: bool) -> Result<(), StoreError> {
        self.unlink(path)?;
        self.step(path, "create")?;
        let file = File::create_new(path).map_err(failed("create", path, bytes.len() as u64))?;
        let written = self.write_at(&file, path, bytes, 0);
        written.and_then(|()| if sync { self.sync_file(&file, path) } else { Ok(()) }).inspect_err(|_| {
            // The error of the write is the one that matters.
            _ = self.unlink(path);
        })
    }

    /// Makes a sparse file of this length. It can be read and written. What is there is replaced and not emptied: whoever has it
    /// open still reads what was in it.
    pub(super) fn create_sparse(&self, path: &Path, len: u64) -> Result<File, StoreError> {
        self.unlink(path)?;
        self.step(path, "create")?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(path).map_err(failed("create", path, len))?;
        file.set_len(len).map_err(failed("set the length of", path, len))?;
        Ok(file)
    }

    /// Writes all of `bytes` at an offset.
    pub(super) fn write_at(&self, file: &File, path: &Path, bytes: &[u8], offset: u64) -> Result<(), StoreError> {
        let failed = failed("write", path, bytes.len() as u64);
        #[cfg(test)]
        if let Err(error) = self
            .faults
            .before_write(path, offset..offset + bytes.len() as u64, |part| file.write_all_at(&bytes[..part], offset))
        {
            return Err(failed(error));
        }
        file.write_all_at(bytes, offset).map_err(failed)
    }

    /// fsync.
    pub(super) fn sync_file(&self, file: &File, path: &Path) -> Result<(), StoreError> {
        self.sync(path, || file.sync_all())
    }

    /// fdatasync.
    pub(super) fn sync_data(&self, file: &File, path: &Path) -> Result<(), StoreError> {
        self.sync(path, || file.sync_data())
    }

    /// Makes the names in a directory durable.
    pub(super) fn sync_dir(&self, path: &Path) -> Result<(), StoreError> {
        self.sync(path, || File::open(path)?.sync_all())
    }

    fn sync(&self, path: &Path, sync: impl FnOnce() -> io::Result<()>) -> Result<(), StoreError> {
        self.step(path, "sync")?;
        #[cfg(test)]
        if self.faults.before_sync(path).map_err(failed("sync", path, 0))? {
            return Ok(());
        }
        sync().map_err(failed("sync", path, 0))
    }

    /// Moves a file, replacing what is there.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        self.step(from, "rename")?;
        std::fs::rename(from, to).map_err(failed("rename", from, 0))?;
        #[cfg(test)]
        self.faults.renamed(from, to);
        Ok(())
    }

    /// Gives a file another name, which nothing has yet.
    pub(super) fn link(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        self.step(to, "link")?;
        std::fs::hard_link(from, to).map_err(failed("link", to, 0))
    }

    /// Makes a name lead to a file elsewhere.
    pub(super) fn symlink(&self, target: &Path, at: &Path) -> Result<(), StoreError> {
        self.step(at, "link")?;
        std::os::unix::fs::symlink(target, at).map_err(failed("link", at, 0))
    }

    /// Removes a file; one that is not there is fine.
    pub(super) fn unlink(&self, path: &Path) -> Result<(), StoreError> {
        self.step(path, "remove")?;
        #[cfg(test)]
        self.faults.unlinked(path);
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, 0)(error)),
            _ => Ok(()),
        }
    }

    /// Makes a directory that only root reads; one that is there is fine.
    pub(super) fn create_dir(&self, path: &Path) -> Result<(), StoreError> {
        self.step(path, "create")?;
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create", path, 0))
    }

    /// Removes an empty directory; one that is not there is fine.
    pub(super) fn remove_dir(&self, path: &Path) -> Result<(), StoreError> {
        self.step(path, "remove")?;
        match std::fs::remove_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, 0)(error)),
            _ => Ok(()),
        }
    }

    /// Cuts a file.
    pub(super) fn truncate(&self, file: &File, path: &Path, len: u64) -> Result<(), StoreError> {
        self.step(path, "cut")?;
        file.set_len(len).map_err(failed("cut", path, 0))
    }

    #[cfg(test)]
    fn step(&self, path: &Path, action: &'static str) -> Result<(), StoreError> {
        self.faults.step().map_err(failed(action, path, 0))
    }

    #[cfg(not(test))]
    #[allow(clippy::unnecessary_wraps, clippy::unused_self)]
    fn step(&self, _: &Path, _: &'static str) -> Result<(), StoreError> {
        Ok(())
    }
}

#[cfg(test)]
pub(super) use faults::Faults;

#[cfg(test)]
mod faults {
    use std::collections::BTreeMap;
    use std::io;
    use std::ops::Range;
    use std::os::unix::fs::FileExt as _;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

    use parking_lot::{Condvar, Mutex};

    /// What a test does to the disk below the store.
    #[derive(Debug)]
    pub(in crate::store) struct Faults {
        /// So many steps still work; every later one fails, as nothing of a killed process reaches the disk.
        steps_left: AtomicI64,
        /// Writes fail with ENOSPC.
        pub(in crate::store) full: AtomicBool,
        /// Syncs fail with EIO.
        pub(in crate::store) sync_fails: AtomicBool,
        /// The process is killed where it would only be taken for dead.
        pub(in crate::store) for_real: AtomicBool,
        /// Syncs are only modelled: what they do to a real disk no test can see, and it takes long.
        pub(in crate::store) model_only: AtomicBool,
        /// Whoever removes this file waits before it does, while there is one; and whether somebody waits.
        stalled: Mutex<(Option<PathBuf>, bool)>,
        resumed: Condvar,
        /// What was overwritten since the last sync, by file, oldest first: offset and bytes, zeros for a hole.
        unsynced: Mutex<BTreeMap<PathBuf, Overwritten>>,
    }

    type Overwritten = Vec<(u64, Vec<u8>)>;

    impl Default for Faults {
        fn default() -> Self {
            Self {
                steps_left: AtomicI64::new(i64::MAX),
                full: AtomicBool::new(false),
                sync_fails: AtomicBool::new(false),
                for_real: AtomicBool::new(false),
                model_only: AtomicBool::new(false),
                stalled: Mutex::default(),
                resumed: Condvar::new(),
                unsynced: Mutex::default(),
            }
        }
    }

    impl Faults {
        /// Lets so many more steps work.
        pub(in crate::store) fn kill_after(&self, steps: i64) {
            self.steps_left.store(steps, Ordering::SeqCst);
        }

        /// Whether a step failed because of [`Self::kill_after`].
        pub(in crate::store) fn killed(&self) -> bool {
            self.steps_left.load(Ordering::SeqCst) < 0
        }

        /// Does to the files what a power cut may: what was not synced is as it was before, zeros at first.
        pub(in crate::store) fn cut_power(&self) {
            for (path, writes) in std::mem::take(&mut *self.unsynced.lock()) {
                let Ok(file) = std::fs::OpenOptions::new().write(true).open(&path) else { continue };
                for (offset, bytes) in writes.into_iter().rev() {
                    let len = file.metadata().unwrap().len().saturating_sub(offset).min(bytes.len() as u64);
                    file.write_all_at(&bytes[..len as usize], offset).unwrap();
                }
            }
        }

        pub(super) fn step(&self) -> io::Result<()> {
            if self.steps_left.fetch_sub(1, Ordering::SeqCst) > 0 { Ok(()) } else { Err(self.dead()) }
        }

        fn dead(&self) -> io::Error {
            if self.for_real.load(Ordering::SeqCst) {
                let killed = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
                unreachable!("alive after SIGKILL: {killed:?}");
            }
            self.steps_left.store(-1, Ordering::SeqCst);
            io::Error::other("killed")
        }

        /// A kill in a write tears it.
        pub(super) fn before_write(
            &self,
            path: &Path,
            range: Range<u64>,
            mut write: impl FnMut(usize) -> io::Result<()>,
        ) -> io::Result<()> {
            if self.full.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let half = (range.end - range.start) as usize / 2;
            let mut old = vec![0; (range.end - range.start) as usize];
            if let Ok(file) = std::fs::File::open(path) {
                _ = file.read_at(&mut old, range.start);
            }
            self.unsynced.lock().entry(path.to_owned()).or_default().push((range.start, old));
            match self.steps_left.fetch_sub(1, Ordering::SeqCst) {
                1.. => Ok(()),
                0 => write(half).and(Err(self.dead())),
                _ => Err(self.dead()),
            }
        }

        /// True: that was all.
        pub(super) fn before_sync(&self, path: &Path) -> io::Result<bool> {
            if self.sync_fails.load(Ordering::SeqCst) {
                return Err(io::Error::other("the disk failed"));
            }
            self.unsynced.lock().remove(path);
            Ok(self.model_only.load(Ordering::SeqCst))
        }

        pub(super) fn renamed(&self, from: &Path, to: &Path) {
            let mut unsynced = self.unsynced.lock();
            unsynced.remove(to);
            if let Some(ranges) = unsynced.remove(from) {
                unsynced.insert(to.to_owned(), ranges);
            }
        }

        /// Holds up who removes this file, until [`Self::resume`].
        pub(in crate::store) fn stall(&self, path: &Path) {
            *self.stalled.lock() = (Some(path.to_owned()), false);
        }

        /// Whether somebody is held up.
        pub(in crate::store) fn stalls(&self) -> bool {
            self.stalled.lock().1
        }

        pub(in crate::store) fn resume(&self) {
            *self.stalled.lock() = (None, false);
            self.resumed.notify_all();
        }

        pub(super) fn unlinked(&self, path: &Path) {
            let mut stalled = self.stalled.lock();
            while stalled.0.as_deref() == Some(path) {
                stalled.1 = true;
                self.resumed.wait(&mut stalled);
            }
            drop(stalled);
            self.unsynced.lock().remove(path);
        }
    }
}
