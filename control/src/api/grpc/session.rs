//! One node's session: from its registration until either side ends it.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use shoal_base::drain::Drain;
use shoal_proto::control::v1 as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::parse;
use crate::nodes::{Assignment, Joined, Nodes, SessionId};
use crate::swarm::Swarm;

type Answer = Result<wire::SessionResponse, Status>;

/// For the last word to a node that does not read.
const FAREWELL: Duration = Duration::from_secs(1);

/// Takes the session's messages, and answers with the assignments.
pub(super) fn serve(
    nodes: Arc<Nodes>,
    swarm: Arc<Swarm>,
    drain: Drain,
    joined: Joined,
    requests: Streaming<wire::SessionRequest>,
) -> BoxStream<'static, Answer> {
    // Assignments are few, and the newest alone counts: a node that does not read gets the last one when it does.
    let (answers, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let session = joined.session;
        let end = talk(&nodes, &swarm, &drain, joined, requests, &answers).await;
        nodes.disconnected(&session, matches!(end, End::Closed));
        if let End::Failed(status) = end {
            tracing::debug!(%status, "session ended");
            let _ = tokio::time::timeout(FAREWELL, answers.send(Err(status))).await;
        }
    });
    ReceiverStream::new(receiver).boxed()
}

enum End {
    /// The node closed it on purpose.
    Closed,
    /// The connection broke.
    Broken,
    /// This side ends it.
    Failed(Status),
}

async fn talk(
    nodes: &Nodes,
    swarm: &Swarm,
    drain: &Drain,
    joined: Joined,
    mut requests: Streaming<wire::SessionRequest>,
    answers: &mpsc::Sender<Answer>,
) -> End {
    let Joined { session, mut assignment, over } = joined;
    let heartbeat = u32::try_from(nodes.heartbeat().as_millis()).unwrap_or(u32::MAX);
    let mut unsaid = true;
    loop {
        tokio::select! {
            message = requests.message() => match message {
                Ok(Some(message)) => {
                    if let Err(status) = take(nodes, swarm, &session, message) {
                        return End::Failed(status);
                    }
                }
                Ok(None) => return End::Closed,
                Err(status) => {
                    tracing::debug!(%status, "session broke");
                    return End::Broken;
                }
            },
            room = answers.reserve(), if unsaid => {
                let Ok(room) = room else { return End::Broken };
                room.send(Ok(assigned(&assignment.borrow_and_update(), &session, heartbeat)));
                unsaid = false;
            }
            changed = assignment.changed() => {
                if changed.is_err() {
                    return End::Failed(Status::aborted("the session is over"));
                }
                unsaid = true;
            }
            () = over.cancelled() => {
                return End::Failed(Status::aborted("another session took its place, or the lease ended"));
            }
            () = drain.signalled() => return End::Failed(Status::unavailable("control is going down")),
        }
    }
}

fn take(nodes: &Nodes, swarm: &Swarm, session: &SessionId, message: wire::SessionRequest) -> Result<(), Status> {
    use wire::session_request::Message;
    let over = || Status::aborted("the session is over");
    match message.message {
        Some(Message::Heartbeat(heartbeat)) => {
            nodes.heartbeat_of(session, parse::load(&heartbeat)).then_some(()).ok_or_else(over)
        }
        Some(Message::Announce(announce)) => {
            let node = nodes.node_of(session).ok_or_else(over)?;
            let held = swarm.announce(&node, parse::announce(announce)?);
            nodes.holds(session, held);
            Ok(())
        }
        Some(Message::Public(public)) => {
            let node = nodes.node_of(session).ok_or_else(over)?;
            for (repository, age) in parse::public(public)? {
                swarm.saw_public(&node, repository, age);
            }
            Ok(())
        }
        Some(Message::Register(_)) => Err(Status::invalid_argument("register: comes once")),
        // A newer node may say what this version does not know.
        None => Ok(()),
    }
}

fn assigned(assignment: &Assignment, session: &SessionId, heartbeat_ms: u32) -> wire::SessionResponse {
    let (id, name) = assignment.cluster.as_ref().map_or(("", ""), |(id, name)| (id.as_str(), name.as_str()));
    let message = wire::Assigned {
        cluster_id: id.to_owned(),
        cluster_name: name.to_owned(),
        epoch: assignment.epoch,
        reason: assignment.reason.clone(),
        session: session.to_vec(),
        heartbeat_ms,
    };
    wire::SessionResponse { message: Some(wire::session_response::Message::Assigned(message)) }
}
