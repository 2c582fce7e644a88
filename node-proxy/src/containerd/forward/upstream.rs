//! The connection to containerd.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::{Body, Failed, WINDOWS, grpc};

/// A socket on this machine is there, or it is not.
const CONNECT: Duration = Duration::from_secs(5);

/// One client's connection to containerd.
pub(super) struct Upstream {
    path: PathBuf,
    sender: Mutex<Option<http2::SendRequest<Body>>>,
}

/// A request's body goes on as it came.
pub(super) fn passed(body: Incoming) -> Body {
    body.map_err(Failed::from).boxed_unsync()
}

impl Upstream {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), sender: Mutex::default() }
    }

    /// Sends a request on, and gives containerd's answer; `UNAVAILABLE` when there is no containerd.
    pub(super) async fn send(&self, mut request: Request<Body>) -> Response<Body> {
        let mut sender = match self.sender().await {
            Ok(sender) => sender,
            Err(error) => return grpc::refusal(&self.away(&error)),
        };
        // An authority is all that may be missing of a client's request on a socket.
        *request.version_mut() = http::Version::HTTP_2;
        if request.uri().authority().is_none() || request.uri().scheme().is_none() {
            let mut parts = request.uri().clone().into_parts();
            parts.scheme.get_or_insert(http::uri::Scheme::HTTP);
            parts.authority.get_or_insert(http::uri::Authority::from_static("localhost"));
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
        match sender.send_request(request).await {
            Ok(answer) => answer.map(|body| Passing { body, path: self.path.clone(), over: false }.boxed_unsync()),
            Err(error) => grpc::refusal(&self.away(&error)),
        }
    }

    fn away(&self, error: &dyn Display) -> Status {
        away(&self.path, error)
    }

    async fn sender(&self) -> Result<http2::SendRequest<Body>, Failed> {
        let mut kept = self.sender.lock().await;
        if let Some(sender) = kept.as_mut().filter(|sender| !sender.is_closed())
            && sender.ready().await.is_ok()
        {
            return Ok(sender.clone());
        }
        let stream = timeout(CONNECT, UnixStream::connect(&self.path)).await??;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .max_send_buf_size(WINDOWS.0 as usize)
            .max_header_list_size(super::MOST_HEADERS)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to containerd ended");
            }
        });
        Ok(kept.insert(sender).clone())
    }
}

fn away(path: &Path, error: &dyn Display) -> Status {
    tracing::debug!(%error, containerd = %path.display(), "containerd does not answer");
    Status::new(Code::Unavailable, format!("containerd at {}: {error}", path.display()))
}

/// An answer on its way to the client: if containerd goes in the middle, the client hears so in the words of gRPC.
struct Passing {
    body: Incoming,
    path: PathBuf,
    over: bool,
}

impl http_body::Body for Passing {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Ready(Some(Err(error))) => {
                this.over = true;
                let mut trailers = HeaderMap::new();
                // What has no form as a header can't be said.
                let _ = away(&this.path, &error).add_header(&mut trailers);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            polled => polled.map_err(Failed::from),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
