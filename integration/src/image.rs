//! Images that the lab pulls: real files of this machine in gzip layers, or random bytes of a seed where only sizes matter.
//!
//! An image is built once, kept under `.lab/cache`, and is the same on one machine every time: files come in sorted order,
//! times, owners and the gzip header are fixed.
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::run::lab_dir;

mod layer;

/// Changes when the same request gives other bytes, so that an old cache is not used.
const FORMAT: u32 = 1;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What layers are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Programs and libraries of this machine.
    Machine,
    /// Bytes that no compressor shrinks, from a seed.
    Random(u64),
}

/// An image to be built.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Name in the cache.
    pub name: String,
    /// What it is made of.
    pub source: Source,
    /// Compressed sizes of the layers in bytes, bottom first; met within two parts in a hundred.
    pub layers: Vec<u64>,
}

impl Plan {
    /// The demo's image: layers from 1 KiB to 200 MiB, more than 300 MiB in all. The largest is at the bottom, as base
    /// images are.
    pub fn demo() -> Self {
        let layers = vec![200 << 20, 72 << 20, 24 << 20, 8 << 20, 3 << 20, 1 << 20, 64 << 10, 1 << 10];
        Self { name: "demo".into(), source: Source::Machine, layers }
    }

    /// A smaller one of the same kind, 24 MiB, for tests.
    pub fn small() -> Self {
        let layers = vec![16 << 20, 6 << 20, 2 << 20, 64 << 10, 1 << 10];
        Self { name: "small".into(), source: Source::Machine, layers }
    }

    /// Random bytes of a seed; layers of 2 KiB or more.
    pub fn random(seed: u64, layers: Vec<u64>) -> Self {
        let total: u64 = layers.iter().sum();
        Self { name: format!("random-{seed}-{}x{total}", layers.len()), source: Source::Random(seed), layers }
    }
}

/// A blob of an image.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct ImageBlob {
    /// `sha256:…`
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// Where its bytes are.
    pub file: PathBuf,
}

/// A built image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// Manifest, as pushed.
    pub manifest: String,
    /// Its media type.
    pub media_type: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Layers, bottom first.
    pub layers: Vec<ImageBlob>,
    /// Configuration.
    pub config: ImageBlob,
}

impl Image {
    /// Gives the image of a plan, from the cache or built now.
    ///
    /// # Errors
    /// When the machine has too few files, or the disk too little room.
    pub fn obtain(plan: &Plan) -> Result<Self> {
        let dir = lab_dir().join("cache").join("images").join(format!("{}-v{FORMAT}", plan.name));
        let index = dir.join("image.json");
        if let Ok(text) = fs::read(&index) {
            let cached: Self = serde_json::from_slice(&text).with_context(|| format!("parse {}", index.display()))?;
            // Its files are named by where the checkout stood when it was built.
            if cached.blobs().all(|blob| blob.file.is_file()) {
                return Ok(cached);
            }
        }
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let image = build(plan, &dir).with_context(|| format!("build the image {}", plan.name))?;
        // Written last: a directory without it is an interrupted build.
        fs::write(&index, serde_json::to_vec_pretty(&image)?)?;
        Ok(image)
    }

    /// Layers and configuration.
    pub fn blobs(&self) -> impl Iterator<Item = &ImageBlob> {
        self.layers.iter().chain([&self.config])
    }

    /// Bytes of all blobs, the manifest not included.
    pub fn size(&self) -> u64 {
        self.blobs().map(|blob| blob.size).sum()
    }
}

struct BuiltLayer {
    blob: ImageBlob,
    diff_id: String,
}

fn build(plan: &Plan, dir: &Path) -> Result<Image> {
    let files = match plan.source {
        Source::Machine => layer::machine_files()?,
        Source::Random(_) => Vec::new(),
    };
    let slots: Vec<Mutex<Option<Result<BuiltLayer>>>> = plan.layers.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from).min(4) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(slot) = slots.get(index) else { break };
                    let built = build_layer(plan, index, &files, dir);
                    *slot.lock().expect("no layer's thread panics while it holds the lock") = Some(built);
                }
            });
        }
    });
    let layers = slots
        .into_iter()
        .map(|slot| slot.into_inner().ok().flatten().ok_or_else(|| anyhow!("a layer's thread panicked"))?)
        .collect::<Result<Vec<_>>>()?;
    finish(layers, dir)
}

