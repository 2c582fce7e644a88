//! Connections: names are resolved here, so that the address rule is checked on the very address connected to.

use std::error::Error as StdError;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use http::Uri;
use http::uri::Scheme;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

use super::address::{Named, refusal};

pub(super) type BoxError = Box<dyn StdError + Send + Sync>;

/// Before the next address of a name is tried beside the first (RFC 8305 section 5 recommends 250 ms).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// No connection was tried, because a rule forbids it.
#[derive(Debug, thiserror::Error)]
#[error("{host} is {why}, which is not allowed")]
pub(super) struct Refusal {
    host: String,
    why: &'static str,
}

/// Connects, with TLS where the scheme says so, within a time.
#[derive(Clone)]
pub(super) struct Connector {
    inner: HttpsConnector<Dialer>,
    timeout: Duration,
}

impl Connector {
    pub(super) fn new(dialer: Dialer, tls: rustls::ClientConfig, timeout: Duration) -> Self {
        Self { inner: HttpsConnector::from((dialer, tls)), timeout }
    }
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<Dialed>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let (connecting, timeout) = (self.inner.call(url), self.timeout);
        Box::pin(async move {
            tokio::time::timeout(timeout, connecting)
                .await
                .unwrap_or_else(|_| Err(format!("no connection within {timeout:?}").into()))
        })
    }
}

/// Opens the TCP connection: to the host, or through a proxy.
#[derive(Clone)]
pub(super) struct Dialer(Arc<Rules>);

struct Rules {
    named: Named,
    proxies: Matcher,
}

impl Dialer {
    pub(super) fn new(named: Named, proxies: Matcher) -> Self {
        Self(Arc::new(Rules { named, proxies }))
    }
}

impl Service<Uri> for Dialer {
    type Response = Dialed;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Dialed, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let rules = Arc::clone(&self.0);
        Box::pin(async move {
            match rules.proxies.intercept(&url) {
                None => direct(&url, Some(&rules.named)).await,
                Some(proxy) => through(&proxy, url, &rules.named).await,
            }
        })
    }
}

/// Through a proxy the name is resolved elsewhere, so only what is written as an address can be checked. The proxy itself
/// is the operator's choice and may be anywhere.
async fn through(proxy: &Intercept, url: Uri, named: &Named) -> Result<Dialed, BoxError> {
    let (host, port) = place(&url)?;
    let local = host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost");
    let ip = if local { Some(IpAddr::from([127, 0, 0, 1])) } else { host.parse().ok() };
    if let Some(why) = ip.and_then(|ip| refusal(SocketAddr::new(ip, port), named)) {
        return Err(Refusal { host, why }.into());
    }
    if proxy.uri().scheme() != Some(&Scheme::HTTP) {
        return Err("only proxies at http:// are supported".into());
    }
    if url.scheme() == Some(&Scheme::HTTP) {
        return Ok(Dialed { proxied: true, ..direct(proxy.uri(), None).await? });
    }
    let mut tunnel =
        Tunnel::new(proxy.uri().clone(), tower::service_fn(|uri: Uri| async move { direct(&uri, None).await }));
    if let Some(auth) = proxy.basic_auth() {
        tunnel = tunnel.with_auth(auth.clone());
    }
    Ok(tunnel.call(url).await?)
}

fn place(url: &Uri) -> Result<(String, u16), BoxError> {
    let host = url.host().ok_or("an URL without host")?;
    let usual = if url.scheme() == Some(&Scheme::HTTP) { 80 } else { 443 };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok((host, url.port_u16().unwrap_or(usual)))
}

/// Connects to a host; `named` is `None` where the address rule does not hold (a configured proxy).
async fn direct(url: &Uri, named: Option<&Named>) -> Result<Dialed, BoxError> {
    let (host, port) = place(url)?;
    let found: Vec<SocketAddr> = match host.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => tokio::net::lookup_host((host.as_str(), port)).await?.collect(),
    };
    let mut why = None;
    let mut allowed: Vec<SocketAddr> = Vec::new();
    for addr in found {
        match named.and_then(|named| refusal(addr, named)) {
            Some(refused) => why = Some(refused),
            None => allowed.push(addr),
        }
    }
    match (allowed.is_empty(), why) {
        (true, Some(why)) => Err(Refusal { host, why }.into()),
        (true, None) => Err(format!("{host} has no address").into()),
        (false, _) => {
            let tcp = race(allowed).await?;
            tcp.set_nodelay(true)?;
            Ok(Dialed { io: TokioIo::new(tcp), proxied: false })
        }
    }
}

/// The first address that answers; the next is tried when one fails or takes long.
async fn race(addrs: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut left = addrs.into_iter();
    let mut trying = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    trying.extend(left.next().map(TcpStream::connect));
    loop {
        let next = tokio::time::sleep(NEXT_ADDRESS);
        tokio::select! {
            done = trying.next() => match done {
                Some(Ok(tcp)) => return Ok(tcp),
                Some(Err(error)) => {
                    last = error;
                    trying.extend(left.next().map(TcpStream::connect));
                }
                None => return Err(last),
            },
            () = next, if left.len() > 0 => trying.extend(left.next().map(TcpStream::connect)),
        }
    }
}

/// A TCP connection to a host, or to a proxy that wants whole URLs.
pub(super) struct Dialed {
    io: TokioIo<TcpStream>,
    proxied: bool,
}

impl Connection for Dialed {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.proxied)
    }
}

impl Read for Dialed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Dialed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
