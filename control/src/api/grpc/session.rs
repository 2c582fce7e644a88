//! One node's session: from its registration until either side ends it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use shoal_base::drain::Drain;
use shoal_proto::control::v1 as wire;
use shoal_proto::identity::{Bearer, Voids};
use shoal_proto::{ClusterId, NodeId};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::caller::Shown;
use super::{Parts, parse};
use crate::identity::Identity;
use crate::nodes::{Assignment, Joined, SessionId};
use crate::preheat::State;
use crate::swarm::{Order, Reply};

type Answer = Result<wire::SessionResponse, Status>;
/// In a channel, which has room for 32 from the start however few it may hold.
type Boxed = Box<Answer>;

/// For the last word to a node that does not read.
const FAREWELL: Duration = Duration::from_secs(1);
/// Nodes whose certificates are void, in one message: half a MiB.
const VOIDS: usize = 8192;

/// Takes the session's messages, and answers with the assignments.
pub(super) fn serve(
    parts: Parts,
    drain: Drain,
    joined: Joined,
    shown: Option<Shown>,
    mut requests: Streaming<wire::SessionRequest>,
) -> BoxStream<'static, Answer> {
    // Assignments are few, and the newest alone counts: a node that does not read gets the last one when it does.
    let (answers, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let session = joined.session;
        let certified = parts
            .gate
            .identity()
            .cloned()
            .zip(shown.clone())
            .map(|(identity, shown)| Certified::new(identity, shown.bearer));
        let end = talk(&parts, &drain, (joined, shown), certified, &mut requests, &answers).await;
        parts.nodes.disconnected(&session, matches!(end, End::Closed));
        if let End::Failed(status) = end {
            tracing::debug!(%status, "session ended");
            let _ = tokio::time::timeout(FAREWELL, answers.send(Box::new(Err(status)))).await;
        }
    });
    ReceiverStream::new(receiver).map(|answer: Boxed| *answer).boxed()
}

enum End {
    /// The node closed it on purpose.
    Closed,
    /// The connection broke.
    Broken,
    /// This side ends it.
    Failed(Status),
}

/// What is known of the certificates of the session's node, and what it was told of others.
struct Certified {
    identity: Arc<Identity>,
    node: Option<NodeId>,
    /// The cluster that it was certified for last.
    cluster: Option<ClusterId>,
    voids: watch::Receiver<Arc<Voids>>,
    told: Voids,
    /// Nothing was told yet on this stream.
    fresh: bool,
}

impl Certified {
    fn new(identity: Arc<Identity>, bearer: Bearer) -> Self {
        let voids = identity.voids();
        let (node, cluster) = (bearer.id.node().cloned(), bearer.id.cluster().cloned());
        Self { identity, node, cluster, voids, told: Voids::default(), fresh: true }
    }

    /// The node belongs there from now on: what it was certified for elsewhere is void before it hears of it.
    async fn belongs(&mut self, to: Option<&ClusterId>) {
        if self.cluster.is_some()
            && self.cluster.as_ref() != to
            && let Some(node) = self.node.clone()
            && let Err(error) = self.identity.moved(&[node]).await
        {
            tracing::error!(%error, "a moved node's certificates are void until control restarts, and then no more");
        }
        self.cluster = to.cloned();
    }

    /// What is void and was not told.
    fn news(&mut self) -> Vec<wire::SessionResponse> {
        let now = self.voids.borrow_and_update().clone();
        let new = now.iter().filter(|(node, before)| !self.told.cover(node, before - 1));
        let new: Vec<_> = new
            .map(|(node, issued_before)| wire::VoidCertificates { node_id: node.to_string(), issued_before })
            .collect();
        self.told = Voids::clone(&now);
        let mut parts: Vec<Vec<_>> = new.chunks(VOIDS).map(<[_]>::to_vec).collect();
        if parts.is_empty() && self.fresh {
            parts.push(Vec::new());
        }
        let message = |nodes| {
            let voided = wire::Voided { reset: std::mem::take(&mut self.fresh), nodes };
            wire::SessionResponse { message: Some(wire::session_response::Message::Voided(voided)) }
        };
        parts.into_iter().map(message).collect()
    }
}

