//! One reader: a plain HTTP client that reads a manifest and its blob as containerd does, notes how far it is, and checks what it got.
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    http::{Client, empty},
    image::{Image, ImageBlob},
};

/// Marks of progress that are noted, in parts of the blob.
const MARKS: u64 = 20;

/// How a read went; seconds since it began.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Until the headers.
    pub headers: f64,
    /// Until the first byte.
    pub first_byte: f64,
    /// Until 5 %, 10 % and so on up to 100 % of the bytes.
    pub marks: Vec<f64>,
    /// Until the end of the body.
    pub end: f64,
    /// The longest time without a byte, between the first byte and the end.
    pub longest_pause: f64,
}

/// What is read, and where.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Path of the repository, `/v2/lab/crowd`.
    pub(super) repository: String,
    /// What follows a `?`, with it; or nothing.
    pub(super) query: String,
    pub(super) token: String,
    /// The manifest is read first: it tells the mirror how long the blob is.
    pub(super) image: Image,
}

impl Wanted {
    pub(super) fn blob(&self) -> &ImageBlob {
        &self.image.layers[0]
    }
}

/// Reads the manifest, then its first layer, and checks both; fails after `bound`. Tells when the blob was asked for; its progress
/// counts from there.
pub(super) async fn read(client: &Client, wanted: &Wanted, bound: Duration) -> Result<(Instant, Progress)> {
    let reading = async {
        let Wanted { repository, query, image, .. } = wanted;
        let uri = format!("{repository}/manifests/{}{query}", image.digest);
        let manifest = ask(client, &uri, wanted).await?.into_body().collect().await?.to_bytes();
        ensure!(manifest == image.manifest.as_bytes(), "{uri}: other bytes");
        let begin = Instant::now();
        Ok((begin, read_blob(client, wanted, begin).await?))
    };
    tokio::time::timeout(bound, reading).await.with_context(|| format!("not read within {bound:?}"))?
}

async fn ask(client: &Client, uri: &str, wanted: &Wanted) -> Result<Response<Incoming>> {
    let request = Request::builder()
        .method(Method::GET)
        .uri(uri)
        .header(header::AUTHORIZATION, format!("Bearer {}", wanted.token))
        .header(header::ACCEPT, wanted.image.media_type.as_str())
        .header(header::ACCEPT, "*/*")
        .header(header::USER_AGENT, "lab-crowd/1");
    let answer = client.open(request.body(empty())?).await?;
    let status = answer.status();
    if status != StatusCode::OK {
        let text = answer.into_body().collect().await?.to_bytes();
        bail!("{uri}: {status} {}", String::from_utf8_lossy(&text));
    }
    Ok(answer)
}

async fn read_blob(client: &Client, wanted: &Wanted, begin: Instant) -> Result<Progress> {
    let blob = wanted.blob();
    let uri = format!("{}/blobs/{}{}", wanted.repository, blob.digest, wanted.query);
    let mut body = ask(client, &uri, wanted).await?.into_body();
    let mut progress = Progress { headers: begin.elapsed().as_secs_f64(), ..Progress::default() };
    let (mut hash, mut size, mut last) = (Sha256::new(), 0_u64, None);
    while let Some(frame) = body.frame().await {
        let frame = frame.with_context(|| format!("{uri}: the answer broke off after {size} bytes"))?;
        let Ok(chunk) = frame.into_data() else { continue };
        let now = begin.elapsed().as_secs_f64();
        match last {
            None => progress.first_byte = now,
            Some(before) => progress.longest_pause = progress.longest_pause.max(now - before),
        }
        last = Some(now);
        size += chunk.len() as u64;
        while (progress.marks.len() as u64) < MARKS && size * MARKS >= blob.size * (progress.marks.len() as u64 + 1) {
            progress.marks.push(now);
        }
        hash.update(&chunk);
    }
    progress.end = begin.elapsed().as_secs_f64();
    ensure!(size == blob.size, "{uri}: {size} bytes of {}", blob.size);
    let found = format!("sha256:{}", hex::encode(hash.finalize()));
    ensure!(found == blob.digest, "{uri}: other bytes: {found}");
    Ok(progress)
}