fn build_layer(plan: &Plan, index: usize, files: &[PathBuf], dir: &Path) -> Result<BuiltLayer> {
    let unfinished = dir.join(format!("layer-{index}"));
    let size = plan.layers[index];
    let sums = match plan.source {
        Source::Machine => {
            // Layers begin at different places of the list, so that few files are in two of them.
            let from = files.len() * index / plan.layers.len();
            layer::from_files(files, from, index, size, &unfinished)?
        }
        Source::Random(seed) => layer::from_seed(seed.wrapping_mul(1000) + index as u64, size, &unfinished)?,
    };
    let blob = store(dir, &unfinished, &sums.compressed, sums.size)?;
    Ok(BuiltLayer { blob, diff_id: format!("sha256:{}", hex::encode(sums.uncompressed)) })
}

fn store(dir: &Path, unfinished: &Path, sha256: &[u8], size: u64) -> Result<ImageBlob> {
    let file = dir.join(hex::encode(sha256));
    fs::rename(unfinished, &file).with_context(|| format!("name {}", file.display()))?;
    Ok(ImageBlob { digest: format!("sha256:{}", hex::encode(sha256)), size, file })
}

fn finish(layers: Vec<BuiltLayer>, dir: &Path) -> Result<Image> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let config = serde_json::to_vec(&serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": layers.iter().map(|_| serde_json::json!({"created": "1970-01-01T00:00:00Z"})).collect::<Vec<_>>(),
    }))?;
    let unfinished = dir.join("config");
    fs::write(&unfinished, &config)?;
    let config = store(dir, &unfinished, &Sha256::digest(&config), config.len() as u64)?;
    let layers: Vec<ImageBlob> = layers.into_iter().map(|layer| layer.blob).collect();
    let descriptor = |media_type: &str, blob: &ImageBlob| serde_json::json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size });
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": layers.iter().map(|blob| descriptor(LAYER, blob)).collect::<Vec<_>>(),
    })
    .to_string();
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(manifest.as_bytes())));
    Ok(Image { manifest, media_type: MANIFEST.into(), digest, layers, config })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn built(source: Source, dir: &Path) -> Image {
        let plan = Plan { name: "t".into(), source, layers: vec![512 << 10, 32 << 10, 1 << 10] };
        build(&plan, dir).unwrap()
    }

    #[test]
    fn the_same_plan_gives_the_same_image_twice() {
        for source in [Source::Machine, Source::Random(7)] {
            let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            assert_eq!(built(source, one.path()).digest, built(source, two.path()).digest, "{source:?}");
        }
    }

    #[test]
    fn layers_meet_their_sizes_and_their_diff_ids() {
        let dir = tempfile::tempdir().unwrap();
        for source in [Source::Machine, Source::Random(7)] {
            let image = built(source, dir.path());
            let config: serde_json::Value = serde_json::from_slice(&fs::read(&image.config.file).unwrap()).unwrap();
            for (index, (layer, wanted)) in image.layers.iter().zip([512_u64 << 10, 32 << 10, 1 << 10]).enumerate() {
                let bytes = fs::read(&layer.file).unwrap();
                assert_eq!(bytes.len() as u64, layer.size);
                // An archive of stored bytes has two headers' worth of its own.
                let wanted = if source == Source::Machine { wanted } else { wanted.max(2048) };
                assert!(layer.size.abs_diff(wanted) <= wanted / 50 + 256, "{source:?} {} {wanted}", layer.size);
                assert_eq!(layer.digest, format!("sha256:{}", hex::encode(Sha256::digest(&bytes))));
                let mut tar = Vec::new();
                flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut tar).unwrap();
                let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(&tar)));
                assert_eq!(config["rootfs"]["diff_ids"][index], diff_id.as_str());
                assert!(tar::Archive::new(&tar[..]).entries().unwrap().count() > 0);
            }
        }
    }
}