/// Waits for certificates that become void; for ever where there are none.
async fn voided(certified: &mut Option<Certified>) -> bool {
    match certified {
        Some(certified) => certified.voids.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}

async fn talk(
    parts: &Parts,
    drain: &Drain,
    (joined, shown): (Joined, Option<Shown>),
    mut certified: Option<Certified>,
    requests: &mut Streaming<wire::SessionRequest>,
    answers: &mpsc::Sender<Boxed>,
) -> End {
    let Parts { nodes, .. } = parts;
    let Joined { session, mut assignment, mut orders, over } = joined;
    let heartbeat = u32::try_from(nodes.heartbeat().as_millis()).unwrap_or(u32::MAX);
    let mut unsaid = true;
    // Before the assignment: a node must not meet peers of its cluster without knowing whom to refuse.
    let mut words: VecDeque<_> = certified.as_mut().map(Certified::news).unwrap_or_default().into();
    loop {
        if unsaid && let Some(certified) = &mut certified {
            let to = assignment.borrow().cluster.as_ref().map(|(id, _)| id.clone());
            // Rare, and large: in a box it takes no room in the sessions that wait.
            Box::pin(certified.belongs(to.as_ref())).await;
        }
        tokio::select! {
            message = requests.message() => match message {
                Ok(Some(message)) => {
                    let is_long = matches!(message.message, Some(wire::session_request::Message::Announce(_)));
                    if let Err(status) = take(parts, &session, shown.as_ref(), message) {
                        return End::Failed(status);
                    }
                    if is_long {
                        // When all nodes announce at once, one after the other would be heard to its end, and the leases of the
                        // last would be over by then.
                        tokio::task::yield_now().await;
                    }
                }
                Ok(None) => return End::Closed,
                Err(status) => {
                    tracing::debug!(%status, "session broke");
                    return End::Broken;
                }
            },
            Some(order) = orders.recv() => words.push_back(wire::SessionResponse {
                message: Some(wire::session_response::Message::Fetch(*order)),
            }),
            changed = voided(&mut certified) => match &mut certified {
                Some(certified) if changed => words.extend(certified.news()),
                _ => certified = None,
            },
            room = answers.reserve(), if unsaid || !words.is_empty() => {
                let Ok(room) = room else { return End::Broken };
                room.send(Box::new(Ok(match words.pop_front() {
                    Some(word) => word,
                    None => {
                        unsaid = false;
                        assigned(&assignment.borrow_and_update(), &session, heartbeat)
                    }
                })));
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

fn take(
    parts: &Parts,
    session: &SessionId,
    shown: Option<&Shown>,
    message: wire::SessionRequest,
) -> Result<(), Status> {
    let Parts { nodes, swarm, preheats, gate, .. } = parts;
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
        Some(Message::Certificate(wire::Certificate { certificate })) => {
            let node = nodes.node_of(session).ok_or_else(over)?;
            if let Some(certificate) = gate.certificate(shown, certificate)? {
                swarm.certified(&node, certificate);
            }
            Ok(())
        }
        Some(Message::Order(order)) => {
            let node = nodes.node_of(session).ok_or_else(over)?;
            let (order, said) = parse::order(order)?;
            match Order::of_id(&order) {
                Some(of) => swarm.answered(&node, of, reply(&said.state)),
                None => preheats.heard(&node, &order, said),
            }
            Ok(())
        }
        Some(Message::Register(_)) => Err(Status::invalid_argument("register: comes once")),
        // A newer node may say what this version does not know.
        None => Ok(()),
    }
}

fn reply(state: &State) -> Reply {
    match state {
        State::Waiting | State::Running => Reply::Begins,
        State::Done => Reply::Holds,
        State::Failed(_) | State::Cancelled => Reply::Refuses,
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
