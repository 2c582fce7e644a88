//! One reader: a plain HTTP client that notes how far it is, and checks what it got.
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    http::{Client, empty},
    image::ImageBlob,
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

/// Reads a blob at `uri` and checks it; fails after `bound`.
pub(super) async fn read(
    client: &Client,
    uri: &str,
    token: &str,
    blob: &ImageBlob,
    bound: Duration,
) -> Result<Progress> {
    let reading = read_unbounded(client, uri, token, blob);
    tokio::time::timeout(bound, reading).await.with_context(|| format!("{uri}: not read within {bound:?}"))?
}

async fn read_unbounded(client: &Client, uri: &str, token: &str, blob: &ImageBlob) -> Result<Progress> {
    let begin = Instant::now();
    let request = Request::builder()
        .method(Method::GET)
        .uri(uri)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::USER_AGENT, "lab-crowd/1");
    let answer = client.open(request.body(empty())?).await?;
    let mut progress = Progress { headers: begin.elapsed().as_secs_f64(), ..Progress::default() };
    let status = answer.status();
    let mut body = answer.into_body();
    if status != StatusCode::OK {
        let text = body.collect().await?.to_bytes();
        bail!("{uri}: {status} {}", String::from_utf8_lossy(&text));
    }
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
