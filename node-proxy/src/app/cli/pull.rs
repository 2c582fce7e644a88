//! `shoal-node pull`: an image through the daemon on this machine, with a bar for each blob.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use oci_distribution::Reference;
use parking_lot::Mutex;
use shoal_proto::Digest;

use super::Settings;
use crate::app::image::{Blob, Fetch, Onlooker, Platform};
use crate::origin::{self, Target};

const BAR: &str = "{prefix:>19} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}";

#[derive(Debug, Args)]
pub(super) struct Pull {
    /// The image: `alpine:3`, `registry.example/app@sha256:…`.
    image: String,
    /// `os/architecture[/variant]` of the images of an index. Without it, that of this machine.
    #[arg(long)]
    platform: Option<Platform>,
    /// All images of an index.
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
    /// A docker `config.json` with the login for the registry. Without it `origin.docker_config`, if it is set, and else nobody's.
    #[arg(long)]
    docker_config: Option<PathBuf>,
    /// Print one line for each blob instead of bars.
    #[arg(long)]
    plain: bool,
    #[command(flatten)]
    settings: Settings,
}

/// What is shown meanwhile.
struct Shown {
    bars: Option<MultiProgress>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    top: Option<Digest>,
    blobs: Vec<(Blob, ProgressBar)>,
}

impl Pull {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let (_, config) =
            self.settings.load().map_err(|faults| anyhow::anyhow!("the settings have faults:\n{faults}"))?;
        let image: Reference = self.image.parse().with_context(|| format!("{:?} is no image", self.image))?;
        let platforms = match (&self.platform, self.all_platforms) {
            (_, true) => Vec::new(),
            (Some(platform), false) => vec![platform.clone()],
            (None, false) => vec![Platform::here()],
        };
        let target = Target {
            registry: image.registry().parse().with_context(|| format!("the registry of {image}"))?,
            repository: image.repository().parse().with_context(|| format!("the repository of {image}"))?,
        };
        let docker_config = self.docker_config.clone().or(config.origin.docker_config.clone());
        let fetch = Fetch::new(config.mirror_listen, origin::Config { docker_config, ..config.origin }, target)?;
        let shown = Shown { bars: (!self.plain).then(MultiProgress::new), known: Mutex::default() };
        let since = Instant::now();
        let reference = image.digest().or(image.tag()).unwrap_or("latest");
        fetch.image(reference, &platforms, &shown).await.with_context(|| image.to_string())?;
        let known = shown.known.into_inner();
        let total: u64 = known.blobs.iter().map(|(blob, _)| blob.size).sum();
        let (took, top) = (since.elapsed().as_secs_f64(), known.top.map(|top| format!("@{top}")).unwrap_or_default());
        println!("{image}{top}: {} blobs, {} in {took:.1} s", known.blobs.len(), HumanBytes(total));
        Ok(())
    }
}

impl Onlooker for Shown {
    fn resolved(&self, top: &Digest, blobs: &[Blob]) {
        let bar = |blob: &Blob| {
            let bar = self.bars.as_ref().map_or_else(ProgressBar::hidden, |bars| {
                let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
                bars.add(ProgressBar::new(blob.size).with_style(style.progress_chars("#>-")))
            });
            bar.set_prefix(blob.digest.to_string().chars().take(19).collect::<String>());
            (blob.clone(), bar)
        };
        *self.known.lock() = Known { top: Some(*top), blobs: blobs.iter().map(bar).collect() };
    }

    fn came(&self, blob: usize, bytes: u64) {
        if let Some((_, bar)) = self.known.lock().blobs.get(blob) {
            bar.inc(bytes);
        }
    }

    fn done(&self, blob: usize) {
        let known = self.known.lock();
        let Some((blob, bar)) = known.blobs.get(blob) else { return };
        bar.finish();
        if self.bars.is_none() {
            println!("{} {}", blob.digest, HumanBytes(blob.size));
        }
    }
}
