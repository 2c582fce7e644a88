//! Small disks of a node's own, under its state directory: to fill them, and to cut their power.
//!
//! A power cut keeps what the disk had and loses what only the kernel's memory had. The file system is a real ext4 on a loop
//! device, mounted so that nothing reaches the disk unless it was synced (no flush at rename, no commit by time). At the
//! cut the backing file is copied without unmounting; the copy is mounted in its place, and ext4 replays its journal as
//! after any power cut. What the disk itself would hold in a volatile cache is not modelled.
use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::process::{command, run};

/// A file system mounted on a directory. Dropped, it is unmounted.
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
    /// The backing file; none for a disk in memory.
    file: Option<PathBuf>,
    cuts: u32,
}

impl Disk {
    /// A disk in memory of so many bytes, over `at`.
    ///
    /// # Errors
    /// When it can't be mounted.
    pub fn in_memory(at: &Path, bytes: u64) -> Result<Self> {
        let options = format!("size={bytes},mode=0755");
        run(command("mount", ["-t", "tmpfs", "-o", &options, "shoal-lab"]).arg(at)).context("mount a small disk")?;
        Ok(Self { at: at.to_owned(), file: None, cuts: 0 })
    }

    /// An ext4 of so many bytes in `file`, over `at`.
    ///
    /// # Errors
    /// When it can't be made or mounted.
    pub fn ext4(at: &Path, file: &Path, bytes: u64) -> Result<Self> {
        let made = File::create(file).and_then(|made| made.set_len(bytes));
        made.with_context(|| format!("create {}", file.display()))?;
        run(command("mkfs.ext4", ["-q", "-F"]).arg(file)).context("make a file system")?;
        mount(file, at)?;
        Ok(Self { at: at.to_owned(), file: Some(file.to_owned()), cuts: 0 })
    }

    /// Writes until nothing more fits, and says how much did.
    ///
    /// # Errors
    /// When something else than a full disk stops it.
    pub fn fill(&self) -> Result<u64> {
        let path = self.at.join("ballast");
        let mut file = File::options().create(true).append(true).open(&path).context("open the ballast")?;
        let mut wrote = 0;
        // Smaller and smaller, so that no hole is left.
        for len in [1 << 20, 64 << 10, 4 << 10, 256, 1] {
            let bytes = vec![0x5a; len];
            loop {
                match file.write(&bytes) {
                    Ok(part) if part > 0 => wrote += part as u64,
                    Ok(_) => break,
                    Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context("fill a disk"),
                }
            }
        }
        ensure!(wrote > 0, "the disk at {} was full before", self.at.display());
        Ok(wrote)
    }

    /// Takes what [`Disk::fill`] wrote away again.
    ///
    /// # Errors
    /// When it was not filled.
    pub fn relieve(&self) -> Result<()> {
        fs::remove_file(self.at.join("ballast")).context("remove the ballast")
    }

    /// Cuts the power: from now on the directory has what the disk had. Whoever used it must be dead.
    ///
    /// # Errors
    /// When it is a disk in memory, or the journal can't be replayed.
    pub fn cut(&mut self) -> Result<()> {
        let file = self.file.clone().context("a disk in memory has nothing left after a power cut")?;
        self.cuts += 1;
        let copy = file.with_extension(format!("cut{}", self.cuts));
        snapshot(&file, &copy)?;
        unmount(&self.at)?;
        fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
        self.file = Some(copy.clone());
        mount(&copy, &self.at)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.at) {
            tracing::warn!(at = %self.at.display(), error = %format!("{error:#}"), "take down a disk");
        }
        if let Some(file) = &self.file {
            let _ = fs::remove_file(file);
        }
    }
}

/// `mount` makes the loop device, and the kernel frees it with the last mount of it.
fn mount(file: &Path, at: &Path) -> Result<()> {
    let options = "loop,noatime,noauto_da_alloc,commit=600";
    run(command("mount", ["-t", "ext4", "-o", options]).arg(file).arg(at)).map(drop).context("mount a disk of a file")
}

fn unmount(at: &Path) -> Result<()> {
    run(command("umount", ["-l"]).arg(at)).map(drop)
}

/// How often a copy is made again because the kernel wrote meanwhile.
const COPIES: u32 = 20;

/// Copies a file that may be written meanwhile. Two copies in a row that are alike are what it was at the moment between.
fn snapshot(file: &Path, copy: &Path) -> Result<()> {
    for _ in 0..COPIES {
        fs::copy(file, copy).with_context(|| format!("copy {}", file.display()))?;
        if alike(file, copy)? {
            return Ok(());
        }
    }
    anyhow::bail!("{} changed during each of {COPIES} copies", file.display())
}

fn alike(a: &Path, b: &Path) -> Result<bool> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let read = a.read(&mut left)?;
        if read == 0 {
            return Ok(b.read(&mut right)? == 0);
        }
        if b.read_exact(&mut right[..read]).is_err() || left[..read] != right[..read] {
            return Ok(false);
        }
    }
}
