//! A channel to containerd's socket.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::{ListContentRequest, ListNamespacesRequest};
use hyper_util::rt::TokioIo;
use shoal_proto::Digest;
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

/// Every blob that containerd knows, in any namespace. Digests of another kind than ours are left out.
///
/// # Errors
/// What containerd says.
pub async fn known_blobs(channel: &Channel) -> Result<HashSet<Digest>, Status> {
    let namespaces = NamespacesClient::new(channel.clone()).list(ListNamespacesRequest::default()).await?;
    let mut known = HashSet::new();
    for namespace in namespaces.into_inner().namespaces {
        let request = in_namespace(ListContentRequest::default(), &namespace.name)?;
        let mut parts = ContentClient::new(channel.clone()).list(request).await?.into_inner();
        while let Some(part) = parts.message().await? {
            known.extend(part.info.iter().filter_map(|info| info.digest.parse::<Digest>().ok()));
        }
    }
    Ok(known)
}

/// A request in one of containerd's namespaces.
fn in_namespace<T>(message: T, namespace: &str) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let value = MetadataValue::try_from(namespace).map_err(|_| Status::invalid_argument("no name of a namespace"))?;
    request.metadata_mut().insert("containerd-namespace", value);
    Ok(request)
}
