//! A small registry for tests: real sockets on loopback, answers from a closure, and a record of what was asked.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use shoal_proto::Digest;
use tokio::net::TcpListener;

/// A body that is cut where a test says so.
type Streamed = StreamBody<BoxStream<'static, Result<Frame<Bytes>, std::io::Error>>>;

/// What a server was asked.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// The body of a reply.
pub(crate) enum Content {
    /// With Content-Length; a HEAD gets the length alone.
    Whole(Bytes),
    /// Without Content-Length.
    Chunked(Bytes),
    /// These bytes of so many announced, and then the connection ends.
    Broken(Bytes, u64),
    /// These bytes of so many announced, and then silence.
    Silent(Bytes, u64),
}

/// A reply to one request.
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    content: Content,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), content: Content::Whole(Bytes::new()) }
    }

    pub(crate) fn ok(bytes: impl Into<Bytes>) -> Self {
        Self::status(200).content(Content::Whole(bytes.into()))
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn content(mut self, content: Content) -> Self {
        self.content = content;
        self
    }

    fn into_response(self, head: bool) -> Response<Streamed> {
        let mut response = Response::builder().status(self.status);
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        let (length, bytes, end) = match self.content {
            Content::Whole(bytes) => (Some(bytes.len() as u64), bytes, End::Clean),
            Content::Chunked(bytes) => (None, bytes, End::Clean),
            Content::Broken(bytes, length) => (Some(length), bytes, End::Broken),
            Content::Silent(bytes, length) => (Some(length), bytes, End::Silent),
        };
        if let Some(length) = length {
            response = response.header("content-length", length);
        }
        let first = futures::stream::iter([Ok(Frame::data(bytes))]);
        let stream = match end {
            _ if head => futures::stream::empty().boxed(),
            End::Clean => first.boxed(),
            // A turn of the runtime in between, so that the bytes are flushed.
            End::Broken => first
                .chain(futures::stream::once(async {
                    tokio::task::yield_now().await;
                    Err(std::io::Error::other("broken on purpose"))
                }))
                .boxed(),
            End::Silent => first.chain(futures::stream::pending()).boxed(),
        };
        response.body(StreamBody::new(stream)).unwrap()
    }
}

enum End {
    Clean,
    Broken,
    Silent,
}

/// A server on loopback; it ends with the runtime of the test, or when dropped.
pub(crate) struct TestServer {
    pub(crate) addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    accepting: tokio::task::JoinHandle<()>,
    /// The CA of a TLS server, and the folder that holds it.
    pub(crate) ca: Option<(PathBuf, tempfile::TempDir)>,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl TestServer {
    /// Plain HTTP. `make` gets the server's own `scheme://host:port`.
    pub(crate) async fn start<H>(make: impl FnOnce(String) -> H) -> Self
    where
        H: Fn(&Seen) -> Reply + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        Self::serve(listener, Arc::new(make(base)), None)
    }

    /// HTTPS for `localhost` and 127.0.0.1, by a CA made for this server.
    pub(crate) async fn start_tls<H>(make: impl FnOnce(String) -> H) -> Self
    where
        H: Fn(&Seen) -> Reply + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("https://{}", listener.local_addr().unwrap());
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, made.cert.pem()).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let mut server = Self::serve(listener, Arc::new(make(base)), Some(Arc::new(config)));
        server.ca = Some((path, folder));
        server
    }

    fn serve<H>(listener: TcpListener, handler: Arc<H>, tls: Option<Arc<rustls::ServerConfig>>) -> Self
    where
        H: Fn(&Seen) -> Reply + Send + Sync + 'static,
    {
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (handler, log, tls) = (Arc::clone(&handler), Arc::clone(&log), tls.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (parts, _) = request.into_parts();
                        let path = parts.uri.to_string();
                        let seen = Seen { method: parts.method, path, headers: parts.headers };
                        let reply = handler(&seen).into_response(seen.method == Method::HEAD);
                        log.lock().push(seen);
                        async { Ok::<_, Infallible>(reply) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = match tls {
                        None => http.serve_connection(TokioIo::new(stream), service).await,
                        Some(tls) => match tokio_rustls::TlsAcceptor::from(tls).accept(stream).await {
                            Ok(stream) => http.serve_connection(TokioIo::new(stream), service).await,
                            Err(_) => return,
                        },
                    };
                });
            }
        });
        Self { addr, seen, accepting, ca: None }
    }

    /// `scheme://host:port`
    pub(crate) fn base(&self) -> String {
        format!("{}://{}", if self.ca.is_some() { "https" } else { "http" }, self.addr)
    }

    /// All that was asked so far, in order.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// How many requests had a path that starts so.
    pub(crate) fn count(&self, prefix: &str) -> usize {
        self.seen.lock().iter().filter(|seen| seen.path.starts_with(prefix)).count()
    }
}

/// The digest of bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

/// A reply with all, or the range that was asked for, of some bytes.
pub(crate) fn ranged(seen: &Seen, bytes: &Bytes) -> Reply {
    let Some(range) = seen.header("range").and_then(|range| range.strip_prefix("bytes=")) else {
        return Reply::ok(bytes.clone());
    };
    let (first, last) = range.split_once('-').unwrap();
    let size = bytes.len();
    let range = match (first, last) {
        ("", n) => size.saturating_sub(n.parse().unwrap())..size,
        (first, "") => first.parse().unwrap()..size,
        (first, last) => first.parse().unwrap()..(last.parse::<usize>().unwrap() + 1).min(size),
    };
    if range.start >= range.end {
        return Reply::status(416).with("content-range", format!("bytes */{size}"));
    }
    Reply::status(206)
        .with("content-range", format!("bytes {}-{}/{size}", range.start, range.end - 1))
        .content(Content::Whole(bytes.slice(range)))
}
