//! The content store, as a proxy plugin of containerd: `containerd.services.content.v1` over the store.
//!
//! Owns what the ten calls mean and which codes they end with. Does not own bytes, claims or ingests: they are the store's.
//!
//! What always holds: `Info` is a look-up in memory, since containerd asks it with its database locked; nothing is answered for a
//! blob that is not held, and what is answered for is claimed before the answer goes out. `Unavailable` is said of a reference
//! that somebody else writes, and of nothing else: containerd asks again for ever. `List` and `Delete` do not fail, or containerd's
//! GC would end.
//!
//! containerd's metadata store is in front of us: references come with their namespace in them, and digests are asked for that
//! belong to any. Source: containerd's `api/services/content/v1/content.proto`, CONTAINERD 23 to 31; decision 014.

mod compare;
mod filter;
mod metrics;
mod opened;
mod plugin;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;

use containerd_client::services::v1 as wire;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use prost_types::Timestamp;
use shoal_proto::{Digest, DigestError, NodeId};
use tonic::{Request, Response, Status};

use super::api::content_server;
use crate::store::{self, Claimed, IngestError, IngestStatus, LabelUpdate, StoreError};

pub use filter::fuzz;
pub use metrics::Metrics;
pub use plugin::{Plugin, PluginError};
pub use write::media_type;

use filter::Filter;
use metrics::Method;
use opened::Opened;

/// Infos in one message: what containerd's own store sends at once.
const INFOS: usize = 100;
/// Bytes in one message, below what every client takes (4 MiB).
const MESSAGE: u64 = 1 << 20;

/// Answers the ten calls.
#[derive(Clone)]
pub(super) struct Content {
    store: Arc<dyn store::Content>,
    opened: Arc<Opened>,
    me: NodeId,
    metrics: Metrics,
}

impl Content {
    pub(super) fn new(store: Arc<dyn store::Content>, me: NodeId, metrics: Metrics) -> Self {
        Self { store, opened: Arc::default(), me, metrics }
    }

    fn claim(&self, digest: &str) -> Result<Claimed, Status> {
        let parsed = parse(digest)?;
        self.store.claim(&parsed).ok_or_else(|| not_found(digest))
    }

    fn listed(&self, filters: &[String]) -> Result<Vec<wire::Info>, Status> {
        let filter = Filter::parse(filters).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let claimed = self.store.claimed();
        Ok(claimed.iter().filter(|one| filter.matches(|path| field(one, path))).map(info).collect())
    }

    async fn updated(&self, request: wire::UpdateRequest) -> Result<wire::UpdateResponse, Status> {
        let asked = request.info.ok_or_else(|| Status::invalid_argument("an update needs an info"))?;
        let digest = self.claim(&asked.digest)?.digest;
        let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        let mut some = store::Labels::new();
        let mut all = paths.is_empty();
        for path in &paths {
            match path.strip_prefix("labels.") {
                Some(key) => drop(some.insert(key.to_owned(), asked.labels.get(key).cloned().unwrap_or_default())),
                None if path == "labels" => all = true,
                None => return Err(Status::invalid_argument(format!("{path:?} of a blob can't be changed"))),
            }
        }
        let update = if all { LabelUpdate::All(asked.labels.into_iter().collect()) } else { LabelUpdate::Some(some) };
        let labelled = self.store.label(&digest, update).await.map_err(|error| failed(&error))?;
        let labelled = labelled.ok_or_else(|| not_found(&asked.digest))?;
        Ok(wire::UpdateResponse { info: Some(info(&labelled)) })
    }

    /// The part of a blob that is asked for: what it is read from, and where.
    async fn part(&self, request: &wire::ReadContentRequest) -> Result<(Arc<dyn store::Held>, u64, u64), Status> {
        let claimed = self.claim(&request.digest)?;
        let offset = u64::try_from(request.offset).unwrap_or(0);
        let Some(left) = claimed.size.checked_sub(offset) else {
            return Err(Status::out_of_range(format!("the blob ends at {}", claimed.size)));
        };
        let len = u64::try_from(request.size).ok().filter(|size| *size > 0).map_or(left, |size| size.min(left));
        let held = self.opened.open(&*self.store, &claimed.digest).await.map_err(|error| failed(&error))?;
        Ok((held.ok_or_else(|| not_found(&request.digest))?, offset, len))
    }
}

