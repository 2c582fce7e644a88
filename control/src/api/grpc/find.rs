//! One flight's Find stream.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use shoal_base::drain::Drain;
use shoal_proto::control::v1 as wire;
use shoal_proto::{Digest, NodeId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::Instrument as _;

use super::parse;
use crate::swarm::{Ask, FinderId, Grant, Proof, Say, Stop, Swarm, Waiting};

type Answer = Result<wire::FindResponse, Status>;

/// For the last word to a node that does not read.
const FAREWELL: Duration = Duration::from_secs(1);

/// The answer to a stream that names no live session.
pub(super) fn unknown_session() -> BoxStream<'static, Answer> {
    futures::stream::iter([Ok(say(Say::Stop(Stop::NoSession)))]).boxed()
}

/// Takes what the flight says, and answers with the swarm's words.
pub(super) fn serve(
    swarm: Arc<Swarm>,
    drain: Drain,
    node: NodeId,
    ask: Ask,
    requests: Streaming<wire::FindRequest>,
    span: tracing::Span,
) -> BoxStream<'static, Answer> {
    // The swarm's own queue is the one with room; here is only what is being sent.
    let (answers, receiver) = mpsc::channel(1);
    let digest = ask.digest;
    let (finder, words) = span.in_scope(|| swarm.find(node, ask));
    let talk = async move {
        let end = tokio::select! {
            end = listen(&swarm, finder, digest, requests) => end,
            end = speak(words, &answers) => end,
            () = drain.signalled() => End::Failed(Status::unavailable("control is going down")),
        };
        swarm.ended(finder, matches!(end, End::Closed));
        if let End::Failed(status) = end {
            tracing::debug!(%status, "find ended");
            let _ = tokio::time::timeout(FAREWELL, answers.send(Err(status))).await;
        }
    };
    tokio::spawn(talk.instrument(span));
    ReceiverStream::new(receiver).boxed()
}

enum End {
    /// The node closed it on purpose, or was told to stop.
    Closed,
    /// The connection broke.
    Broken,
    /// This side ends it.
    Failed(Status),
}

async fn listen(swarm: &Swarm, finder: FinderId, digest: Digest, mut requests: Streaming<wire::FindRequest>) -> End {
    loop {
        match requests.message().await {
            // A newer node may say what this version does not know.
            Ok(Some(wire::FindRequest { message: None })) => {}
            Ok(Some(wire::FindRequest { message: Some(message) })) => match parse::tell(message, digest) {
                Ok(tell) => swarm.tell(finder, tell),
                Err(status) => return End::Failed(status),
            },
            Ok(None) => return End::Closed,
            Err(status) => {
                tracing::debug!(%status, "find broke");
                return End::Broken;
            }
        }
    }
}

async fn speak(mut words: mpsc::Receiver<Say>, answers: &mpsc::Sender<Answer>) -> End {
    while let Some(word) = words.recv().await {
        let last = word.is_last();
        if answers.send(Ok(say(word))).await.is_err() {
            return End::Broken;
        }
        if last {
            return End::Closed;
        }
    }
    End::Failed(Status::resource_exhausted("the stream was not read fast enough"))
}

fn say(word: Say) -> wire::FindResponse {
    use wire::find_response::Message;
    let message = match word {
        Say::Parents(parents) => {
            let parents = parents.into_iter().map(|parent| wire::Parent {
                node_id: parent.node.as_str().to_owned(),
                addr: parent.addr.to_string(),
                complete: parent.complete,
            });
            Message::Parents(wire::Parents { parents: parents.collect() })
        }
        Say::Author { node, certificate } => {
            Message::Author(wire::Author { node_id: node.as_str().to_owned(), certificate: certificate.der.to_vec() })
        }
        Say::Head { author, size, media_type, signature } => Message::Head(wire::ListHead {
            author: author.as_str().to_owned(),
            size,
            media_type,
            signature: signature.into(),
        }),
        Say::Hashes { first, hashes, proof } => {
            let (author, signature) = match proof {
                Some(Proof { author, signature }) => (author.as_str().to_owned(), signature.into()),
                None => Default::default(),
            };
            Message::List(wire::ListPart { first_block: first, hashes: hashes.into(), author, signature })
        }
        Say::Sealed { author, meta, signature } => Message::Sealed(wire::Sealed {
            author: author.as_str().to_owned(),
            root: meta.root.to_vec(),
            size: meta.size,
            media_type: meta.media_type.clone(),
            signature: signature.into(),
        }),
        Say::Permit(Grant { id, first, blocks }) => {
            Message::Permit(wire::Permit { permit_id: id, first_block: first, blocks })
        }
        Say::Waiting(why) => Message::Waiting(waiting(why)),
        Say::Stop(why) => Message::Stop(stop(why)),
    };
    wire::FindResponse { message: Some(message) }
}

fn waiting(why: Waiting) -> wire::Waiting {
    use wire::waiting::Reason;
    let (reason, left) = match why {
        Waiting::Starting { left } => (Reason::Starting, Some(left)),
        Waiting::HolderConnects => (Reason::HolderConnects, None),
        Waiting::HolderWaits => (Reason::HolderWaitsForOrigin, None),
        Waiting::HolderReads => (Reason::HolderReads, None),
        Waiting::Busy { left } => (Reason::OriginBusy, Some(left)),
        Waiting::Nobody => (Reason::Nobody, None),
        Waiting::Seed { left } => (Reason::Seed, Some(left)),
    };
    let retry_after_ms = left.map_or(0, |left| u32::try_from(left.as_millis()).unwrap_or(u32::MAX));
    wire::Waiting { reason: reason.into(), retry_after_ms }
}

fn stop(why: Stop) -> wire::Stop {
    use wire::stop::Reason;
    let (reason, detail) = match why {
        Stop::NoSession => (Reason::NoSession, ""),
        Stop::Again(detail) => (Reason::Moved, detail),
        Stop::Alone => (Reason::Alone, ""),
        Stop::NotFound => (Reason::NotFound, ""),
        Stop::Invalid(detail) => (Reason::Invalid, detail),
        Stop::Revoked => (Reason::PermitRevoked, ""),
    };
    wire::Stop { reason: reason.into(), detail: detail.to_owned() }
}
