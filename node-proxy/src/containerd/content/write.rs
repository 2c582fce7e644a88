//! One `Write` stream: what each message of it does. The stream is polled by the connection, so that a client that goes takes it
//! along, and with it the lock on its reference.

use std::collections::HashMap;

use containerd_client::services::v1 as wire;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use serde::Deserialize;
use shoal_proto::Digest;
use tonic::{Status, Streaming};
use wire::WriteAction;

use super::metrics::{Method, Writer};
use super::{Content, refused, timestamp};
use crate::store::{Commit, Ingest, IngestError};

/// A manifest is not larger (4 MiB is what containerd reads of one).
const LARGEST_MANIFEST: u64 = 4 << 20;

/// A stream, its ingest once that is open.
struct Stream {
    content: Content,
    requests: Streaming<wire::WriteContentRequest>,
    session: Option<Session>,
    over: bool,
    _counted: Writer,
}

/// What the messages of a stream have said so far.
struct Session {
    ingest: Ingest,
    reference: String,
    total: u64,
    expected: Option<Digest>,
}

/// What the stream answers, one message for each that comes.
pub(super) fn answers(
    content: Content,
    requests: Streaming<wire::WriteContentRequest>,
) -> BoxStream<'static, Result<wire::WriteContentResponse, Status>> {
    let counted = content.metrics.writer();
    let stream = Stream { content, requests, session: None, over: false, _counted: counted };
    futures::stream::unfold(stream, |mut stream| async move {
        if stream.over {
            return None;
        }
        let request = match stream.requests.message().await {
            Ok(Some(request)) => request,
            // The client has closed it, or is gone.
            Ok(None) | Err(_) => {
                stream.content.metrics.count(Method::Write, tonic::Code::Ok);
                return None;
            }
        };
        let commits = request.action == WriteAction::Commit as i32;
        let answer = stream.answer(request).await;
        if commits || answer.is_err() {
            let code = answer.as_ref().err().map_or(tonic::Code::Ok, Status::code);
            stream.content.metrics.count(Method::Write, code);
            stream.over = true;
            // The next writer need not wait until this answer was taken.
            stream.session = None;
        }
        Some((answer, stream))
    })
    .boxed()
}

impl Stream {
    async fn answer(&mut self, mut request: wire::WriteContentRequest) -> Result<wire::WriteContentResponse, Status> {
        let expected = match request.expected.as_str() {
            "" => None,
            text => {
                Some(text.parse::<Digest>().map_err(|error| Status::invalid_argument(format!("{text:?}: {error}")))?)
            }
        };
        let total = u64::try_from(request.total).unwrap_or(0);
        if let Some(digest) = expected
            && self.content.store.claim(&digest).is_some()
        {
            if let Some(session) = &self.session {
                session.ingest.discard().await.map_err(|error| refused(&session.reference, &error))?;
            }
            return Err(Status::already_exists(format!("content {digest}: already exists")));
        }
        if self.session.is_none() {
            let reference = std::mem::take(&mut request.r#ref);
            if reference.is_empty() {
                return Err(Status::invalid_argument("the first message must have a reference"));
            }
            let opened = self.content.store.ingest(&reference, total).await;
            let ingest = opened.map_err(|error| refused(&reference, &error))?;
            self.session = Some(Session { ingest, reference, total: 0, expected: None });
        }
        let Some(session) = &mut self.session else { return Err(Status::internal("there is no ingest")) };
        session.expected = expected.or(session.expected);
        session.total = if total > 0 { total } else { session.total };
        let answer = session.act(&self.content, request).await;
        answer.map_err(|error| refused(&session.reference, &error))
    }
}

impl Session {
    async fn act(
        &self,
        content: &Content,
        request: wire::WriteContentRequest,
    ) -> Result<wire::WriteContentResponse, IngestError> {
        let before = self.ingest.status()?;
        let action = WriteAction::try_from(request.action).unwrap_or(WriteAction::Stat);
        let mut digest = None;
        let mut offset = before.offset;
        if action != WriteAction::Stat {
            match u64::try_from(request.offset) {
                Ok(0) if offset > 0 => {
                    self.ingest.truncate().await?;
                    offset = 0;
                }
                Ok(asked) if asked != offset => return Err(IngestError::Offset { offset, asked }),
                _ => {}
            }
            let len = request.data.len() as u64;
            if len > 0 {
                digest = Some(self.ingest.write(offset, request.data).await?);
                content.metrics.written_bytes.inc_by(len);
                offset += len;
            }
        }
        // A commit uses the ingest up.
        let status = self.ingest.status()?;
        if action == WriteAction::Commit {
            digest = Some(self.commit(content, request.labels).await?);
        }
        let digest = match digest {
            Some(digest) => digest,
            None => self.ingest.digest().await?,
        };
        Ok(wire::WriteContentResponse {
            action: action as i32,
            started_at: Some(timestamp(status.started)),
            updated_at: Some(timestamp(status.updated)),
            offset: offset.cast_signed(),
            total: if self.total > 0 { self.total } else { status.total }.cast_signed(),
            digest: digest.to_string(),
        })
    }

    async fn commit(&self, content: &Content, labels: HashMap<String, String>) -> Result<Digest, IngestError> {
        let small = self.ingest.small(LARGEST_MANIFEST).await?.unwrap_or_default();
        let commit = Commit {
            total: self.total,
            expected: self.expected,
            author: content.me.clone(),
            media_type: media_type(&small).into(),
            labels: labels.into_iter().collect(),
        };
        self.ingest.commit(commit).await
    }
}

/// The Content-Type of a manifest or an index, for whoever takes it from here: containerd does not tell. Empty for all else.
///
/// OCI image-spec, manifest.md and image-index.md: `mediaType` should be there, and is this one when it is not.
pub fn media_type(bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Manifest {
        schema_version: u8,
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
    }
    if bytes.first() != Some(&b'{') {
        return String::new();
    }
    match serde_json::from_slice::<Manifest>(bytes) {
        Ok(Manifest { schema_version: 2, media_type: Some(media_type), .. }) => media_type,
        Ok(Manifest { schema_version: 2, manifests: Some(_), .. }) => "application/vnd.oci.image.index.v1+json".into(),
        Ok(Manifest { schema_version: 2, layers: Some(_), .. }) => "application/vnd.oci.image.manifest.v1+json".into(),
        _ => String::new(),
    }
}
