//! What no node can be faster than: the hash of the whole, and the disk.
use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// A block: what a node writes at once.
const BLOCK: usize = 256 << 10;

/// How long one core takes to hash `size` bytes that are in memory.
pub(super) fn sha256(size: u64) -> Duration {
    let bytes = vec![0x5a; 1 << 20];
    let start = Instant::now();
    let mut hash = Sha256::new();
    let mut left = size;
    while left > 0 {
        let take = left.min(bytes.len() as u64);
        hash.update(&bytes[..take as usize]);
        left -= take;
    }
    std::hint::black_box(hash.finalize());
    start.elapsed()
}

/// How long the disk of `dir` takes for `size` bytes, written as a node writes them (blocks, in place, in a file that has
/// its length from the start), until an fdatasync at the end has returned.
///
/// # Errors
/// When the disk fails, or has no room.
pub(super) fn disk(dir: &Path, size: u64) -> Result<Duration> {
    let path = dir.join("floor");
    let taken = write(&path, size).with_context(|| format!("write {}", path.display()));
    let _ = std::fs::remove_file(&path);
    taken
}

fn write(path: &Path, size: u64) -> Result<Duration> {
    let block: Vec<u8> = (0..BLOCK).map(|at| (at * 31 % 251) as u8).collect();
    let file = File::create(path)?;
    let start = Instant::now();
    file.set_len(size)?;
    let mut at = 0;
    while at < size {
        let take = (size - at).min(BLOCK as u64);
        file.write_all_at(&block[..take as usize], at)?;
        at += take;
    }
    file.sync_data()?;
    Ok(start.elapsed())
}

/// Writes back what the kernel holds of everybody, so that the next measurement does not pay for it.
///
/// # Errors
/// When the directory can't be opened.
pub(super) fn settle(dir: &Path) -> Result<()> {
    let dir = File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    nix::unistd::syncfs(dir).context("sync the file system")
}
