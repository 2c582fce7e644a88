//! What only a disk can do wrong: kills, power cuts, damage, fullness, and two daemons.

mod crash;
mod faults;
mod files;
mod index;
mod ingest_crash;
mod ingests;
mod kills;
mod meetings;
mod restart;
mod share;
mod upgrade;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Disk, SYNC_EVERY};
use crate::store::files::{Faults, Files};
use crate::store::suite::eventually;
use crate::store::{Config, Content as _, Store, StoreError};

/// A directory in which stores come and go.
struct Machine {
    dir: PathBuf,
    /// Removes the directory at the end.
    _temporary: Option<tempfile::TempDir>,
    quota: u64,
    reserve: u64,
    boot: u32,
    sync_every: u64,
    faults: Arc<Faults>,
    model_only: bool,
    claims: bool,
}

impl Machine {
    fn new(quota: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { quota, ..Self::at(dir.path()) }.within(dir)
    }

    /// In a directory that somebody else removes.
    fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            _temporary: None,
            quota: 0,
            reserve: 0,
            boot: 1,
            sync_every: SYNC_EVERY,
            faults: Arc::default(),
            model_only: false,
            claims: false,
        }
    }

    fn within(self, dir: tempfile::TempDir) -> Self {
        Self { dir: dir.path().to_owned(), _temporary: Some(dir), ..self }
    }

    /// For tests of thousands of steps: no sync reaches the real disk, which no test could tell, and so the directory
    /// may as well be in memory.
    fn model_only(mut self) -> Self {
        self.model_only = true;
        match tempfile::tempdir_in("/dev/shm") {
            Ok(dir) => self.within(dir),
            Err(_) => self,
        }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.join("store").join(below)
    }

    async fn try_open(&self) -> Result<Arc<Disk>, StoreError> {
        self.faults.model_only.store(self.model_only, Ordering::SeqCst);
        let config = Config {
            dir: self.path(""),
            quota: self.quota,
            reserve: self.reserve,
            boot_id: Some(format!("boot-{}", self.boot)),
            claims: self.claims,
        };
        Disk::open_with(config, Files { faults: Arc::clone(&self.faults) }, self.sync_every).await
    }

    /// Another store, in another directory.
    async fn open_beside(&self) -> Arc<Disk> {
        let config = Config { dir: self.dir.join("beside"), quota: 0, reserve: 0, boot_id: None, claims: true };
        Disk::open(config).await.unwrap()
    }

    /// Starts a daemon, once the one before is gone altogether.
    async fn open(&self) -> Arc<Disk> {
        eventually(async || match self.try_open().await {
            Ok(disk) => Some(disk),
            Err(StoreError::Io { action: "lock", .. }) => None,
            Err(error) => panic!("{error}"),
        })
        .await
    }

    /// The daemon is killed here: nothing more of it reaches the disk.
    async fn kill(&mut self, store: Option<Arc<Disk>>) {
        self.faults.kill_after(0);
        drop(store);
        self.wait_until_unlocked().await;
        self.faults = Arc::default();
    }

    /// The machine loses power and comes up again: what was not synced is lost.
    async fn cut_power(&mut self, store: Option<Arc<Disk>>) {
        self.faults.kill_after(0);
        drop(store);
        self.wait_until_unlocked().await;
        self.faults.cut_power();
        self.faults = Arc::default();
        self.boot += 1;
    }

    async fn wait_until_unlocked(&self) {
        eventually(async || {
            let Ok(lock) = std::fs::File::open(self.path("lock")) else { return Some(()) };
            lock.try_lock().ok()
        })
        .await;
    }

    /// Every file below `held` or `partial`.
    fn files(&self, below: &str) -> Vec<PathBuf> {
        fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), files);
                } else {
                    files.push(entry.path());
                }
            }
        }
        let mut files = Vec::new();
        walk(&self.path(below), &mut files);
        files
    }

    /// Asserts that the disk has what the store says and nothing else.
    fn assert_tidy(&self, store: &Disk) {
        let held: u64 = store.list().iter().map(|(_, info)| info.size).sum();
        let partial: u64 = store.partials().iter().map(|(_, size)| size).sum();
        let usage = store.usage();
        assert_eq!((usage.held, usage.held_blobs as usize, usage.partial), (held, store.list().len(), partial));
        assert!(self.claims || self.quota == 0 || held + partial <= self.quota);
        let (labels, held): (Vec<PathBuf>, Vec<PathBuf>) =
            self.files("held").into_iter().partition(|file| file.extension().is_some_and(|what| what == "labels"));
        assert!(labels.iter().all(|file| held.contains(&file.with_extension(""))), "{labels:?}");
        assert_eq!(held.len(), 2 * store.list().len(), "{held:?}");
        assert_eq!(self.files("ingests").len(), 2 * store.ingests().len(), "{:?}", self.files("ingests"));
        for file in self.files("partial") {
            let name = file.file_stem().unwrap().to_str().unwrap();
            let known = store.partials().iter().any(|(digest, _)| digest.hex() == name);
            assert!(known && file.extension().is_none_or(|what| what == "state" || what == "recent"), "{file:?}");
        }
    }
}
