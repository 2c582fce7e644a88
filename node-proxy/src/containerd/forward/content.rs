//! Content that containerd lacks and the cluster holds.
//!
//! containerd is asked first, and its answer stands unless it is `NOT_FOUND`. What comes from the cluster is verified as every
//! byte of this node is (I1); a stream whose content turns out wrong ends with `DATA_LOSS`.

use std::collections::HashMap;

use bytes::Bytes;
use containerd_client::services::v1::{Info, InfoRequest, InfoResponse, ReadContentRequest, ReadContentResponse};
use http::Request;
use hyper::body::Incoming;
use prost::Message;
use shoal_proto::Digest;
use tonic::{Code, Status};

use super::upstream::Upstream;
use super::{Body, Forward, Response, grpc};
use crate::blob::{Opened, ReadError};

/// A digest and two numbers.
const MOST: usize = 64 << 10;
/// Where an answer of ours came from.
const SOURCE: (&str, &str) = ("shoal/source", "cluster");

impl Forward {
    /// `Info`.
    pub(super) async fn info(&self, request: Request<Incoming>, upstream: &Upstream) -> Response<Body> {
        let (asked, answer) = match self.ask::<InfoRequest>(request, upstream).await {
            Ok(both) => both,
            Err(answer) => return answer,
        };
        let Some((digest, opened)) = self.open(&asked.digest).await else { return answer };
        self.metrics.from_cluster.inc();
        let labels = HashMap::from([(SOURCE.0.to_owned(), SOURCE.1.to_owned())]);
        // When it was made is not known; containerd's clients take nothing for that.
        let size = i64::try_from(opened.size()).unwrap_or(i64::MAX);
        let info = Info { digest: digest.to_string(), size, labels, ..Info::default() };
        grpc::reply(&InfoResponse { info: Some(info) })
    }

    /// `Read`.
    pub(super) async fn read(&self, request: Request<Incoming>, upstream: &Upstream) -> Response<Body> {
        let (asked, answer) = match self.ask::<ReadContentRequest>(request, upstream).await {
            Ok(both) => both,
            Err(answer) => return answer,
        };
        let Some((_, opened)) = self.open(&asked.digest).await else { return answer };
        self.metrics.from_cluster.inc();
        let range = match range(&asked, opened.size()) {
            Ok(range) => range,
            Err(status) => return grpc::refusal(&status),
        };
        let (reading, bytes) = (opened.read(range.clone()), self.metrics.bytes.clone());
        let parts = futures::stream::unfold((reading, range.start), move |(mut reading, at)| {
            let bytes = bytes.clone();
            async move {
                let part = match reading.next().await? {
                    Ok(data) => {
                        bytes.inc_by(data.len() as u64);
                        Ok(data)
                    }
                    Err(error) => Err(status(&error)),
                };
                let next = at + part.as_ref().map_or(0, |data| data.len() as u64);
                let message = part.map(|data| {
                    let offset = i64::try_from(at).unwrap_or(i64::MAX);
                    Bytes::from(ReadContentResponse { offset, data: data.into() }.encode_to_vec())
                });
                Some((message, (reading, next)))
            }
        });
        grpc::answer(parts)
    }

    /// What is asked, when containerd lacks it; else the answer.
    async fn ask<M: Message + Default>(
        &self,
        request: Request<Incoming>,
        upstream: &Upstream,
    ) -> Result<(M, Response<Body>), Response<Body>> {
        let (head, body) = request.into_parts();
        let looked = grpc::look(body, MOST).await;
        let answer = upstream.send(Request::from_parts(head, looked.body)).await;
        let Some(asked) = looked.message.and_then(|message| M::decode(message).ok()) else { return Err(answer) };
        let (lacking, answer) = grpc::is_refused(answer, Code::NotFound).await;
        if lacking { Ok((asked, answer)) } else { Err(answer) }
    }

    /// Opens what the cluster holds. Of anything else containerd's own answer stands.
    async fn open(&self, digest: &str) -> Option<(Digest, Opened)> {
        let digest: Digest = digest.parse().ok()?;
        match self.blobs.open_in_cluster(digest).await {
            Ok(opened) => Some((digest, opened)),
            Err(ReadError::NotFound(_)) => None,
            Err(error) => {
                tracing::info!(%digest, %error, "content that containerd lacks can't be had from the cluster");
                None
            }
        }
    }
}

/// The bytes that are asked for. As containerd's own: a size of 0, or one past the end, is the rest.
fn range(asked: &ReadContentRequest, size: u64) -> Result<std::ops::Range<u64>, Status> {
    let out = |what: &str| Status::out_of_range(format!("{what}, and the content has {size} bytes"));
    let from = u64::try_from(asked.offset).map_err(|_| out("offset is negative"))?;
    let len = u64::try_from(asked.size).map_err(|_| out("size is negative"))?;
    if from > size {
        return Err(out(&format!("offset is {from}")));
    }
    let end = if len == 0 { size } else { from.saturating_add(len).min(size) };
    Ok(from..end)
}

fn status(error: &ReadError) -> Status {
    let code = match error {
        ReadError::Mismatched(_) => Code::DataLoss,
        ReadError::NotFound(_) => Code::NotFound,
        _ => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_as_containerd_reads_it() {
        let ask = |offset, size| range(&ReadContentRequest { digest: String::new(), offset, size }, 10);
        assert_eq!(ask(0, 0).unwrap(), 0..10);
        assert_eq!(ask(3, 4).unwrap(), 3..7);
        assert_eq!(ask(3, 0).unwrap(), 3..10);
        assert_eq!(ask(3, 40).unwrap(), 3..10);
        assert_eq!(ask(10, 5).unwrap(), 10..10);
        assert_eq!(ask(0, i64::MAX).unwrap(), 0..10);
        for (offset, size) in [(11, 0), (-1, 0), (0, -1)] {
            assert_eq!(ask(offset, size).unwrap_err().code(), Code::OutOfRange, "{offset} {size}");
        }
    }
}
