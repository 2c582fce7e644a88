//! A small HTTP/1.1 client that speaks from inside a namespace: one connection for each request, which is all that a lab needs.
use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::TryStreamExt;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::net::Netns;

/// A body to send.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// A server, and where to ask it from.
#[derive(Clone)]
pub struct Client {
    /// `None`: from where this process is.
    from: Option<Netns>,
    to: SocketAddr,
    host: String,
    tls: Option<Arc<rustls::ClientConfig>>,
    /// Shown with each request that shows nothing itself.
    bearer: Option<String>,
}

impl Client {
    /// Plain HTTP to a server of this machine, outside any namespace.
    pub fn here(to: SocketAddr) -> Self {
        Self { from: None, to, host: to.to_string(), tls: None, bearer: None }
    }

    /// Plain HTTP.
    pub fn plain(from: &Netns, to: SocketAddr) -> Self {
        Self { from: Some(from.clone()), to, host: to.to_string(), tls: None, bearer: None }
    }

    /// HTTPS to a server that answers to `host`.
    pub fn tls(from: &Netns, to: SocketAddr, host: &str, tls: Arc<rustls::ClientConfig>) -> Self {
        Self { from: Some(from.clone()), to, host: host.to_owned(), tls: Some(tls), bearer: None }
    }

    /// The same, showing a token.
    #[must_use]
    pub fn bearing(self, token: &str) -> Self {
        Self { bearer: Some(format!("Bearer {token}")), ..self }
    }

    /// GETs a path, with a bound of ten seconds.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        let request = Request::builder().method(Method::GET).uri(path).body(empty())?;
        tokio::time::timeout(Duration::from_secs(10), self.send(request))
            .await
            .with_context(|| format!("GET {path} from {} took more than 10 s", self.to))?
    }

    /// GETs a path that must be answered with 200, as text.
    ///
    /// # Errors
    /// When there is no answer, or another one.
    pub async fn get_text(&self, path: &str) -> Result<String> {
        let answer = self.get(path).await?;
        if answer.status != StatusCode::OK {
            bail!("GET {path} from {}: {} {}", self.to, answer.status, String::from_utf8_lossy(&answer.body));
        }
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// Sends a request and reads the whole answer. `Host` is filled in.
    ///
    /// # Errors
    /// When the connection can't be made or breaks.
    pub async fn send(&self, request: Request<Body>) -> Result<Answer> {
        let (head, body) = self.open(request).await?.into_parts();
        let body = body.collect().await.context("read the answer")?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    /// Sends a request and gives the answer as it begins. `Host` is filled in. The connection lasts as long as the body is read.
    ///
    /// # Errors
    /// When the connection can't be made or breaks.
    pub async fn open(&self, mut request: Request<Body>) -> Result<Response<Incoming>> {
        request.headers_mut().insert(header::HOST, self.host.parse()?);
        if let Some(bearer) = &self.bearer {
            request.headers_mut().entry(header::AUTHORIZATION).or_insert(bearer.parse()?);
        }
        let stream = match &self.from {
            Some(from) => from.connect(self.to).await?,
            None => TcpStream::connect(self.to).await.with_context(|| format!("connect to {}", self.to))?,
        };
        match &self.tls {
            None => exchange(stream, request).await,
            Some(config) => {
                let host = self.host.split(':').next().unwrap_or_default().to_owned();
                let name = ServerName::try_from(host).context("the server has no proper name")?;
                let stream = tokio_rustls::TlsConnector::from(config.clone()).connect(name, stream).await?;
                exchange(stream, request).await
            }
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Body>,
) -> Result<Response<Incoming>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends when the body was read, or is dropped.
    tokio::spawn(connection);
    sender.send_request(request).await.context("send the request")
}

/// No body.
pub fn empty() -> Body {
    full(Bytes::new())
}

/// A body that is in memory.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// A body that is read from a file as it is sent.
pub fn from_file(file: tokio::fs::File) -> Body {
    let chunks = tokio_util::io::ReaderStream::with_capacity(file, 256 << 10);
    BodyExt::boxed(StreamBody::new(chunks.map_ok(Frame::data)))
}
