//! One request to a daemon on this machine.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Who listens on this machine answers within this, or says that it can't.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends a request and gives the head of the answer, with its body to come.
///
/// # Errors
/// When nobody listens there, or the answer is none.
pub(super) async fn send(
    at: SocketAddr,
    method: Method,
    path: &str,
    headers: &HeaderMap,
) -> anyhow::Result<Response<Incoming>> {
    let asking = async {
        let stream = TcpStream::connect(at).await.with_context(|| format!("connect to shoal-node at {at}"))?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(http::header::HOST, at.to_string());
        if let Some(all) = request.headers_mut() {
            all.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        Ok(sender.send_request(request.body(Empty::<Bytes>::new())?).await?)
    };
    timeout(PATIENCE, asking).await.with_context(|| format!("{at} says nothing"))?
}

/// A page of the admin port.
///
/// # Errors
/// When it can't be had.
pub(super) async fn page(at: SocketAddr, path: &str) -> anyhow::Result<Bytes> {
    let answer = send(at, Method::GET, path, &HeaderMap::new()).await?;
    ensure!(answer.status() == StatusCode::OK, "{at}{path} answers {}", answer.status());
    Ok(answer.into_body().collect().await?.to_bytes())
}
