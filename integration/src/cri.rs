//! The lab's own client of containerd's CRI, beside `crictl`: for many pulls at once, and for what `crictl` does not show.
use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// The generated stubs.
#[expect(missing_docs, reason = "generated from integration/proto")]
#[allow(unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

use v1::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};

/// A connection to containerd's socket.
#[derive(Debug, Clone)]
pub struct Cri {
    images: ImageServiceClient<Channel>,
    runtime: RuntimeServiceClient<Channel>,
}

impl Cri {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens on the socket.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let socket = socket.to_owned();
        // The address is never looked at: the connector below goes to the socket.
        let channel = Endpoint::from_static("http://containerd")
            .connect_timeout(Duration::from_secs(5))
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }))
            .await
            .context("connect to containerd")?;
        Ok(Self { images: ImageServiceClient::new(channel.clone()), runtime: RuntimeServiceClient::new(channel) })
    }

    /// Name and version of the runtime.
    ///
    /// # Errors
    /// When CRI is not served (yet).
    pub async fn version(&mut self) -> Result<String> {
        let answer =
            self.runtime.version(v1::VersionRequest::default()).await.context("ask for the version")?.into_inner();
        Ok(format!("{} {}", answer.runtime_name, answer.runtime_version))
    }

    /// Pulls an image and gives its id.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn pull(&mut self, image: &str) -> Result<String> {
        let request = v1::PullImageRequest { image: Some(spec(image)), auth: None };
        Ok(self.images.pull_image(request).await.with_context(|| format!("pull {image}"))?.into_inner().image_ref)
    }

    /// The image, when containerd has it.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn status(&mut self, image: &str) -> Result<Option<v1::Image>> {
        let request = v1::ImageStatusRequest { image: Some(spec(image)), verbose: false };
        Ok(self.images.image_status(request).await.with_context(|| format!("ask for {image}"))?.into_inner().image)
    }

    /// All images.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn list(&mut self) -> Result<Vec<v1::Image>> {
        Ok(self
            .images
            .list_images(v1::ListImagesRequest { filter: None })
            .await
            .context("list images")?
            .into_inner()
            .images)
    }

    /// Removes an image; its content goes at containerd's next collection.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn remove(&mut self, image: &str) -> Result<()> {
        let request = v1::RemoveImageRequest { image: Some(spec(image)) };
        self.images.remove_image(request).await.with_context(|| format!("remove {image}"))?;
        Ok(())
    }
}

fn spec(image: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: image.to_owned(), ..Default::default() }
}
