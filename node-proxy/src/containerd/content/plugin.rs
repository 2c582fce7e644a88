//! The socket of the content store, and its life.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use shoal_base::drain::Drain;
use shoal_proto::NodeId;
use tokio::net::UnixStream;
use tonic::transport::Server;

use super::{Content, Metrics, compare};
use crate::containerd::Config;
use crate::containerd::api::content_server::ContentServer;
use crate::containerd::socket::Socket;
use crate::store;

/// A message is at most 16 MiB of data (CONTAINERD 29), and what is around it.
const LARGEST_MESSAGE: usize = (16 << 20) + (64 << 10);
/// What may be on its way to us before we take it: a stream writes without waiting for each window.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Until a connection is taken again after the system refused one.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// The content store of containerd. Listens since it was made, and serves when it runs.
pub struct Plugin {
    socket: Socket,
    config: Config,
    content: Content,
    store: Arc<dyn store::Content>,
    metrics: Metrics,
}

/// Why this daemon does not serve as a content store.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// It runs in a pod of the containerd that would need it to start.
    #[error(
        "containerd.content = \"plugin\" does not work in a pod ({0}): containerd starts pods, and would wait for its content \
         store before it starts one. Run shoal-node under systemd, before containerd"
    )]
    InPod(&'static str),
    /// Somebody else is there.
    #[error("containerd.content_listen: listen on {0}: {1}")]
    Listen(String, std::io::Error),
}

impl Plugin {
    /// Binds the socket.
    ///
    /// # Errors
    /// [`PluginError`].
    pub async fn bind(
        config: Config,
        path: &Path,
        store: Arc<dyn store::Content>,
        me: NodeId,
        metrics: Metrics,
    ) -> Result<Self, PluginError> {
        let in_environment = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        if let Some(sign) = in_pod(in_environment, Path::new("/var/run/secrets/kubernetes.io").exists()) {
            return Err(PluginError::InPod(sign));
        }
        Self::listen(config, path, store, me, metrics).await
    }

    pub(super) async fn listen(
        config: Config,
        path: &Path,
        store: Arc<dyn store::Content>,
        me: NodeId,
        metrics: Metrics,
    ) -> Result<Self, PluginError> {
        let socket =
            Socket::bind(path).await.map_err(|error| PluginError::Listen(path.display().to_string(), error))?;
        let content = Content::new(Arc::clone(&store), me, metrics.clone());
        tracing::info!(socket = %socket.path().display(), "containerd's content is kept here");
        Ok(Self { socket, config, content, store, metrics })
    }

    /// Serves on a thread of its own until the signal: a client that unpacks asks for the next 32 KiB when it has the last, and each
    /// hand-over between threads would be a part of its wait (CONTAINERD 30).
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(self, drain: Drain) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("content".into()).spawn(move || runtime.block_on(self.run(drain)))?;
        Ok(())
    }

    /// Serves until the signal; then takes no new stream, and those that run go on as long as they are let.
    pub(super) async fn run(self, drain: Drain) {
        let working = drain.guard();
        let opened = Arc::clone(&self.content.opened);
        let service = ContentServer::new(self.content).max_decoding_message_size(LARGEST_MESSAGE);
        let server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(1 << 20)
            .add_service(service);
        let signalled = {
            let drain = drain.clone();
            async move { drain.signalled().await }
        };
        let socket = Arc::new(self.socket);
        let serve = server.serve_with_incoming_shutdown(connections(Arc::clone(&socket)), signalled);
        let beside = async {
            tokio::join!(compare::run(self.store, &self.config, &self.metrics), opened.keep_tidy());
        };
        tokio::select! {
            served = serve => match served {
                Ok(()) => tracing::debug!("content store ended"),
                Err(error) => tracing::error!(%error, "content store ended"),
            },
            () = beside => {}
        }
        drop((working, socket));
    }
}

fn connections(socket: Arc<Socket>) -> impl Stream<Item = std::io::Result<UnixStream>> {
    futures::stream::unfold(socket, |socket| async move {
        loop {
            match socket.listener.accept().await {
                Ok((connection, _)) => return Some((Ok(connection), socket)),
                Err(error) => {
                    tracing::warn!(%error, "accept a connection to the content store");
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            }
        }
    })
}

/// What shows that this is a pod.
fn in_pod(variable: bool, secrets: bool) -> Option<&'static str> {
    match (variable, secrets) {
        (true, _) => Some("KUBERNETES_SERVICE_HOST is set"),
        (_, true) => Some("/var/run/secrets/kubernetes.io is there"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_known_by_its_variable_or_its_secrets() {
        assert!(in_pod(true, false).is_some_and(|sign| sign.contains("KUBERNETES_SERVICE_HOST")));
        assert!(in_pod(false, true).is_some_and(|sign| sign.contains("secrets")));
        assert_eq!(in_pod(false, false), None);
    }
}
