//! A reader of a node's mirror that is not containerd: for many readers, slow ones, and blobs outside any image.
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};

use crate::{
    http::{Client, empty},
    image::ImageBlob,
    net::Netns,
    registry,
    token::Signer,
};

const PORT: u16 = 5080;

/// Reads from the mirror of one node, with an anonymous token as containerd would after the challenge.
#[derive(Clone)]
pub struct MirrorReader {
    client: Client,
    signer: Signer,
}

impl MirrorReader {
    /// Reads inside the node's namespace.
    pub fn new(ns: &Netns, signer: Signer) -> Self {
        Self { client: Client::plain(ns, SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT)), signer }
    }

    /// Reads a whole blob, `pause` after each chunk, and checks length and digest.
    ///
    /// # Errors
    /// When the answer is not 200, ends early, or holds other bytes.
    pub async fn read(&self, repository: &str, blob: &ImageBlob, pause: Duration) -> Result<()> {
        let token = self.signer.token(repository, &["pull"])?;
        let request = Request::builder()
            .method(Method::GET)
            .uri(format!("/v2/{repository}/blobs/{}?ns={}", blob.digest, registry::HOST))
            .header(header::AUTHORIZATION, format!("Bearer {token}"));
        let answer = self.client.open(request.body(empty())?).await?;
        let status = answer.status();
        let mut body = answer.into_body();
        if status != StatusCode::OK {
            let text = body.collect().await?.to_bytes();
            bail!("{}: the mirror answered {status}: {}", blob.digest, String::from_utf8_lossy(&text));
        }
        let (mut hash, mut size) = (Sha256::new(), 0);
        while let Some(frame) = body.frame().await {
            let frame = frame.with_context(|| format!("{}: the answer broke off after {size} bytes", blob.digest))?;
            let Ok(chunk) = frame.into_data() else { continue };
            hash.update(&chunk);
            size += chunk.len() as u64;
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        ensure!(size == blob.size, "{}: {size} bytes of {}", blob.digest, blob.size);
        let found = format!("sha256:{}", hex::encode(hash.finalize()));
        ensure!(found == blob.digest, "{}: other bytes: {found}", blob.digest);
        Ok(())
    }
}
