//! `shoal-node pull`: fetches an image through the daemon on this machine, as containerd would, so that the cluster has it.
//!
//! Nothing of it goes into containerd. The daemon keeps and offers what passes through its mirror; what comes is dropped here.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use futures::StreamExt as _;
use http::header::{ACCEPT, AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use oci_distribution::Reference;
use parking_lot::Mutex;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use shoal_proto::Digest;

use super::{Settings, local};
use crate::config::Config;
use crate::origin::{self, Origin, Target, Witness};

const BAR: &str = "{prefix:>19} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}";
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.docker.distribution.manifest.v2+json";
/// containerd takes no larger ones.
const LARGEST_MANIFEST: usize = 8 << 20;
/// As containerd fetches.
const AT_ONCE: usize = 3;
/// A body that says nothing for so long is over.
const SILENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct Pull {
    /// The image: `alpine:3`, `registry.example/app@sha256:…`.
    image: String,
    /// `os/architecture[/variant]` of the images of an index. Without it, that of this machine.
    #[arg(long)]
    platform: Option<String>,
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

/// Nobody remembers what a command saw.
struct Nobody;

#[async_trait::async_trait]
impl Witness for Nobody {
    fn saw_public(&self, _: &Target, _: Option<&Digest>) {}

    async fn public_since(&self, _: &Target, _: Option<&Digest>) -> Option<Duration> {
        None
    }
}

/// A descriptor, as far as it matters here. Source: OCI image spec 1.1, descriptor.md.
#[derive(Debug, Clone, Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    urls: Vec<String>,
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
    #[serde(default)]
    variant: String,
}

/// A manifest or an index.
#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// One pull.
struct Fetch {
    mirror: SocketAddr,
    origin: Arc<Origin>,
    target: Target,
    shown: Mutex<Option<HeaderValue>>,
    bars: Option<MultiProgress>,
}

impl Pull {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let (_, config) =
            self.settings.load().map_err(|faults| anyhow::anyhow!("the settings have faults:\n{faults}"))?;
        let image: Reference = self.image.parse().with_context(|| format!("{:?} is no image", self.image))?;
        let platform = match (&self.platform, self.all_platforms) {
            (_, true) => None,
            (Some(text), false) => Some(Platform::parse(text)?),
            (None, false) => Some(Platform::here()),
        };
        let fetch = self.fetch(config, &image)?;
        let since = Instant::now();
        let reference = image.digest().or(image.tag()).unwrap_or("latest");
        let (top, bytes) = fetch.manifest(reference).await?;
        let mut images = Vec::new();
        if bytes.manifests.is_empty() {
            images.push(bytes);
        } else {
            let chosen = chosen(&bytes.manifests, platform.as_ref());
            ensure!(
                !chosen.is_empty(),
                "{image} has no image for {}",
                platform.as_ref().map_or_else(String::new, Platform::to_string)
            );
            for one in chosen {
                images.push(fetch.manifest(&one.digest).await?.1);
            }
        }
        let mut blobs: Vec<Descriptor> =
            images.into_iter().flat_map(|image| image.config.into_iter().chain(image.layers)).collect();
        // Foreign layers are not the registry's to give.
        blobs.retain(|blob| blob.urls.is_empty());
        blobs.sort_by(|one, other| one.digest.cmp(&other.digest));
        blobs.dedup_by(|one, other| one.digest == other.digest);
        let total: u64 = blobs.iter().map(|blob| blob.size).sum();
        let mut fetching = futures::stream::iter(blobs.iter().map(|blob| fetch.blob(blob))).buffer_unordered(AT_ONCE);
        while let Some(fetched) = fetching.next().await {
            fetched?;
        }
        let took = since.elapsed().as_secs_f64();
        println!("{image}@{top}: {} blobs, {} in {took:.1} s", blobs.len(), HumanBytes(total));
        Ok(())
    }

    fn fetch(&self, config: Config, image: &Reference) -> anyhow::Result<Fetch> {
        let target = Target {
            registry: image.registry().parse().with_context(|| format!("the registry of {image}"))?,
            repository: image.repository().parse().with_context(|| format!("the repository of {image}"))?,
        };
        let docker_config = self.docker_config.clone().or(config.origin.docker_config.clone());
        let settings = origin::Config { docker_config, ..config.origin };
        // Counted, and shown to nobody.
        let counted = origin::Metrics::new(&mut prometheus_client::registry::Registry::default());
        let origin = Origin::new(settings, Arc::new(Nobody), counted)?;
        let bars = (!self.plain).then(MultiProgress::new);
        Ok(Fetch { mirror: config.mirror_listen, origin, target, shown: Mutex::default(), bars })
    }
}

/// Those of an index that are for a platform; all of them without one.
fn chosen<'a>(manifests: &'a [Descriptor], platform: Option<&Platform>) -> Vec<&'a Descriptor> {
    let Some(wanted) = platform else { return manifests.iter().collect() };
    let fits = |one: &&Descriptor| one.platform.as_ref().is_none_or(|platform| platform.fits(wanted));
    manifests.iter().find(fits).into_iter().collect()
}

