//! `Find`: one stream per flight, translated into the words of `swarm`.

use std::sync::Arc;
use std::time::Duration;

use shoal_proto::control::v1 as wire;
use shoal_proto::{Digest, Hash, Kind, NodeId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::Instrument;
use wire::find_request::Message as Say;
use wire::find_response::Message as Hear;

use super::{CALL_TIMEOUT, Client, Outbox};
use crate::swarm::{Ask, FindError, Finding, Grant, News, OriginTrouble, Parent, ParentAddr, ParentSource, Tell};

/// News that wait for the flight: parts of a list come fast while a flight opens its partial blob.
const QUEUE: usize = 256;

#[async_trait::async_trait]
impl ParentSource for Client {
    async fn find(&self, ask: Ask) -> Result<Finding, FindError> {
        let span = tracing::info_span!(
            "find",
            otel.kind = "client",
            digest = %ask.digest,
            may_read_origin = ask.may_read_origin,
            parents = tracing::field::Empty,
            permit = tracing::field::Empty,
        );
        self.metrics.finds.inc();
        let found = self.call(ask, span.clone()).instrument(span.clone()).await;
        if let Err(error) = &found {
            self.metrics.finds_failed.inc();
            span.in_scope(|| tracing::debug!(%error, "find failed"));
        }
        found
    }

    fn known(&self) -> Vec<Parent> {
        if self.membership.borrow().is_none() { Vec::new() } else { self.neighbours.list() }
    }
}

impl Client {
    async fn call(&self, ask: Ask, span: tracing::Span) -> Result<Finding, FindError> {
        let unreachable = |why: String| FindError::Unreachable(why);
        let mut grpc = self.grpc().ok_or_else(|| unreachable("no control is configured".into()))?;
        let assigned = self.session.load_full().ok_or_else(|| unreachable("there is no session".into()))?;
        if let Some(reason) = &assigned.alone {
            return Err(FindError::Alone(reason.clone()));
        }
        let digest = ask.digest;
        let (out, stream) = mpsc::channel(QUEUE);
        let start = Say::Start(start(ask, &assigned.session));
        out.try_send(wire::FindRequest { message: Some(start) }).expect("the queue is new");
        let mut request = tonic::Request::new(ReceiverStream::new(stream));
        shoal_base::telemetry::inject_grpc(&span, request.metadata_mut());
        let answer = tokio::time::timeout(CALL_TIMEOUT, grpc.find(request)).await;
        let answer = answer.map_err(|_| unreachable("control does not answer".into()))?;
        let mut answer = answer.map_err(|status| unreachable(status.message().to_owned()))?.into_inner();
        let (news_out, news) = mpsc::channel(QUEUE);
        let (tell, mut tells) = mpsc::channel(QUEUE);
        let neighbours = Arc::clone(&self.neighbours);
        // Ends when control closes, or when the flight has dropped both halves and the rest was sent.
        tokio::spawn(
            async move {
                // The flight may be gone, and what it told last must still be sent.
                let mut hearing = true;
                // Waits for room; meanwhile the flight is still listened to, or both would wait for each other.
                let mut unsaid = None;
                loop {
                    tokio::select! {
                        heard = answer.message(), if hearing && unsaid.is_none() => match heard {
                            Ok(Some(response)) => {
                                unsaid = response.message.and_then(|message| news_of(message, &span));
                                if let Some(News::Parents(parents)) = &unsaid {
                                    neighbours.note(parents);
                                }
                            }
                            Ok(None) => return,
                            Err(status) => return tracing::debug!(%status, "find ended"),
                        },
                        room = news_out.reserve(), if unsaid.is_some() => match (room, unsaid.take()) {
                            (Ok(room), Some(news)) => room.send(news),
                            _ => hearing = false,
                        },
                        () = news_out.closed(), if hearing => hearing = false,
                        told = tells.recv() => match told {
                            Some(tell) => {
                                if send(&out, digest, tell).await.is_err() {
                                    return;
                                }
                            }
                            None => break,
                        },
                    }
                }
                // Closing our half lets control read what was said before it forgets the flight.
                drop(out);
                let drained = async { while let Ok(Some(_)) = answer.message().await {} };
                let _ = tokio::time::timeout(Duration::from_secs(1), drained).await;
            }
            .in_current_span(),
        );
        Ok(Finding { news, tell })
    }
}

fn start(ask: Ask, session: &[u8]) -> wire::FindStart {
    let kind = match ask.kind {
        Kind::Blob => wire::Kind::Blob,
        Kind::Manifest => wire::Kind::Manifest,
    };
    wire::FindStart {
        digest: ask.digest.as_bytes().to_vec(),
        session: session.to_vec(),
        size: ask.size.unwrap_or(0),
        registry: ask.registry,
        repository: ask.repository,
        kind: kind.into(),
        may_read_origin: ask.may_read_origin,
        blocks_held: ask.blocks_held,
        permit_id: ask.permit.map_or(0, |permit| permit.id),
        permit_first_block: ask.permit.map_or(0, |permit| permit.first),
        permit_blocks: ask.permit.map_or(0, |permit| permit.blocks),
        takes_runs: ask.takes_runs,
    }
}

/// `None`: nothing that a flight needs to hear, or nothing that makes sense.
fn news_of(message: Hear, span: &tracing::Span) -> Option<News> {
    let node = |text: &str| text.parse::<NodeId>().ok();
    Some(match message {
        Hear::Parents(set) => {
            let parents: Vec<Parent> = set
                .parents
                .iter()
                .filter_map(|parent| {
                    let addr = ParentAddr(parent.addr.parse().ok()?);
                    Some(Parent { node: node(&parent.node_id)?, addr, complete: parent.complete })
                })
                .collect();
            span.record("parents", parents.len());
            News::Parents(parents)
        }
        Hear::Head(head) => News::Head { author: node(&head.author)?, size: head.size, media_type: head.media_type },
        Hear::List(part) => News::Hashes { first: part.first_block, hashes: part.hashes.into() },
        Hear::Sealed(sealed) => News::Sealed {
            author: node(&sealed.author)?,
            root: Hash::try_from(sealed.root.as_slice()).ok()?,
            size: sealed.size,
            media_type: sealed.media_type,
        },
        Hear::Permit(permit) => {
            span.record("permit", permit.permit_id);
            News::Permit(Grant { id: permit.permit_id, first: permit.first_block, blocks: permit.blocks })
        }
        Hear::Waiting(waiting) => {
            use wire::waiting::Reason;
            let reason = waiting.reason();
            let at_origin = reason == Reason::HolderWaitsForOrigin;
            News::Waiting { at_origin, reason: reason.as_str_name() }
        }
        Hear::Stop(stop) => {
            use wire::stop::Reason;
            tracing::debug!(reason = stop.reason().as_str_name(), detail = stop.detail, "control ends the find");
            match stop.reason() {
                Reason::NotFound => News::NotFound,
                Reason::Alone => News::Alone,
                Reason::PermitRevoked => News::Revoked,
                Reason::NoSession | Reason::Moved | Reason::Invalid | Reason::Unspecified => News::Again,
            }
        }
    })
}

async fn send(
    out: &Outbox<wire::FindRequest>,
    digest: Digest,
    tell: Tell,
) -> Result<(), mpsc::error::SendError<wire::FindRequest>> {
    let message = match tell {
        Tell::Headers { permit, size, media_type } => {
            Say::Headers(wire::OriginHeaders { permit_id: permit, size, media_type })
        }
        Tell::Hashes { first, hashes } => Say::List(wire::ListPart { first_block: first, hashes: hashes.to_vec() }),
        Tell::Trouble { permit, why } => {
            let (failure, after) = match why {
                OriginTrouble::Unreachable => (wire::OriginFailure::Unreachable, 0),
                OriginTrouble::NotFound => (wire::OriginFailure::NotFound, 0),
                OriginTrouble::Denied => (wire::OriginFailure::Denied, 0),
                OriginTrouble::Busy(after) => {
                    (wire::OriginFailure::Busy, after.as_millis().try_into().unwrap_or(u32::MAX))
                }
                OriginTrouble::Abandoned => (wire::OriginFailure::Abandoned, 0),
            };
            Say::Failed(wire::OriginFailed { permit_id: permit, failure: failure.into(), retry_after_ms: after })
        }
        Tell::Progress { blocks, origin_bytes } => Say::Progress(wire::Progress { blocks, origin_bytes }),
        Tell::Done { size, root, media_type } => {
            Say::Done(wire::Held { digest: digest.as_bytes().to_vec(), size, root: root.to_vec(), media_type })
        }
        Tell::Lied { node, block } => Say::Lied(wire::Lied { node_id: node.to_string(), block }),
        Tell::Lost { node } => Say::Lost(wire::Lost { node_id: node.to_string() }),
        Tell::Mismatch { author } => Say::Mismatch(wire::Mismatch { author: author.to_string() }),
    };
    out.send(wire::FindRequest { message: Some(message) }).await
}
