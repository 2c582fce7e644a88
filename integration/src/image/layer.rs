//! One layer: a tar archive through gzip into a file, both sides hashed on the way.
use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use flate2::{Compression, GzBuilder, write::GzEncoder};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use sha2::{Digest, Sha256};

/// Where files come from. Programs and libraries: what images are mostly made of.
const SOURCES: [&str; 4] = ["/usr/bin", "/usr/lib", "/usr/libexec", "/usr/sbin"];

/// Below this many bytes to go, gzip is flushed after each file, so that the compressed size is known exactly.
const FLUSH_BELOW: u64 = 1 << 20;

/// What a layer came to.
pub(super) struct Sums {
    /// SHA-256 of the gzip stream.
    pub(super) compressed: Vec<u8>,
    /// Bytes of the gzip stream.
    pub(super) size: u64,
    /// SHA-256 of the archive.
    pub(super) uncompressed: Vec<u8>,
}

/// Hashes and counts what passes.
struct Tap<W> {
    inner: W,
    hash: Sha256,
    count: u64,
}

impl<W> Tap<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), count: 0 }
    }
}

impl<W: Write> Write for Tap<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// An archive being written.
struct Archive {
    out: Tap<GzEncoder<Tap<BufWriter<File>>>>,
}

impl Archive {
    fn create(file: &Path, level: Compression) -> Result<Self> {
        let file = File::create(file).with_context(|| format!("create {}", file.display()))?;
        let compressed = Tap::new(BufWriter::with_capacity(1 << 20, file));
        Ok(Self { out: Tap::new(GzBuilder::new().mtime(0).operating_system(255).write(compressed, level)) })
    }

    fn compressed(&self) -> u64 {
        self.out.inner.get_ref().count
    }

    /// Adds a file; `false` when its name is too long for the header.
    fn add(&mut self, name: &Path, bytes: &[u8]) -> Result<bool> {
        let mut header = tar::Header::new_ustar();
        if header.set_path(name).is_err() {
            return Ok(false);
        }
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(bytes)?;
        self.out.write_all(&[0_u8; 512][..(512 - bytes.len() % 512) % 512])?;
        Ok(true)
    }

    fn finish(mut self) -> Result<Sums> {
        self.out.write_all(&[0_u8; 1024])?;
        let uncompressed = self.out.hash.finalize().to_vec();
        let mut compressed = self.out.inner.finish().context("end the gzip stream")?;
        compressed.flush().context("write the layer")?;
        Ok(Sums { compressed: compressed.hash.finalize().to_vec(), size: compressed.count, uncompressed })
    }
}

/// A layer of `target` compressed bytes out of this machine's files, from the `from`-th on. When the list runs out it is
/// walked again under another directory.
pub(super) fn from_files(files: &[PathBuf], from: usize, layer: usize, target: u64, out: &Path) -> Result<Sums> {
    let mut archive = Archive::create(out, Compression::fast())?;
    let close_enough = (target / 64).max(64);
    let mut bytes = Vec::new();
    let mut at = from;
    let mut added = 0_usize;
    loop {
        let remaining = target.saturating_sub(archive.compressed());
        if remaining <= close_enough {
            break;
        }
        let (walk, file) = (at / files.len(), &files[at % files.len()]);
        at += 1;
        if walk > 0 && walk * files.len() > from + files.len() && added == 0 {
            bail!("none of the {} files under {SOURCES:?} can be read", files.len());
        }
        bytes.clear();
        // A file that does not fit is cut: what is left is then met in a few steps.
        if File::open(file).and_then(|open| open.take(remaining).read_to_end(&mut bytes)).is_err() || bytes.is_empty() {
            continue;
        }
        let name = Path::new(&format!("layer-{layer}/walk-{walk}")).join(file.strip_prefix("/").unwrap_or(file));
        if archive.add(&name, &bytes)? {
            added += 1;
            if remaining <= FLUSH_BELOW + bytes.len() as u64 {
                archive.out.flush().context("flush the gzip stream")?;
            }
        }
    }
    archive.finish()
}

/// A layer of about `target` bytes of a seed, stored as they are.
pub(super) fn from_seed(seed: u64, target: u64, out: &Path) -> Result<Sums> {
    let mut archive = Archive::create(out, Compression::none())?;
    let mut random = SmallRng::seed_from_u64(seed);
    // The last 1.5 KiB are the archive's end and its headers.
    let mut left = target.saturating_sub(1536).max(1);
    let mut bytes = vec![0_u8; 16 << 20];
    for index in 0.. {
        let take = left.min(16 << 20);
        random.fill_bytes(&mut bytes[..take as usize]);
        archive.add(Path::new(&format!("random-{seed}/part-{index}")), &bytes[..take as usize])?;
        left -= take;
        if left == 0 {
            break;
        }
    }
    archive.finish()
}

/// Regular files of this machine's programs and libraries, sorted by path.
pub(super) fn machine_files() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs: Vec<PathBuf> = SOURCES.iter().map(PathBuf::from).collect();
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            let path = entry.path();
            // Byte code comes and goes as programs run.
            if kind.is_dir() && entry.file_name() != "__pycache__" {
                dirs.push(path);
            } else if kind.is_file() {
                files.push(path);
            }
        }
    }
    if files.is_empty() {
        bail!("no files under {SOURCES:?} to make an image of");
    }
    files.sort();
    Ok(files)
}