impl Platform {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut parts = text.split('/').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None) if !os.is_empty() && !architecture.is_empty() => {
                Ok(Self { os, architecture, variant: variant.unwrap_or_default() })
            }
            _ => bail!("--platform: {text:?} is not os/architecture or os/architecture/variant"),
        }
    }

    /// In Go's words, as images name it.
    fn here() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: std::env::consts::OS.to_owned(), architecture: architecture.to_owned(), variant: String::new() }
    }

    fn fits(&self, wanted: &Self) -> bool {
        let variant = wanted.variant.is_empty() || self.variant == wanted.variant;
        self.os == wanted.os && self.architecture == wanted.architecture && variant
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl Fetch {
    /// Asks the mirror; a challenge is answered once.
    async fn get(&self, what: &str, reference: &str) -> anyhow::Result<Response<Incoming>> {
        let Target { registry, repository } = &self.target;
        let path = format!("/v2/{repository}/{what}/{reference}?ns={registry}");
        let mut challenged = false;
        loop {
            let mut headers = HeaderMap::new();
            if what == "manifests" {
                headers.insert(ACCEPT, HeaderValue::from_static(MANIFESTS));
            }
            if let Some(shown) = self.shown.lock().clone() {
                headers.insert(AUTHORIZATION, shown);
            }
            let answer = local::send(self.mirror, Method::GET, &path, &headers).await?;
            match answer.status() {
                StatusCode::OK => return Ok(answer),
                StatusCode::UNAUTHORIZED if !std::mem::replace(&mut challenged, true) => {
                    let challenges = answer.headers().get_all(WWW_AUTHENTICATE).iter().cloned().collect();
                    let shown = self
                        .origin
                        .answer(&self.target, challenges)
                        .await
                        .context("answer the registry's challenge")?;
                    *self.shown.lock() = shown;
                }
                status => {
                    let why = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                    bail!("{what} {reference}: {status}: {}", String::from_utf8_lossy(&why));
                }
            }
        }
    }

    async fn manifest(&self, reference: &str) -> anyhow::Result<(Digest, Manifest)> {
        let body = http_body_util::Limited::new(self.get("manifests", reference).await?.into_body(), LARGEST_MANIFEST);
        let bytes = body.collect().await.map_err(|error| anyhow::anyhow!("manifest {reference}: {error}"))?.to_bytes();
        let digest = Digest::from_bytes(Sha256::digest(&bytes).into());
        if let Ok(wanted) = reference.parse::<Digest>() {
            ensure!(wanted == digest, "manifest {reference}: what came is {digest}");
        }
        Ok((digest, serde_json::from_slice(&bytes).with_context(|| format!("manifest {reference}"))?))
    }

    async fn blob(&self, blob: &Descriptor) -> anyhow::Result<()> {
        let bar = self.bars.as_ref().map_or_else(ProgressBar::hidden, |bars| {
            let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
            bars.add(ProgressBar::new(blob.size).with_style(style.progress_chars("#>-")))
        });
        bar.set_prefix(blob.digest.get(..19).unwrap_or(&blob.digest).to_owned());
        let mut body = self.get("blobs", &blob.digest).await?.into_body();
        let mut came = 0;
        loop {
            let frame = tokio::time::timeout(SILENCE, body.frame()).await;
            let frame = frame.with_context(|| format!("blob {}: silent after {came} bytes", blob.digest))?;
            let Some(frame) = frame else { break };
            let frame = frame.with_context(|| format!("blob {}: broke off after {came} bytes", blob.digest))?;
            let len = frame.data_ref().map_or(0, |data| data.len() as u64);
            came += len;
            bar.inc(len);
        }
        ensure!(came == blob.size, "blob {}: {came} bytes came, the manifest says {}", blob.digest, blob.size);
        bar.finish();
        if self.bars.is_none() {
            println!("{} {}", blob.digest, HumanBytes(blob.size));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(platform: &str) -> Descriptor {
        Descriptor {
            digest: platform.into(),
            size: 1,
            urls: Vec::new(),
            platform: Some(Platform::parse(platform).unwrap()),
        }
    }

    #[test]
    fn of_an_index_the_first_that_fits_is_chosen() {
        let index = [of("linux/arm/v6"), of("linux/arm/v7"), of("linux/amd64"), of("windows/amd64")];
        let chosen_for = |text: &str| -> Vec<String> {
            let platform = Platform::parse(text).unwrap();
            chosen(&index, Some(&platform)).into_iter().map(|one| one.digest.clone()).collect()
        };
        assert_eq!(chosen_for("linux/amd64"), ["linux/amd64"]);
        assert_eq!(chosen_for("linux/arm/v7"), ["linux/arm/v7"]);
        assert_eq!(chosen_for("linux/arm"), ["linux/arm/v6"]);
        assert_eq!(chosen_for("plan9/amd64"), [""; 0]);
        assert_eq!(chosen(&index, None).len(), 4);
    }

    #[test]
    fn a_platform_that_is_none_is_named() {
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d"] {
            let error = Platform::parse(text).unwrap_err().to_string();
            assert!(error.contains("--platform"), "{error}");
        }
    }
}
