//! A channel to containerd's socket.

use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

/// A socket on this machine is there, or it is not.
const CONNECT: Duration = Duration::from_secs(5);

/// Connects; a channel that breaks connects again at its next call.
///
/// # Errors
/// When nobody listens there.
pub async fn connect(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://containerd").connect_timeout(CONNECT).connect_with_connector(connector).await
}

/// A request in one of containerd's namespaces.
///
/// # Errors
/// The namespace has no form as a header.
pub fn in_namespace<T>(message: T, namespace: &str) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let value = MetadataValue::try_from(namespace).map_err(|_| Status::invalid_argument("no name of a namespace"))?;
    request.metadata_mut().insert("containerd-namespace", value);
    Ok(request)
}
