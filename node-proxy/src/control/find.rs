//! `Find`: one stream per flight, translated into the words of `swarm`. What others signed is checked before the flight hears of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use shoal_proto::control::v1 as wire;
use shoal_proto::{Hash, Kind, NodeId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::Instrument;
use wire::find_request::Message as Say;
use wire::find_response::Message as Hear;

use super::lists::{Judge, Verdict};
use super::speak::Speaker;
use super::{CALL_TIMEOUT, Client};
use crate::swarm::{Ask, FindError, Finding, Grant, News, Parent, ParentAddr, ParentSource, Tell};

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
        let (digest, size) = (ask.digest, ask.size);
        let cluster = self.membership.borrow().as_ref().map(|hello| hello.cluster.clone());
        let cluster = cluster.ok_or_else(|| unreachable("this node is between two clusters".into()))?;
        let signs = self.signs();
        let certificate = signs.as_ref().map(|signs| signs.certificate()).unwrap_or_default();
        let mut judge = Judge::new(self.authors.clone(), cluster, digest, size);
        let (out, stream) = mpsc::channel(QUEUE);
        let start = Say::Start(wire::FindStart { certificate, ..start(ask, &assigned.session) });
        out.try_send(wire::FindRequest { message: Some(start) }).expect("the queue is new");
        let mut request = tonic::Request::new(ReceiverStream::new(stream));
        shoal_base::telemetry::inject_grpc(&span, request.metadata_mut());
        let answer = tokio::time::timeout(CALL_TIMEOUT, grpc.find(request)).await;
        let answer = answer.map_err(|_| unreachable("control does not answer".into()))?;
        let mut answer = answer.map_err(|status| unreachable(status.message().to_owned()))?.into_inner();
        let (news_out, news) = mpsc::channel(QUEUE);
        let (tell, mut tells) = mpsc::channel(QUEUE);
        let neighbours = Arc::clone(&self.neighbours);
        let mut speaker = Speaker::new(out, digest, size, signs);
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
                                let Some(message) = response.message else { continue };
                                unsaid = match judge.hear(&message, SystemTime::now()) {
                                    Verdict::Believed => news_of(message, &span),
                                    Verdict::Nothing => None,
                                    Verdict::Refused { author, first } => {
                                        if first {
                                            speaker.doubt(&author);
                                        }
                                        Some(News::Refused { author })
                                    }
                                };
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
                                if let Tell::Headers { size, .. } = &tell {
                                    judge.reads(*size);
                                }
                                if speaker.say(tell).await.is_err() {
                                    return;
                                }
                            }
                            None => break,
                        },
                        () = speaker.due() => {
                            if speaker.flush().await.is_err() {
                                return;
                            }
                        }
                    }
                }
                // Closing our half lets control read what was said before it forgets the flight.
                if speaker.flush().await.is_err() {
                    return;
                }
                drop(speaker);
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
        certificate: Vec::new(),
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
        Hear::Author(_) => return None,
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
