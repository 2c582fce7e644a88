//! A plain client that pulls as containerd does, from one node: manifest, configuration and layers, the mirror first and then the
//! registry, a body that ends early by `Range` from where it ended. It checks every digest, and knows what each byte should be.
use std::{
    error::Error,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use sha2::{Digest, Sha256};

use super::tally::Shared;
use crate::{
    http::{Client, empty},
    image::{Image, ImageBlob},
    net::Netns,
    registry,
    token::Signer,
};

const MIRROR_PORT: u16 = 5080;
const REGISTRY_PORT: u16 = 443;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// How long containerd waits for headers (CONTAINERD 11).
const HEADERS: Duration = Duration::from_secs(30);
/// A body without a byte for so long fails the try, as kubelet's progress limit does in the end.
const SILENCE: Duration = Duration::from_secs(45);
/// How often a body that ended early is asked for again without a byte more (CONTAINERD 15).
const FRUITLESS: u32 = 4;
/// Layers at once, as CRI asks for them.
const AT_ONCE: usize = 3;

/// An image on the registry.
#[derive(Debug)]
pub(super) struct Pushed {
    pub(super) image: Image,
    pub(super) repository: String,
}

impl Pushed {
    /// As `crictl` names it.
    pub(super) fn name(&self) -> String {
        format!("{}/{}:1", registry::HOST, self.repository)
    }
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    Mirror,
    Registry,
}

/// Why a try failed: short, the same words for the same reason, so that it can be counted.
type Why = String;

/// Pulls on one node.
#[derive(Clone)]
pub(super) struct PlainClient {
    node: String,
    mirror: Client,
    registry: Client,
    signer: Signer,
    tally: Shared,
}

/// A body, with what was asked for.
struct Answer {
    host: Host,
    body: Incoming,
}

impl PlainClient {
    pub(super) fn new(ns: &Netns, at: Ipv4Addr, tls: Arc<rustls::ClientConfig>, signer: Signer, tally: Shared) -> Self {
        let mirror = SocketAddr::from((Ipv4Addr::LOCALHOST, MIRROR_PORT));
        let at = SocketAddr::new(IpAddr::V4(at), REGISTRY_PORT);
        Self {
            node: ns.name.clone(),
            mirror: Client::plain(ns, mirror),
            registry: Client::tls(ns, at, registry::HOST, tls),
            signer,
            tally,
        }
    }

    /// One try at an image.
    pub(super) async fn pull(&self, pushed: &Pushed) -> Result<(), Why> {
        let token =
            self.signer.token(&pushed.repository, &["pull"]).map_err(|error| format!("sign a token: {error}"))?;
        let manifest = format!("/v2/{}/manifests/", pushed.repository);
        self.resolve(&format!("{manifest}1"), &token, &pushed.image.digest).await?;
        let text = pushed.image.manifest.as_bytes();
        self.fetch(&format!("{manifest}{}", pushed.image.digest), &token, &pushed.image.digest, text.len() as u64)
            .await?;
        let blobs = pushed.image.blobs().map(|blob| self.blob(pushed, blob, &token));
        let mut fetches = futures::stream::iter(blobs.collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
        let mut failed = None;
        while let Some(fetched) = fetches.next().await {
            // containerd gives up the others at the first that fails.
            if let Err(why) = fetched {
                failed = Some(why);
                break;
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn blob(&self, pushed: &Pushed, blob: &ImageBlob, token: &str) -> Result<(), Why> {
        let path = format!("/v2/{}/blobs/{}", pushed.repository, blob.digest);
        self.fetch(&path, token, &blob.digest, blob.size).await
    }

    /// The digest behind a tag, by HEAD.
    async fn resolve(&self, path: &str, token: &str, digest: &str) -> Result<(), Why> {
        let mut last = String::new();
        for host in [Host::Mirror, Host::Registry] {
            match self.ask(host, Method::HEAD, path, token, None).await {
                Ok(answer) if answer.status() == StatusCode::OK => {
                    let says = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
                    if says == Some(digest) {
                        return Ok(());
                    }
                    if host == Host::Mirror {
                        self.tally.wrong(format!("{}: HEAD {path} gives the digest {says:?}", self.node));
                    }
                    return Err("a tag with another digest".to_owned());
                }
                Ok(answer) => last = format!("HEAD at the {host:?}: {}", answer.status().as_u16()),
                Err(why) => last = format!("HEAD at the {host:?}: {why}"),
            }
            if host == Host::Mirror {
                self.tally.sent_on(last.clone());
            }
        }
        Err(last)
    }

    /// Content by its digest, wherever its bytes come from.
    async fn fetch(&self, path: &str, token: &str, digest: &str, size: u64) -> Result<(), Why> {
        let (mut hash, mut got, mut fruitless) = (Sha256::new(), 0_u64, 0);
        let mut hosts: Vec<Host> = Vec::new();
        while got < size {
            let answer = self.open(path, token, got, size).await?;
            hosts.push(answer.host);
            let before = got;
            let ended = self.read(answer, &mut hash, &mut got, size).await;
            if got >= size {
                break;
            }
            ended?;
            self.tally.continued();
            fruitless = if got == before { fruitless + 1 } else { 0 };
            if fruitless == FRUITLESS {
                return Err("a body that ended four times without a byte".to_owned());
            }
        }
        let found = format!("sha256:{}", hex::encode(hash.finalize()));
        if found == digest {
            return Ok(());
        }
        if hosts == [Host::Mirror] {
            // I1: a lie ends in a FIN, never in a complete body.
            self.tally.wrong(format!("{}: the mirror gave {path} whole with other bytes: {found}", self.node));
        }
        Err(format!("other bytes, from {hosts:?}"))
    }

    /// The first host that gives the bytes from `from` on.
    async fn open(&self, path: &str, token: &str, from: u64, size: u64) -> Result<Answer, Why> {
        let mut last = String::new();
        for host in [Host::Mirror, Host::Registry] {
            let range = (from > 0).then(|| format!("bytes={from}-"));
            match self.ask(host, Method::GET, path, token, range).await {
                Ok(answer) => {
                    let wanted = if from > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
                    let (status, says) = (answer.status(), length(&answer));
                    if status == wanted && says.is_none_or(|says| says == size - from) {
                        return Ok(Answer { host, body: answer.into_body() });
                    }
                    last = match says {
                        Some(_) if status == wanted => format!("GET at the {host:?}: another length"),
                        _ => format!("GET at the {host:?}: {}", status.as_u16()),
                    };
                }
                Err(why) => last = format!("GET at the {host:?}: {why}"),
            }
            if host == Host::Mirror {
                self.tally.sent_on(last.clone());
            }
        }
        Err(last)
    }

    /// Reads until the body ends, well or by FIN; an error is a RST, or silence, and fails the try.
    async fn read(&self, answer: Answer, hash: &mut Sha256, got: &mut u64, size: u64) -> Result<(), Why> {
        let Answer { host, mut body } = answer;
        loop {
            let frame = match tokio::time::timeout(SILENCE, body.frame()).await {
                Err(_) => return Err(format!("silence in a body of the {host:?}")),
                Ok(None) => return Ok(()),
                Ok(Some(frame)) => frame,
            };
            let chunk = match frame {
                Ok(frame) => frame.into_data().unwrap_or_default(),
                Err(error) if is_reset(&error) => return Err(format!("a RST in a body of the {host:?}")),
                Err(_) => return Ok(()),
            };
            if chunk.len() as u64 > size - *got {
                return Err(format!("a body of the {host:?} that is too long"));
            }
            hash.update(&chunk);
            *got += chunk.len() as u64;
            self.tally.got(chunk.len() as u64, host == Host::Registry);
        }
    }

    async fn ask(
        &self,
        host: Host,
        method: Method,
        path: &str,
        token: &str,
        range: Option<String>,
    ) -> Result<Response<Incoming>, Why> {
        let (client, uri) = match host {
            Host::Mirror => (&self.mirror, format!("{path}?ns={}", registry::HOST)),
            Host::Registry => (&self.registry, path.to_owned()),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::ACCEPT, MANIFEST)
            .header(header::USER_AGENT, "lab-chaos/1");
        if let Some(range) = range {
            request = request.header(header::RANGE, range);
        }
        let request = request.body(empty()).map_err(|error| error.to_string())?;
        let since = Instant::now();
        let answer = tokio::time::timeout(HEADERS, client.open(request)).await;
        if host == Host::Mirror {
            self.tally.headers_after(since.elapsed());
        }
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(in_short(error.as_ref())),
            Err(_) => {
                if host == Host::Mirror {
                    // I8: containerd waits no longer, and some versions fail the pull.
                    self.tally.wrong(format!("{}: the mirror said nothing to {path} for {HEADERS:?}", self.node));
                }
                Err("no headers in time".to_owned())
            }
        }
    }
}

fn length(answer: &Response<Incoming>) -> Option<u64> {
    answer.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn is_reset(error: &hyper::Error) -> bool {
    io_kind(error) == Some(ErrorKind::ConnectionReset)
}

/// Why there is no answer, in words that are the same for the same reason.
fn in_short(error: &(dyn Error + 'static)) -> Why {
    match io_kind(error) {
        Some(ErrorKind::ConnectionRefused) => "nobody listens".to_owned(),
        Some(ErrorKind::ConnectionReset) => "a RST instead of an answer".to_owned(),
        Some(ErrorKind::TimedOut | ErrorKind::WouldBlock) => "no connection in time".to_owned(),
        Some(ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => "no way there".to_owned(),
        Some(ErrorKind::InvalidData) => "a certificate that is not good".to_owned(),
        Some(kind) => format!("no answer: {kind}"),
        None => "a FIN instead of an answer".to_owned(),
    }
}

/// What the system said, when it was the system.
fn io_kind(error: &(dyn Error + 'static)) -> Option<ErrorKind> {
    let mut cause = Some(error);
    while let Some(one) = cause {
        if let Some(io) = one.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        cause = one.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn the_reason_is_found_below_what_was_tried() {
        let refused = std::io::Error::from(ErrorKind::ConnectionRefused);
        let error = Err::<(), _>(refused).context("connect").context("ask").unwrap_err();
        assert_eq!(in_short(error.as_ref()), "nobody listens");
        assert_eq!(in_short(anyhow::anyhow!("else").as_ref()), "a FIN instead of an answer");
    }
}
