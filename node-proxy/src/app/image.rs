//! A whole image, fetched through the mirror of this machine as containerd would, so that the node holds it and the cluster has it.
//!
//! Nothing of it goes into containerd. The daemon keeps and offers what passes through its mirror; what comes is dropped here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures::StreamExt as _;
use http::header::{ACCEPT, AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use shoal_proto::Digest;

use super::local;
use crate::origin::{self, Origin, OriginError, Target, Witness};

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.docker.distribution.manifest.v2+json";
/// containerd takes no larger ones.
const LARGEST_MANIFEST: usize = 8 << 20;
/// As containerd fetches.
const AT_ONCE: usize = 3;
/// A body that says nothing for so long is over.
const SILENCE: Duration = Duration::from_secs(30);

/// Nobody remembers what a fetch saw.
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

/// What an image of an index is for, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Platform {
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

/// A configuration or a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    /// Bytes.
    pub(super) size: u64,
}

/// A definite answer: asked again, it would be the same.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// The registry has no such thing.
    #[error("{0}")]
    NotThere(String),
    /// The registry has nothing for whoever we logged in as. Somebody else may be let in.
    #[error("{0}")]
    NotForUs(String),
}

/// Looks on.
pub(super) trait Onlooker: Send + Sync {
    /// What the reference led to, and all that is fetched for it.
    fn resolved(&self, top: &Digest, blobs: &[Blob]);

    /// So many bytes of one of the blobs came.
    fn came(&self, blob: usize, bytes: u64);

    /// One of the blobs is there.
    fn done(&self, blob: usize);
}

/// Fetches from one repository.
pub(super) struct Fetch {
    mirror: SocketAddr,
    origin: Arc<Origin>,
    target: Target,
    shown: Mutex<Option<HeaderValue>>,
}

impl Fetch {
    /// `settings` say what the registry's challenges are answered with.
    ///
    /// # Errors
    /// What is wrong with the settings.
    pub(super) fn new(mirror: SocketAddr, settings: origin::Config, target: Target) -> anyhow::Result<Self> {
        // Counted, and shown to nobody.
        let counted = origin::Metrics::new(&mut prometheus_client::registry::Registry::default());
        let origin = Origin::new(settings, Arc::new(Nobody), counted)?;
        Ok(Self { mirror, origin, target, shown: Mutex::default() })
    }

    /// Fetches the images that a tag or digest names for these platforms; for none, all of them.
    ///
    /// # Errors
    /// What could not be had, and why.
    pub(super) async fn image(
        &self,
        reference: &str,
        platforms: &[Platform],
        onlooker: &dyn Onlooker,
    ) -> anyhow::Result<()> {
        let (top, bytes) = self.manifest(reference).await?;
        let mut images = Vec::new();
        if bytes.manifests.is_empty() {
            if let Some(config) = bytes.config.as_ref().filter(|_| !platforms.is_empty()) {
                self.is_for(config, platforms).await?;
            }
            images.push(bytes);
        } else {
            for one in chosen(&bytes.manifests, platforms)? {
                images.push(self.manifest(&one.digest).await?.1);
            }
        }
        let all = images.into_iter().flat_map(|image| image.config.into_iter().chain(image.layers));
        // Foreign layers are not the registry's to give.
        let mut blobs = all
            .filter(|blob| blob.urls.is_empty())
            .map(|blob| {
                let digest = blob.digest.parse().with_context(|| format!("{:?} in a manifest", blob.digest))?;
                Ok(Blob { digest, size: blob.size })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        blobs.sort_by_key(|blob| blob.digest);
        blobs.dedup_by_key(|blob| blob.digest);
        onlooker.resolved(&top, &blobs);
        let fetching =
            blobs.into_iter().enumerate().map(|(index, blob)| async move { self.blob(index, &blob, onlooker).await });
        let mut fetching = futures::stream::iter(fetching).buffer_unordered(AT_ONCE);
        while let Some(fetched) = fetching.next().await {
            fetched?;
        }
        Ok(())
    }

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
                    let shown = self.origin.answer(&self.target, challenges).await;
                    let shown = shown.map_err(|error| match error {
                        OriginError::Unauthorized { .. } | OriginError::Denied { .. } => {
                            Refused::NotForUs(format!("the login is not taken: {error}")).into()
                        }
                        other => anyhow::Error::from(other),
                    });
                    *self.shown.lock() = shown.context("answer the registry's challenge")?;
                }
                status => {
                    let why = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                    let why = format!("{what} {reference}: {status}: {}", said(&why));
                    match status {
                        StatusCode::NOT_FOUND => bail!(Refused::NotThere(why)),
                        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => bail!(Refused::NotForUs(why)),
                        _ => bail!(why),
                    }
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

    /// An image that no index names says in its configuration what it is for. One that says nothing is no image for a platform.
    async fn is_for(&self, config: &Descriptor, platforms: &[Platform]) -> anyhow::Result<()> {
        let body = self.get("blobs", &config.digest).await?.into_body();
        let body = http_body_util::Limited::new(body, LARGEST_MANIFEST).collect().await;
        let bytes = body.map_err(|error| anyhow::anyhow!("configuration {}: {error}", config.digest))?.to_bytes();
        let Ok(one) = serde_json::from_slice::<Platform>(&bytes) else { return Ok(()) };
        match platforms.iter().find(|wanted| !one.fits(wanted)) {
            Some(wanted) => bail!(Refused::NotThere(format!("the image is for {one} alone, not for {wanted}"))),
            None => Ok(()),
        }
    }

    async fn blob(&self, index: usize, blob: &Blob, onlooker: &dyn Onlooker) -> anyhow::Result<()> {
        let digest = &blob.digest;
        let mut body = self.get("blobs", &digest.to_string()).await?.into_body();
        let mut came = 0;
        loop {
            let frame = tokio::time::timeout(SILENCE, body.frame()).await;
            let frame = frame.with_context(|| format!("blob {digest}: silent after {came} bytes"))?;
            let Some(frame) = frame else { break };
            let frame = frame.with_context(|| format!("blob {digest}: broke off after {came} bytes"))?;
            let len = frame.data_ref().map_or(0, |data| data.len() as u64);
            came += len;
            onlooker.came(index, len);
        }
        ensure!(came == blob.size, "blob {digest}: {came} bytes came, the manifest says {}", blob.size);
        onlooker.done(index);
        Ok(())
    }
}

/// Of each platform, the first image of an index that fits; all of them without platforms.
fn chosen<'a>(manifests: &'a [Descriptor], platforms: &[Platform]) -> anyhow::Result<Vec<&'a Descriptor>> {
    if platforms.is_empty() {
        return Ok(manifests.iter().collect());
    }
    let of = |wanted: &Platform| {
        let fits = |one: &&Descriptor| one.platform.as_ref().is_none_or(|platform| platform.fits(wanted));
        manifests.iter().find(fits).ok_or_else(|| {
            let there: Vec<String> = manifests.iter().filter_map(|one| one.platform.as_ref()?.shown()).collect();
            Refused::NotThere(format!("there is no image for {wanted}, only for {}", there.join(", ")))
        })
    };
    Ok(platforms.iter().map(of).collect::<Result<_, _>>()?)
}