#[async_trait::async_trait]
impl content_server::Content for Content {
    type ListStream = BoxStream<'static, Result<wire::ListContentResponse, Status>>;
    type ReadStream = BoxStream<'static, Result<wire::ReadContentResponse, Status>>;
    type WriteStream = BoxStream<'static, Result<wire::WriteContentResponse, Status>>;

    async fn info(&self, request: Request<wire::InfoRequest>) -> Result<Response<wire::InfoResponse>, Status> {
        let claimed = self.claim(&request.get_ref().digest);
        let answer = claimed.map(|claimed| Response::new(wire::InfoResponse { info: Some(info(&claimed)) }));
        self.metrics.counted(Method::Info, answer)
    }

    async fn update(&self, request: Request<wire::UpdateRequest>) -> Result<Response<wire::UpdateResponse>, Status> {
        let answer = self.updated(request.into_inner()).await.map(Response::new);
        self.metrics.counted(Method::Update, answer)
    }

    async fn list(&self, request: Request<wire::ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        let answer = self.listed(&request.get_ref().filters).map(|infos| {
            let parts = infos.chunks(INFOS).map(|part| Ok(wire::ListContentResponse { info: part.to_vec() }));
            Response::new(futures::stream::iter(parts.collect::<Vec<_>>()).boxed())
        });
        self.metrics.counted(Method::List, answer)
    }

    async fn delete(&self, request: Request<wire::DeleteContentRequest>) -> Result<Response<()>, Status> {
        let digest = self.metrics.counted(Method::Delete, parse(&request.get_ref().digest))?;
        self.opened.close(&digest);
        // What is not there is as it should be, as for containerd's own store: NotFound would end its GC.
        let was = self.store.unclaim(&digest).await;
        tracing::debug!(%digest, was, "containerd let go of a blob");
        Ok(Response::new(()))
    }

    async fn read(&self, request: Request<wire::ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let part = self.metrics.counted(Method::Read, self.part(request.get_ref()).await);
        let (held, offset, len) = part?;
        self.metrics.read_bytes.inc_by(len);
        if len <= MESSAGE {
            // What unpacking asks for, thousands of times: no more than this.
            let message = message(&held, offset, len).await;
            return Ok(Response::new(futures::stream::iter((len > 0).then_some(message)).boxed()));
        }
        let end = offset + len;
        let parts = futures::stream::unfold((held, offset), move |(held, at)| async move {
            let len = end.saturating_sub(at).min(MESSAGE);
            if len == 0 {
                return None;
            }
            match message(&held, at, len).await {
                Ok(part) => Some((Ok(part), (held, at + len))),
                Err(status) => Some((Err(status), (held, end))),
            }
        });
        Ok(Response::new(parts.boxed()))
    }

    async fn status(&self, request: Request<wire::StatusRequest>) -> Result<Response<wire::StatusResponse>, Status> {
        let reference = &request.get_ref().r#ref;
        let status = self.store.ingest_status(reference).ok_or_else(|| not_found(reference));
        let answer = status.map(|one| Response::new(wire::StatusResponse { status: Some(status_of(one)) }));
        self.metrics.counted(Method::Status, answer)
    }

    async fn list_statuses(
        &self,
        request: Request<wire::ListStatusesRequest>,
    ) -> Result<Response<wire::ListStatusesResponse>, Status> {
        let filter = Filter::parse(&request.get_ref().filters);
        let answer = filter.map_err(|error| Status::invalid_argument(error.to_string())).map(|filter| {
            let is_ref = |path: &[String]| matches!(path, [name] if name == "ref");
            let matching = self
                .store
                .ingests()
                .into_iter()
                .filter(|ingest| filter.matches(|path| is_ref(path).then(|| ingest.reference.as_str().into())));
            Response::new(wire::ListStatusesResponse { statuses: matching.map(status_of).collect() })
        });
        self.metrics.counted(Method::ListStatuses, answer)
    }

