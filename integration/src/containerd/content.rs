//! A client of a content store, containerd's or one that stands in for it: as containerd itself asks, call by call.
use std::path::Path;

use anyhow::{Context, Result};
use containerd_client::services::v1::{
    Info, InfoRequest, ListContentRequest, ReadContentRequest, Status as Ingest, StatusRequest, WriteAction,
    WriteContentRequest, WriteContentResponse, content_client::ContentClient,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint, Uri},
};

/// Largest message: an answer to `Read` has up to 3 MiB of a blob.
const MESSAGE: usize = 16 << 20;

/// A connection to a gRPC server at a socket.
///
/// # Errors
/// When nobody listens there.
pub async fn connect(socket: &Path) -> Result<Channel> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://socket");
    endpoint.connect_with_connector(connector).await.with_context(|| format!("connect to {}", socket.display()))
}

/// A content store.
#[derive(Debug, Clone)]
pub struct ContentStore(ContentClient<Channel>);

impl ContentStore {
    /// Connects, on a connection of its own.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect(socket: &Path) -> Result<Self> {
        Ok(Self(ContentClient::new(connect(socket).await?).max_decoding_message_size(MESSAGE)))
    }

    /// What it says of a blob.
    ///
    /// # Errors
    /// Its answer.
    pub async fn info(&mut self, digest: &str) -> Result<Info, Status> {
        let answer = self.0.info(InfoRequest { digest: digest.to_owned() }).await?;
        answer.into_inner().info.ok_or_else(|| Status::internal("an answer without info"))
    }

    /// How far what is written under a reference is.
    ///
    /// # Errors
    /// Its answer.
    pub async fn status(&mut self, reference: &str) -> Result<Ingest, Status> {
        let answer = self.0.status(StatusRequest { r#ref: reference.to_owned() }).await?;
        answer.into_inner().status.ok_or_else(|| Status::internal("an answer without status"))
    }

    /// How many blobs it lists.
    ///
    /// # Errors
    /// Its answer.
    pub async fn count(&mut self) -> Result<usize, Status> {
        let mut answers = self.0.list(ListContentRequest { filters: Vec::new() }).await?.into_inner();
        let mut count = 0;
        while let Some(answer) = answers.message().await? {
            count += answer.info.len();
        }
        Ok(count)
    }

    /// A range of a blob, in one call as containerd's reader makes it.
    ///
    /// # Errors
    /// Its answer.
    pub async fn read(&mut self, digest: &str, offset: i64, size: i64) -> Result<Vec<u8>, Status> {
        let request = ReadContentRequest { digest: digest.to_owned(), offset, size };
        let mut answers = self.0.read(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(answer) = answers.message().await? {
            bytes.extend(answer.data);
        }
        Ok(bytes)
    }

    /// Opens a stream of writes. The reference is named by the first message.
    ///
    /// # Errors
    /// Its answer.
    pub async fn writer(&mut self) -> Result<Writer, Status> {
        let (requests, queue) = mpsc::channel(1);
        // The answer's headers come with the first message.
        let mut client = self.0.clone();
        let opening = tokio::spawn(async move { client.write(ReceiverStream::new(queue)).await });
        Ok(Writer { requests, opening: Some(opening), answers: None })
    }
}

/// A stream of writes. Dropped, it is broken off.
#[derive(Debug)]
pub struct Writer {
    requests: mpsc::Sender<WriteContentRequest>,
    opening: Option<tokio::task::JoinHandle<Result<tonic::Response<Streaming<WriteContentResponse>>, Status>>>,
    answers: Option<Streaming<WriteContentResponse>>,
}

impl Writer {
    /// Asks how far the reference is; opens it.
    ///
    /// # Errors
    /// The answer.
    pub async fn stat(&mut self, reference: &str, total: i64) -> Result<WriteContentResponse, Status> {
        let request = WriteContentRequest {
            action: WriteAction::Stat as i32,
            r#ref: reference.to_owned(),
            total,
            ..WriteContentRequest::default()
        };
        self.say(request).await
    }

    /// Writes bytes at an offset.
    ///
    /// # Errors
    /// The answer.
    pub async fn write(&mut self, offset: usize, data: &[u8]) -> Result<WriteContentResponse, Status> {
        let request = WriteContentRequest {
            action: WriteAction::Write as i32,
            offset: i64::try_from(offset).map_err(|_| Status::internal("an offset beyond 2^63"))?,
            data: data.to_vec(),
            ..WriteContentRequest::default()
        };
        self.say(request).await
    }

    /// What commits the whole as `digest`.
    pub fn commit_of(digest: &str, total: i64) -> WriteContentRequest {
        WriteContentRequest {
            action: WriteAction::Commit as i32,
            offset: total,
            total,
            expected: digest.to_owned(),
            ..WriteContentRequest::default()
        }
    }

    /// Sends a message and waits for its answer.
    ///
    /// # Errors
    /// The answer.
    pub async fn say(&mut self, request: WriteContentRequest) -> Result<WriteContentResponse, Status> {
        self.send(request).await?;
        if let Some(opening) = self.opening.take() {
            let opened = opening.await.map_err(|error| Status::internal(error.to_string()))?;
            self.answers = Some(opened?.into_inner());
        }
        let answers = self.answers.as_mut().ok_or_else(|| Status::internal("the stream is over"))?;
        answers.message().await?.ok_or_else(|| Status::aborted("the stream has ended"))
    }

    /// Sends a message alone.
    ///
    /// # Errors
    /// When the stream is over.
    pub async fn send(&self, request: WriteContentRequest) -> Result<(), Status> {
        self.requests.send(request).await.map_err(|_| Status::aborted("the stream is over"))
    }
}