/// What a refusal says, without the JSON around it (OCI distribution spec 1.1, "Error Codes").
fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Said>,
    }
    #[derive(Deserialize)]
    struct Said {
        #[serde(default)]
        message: String,
    }
    let messages = serde_json::from_slice::<Errors>(body).ok().map(|said| {
        said.errors.into_iter().map(|one| one.message).filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ")
    });
    messages.filter(|text| !text.is_empty()).unwrap_or_else(|| String::from_utf8_lossy(body).into_owned())
}

impl std::str::FromStr for Platform {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut parts = text.split('/').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None) if !os.is_empty() && !architecture.is_empty() => {
                Ok(Self { os, architecture, variant: variant.unwrap_or_default() })
            }
            _ => bail!("{text:?} is not os/architecture or os/architecture/variant"),
        }
    }
}

impl Platform {
    /// That of this machine.
    pub(super) fn here() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: std::env::consts::OS.to_owned(), architecture: architecture.to_owned(), variant: String::new() }
    }

    /// `None`: it is for no platform that anything runs on, as what builders attest to an image.
    fn shown(&self) -> Option<String> {
        (self.os != "unknown").then(|| self.to_string())
    }

    /// The variant, where it is not the only one: that of containerd's `platforms.Normalize`.
    fn told_apart(&self) -> &str {
        match (self.architecture.as_str(), self.variant.as_str()) {
            ("arm64", "v8") | ("amd64", "v1") => "",
            ("arm", "") => "v7",
            (_, variant) => variant,
        }
    }

    fn fits(&self, wanted: &Self) -> bool {
        let variant = wanted.variant.is_empty() || self.told_apart() == wanted.told_apart();
        self.os == wanted.os && self.architecture == wanted.architecture && variant
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(platform: &str) -> Descriptor {
        Descriptor { digest: platform.into(), size: 1, urls: Vec::new(), platform: Some(platform.parse().unwrap()) }
    }

    #[test]
    fn of_an_index_the_first_that_fits_is_chosen_for_each_platform() {
        let index = [of("linux/arm/v6"), of("linux/arm/v7"), of("linux/amd64"), of("windows/amd64")];
        let chosen_for = |texts: &[&str]| -> anyhow::Result<Vec<String>> {
            let platforms: Vec<Platform> = texts.iter().map(|text| text.parse().unwrap()).collect();
            Ok(chosen(&index, &platforms)?.into_iter().map(|one| one.digest.clone()).collect())
        };
        assert_eq!(chosen_for(&["linux/amd64"]).unwrap(), ["linux/amd64"]);
        assert_eq!(chosen_for(&["linux/arm/v7", "linux/amd64"]).unwrap(), ["linux/arm/v7", "linux/amd64"]);
        assert_eq!(chosen_for(&["linux/arm"]).unwrap(), ["linux/arm/v6"]);
        assert_eq!(chosen_for(&[]).unwrap().len(), 4);
        assert_eq!(chosen_for(&["linux/amd64/v1"]).unwrap(), ["linux/amd64"]);
        let none = chosen_for(&["linux/amd64", "plan9/amd64"]).unwrap_err().to_string();
        assert_eq!(
            none,
            "there is no image for plan9/amd64, only for linux/arm/v6, linux/arm/v7, linux/amd64, windows/amd64"
        );
    }

    #[test]
    fn a_refusal_is_told_in_its_own_words() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"r.test does not have it"}]}"#;
        assert_eq!(said(body), "r.test does not have it");
        for plain in ["<html>", "{\"errors\":[]}", ""] {
            assert_eq!(said(plain.as_bytes()), plain);
        }
    }

    #[test]
    fn a_platform_that_is_none_is_named() {
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d"] {
            let error = text.parse::<Platform>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