    async fn write(
        &self,
        request: Request<tonic::Streaming<wire::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        Ok(Response::new(write::answers(self.clone(), request.into_inner())))
    }

    async fn abort(&self, request: Request<wire::AbortRequest>) -> Result<Response<()>, Status> {
        let reference = &request.get_ref().r#ref;
        let answer = match self.store.abort(reference).await {
            Ok(true) => Ok(Response::new(())),
            Ok(false) => Err(not_found(reference)),
            Err(error) => Err(failed(&error)),
        };
        self.metrics.counted(Method::Abort, answer)
    }
}

async fn message(held: &Arc<dyn store::Held>, offset: u64, len: u64) -> Result<wire::ReadContentResponse, Status> {
    let data = opened::read(held, offset, usize::try_from(len).unwrap_or_default()).await;
    let data = data.map_err(|error| failed(&error))?;
    Ok(wire::ReadContentResponse { offset: offset.cast_signed(), data })
}

/// What is no digest is the caller's fault; a digest of another algorithm is one of a blob that nobody holds.
fn parse(digest: &str) -> Result<Digest, Status> {
    digest.parse().map_err(|error| match error {
        DigestError::Malformed => Status::invalid_argument(format!("{digest:?}: {error}")),
        DigestError::Algorithm(_) => not_found(digest),
    })
}

fn not_found(what: &str) -> Status {
    Status::not_found(format!("content {what}: not found"))
}

fn failed(error: &StoreError) -> Status {
    match error {
        StoreError::Full { .. } => {
            tracing::warn!(%error, "containerd's content finds no room");
            Status::resource_exhausted(error.to_string())
        }
        StoreError::Damaged(_) => {
            tracing::error!(%error, "containerd's content is damaged");
            Status::data_loss(error.to_string())
        }
        error => {
            tracing::error!(%error, "containerd's content can't be read or written");
            Status::internal(error.to_string())
        }
    }
}

fn refused(reference: &str, error: &IngestError) -> Status {
    let text = format!("ref {reference}: {error}");
    match error {
        IngestError::Locked => Status::unavailable(text),
        IngestError::Offset { .. } => Status::out_of_range(text),
        IngestError::Unexpected { .. } => Status::failed_precondition(text),
        IngestError::Exists(_) => Status::already_exists(text),
        IngestError::Gone => Status::aborted(text),
        IngestError::Store(error) => failed(error),
    }
}

fn field<'a>(claimed: &'a Claimed, path: &[String]) -> Option<std::borrow::Cow<'a, str>> {
    match path {
        [name] if name == "digest" => Some(claimed.digest.to_string().into()),
        [name] if name == "size" => Some(claimed.size.to_string().into()),
        [name, key @ ..] if name == "labels" => claimed.label(&key.join(".")).map(Into::into),
        _ => None,
    }
}

fn info(claimed: &Claimed) -> wire::Info {
    wire::Info {
        digest: claimed.digest.to_string(),
        size: claimed.size.cast_signed(),
        created_at: Some(timestamp(claimed.created)),
        updated_at: Some(timestamp(claimed.updated)),
        labels: claimed.labels().map(|(key, value)| (key.clone(), value.clone())).collect(),
    }
}

fn status_of(ingest: IngestStatus) -> wire::Status {
    wire::Status {
        started_at: Some(timestamp(ingest.started)),
        updated_at: Some(timestamp(ingest.updated)),
        r#ref: ingest.reference,
        offset: ingest.offset.cast_signed(),
        total: ingest.total.cast_signed(),
        expected: String::new(),
    }
}

fn timestamp(nanoseconds: u64) -> Timestamp {
    const SECOND: u64 = 1_000_000_000;
    Timestamp { seconds: (nanoseconds / SECOND).cast_signed(), nanos: (nanoseconds % SECOND) as i32 }
}
